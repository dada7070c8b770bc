//! What a seal is made of: the signing string, the digest by size, the seal as a whole per key backend.
//!
//! `cargo bench --bench seal`. The figures depend on the CPU: aws-lc's RSA is far ahead of ring's where there is
//! AVX-512 IFMA, and hardly elsewhere.

use std::hint::black_box;
use std::path::Path;
use std::time::SystemTime;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, Method, Request};
use sealproxy::identity::Credential;
use sealproxy::identity::certificate::Certificate;
use sealproxy::identity::pem;
use sealproxy::key::Key;
use sealproxy::seal::cavage::{Component, Message, signing_string};
use sealproxy::seal::dialect::{BECM, DigestAlgorithm};
use sealproxy::seal::digest::BodyDigest;
use sealproxy::seal::{Body, Profile, Sealer};

const TARGET: &str = "/becm/stet-psd2-api/v2.1/accounts/3dc3d5b3-7023-4848-9853-f5400a64e80f/transactions?page=2";

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("oauth2-apisi.e-i.com"));
    headers.insert("date", HeaderValue::from_static("Tue, 20 Apr 2021 02:07:55 GMT"));
    headers.insert("x-request-id", HeaderValue::from_static("123e4567-e89b-12d3-a456-426614174000"));
    headers
}

fn string(criterion: &mut Criterion) {
    let components: Vec<Component> = ["(request-target)", "host", "date", "x-request-id"]
        .iter()
        .map(|name| Component::parse(name).expect("a name"))
        .collect();
    let headers = headers();
    let message = Message { method: &Method::GET, target: TARGET, headers: &headers };
    criterion.bench_function("signing string, GET", |bencher| {
        bencher.iter(|| signing_string(black_box(&components).iter(), &message).expect("all there"));
    });
}

fn digest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("digest");
    for size in [0, 1024, 100 * 1024, 1024 * 1024] {
        let body = vec![b'x'; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size} bytes"), |bencher| {
            bencher.iter(|| {
                let mut digest = BodyDigest::new(DigestAlgorithm::Sha256);
                digest.update(black_box(&body));
                digest.finish()
            });
        });
    }
    group.finish();
}

fn seal(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let der = pem::read_key(&vectors.join("becm-qsealc.key")).expect("a key");
    let keys = [Key::with_ring(&der).expect("RSA"), Key::from_der(&der).expect("RSA")];
    let mut group = criterion.benchmark_group("seal, RSA-2048");
    for (index, key) in keys.into_iter().enumerate() {
        if index > 0 && key.backend() == "ring" {
            eprintln!("aws-lc is not built in: only ring is measured");
            continue;
        }
        let backend = key.backend();
        let chain = pem::read_chain(&vectors.join("becm-qsealc.pem")).expect("a chain");
        let certificate = Certificate::from_der(chain[0].clone()).expect("a certificate");
        let credential = runtime.block_on(Credential::new(certificate, key)).expect("a pair");
        let profile = Profile { dialect: &BECM, key_id: None, key_id_quoted: None, sign: Vec::new() };
        let sealer = Sealer::new(&profile, &credential).expect("RSA has a label");
        let nothing = sealer.digest().finish();
        let (mut head, ()) = Request::get(TARGET).body(()).expect("a request").into_parts();
        head.headers = headers();
        group.bench_function(backend, |bencher| {
            bencher.iter(|| {
                let body = Body { digest: &nothing, present: false };
                runtime.block_on(sealer.seal(black_box(&mut head), body, SystemTime::now)).expect("sealed");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, string, digest, seal);
criterion_main!(benches);
