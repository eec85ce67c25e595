//! Images of tasks: the forms of URLs, the kinds of tokens, private addresses, and the limits of a fetch.

use axum::Router;

use crate::fake_studio::{FakeStudio, LEGACY_TOKEN, StudioOptions, jwt, personal_access_token};
use crate::support::{
    SHAPES, SHAPES_CONFIG, app_with, data_uri, post, predict_error, prompt_request,
    rectangle_and_mask_of, regions, scratch, types_and_labels,
};

/// Checks that the image can be fetched: a prompt must find the red circle in it.
async fn check_fetched(app: &Router, image: &str) {
    let request = prompt_request(SHAPES_CONFIG, image, "red circle");
    let answer = post(app, "/predict", &request).await;
    assert_eq!(
        types_and_labels(regions(&answer)),
        rectangle_and_mask_of(&["Red Circle"]),
        "{image}"
    );
}

/// The status and the error of a request with an image that cannot be fetched.
async fn error(app: &Router, image: &str) -> (u16, String) {
    predict_error(app, &prompt_request(SHAPES_CONFIG, image, "star")).await
}

#[tokio::test]
async fn images_are_fetched_from_every_form_of_url_and_the_token_stays_at_label_studio() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let app = studio.app(LEGACY_TOKEN, &["--allowed-image-hosts", "localhost"]);
    for image in [
        "/data/upload/1/a%20b.png",
        "upload/1/a.png",
        "/data/local-files/?d=sub/a%20b.png",
        "/data/local-files?d=a.png",
        "/storage-data/uploaded/?filepath=upload/1/shapes.png",
        // uploads in cloud storage have another URL
        "/data/upload/1/stored.png",
        &format!("{}/data/upload/1/a b.png", studio.host),
        &format!("{}/open.png?key=secret", studio.other_origin),
        // these redirect to another host, which rejects requests that have the token
        "/data/upload/1/moved.png",
        "s3://bucket/a b.png",
        &data_uri(SHAPES),
    ] {
        check_fetched(&app, image).await;
    }
    let studio = FakeStudio::start(StudioOptions {
        prefix: "/studio",
        ..StudioOptions::default()
    })
    .await;
    let app = studio.app(LEGACY_TOKEN, &[]);
    check_fetched(&app, "/data/upload/1/a.png").await;
    check_fetched(&app, "/studio/data/upload/1/a.png").await;
}

#[tokio::test]
async fn a_personal_access_token_is_exchanged_and_renewed() {
    let studio = FakeStudio::start(StudioOptions {
        accepts_legacy_tokens: false,
        ..StudioOptions::default()
    })
    .await;
    let app = studio.app(&personal_access_token(), &[]);
    check_fetched(&app, "/data/upload/1/a.png").await;
    check_fetched(&app, "/data/upload/1/b.png").await;
    assert_eq!(studio.token_exchanges(), 1, "the access token is reused");
    studio.revoke_access_tokens();
    check_fetched(&app, "/data/upload/1/c.png").await;
    assert_eq!(
        studio.token_exchanges(),
        2,
        "a rejected access token is renewed"
    );
    // an access token with a lifetime of less than a minute is renewed before each use
    let studio = FakeStudio::start(StudioOptions {
        access_token_seconds: 30,
        ..StudioOptions::default()
    })
    .await;
    let app = studio.app(&personal_access_token(), &[]);
    check_fetched(&app, "/data/upload/1/a.png").await;
    check_fetched(&app, "/data/upload/1/b.png").await;
    assert_eq!(studio.token_exchanges(), 2);
}

#[tokio::test]
async fn an_access_token_is_used_without_an_exchange() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let access = jwt(&serde_json::json!({"token_type": "access", "number": 1}));
    check_fetched(&studio.app(&access, &[]), "/data/upload/1/a.png").await;
    assert_eq!(studio.token_exchanges(), 0);
}

#[tokio::test]
async fn without_settings_the_host_and_token_of_setup_are_used_with_restrictions() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let app = app_with(&[]);
    let mut setup = crate::support::payload("setup");
    let request = prompt_request(SHAPES_CONFIG, "/data/upload/1/a.png", "red circle");
    setup["project"] = request["project"].clone();
    setup["hostname"] = studio.host.clone().into();
    setup["access_token"] = LEGACY_TOKEN.into();
    post(&app, "/setup", &setup).await;
    check_fetched(&app, "/data/upload/1/a.png").await;
    // a server that others can reach does not use a private address from /setup
    let open = app_with(&["--bind-address", "0.0.0.0"]);
    post(&open, "/setup", &setup).await;
    let (_, text) = error(&open, "/data/upload/1/a.png").await;
    assert!(text.contains("set LABEL_STUDIO_HOST"), "{text}");
    // nor does it exchange a token there, if the host name resolves to a private address
    let mut exchange = setup.clone();
    exchange["hostname"] = studio.other_origin.clone().into();
    exchange["access_token"] = personal_access_token().into();
    post(&open, "/setup", &exchange).await;
    let (_, text) = error(&open, "/data/upload/1/a.png").await;
    assert!(text.contains("private address"), "{text}");
    assert_eq!(studio.token_exchanges(), 0);
    let flags = [
        "--bind-address",
        "0.0.0.0",
        "--allowed-image-hosts",
        "127.0.0.1",
    ];
    let allowed = app_with(&flags);
    post(&allowed, "/setup", &setup).await;
    check_fetched(&allowed, "/data/upload/1/a.png").await;
    // a configured token is not sent to an address from /setup
    let configured = app_with(&["--label-studio-access-token", LEGACY_TOKEN]);
    setup["access_token"] = "wrong".into();
    post(&configured, "/setup", &setup).await;
    let (status, text) = error(&configured, "/data/upload/1/a.png").await;
    assert_eq!(status, 502);
    assert!(text.contains("LABEL_STUDIO_ACCESS_TOKEN"), "{text}");
}

#[tokio::test]
async fn an_error_says_what_is_wrong_with_the_token_and_never_shows_it() {
    let studio = FakeStudio::start(StudioOptions {
        accepts_legacy_tokens: false,
        ..StudioOptions::default()
    })
    .await;
    let upload = "/data/upload/1/a.png";
    let without_token = app_with(&["--label-studio-host", &studio.host]);
    let unknown_token = jwt(&serde_json::json!({"token_type": "refresh"}));
    studio.revoke_access_tokens();
    let expired = jwt(&serde_json::json!({"token_type": "access", "number": 0}));
    for (app, expected) in [
        (
            &without_token,
            "set LABEL_STUDIO_ACCESS_TOKEN to a personal access token",
        ),
        (&studio.app(LEGACY_TOKEN, &[]), "disabled legacy tokens"),
        (&studio.app(&unknown_token, &[]), "it was revoked"),
        (&studio.app(&expired, &[]), "short-lived"),
    ] {
        let (status, text) = error(app, upload).await;
        assert_eq!(status, 502);
        assert!(text.contains(expected), "{text}");
        let shows_token = text.contains(LEGACY_TOKEN) || text.contains(&unknown_token);
        assert!(!shows_token, "{text}");
    }
}

#[tokio::test]
async fn private_addresses_are_rejected_also_after_redirects() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let strict = studio.app(LEGACY_TOKEN, &[]);
    for image in [
        format!("{}/open.png", studio.other_origin),
        // after a redirect, and as a presigned URL
        "/data/upload/1/moved.png".to_owned(),
        "s3://bucket/a b.png".to_owned(),
        "http://127.0.0.2:9/x.png".to_owned(),
        "http://[::1]:9/x.png".to_owned(),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "http://2130706433:9/x.png".to_owned(),
    ] {
        let (status, text) = error(&strict, &image).await;
        assert_eq!(status, 422, "{text}");
        assert!(text.contains("ALLOWED_IMAGE_HOSTS"), "{image}: {text}");
    }
    assert_eq!(studio.images_served(), 0);
}

#[tokio::test]
async fn an_error_names_the_image_and_the_reason_or_the_setting() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let app = studio.app(LEGACY_TOKEN, &["--image-timeout-s", "1"]);
    let without_host = app_with(&[]);
    let unreachable = app_with(&["--label-studio-host", "http://127.0.0.1:1"]);
    let few_pixels = app_with(&["--max-image-pixels", "1000"]);
    let few_bytes = studio.app(LEGACY_TOKEN, &["--max-image-bytes", "1000"]);
    let own = |path: &str| format!("{}{path}", studio.host);
    for (app, image, status, expected) in [
        (
            &app,
            "/data/upload/1/missing.png",
            502,
            "missing.png answered 500",
        ),
        (
            &app,
            "/data/local-files/?d=missing.png",
            502,
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED",
        ),
        (&app, "s3://bucket/other.png", 502, "cloud storage"),
        (
            &app,
            "/data/upload/1/https.png",
            502,
            "redirects to https://127.0.0.1:",
        ),
        (
            &unreachable,
            "/data/upload/1/a.png",
            502,
            "LABEL_STUDIO_HOST must be",
        ),
        (
            &without_host,
            "/data/upload/1/a.png",
            422,
            "set LABEL_STUDIO_HOST",
        ),
        (&app, &own("/text.png"), 422, "not a readable image"),
        (&app, &own("/loop.png"), 502, "more than 5 redirects"),
        (&app, &own("/slow.png"), 502, "IMAGE_TIMEOUT_S"),
        (
            &app,
            "ftp://host/x.png",
            422,
            "ftp://host/x.png is not an image URL",
        ),
        (
            &app,
            "http://no-such-host.invalid/x.png",
            502,
            "cannot fetch http://no-such-host.invalid/x.png",
        ),
        (&few_pixels, &data_uri(SHAPES), 422, "640x480 pixels"),
        (&few_bytes, "/data/upload/1/a.png", 422, "MAX_IMAGE_BYTES"),
    ] {
        let (code, text) = error(app, image).await;
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains(LEGACY_TOKEN), "{text}");
        assert_eq!(code, status, "{text}");
    }
}

#[tokio::test]
async fn local_files_are_read_from_their_folder_only() {
    let root = scratch().join("local files");
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::write(root.join("sub/a b.png"), SHAPES).unwrap();
    std::fs::write(scratch().join("outside.png"), SHAPES).unwrap();
    let app = app_with(&["--local-files-document-root", root.to_str().unwrap()]);
    check_fetched(&app, "/data/local-files/?d=sub/a%20b.png").await;
    let (_, text) = error(&app, "/data/local-files/?d=../outside.png").await;
    assert!(text.contains("outside LOCAL_FILES_DOCUMENT_ROOT"), "{text}");
    let (_, text) = error(&app, "/data/local-files/?d=sub/none.png").await;
    assert!(text.contains("none.png"), "{text}");
}

#[tokio::test]
async fn the_login_of_the_project_is_sent_to_the_images_origin_only() {
    let studio = FakeStudio::start(StudioOptions::default()).await;
    let app = app_with(&["--allowed-image-hosts", "localhost, 127.0.0.1"]);
    let image = |name: &str| format!("{}/{name}.png", studio.other_origin);
    let (status, text) = error(&app, &image("protected")).await;
    assert_eq!(status, 502, "{text}");
    assert!(text.contains("401"), "{text}");
    // the second one redirects to another origin, which rejects credentials
    for name in ["protected", "protected-moved"] {
        let mut request = prompt_request(SHAPES_CONFIG, &image(name), "red circle");
        request["params"]["login"] = "user".into();
        request["params"]["password"] = "word".into();
        let answer = post(&app, "/predict", &request).await;
        assert_eq!(
            types_and_labels(regions(&answer)),
            rectangle_and_mask_of(&["Red Circle"]),
            "{name}"
        );
    }
}
