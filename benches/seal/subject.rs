//! What the benches of a seal work on: the published example of the bank, and its key.

use std::path::{Path, PathBuf};

#[cfg(feature = "aws-lc")]
use aws_lc_rs::encoding::AsDer as _;
#[cfg(feature = "aws-lc")]
use aws_lc_rs::rsa::{KeyPair, KeySize};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request};
use rustls::pki_types::PrivateKeyDer;
#[cfg(feature = "aws-lc")]
use rustls::pki_types::PrivatePkcs8KeyDer;
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

/// The key as the proxy loads it.
pub(crate) fn key() -> Key {
    Key::from_der(&der()).expect("RSA")
}

/// The same key, signed with by ring.
pub(crate) fn with_ring() -> Key {
    Key::with_ring(&der()).expect("RSA")
}

/// The same key, signed with by aws-lc one at a time.
#[cfg(feature = "aws-lc")]
#[allow(dead_code, reason = "one of the two benches has no use for it")]
pub(crate) fn with_aws_lc() -> Key {
    Key::with_aws_lc(&der()).expect("RSA").expect("RSA")
}

/// New keys of 3072 and 4096 bits, as the proxy loads them.
#[cfg(feature = "aws-lc")]
#[allow(dead_code, reason = "one of the two benches has no use for it")]
pub(crate) fn longer_keys() -> Vec<(u32, Key)> {
    let sizes = [(3072, KeySize::Rsa3072), (4096, KeySize::Rsa4096)];
    let made = sizes.into_iter().map(|(bits, size)| {
        let pair = KeyPair::generate(size).expect("a key");
        let der = PrivatePkcs8KeyDer::from(pair.as_der().expect("PKCS#8").as_ref().to_vec());
        (bits, Key::from_der(&der.into()).expect("RSA"))
    });
    made.collect()
}

fn der() -> PrivateKeyDer<'static> {
    pem::read_key(&vectors().join("becm-qsealc.key")).expect("a key")
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
