//! The names of written files: safe, and unique within a folder.

use std::collections::{HashMap, HashSet};

use reqwest::Url;

/// Limit of a name in bytes. File systems allow 255 bytes with the number and the extension.
const MAX_BYTES: usize = 160;

/// Label Studio's routes that name a file in a query parameter.
const FILE_PARAMETERS: [(&str, &str); 2] = [
    ("/data/local-files", "d"),
    ("/storage-data/uploaded", "filepath"),
];

/// Gives names that are unique without regard to case, because some file systems ignore it.
#[derive(Debug, Default)]
pub struct Names {
    /// All given names, in lower case.
    taken: HashSet<String>,
    /// For a wanted name in lower case, the number that the next image with that name gets.
    next: HashMap<String, usize>,
}

impl Names {
    /// The wanted name if it is free, else the name with a number: `photo-2`.
    pub fn unique(&mut self, wanted: &str) -> String {
        let number = self.next.entry(wanted.to_lowercase()).or_insert(1);
        let mut name = match *number {
            1 => wanted.to_owned(),
            number => format!("{wanted}-{number}"),
        };
        // another image may already be called `photo-2`
        while !self.taken.insert(name.to_lowercase()) {
            *number += 1;
            name = format!("{wanted}-{number}");
        }
        *number += 1;
        name
    }
}

/// A file name without its folder and extension.
pub fn stem(name: &str) -> &str {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    match name.rsplit_once('.') {
        Some((stem, _)) if !stem.is_empty() => stem,
        _ => name,
    }
}

/// The name, without extension, of the file that a URL in a task's data names; empty if it names none, as a data URI.
pub fn stem_of_url(url: &str) -> String {
    if url
        .get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case("data:"))
    {
        return String::new();
    }
    // a path on Label Studio has no host
    let parsed = Url::parse(url).or_else(|_| Url::parse("http://localhost/")?.join(url));
    let Ok(parsed) = parsed else {
        return String::new();
    };
    let route = parsed.path().trim_end_matches('/');
    let mut parameters = FILE_PARAMETERS.iter();
    let parameter = parameters.find(|(end, _)| route.ends_with(end));
    let file = parameter.and_then(|(_, name)| parsed.query_pairs().find(|(key, _)| key == name));
    match file {
        Some((_, file)) => stem(&file).to_owned(),
        None => stem(&decoded(parsed.path())).to_owned(),
    }
}

/// A path of a URL without percent-encoding.
fn decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|code| str::from_utf8(code).ok());
        let code = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        match code.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A name for a file, without extension, made from any text. Letters, digits and a few signs are kept, and everything else
/// becomes `_`, so the name is never a path, a hidden file or a name that some file system does not allow.
pub fn safe_name(text: &str) -> String {
    let is_kept = |c: char| c.is_alphanumeric() || " -_.,+()@".contains(c);
    let replaced = text.chars().map(|c| if is_kept(c) { c } else { '_' });
    let mut name = String::new();
    for character in replaced {
        if name.len() + character.len_utf8() > MAX_BYTES {
            break;
        }
        name.push(character);
    }
    // Windows ignores dots and spaces at the end
    match name.trim_matches([' ', '.']) {
        "" => "image".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_without_regard_to_case() {
        let mut names = Names::default();
        let given = ["a", "a-2", "A", "a", "b", "a-2", "a"].map(|name| names.unique(name));
        assert_eq!(given, ["a", "a-2", "A-3", "a-4", "b", "a-2-2", "a-5"]);
    }

    #[test]
    fn a_name_is_never_a_path() {
        for (text, expected) in [
            ("my photo (1).v2", "my photo (1).v2"),
            ("Äpfel-苹果", "Äpfel-苹果"),
            ("../../etc/passwd", "_.._etc_passwd"),
            ("..", "image"),
            ("", "image"),
            (" . ", "image"),
            (".hidden", "hidden"),
            ("C:\\Windows\\x", "C__Windows_x"),
            ("a\0b\nc", "a_b_c"),
            ("a.", "a"),
        ] {
            assert_eq!(safe_name(text), expected, "{text:?}");
        }
        assert_eq!(safe_name(&"ü".repeat(400)), "ü".repeat(80));
    }

    #[test]
    fn a_url_gives_the_name_of_its_file() {
        for (url, expected) in [
            ("/data/upload/7/1a2b-my%20photo.jpg", "1a2b-my photo"),
            ("/data/local-files/?d=shop%2F2024/tray.01.png", "tray.01"),
            ("/storage-data/uploaded/?filepath=upload/3/a%20b.png", "a b"),
            ("https://host/a/photo.png?d=secret#x", "photo"),
            ("https://host/studio/data/local-files?d=a/b.png", "b"),
            ("https://host/a/photo%2e%2e%2fb.png", "b"),
            ("s3://bucket/folder/x.jpeg", "x"),
            ("https://host/a/100%", "100%"),
            ("https://host/a/.png", ".png"),
            ("https://host/", ""),
            ("data:image/png;base64,iVBORw0KGgo=", ""),
            ("http://", ""),
        ] {
            assert_eq!(stem_of_url(url), expected, "{url}");
        }
    }
}
