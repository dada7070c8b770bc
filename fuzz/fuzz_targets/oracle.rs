//! How servers behind the bank's front may read a path, written anew from RFC 3986 and never from `src/`: an oracle
//! that shares our code shares our bugs.

use std::collections::BTreeSet;

/// A dot segment that some server may see: after any number of decodings, with `;parameters` cut before or after each.
pub fn dot_segment(path: &[u8]) -> Option<Vec<u8>> {
    let mut seen = BTreeSet::new();
    let mut open = vec![path.to_vec()];
    while let Some(reading) = open.pop() {
        if segments(&reading).any(|segment| matches!(trimmed(segment), b"." | b"..")) {
            return Some(reading);
        }
        if seen.insert(reading.clone()) {
            open.extend([decoded(&reading), cut(&reading), best_fit(&reading)]);
        }
    }
    None
}

/// The path as the most lenient server routes it: decoded to the end, parameters cut, empty segments gone. A path that
/// ends in an empty segment keeps its last slash.
pub fn canonical(path: &[u8]) -> Vec<u8> {
    let mut path = path.to_vec();
    while path != decoded(&path) {
        path = decoded(&path);
    }
    let path = best_fit(&path);
    let path = path.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
    let cut: Vec<&[u8]> = segments(path).map(without_parameters).collect();
    let mut canonical = Vec::new();
    for segment in cut.iter().filter(|segment| !segment.is_empty()) {
        canonical.push(b'/');
        canonical.extend_from_slice(segment);
    }
    if canonical.is_empty() || cut.last().is_none_or(|last| last.is_empty()) {
        canonical.push(b'/');
    }
    canonical
}

/// One decoding of every well-formed `%XX`.
fn decoded(path: &[u8]) -> Vec<u8> {
    let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut out, mut at) = (Vec::new(), 0);
    while at < path.len() {
        match (path[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// What a best-fit mapping to ASCII makes of characters that look like dots and slashes.
fn best_fit(path: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(path);
    let dots = text.replace(['\u{ff0e}', '\u{2024}'], ".");
    dots.replace(['\u{ff0f}', '\u{2044}', '\u{2215}', '\u{ff3c}'], "/").into_bytes()
}

/// Every segment without its parameters, its separators kept.
fn cut(path: &[u8]) -> Vec<u8> {
    let mut within = false;
    let keep = |byte: &&u8| {
        within = !matches!(byte, b'/' | b'\\') && (within || matches!(byte, b';' | b'?' | b'#'));
        !within
    };
    path.iter().filter(keep).copied().collect()
}

fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| matches!(byte, b'/' | b'\\'))
}

fn without_parameters(segment: &[u8]) -> &[u8] {
    segment.split(|byte| matches!(byte, b';' | b'?' | b'#')).next().unwrap_or_default()
}

fn trimmed(segment: &[u8]) -> &[u8] {
    let name = without_parameters(segment);
    std::str::from_utf8(name).map_or(name, |name| name.trim().as_bytes())
}
