//! The whole way: callers on loopback, the proxy and a sandbox bank as processes of their own.
//!
//! `cargo bench --bench forward`, or the same with `--profile dist` for the program as an image should hold it. Each
//! line has the CPU (user and system) of the proxy per request, beside the same without a seal (the floor) and the bare
//! cost of one signature and of one digest of the body at that moment; their sum is the limit, and the ratio to it is
//! what our own sealing costs beyond the cryptography. Behind the table stands what must not grow: with threads, open
//! connections and routes (`… -- table` or `… -- scale` prints one of the two).

use std::hint::black_box;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use sealproxy::identity::pem;
use sealproxy::key::{Key, Patience};
use sealproxy::seal::dialect::DigestAlgorithm;
use sealproxy::seal::digest::BodyDigest;

#[path = "forward/load.rs"]
mod load;
#[path = "forward/process.rs"]
mod process;
#[path = "forward/scale.rs"]
mod scale;

use load::{Load, Run};
use process::{Process, Setup, Workshop};

const CONNECTIONS: [usize; 4] = [1, 8, 32, 256];
/// Of one figure. Everything together is to end within minutes.
const TIME: Duration = Duration::from_secs(2);

/// A request that is sent over and over.
struct Case {
    name: &'static str,
    /// Method and target.
    line: String,
    body: usize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let says = |word: &str| arguments.iter().any(|argument| argument == word);
    // `cargo test --benches` and `cargo bench --no-run` must not measure.
    if !says("--bench") {
        return;
    }
    let workshop = Workshop::open();
    println!("CPU: {}", process::cpu_model());
    if !says("scale") {
        table(&workshop);
    }
    if !says("table") {
        scale::run(&workshop);
    }
}

fn table(workshop: &Workshop) {
    let sealed = workshop.proxy(&Setup::default());
    let plain = workshop.proxy(&Setup { sealed: false, ..Setup::default() });
    let signature = Signature::new(workshop);
    println!(
        "\nCPU per request in µs; the limit is the floor, one RSA-2048 signature ({}) and the digest\n",
        signature.backend()
    );
    println!(
        "| case     | connections | req/s |  CPU | floor | signature | digest | of the limit | p50 ms | p99 ms | RSS MiB |"
    );
    println!(
        "|----------|------------:|------:|-----:|------:|----------:|-------:|-------------:|-------:|-------:|--------:|"
    );
    for case in cases() {
        for connections in CONNECTIONS {
            let floor = measure(&plain, &case, connections);
            let (signature, digest) = (signature.cost(), digest_cost(case.body));
            let run = measure(&sealed, &case, connections);
            println!(
                "| {:<8} | {connections:>11} | {:>5.0} | {:>4.0} | {:>5.0} | {signature:>9.0} | {digest:>6.0} | {:>12.2} | {:>6.2} | {:>6.2} | {:>7.1} |",
                case.name,
                run.rate,
                run.cpu,
                floor.cpu,
                run.cpu / (floor.cpu + signature + digest),
                run.p50,
                run.p99,
                sealed.rss(),
            );
        }
    }
}

fn measure(proxy: &Process, case: &Case, connections: usize) -> Run {
    Load::new(case, connections).run(proxy, &proxy.tcp(), TIME)
}

fn cases() -> [Case; 4] {
    let payments = || format!("POST {}/payment-requests", load::API);
    let transactions = format!("{}/accounts/{}/transactions?page_size=350", load::API, load::ACCOUNT);
    [
        Case::get(),
        Case { name: "post1k", line: payments(), body: 1024 },
        Case { name: "post100k", line: payments(), body: 100 * 1024 },
        Case { name: "get100k", line: format!("GET {transactions}"), body: 0 },
    ]
}

impl Case {
    fn get() -> Self {
        Self { name: "get", line: format!("GET {}/accounts", load::API), body: 0 }
    }
}

/// The sandbox's QSealC key, which signs here and now.
struct Signature {
    key: Key,
    runtime: tokio::runtime::Runtime,
}

impl Signature {
    fn new(workshop: &Workshop) -> Self {
        let key = pem::read_key(&workshop.strict().join("qsealc.key")).expect("a key");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        // The limit is that of one at a time, whatever is built in.
        #[cfg(feature = "aws-lc")]
        let key = Key::with_aws_lc(&key).expect("RSA").expect("RSA");
        #[cfg(not(feature = "aws-lc"))]
        let key = Key::with_ring(&key).expect("RSA");
        let signature = Self { key, runtime };
        // Its first use gathers entropy.
        signature.sign();
        signature
    }

    fn backend(&self) -> &'static str {
        self.key.backend()
    }

    fn sign(&self) {
        let signed = self.runtime.block_on(async {
            let turn = self.key.turn(Patience::of(TIME)).await.expect("a turn");
            turn.sign(b"bench").await.map(drop)
        });
        signed.expect("a signature");
    }

    fn cost(&self) -> f64 {
        cost(|| self.sign())
    }
}

fn digest_cost(size: usize) -> f64 {
    let body = vec![b'x'; size];
    cost(|| {
        let mut digest = BodyDigest::new(DigestAlgorithm::Sha256);
        digest.update(black_box(&body));
        black_box(digest.finish());
    })
}

/// µs of this thread's CPU time.
fn cost(work: impl Fn()) -> f64 {
    let cpu = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("nanoseconds"))
    };
    let (began, before, mut count) = (Instant::now(), cpu(), 0);
    while began.elapsed() < TIME / 8 {
        work();
        count += 1;
    }
    (cpu() - before).as_secs_f64() * 1e6 / f64::from(count)
}
