//! Which headers pass in either direction, and what the proxy fills in: hop-by-hop, `Host`, `X-Request-Id`,
//! framing. Not signing: what the seal sets is only taken away here.

use std::borrow::Cow;

use http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE, DATE,
    EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TRAILER, TRANSFER_ENCODING, USER_AGENT,
};
use http::request::Parts;
use http::uri::{self, PathAndQuery, Uri};
use http::{Method, StatusCode, Version};

use super::api::Pattern;
use super::metrics::Metrics;
use super::problem::Problem;
use super::route::Route;
use crate::seal::{DIGEST, SIGNATURE};
use crate::upstream::is_plainly_framed;

/// The header by which caller, proxy and bank name one request.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Tells the caller the request's id, whoever chose it.
pub const SEALPROXY_REQUEST_ID: HeaderName = HeaderName::from_static("sealproxy-request-id");
/// Tells the caller what is known of a request that failed.
pub const SEALPROXY_OUTCOME: HeaderName = HeaderName::from_static("sealproxy-outcome");
/// RFC 9209.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Sent as `User-Agent` where the caller names none: banks demand one.
const OUR_USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("sealproxy/", env!("CARGO_PKG_VERSION")));
/// Sent as `Accept` where the caller names none: banks demand one, and their APIs speak JSON.
const OUR_ACCEPT: HeaderValue = HeaderValue::from_static("application/json");

/// The caller's request id, or a fresh one; also where the caller's is refused, so that the refusal can be found.
pub fn identify(headers: &HeaderMap) -> (HeaderValue, Option<Problem>) {
    match request_id(headers) {
        Ok(id) => (id.unwrap_or_else(new_request_id), None),
        Err(problem) => (new_request_id(), Some(problem)),
    }
}

/// The caller's request id if it sent one: a single token (RFC 9110 section 5.6.2) of at most 128 characters.
fn request_id(headers: &HeaderMap) -> Result<Option<HeaderValue>, Problem> {
    let mut values = headers.get_all(X_REQUEST_ID).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(Problem::DuplicateHeader(X_REQUEST_ID)),
        (Some(value), None) if is_token(value.as_bytes()) && value.len() <= 128 => Ok(Some(value.clone())),
        (Some(_), None) => Err(Problem::MalformedRequestId),
    }
}

/// A fresh id: a UUID v4 in lower case.
fn new_request_id() -> HeaderValue {
    let mut buffer = uuid::Uuid::encode_buffer();
    let text = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(text).expect("a UUID is visible ASCII")
}

/// Checks what must hold of a request's headers before its body is read.
pub fn check(head: &Parts, route: &Route, most: usize) -> Result<(), Problem> {
    // hyper counts those of HTTP/1.1 before anything else does.
    if head.headers.len() > most {
        return Err(Problem::TooManyHeaders(most));
    }
    let sealed = [DATE, DIGEST, SIGNATURE, CONTENT_TYPE, AUTHORIZATION];
    let has_duplicates = head.headers.keys_len() < head.headers.len();
    for name in sealed.into_iter().filter(|_| has_duplicates && route.is_sealed()) {
        if head.headers.get_all(&name).iter().nth(1).is_some() {
            return Err(Problem::DuplicateHeader(name));
        }
    }
    for option in connection_options(&head.headers) {
        if let Some(name) = HeaderName::from_bytes(option).ok().filter(|name| is_protected(name, route)) {
            return Err(Problem::ConnectionNames(name));
        }
    }
    if !is_plainly_framed(&head.headers) {
        return Err(Problem::TransferCoding);
    }
    let is_known = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"100-continue");
    if !head.headers.get_all(EXPECT).iter().all(is_known) {
        return Err(Problem::Expectation);
    }
    Ok(())
}

/// Turns a checked head into the one that the bank receives, all but the seal. `body` is the body's length.
pub fn outbound(
    head: &mut Parts,
    target: PathAndQuery,
    route: &Route,
    id: &HeaderValue,
    body: u64,
    metrics: &Metrics,
) -> Result<(), Problem> {
    let typed = head.headers.get(CONTENT_TYPE).is_some_and(|kind| !kind.as_bytes().trim_ascii().is_empty());
    if body > 0 && route.is_sealed() && !typed {
        return Err(Problem::NoContentType);
    }
    keep_what_passes(&mut head.headers, route, metrics);
    if head.version == Version::HTTP_2 {
        join_cookies(&mut head.headers);
    }
    head.uri = origin_form(target);
    head.version = Version::HTTP_11;
    head.headers.insert(HOST, route.host.clone());
    head.headers.insert(X_REQUEST_ID, id.clone());
    fill(&mut head.headers, USER_AGENT, OUR_USER_AGENT);
    fill(&mut head.headers, ACCEPT, OUR_ACCEPT);
    frame(head, body, route.is_sealed());
    Ok(())
}

/// Takes away what speaks of the bank's connection or in our name, and says whose request this answers.
pub fn inbound(headers: &mut HeaderMap, status: StatusCode, id: &HeaderValue) {
    if status == StatusCode::NO_CONTENT {
        // There is none of any length (RFC 9110 section 8.6), and callers of HTTP/2 take one for an answer that was
        // cut.
        headers.remove(CONTENT_LENGTH);
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        // A length beside chunks is not the length (RFC 9112 section 6.3), and would cut the answer.
        headers.remove(CONTENT_LENGTH);
    }
    keep_one_length(headers);
    remove_named(headers);
    // `Trailer` announces what passes as well; hyper writes only the trailers that it names.
    let foreign =
        |name: &HeaderName| is_hop_by_hop(name) && *name != TRAILER || name.as_str().starts_with("sealproxy-");
    let remove: Vec<HeaderName> = headers.keys().filter(|name| foreign(name)).cloned().collect();
    for name in remove {
        headers.remove(name);
    }
    drop_our_proxy_status(headers);
    headers.insert(SEALPROXY_REQUEST_ID, id.clone());
}

/// A length that stands there several times stands there once (RFC 9110 section 8.6), and one that is none not at all:
/// it is of an answer without a body, because hyper has taken it. Callers refuse what is neither.
fn keep_one_length(headers: &mut HeaderMap) {
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    match (values.next(), values.next()) {
        (None, _) => return,
        (Some(value), None) if is_number(value.as_bytes()) => return,
        _ => {}
    }
    let values = headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let lengths: Vec<_> = values.map(<[u8]>::trim_ascii).collect();
    let one = lengths.first().filter(|first| is_number(first) && lengths.iter().all(|length| length == *first));
    let one = one.and_then(|one| HeaderValue::from_bytes(one).ok());
    headers.remove(CONTENT_LENGTH);
    headers.extend(one.map(|one| (CONTENT_LENGTH, one)));
}

/// Takes away `Connection` and what it names, except what says how the body is to be read.
fn remove_named(headers: &mut HeaderMap) {
    // The usual ones go anyway.
    let usual = [b"keep-alive".as_slice(), b"close"];
    let named =
        connection_options(headers).filter(|option| !usual.iter().any(|usual| option.eq_ignore_ascii_case(usual)));
    let named: Vec<HeaderName> = named.filter_map(|option| HeaderName::from_bytes(option).ok()).collect();
    headers.remove(CONNECTION);
    for name in named {
        if ![CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE].contains(&name) {
            headers.remove(name);
        }
    }
}

/// The same for trailers, which come behind what was told to the caller.
pub fn inbound_trailers(trailers: &mut HeaderMap) {
    let foreign = |name: &HeaderName| is_hop_by_hop(name) || name.as_str().starts_with("sealproxy-");
    let remove: Vec<HeaderName> = trailers.keys().filter(|name| foreign(name)).cloned().collect();
    for name in remove {
        trailers.remove(name);
    }
    drop_our_proxy_status(trailers);
}

/// Only the proxy itself may speak as `sealproxy` in `Proxy-Status`: callers tell by it whose answer they have.
fn drop_our_proxy_status(headers: &mut HeaderMap) {
    let ours =
        |value: &HeaderValue| value.as_bytes().windows(9).any(|window| window.eq_ignore_ascii_case(b"sealproxy"));
    if headers.get_all(PROXY_STATUS).iter().any(ours) {
        headers.remove(PROXY_STATUS);
    }
}

/// HTTP/2 may have a cookie in several fields, HTTP/1.1 in one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() < 2 {
        return;
    }
    let whole = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])).expect("of values, and a separator that is legal");
    headers.insert(COOKIE, whole);
}

/// Takes away what does not reach the bank. In place, because hyper uses a table again once its head has been written.
fn keep_what_passes(headers: &mut HeaderMap, route: &Route, metrics: &Metrics) {
    let named: Vec<Vec<u8>> = connection_options(headers).map(<[u8]>::to_ascii_lowercase).collect();
    let passes = |name: &HeaderName| {
        let taken = is_written_as_one_of_ours(name)
            || is_hop_by_hop(name)
            || is_ours(name, route)
            || named.iter().any(|option| option == name.as_str().as_bytes());
        !taken
            && if route.is_sealed() { is_allowed(name, route) } else { !is_internal(name) || route.pass.contains(name) }
    };
    // What the proxy sets itself is replaced rather than dropped.
    let replaced = [HOST, X_REQUEST_ID, CONTENT_LENGTH];
    let gone: Vec<HeaderName> =
        headers.keys().filter(|name| !replaced.contains(name) && !passes(name)).cloned().collect();
    for name in gone {
        metrics.dropped_header(&name);
        headers.remove(name);
    }
}

/// Whether a header reaches the bank on a sealed route.
fn is_allowed(name: &HeaderName, route: &Route) -> bool {
    route.api.headers.iter().any(|pattern| pattern.matches(name.as_str())) || route.pass.contains(name)
}

/// Whether the proxy alone sets a header, so that a caller's is replaced or dropped.
fn is_ours(name: &HeaderName, route: &Route) -> bool {
    is_one_of(name, &OURS) || route.sealing.sealer().is_some_and(|sealer| sealer.sets(name))
}

/// Whether removing a header because `Connection` names it would change what the bank gets or what is signed.
fn is_protected(name: &HeaderName, route: &Route) -> bool {
    if is_hop_by_hop(name) || matches!(name.as_str(), "close" | "http2-settings") {
        return false;
    }
    let always = [AUTHORIZATION, CONTENT_TYPE, CONTENT_ENCODING, X_REQUEST_ID];
    always.contains(name)
        || is_ours(name, route)
        || (route.is_sealed() && is_allowed(name, route))
        || route.sealing.sealer().is_some_and(|sealer| sealer.covers(name))
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(CONNECTION).iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// Headers that concern one connection: RFC 9110 section 7.6.1, and the older ones that are still sent.
pub const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers that the proxy sets itself, or answers instead of the bank. The certificates are those that other dialects
/// carry: a caller's would speak against our seal.
pub const OURS: [&str; 8] = [
    "content-length",
    "digest",
    "expect",
    "host",
    "signature",
    "tpp-certificate",
    "tpp-signature-certificate",
    "x-request-id",
];

fn is_hop_by_hop(name: &HeaderName) -> bool {
    is_one_of(name, &HOP_BY_HOP)
}

/// Whether a server that takes an underscore for a hyphen would take it for a header that is the proxy's to set.
fn is_written_as_one_of_ours(name: &HeaderName) -> bool {
    match hyphened(name) {
        Cow::Borrowed(_) => false,
        Cow::Owned(name) => HOP_BY_HOP.iter().chain(&OURS).any(|ours| *ours == name),
    }
}

/// The name as it is read where an underscore is taken for a hyphen. Owned where it is another one.
fn hyphened(name: &HeaderName) -> Cow<'_, str> {
    let name = name.as_str();
    if name.contains('_') { Cow::Owned(name.replace('_', "-")) } else { Cow::Borrowed(name) }
}

/// Each name of each request is looked for in several lists: a comparison of lengths rules most of them out.
fn is_one_of(name: &HeaderName, names: &[&str]) -> bool {
    let name = name.as_str().as_bytes();
    names.iter().any(|other| other.len() == name.len() && other.as_bytes() == name)
}

/// Headers that tell of the network the caller lives in.
fn is_internal(name: &HeaderName) -> bool {
    const INTERNAL: [Pattern; 29] = [
        Pattern::Exact("b3"),
        Pattern::Exact("baggage"),
        Pattern::Exact("forwarded"),
        Pattern::Prefix("l5d-"),
        Pattern::Exact("origin"),
        Pattern::Exact("referer"),
        Pattern::Prefix("sealproxy-"),
        Pattern::Prefix("sec-"),
        Pattern::Exact("traceparent"),
        Pattern::Exact("tracestate"),
        Pattern::Exact("uber-trace-id"),
        Pattern::Exact("via"),
        Pattern::Prefix("x-amzn-trace"),
        Pattern::Prefix("x-b3-"),
        Pattern::Prefix("x-cloud-trace"),
        Pattern::Prefix("x-envoy-"),
        Pattern::Prefix("x-forwarded"),
        Pattern::Exact("x-host"),
        // They would undo what `methods` allows.
        Pattern::Exact("x-http-method"),
        Pattern::Exact("x-http-method-override"),
        Pattern::Prefix("x-istio-"),
        Pattern::Exact("x-method-override"),
        Pattern::Exact("x-original-method"),
        // They would undo its path or its host.
        Pattern::Exact("x-original-host"),
        Pattern::Exact("x-original-uri"),
        Pattern::Exact("x-original-url"),
        Pattern::Exact("x-real-ip"),
        Pattern::Exact("x-request-start"),
        Pattern::Exact("x-rewrite-url"),
    ];
    let name = hyphened(name);
    INTERNAL.iter().any(|pattern| pattern.matches(&name))
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// An empty value is as good as none to a bank that demands the header.
fn fill(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    if headers.get(&name).is_none_or(|present| present.as_bytes().trim_ascii().is_empty()) {
        headers.insert(name, value);
    }
}

/// One framing header of ours, in the place of the caller's; without a body nothing that describes one.
fn frame(head: &mut Parts, body: u64, is_sealed: bool) {
    // A seal is to cover all that describes a body, and there is none.
    if body == 0 && is_sealed {
        for name in [CONTENT_TYPE, CONTENT_ENCODING] {
            head.headers.remove(name);
        }
    }
    if body > 0 || matches!(head.method, Method::POST | Method::PUT | Method::PATCH) {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body));
    } else {
        head.headers.remove(CONTENT_LENGTH);
    }
}

fn origin_form(target: PathAndQuery) -> Uri {
    let mut parts = uri::Parts::default();
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).expect("path and query alone are a URI")
}
