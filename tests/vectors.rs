//! Seals against vectors that OpenSSL made, byte for byte and for every key backend; and a second dialect through the
//! same renderer.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use rustls::pki_types::PrivateKeyDer;
use sealproxy::identity::Credential;
use sealproxy::identity::certificate::Certificate;
use sealproxy::identity::pem;
use sealproxy::key::{Key, Scheme};
use sealproxy::seal::dialect::{BECM, Covered, Dialect, DigestAlgorithm, DigestRule, KeyIdRule, When};
use sealproxy::seal::{Body, Error, Patience, Profile, Sealer, SetupError};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

fn credential(key: Key) -> Credential {
    let chain = pem::read_chain(&file("becm-qsealc.pem")).expect("a chain");
    run(Credential::new(Certificate::from_der(chain[0].clone()).expect("a certificate"), key)).expect("a pair")
}

/// The golden key in each backend that is built in, and as the proxy loads it.
fn credentials() -> Vec<Credential> {
    let der = golden();
    let mut keys = vec![Key::with_ring(&der).expect("RSA"), Key::from_der(&der).expect("RSA")];
    assert_eq!(keys[0].backend(), "ring");
    #[cfg(feature = "aws-lc")]
    {
        keys.push(Key::with_aws_lc(&der).expect("RSA").expect("RSA"));
        assert_eq!(keys[2].backend(), "aws-lc");
    }
    keys.into_iter().map(credential).collect()
}

fn golden() -> PrivateKeyDer<'static> {
    pem::read_key(&file("becm-qsealc.key")).expect("a key")
}

fn profile(dialect: &'static Dialect) -> Profile {
    Profile { dialect, key_id: None, key_id_quoted: None, sign: Vec::new() }
}

/// Seals; returns the head's headers.
fn seal(
    sealer: &Sealer,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
    date: &str,
) -> Result<HeaderMap, Error> {
    run(sealed(sealer, method, target, headers, body, date))
}

async fn sealed(
    sealer: &Sealer,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
    date: &str,
) -> Result<HeaderMap, Error> {
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (mut head, ()) = request.body(()).expect("a request").into_parts();
    let mut digest = sealer.digest();
    digest.update(body.unwrap_or_default().as_bytes());
    let digest = digest.finish();
    let clock: SystemTime = httpdate::parse_http_date(date).expect("a date");
    let body = Body { digest: &digest, present: body.is_some() };
    sealer.seal(&mut head, body, Patience::of(Duration::from_secs(2)), || clock).await?;
    Ok(head.headers)
}

#[test]
fn the_golden_vectors_byte_for_byte_with_every_backend() {
    let vectors = Vectors::read();
    for credential in credentials() {
        let sealer = Sealer::new(&profile(&BECM), &credential).expect("RSA has a label");
        assert_eq!(sealer.key_id(), vectors.0["key_id"]);
        for case in vectors.cases() {
            case.compare(&run(case.seal(&sealer)));
        }
    }
}

/// Where seals that come at a time are made together, as on a reactor: with the feature `batch` and a CPU that can.
#[test]
fn the_golden_vectors_byte_for_byte_from_two_to_seventeen_at_a_time() {
    let vectors = Vectors::read();
    sealproxy::key::gather_here();
    let key = Key::from_der(&golden()).expect("RSA");
    let (backend, alone) = (key.backend(), key.alone());
    assert!(alone.is_some() || backend == "batch", "{backend}");
    let sealer = Sealer::new(&profile(&BECM), &credential(key)).expect("RSA has a label");
    for count in [2, 4, 7, 8, 17] {
        let cases: Vec<Case<'_>> = vectors.cases().collect();
        let cases = || cases.iter().cycle().take(count);
        let sealed = run(join_all(cases().map(|case| case.seal(&sealer))));
        for (case, sealed) in cases().zip(&sealed) {
            case.compare(sealed);
        }
    }
    assert_eq!(made_together() > 0, alone.is_none(), "what was compared was made together");
}

/// How many calls made several seals.
fn made_together() -> u64 {
    let families = sealproxy::key::collectors().into_iter().flat_map(|collector| collector.collect());
    let calls = families.filter(|family| family.name() == "sealproxy_seal_batches_total");
    let counts: Vec<_> = calls.flat_map(|family| family.get_metric().to_vec()).collect();
    let several = counts.iter().filter(|count| count.get_label()[0].value() != "1");
    several.map(|count| count.get_counter().get_value() as u64).sum()
}

/// The published examples.
struct Vectors(Value);

impl Vectors {
    fn read() -> Self {
        let vectors = Self(serde_json::from_slice(&std::fs::read(file("becm.json")).expect("a file")).expect("JSON"));
        assert_eq!(vectors.cases().count(), 2);
        vectors
    }

    fn cases(&self) -> impl Iterator<Item = Case<'_>> {
        self.0["cases"].as_array().expect("cases").iter().map(Case)
    }
}

struct Case<'a>(&'a Value);

impl Case<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.0[name].as_str()
    }

    async fn seal(&self, sealer: &Sealer) -> HeaderMap {
        let mut headers = vec![
            ("host", self.text("host").expect("a host")),
            ("x-request-id", self.text("x_request_id").expect("an id")),
        ];
        headers.extend(self.text("content_type").map(|value| ("content-type", value)));
        let (method, target) = (self.text("method").expect("a method"), self.text("target").expect("a target"));
        let date = self.text("date").expect("a date");
        sealed(sealer, method, target, &headers, self.text("body"), date).await.expect("sealed")
    }

    fn compare(&self, sealed: &HeaderMap) {
        for name in ["signature", "digest", "date"] {
            let sealed = sealed.get(name).map(HeaderValue::as_bytes);
            assert_eq!(sealed, self.text(name).map(str::as_bytes), "{name} of {}", self.0["name"]);
        }
    }
}

/// NextGenPSD2 as adorsys' XS2A adapter speaks it.
const BERLIN_GROUP: Dialect = Dialect {
    name: "berlin-group",
    covered: &[
        Covered { name: "date", when: When::Always },
        Covered { name: "digest", when: When::Always },
        Covered { name: "psu-corporate-id", when: When::IfPresent },
        Covered { name: "psu-id", when: When::IfPresent },
        Covered { name: "tpp-redirect-uri", when: When::IfPresent },
        Covered { name: "x-request-id", when: When::Always },
    ],
    labels: &[(Scheme::RsaPkcs1Sha256, "SHA256withRSA")],
    digest: DigestRule { algorithm: DigestAlgorithm::Sha256, empty_body: true },
    key_id: KeyIdRule::SerialAndIssuer,
    key_id_quoted: true,
    separator: ",",
    certificate_header: Some("tpp-signature-certificate"),
};

#[test]
fn a_second_dialect_goes_through_the_same_renderer() {
    let date = "Tue, 20 Apr 2021 02:07:55 GMT";
    let id = "123e4567-e89b-12d3-a456-426614174000";
    for credential in credentials() {
        let sealer = Sealer::new(&profile(&BERLIN_GROUP), &credential).expect("RSA has a label");
        let headers = [("x-request-id", id), ("psu-id", "PSU-1234")];
        let sealed = seal(&sealer, "GET", "/v1/accounts", &headers, None, date).expect("sealed");
        let digest = "SHA-256=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(sealed["digest"], digest, "also of an empty body");
        let signature = sealed["signature"].to_str().expect("ASCII");
        let head = "keyId=\"SN=3fe6eb2b39bdab05d3ec135c5173f201fa4eab94,CA=CN=golden-qsealc,organizationIdentifier=PSDFR-ACPR-99999,O=Golden%20TPP,C=FR\",\
                    algorithm=\"SHA256withRSA\",headers=\"date digest psu-id x-request-id\",signature=\"";
        assert!(signature.starts_with(head), "{signature}");
        let certificate =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, credential.certificate().der());
        assert_eq!(sealed["tpp-signature-certificate"], certificate);
        let signed = format!("date: {date}\ndigest: {digest}\npsu-id: PSU-1234\nx-request-id: {id}");
        let bytes =
            signature.strip_prefix(head).and_then(|rest| rest.strip_suffix('"')).expect("one parameter is left");
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, bytes).expect("base64");
        credential.certificate().verify(signed.as_bytes(), &bytes, Scheme::RsaPkcs1Sha256).expect("verified");
    }
}

#[test]
fn a_head_without_what_must_be_signed_is_not_sealed() {
    for credential in credentials() {
        let sealer = Sealer::new(&profile(&BECM), &credential).expect("RSA has a label");
        let date = "Tue, 20 Apr 2021 02:07:55 GMT";
        for (headers, body) in [
            (vec![("host", "a")], None),
            (vec![("x-request-id", "a")], None),
            (vec![("host", "a"), ("x-request-id", "a")], Some("a body without a type")),
        ] {
            let sealed = seal(&sealer, "POST", "/", &headers, body, date);
            assert!(matches!(sealed, Err(Error::Absent(_))), "{headers:?}");
        }
    }
}

#[test]
fn a_key_that_the_bank_has_no_label_for_is_no_sealer() {
    const NO_RSA: Dialect = Dialect { labels: &[], ..BECM };
    for credential in credentials() {
        assert!(matches!(Sealer::new(&profile(&NO_RSA), &credential), Err(SetupError::NoLabel { .. })));
        let breaking = Profile { key_id: Some("a\",algorithm=\"none".into()), ..profile(&BECM) };
        assert!(matches!(Sealer::new(&breaking, &credential), Err(SetupError::KeyId { .. })));
    }
}

#[test]
fn repeated_headers_are_signed_joined_in_order() {
    for credential in credentials() {
        let further = Profile { sign: vec![HeaderName::from_static("psu-note")], ..profile(&BECM) };
        let sealer = Sealer::new(&further, &credential).expect("RSA has a label");
        let headers =
            [("host", "bank"), ("x-request-id", "id"), ("psu-note", " a "), ("psu-note", ""), ("psu-note", "b")];
        let date = "Tue, 20 Apr 2021 02:07:55 GMT";
        let sealed = seal(&sealer, Method::GET.as_str(), "/x", &headers, None, date).expect("sealed");
        let signature = sealed["signature"].to_str().expect("ASCII");
        let bytes = signature.rsplit("signature=\"").next().expect("a signature").trim_end_matches('"');
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, bytes).expect("base64");
        let signed = format!("(request-target): get /x\nhost: bank\ndate: {date}\nx-request-id: id\npsu-note: a, , b");
        credential.certificate().verify(signed.as_bytes(), &bytes, Scheme::RsaPkcs1Sha256).expect("verified");
    }
}

#[test]
fn no_date_leaves_that_has_grown_old_while_the_key_signed() {
    let second = httpdate::parse_http_date("Tue, 20 Apr 2021 02:07:55 GMT").expect("a date");
    let at = |milliseconds| second + Duration::from_millis(milliseconds);
    let [credential, ..] = &credentials()[..] else { panic!("one at least") };
    let sealer = Sealer::new(&profile(&BECM), credential).expect("RSA has a label");
    let digest = sealer.digest().finish();
    // What counts is the second that stands in `Date`, and not when in it the clock was read. What has grown old is
    // dated and signed once more, by itself: the clock is looked at twice or four times.
    for (looks, date) in [
        (&[0, 1800][..], Some(0)),
        (&[0, 1801, 1801, 1802], Some(1)),
        (&[999, 1800], Some(0)),
        (&[999, 1801, 1999, 2000], Some(1)),
        (&[0, 10_000, 10_000, 11_800], Some(10)),
        (&[999, 0], Some(0)),
        (&[0, 10_000, 10_000, 11_801], None),
    ] {
        let request = Request::get("/x").header("host", "h").header("x-request-id", "1").body(()).expect("a request");
        let (mut head, ()) = request.into_parts();
        let looked = Cell::new(0);
        let clock = || at(looks[looked.replace(looked.get() + 1)]);
        let body = Body { digest: &digest, present: false };
        let sealed = run(sealer.seal(&mut head, body, Patience::of(Duration::from_secs(2)), clock));
        assert_eq!(looked.get(), looks.len());
        assert_eq!(head.headers.contains_key("signature"), date.is_some());
        let Some(date) = date else {
            assert!(matches!(sealed, Err(Error::Stale(_))));
            continue;
        };
        sealed.expect("sealed");
        let date = httpdate::fmt_http_date(at(date * 1000));
        assert_eq!(head.headers["date"], date);
        let signature = head.headers["signature"].to_str().expect("ASCII");
        let signature = signature.rsplit("signature=\"").next().expect("a signature").trim_end_matches('"');
        let signature = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, signature).expect("base64");
        let signed = format!("(request-target): get /x\nhost: h\ndate: {date}\nx-request-id: 1");
        credential.certificate().verify(signed.as_bytes(), &signature, Scheme::RsaPkcs1Sha256).expect("verified");
    }
}
