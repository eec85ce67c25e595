//! The playground: its page, its interface, and who may use it.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::annotate::run_in;
use crate::fake_studio::{FakeStudio, LEGACY_TOKEN, StudioOptions};
use crate::support::{SHAPES, app, app_with, data_uri, get_json, post, scratch, send_json};

async fn get(app: &Router, path: &str, accept: &str) -> (StatusCode, String, String) {
    let request = Request::get(path).header("accept", accept);
    let request = request.body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let headers = format!("{:?}", response.headers());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (
        status,
        headers,
        String::from_utf8_lossy(&bytes).into_owned(),
    )
}

async fn find(app: &Router, image: &str, prompt: &str) -> (StatusCode, Value) {
    let body = json!({"image": image, "prompt": prompt});
    post(app, "/playground/api/find", &body).await
}

#[tokio::test]
async fn browsers_get_the_page_and_other_clients_get_json() {
    let app = app();
    let (status, headers, _) = get(&app, "/", "text/html,application/xhtml+xml,*/*;q=0.8").await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    assert!(
        headers.contains("\"location\": \"playground\""),
        "{headers}"
    );
    for accept in ["*/*", "application/json"] {
        let (status, headers, body) = get(&app, "/", accept).await;
        assert_eq!(status, StatusCode::OK);
        assert!(headers.contains("\"vary\": \"accept"), "{headers}");
        assert!(body.contains("\"UP\""), "{body}");
    }
    let (status, headers, page) = get(&app, "/playground", "text/html").await;
    assert_eq!(status, StatusCode::OK);
    assert!(headers.contains("frame-ancestors 'none'"), "{headers}");
    // every file that the page and its scripts name exists, and none is of another host
    let mut names = vec![];
    for part in page
        .split(['"', '\''])
        .filter(|part| part.starts_with("playground/"))
    {
        names.push(part.to_owned());
    }
    assert!(names.len() >= 2, "{names:?}");
    while let Some(name) = names.pop() {
        let (status, _, contents) = get(&app, &format!("/{name}"), "*/*").await;
        assert_eq!(status, StatusCode::OK, "{name}");
        assert!(!contents.contains("https://"), "{name}");
        let imports = contents.split('\'').filter(|part| part.starts_with("./"));
        names.extend(imports.map(|part| part.replacen('.', "playground", 1)));
    }
    assert_eq!(
        get(&app, "/playground/x.js", "*/*").await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn candidates_and_masks_are_those_of_the_models() {
    let app = app();
    let (status, found) = find(&app, &data_uri(SHAPES), "red circle. blue star").await;
    assert_eq!(status, StatusCode::OK, "{found}");
    assert_eq!(
        (&found["width"], &found["height"]),
        (&json!(640), &json!(480))
    );
    assert_eq!(found["phrases"], json!(["red circle", "blue star"]));
    let candidates = found["candidates"].as_array().unwrap();
    let scores: Vec<f64> = candidates
        .iter()
        .map(|c| c["score"].as_f64().unwrap())
        .collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    assert!(scores.iter().all(|score| *score >= 0.05), "{scores:?}");
    // also candidates below the box threshold, for the page's slider
    let (_, circles) = find(&app, &data_uri(SHAPES), "circle").await;
    let worst = circles["candidates"].as_array().unwrap().last().unwrap();
    assert!(worst["score"].as_f64().unwrap() < 0.3, "{circles}");
    let config = found["labeling_config"].as_str().unwrap();
    assert!(config.contains("<Label value=\"blue star\""), "{config}");

    // a negative phrase is neither a label nor a phrase of the answer
    let (_, negative) = find(&app, &data_uri(SHAPES), "red circle. -blue star").await;
    assert_eq!(negative["phrases"], json!(["red circle"]));
    let config = negative["labeling_config"].as_str().unwrap();
    assert!(!config.contains("blue star"), "{config}");

    // later requests name the image by its digest, and run no detector
    let digest = found["image"].as_str().unwrap();
    let (status, again) = find(&app, digest, "red circle. blue star").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(again["candidates"], found["candidates"]);
    assert!(
        again["stages"]
            .as_array()
            .unwrap()
            .iter()
            .all(|stage| stage["computed"] == 0)
    );

    let boxes = [&candidates[0]["box"], &candidates[1]["box"]];
    let body = json!({"image": digest, "boxes": boxes});
    let (status, masks) = post(&app, "/playground/api/segment", &body).await;
    assert_eq!(status, StatusCode::OK, "{masks}");
    for (mask, bounding_box) in masks["masks"].as_array().unwrap().iter().zip(boxes) {
        assert_eq!(mask["mask"]["size"], json!([480, 640]));
        let corner = |i: usize| bounding_box[i].as_f64().unwrap();
        let area = (corner(2) - corner(0)) * (corner(3) - corner(1));
        let share = mask["area"].as_f64().unwrap() / area;
        assert!((0.3..1.1).contains(&share), "{share}");
    }

    let corner = |i: usize| candidates[0]["box"][i].as_f64().unwrap();
    let (x, y) = ((corner(0) + corner(2)) / 2.0, (corner(1) + corner(3)) / 2.0);
    let body = json!({"image": digest, "points": [{"x": x, "y": y, "positive": true}]});
    let (status, marked) = post(&app, "/playground/api/mark", &body).await;
    assert_eq!(status, StatusCode::OK, "{marked}");
    assert!(
        marked["masks"][0]["area"].as_f64().unwrap() > 100.0,
        "{marked}"
    );
}

#[tokio::test]
async fn invalid_requests_of_the_page_are_answered_with_the_reason() {
    let app = app();
    let (status, gone) = find(&app, &"ab".repeat(32), "dog").await;
    assert_eq!(status, StatusCode::GONE, "{gone}");
    // the playground fetches nothing: neither from hosts nor from disk
    for image in [
        "http://127.0.0.1:1/a.png",
        "/data/upload/1/a.png",
        "",
        "data:image/png;base64,AAAA",
    ] {
        let (status, answer) = find(&app, image, "dog").await;
        assert_eq!(
            status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{image}: {answer}"
        );
    }
    let (status, answer) = find(&app, &data_uri(SHAPES), " . ").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    let body = json!({"image": data_uri(SHAPES), "prompt": "dog", "detector": "other"});
    let (status, answer) = post(&app, "/playground/api/find", &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert!(
        answer.to_string().contains("PLAYGROUND_DETECTORS"),
        "{answer}"
    );
    let body = json!({"image": data_uri(SHAPES), "boxes": [[0, 0, 9, 9]], "segmenter": "other"});
    let (status, answer) = post(&app, "/playground/api/segment", &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert!(
        answer.to_string().contains("PLAYGROUND_SEGMENTERS"),
        "{answer}"
    );
    for (path, body) in [
        ("segment", json!({"boxes": [[5, 0, 4, 1]]})),
        ("segment", json!({"boxes": vec![[0, 0, 1, 1]; 1001]})),
        ("mark", json!({"points": []})),
        (
            "mark",
            json!({"points": [{"x": 1, "y": 1, "positive": false}]}),
        ),
        (
            "mark",
            json!({"points": [{"x": "1", "y": 1, "positive": true}]}),
        ),
    ] {
        let mut body = body;
        body["image"] = data_uri(SHAPES).into();
        let (status, answer) = post(&app, &format!("/playground/api/{path}"), &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {answer}");
    }
}

#[tokio::test]
async fn the_page_knows_which_models_the_server_has() {
    let cases: [(&[&str], bool, bool); 3] = [
        (&[], true, true),
        (&["--detector", "none"], false, true),
        (
            &["--segmenter", "none", "--playground-segmenters", "demo"],
            true,
            false,
        ),
    ];
    for (flags, detector, segmenter) in cases {
        let (_, settings) = get_json(&app_with(flags), "/playground/api/settings").await;
        assert_eq!(settings["own_detector"], detector, "{flags:?}");
        assert_eq!(settings["own_segmenter"], segmenter, "{flags:?}");
    }
}

#[tokio::test]
async fn the_playground_is_served_only_to_this_machine_or_with_credentials() {
    let credentials = ["--basic-auth-user", "ann", "--basic-auth-pass", "secret"];
    let open = ["--bind-address", "0.0.0.0"];
    let cases: [(&[&str], StatusCode, &str); 4] = [
        (
            &["--playground", "off"],
            StatusCode::NOT_FOUND,
            "PLAYGROUND=off",
        ),
        (&open, StatusCode::NOT_FOUND, "BASIC_AUTH_USER"),
        (&credentials, StatusCode::UNAUTHORIZED, "BASIC_AUTH_USER"),
        (&[], StatusCode::OK, ""),
    ];
    for (flags, expected, text) in cases {
        let app = app_with(flags);
        for path in ["/playground/api/settings", "/playground/api/status"] {
            let (status, body) = get_json(&app, path).await;
            assert_eq!(status, expected, "{flags:?} {path}: {body}");
            assert!(body.to_string().contains(text), "{flags:?} {path}: {body}");
        }
        let (status, ..) = get(&app, "/playground", "text/html").await;
        assert_eq!(status, expected, "{flags:?}");
        let find = json!({"image": data_uri(SHAPES), "prompt": "red circle"});
        let (status, _) = send_json(&app, "POST", "/playground/api/find", &find).await;
        assert_eq!(status, expected, "{flags:?}");
        if expected == StatusCode::NOT_FOUND {
            let (status, ..) = get(&app, "/", "text/html").await;
            assert_eq!(
                status,
                StatusCode::OK,
                "without a playground, / answers JSON"
            );
        }
    }
}

#[tokio::test]
async fn the_status_lists_batches_caches_and_problems() {
    let app = app_with(&[]);
    let (_, before) = get_json(&app, "/playground/api/status").await;
    assert_eq!(before["batches"], json!([]));
    let config = crate::support::SHAPES_CONFIG;
    let tasks = json!([
        {"id": 1, "data": {"image": data_uri(SHAPES)}},
        {"id": 2, "data": {"image": "data:image/png;base64,AAAA"}},
    ]);
    let body = json!({"tasks": tasks, "project": "7.1", "label_config": config});
    let (status, _) = post(&app, "/predict", &body).await;
    assert_eq!(status, StatusCode::OK);
    let (_, after) = get_json(&app, "/playground/api/status").await;
    let batch = &after["batches"][0];
    assert_eq!(
        (&batch["project"], &batch["done"], &batch["failed"]),
        (&json!("7.1"), &json!(1), &json!(1))
    );
    let error = batch["last_error"].as_str().unwrap();
    assert!(error.contains("data URI"), "{error}");
    let caches = after["caches"].as_array().unwrap();
    let features = caches
        .iter()
        .find(|cache| cache["name"] == "image_features")
        .unwrap();
    assert!(features["misses"].as_u64().unwrap() > 0, "{features}");
    assert!(after["models"]["device"].is_string(), "{after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_lists_the_runs_of_commands_with_the_same_folder() {
    let studio = FakeStudio::start(StudioOptions {
        tasks: 4,
        ..StudioOptions::default()
    })
    .await;
    let folder = scratch().join("runs");
    let arguments = ["annotate", "--project", "7", "--prompt", "red circle"];
    let output = run_in(&folder, &studio, LEGACY_TOKEN, &arguments).await;
    // the image of one task is missing
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let app = app_with(&["--model-dir", folder.to_str().unwrap()]);
    let (_, status) = get_json(&app, "/playground/api/status").await;
    let runs = status["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 1, "{status}");
    let run = &runs[0];
    assert_eq!(
        (&run["command"], &run["project"]),
        (&json!("annotate"), &json!(7))
    );
    assert_eq!(
        (&run["state"], &run["done"], &run["failed"]),
        (&json!("ended"), &json!(4), &json!(1))
    );
    let error = run["last_error"].as_str().unwrap();
    assert!(error.starts_with("task 103: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_of_tasks_need_the_credentials_of_the_server() {
    let studio = FakeStudio::start(StudioOptions {
        tasks: 5,
        ..StudioOptions::default()
    })
    .await;
    let connection = [
        "--label-studio-host",
        &studio.host,
        "--label-studio-access-token",
        LEGACY_TOKEN,
    ];
    let (status, answer) = get_json(&app_with(&connection), "/playground/api/task/101").await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    let credentials = ["--basic-auth-user", "ann", "--basic-auth-pass", "secret"];
    let protected = app_with(&[&connection[..], &credentials].concat());
    let send = async |task: &str| {
        let request = Request::get(format!("/playground/api/task/{task}"))
            .header("authorization", "Basic YW5uOnNlY3JldA==");
        let request = request.body(Body::empty()).unwrap();
        let response = protected.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, bytes)
    };
    let (status, picture) = send("101").await;
    assert_eq!(
        status,
        StatusCode::OK,
        "{}",
        String::from_utf8_lossy(&picture)
    );
    let picture = groundling::image::load_from_memory(&picture)
        .unwrap()
        .into_rgb8();
    let shapes = groundling::image::load_from_memory(SHAPES)
        .unwrap()
        .into_rgb8();
    assert_eq!(picture, shapes);
    for (task, expected) in [
        ("999", StatusCode::NOT_FOUND),
        ("x", StatusCode::BAD_REQUEST),
        // its image cannot be fetched
        ("103", StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let (status, answer) = send(task).await;
        assert_eq!(
            status,
            expected,
            "{task}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
}
