//! Request targets: what passes holds no dot segment in any reading, its lenient reading is the most lenient one, and
//! it is signed byte for byte.

#![no_main]

use std::borrow::Cow;

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use sealproxy::proxy::target::{Ambiguity, lenient_reading};
use sealproxy::seal::cavage::{Component, Message, signing_string};

mod oracle;

fuzz_target!(|bytes: &[u8]| {
    // As routing calls it.
    if let Ok(target) = PathAndQuery::try_from(bytes) {
        let received = bytes.split(|byte| *byte == b'#').next().expect("split gives at least one part");
        if received.starts_with(b"/") {
            assert_eq!(target.as_str().as_bytes(), received, "the target is not the one received");
        }
        judge(target.as_str(), target.path(), target.query());
    }
    // And with what `http` would have refused: the check must not lean on it.
    if let Ok(text) = std::str::from_utf8(bytes) {
        let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
        judge(text, path, query);
    }
});

fn judge(target: &str, path: &str, query: Option<&str>) {
    let reading = match lenient_reading(path, query) {
        Ok(reading) => reading,
        Err(ambiguity) => return justify(ambiguity, target, path),
    };
    assert!(target.bytes().all(|byte| byte.is_ascii_graphic()), "a byte outside visible ASCII passes");
    if let Some(seen) = oracle::dot_segment(path.as_bytes()) {
        panic!("a dot segment passes, read as {}", seen.escape_ascii());
    }
    if path.starts_with('/') {
        let canonical = oracle::canonical(path.as_bytes());
        assert_eq!(reading, String::from_utf8_lossy(&canonical), "another reading is more lenient");
        let changed = reading != path;
        assert!(
            changed || matches!(reading, Cow::Borrowed(_)) || path.contains(['%', ';', '\\']) || path.contains("//")
        );
    }
    is_signed_byte_for_byte(target);
}

/// What is refused has a reason in its bytes: a check that refuses everything is no check.
fn justify(ambiguity: Ambiguity, target: &str, path: &str) {
    let justified = match ambiguity {
        Ambiguity::Byte => !target.bytes().all(|byte| byte.is_ascii_graphic()),
        Ambiguity::DotSegment => oracle::dot_segment(path.as_bytes()).is_some(),
        Ambiguity::Encoding => path.contains('%') || path.bytes().any(|byte| byte.is_ascii_control()),
        // Not what the lenient reading is asked.
        Ambiguity::OtherRoute | Ambiguity::Length | Ambiguity::Authority => false,
    };
    assert!(justified, "refused without cause: {ambiguity:?}");
    assert!(!ambiguity.as_str().is_empty());
}

fn is_signed_byte_for_byte(target: &str) {
    let headers: HeaderMap = [(HOST, HeaderValue::from_static("bank.example"))].into_iter().collect();
    let components = [Component::RequestTarget, Component::Header(HOST)];
    for (method, signed) in [("GET", "get"), ("PuRgE", "purge")] {
        let method = Method::from_bytes(method.as_bytes()).expect("a token");
        let message = Message { method: &method, target, headers: &headers };
        let string = signing_string(components.iter(), &message).expect("both are there");
        let expected = format!("(request-target): {signed} {target}\nhost: bank.example");
        assert_eq!(string, expected.as_bytes(), "the signing string is not the target received");
    }
}
