//! The sandbox bank does everything wrong that it can: what a caller gets for each fault, and a soak in which all of
//! them come at random while what callers, log and metrics say is held against what the bank recorded.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sealproxy::sandbox::bank::faults::{Faults, Mishap};
use sealproxy::sandbox::bank::{Bank, DEMO_ACCOUNT, Settings};
use serde_json::Value;

use crate::support::{Answer, Rig, config, keep_alive, kit, next_answer};

const API: &str = "/sandbox/becm/stet-psd2-api/v2.1";

/// The sandbox bank on a thread of its own.
struct Sandbox {
    bank: Arc<Bank>,
    address: SocketAddr,
}

impl Sandbox {
    fn start(faults: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("bound");
        let settings = kit().bank(vec![format!("localhost:{}", address.port())]).expect("a kit");
        let bank = Arc::new(Bank::new(Settings { faults: parsed(faults), ..settings }).expect("a bank"));
        let serving = Arc::clone(&bank);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("it is non-blocking");
                serving.serve(listener, std::future::pending()).await;
            });
        });
        Self { bank, address }
    }

    /// A proxy in front of it, with these timeouts.
    fn rig(&self, timeouts: &str) -> Rig {
        self.rig_with("", timeouts)
    }

    fn rig_with(&self, more: &str, timeouts: &str) -> Rig {
        let top = format!("timeouts: {{ {timeouts} }}\n");
        Rig::start(&config(self.address, &format!("    pass: [x-sandbox-fault]\n{more}"), &top))
    }
}

impl Deref for Sandbox {
    type Target = Bank;

    fn deref(&self) -> &Bank {
        &self.bank
    }
}

/// `""` is no fault at all.
fn parsed(faults: &str) -> Faults {
    if faults.is_empty() { Faults::default() } else { faults.parse().expect("faults") }
}

fn headers(id: &str) -> String {
    format!("Content-Type: application/json\r\nAuthorization: Bearer demo\r\nX-Request-Id: {id}\r\n")
}

/// The length that the answer's head announces is there.
fn is_whole(answer: &Answer) -> bool {
    answer.header("content-length").is_some_and(|length| length == answer.body.len().to_string())
}

/// Pays once under this id and expects this of the answer, of the log, and of the bank. `problem` is empty where there
/// is none.
fn expect(sandbox: &Sandbox, rig: &Rig, id: &str, fault: &str, (status, problem, outcomes, received): Expected) {
    let header = if fault.is_empty() { String::new() } else { format!("X-Sandbox-Fault: {fault}\r\n") };
    let answer = rig.request("POST", &format!("{API}/payment-requests"), &(headers(id) + &header), "{\"a\":1}");
    assert_eq!(answer.status, status, "{id}: {answer:?}");
    let cut = problem == "upstream-cut";
    assert_eq!(is_whole(&answer), !cut, "{id}: {answer:?}");
    let told = answer.header("sealproxy-outcome");
    if problem.is_empty() || cut {
        assert_eq!(told, None, "{id}: the bank's own answer, {answer:?}");
    } else {
        assert!(problem.split('|').any(|problem| problem == answer.problem()), "{id}: {answer:?}");
        assert!(told.is_some_and(|told| outcomes.contains(&told)), "{id}: {answer:?}");
    }
    let line = line(rig, id);
    let logged = line["problem"].as_str().unwrap_or_default();
    assert!(problem.split('|').any(|problem| problem == logged), "{line}");
    assert!(outcomes.contains(&line["outcome"].as_str().expect("an outcome")), "{line}");
    assert_eq!(sandbox.received(id), received, "{id}");
}

/// Status, problem (one of several where a race decides, separated by `|`), outcomes, and how often the bank has read
/// the request whole.
type Expected = (u16, &'static str, &'static [&'static str], u32);

fn line(rig: &Rig, id: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let lines = rig.log.wait(0);
        if let Some(line) = lines.iter().find(|line| line["request_id"] == id) {
            return line.clone();
        }
        assert!(Instant::now() < deadline, "no line for {id}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// As the bank sends it, and not merely the end of the connection.
#[test]
fn the_alert_after_a_request_is_an_alert() {
    let sandbox = Sandbox::start("");
    let rig = sandbox.rig_with("", "response: 500ms");
    let fault = "X-Sandbox-Fault: alert-after-request\r\nAuthorization: Bearer demo\r\n";
    let answer = rig.request("GET", "/sandbox/becm/stet-psd2-api/v2.1/accounts", fault, "");
    assert_eq!((answer.status, &*answer.outcome()), (502, "unknown"), "{answer:?}");
    let line = rig.log.wait(1).pop().expect("a line");
    assert!(line["cause"].as_str().expect("a cause").contains("received fatal alert: BadRecordMac"), "{line}");
}

const CLEAN: Expected = (201, "", &["answered"], 1);

#[test]
fn what_a_caller_gets_for_each_fault_of_a_request() {
    let sandbox = Sandbox::start("");
    // Whoever comes before the connection is back waits for it: a second one would stay when the first is gone.
    let rig = sandbox.rig_with("    connections: 1\n", "response: 500ms, response_frame: 300ms");
    let table: [(&str, Expected); 25] = [
        ("reset-after-head", (502, "upstream-closed", &["unknown"], 0)),
        ("reset-in-body", (502, "upstream-closed", &["unknown"], 0)),
        ("early-answer", (503, "", &["answered"], 0)),
        ("reset-after-request", (502, "upstream-closed", &["unknown"], 1)),
        ("close-after-request", (502, "upstream-closed", &["unknown"], 1)),
        ("alert-after-request", (502, "upstream-closed", &["unknown"], 1)),
        ("silence:3s", (504, "upstream-timeout", &["unknown"], 1)),
        ("garbage", (502, "upstream-malformed", &["unknown"], 1)),
        ("half-head", (502, "upstream-closed-in-head", &["unknown"], 1)),
        ("half-head:close", (502, "upstream-closed-in-head", &["unknown"], 1)),
        ("half-answer", (201, "upstream-cut", &["answered"], 1)),
        ("half-answer:close", (201, "upstream-cut", &["answered"], 1)),
        ("long-length", (201, "upstream-cut", &["answered"], 1)),
        ("short-length", CLEAN),
        ("drip:1ms", CLEAN),
        ("delay:50ms", CLEAN),
        ("delay:2s", (504, "upstream-timeout", &["unknown"], 1)),
        ("refusal:429", (429, "", &["answered"], 1)),
        ("refusal:500", (500, "", &["answered"], 1)),
        ("refusal", (503, "", &["answered"], 1)),
        ("close-after-answer", CLEAN),
        ("close-after-answer:5ms", CLEAN),
        ("reset-after-answer", CLEAN),
        ("announced-close", CLEAN),
        ("reset-at-accept", (400, "", &["answered"], 1)),
    ];
    for (row, (fault, expected)) in table.into_iter().enumerate() {
        expect(&sandbox, &rig, &format!("{row}-{fault}").replace(':', "-"), fault, expected);
        if fault.contains("-after-answer") {
            // A request that meets such an end is lost, and its outcome unknown: that is not what is asked here.
            settled(&rig, &["sealproxy_upstream_connections"]);
        }
        // What is left of the connection does no harm to the next request.
        expect(&sandbox, &rig, &format!("{row}-next"), "", CLEAN);
    }
    assert_all_injected(&sandbox, |mishap| !mishap.befalls_connections());
}

#[test]
fn what_a_caller_gets_for_each_fault_of_a_connection() {
    let table: [(&str, Expected); 4] = [
        // The reset may overtake the proxy's look at its new connection.
        ("reset-at-accept", (502, "upstream-handshake-failed|upstream-unreachable|upstream-refused", &["not_sent"], 0)),
        ("reset-in-handshake", (502, "upstream-handshake-failed", &["not_sent"], 0)),
        ("alert-in-handshake", (502, "qwac-refused", &["not_sent"], 0)),
        // In TLS 1.3 the proxy has shaken hands first: the request may be on its way before the reset is.
        ("reset-after-handshake", (502, "upstream-closed|upstream-handshake-failed", &["not_sent", "unknown"], 0)),
    ];
    for (fault, expected) in table {
        let sandbox = Sandbox::start(&format!("{fault}=100%"));
        let rig = sandbox.rig("response: 5s");
        expect(&sandbox, &rig, fault, "", expected);
        sandbox.set_faults(Faults::default());
        expect(&sandbox, &rig, "next", "", CLEAN);
        assert_all_injected(&sandbox, |mishap| mishap.to_string() == fault);
    }
}

/// No fault is dead: each of these was injected at least once.
fn assert_all_injected(sandbox: &Sandbox, which: impl Fn(&Mishap) -> bool) {
    let name = |mishap: &Mishap| mishap.to_string().split(':').next().unwrap_or_default().to_owned();
    let injected: Vec<String> = sandbox.injected().keys().map(name).collect();
    let missing: Vec<_> = Mishap::all().filter(|mishap| which(mishap) && !injected.contains(&name(mishap))).collect();
    assert!(missing.is_empty(), "never injected: {missing:?}");
}

/// Requests in one run; `SEALPROXY_SOAK` asks for more, and also bounds the memory: then run it alone.
const REQUESTS: u64 = 2000;
const CALLERS: usize = 16;

/// Each fault with arguments that fit the timeouts of the soak, each befalling about one request in a hundred.
const FAULTS: &str = "\
    reset-at-accept=2%,reset-in-handshake=2%,alert-in-handshake=2%,reset-after-handshake=4%,\
    reset-after-head=1%,reset-in-body=1%,early-answer=1%,reset-after-request=1%,close-after-request=1%,\
    alert-after-request=1%,silence=0.3%:2s,garbage=1%,half-head=0.5%:reset,half-head=0.5%:close,\
    half-answer=0.5%:reset,half-answer=0.5%:close,long-length=0.5%,short-length=1%,drip=0.5%:1ms,delay=1%:20ms,\
    delay=0.3%:1500ms,refusal=0.5%:429,refusal=0.5%:500,refusal=0.5%:503,close-after-answer=2%:0ms,\
    close-after-answer=2%:2ms,close-after-answer=2%:10ms,reset-after-answer=2%,announced-close=1%,seed=7";

/// What a caller knows of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Answered,
    /// An answer from a bank that says it has not read the request.
    Early,
    /// The head of the bank's answer, and then visibly less than the whole.
    Cut,
    NotSent,
    Unknown,
}

impl Told {
    fn of(answer: &Answer) -> Self {
        match (answer.status, answer.header("sealproxy-outcome")) {
            (503, None) if answer.body.contains("before it has read the request") => Self::Early,
            (200 | 201 | 429 | 500 | 503, None) => Self::Answered,
            (502..=504, Some("not_sent")) => Self::NotSent,
            (502 | 504, Some("unknown")) => Self::Unknown,
            _ => panic!("{answer:?}"),
        }
    }

    fn outcome(self) -> &'static str {
        match self {
            Self::Answered | Self::Early | Self::Cut => "answered",
            Self::NotSent => "not_sent",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it agrees with how often the bank has read the request whole.
    fn agrees(self, received: u32) -> bool {
        match self {
            Self::Answered | Self::Cut => received == 1,
            Self::Early | Self::NotSent => received == 0,
            Self::Unknown => received <= 1,
        }
    }
}

/// The n-th request: payments, some of them large, and reads.
fn request(host: SocketAddr, number: u64, id: &str) -> String {
    let (method, path, body) = match number % 8 {
        0 => ("GET", "/accounts".to_owned(), String::new()),
        1 => ("GET", format!("/accounts/{DEMO_ACCOUNT}/transactions"), String::new()),
        2 if number % 32 == 2 => ("POST", "/payment-requests".to_owned(), padded(200 * 1024)),
        2 | 3 => ("POST", "/payment-requests".to_owned(), padded(5000)),
        _ => ("POST", "/payment-requests".to_owned(), padded(20)),
    };
    let (kind, length) = match body.len() {
        0 => ("", String::new()),
        length => ("Content-Type: application/json\r\n", format!("Content-Length: {length}\r\n")),
    };
    format!(
        "{method} {API}{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer demo\r\nX-Request-Id: {id}\r\n\
         {kind}{length}\r\n{body}"
    )
}

fn padded(length: usize) -> String {
    format!("{{\"remittanceInformation\":\"{}\"}}", "x".repeat(length))
}

/// Sends requests on kept-alive connections until none is left; returns each id with what the caller was told.
fn call(address: SocketAddr, next: &AtomicU64, count: u64) -> Vec<(String, Told)> {
    let mut told = Vec::new();
    let mut stream = None;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return told;
        }
        let mut reader = stream.take().unwrap_or_else(|| keep_alive(address));
        let id = format!("soak-{number}");
        reader.get_mut().write_all(request(address, number, &id).as_bytes()).expect("written");
        let Some(answer) = next_answer(&mut reader, &id) else {
            told.push((id, Told::Cut));
            continue;
        };
        assert_eq!(answer.header("sealproxy-request-id"), Some(&*id), "somebody else's answer");
        if answer.header("connection") != Some("close") {
            stream = Some(reader);
        }
        told.push((id, Told::of(&answer)));
    }
}

/// The sum of a family's values.
fn sum(metrics: &str, family: &str) -> u64 {
    let values = metrics
        .lines()
        .filter(|line| line.starts_with(&format!("{family}{{")) || line.starts_with(&format!("{family} ")));
    values.map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number") as u64).sum()
}

/// Waits until these gauges are 0; returns all metrics.
fn settled(rig: &Rig, gauges: &[&str]) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let metrics = rig.metrics();
        let open: Vec<_> = gauges.iter().filter(|family| sum(&metrics, family) > 0).collect();
        if open.is_empty() {
            return metrics;
        }
        assert!(Instant::now() < deadline, "{open:?} do not return to 0\n{metrics}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kilobytes that this process holds.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

#[test]
fn through_every_fault_at_random_what_is_said_agrees_with_what_the_bank_recorded() {
    let asked = std::env::var("SEALPROXY_SOAK").ok().map(|count| count.parse().expect("a number"));
    let count: u64 = asked.unwrap_or(REQUESTS);
    assert!(count < Bank::REMEMBERED as u64, "the bank does not remember as many ids");
    let sandbox = Sandbox::start(FAULTS);
    let rig = sandbox.rig("response: 1s, response_frame: 500ms");
    let (next, before, began) = (AtomicU64::new(0), resident(), Instant::now());
    let told: Vec<(String, Told)> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(|| call(rig.address(), &next, count))).collect();
        callers.into_iter().flat_map(|caller| caller.join().expect("no panic")).collect()
    });
    let took = began.elapsed();
    assert_eq!(told.len() as u64, count);

    let quiet = ["sealproxy_in_flight", "sealproxy_upstream_in_flight", "sealproxy_client_connections"];
    let metrics = settled(&rig, &quiet);
    let grown = resident().saturating_sub(before);
    assert_eq!(sum(&metrics, "sealproxy_requests_total"), count);
    assert_eq!(sum(&metrics, "sealproxy_log_dropped_lines_total"), 0);
    let open = sum(&metrics, "sealproxy_upstream_connections");
    assert!(open <= CALLERS as u64, "{open} connections to the bank are open");

    let lines = rig.log.wait(told.len());
    assert_eq!(lines.len(), told.len(), "one line an exchange");
    let lines: HashMap<&str, &Value> =
        lines.iter().map(|line| (line["request_id"].as_str().expect("an id"), line)).collect();
    let mut tally: BTreeMap<Told, u32> = BTreeMap::new();
    for (id, told) in &told {
        *tally.entry(*told).or_default() += 1;
        let received = sandbox.received(id);
        let line = lines[&**id];
        assert!(told.agrees(received), "{id} reached the bank {received} times, its caller was told {told:?}\n{line}");
        assert_eq!(line["outcome"], told.outcome(), "{line}");
        assert_eq!(line["problem"] == "upstream-cut", *told == Told::Cut, "{told:?} {line}");
    }
    eprintln!("{count} requests in {took:.1?}: {tally:?}; {open} connections to the bank, {grown} kB more than before");
    eprintln!(
        "{}",
        sandbox.injected().iter().map(|(mishap, times)| format!("{mishap} {times}")).collect::<Vec<_>>().join(", ")
    );
    assert_all_injected(&sandbox, |_| true);
    // Among that is what this test collects: log, ids, and the bank's memory.
    let bound = 64 * 1024 + 2 * count;
    assert!(asked.is_none() || grown < bound, "{grown} kB more than before, {bound} kB at most");

    sandbox.set_faults(Faults::default());
    for number in 0..CALLERS {
        expect(&sandbox, &rig, &format!("clean-{number}"), "", CLEAN);
    }
}
