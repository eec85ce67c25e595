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

use super::error::ApiError;

/// Parses a body that must be a JSON object.
///
/// # Errors
/// If it is not one, or a field has the wrong type; the error names the field and what it must be.
pub(super) fn read_object<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let Object(read) = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        ApiError::Body(match path.as_str() {
            _ if !cause.is_data() => format!("the body is not JSON: {cause}"),
            "." | "?" => format!("the body: {cause}"),
            path => format!("{path}: {cause}"),
        })
    })?;
    let end = json.end();
    end.map_err(|error| ApiError::Body(format!("after the object: {error}")))?;
    Ok(read)
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

/// Any JSON of at most `MOST` values. Each value takes much more memory than a short text such as `{},`: without this
/// limit, a parsed body could take thirty times the bytes of its text.
#[derive(Debug, Default)]
pub(super) struct Bounded<const MOST: usize>(pub(super) Value);

impl<'de, const MOST: usize> Deserialize<'de> for Bounded<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        if values(raw.get()) > MOST {
            return Err(Error::custom(format_args!(
                "it has more than the {MOST} values that may be there"
            )));
        }
        serde_json::from_str(raw.get())
            .map(Self)
            .map_err(Error::custom)
    }
}

/// An upper bound for the number of values in a JSON text, counted without parsing it.
pub(super) fn values(json: &str) -> usize {
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

/// An array of at most `MOST` entries.
#[derive(Debug)]
pub(super) struct List<T, const MOST: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for List<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for ListVisitor<T, MOST> {
    type Value = List<T, MOST>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<List<T, MOST>, A::Error> {
        let mut list = vec![];
        while let Some(entry) = entries.next_element()? {
            if list.len() == MOST {
                return Err(Error::invalid_length(MOST + 1, &self));
            }
            list.push(entry);
        }
        Ok(List(list))
    }
}

/// Maximum number of characters of a project name; Label Studio's have about twenty.
const MAX_NAME: usize = 200;

/// Label Studio's name of a project: a string, or a number from other clients. Empty if there is none.
#[derive(Debug, Default)]
pub(super) struct ProjectName(pub(super) String);

impl<'de> Deserialize<'de> for ProjectName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = ProjectName;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a project's name: a text of at most {MAX_NAME} characters, a number, or null"
        )
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<ProjectName, E> {
        match name.chars().count() {
            0..=MAX_NAME => Ok(ProjectName(name.to_owned())),
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
            .max_length(Some(MAX_NAME))
            .description(Some("Label Studio's name of a project: `<id>.<created at>`. Without one nothing is remembered."))
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

    fn refusal(body: &str) -> String {
        read_object::<Body>(body.as_bytes())
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
            ("{} {}", ["after the object", "trailing"]),
            (r#"{"project": true}"#, ["project:", "200 characters"]),
            (r#"{"project": {}}"#, ["project:", "a project's name"]),
            (r#"{"parts": [["x"]]}"#, ["parts[0]:", "an object"]),
            (r#"{"parts": [{"name": 5}]}"#, ["parts[0].name", "a string"]),
            (r#"{"parts": [{}]}"#, ["parts[0]", "missing field `name`"]),
        ] {
            let error = refusal(body);
            assert!(
                parts.iter().all(|part| error.contains(part)),
                "{body}: {error}"
            );
        }
        let body = read_object::<Body>(br#"{"parts": [{"name": "x"}], "more": 1}"#).unwrap();
        assert_eq!(body.parts[0].0.name, "x");
    }

    #[test]
    fn a_project_is_a_short_text_or_a_number() {
        let name = |project: &str| {
            let body = format!(r#"{{"project": {project}}}"#);
            read_object::<Body>(body.as_bytes()).unwrap().project.0
        };
        assert_eq!(name(r#""79.1795353181""#), "79.1795353181");
        assert_eq!(
            (name("7"), name("-7"), name("1.5")),
            ("7".into(), "-7".into(), "1.5".into())
        );
        assert_eq!(name("null"), "");
        let long = "ü".repeat(200);
        assert_eq!(name(&format!("\"{long}\"")), long);
        let error = refusal(&format!(r#"{{"project": "{long}ü"}}"#));
        assert!(
            error.contains("201") && error.contains("200 characters"),
            "{error}"
        );
    }
}
