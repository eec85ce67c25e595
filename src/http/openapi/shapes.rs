//! Schemas of values that may have any JSON type, so that handlers parse them by hand. Each schema lists the usual type
//! first and also allows any other, which is ignored or makes only its own task fail.

use std::borrow::Cow;

use utoipa::openapi::schema::{
    AnyOfBuilder, ArrayBuilder, Object, ObjectBuilder, SchemaType, Type,
};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A schema with the usual type of a value that also allows any other type.
fn usually(shape: impl Into<RefOr<Schema>>, description: &str) -> Schema {
    AnyOfBuilder::new()
        .item(shape)
        .item(anything())
        .description(Some(description))
        .into()
}

fn anything() -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::AnyValue)
        .build()
}

fn of(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(kind)
}

fn fraction() -> ObjectBuilder {
    of(Type::Number).minimum(Some(0)).maximum(Some(1))
}

fn strings() -> ArrayBuilder {
    ArrayBuilder::new().items(of(Type::String))
}

/// Schema of a task's `id`.
pub(in super::super) fn task_id() -> Schema {
    let number = of(Type::Integer).minimum(Some(0));
    usually(
        number,
        "Label Studio's number of the task; any other value is ignored",
    )
}

/// Schema of a task's `data`.
pub(in super::super) fn task_data() -> Schema {
    let values = of(Type::Object);
    usually(
        values,
        "What the task shows: the image under the key that the labeling config names. Without it the task fails by itself",
    )
}

/// Schema of a task's `annotations` and `drafts`.
pub(in super::super) fn annotations() -> Schema {
    let regions = ArrayBuilder::new().items(anything());
    let annotation = of(Type::Object)
        .property("result", regions)
        .property("was_cancelled", of(Type::Boolean))
        .property("updated_at", of(Type::String));
    usually(
        ArrayBuilder::new().items(annotation),
        "Label Studio's; the numbers in their regions are thresholds where the labeling config has `<Number>` controls. Any other value is ignored",
    )
}

/// Schema of `params.context`.
pub(in super::super) fn context() -> Schema {
    let regions = ArrayBuilder::new().items(context_region());
    let interactive = of(Type::Object)
        .property("result", regions)
        .required("result");
    usually(
        interactive,
        "With a list `result`: what an annotator did in the one task, which is answered. Any other value, such as null: the tasks are a batch",
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
        .item(of(Type::String))
        .item(strings())
        .description(Some(
            "The prompt: phrases between `.`, `,`, `;` or new lines; 8192 bytes at most",
        ));
    let percent = || of(Type::Number);
    let value = of(Type::Object)
        .property("text", text)
        .property("x", percent())
        .property("y", percent())
        .property("width", percent())
        .property("height", percent())
        .property("rotation", of(Type::Number))
        .property("number", fraction())
        .property("labels", strings())
        .property("rectanglelabels", strings())
        .property("keypointlabels", strings())
        .description(Some("Places and lengths in percent of the image"));
    of(Type::Object)
        .property("id", of(Type::String))
        .property("type", of(Type::String).enum_values(Some(kinds)))
        .property("from_name", of(Type::String))
        .property("to_name", of(Type::String))
        .property("image_rotation", of(Type::Number))
        .property("is_positive", of(Type::Boolean))
        .property("value", value)
        .required("type")
        .required("value")
        .build()
}

/// Schema of `extra_params`.
pub(in super::super) fn extra_params() -> Schema {
    let settings = of(Type::Object)
        .property("prompt", of(Type::String))
        .property("box_threshold", fraction())
        .property("text_threshold", fraction())
        .property("nms_iou", fraction())
        .property("max_detections", of(Type::Integer).minimum(Some(1)))
        .property("segment", of(Type::Boolean));
    usually(
        settings,
        "The settings of the connected backend: an object, its JSON as a text, \"\" or null. What is wrong in it is named in the log and left out",
    )
}

/// Schema of an OpenAPI document, with the fields that OpenAPI requires.
pub(in super::super) struct OpenApiDocument;

impl PartialSchema for OpenApiDocument {
    fn schema() -> RefOr<Schema> {
        of(Type::Object)
            .property("openapi", of(Type::String).pattern(Some(r"^3\.1\.")))
            .property("info", of(Type::Object))
            .property("paths", of(Type::Object))
            .property("components", of(Type::Object))
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
