//! `GET /playground/api/task/{number}`: the picture of a task in Label Studio.
//!
//! It is read with groundling's own token, which may read every project. So it is only for people who have given the
//! credentials of the server.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};

use super::AppState;
use crate::http::error::{error_response, run_blocking};
use crate::label_studio::api::ApiError;
use crate::media::Pixels;
use crate::preannotation::playground::TaskPictureError;

/// Whether pictures of tasks are served.
pub(super) fn is_served(state: &AppState) -> bool {
    state.basic_auth.is_some()
}

/// The picture of a task as PNG, after its EXIF orientation was applied.
pub(super) async fn picture(State(state): State<AppState>, Path(number): Path<String>) -> Response {
    if !is_served(&state) {
        let text = "pictures of tasks are served only if the server requires credentials: set BASIC_AUTH_USER and BASIC_AUTH_PASS";
        return error_response(StatusCode::FORBIDDEN, text);
    }
    let Ok(task) = number.parse() else {
        let text = format!("{number:?} is not the number of a task");
        return error_response(StatusCode::BAD_REQUEST, &text);
    };
    let picture = match state.preannotator.task_picture(task).await {
        Ok(picture) => picture,
        Err(error) => {
            tracing::warn!("the playground cannot show a task: {error}");
            return error_response(status(&error), &error.to_string());
        }
    };
    match run_blocking(move || png(&picture)).await {
        Ok(Ok(file)) => {
            let headers = [(CONTENT_TYPE, "image/png"), (CACHE_CONTROL, "no-store")];
            (headers, file).into_response()
        }
        Ok(Err(error)) => error_response(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Err(error) => error.into_response(),
    }
}

fn status(error: &TaskPictureError) -> StatusCode {
    match error {
        TaskPictureError::Api(ApiError::Status { status: 404, .. }) => StatusCode::NOT_FOUND,
        TaskPictureError::Api(_) => StatusCode::BAD_GATEWAY,
        TaskPictureError::NotConfigured(_) | TaskPictureError::Image { .. } => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
    }
}

fn png(picture: &Pixels) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = vec![];
    let mut encoder = png::Encoder::new(&mut file, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()?;
    Ok(file)
}
