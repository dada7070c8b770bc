//! What the benches of a seal work on: the published example of the bank, and its key.

use std::path::{Path, PathBuf};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request};
use sealproxy::identity::Credential;
use sealproxy::identity::certificate::Certificate;
use sealproxy::identity::pem;
use sealproxy::key::Key;
use sealproxy::seal::cavage::{Component, Message, signing_string};
use sealproxy::seal::dialect::{BECM, DigestAlgorithm};
use sealproxy::seal::digest::BodyDigest;
use sealproxy::seal::{Profile, Sealer};
use tokio::runtime::Runtime;

pub(crate) const TARGET: &str =
    "/becm/stet-psd2-api/v2.1/accounts/3dc3d5b3-7023-4848-9853-f5400a64e80f/transactions?page=2";

/// What is signed of a GET.
pub(crate) struct Signed {
    components: Vec<Component>,
    headers: HeaderMap,
}

impl Signed {
    pub(crate) fn new() -> Self {
        let components = ["(request-target)", "host", "date", "x-request-id"];
        let components = components.iter().map(|name| Component::parse(name).expect("a name")).collect();
        Self { components, headers: headers() }
    }

    pub(crate) fn string(&self) -> Vec<u8> {
        let message = Message { method: &Method::GET, target: TARGET, headers: &self.headers };
        signing_string(self.components.iter(), &message).expect("all there")
    }
}

/// The head of a GET, as it is before the seal.
pub(crate) fn head() -> Parts {
    let (mut head, ()) = Request::get(TARGET).body(()).expect("a request").into_parts();
    head.headers = headers();
    head
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("oauth2-apisi.e-i.com"));
    headers.insert("date", HeaderValue::from_static("Tue, 20 Apr 2021 02:07:55 GMT"));
    headers.insert("x-request-id", HeaderValue::from_static("123e4567-e89b-12d3-a456-426614174000"));
    headers
}

pub(crate) fn digest(body: &[u8]) -> HeaderValue {
    let mut digest = BodyDigest::new(DigestAlgorithm::Sha256);
    digest.update(body);
    digest.finish()
}

/// The same key per backend: ring's, and the default's, which may be ring's too.
pub(crate) fn keys() -> [Key; 2] {
    let der = pem::read_key(&vectors().join("becm-qsealc.key")).expect("a key");
    [Key::with_ring(&der).expect("RSA"), Key::from_der(&der).expect("RSA")]
}

pub(crate) fn sealer(key: Key, runtime: &Runtime) -> Sealer {
    let chain = pem::read_chain(&vectors().join("becm-qsealc.pem")).expect("a chain");
    let certificate = Certificate::from_der(chain[0].clone()).expect("a certificate");
    let credential = runtime.block_on(Credential::new(certificate, key)).expect("a pair");
    let profile = Profile { dialect: &BECM, key_id: None, key_id_quoted: None, sign: Vec::new() };
    Sealer::new(&profile, &credential).expect("RSA has a label")
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}
