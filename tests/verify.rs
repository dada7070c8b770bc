//! The verifier against the golden vectors, and against everything that can be wrong with a request.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use sealproxy::identity::certificate::Certificate;
use sealproxy::identity::pem;
use sealproxy::seal::cavage::Message;
use sealproxy::seal::dialect::BECM;
use sealproxy::seal::verify::{Rejected, Verified, Verifier, parameters};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

fn verifier() -> Verifier {
    let leaf = pem::read_chain(&file("becm-qsealc.pem")).expect("a chain").remove(0);
    let certificate = Certificate::from_der(leaf).expect("a certificate");
    let key_id = certificate.sha1_hex();
    Verifier::new(&BECM).register(&key_id, certificate)
}

/// A request as the bank received it.
#[derive(Clone)]
struct Request {
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Request {
    /// The golden vector of this name.
    fn golden(name: &str) -> Self {
        let vectors: Value = serde_json::from_slice(&std::fs::read(file("becm.json")).expect("a file")).expect("JSON");
        let case = vectors["cases"]
            .as_array()
            .expect("cases")
            .iter()
            .find(|case| case["name"] == name)
            .expect("the case")
            .clone();
        let mut headers = HeaderMap::new();
        for (header, member) in [
            ("host", "host"),
            ("date", "date"),
            ("x-request-id", "x_request_id"),
            ("digest", "digest"),
            ("content-type", "content_type"),
            ("signature", "signature"),
        ] {
            if let Some(value) = case[member].as_str() {
                headers.insert(HeaderName::from_static(header), value.parse().expect("a value"));
            }
        }
        let text = |member: &str| case[member].as_str().unwrap_or_default().to_owned();
        Self {
            method: text("method").parse().expect("a method"),
            target: text("target"),
            headers,
            body: text("body").into_bytes(),
        }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        self
    }

    fn and(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        self
    }

    fn without(mut self, name: &'static str) -> Self {
        self.headers.remove(name);
        self
    }

    /// Replaces a part of the `Signature` header, which must be there.
    #[track_caller]
    fn signature(self, from: &str, to: &str) -> Self {
        let signature = self.headers["signature"].to_str().expect("text").to_owned();
        assert!(signature.contains(from), "{from} is not in {signature}");
        self.with("signature", &signature.replace(from, to))
    }

    fn verify(&self) -> Result<Verified, Rejected> {
        self.verify_at(now())
    }

    fn verify_at(&self, now: SystemTime) -> Result<Verified, Rejected> {
        let message = Message { method: &self.method, target: &self.target, headers: &self.headers };
        verifier().verify(&message, &self.body, now)
    }
}

/// The moment of the golden vectors.
fn now() -> SystemTime {
    httpdate::parse_http_date("Tue, 20 Apr 2021 02:07:55 GMT").expect("a date")
}

const GET: &str = "get-accounts";
const POST: &str = "post-payment-request";

#[test]
fn the_golden_requests_verify() {
    assert_eq!(
        Request::golden(GET).verify().expect("verified").covered,
        ["(request-target)", "host", "date", "x-request-id"]
    );
    let covered = ["(request-target)", "host", "date", "x-request-id", "digest", "content-type"];
    assert_eq!(Request::golden(POST).verify().expect("verified").covered, covered);
}

#[test]
fn parameters_may_come_in_any_order_bare_and_with_spaces() {
    let signature = Request::golden(GET).headers["signature"].to_str().expect("text").to_owned();
    let read = parameters(&signature).expect("parameters");
    let shuffled = format!(
        "headers=\"{}\" , keyId={},unknown=x, signature=\"{}\",algorithm=\"rsa-sha256\"",
        read["headers"], read["keyId"], read["signature"]
    );
    Request::golden(GET).with("signature", &shuffled).verify().expect("verified");
}

#[test]
fn every_fault_has_a_reason_of_its_own() {
    let name = HeaderName::from_static;
    let get = || Request::golden(GET);
    let post = || Request::golden(POST);
    let of = |request: Request| request.verify().expect_err("refused");
    assert_eq!(of(get().without("signature")), Rejected::Missing(name("signature")));
    assert_eq!(of(get().and("signature", "x=y")), Rejected::Repeated(name("signature")));
    assert!(matches!(of(get().with("signature", "\u{e9}=1")), Rejected::NotText(_)));
    assert!(matches!(of(get().with("signature", "keyId")), Rejected::Malformed(_)));
    assert!(matches!(of(get().with("signature", "keyId=\"open")), Rejected::Malformed(_)));
    assert!(matches!(of(get().with("signature", "keyId=\"a\" b=c")), Rejected::Malformed(_)));
    assert_eq!(of(get().signature("keyId=", "keyId=\"a\",keyId=")), Rejected::RepeatedParameter("keyId".into()));
    let told = parameters("a\nb=1,a\nb=2").expect_err("twice").to_string();
    assert_eq!(told, r#"the Signature header has the parameter "a\nb" twice"#, "in one line");
    assert_eq!(of(get().signature("keyId=", "key=")), Rejected::NoParameter("keyId"));
    assert_eq!(of(get().signature("headers=", "header=")), Rejected::NoParameter("headers"));
    assert_eq!(
        of(get().signature("13de5285", "23de5285")),
        Rejected::UnknownKey("23de5285bb0998a4bfb6a60e7fc05109f7db17d5".into())
    );
    assert!(matches!(of(get().signature("rsa-sha256", "hs2019")), Rejected::Algorithm { .. }));
    assert_eq!(of(get().signature("(request-target) host date x-request-id", "")), Rejected::EmptyList);
    assert!(matches!(of(get().signature("host date", "host  date")), Rejected::NotAName(_)));
    for left_out in ["(request-target) ", "host ", "date ", " x-request-id"] {
        assert_eq!(
            of(get().signature(left_out, "")),
            Rejected::NotCovered(match left_out.trim() {
                "(request-target)" => "(request-target)",
                "host" => "host",
                "date" => "date",
                _ => "x-request-id",
            })
        );
    }
    assert_eq!(of(post().signature(" digest", "")), Rejected::NotCovered("digest"));
    assert_eq!(of(post().signature(" content-type", "")), Rejected::NotCovered("content-type"));
    assert_eq!(
        of(get().with("authorization", "Bearer a").signature("host", "authorization host")),
        Rejected::SignsAuthorization
    );
    assert_eq!(of(get().signature("host date", "host date psu-id")), Rejected::Unsent(name("psu-id")));
    assert_eq!(of(get().without("host")), Rejected::Unsent(name("host")));
    assert_eq!(of(get().without("date")), Rejected::Missing(name("date")));
    assert_eq!(of(get().and("date", "Tue, 20 Apr 2021 02:07:55 GMT")), Rejected::Repeated(name("date")));
    assert_eq!(of(get().with("date", "yesterday")), Rejected::NotADate("yesterday".into()));
    assert_eq!(
        of(get().with("digest", "SHA-256=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")),
        Rejected::DigestWithoutBody
    );
    assert_eq!(of(post().without("digest")), Rejected::Missing(name("digest")));
    let mut other_body = post();
    other_body.body.push(b' ');
    assert!(matches!(of(other_body), Rejected::Digest { .. }));
    assert!(matches!(
        of(post().with("digest", "sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=")),
        Rejected::Digest { .. }
    ));
    assert_eq!(of(get().signature("signature=\"W", "signature=\"!")), Rejected::NotBase64);
    assert!(matches!(of(get().signature("signature=\"W", "signature=\"X")), Rejected::Signature { .. }));
}

#[test]
fn the_date_is_tolerated_for_five_minutes_either_way() {
    let request = Request::golden(GET);
    let seconds = Duration::from_secs;
    for tolerated in [now() + seconds(300), now() - seconds(300)] {
        request.verify_at(tolerated).expect("tolerated");
    }
    assert_eq!(request.verify_at(now() + seconds(301)), Err(Rejected::Stale { seconds: 301, tolerance: 300 }));
    assert_eq!(request.verify_at(now() - seconds(301)), Err(Rejected::Early { seconds: 301, tolerance: 300 }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_anywhere_in_what_is_signed_fails(post in any::<bool>(), part in 0_usize..7, at in any::<prop::sample::Index>(), bit in 0_u8..7) {
        let mut request = Request::golden(if post { POST } else { GET });
        let flip = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            let index = at.index(bytes.len());
            bytes[index] ^= 1 << bit;
            bytes
        };
        let part = if post { part } else { part.min(4) };
        match ["method", "target", "host", "date", "x-request-id", "digest", "content-type"][part] {
            "method" => {
                let Ok(method) = Method::from_bytes(&flip(request.method.as_str())) else { return Ok(()) };
                // The string holds the method in lower case: a flip of the case bit changes nothing that is signed.
                prop_assume!(!method.as_str().eq_ignore_ascii_case(request.method.as_str()));
                request.method = method;
            }
            "target" => request.target = String::from_utf8(flip(&request.target)).expect("ASCII"),
            name => {
                let Ok(value) = HeaderValue::from_bytes(&flip(request.headers[name].to_str().expect("text"))) else { return Ok(()) };
                request.headers.insert(HeaderName::from_static(name), value);
            }
        }
        // White space at the ends of a value is not part of it (section 2.3).
        let golden = Request::golden(if post { POST } else { GET });
        let same = |name: &str| request.headers.get(name).map(|value| value.as_bytes().trim_ascii()) == golden.headers.get(name).map(|value| value.as_bytes().trim_ascii());
        prop_assume!(request.method != golden.method || request.target != golden.target || !["host", "date", "x-request-id", "digest", "content-type"].iter().all(|name| same(name)));
        prop_assert!(request.verify().is_err());
    }

    #[test]
    fn nothing_in_a_signature_header_makes_the_reader_panic(value in "[ -~]{0,80}") {
        let _ = parameters(&value);
        prop_assert!(Request::golden(GET).with("signature", &value).verify().is_err());
    }
}
