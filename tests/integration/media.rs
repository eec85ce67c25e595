//! Tokens and URLs: whatever was pasted, wherever images lie.

use axum::Router;

use crate::studio::{LEGACY, Setup, Studio, jwt, personal};
use crate::support::{
    SHAPES, SHAPES_CONFIG, app_with, both_of, data_uri, kinds, post, prompt_request, refused,
    regions, scratch,
};

/// Whether a prompt finds the red circle in an image.
async fn check_found(app: &Router, image: &str) {
    let request = prompt_request(SHAPES_CONFIG, image, "red circle");
    let answer = post(app, "/predict", &request).await;
    assert_eq!(kinds(regions(&answer)), both_of(&["Red Circle"]), "{image}");
}

async fn error(app: &Router, image: &str) -> (u16, String) {
    refused(app, &prompt_request(SHAPES_CONFIG, image, "star")).await
}

#[tokio::test]
async fn every_form_of_url() {
    let studio = Studio::start(Setup::default()).await;
    let app = studio.app(LEGACY, &["--allowed-image-hosts", "localhost"]);
    for image in [
        "/data/upload/1/a%20b.png",
        "upload/1/a.png",
        "/data/local-files/?d=sub/a%20b.png",
        "/data/local-files?d=a.png",
        "/storage-data/uploaded/?filepath=upload/1/shapes.png",
        // uploads may lie in cloud storage: then Label Studio has them at another address
        "/data/upload/1/stored.png",
        &format!("{}/data/upload/1/a b.png", studio.host),
        &format!("{}/open.png?key=secret", studio.elsewhere),
        // these lead to another host, which must not see the token
        "/data/upload/1/moved.png",
        "s3://bucket/a b.png",
        &data_uri(SHAPES),
    ] {
        check_found(&app, image).await;
    }
    let studio = Studio::start(Setup {
        prefix: "/studio",
        ..Setup::default()
    })
    .await;
    let app = studio.app(LEGACY, &[]);
    check_found(&app, "/data/upload/1/a.png").await;
    check_found(&app, "/studio/data/upload/1/a.png").await;
}

#[tokio::test]
async fn a_personal_access_token_is_exchanged_and_renewed() {
    let studio = Studio::start(Setup {
        has_legacy: false,
        ..Setup::default()
    })
    .await;
    let app = studio.app(&personal(), &[]);
    check_found(&app, "/data/upload/1/a.png").await;
    check_found(&app, "/data/upload/1/b.png").await;
    assert_eq!(studio.exchanges(), 1, "the access token is kept");
    studio.revoke_access();
    check_found(&app, "/data/upload/1/c.png").await;
    assert_eq!(studio.exchanges(), 2, "renewed on a 401");
    // one that lives less than a minute is renewed before each use
    let studio = Studio::start(Setup {
        life: 30,
        ..Setup::default()
    })
    .await;
    let app = studio.app(&personal(), &[]);
    check_found(&app, "/data/upload/1/a.png").await;
    check_found(&app, "/data/upload/1/b.png").await;
    assert_eq!(studio.exchanges(), 2);
}

#[tokio::test]
async fn an_access_token_is_used_as_it_is() {
    let studio = Studio::start(Setup::default()).await;
    let access = jwt(&serde_json::json!({"token_type": "access", "number": 1}));
    check_found(&studio.app(&access, &[]), "/data/upload/1/a.png").await;
    assert_eq!(studio.exchanges(), 0);
}

#[tokio::test]
async fn without_settings_setup_is_the_last_resort() {
    let studio = Studio::start(Setup::default()).await;
    let app = app_with(&[]);
    let mut setup = crate::support::payload("setup");
    let request = prompt_request(SHAPES_CONFIG, "/data/upload/1/a.png", "red circle");
    setup["project"] = request["project"].clone();
    setup["hostname"] = studio.host.clone().into();
    setup["access_token"] = LEGACY.into();
    post(&app, "/setup", &setup).await;
    check_found(&app, "/data/upload/1/a.png").await;
    // where anybody may send it, its word opens no private address
    let open = app_with(&["--bind-address", "0.0.0.0"]);
    post(&open, "/setup", &setup).await;
    let (_, text) = error(&open, "/data/upload/1/a.png").await;
    assert!(text.contains("set LABEL_STUDIO_HOST"), "{text}");
    // nor does a token that wants to be exchanged there, by a name that only the resolver sees through
    let mut exchange = setup.clone();
    exchange["hostname"] = studio.elsewhere.clone().into();
    exchange["access_token"] = personal().into();
    post(&open, "/setup", &exchange).await;
    let (_, text) = error(&open, "/data/upload/1/a.png").await;
    assert!(text.contains("private address"), "{text}");
    assert_eq!(studio.exchanges(), 0);
    let guarded = [
        "--bind-address",
        "0.0.0.0",
        "--allowed-image-hosts",
        "127.0.0.1",
    ];
    let named = app_with(&guarded);
    post(&named, "/setup", &setup).await;
    check_found(&named, "/data/upload/1/a.png").await;
    // a configured token does not go to an address that came with /setup
    let mine = app_with(&["--label-studio-access-token", LEGACY]);
    setup["access_token"] = "wrong".into();
    post(&mine, "/setup", &setup).await;
    let (status, text) = error(&mine, "/data/upload/1/a.png").await;
    assert_eq!(status, 502);
    assert!(text.contains("LABEL_STUDIO_ACCESS_TOKEN"), "{text}");
}

#[tokio::test]
async fn what_is_wrong_with_a_token_is_named() {
    let studio = Studio::start(Setup {
        has_legacy: false,
        ..Setup::default()
    })
    .await;
    let upload = "/data/upload/1/a.png";
    let none = app_with(&["--label-studio-host", &studio.host]);
    let other_refresh = jwt(&serde_json::json!({"token_type": "refresh"}));
    studio.revoke_access();
    let expired = jwt(&serde_json::json!({"token_type": "access", "number": 0}));
    for (app, expected) in [
        (
            &none,
            "set LABEL_STUDIO_ACCESS_TOKEN to a personal access token",
        ),
        (&studio.app(LEGACY, &[]), "disabled legacy tokens"),
        (&studio.app(&other_refresh, &[]), "it was revoked"),
        (&studio.app(&expired, &[]), "short-lived"),
    ] {
        let (status, text) = error(app, upload).await;
        assert_eq!(status, 502);
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains(LEGACY) && !text.contains(&other_refresh));
    }
}

#[tokio::test]
async fn private_addresses_are_not_asked() {
    let studio = Studio::start(Setup::default()).await;
    let strict = studio.app(LEGACY, &[]);
    for image in [
        format!("{}/open.png", studio.elsewhere),
        // by way of a redirect, and of a presigned URL
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
async fn what_is_wrong_with_an_image_is_named() {
    let studio = Studio::start(Setup::default()).await;
    let app = studio.app(LEGACY, &["--image-timeout-s", "1"]);
    let no_host = app_with(&[]);
    let nobody = app_with(&["--label-studio-host", "http://127.0.0.1:1"]);
    let few_pixels = app_with(&["--max-image-pixels", "1000"]);
    let few_bytes = studio.app(LEGACY, &["--max-image-bytes", "1000"]);
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
            &nobody,
            "/data/upload/1/a.png",
            502,
            "LABEL_STUDIO_HOST must be",
        ),
        (
            &no_host,
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
        assert!(!text.contains(LEGACY));
        assert_eq!(code, status, "{text}");
    }
}

#[tokio::test]
async fn local_files_are_read_from_disk() {
    let root = scratch().join("local files");
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::write(root.join("sub/a b.png"), SHAPES).unwrap();
    std::fs::write(scratch().join("outside.png"), SHAPES).unwrap();
    let app = app_with(&["--local-files-document-root", root.to_str().unwrap()]);
    check_found(&app, "/data/local-files/?d=sub/a%20b.png").await;
    let (_, text) = error(&app, "/data/local-files/?d=../outside.png").await;
    assert!(text.contains("outside LOCAL_FILES_DOCUMENT_ROOT"), "{text}");
    let (_, text) = error(&app, "/data/local-files/?d=sub/none.png").await;
    assert!(text.contains("none.png"), "{text}");
}

#[tokio::test]
async fn protected_urls_get_the_login_of_the_project() {
    let studio = Studio::start(Setup::default()).await;
    let app = app_with(&["--allowed-image-hosts", "localhost"]);
    let image = format!("{}/open.png", studio.elsewhere);
    let mut request = prompt_request(SHAPES_CONFIG, &image, "red circle");
    request["params"]["login"] = "user".into();
    request["params"]["password"] = "word".into();
    let answer = post(&app, "/predict", &request).await;
    assert_eq!(kinds(regions(&answer)), both_of(&["Red Circle"]));
}
