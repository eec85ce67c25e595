//! Deserialization of JSON bodies, with errors that name the field.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::error::RequestError;

/// Parses a body that must be a JSON object.
///
/// # Errors
/// If it is not one, or a field has the wrong type; the error names the field and what it must be.
pub(super) fn parse_object<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, RequestError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let Object(parsed) = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        RequestError::Body(match path.as_str() {
            _ if !cause.is_data() => format!("the body is not JSON: {cause}"),
            "." | "?" => format!("the body: {cause}"),
            path => format!("{path}: {cause}"),
        })
    })?;
    let end = json.end();
    end.map_err(|error| {
        RequestError::Body(format!("the body has text after its JSON object: {error}"))
    })?;
    Ok(parsed)
}

/// A struct that must be written as a JSON object. Without this wrapper, serde would also accept an array of the field
/// values.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// Any JSON of at most `MAX` values. Each value takes much more memory than a short text such as `{},`: without this
/// limit, a parsed body could take thirty times the bytes of its text.
#[derive(Debug, Default)]
pub(super) struct BoundedJson<const MAX: usize>(pub(super) Value);

impl<'de, const MAX: usize> Deserialize<'de> for BoundedJson<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        if max_value_count(raw.get()) > MAX {
            return Err(Error::custom(format_args!(
                "it has more than {MAX} JSON values"
            )));
        }
        serde_json::from_str(raw.get())
            .map(Self)
            .map_err(Error::custom)
    }
}

/// An upper bound for the number of values in a JSON text, counted without parsing it.
pub(super) fn max_value_count(json: &str) -> usize {
    let (mut count, mut is_text, mut is_escaped) = (1, false, false);
    for byte in json.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b',' | b'[' | b'{' if !is_text => count += 1,
            _ => {}
        }
    }
    count
}

/// An array of at most `MAX` entries.
#[derive(Debug)]
pub(super) struct BoundedList<T, const MAX: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for BoundedList<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(BoundedListVisitor(PhantomData))
    }
}

struct BoundedListVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for BoundedListVisitor<T, MAX> {
    type Value = BoundedList<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<BoundedList<T, MAX>, A::Error> {
        let mut list = vec![];
        while let Some(entry) = entries.next_element()? {
            if list.len() == MAX {
                return Err(Error::invalid_length(MAX + 1, &self));
            }
            list.push(entry);
        }
        Ok(BoundedList(list))
    }
}

/// Maximum number of characters of a project name; Label Studio's have about twenty.
const MAX_PROJECT_CHARS: usize = 200;

/// Label Studio's name of a project: a string, or a number from other clients. Empty if there is none.
#[derive(Debug, Default)]
pub(super) struct ProjectName(pub(super) String);

impl<'de> Deserialize<'de> for ProjectName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ProjectNameVisitor)
    }
}

struct ProjectNameVisitor;

impl Visitor<'_> for ProjectNameVisitor {
    type Value = ProjectName;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a project name: a string of at most {MAX_PROJECT_CHARS} characters, a number or null"
        )
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<ProjectName, E> {
        match name.chars().count() {
            0..=MAX_PROJECT_CHARS => Ok(ProjectName(name.to_owned())),
            length => Err(E::invalid_length(length, &self)),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<ProjectName, E> {
        Ok(ProjectName(number.to_string()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<ProjectName, E> {
        Ok(ProjectName(number.to_string()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<ProjectName, E> {
        Ok(ProjectName(number.to_string()))
    }

    fn visit_unit<E: Error>(self) -> Result<ProjectName, E> {
        Ok(ProjectName::default())
    }
}

impl PartialSchema for ProjectName {
    fn schema() -> RefOr<Schema> {
        let kinds = [Type::String, Type::Number, Type::Null];
        ObjectBuilder::new()
            .schema_type(SchemaType::from_iter(kinds))
            .max_length(Some(MAX_PROJECT_CHARS))
            .description(Some("Label Studio's name of the project: `<id>.<created at>`. Without it, no prompt and no setting is stored for the project."))
            .examples(["79.1795353181"])
            .into()
    }
}

impl ToSchema for ProjectName {
    fn name() -> Cow<'static, str> {
        "ProjectName".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Body {
        project: ProjectName,
        parts: Vec<Object<Part>>,
    }

    #[derive(Debug, Deserialize)]
    struct Part {
        name: String,
    }

    fn error_text(body: &str) -> String {
        parse_object::<Body>(body.as_bytes())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn errors_name_the_field_and_what_it_must_be() {
        for (body, parts) in [
            ("[]", ["the body", "an object"]),
            (r#"["1.2", []]"#, ["the body", "an object"]),
            ("", ["the body is not JSON", "EOF"]),
            (r#"{"project": x}"#, ["the body is not JSON", "column 13"]),
            ("{} {}", ["after its JSON object", "trailing"]),
            (r#"{"project": true}"#, ["project:", "200 characters"]),
            (r#"{"project": {}}"#, ["project:", "a project name"]),
            (r#"{"parts": [["x"]]}"#, ["parts[0]:", "an object"]),
            (r#"{"parts": [{"name": 5}]}"#, ["parts[0].name", "a string"]),
            (r#"{"parts": [{}]}"#, ["parts[0]", "missing field `name`"]),
        ] {
            let error = error_text(body);
            assert!(
                parts.iter().all(|part| error.contains(part)),
                "{body}: {error}"
            );
        }
        let body = parse_object::<Body>(br#"{"parts": [{"name": "x"}], "more": 1}"#).unwrap();
        assert_eq!(body.parts[0].0.name, "x");
    }

    #[test]
    fn a_project_name_is_a_short_string_or_a_number() {
        let name = |project: &str| {
            let body = format!(r#"{{"project": {project}}}"#);
            parse_object::<Body>(body.as_bytes()).unwrap().project.0
        };
        assert_eq!(name(r#""79.1795353181""#), "79.1795353181");
        assert_eq!(
            (name("7"), name("-7"), name("1.5")),
            ("7".into(), "-7".into(), "1.5".into())
        );
        assert_eq!(name("null"), "");
        let long = "ü".repeat(200);
        assert_eq!(name(&format!("\"{long}\"")), long);
        let error = error_text(&format!(r#"{{"project": "{long}ü"}}"#));
        assert!(
            error.contains("201") && error.contains("200 characters"),
            "{error}"
        );
    }
}
