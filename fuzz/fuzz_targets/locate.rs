//! Any text as the value of an image: what is fetched is http or https, what is read from the disk lies in the folder
//! of local files, what stands in the value itself is no longer than it, and no message shows a password or grows with
//! the value.

#![no_main]

use std::path::{Component, Path};

use groundling::label_studio::LabelStudio;
use groundling::media::{Location, ResolveContext, locate};
use libfuzzer_sys::fuzz_target;

/// A folder that is not there: nothing of the disk is looked at.
const ROOT: &str = "/nonexistent/root";

fuzz_target!(|input: (u8, &str)| {
    let (around, value) = input;
    let host = match around & 3 {
        0 => None,
        1 => Some("http://studio:8080"),
        _ => Some("https://studio.example/prefix/"),
    };
    let label_studio = LabelStudio::new(host, None).expect("an address");
    let around = ResolveContext {
        label_studio: &label_studio,
        task: (around & 4 != 0).then_some(7),
        local_files: (around & 8 != 0).then_some(Path::new(ROOT)),
    };
    let location = match locate(value, around) {
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
            let below = path.strip_prefix(ROOT).expect("a path in the folder");
            let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
            assert!(below.components().all(is_plain), "{path:?}");
        }
        Location::Remote { url, fallback } => {
            for url in std::iter::once(&url).chain(&fallback) {
                assert!(["http", "https"].contains(&url.scheme()), "{url}");
                assert!(url.has_host(), "{url}");
            }
            if let Some(other) = fallback {
                assert!(label_studio.is_same_origin(&url) && label_studio.is_same_origin(&other));
            }
            let name = url::Url::parse(&name).expect("the name is a URL");
            assert!(name.password().is_none() && name.username().is_empty());
        }
    }
});
