//! What a seal is made of: the signing string, the digest by size, the seal as a whole per key backend and by how many
//! are made at a time.
//!
//! `cargo bench --bench seal`. The figures depend on the CPU: aws-lc's RSA is far ahead of ring's where there is
//! AVX-512 IFMA, and hardly elsewhere. `benches/instructions.rs` counts instructions of the same.

use std::hint::black_box;
use std::time::{Duration, SystemTime};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use sealproxy::seal::{Body, Patience};

#[path = "seal/subject.rs"]
mod subject;

use subject::Signed;

/// Keys in memory do not ask.
const LIMIT: Duration = Duration::from_secs(2);

fn string(criterion: &mut Criterion) {
    let signed = Signed::new();
    criterion.bench_function("signing string, GET", |bencher| {
        bencher.iter(|| black_box(&signed).string());
    });
}

fn digest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("digest");
    for size in [0, 1024, 100 * 1024, 8 * 1024 * 1024] {
        let body = vec![b'x'; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size} bytes"), |bencher| {
            bencher.iter(|| subject::digest(black_box(&body)));
        });
    }
    group.finish();
}

fn seal(criterion: &mut Criterion) {
    let runtime = subject::runtime();
    let mut group = criterion.benchmark_group("seal, RSA-2048");
    #[cfg(feature = "aws-lc")]
    let keys = [subject::with_ring(), subject::with_aws_lc()];
    #[cfg(not(feature = "aws-lc"))]
    let keys = [subject::with_ring()];
    for key in keys {
        let backend = key.backend();
        let sealer = subject::sealer(key, &runtime);
        let nothing = sealer.digest().finish();
        let mut head = subject::head();
        let patience = Patience::of(LIMIT);
        group.bench_function(backend, |bencher| {
            bencher.iter(|| {
                let body = Body { digest: &nothing, present: false };
                runtime.block_on(sealer.seal(black_box(&mut head), body, patience, SystemTime::now)).expect("sealed");
            });
        });
    }
    group.finish();
}

/// What comes in at a time on one reactor: made together with the feature `batch` and a CPU that can, one by one
/// otherwise.
fn at_a_time(criterion: &mut Criterion) {
    let runtime = subject::runtime();
    let key = subject::key();
    let mut group = criterion.benchmark_group(format!("seals at a time, RSA-2048, {}", key.backend()));
    let sealer = subject::sealer(key, &runtime);
    let nothing = sealer.digest().finish();
    sealproxy::key::gather_here();
    for count in [1, 2, 3, 4, 6, 8, 16, 32] {
        let patience = Patience::of(LIMIT);
        let mut heads: Vec<_> = (0..count).map(|_| subject::head()).collect();
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(count.to_string(), |bencher| {
            bencher.iter(|| {
                let body = || Body { digest: &nothing, present: false };
                let seals =
                    heads.iter_mut().map(|head| sealer.seal(black_box(head), body(), patience, SystemTime::now));
                let sealed = runtime.block_on(join_all(seals));
                assert!(sealed.iter().all(Result::is_ok));
            });
        });
    }
    group.finish();
}

/// The same of the signature alone, with the longer keys that there are.
#[cfg(feature = "aws-lc")]
fn longer_keys(criterion: &mut Criterion) {
    let runtime = subject::runtime();
    sealproxy::key::gather_here();
    for (bits, key) in subject::longer_keys() {
        let mut group = criterion.benchmark_group(format!("signatures at a time, RSA-{bits}, {}", key.backend()));
        for count in [1, 4, 8] {
            group.throughput(Throughput::Elements(count));
            group.bench_function(count.to_string(), |bencher| {
                bencher.iter(|| {
                    let sign =
                        |_| async { key.turn(Patience::of(LIMIT)).await.expect("a turn").sign(b"message").await };
                    let signed = runtime.block_on(join_all((0..count).map(sign)));
                    assert!(signed.iter().all(Result::is_ok));
                });
            });
        }
        group.finish();
    }
}

#[cfg(not(feature = "aws-lc"))]
fn longer_keys(_: &mut Criterion) {
    eprintln!("aws-lc is not built in: longer keys are not measured");
}

criterion_group!(benches, string, digest, seal, at_a_time, longer_keys);
criterion_main!(benches);
