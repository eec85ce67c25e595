//! Writes each log event on one line, so that untrusted text cannot forge log lines.

use std::io::{self, Write};

/// A writer that escapes the control characters of events: names and texts from clients can contain line breaks.
pub(super) struct EscapingWriter<W>(pub(super) W);

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        // the formatter writes one complete event per call, ending in a line break
        let (text, end) = match event.split_last() {
            Some((b'\n', text)) => (text, &b"\n"[..]),
            _ => (event, &b""[..]),
        };
        // escape characters are kept, because colours use them; the formatter has already escaped those in untrusted
        // text
        let is_allowed = |byte: &u8| !byte.is_ascii_control() || *byte == b'\x1b' || *byte == b'\t';
        if text.iter().all(is_allowed) {
            self.0.write_all(event)?;
        } else {
            let mut line = Vec::with_capacity(event.len() + 16);
            for byte in text {
                match byte {
                    b'\n' => line.extend_from_slice(b"\\n"),
                    b'\r' => line.extend_from_slice(b"\\r"),
                    byte if is_allowed(byte) => line.push(*byte),
                    byte => line.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
                }
            }
            line.extend_from_slice(end);
            self.0.write_all(&line)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_written_on_one_line() {
        let mut written = vec![];
        let mut writer = EscapingWriter(&mut written);
        writer.write_all(b"a plain one\n").unwrap();
        writer
            .write_all(b"no label \"x\n2026-01-01 ERROR all is lost\r\x07\"\n")
            .unwrap();
        writer.write_all(b"\x1b[31mred\x1b[0m\n").unwrap();
        assert_eq!(
            String::from_utf8(written).unwrap(),
            "a plain one\nno label \"x\\n2026-01-01 ERROR all is lost\\r\\x07\"\n\x1b[31mred\x1b[0m\n"
        );
    }
}
