//! Any text as the value of an image: only http and https URLs are fetched, only files in the folder for local files are
//! read, inline data is not longer than the value, and no message shows a password or grows with the value.

#![no_main]

use std::path::{Component, Path};

use groundling::label_studio::LabelStudio;
use groundling::media::{Location, ResolveContext, locate};
use libfuzzer_sys::fuzz_target;

/// The folder for local files. It does not exist, so that no file is read.
const ROOT: &str = "/nonexistent/root";

fuzz_target!(|input: (u8, &str)| {
    let (flags, value) = input;
    let host = match flags & 3 {
        0 => None,
        1 => Some("http://studio:8080"),
        _ => Some("https://studio.example/prefix/"),
    };
    let label_studio = LabelStudio::new(host, None).expect("the host is a valid URL");
    let context = ResolveContext {
        label_studio: &label_studio,
        task: (flags & 4 != 0).then_some(7),
        local_files: (flags & 8 != 0).then_some(Path::new(ROOT)),
    };
    let location = match locate(value, context) {
        Ok(location) => location,
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 1000, "{message}");
            return;
        }
    };
    let name = location.describe(&label_studio);
    match location {
        Location::Inline(bytes) => assert!(bytes.len() <= value.len()),
        Location::File { path, .. } => {
            let relative = path.strip_prefix(ROOT).expect("the path is in the folder");
            let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
            assert!(relative.components().all(is_plain), "{path:?}");
        }
        Location::Remote { url, fallback } => {
            for url in std::iter::once(&url).chain(&fallback) {
                assert!(["http", "https"].contains(&url.scheme()), "{url}");
                assert!(url.has_host(), "{url}");
            }
            if let Some(other) = fallback {
                assert!(label_studio.is_same_origin(&url) && label_studio.is_same_origin(&other));
            }
            let name = url::Url::parse(&name).expect("the description is a URL");
            assert!(name.password().is_none() && name.username().is_empty());
        }
    }
});
