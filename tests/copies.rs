//! What a sealed request allocates: the real app in this process, the sandbox bank in another. Counted is the reactor's
//! thread alone, once everything is warm; what C libraries allocate (the RSA signature) is not.
//!
//! The limits stand close to the measured figures, so that nothing grows unnoticed: raise one with its reason. A copy
//! of a body into memory of its own shows as bytes allocated; one into memory that is kept from request to request does
//! not: `src/proxy/copies.rs` counts either.

// A global allocator cannot be had without. It hands every call on to the system's.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use sealproxy::app::{App, Signal};
use sealproxy::config::Config;
use sealproxy::log::Log;
use sealproxy::proxy::listener::Address;
use sealproxy::sandbox::bank::DEMO_ACCOUNT;

/// Per request: allocations and reallocations, and the bytes that they asked for.
struct Limit {
    name: &'static str,
    allocations: f64,
    bytes: f64,
}

const GET: Limit = Limit { name: "GET", allocations: 31.5, bytes: 24_900.0 };
const POST_1K: Limit = Limit { name: "POST of 1 KiB", allocations: 39.5, bytes: 26_800.0 };
const POST_100K: Limit = Limit { name: "POST of 100 KiB", allocations: 61.5, bytes: 236_500.0 };
// 43.0 and 194,972 where TLS records come whole; those that come in pieces are put together in a buffer that grows,
// which on a busy machine most do. A copy of the answer would be 102,400 bytes.
const GET_100K: Limit = Limit { name: "GET of 100 KiB", allocations: 50.0, bytes: 230e3 };
const EIGHT_GETS: Limit = Limit { name: "8 GETs at a time", allocations: 31.5, bytes: 24_900.0 };

/// What ring allocates for a signature beyond aws-lc, which has C's allocator for it.
const RING: (f64, f64) = if cfg!(feature = "aws-lc") { (0.0, 0.0) } else { (8.0, 1700.0) };

/// What it costs with the feature `batch` that a signature waits for others: alone, and as one of eight that are made
/// together.
const BATCH: [(f64, f64); 2] =
    if cfg!(feature = "batch") { [(5.0, 1000.0), (3.2, 500.0)] } else { [(0.0, 0.0), (0.0, 0.0)] };

/// Beforehand, so that buffers have their size and the connection its place.
const WARM_UP: usize = 64;
/// A multiple of what the channels' blocks hold (32).
const REQUESTS: usize = 64;
/// Of so many counts the one in the middle must keep to the limit: a body that a busy machine delivers in more pieces
/// takes more.
const ROUNDS: usize = 5;

/// How much of a limit is used at least: one far above what is measured guards nothing, and so does a count that misses
/// most.
const CLOSE: f64 = 0.75;

#[global_allocator]
static COUNTING: Counting = Counting;

/// The system's allocator, which counts what one thread asks it for.
struct Counting;

/// The thread that is counted; 0: none.
static WATCHED: AtomicI32 = AtomicI32::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

impl Counting {
    fn count(bytes: usize) {
        let watched = WATCHED.load(Ordering::Relaxed);
        if watched != 0 && rustix::thread::gettid().as_raw_pid() == watched {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
            BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}

// SAFETY: each call is the system allocator's own with the same arguments; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count(size.saturating_sub(layout.size()));
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[test]
fn a_sealed_request_allocates_no_more_than_is_known() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("copies-{}", uuid::Uuid::new_v4()));
    let bank = Bank::start(&folder);
    let (proxy, reactor) = serve(&folder.join("sealproxy.yaml"));
    let api = "/sandbox/becm/stet-psd2-api/v2.1";
    let (get, payments) = (format!("GET {api}/accounts"), format!("POST {api}/payment-requests"));
    let transactions = format!("GET {api}/accounts/{DEMO_ACCOUNT}/transactions?page_size=350");
    let mut off = Vec::new();
    for (limit, line, body, callers) in [
        (GET, &get, 0, 1),
        (POST_1K, &payments, 1024, 1),
        (POST_100K, &payments, 100 * 1024, 1),
        (GET_100K, &transactions, 0, 1),
        (EIGHT_GETS, &get, 0, 8),
    ] {
        let mut callers: Vec<_> = (0..callers).map(|_| Caller::connect(proxy, line, body)).collect();
        let warm_up = WARM_UP * callers.len();
        calls(&mut callers, warm_up);
        let rounds: Vec<_> = (0..ROUNDS).map(|_| count(reactor, || calls(&mut callers, REQUESTS))).collect();
        let (allocations, bytes) =
            (median(rounds.iter().map(|round| round.0)), median(rounds.iter().map(|round| round.1)));
        let batch = BATCH[usize::from(callers.len() == 8)];
        let most = (limit.allocations + RING.0 + batch.0, limit.bytes + RING.1 + batch.1);
        println!("{:<16} {allocations:>6.1} allocations, {bytes:>9.0} bytes", limit.name);
        let least = (CLOSE * most.0, CLOSE * most.1);
        if !(least.0..=most.0).contains(&allocations) || !(least.1..=most.1).contains(&bytes) {
            off.push(format!(
                "{}: {allocations:.1} allocations of {bytes:.0} bytes; the limits are {} and {}, and not far above",
                limit.name, most.0, most.1
            ));
        }
    }
    drop(bank);
    std::fs::remove_dir_all(&folder).expect("our own folder");
    assert!(off.is_empty(), "{off:#?}");
}

/// Allocations and bytes per request that `calls` has the thread make.
fn count(thread: i32, calls: impl FnOnce()) -> (f64, f64) {
    let now = || (ALLOCATIONS.load(Ordering::SeqCst), BYTES.load(Ordering::SeqCst));
    let before = now();
    WATCHED.store(thread, Ordering::SeqCst);
    calls();
    WATCHED.store(0, Ordering::SeqCst);
    let per_request = |after: u64, before: u64| (after - before) as f64 / REQUESTS as f64;
    (per_request(now().0, before.0), per_request(now().1, before.1))
}

fn median(counts: impl Iterator<Item = f64>) -> f64 {
    let mut counts: Vec<_> = counts.collect();
    counts.sort_by(f64::total_cmp);
    counts[counts.len() / 2]
}

/// So many requests in all, one of each caller at a time.
fn calls(callers: &mut [Caller], count: usize) {
    for _ in 0..count / callers.len() {
        callers.iter_mut().for_each(Caller::send);
        callers.iter_mut().for_each(Caller::receive);
    }
}

/// The sandbox bank as a process of its own.
struct Bank(Child);

impl Bank {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sealproxy"))
            .args(["sandbox", "--listen", "127.0.0.1:0", "--dir"])
            .arg(folder)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary of this build");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        // It says where its configuration is once that is written, and nothing after.
        while !line.starts_with("config ") {
            line.clear();
            assert!(lines.read_line(&mut line).expect("a line") > 0, "the bank ended before it listened");
        }
        Self(child)
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves until the process ends, on one reactor; returns where, and that reactor's thread.
fn serve(file: &Path) -> (SocketAddr, i32) {
    let yaml = std::fs::read_to_string(file).expect("the bank wrote it");
    std::fs::write(file, format!("threads: 1\n{yaml}")).expect("written");
    let (config, _) = Config::load(file).unwrap_or_else(|findings| panic!("{findings:?}"));
    let (ready, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (log, _writer) = Log::start(std::io::sink(), 100_000).expect("a thread");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let app = App::build(config, log, SystemTime::now()).await.unwrap_or_else(|found| panic!("{found:?}"));
            let bound = app.bind().await.unwrap_or_else(|findings| panic!("{findings:?}"));
            ready.send(bound.addresses().remove(0)).expect("the test waits");
            bound.serve(std::future::pending::<Signal>).await.expect("it serves");
        });
    });
    let Address::Tcp(address) = started.recv().expect("it starts") else { panic!("TCP was asked for") };
    (address, reactor())
}

/// The reactor's thread, by its name, as soon as it is there.
fn reactor() -> i32 {
    for _ in 0..1000 {
        for task in std::fs::read_dir("/proc/self/task").expect("Linux") {
            let task = task.expect("an entry");
            // A thread may end while it is looked at.
            if std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim_end() == "reactor-0") {
                return task.file_name().to_str().and_then(|id| id.parse().ok()).expect("a number");
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no reactor has started");
}

/// One connection, with the same request over and over.
struct Caller {
    stream: BufReader<TcpStream>,
    request: Vec<u8>,
    body: Vec<u8>,
}

impl Caller {
    fn connect(proxy: SocketAddr, line: &str, body: usize) -> Self {
        let stream = TcpStream::connect(proxy).expect("the proxy listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        let json = format!("{{\"a\":\"{}\"}}", "x".repeat(body.saturating_sub(8)));
        let rest = match body {
            0 => "\r\n".to_owned(),
            _ => format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}", json.len()),
        };
        let request = format!("{line} HTTP/1.1\r\nHost: {proxy}\r\nAuthorization: Bearer copies\r\n{rest}");
        Self { stream: BufReader::new(stream), request: request.into_bytes(), body: Vec::new() }
    }

    fn send(&mut self) {
        self.stream.get_mut().write_all(&self.request).expect("written");
    }

    fn receive(&mut self) {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let from = head.len();
            assert!(self.stream.read_line(&mut head).expect("a line") > 0, "closed after {head}");
            if let Some((name, value)) = head[from..].split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().expect("a length");
            }
        }
        assert!(head.starts_with("HTTP/1.1 2"), "{head}");
        self.body.resize(length, 0);
        self.stream.read_exact(&mut self.body).expect("a body");
    }
}
