//! Refuses request targets that two readers could understand differently. Nothing is normalised: what passes
//! goes out byte for byte, and an absolute form without a path with the path that it means. Pure.

use std::borrow::Cow;

use http::Uri;
use http::uri::PathAndQuery;

/// Why a target is refused. The text never repeats the target: it may hold somebody's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguity {
    /// A byte that has no place in a target (RFC 9112 section 3.2).
    Byte,
    /// `.` or `..` as a segment, however it is written.
    DotSegment,
    /// An encoded control character, bytes that are no UTF-8, or encodings within encodings beyond reason.
    Encoding,
    /// A lenient reading leads to another route.
    OtherRoute,
    /// A host and a port alone, which `CONNECT` has (RFC 9112 section 3.2.3).
    Authority,
    /// No path, and so long a query that no slash fits before it.
    Length,
}

impl Ambiguity {
    /// What is wrong, in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Byte => "the request target holds a byte outside visible ASCII; percent-encode it",
            Self::DotSegment => "the path holds a dot segment, in some spelling",
            Self::Encoding => {
                "the path holds an encoded control character, is no UTF-8 or is encoded several times over"
            }
            Self::OtherRoute => "the path leads to another route when it is read leniently",
            Self::Authority => "the request target is a host and a port, as `CONNECT` alone has it; begin it with `/`",
            Self::Length => "the request target has no path, and a query that is too long for one; begin it with `/`",
        }
    }
}

/// What a request line has of a URI (RFC 9112 section 3.2.1), which is also what is signed: an empty path is `/` there.
pub fn origin_form(uri: &Uri) -> Result<PathAndQuery, Ambiguity> {
    match uri.path_and_query() {
        None => Ok(PathAndQuery::from_static("/")),
        // Of a fragment alone, which is no part of it, nothing stays: that reads as `/` and is written as nothing.
        Some(target) if target.as_str() == "/" => Ok(PathAndQuery::from_static("/")),
        // `http` keeps a query behind no path as it is, and hyper writes a slash before it.
        Some(target) if target.as_str().starts_with('?') => {
            PathAndQuery::try_from(format!("/{}", target.as_str())).map_err(|_| Ambiguity::Length)
        }
        Some(target) => Ok(target.clone()),
    }
}

/// Checks path and query as they came in; returns how a lenient server might read the path, which differs from
/// the path only where decoding, merging slashes or cutting `;parameters` changes something.
pub fn lenient_reading<'a>(path: &'a str, query: Option<&str>) -> Result<Cow<'a, str>, Ambiguity> {
    let visible = |text: &str| text.bytes().all(|byte| matches!(byte, 0x21..=0x7e));
    if !visible(path) || !query.is_none_or(visible) {
        return Err(Ambiguity::Byte);
    }
    let plain = !path.bytes().any(|byte| matches!(byte, b'%' | b';' | b'\\' | b'?' | b'#'))
        && !path.as_bytes().windows(2).any(|pair| pair == b"//");
    let decoded = if plain { Cow::Borrowed(path) } else { Cow::Owned(decode_fully(path)?) };
    if decoded.as_bytes().contains(&b'.') && decoded.split(['/', '\\']).any(is_dot_segment) {
        return Err(Ambiguity::DotSegment);
    }
    Ok(if plain { decoded } else { Cow::Owned(merge(&decoded)) })
}

fn is_dot_segment(segment: &str) -> bool {
    matches!(without_parameters(segment).trim_matches(char::is_whitespace), "." | "..")
}

/// Parameters, and what a reader that parses once more after decoding takes for a query or a fragment.
fn without_parameters(segment: &str) -> &str {
    segment.split([';', '?', '#']).next().unwrap_or(segment)
}

/// Decodes until nothing changes any more: somebody behind the bank's front may decode once more than the front.
fn decode_fully(path: &str) -> Result<String, Ambiguity> {
    let mut current = path.as_bytes().to_vec();
    for _ in 0..MAX_ENCODINGS {
        let next = decode(&current);
        if next.iter().any(u8::is_ascii_control) {
            return Err(Ambiguity::Encoding);
        }
        if next == current {
            return into_plain_text(current);
        }
        current = next;
    }
    Err(Ambiguity::Encoding)
}

/// Overlong forms and `%u002e` are dots to some readers: whatever is not UTF-8 is refused. Characters that best-fit
/// mappings turn into dots and slashes are taken for these.
fn into_plain_text(decoded: Vec<u8>) -> Result<String, Ambiguity> {
    let text = String::from_utf8(decoded).map_err(|_| Ambiguity::Encoding)?;
    // A soft hyphen vanishes, and a wide percent sign begins another round.
    if text.contains("%u") || text.contains("%U") || text.contains(['\u{ad}', '\u{ff05}', '\u{fe6a}']) {
        return Err(Ambiguity::Encoding);
    }
    let text = text.replace('\u{2025}', "..");
    Ok(text
        .replace(['\u{ff0e}', '\u{2024}', '\u{fe52}'], ".")
        .replace(['\u{ff0f}', '\u{2044}', '\u{2215}', '\u{ff3c}'], "/"))
}

/// One encoding is usual, a second happens to identifiers that were encoded by two layers of a client.
const MAX_ENCODINGS: usize = 4;

fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'%', [high, low, tail @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                decoded.push(hex(*high) << 4 | hex(*low));
                rest = tail;
            }
            _ => {
                decoded.push(first);
                rest = tail;
            }
        }
    }
    decoded
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

fn merge(path: &str) -> String {
    // A reader that parses once more after decoding ends the path here.
    let path = path.split(['?', '#']).next().unwrap_or(path);
    // Parameters first: a segment of nothing else is an empty one, and slashes merge over it.
    let segments = path.split(['/', '\\']).map(without_parameters);
    let mut merged = String::with_capacity(path.len());
    for segment in segments.clone().filter(|segment| !segment.is_empty()) {
        merged.push('/');
        merged.push_str(segment);
    }
    if merged.is_empty() || segments.clone().next_back().is_none_or(str::is_empty) {
        merged.push('/');
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_what_hyper_writes() {
        for (uri, expected) in [
            ("http://bank.example", "/"),
            ("http://bank.example?a=b", "/?a=b"),
            ("http://bank.example#f", "/"),
            ("http://bank.example?a#f", "/?a"),
            ("/a?b#f", "/a?b"),
            ("http://bank.example/", "/"),
            ("http://bank.example/a?b", "/a?b"),
            ("/a?b=/c", "/a?b=/c"),
            ("*", "*"),
        ] {
            let target = origin_form(&uri.parse().expect("a URI")).expect("short");
            assert_eq!(target.as_str(), expected, "{uri}");
            // hyper writes the target of a request by its `Display`.
            let sent = Uri::builder().path_and_query(target.clone()).build().expect("a URI");
            assert_eq!(sent.to_string(), target.as_str(), "{uri}");
        }
        // As HTTP/2 may bring it.
        let longest = PathAndQuery::try_from(format!("?{}", "a".repeat(65_533))).expect("65,534 bytes");
        let uri = Uri::builder().scheme("http").authority("bank.example").path_and_query(longest);
        assert_eq!(origin_form(&uri.build().expect("a URI")), Err(Ambiguity::Length));
    }

    #[test]
    fn dot_segments_are_refused_in_every_spelling() {
        for path in [
            "/a/../b",
            "/a/..",
            "/a/.",
            "/./a",
            "/a/%2e%2e/b",
            "/a/%2E./b",
            "/a/.%2e",
            "/a/..;x=y/b",
            "/a/%2e%2e%3bx/b",
            "/a/..%2fb",
            "/a%2f..%2fb",
            "/a%2F%2e%2E%2Fb",
            "/a\\..\\b",
            "/a%5c..%5cb",
            "/a/%252e%252e/b",
            "/a/..%252fb",
            "/a/..%20/b",
            "/a/..%c2%a0/b",
            "/a/..%3fx/b",
            "/a/..%23/b",
            "/a/%ef%bc%8e%ef%bc%8e/b",
            "/a/..%ef%bc%8fb",
        ] {
            assert_eq!(lenient_reading(path, None), Err(Ambiguity::DotSegment), "{path}");
        }
    }

    #[test]
    fn what_is_merely_odd_passes() {
        for (path, reading) in [
            ("/a/b", "/a/b"),
            ("/a/...", "/a/..."),
            ("/a/.well-known", "/a/.well-known"),
            ("/a/%2Fb", "/a/b"),
            ("/a//b/", "/a/b/"),
            ("/a;v=1/b", "/a/b"),
            ("/a/;x=y/b", "/a/b"),
            ("/a/%3b.\\b", "/a/b"),
            ("/a/b/;x", "/a/b/"),
            ("/a%3fx/b", "/a"),
            ("/a%23/b", "/a"),
            ("/a%20b+c:@~", "/a b+c:@~"),
            ("/a%zz%", "/a%zz%"),
            ("/%C3%A9", "/\u{e9}"),
            ("/", "/"),
        ] {
            assert_eq!(lenient_reading(path, Some("..=/../&%2e%2e")).as_deref(), Ok(reading), "{path}");
        }
    }

    #[test]
    fn bytes_and_encodings_that_no_reader_agrees_on_are_refused() {
        assert_eq!(lenient_reading("/\u{e9}", None), Err(Ambiguity::Byte));
        assert_eq!(lenient_reading("/a", Some("\u{e9}")), Err(Ambiguity::Byte));
        for path in ["/%c0%ae%c0%ae/x", "/%e0%80%ae%e0%80%ae/x", "/%u002e%u002e/x", "/..%a0/x", "/%ff"] {
            assert_eq!(lenient_reading(path, None), Err(Ambiguity::Encoding), "{path}");
        }
        assert_eq!(lenient_reading("/a%00", None), Err(Ambiguity::Encoding));
        assert_eq!(lenient_reading("/a%0d%0a", None), Err(Ambiguity::Encoding));
        assert_eq!(lenient_reading("/%2525252541", None), Err(Ambiguity::Encoding));
    }
}
