//! Schemas of values that may have any JSON type, so that handlers parse them by hand. Each schema lists the usual type
//! first and also allows any other, which is ignored or makes only its own task fail.

use std::borrow::Cow;

use utoipa::openapi::schema::{
    AnyOfBuilder, ArrayBuilder, Object, ObjectBuilder, SchemaType, Type,
};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A schema with the usual type of a value that also allows any other type.
fn usually(schema: impl Into<RefOr<Schema>>, description: &str) -> Schema {
    AnyOfBuilder::new()
        .item(schema)
        .item(anything())
        .description(Some(description))
        .into()
}

fn anything() -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::AnyValue)
        .build()
}

fn of_type(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(kind)
}

fn fraction() -> ObjectBuilder {
    of_type(Type::Number).minimum(Some(0)).maximum(Some(1))
}

fn strings() -> ArrayBuilder {
    ArrayBuilder::new().items(of_type(Type::String))
}

/// Schema of a task's `id`.
pub(in super::super) fn task_id() -> Schema {
    let number = of_type(Type::Integer).minimum(Some(0));
    usually(
        number,
        "Label Studio's id of the task; any other value is ignored",
    )
}

/// Schema of a task's `data`.
pub(in super::super) fn task_data() -> Schema {
    let values = of_type(Type::Object);
    usually(
        values,
        "The task's data, with the image under the key that the labeling config names. If it is missing, only this task fails",
    )
}

/// Schema of a task's `annotations` and `drafts`.
pub(in super::super) fn annotations() -> Schema {
    let regions = ArrayBuilder::new().items(anything());
    let annotation = of_type(Type::Object)
        .property("result", regions)
        .property("was_cancelled", of_type(Type::Boolean))
        .property("updated_at", of_type(Type::String));
    usually(
        ArrayBuilder::new().items(annotation),
        "As Label Studio sends them. If the labeling config has `<Number>` controls, the numbers in the regions are used as thresholds. Any other value is ignored",
    )
}

/// Schema of `params.context`.
pub(in super::super) fn context() -> Schema {
    let regions = ArrayBuilder::new().items(context_region());
    let interactive = of_type(Type::Object)
        .property("result", regions)
        .required("result");
    usually(
        interactive,
        "With a list `result`, the request is interactive: `result` is what the annotator did in the one task. With any other value, such as null, the tasks are a batch",
    )
}

/// Schema of a region in `params.context.result`.
fn context_region() -> Object {
    let kinds = [
        "textarea",
        "rectanglelabels",
        "rectangle",
        "keypointlabels",
        "keypoint",
        "labels",
        "number",
    ];
    let text = AnyOfBuilder::new()
        .item(of_type(Type::String))
        .item(strings())
        .description(Some(
            "The prompt: phrases separated by `.`, `,`, `;` or line breaks; at most 8192 bytes",
        ));
    let percent = || of_type(Type::Number);
    let value = of_type(Type::Object)
        .property("text", text)
        .property("x", percent())
        .property("y", percent())
        .property("width", percent())
        .property("height", percent())
        .property("rotation", of_type(Type::Number))
        .property("number", fraction())
        .property("labels", strings())
        .property("rectanglelabels", strings())
        .property("keypointlabels", strings())
        .description(Some("Positions and lengths in percent of the image's size"));
    of_type(Type::Object)
        .property("id", of_type(Type::String))
        .property("type", of_type(Type::String).enum_values(Some(kinds)))
        .property("from_name", of_type(Type::String))
        .property("to_name", of_type(Type::String))
        .property("image_rotation", of_type(Type::Number))
        .property("is_positive", of_type(Type::Boolean))
        .property("value", value)
        .required("type")
        .required("value")
        .build()
}

/// Schema of `extra_params`.
pub(in super::super) fn extra_params() -> Schema {
    let settings = of_type(Type::Object)
        .property("prompt", of_type(Type::String))
        .property("box_threshold", fraction())
        .property("text_threshold", fraction())
        .property("nms_iou", fraction())
        .property("max_detections", of_type(Type::Integer).minimum(Some(1)))
        .property("segment", of_type(Type::Boolean));
    usually(
        settings,
        "The settings of the connected backend: an object, its JSON as a string, \"\" or null. An invalid setting is logged and ignored",
    )
}

/// Schema of an OpenAPI document, with the fields that OpenAPI requires.
pub(in super::super) struct OpenApiDocument;

impl PartialSchema for OpenApiDocument {
    fn schema() -> RefOr<Schema> {
        of_type(Type::Object)
            .property("openapi", of_type(Type::String).pattern(Some(r"^3\.1\.")))
            .property("info", of_type(Type::Object))
            .property("paths", of_type(Type::Object))
            .property("components", of_type(Type::Object))
            .required("openapi")
            .required("info")
            .required("paths")
            .into()
    }
}

impl ToSchema for OpenApiDocument {
    fn name() -> Cow<'static, str> {
        "OpenApiDocument".into()
    }
}
