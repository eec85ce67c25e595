//! The `<Image>` tag, and the URL of its image in a task.

use serde_json::{Map, Value};

use super::LabelingError;

/// `<Image name="image" value="$image"/>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTag {
    /// The name that controls refer to.
    pub name: String,
    /// The image's URL: `$key` of the task's data, or a text that contains such keys.
    pub value: String,
}

/// The key that Label Studio uses for a file that was uploaded or synced before the project had a labeling config.
const UNDEFINED_KEY: &str = "$undefined$";

impl ImageTag {
    /// The image's URL in a task's data. `$key` is replaced by the value of `key`. `$a.b` is replaced by the value of
    /// the key `a.b`, else by the value of `b` inside `a`. If a key is missing, the value of Label Studio's key
    /// `$undefined$` is used.
    ///
    /// # Errors
    /// If the data has no string there.
    pub fn url(&self, data: &Map<String, Value>) -> Result<String, LabelingError> {
        let look_up = |key: &str| {
            let nested = || {
                let mut parts = key.split('.');
                let first = data.get(parts.next()?)?;
                parts.try_fold(first, |value, part| value.get(part))
            };
            let found = data.get(key).or_else(nested);
            let found = found
                .or_else(|| data.get(UNDEFINED_KEY))
                .and_then(Value::as_str);
            found
                .filter(|text| !text.trim().is_empty())
                .ok_or_else(|| LabelingError::NoData {
                    image: self.name.clone(),
                    key: key.to_owned(),
                })
        };
        let mut parts = self.value.split('$');
        let mut url = parts.next().unwrap_or_default().to_owned();
        if url.is_empty() && parts.clone().count() == 1 {
            // the usual form: one key, which may contain any character
            return look_up(parts.next().unwrap_or_default()).map(str::to_owned);
        }
        for part in parts {
            let end = part
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(part.len());
            url.push_str(look_up(&part[..end])?);
            url.push_str(&part[end..]);
        }
        Ok(url)
    }

    /// The key of the task's data that holds the URL, if the tag's value is a single key.
    pub fn data_key(&self) -> &str {
        self.value.trim_start_matches('$')
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_url_is_found_under_plain_dotted_and_embedded_keys() {
        let data = json!({"my image": "a", "a": {"b": "c"}, "a.d": "e", "n": 1, "file": "x.png"});
        let Value::Object(data) = data else {
            unreachable!()
        };
        let url = |value: &str| {
            let tag = ImageTag {
                name: "i".to_owned(),
                value: value.to_owned(),
            };
            tag.url(&data).map_err(|e| e.to_string())
        };
        assert_eq!(url("$my image").unwrap(), "a");
        assert_eq!(url("$a.b").unwrap(), "c");
        assert_eq!(url("$a.d").unwrap(), "e");
        assert_eq!(
            url("https://host/$file?x=1").unwrap(),
            "https://host/x.png?x=1"
        );
        assert!(url("$n").unwrap_err().contains("no text under \"n\""));
        assert!(url("$none").unwrap_err().contains("<Image name=\"i\">"));
    }
}
