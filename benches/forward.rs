//! End to end: callers, proxy and sandbox bank are three processes, so that the proxy's CPU can be told apart.
//!
//! `cargo bench --bench forward`. Prints per case: requests a second, CPU (user and system) of the proxy per request,
//! p50 and p99, and the proxy's memory; each sealed case beside the same without a seal, and the bare cost of one
//! signature in the same run.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sealproxy::identity::pem;
use sealproxy::key::Key;

const API: &str = "/sandbox/becm/stet-psd2-api/v2.1";
const CONNECTIONS: [usize; 3] = [1, 8, 32];
const REQUESTS: u64 = 4000;
/// Whatever a case does, it ends.
const PATIENCE: Duration = Duration::from_secs(30);

struct Case {
    name: &'static str,
    method: &'static str,
    target: String,
    body: usize,
}

fn main() {
    // `cargo test --benches` and `cargo bench --no-run` must not measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let folder = std::env::temp_dir().join(format!("sealproxy-bench-{}", std::process::id()));
    let (strict, lenient) = (Process::bank(&folder, "strict"), Process::bank(&folder, "lenient"));
    let (sealed, plain) = (Process::proxy(&folder, "strict"), Process::proxy(&folder, "lenient"));
    println!("CPU: {}", cpu_model());
    let (signature, backend) = signature_cost(&folder);
    println!("one RSA-2048 signature: {signature:.0} µs ({backend})");
    println!(
        "{:<10} {:>5} {:>9} {:>10} {:>12} {:>12} {:>8} {:>8} {:>8}",
        "case", "conns", "req/s", "CPU µs/req", "without seal", "the seal is", "p50 ms", "p99 ms", "RSS MiB"
    );
    for case in cases() {
        for connections in CONNECTIONS {
            let floor = measure(&plain, &case, connections);
            let run = measure(&sealed, &case, connections);
            println!(
                "{:<10} {connections:>5} {:>9.0} {:>10.0} {:>12.0} {:>11.0}% {:>8.2} {:>8.2} {:>8.1}",
                case.name,
                run.rate,
                run.cpu,
                floor.cpu,
                100.0 * (run.cpu - floor.cpu) / run.cpu,
                run.p50,
                run.p99,
                sealed.rss()
            );
        }
    }
    drop((sealed, plain, strict, lenient));
    std::fs::remove_dir_all(&folder).expect("our own folder");
}

fn cases() -> [Case; 4] {
    let payments = format!("{API}/payment-requests");
    [
        Case { name: "get", method: "GET", target: format!("{API}/accounts"), body: 0 },
        Case { name: "post1k", method: "POST", target: payments.clone(), body: 1024 },
        Case { name: "post100k", method: "POST", target: payments, body: 100 * 1024 },
        Case {
            name: "get100k",
            method: "GET",
            target: format!("{API}/accounts/{ACCOUNT}/transactions?page_size=350"),
            body: 0,
        },
    ]
}

/// One of the sandbox bank's accounts.
const ACCOUNT: &str = sealproxy::sandbox::bank::DEMO_ACCOUNT;

struct Run {
    rate: f64,
    /// µs per request.
    cpu: f64,
    /// Milliseconds.
    p50: f64,
    p99: f64,
}

fn measure(proxy: &Process, case: &Case, connections: usize) -> Run {
    let request = request(case, proxy.address);
    let left = AtomicU64::new(REQUESTS);
    let (began, cpu) = (Instant::now(), proxy.cpu());
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let callers: Vec<_> =
            (0..connections).map(|_| scope.spawn(|| call(proxy.address, &request, &left, began))).collect();
        callers.into_iter().flat_map(|caller| caller.join().expect("a caller")).collect()
    });
    let (took, cpu) = (began.elapsed().as_secs_f64(), proxy.cpu() - cpu);
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    let count = times.len() as f64;
    Run { rate: count / took, cpu: cpu.as_secs_f64() * 1e6 / count, p50: at(0.5), p99: at(0.99) }
}

fn request(case: &Case, proxy: SocketAddr) -> Vec<u8> {
    let body = "x".repeat(case.body);
    let body = if body.is_empty() { body } else { format!("{{\"a\":\"{}\"}}", &body[8.min(body.len())..]) };
    let length = if body.is_empty() {
        String::new()
    } else {
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
    };
    format!(
        "{} {} HTTP/1.1\r\nHost: {proxy}\r\nAuthorization: Bearer bench\r\n{length}\r\n{body}",
        case.method, case.target
    )
    .into_bytes()
}

/// One caller on one kept-alive connection.
fn call(proxy: SocketAddr, request: &[u8], left: &AtomicU64, began: Instant) -> Vec<Duration> {
    let mut reader = BufReader::with_capacity(128 * 1024, TcpStream::connect(proxy).expect("the proxy listens"));
    reader.get_ref().set_nodelay(true).expect("a socket");
    let mut times = Vec::new();
    let mut body = Vec::new();
    let take = |left: u64| left.checked_sub(1);
    while began.elapsed() < PATIENCE && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
        let sent = Instant::now();
        reader.get_mut().write_all(request).expect("written");
        read_answer(&mut reader, &mut body);
        times.push(sent.elapsed());
    }
    times
}

fn read_answer(reader: &mut BufReader<TcpStream>, body: &mut Vec<u8>) {
    let (mut line, mut length, mut status) = (String::new(), 0, String::new());
    loop {
        line.clear();
        assert!(reader.read_line(&mut line).expect("a line") > 0, "the proxy closed the connection");
        match line.trim_end() {
            "" => break,
            first if status.is_empty() => first.clone_into(&mut status),
            field => {
                if let Some((name, value)) = field.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse().expect("a length");
                }
            }
        }
    }
    body.resize(length, 0);
    reader.read_exact(body).expect("a body");
    assert!(status.starts_with("HTTP/1.1 2"), "{status}: {}", String::from_utf8_lossy(body));
}

/// A child process of ours, ended with its value.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    /// A bank of this name; the lenient one asks for no seal.
    fn bank(folder: &Path, name: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sealproxy"))
            .args(["sandbox", "--listen", "127.0.0.1:0", "--dir"])
            .arg(folder.join(name))
            .args((name == "lenient").then_some("--unsealed"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary of this build");
        let line = first_line(child.stdout.take().expect("piped"), "bank https://");
        Self { child, address: line.parse().expect("an address") }
    }

    /// A proxy on one thread in front of the bank of this name; before the lenient one it seals nothing.
    fn proxy(folder: &Path, name: &str) -> Self {
        let folder = folder.join(name);
        let file: PathBuf = folder.join("sealproxy.yaml");
        let yaml = std::fs::read_to_string(&file).expect("the bank wrote it");
        let unsealed = "/stet-psd2-api/, upstream: bank, seal: false, methods: [GET, POST] }";
        let yaml = if name == "lenient" { yaml.replace("/stet-psd2-api/, upstream: bank }", unsealed) } else { yaml };
        std::fs::write(&file, format!("threads: 1\n{yaml}")).expect("written");
        let log = std::fs::File::create(folder.join(format!("{name}.log"))).expect("a file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_sealproxy"))
            .arg("run")
            .arg("--config")
            .arg(file)
            .stdout(log)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary of this build");
        let line = first_line(child.stderr.take().expect("piped"), "proxy http://");
        Self { child, address: line.parse().expect("an address") }
    }

    /// User and system time so far.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
        // USER_HZ is 100 wherever Linux runs.
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory in MiB.
    fn rss(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("KiB") / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The word behind `mark` in the first line that has it. The rest is read on, so that nobody blocks writing.
fn first_line(output: impl std::io::Read + Send + 'static, mark: &str) -> String {
    let mut reader = BufReader::new(output);
    let mut line = String::new();
    while !line.contains(mark) {
        line.clear();
        assert!(reader.read_line(&mut line).expect("a line") > 0, "it ended before it listened");
    }
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let from = line.find(mark).expect("it is there") + mark.len();
    line[from..].split([' ', ';', ',', '\n']).next().expect("a word").to_owned()
}

/// µs, and whose.
fn signature_cost(folder: &Path) -> (f64, &'static str) {
    let key = Key::from_der(&pem::read_key(&folder.join("strict/qsealc.key")).expect("a key")).expect("RSA");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let sign =
        || runtime.block_on(async { key.turn().await.expect("a turn").sign(b"bench").await.expect("a signature") });
    (0..200).for_each(|_| drop(sign()));
    let began = Instant::now();
    (0..2000).for_each(|_| drop(sign()));
    (began.elapsed().as_secs_f64() * 1e6 / 2000.0, key.backend())
}

fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let ifma = if info.contains("avx512ifma") { "with AVX-512 IFMA" } else { "without AVX-512 IFMA" };
    format!("{}, {ifma}", model.unwrap_or("unknown"))
}
