//! Data URIs: images inside of a task's data.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::location::LocationError;

/// The name of a data URI in messages.
pub(super) fn describe_data_uri(uri: &str) -> String {
    format!("the task's data URI of {} characters", uri.len())
}

/// Decodes a data URI, given without the `data:` prefix; `None` if it has more than `limit` bytes. The declared media
/// type is ignored. This uses the CPU, so it must not run on the async threads.
pub(super) fn decode_data_uri(uri: &str, limit: usize) -> Result<Option<Vec<u8>>, LocationError> {
    let error = |reason: &str| LocationError::DataUri(reason.to_owned());
    let (header, payload) = uri
        .split_once(',')
        .ok_or_else(|| error("it has no comma before the data"))?;
    if !header.to_ascii_lowercase().ends_with(";base64") {
        return Err(error("its header must end with ;base64"));
    }
    // one pass and one copy: removes white space, and decodes `+`, `/` and `=` if they are percent-encoded
    let mut characters = Vec::with_capacity(payload.len().min(limit / 3 * 4 + 8));
    let mut rest = payload.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match (first, after.get(..2)) {
            (b'%', Some(code)) => match code.to_ascii_uppercase().as_slice() {
                b"2B" => (b'+', &after[2..]),
                b"2F" => (b'/', &after[2..]),
                b"3D" => (b'=', &after[2..]),
                _ => (b'%', after),
            },
            _ => (*first, after),
        };
        rest = after;
        if !byte.is_ascii_whitespace() {
            characters.push(byte);
        }
        if characters.len() / 4 * 3 > limit.saturating_add(3) {
            return Ok(None);
        }
    }
    while characters.last() == Some(&b'=') {
        characters.pop();
    }
    let bytes = STANDARD_NO_PAD
        .decode(&characters)
        .map_err(|e| error(&format!("its data is not base64: {e}")))?;
    Ok((bytes.len() <= limit).then_some(bytes))
}
