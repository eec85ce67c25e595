//! The JSON schema of a region's value, next to the code that serializes it.

use std::borrow::Cow;

use utoipa::openapi::schema::{
    AdditionalProperties, ArrayBuilder, Object, ObjectBuilder, OneOfBuilder, Type,
};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::value::RegionValue;
use crate::labeling::Shape;

/// All values of a region's `type`.
pub(super) fn region_types() -> Object {
    let types_of_shapes = Shape::ALL
        .iter()
        .flat_map(|shape| [shape.kind(), shape.labels_kind()]);
    let all: Vec<&str> = types_of_shapes.chain(["labels", "textarea"]).collect();
    schema_of(Type::String).enum_values(Some(all)).build()
}

fn schema_of(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(kind)
}

fn percent() -> ObjectBuilder {
    schema_of(Type::Number).minimum(Some(0)).maximum(Some(100))
}

/// A list of one string: Label Studio's form of a label or a typed text.
fn one_string() -> ArrayBuilder {
    ArrayBuilder::new()
        .items(schema_of(Type::String))
        .min_items(Some(1))
        .max_items(Some(1))
}

/// The keys of a shape, and the optional keys of its label.
fn shape(shape: Shape, required: &[(&str, RefOr<Schema>)]) -> ObjectBuilder {
    let mut object =
        schema_of(Type::Object).additional_properties(Some(AdditionalProperties::FreeForm(false)));
    for (name, schema) in required {
        object = object.property(*name, schema.clone()).required(*name);
    }
    object
        .property(shape.labels_kind(), one_string())
        .property("labels", one_string())
}

impl PartialSchema for RegionValue {
    fn schema() -> RefOr<Schema> {
        let rectangle = [
            ("x", percent().into()),
            ("y", percent().into()),
            ("width", percent().into()),
            ("height", percent().into()),
            ("rotation", schema_of(Type::Integer).into()),
        ];
        let byte = schema_of(Type::Integer).minimum(Some(0)).maximum(Some(255));
        let brush = [
            (
                "format",
                schema_of(Type::String).enum_values(Some(["rle"])).into(),
            ),
            ("rle", ArrayBuilder::new().items(byte).into()),
        ];
        let corner = ArrayBuilder::new()
            .items(percent())
            .min_items(Some(2))
            .max_items(Some(2));
        let polygon = [
            ("points", ArrayBuilder::new().items(corner).into()),
            ("closed", schema_of(Type::Boolean).into()),
        ];
        let data_url = schema_of(Type::String).pattern(Some("^data:image/png;base64,"));
        let bitmask = [("imageDataURL", data_url.into())];
        let vertex = schema_of(Type::Object)
            .property("id", schema_of(Type::String))
            .property("x", percent())
            .property("y", percent())
            .property("prevPointId", ObjectBuilder::new())
            .property("isBezier", schema_of(Type::Boolean))
            .required("id")
            .required("x")
            .required("y")
            .required("prevPointId")
            .required("isBezier");
        let vector = [
            ("vertices", ArrayBuilder::new().items(vertex).into()),
            ("closed", schema_of(Type::Boolean).into()),
        ];
        let ellipse = [
            ("x", percent().into()),
            ("y", percent().into()),
            ("radiusX", schema_of(Type::Number).minimum(Some(0)).into()),
            ("radiusY", schema_of(Type::Number).minimum(Some(0)).into()),
            ("rotation", schema_of(Type::Number).into()),
        ];
        let key_point = [
            ("x", percent().into()),
            ("y", percent().into()),
            ("width", percent().into()),
        ];
        let text = schema_of(Type::Object)
            .additional_properties(Some(AdditionalProperties::FreeForm(false)))
            .property("text", one_string())
            .required("text");
        OneOfBuilder::new()
            .item(shape(Shape::Rectangle, &rectangle))
            .item(shape(Shape::Brush, &brush))
            .item(shape(Shape::Polygon, &polygon))
            .item(shape(Shape::Bitmask, &bitmask))
            .item(shape(Shape::Vector, &vector))
            .item(shape(Shape::Ellipse, &ellipse))
            .item(shape(Shape::KeyPoint, &key_point))
            .item(text)
            .description(Some(
                "Positions and lengths in percent of the image's size; a mask in Label Studio's run-length encoding, or as a PNG",
            ))
            .into()
    }
}

impl ToSchema for RegionValue {
    fn name() -> Cow<'static, str> {
        "RegionValue".into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::value::Labels;
    use super::*;

    #[test]
    fn the_schema_has_the_keys_that_serde_writes() {
        let Value::Object(mut schema) = serde_json::to_value(RegionValue::schema()).unwrap() else {
            panic!("the schema is not an object");
        };
        let Some(Value::Array(schemas)) = schema.remove("oneOf") else {
            panic!("the schema has no list oneOf");
        };
        let labels = || Labels::Own(Some("Pot".to_owned()));
        let rectangle = RegionValue::Rectangle {
            x: 1.0,
            y: 2.0,
            width: 3.0,
            height: 4.0,
            rotation: 0,
            labels: labels(),
        };
        let brush = RegionValue::Brush {
            rle: [1, 2].into(),
            labels: Labels::Separate("Pot".to_owned()),
        };
        let polygon = RegionValue::Polygon {
            points: [[1.0, 2.0]].into(),
            labels: labels(),
        };
        let bitmask = RegionValue::Bitmask {
            image_data_url: "data:image/png;base64,".into(),
            labels: labels(),
        };
        let vector = RegionValue::Vector {
            vertices: [[1.0, 2.0]].into(),
            labels: labels(),
        };
        let ellipse = RegionValue::Ellipse {
            x: 1.0,
            y: 2.0,
            radius_x: 3.0,
            radius_y: 4.0,
            rotation: 5.0,
            labels: labels(),
        };
        let key_point = RegionValue::KeyPoint {
            x: 1.0,
            y: 2.0,
            width: 0.5,
            labels: labels(),
        };
        let text = RegionValue::Text("pot".to_owned());
        let values = [
            rectangle, brush, polygon, bitmask, vector, ellipse, key_point, text,
        ];
        assert_eq!(values.len(), schemas.len());
        for (value, schema) in values.iter().zip(&schemas) {
            let written = serde_json::to_value(value).unwrap();
            for key in written.as_object().unwrap().keys() {
                let is_listed = schema["properties"][key].is_object();
                assert!(is_listed, "{key} of {written}");
            }
            for key in schema["required"].as_array().unwrap() {
                assert!(written[key.as_str().unwrap()] != Value::Null, "{key}");
            }
        }
        let types = serde_json::to_value(region_types()).unwrap();
        for kind in [
            "rectanglelabels",
            "brush",
            "polygonlabels",
            "labels",
            "textarea",
        ] {
            assert!(types["enum"].as_array().unwrap().contains(&kind.into()));
        }
    }
}
