//! A repository of the hub at a revision, as users write it: `OWNER/NAME` or `OWNER/NAME@REVISION`.

use crate::models::weights::WEIGHT_EXTENSIONS;

/// The revision of a name without one.
pub(in crate::checkpoints) const MAIN: &str = "main";

/// A repository at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoRevision {
    /// `OWNER/NAME`.
    pub id: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl RepoRevision {
    /// A repository at a revision; neither is checked.
    pub fn new(id: &str, revision: &str) -> Self {
        Self {
            id: id.to_owned(),
            revision: revision.to_owned(),
        }
    }

    /// Parses `OWNER/NAME` or `OWNER/NAME@REVISION`; `None` for anything else, such as a path.
    pub fn parse(name: &str) -> Option<Self> {
        let (id, revision) = name.split_once('@').unwrap_or((name, MAIN));
        let is_valid = |part: &str| {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(is_allowed)
        };
        if !revision.split('/').all(is_valid) {
            return None;
        }
        let (owner, repository) = id.split_once('/')?;
        let ending = repository.rsplit_once('.').map_or("", |(_, ending)| ending);
        let is_file = WEIGHT_EXTENSIONS.contains(&ending);
        (is_valid(owner) && is_valid(repository) && !is_file).then(|| Self::new(id, revision))
    }

    /// Whether the revision is a commit, which never changes, and not a branch or a tag.
    pub fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

/// Whether a text is the hash of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == 40 && text.bytes().all(is_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_hub_are_told_apart_from_paths() {
        let parsed = |name| {
            let parsed = RepoRevision::parse(name);
            parsed.map(|repo| format!("{} at {}", repo.id, repo.revision))
        };
        let owner = "IDEA-Research/grounding-dino-tiny";
        assert_eq!(parsed(owner), Some(format!("{owner} at main")));
        assert_eq!(parsed("a/b@v1"), Some("a/b at v1".to_owned()));
        for path in ["a", "/a/b", "a/b/c", "./a", "a/b.pth", "a/", "a/b@", "../b"] {
            assert_eq!(parsed(path), None, "{path}");
        }
    }
}
