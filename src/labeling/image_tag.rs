//! The `<Image>` tag, and the URL of its image in a task.

use serde_json::{Map, Value};

use super::LabelingError;

/// `<Image name="image" value="$image"/>`, or `<Image name="image" valueList="$pages"/>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTag {
    /// The name that controls refer to.
    pub name: String,
    /// The image's URL: `$key` of the task's data, or a text that contains such keys. For a list of pages: the `$key` of
    /// the list.
    pub value: String,
    /// Whether the tag shows a list of pages.
    pub is_list: bool,
}

/// One of the images that an image tag shows in a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The URL.
    pub url: String,
    /// The number of the page, from 0; `None` if the tag shows a single image. Label Studio calls it `item_index`.
    pub index: Option<usize>,
}

/// Limit of the pages of one task.
pub(super) const MAX_PAGES: usize = 1000;

/// The key that Label Studio uses for a file that was uploaded or synced before the project had a labeling config.
const UNDEFINED_KEY: &str = "$undefined$";

impl ImageTag {
    /// The images of a task, in order. A list of one text, or a text instead of a list, is one page.
    ///
    /// # Errors
    /// If the data has no URL there, or a list has an entry without one, or there are more than 1000.
    pub fn pages(&self, data: &Map<String, Value>) -> Result<Vec<Page>, LabelingError> {
        if !self.is_list {
            let url = self.url(data)?;
            return Ok(vec![Page { url, index: None }]);
        }
        let no_data = || LabelingError::NoPages {
            image: self.name.clone(),
            key: self.data_key().to_owned(),
        };
        let list = look_up(data, self.data_key()).or_else(|| data.get(UNDEFINED_KEY));
        let entries = match list.ok_or_else(no_data)? {
            Value::Array(entries) => entries.as_slice(),
            single => std::slice::from_ref(single),
        };
        if entries.len() > MAX_PAGES {
            return Err(LabelingError::TooManyPages {
                image: self.name.clone(),
                found: entries.len(),
            });
        }
        let page = |(index, entry): (usize, &Value)| {
            let url = entry.as_str().filter(|url| !url.trim().is_empty());
            Some(Page {
                url: url?.to_owned(),
                index: Some(index),
            })
        };
        let pages: Option<Vec<Page>> = entries.iter().enumerate().map(page).collect();
        pages.filter(|pages| !pages.is_empty()).ok_or_else(no_data)
    }

    /// The image's URL in a task's data. `$key` is replaced by the value of `key`. `$a.b` is replaced by the value of
    /// the key `a.b`, else by the value of `b` inside `a`. If a key is missing, the value of Label Studio's key
    /// `$undefined$` is used.
    ///
    /// # Errors
    /// If the data has no string there.
    fn url(&self, data: &Map<String, Value>) -> Result<String, LabelingError> {
        let text = |key: &str| {
            let found = look_up(data, key)
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
            return text(parts.next().unwrap_or_default()).map(str::to_owned);
        }
        for part in parts {
            let end = part
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(part.len());
            url.push_str(text(&part[..end])?);
            url.push_str(&part[end..]);
        }
        Ok(url)
    }

    /// The key of the task's data that holds the URL, if the tag's value is a single key.
    pub fn data_key(&self) -> &str {
        self.value.trim_start_matches('$')
    }
}

/// The value of a key of the task's data. `a.b` is the value of the key `a.b`, else the value of `b` inside `a`.
pub(super) fn look_up<'a>(data: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let nested = || {
        let mut parts = key.split('.');
        let first = data.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    };
    data.get(key).or_else(nested)
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
                is_list: false,
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

    #[test]
    fn a_list_has_numbered_pages() {
        let tag = ImageTag {
            name: "scan".to_owned(),
            value: "$pages".to_owned(),
            is_list: true,
        };
        let pages = |value: Value| {
            let data = Map::from_iter([("pages".to_owned(), value)]);
            let pages = tag.pages(&data).map_err(|error| error.to_string())?;
            let describe = |page: Page| format!("{} {:?}", page.url, page.index);
            Ok::<Vec<String>, String>(pages.into_iter().map(describe).collect())
        };
        assert_eq!(
            pages(json!(["a", "b"])).unwrap(),
            ["a Some(0)", "b Some(1)"]
        );
        assert_eq!(pages(json!("a")).unwrap(), ["a Some(0)"]);
        for wrong in [
            json!([]),
            json!(["a", 5]),
            json!(["a", " "]),
            json!(null),
            json!({}),
        ] {
            let error = pages(wrong).unwrap_err();
            assert!(
                error.contains("\"pages\"") && error.contains("scan"),
                "{error}"
            );
        }
        let error = pages(json!(vec!["a"; MAX_PAGES + 1])).unwrap_err();
        assert!(error.contains("1001 pages"), "{error}");
        assert_eq!(tag.data_key(), "pages");
    }
}
