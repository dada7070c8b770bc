//! Instructions of what a seal is made of, counted by valgrind: they hardly differ from run to run, so that a change of
//! a percent shows which no clock would tell.
//!
//! `cargo bench --bench instructions`. Needs valgrind, and `cargo install gungraun-runner` in the version that is named
//! when it is missing; without either it says that it is skipped. valgrind's CPU has no AVX-512 and no SHA extensions:
//! the digest and RSA take other ways through their libraries there than they do otherwise.

use std::process::{Command, Stdio};

#[path = "seal/subject.rs"]
mod subject;

/// The runner must be of the library's own version, which `Cargo.toml` pins.
const RUNNER: &str = "0.20.0";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let says = |word: &str| arguments.iter().any(|argument| argument == word);
    // The runner calls this program again for each of its benches; `cargo test --benches` must not measure.
    if !says("--gungraun-run") {
        if !says("--bench") {
            return;
        }
        if let Some(missing) = missing() {
            println!("SKIPPED: instructions are not counted, because {missing}");
            return;
        }
    }
    counted::run();
}

/// What is missing, and how to get it.
fn missing() -> Option<String> {
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").stderr(Stdio::null()).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    if version("valgrind").is_none() {
        return Some("valgrind is not installed".to_owned());
    }
    let install = format!("cargo install gungraun-runner --version {RUNNER} --locked");
    match version("gungraun-runner") {
        None => Some(format!("gungraun-runner is not installed: {install}")),
        Some(found) if !found.ends_with(RUNNER) => Some(format!("{found} is another version: {install}")),
        Some(_) => None,
    }
}

/// In a module of its own, because gungraun writes a `main` of its own, and more than our lints allow.
#[allow(unused_qualifications, missing_docs)]
mod counted {
    use std::hint::black_box;
    use std::time::{Duration, SystemTime};

    use gungraun::{library_benchmark, library_benchmark_group};
    use http::HeaderValue;
    use http::request::Parts;
    use sealproxy::key::Key;
    use sealproxy::seal::{Body, Patience, Sealer};
    use tokio::runtime::Runtime;

    use super::subject::{self, Signed};

    pub(super) fn run() {
        main();
    }

    #[library_benchmark(setup = Signed::new)]
    #[bench::get()]
    fn signing_string(signed: Signed) -> (Signed, Vec<u8>) {
        let string = black_box(&signed).string();
        (signed, string)
    }

    #[library_benchmark(setup = bytes)]
    #[bench::of_1_kib(1024)]
    #[bench::of_100_kib(100 * 1024)]
    fn digest(body: Vec<u8>) -> (Vec<u8>, HeaderValue) {
        let digest = subject::digest(black_box(&body));
        (body, digest)
    }

    fn bytes(size: usize) -> Vec<u8> {
        vec![b'x'; size]
    }

    #[library_benchmark(setup = ready)]
    #[bench::by_ring(subject::with_ring())]
    #[bench::by_default(subject::key())]
    fn seal(mut ready: Ready) -> Ready {
        let body = Body { digest: &ready.nothing, present: false };
        let sealed =
            ready.runtime.block_on(ready.sealer.seal(&mut ready.head, body, ready.patience, || SystemTime::UNIX_EPOCH));
        sealed.expect("sealed");
        ready
    }

    /// What a seal needs, with the key's first use behind it: aws-lc gathers entropy then.
    struct Ready {
        runtime: Runtime,
        sealer: Sealer,
        head: Parts,
        nothing: HeaderValue,
        patience: Patience,
    }

    fn ready(key: Key) -> Ready {
        let runtime = subject::runtime();
        let sealer = subject::sealer(key, &runtime);
        let nothing = sealer.digest().finish();
        let patience = Patience::of(Duration::from_secs(2));
        Ready { runtime, sealer, head: subject::head(), nothing, patience }
    }

    library_benchmark_group!(name = parts, benchmarks = [signing_string, digest, seal]);

    gungraun::main!(library_benchmark_groups = parts);
}
