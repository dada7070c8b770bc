//! `Signature` headers: whatever one says, only the golden signature over the golden components of the golden request
//! verifies. In the input, `$` stands for the golden signature's base64, so that a mutation seldom destroys it.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use http::header::{CONTENT_TYPE, DATE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use sealproxy::identity::certificate::Certificate;
use sealproxy::identity::pem;
use sealproxy::seal::cavage::Message;
use sealproxy::seal::dialect::BECM;
use sealproxy::seal::verify::{Rejected, Verifier, parameters};
use sealproxy::seal::{DIGEST, SIGNATURE};
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        read(text);
    }
    for golden in &GOLDEN.requests {
        let value = bytes.split(|byte| *byte == b'$').collect::<Vec<_>>().join(golden.signature.as_bytes());
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            golden.judge(&value);
        }
    }
});

/// What is read has the size of what was written, and reads the same when it is written with quotes.
fn read(text: &str) {
    let parameters = match parameters(text) {
        Ok(parameters) => parameters,
        Err(rejected) => return is_brief(&rejected),
    };
    let size: usize = parameters.iter().map(|(name, value)| name.len() + value.len() + 1).sum();
    assert!(size <= text.len(), "more is read than was written");
    let quoted = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
    let written: Vec<String> =
        parameters.iter().map(|(name, value)| format!("{name} = \"{}\"", quoted(value))).collect();
    assert_eq!(sealproxy::seal::verify::parameters(&written.join(" , ")), Ok(parameters), "quotes change the value");
}

fn is_brief(rejected: &Rejected) {
    let text = rejected.to_string();
    assert!(!text.is_empty() && !text.contains('\n') && text.len() < 1000, "not a reason in one line: {text}");
}

/// A request of `tests/vectors/becm.json`, as a bank receives it.
struct Golden {
    method: Method,
    target: String,
    headers: HeaderMap,
    body: String,
    signature: String,
    covered: Vec<String>,
}

impl Golden {
    fn judge(&self, value: &HeaderValue) {
        let mut headers = self.headers.clone();
        headers.insert(SIGNATURE, value.clone());
        let genuine = self.verify(&self.target, &headers, &self.body);
        if let Ok(covered) = genuine {
            let text = value.to_str().expect("what verifies is text");
            assert_eq!(covered, self.covered, "other components verify");
            assert!(text.replace('\\', "").contains(&self.signature), "another signature verifies");
            assert!(text.replace('\\', "").contains(&GOLDEN.key_id), "another key verifies");
        }
        // Under another target, another body or a second header of the name nothing verifies, whatever the header says.
        assert!(self.verify("/other", &headers, &self.body).is_err(), "another target verifies");
        assert!(self.verify(&self.target, &headers, "another").is_err(), "another body verifies");
        headers.append(SIGNATURE, value.clone());
        assert!(self.verify(&self.target, &headers, &self.body).is_err(), "two signatures verify");
    }

    fn verify(&self, target: &str, headers: &HeaderMap, body: &str) -> Result<Vec<String>, Rejected> {
        let message = Message { method: &self.method, target, headers };
        let verified = GOLDEN.verifier.verify(&message, body.as_bytes(), GOLDEN.now + Duration::from_secs(1));
        verified.inspect_err(|rejected| assert!(!rejected.to_string().is_empty())).map(|verified| verified.covered)
    }
}

struct Vectors {
    verifier: Verifier,
    key_id: String,
    now: SystemTime,
    requests: Vec<Golden>,
}

static GOLDEN: LazyLock<Vectors> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let file = std::fs::read(folder.join("becm.json")).expect("the vectors");
    let vectors: Value = serde_json::from_slice(&file).expect("JSON");
    let chain = pem::read_chain(&folder.join("becm-qsealc.pem")).expect("a chain");
    let certificate = Certificate::from_der(chain[0].clone()).expect("a certificate");
    let key_id = vectors["key_id"].as_str().expect("text").to_owned();
    let cases = vectors["cases"].as_array().expect("cases");
    Vectors {
        verifier: Verifier::new(&BECM).register(&key_id, certificate),
        key_id,
        now: httpdate::parse_http_date(cases[0]["date"].as_str().expect("text")).expect("a date"),
        requests: cases.iter().map(golden).collect(),
    }
});

fn golden(case: &Value) -> Golden {
    let text = |name: &str| case[name].as_str().unwrap_or_default();
    let names = [
        (HOST, "host"),
        (DATE, "date"),
        (HeaderName::from_static("x-request-id"), "x_request_id"),
        (DIGEST, "digest"),
        (CONTENT_TYPE, "content_type"),
    ];
    let sent = names.into_iter().filter(|(_, member)| !case[member].is_null());
    let parameter = |name: &str| {
        let (_, after) = text("signature").split_once(&format!("{name}=\"")).expect("the parameter");
        after.split('"').next().expect("a value").to_owned()
    };
    Golden {
        method: text("method").parse().expect("a method"),
        target: text("target").to_owned(),
        headers: sent.map(|(name, member)| (name, text(member).parse().expect("a value"))).collect(),
        body: text("body").to_owned(),
        signature: parameter(",signature"),
        covered: parameter("headers").split(' ').map(str::to_owned).collect(),
    }
}
