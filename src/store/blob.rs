//! The file format of a result on disk: a header with the key, the payload, and a SHA-256 checksum of both.

use ring::digest::{SHA256, digest};

/// The key of a result on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlobKey {
    /// The identity of the model that computed it.
    pub model: [u8; 32],
    /// The digest of the image's bytes.
    pub content: [u8; 32],
}

/// The first bytes of every file.
const MAGIC: &[u8; 16] = b"groundling blob\n";
/// The version of the format.
const VERSION: u32 = 1;
const DIGEST_BYTES: usize = 32;
/// Magic, version, model, content, and the length of the payload.
pub(super) const HEADER_BYTES: usize = MAGIC.len() + 4 + 2 * DIGEST_BYTES + 8;
/// Size in bytes of everything in a file except its payload.
pub(super) const FRAME_BYTES: u64 = (HEADER_BYTES + DIGEST_BYTES) as u64;

/// The header of a file with `payload_bytes` bytes of payload.
pub(super) fn header(key: &BlobKey, payload_bytes: usize) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend(key.model);
    header.extend(key.content);
    header.extend((payload_bytes as u64).to_le_bytes());
    header
}

/// The length in bytes of the payload after a header; `None` if the header is of another key or format version.
pub(super) fn payload_length(header: &[u8], key: &BlobKey) -> Option<u64> {
    let (start, length) = header.split_at_checked(HEADER_BYTES - 8)?;
    let expected = self::header(key, 0);
    if start != &expected[..HEADER_BYTES - 8] {
        return None;
    }
    Some(u64::from_le_bytes(length.try_into().ok()?))
}

/// Extracts the payload of a file; `None` if it is of another model, content or format version.
///
/// # Errors
/// The way in which the file is damaged.
pub(super) fn payload(mut bytes: Vec<u8>, key: &BlobKey) -> Result<Option<Vec<u8>>, &'static str> {
    if !bytes.starts_with(MAGIC) {
        return Err("it does not start with the bytes of the format");
    }
    let Some(end) = bytes.len().checked_sub(DIGEST_BYTES) else {
        return Err("it is truncated");
    };
    if end < HEADER_BYTES {
        return Err("it is truncated");
    }
    let (content, sum) = bytes.split_at(end);
    if digest(&SHA256, content).as_ref() != sum {
        return Err("its checksum is wrong");
    }
    match payload_length(&content[..HEADER_BYTES], key) {
        None => Ok(None),
        Some(length) if length == (end - HEADER_BYTES) as u64 => {
            bytes.truncate(end);
            bytes.drain(..HEADER_BYTES);
            Ok(Some(bytes))
        }
        Some(_) => Err("its length differs from the one in its header"),
    }
}
