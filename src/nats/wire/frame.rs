//! What a NATS server sends, taken from its bytes. Nothing is assumed of what publishers decide: subjects, headers and bodies stay bytes.

use bytes::{Buf as _, Bytes, BytesMut};

/// What a server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Frame {
    /// A message, or a status of JetStream's.
    Message(Message),
    /// A question whether we are still there.
    Ping,
    /// The answer to ours.
    Pong,
    /// What the server says of itself, as JSON.
    Info(Bytes),
    /// A complaint.
    Error(String),
    /// A confirmation that nobody asked for.
    Ok,
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Message {
    pub(in super::super) subject: Bytes,
    pub(in super::super) reply: Bytes,
    /// The header block; empty where there is none.
    pub(in super::super) block: Bytes,
    pub(in super::super) body: Bytes,
}

/// Takes the next frame from what was read; nothing while it is not whole.
///
/// # Errors
/// What a NATS server never sends.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Frame>, String> {
    let Some(end) = buffer.windows(2).take(LONGEST_LINE).position(|at| at == b"\r\n") else {
        return match buffer.len() {
            0..LONGEST_LINE => Ok(None),
            _ => Err("the server sent a line that does not end".to_owned()),
        };
    };
    let line = &buffer[..end];
    let (word, rest) =
        line.iter().position(u8::is_ascii_whitespace).map_or((line, &line[end..]), |at| line.split_at(at));
    let strange =
        || format!("the server sent \"{}\"", String::from_utf8_lossy(&line[..end.min(60)]).escape_debug());
    let frame = match &*word.to_ascii_uppercase() {
        word @ (b"MSG" | b"HMSG") => {
            let sizes = if word == b"HMSG" { 2 } else { 1 };
            let tokens: Vec<&[u8]> =
                rest.split(u8::is_ascii_whitespace).filter(|token| !token.is_empty()).collect();
            let number = |token: &[u8]| std::str::from_utf8(token).ok()?.parse::<usize>().ok();
            let Some((names, numbers)) = tokens.split_at_checked(tokens.len().saturating_sub(sizes)) else {
                return Err(strange());
            };
            let (subject, reply) = match names {
                [subject, _sid] => (*subject, &b""[..]),
                [subject, _sid, reply] => (*subject, *reply),
                _ => return Err(strange()),
            };
            let (block, whole) = match numbers {
                [whole] => (Some(0), number(whole)),
                [block, whole] => (number(block), number(whole)),
                _ => return Err(strange()),
            };
            let (Some(block), Some(whole)) = (block, whole) else { return Err(strange()) };
            if block > whole {
                return Err(strange());
            }
            if buffer.len() < end + 2 + whole + 2 {
                return Ok(None);
            }
            let (subject, reply) = (Bytes::copy_from_slice(subject), Bytes::copy_from_slice(reply));
            buffer.advance(end + 2);
            let mut body = buffer.split_to(whole).freeze();
            buffer.advance(2);
            let block = body.split_to(block);
            return Ok(Some(Frame::Message(Message { subject, reply, block, body })));
        }
        b"PING" => Frame::Ping,
        b"PONG" => Frame::Pong,
        b"+OK" => Frame::Ok,
        b"INFO" => Frame::Info(Bytes::copy_from_slice(rest.trim_ascii())),
        b"-ERR" => {
            let text = String::from_utf8_lossy(rest);
            Frame::Error(text.trim().trim_matches('\'').to_owned())
        }
        _ => return Err(strange()),
    };
    buffer.advance(end + 2);
    Ok(Some(frame))
}

/// The server's own bound is 4 KiB; what it says of itself in a large cluster may be longer.
const LONGEST_LINE: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Vec<Frame> {
        let mut buffer = BytesMut::from(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = take(&mut buffer).unwrap() {
            frames.push(frame);
        }
        assert!(buffer.is_empty(), "{buffer:?}");
        frames
    }

    fn message(
        subject: &'static [u8],
        reply: &'static [u8],
        block: &'static [u8],
        body: &'static [u8],
    ) -> Frame {
        let of = Bytes::from_static;
        Frame::Message(Message { subject: of(subject), reply: of(reply), block: of(block), body: of(body) })
    }

    #[test]
    fn frames_come_one_after_the_other_whatever_publishers_put_into_them() {
        let sent = b"INFO {\"a\":1}\r\nPING\r\nMSG a.b 1 3\r\nx\r\n\r\nHMSG a.\xff 1 $JS.ACK.x 4 7\r\n\r\nA\rfoo\r\n+OK\r\n-ERR 'Stale Connection'\r\n";
        assert_eq!(
            all(sent),
            [
                Frame::Info(Bytes::from_static(b"{\"a\":1}")),
                Frame::Ping,
                message(b"a.b", b"", b"", b"x\r\n"),
                message(b"a.\xff", b"$JS.ACK.x", b"\r\nA\r", b"foo"),
                Frame::Ok,
                Frame::Error("Stale Connection".to_owned()),
            ]
        );
    }

    #[test]
    fn what_is_not_whole_is_waited_for_byte_by_byte() {
        let sent = "HMSG a\u{a0}b 1 r 4 7\r\n\r\nA\rfoo\r\nPONG\r\n".as_bytes();
        let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
        for byte in sent {
            buffer.extend_from_slice(&[*byte]);
            frames.extend(take(&mut buffer).unwrap());
        }
        assert_eq!(frames, [message("a\u{a0}b".as_bytes(), b"r", b"\r\nA\r", b"foo"), Frame::Pong]);
    }

    #[test]
    fn what_no_server_sends_ends_the_connection() {
        for sent in [
            "HTTP/1.1 400\r\n",
            "MSG a 1\r\n",
            "MSG a 1 x\r\n",
            "HMSG a 1 9 7\r\n",
            "MSG\r\n",
            "MSG a b c d 7\r\n",
        ] {
            assert!(take(&mut BytesMut::from(sent)).is_err(), "{sent}");
        }
        assert!(take(&mut BytesMut::from(&vec![b'x'; LONGEST_LINE][..])).is_err());
    }
}
