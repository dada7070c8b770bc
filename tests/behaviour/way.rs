//! The way to the bank: its addresses, dead ones among them, and the company's proxy in between.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sealproxy::app::App;
use sealproxy::config::Config;
use sealproxy::log::Log;

use crate::outside::{free_port, present, wait_for, which};
use crate::support::{FakeBank, Lines, Rig, Running, config, folder, header, send};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
const PAYMENTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/payment-requests";
pub(crate) const ESTABLISHED: &str = "HTTP/1.1 200 Connection established\r\n\r\n";
/// `user:hunter2`, as RFC 7617 writes it.
const BASIC: &str = "Basic dXNlcjpodW50ZXIy";

/// An address that answers nothing for as long as this lives: its queue of connections is full.
struct Silent {
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Silent {
    /// `None` on a machine without this address.
    fn at(address: SocketAddr) -> Option<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let listener = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v6()?;
            socket.bind(address)?;
            socket.listen(0)?.into_std()
        });
        let listener = listener.ok()?;
        let mut queue = Vec::new();
        // Twice, because on a busy machine one may be late for which there is a place.
        for _ in 0..2 {
            while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
                queue.push(stream);
            }
        }
        Some(Self { _listener: listener, _queue: queue })
    }
}

/// The other address of `localhost`, which is tried first.
fn other_address(bank: SocketAddr) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::LOCALHOST, bank.port()))
}

#[test]
fn a_silent_address_costs_a_fraction_of_a_second_and_not_the_request() {
    let bank = FakeBank::good();
    let Some(_silent) = Silent::at(other_address(bank.address)) else {
        eprintln!("SKIPPED: this machine has no IPv6 loopback");
        return;
    };
    let rig = Rig::before(&bank);
    let began = Instant::now();
    assert_eq!(rig.get(ACCOUNTS).status, 200, "{}", rig.log.text());
    let took = began.elapsed();
    assert!((Duration::from_millis(250)..Duration::from_secs(2)).contains(&took), "{took:?}");
}

#[test]
fn an_address_that_refuses_costs_nothing_and_all_attempts_are_told() {
    let bank = FakeBank::good();
    let began = Instant::now();
    assert_eq!(Rig::before(&bank).get(ACCOUNTS).status, 200);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let nobody = free_port();
    let rig = Rig::start(&config(nobody, "", ""));
    assert_eq!(rig.get(ACCOUNTS).problem(), "upstream-refused");
    let line = rig.log.wait(1).remove(0);
    let cause = line["cause"].as_str().expect("a cause");
    for address in [other_address(nobody), nobody] {
        assert!(cause.contains(&format!("{address}: ")), "{cause}");
    }
}

#[test]
fn silent_addresses_alone_are_a_timeout() {
    let bank = free_port();
    let Some(_silent) = Silent::at(other_address(bank)) else {
        eprintln!("SKIPPED: this machine has no IPv6 loopback");
        return;
    };
    let yaml = config(bank, "", "timeouts: { connect: 400ms }\n").replace("https://localhost", "https://[::1]");
    let answer = Rig::start(&yaml).get(ACCOUNTS);
    assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (504, "upstream-connect-timeout", "not_sent"));
}

/// A company's proxy on raw sockets, one thread a connection. Answers each CONNECT with the same bytes, and is a tunnel
/// to the bank where they are [`ESTABLISHED`].
pub(crate) struct Egress {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Egress {
    pub(crate) fn saying(answer: &'static str) -> Self {
        Self::answering(move |_| answer)
    }

    fn answering(answer: impl Fn(&str) -> &'static str + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let egress = Self { address: listener.local_addr().expect("bound"), asked: Arc::default() };
        let (asked, answer) = (Arc::clone(&egress.asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
                // A tunnel ends as it ends; what was asked is what is judged.
                std::thread::spawn(move || stream.and_then(|stream| converse(stream, &asked, &*answer)));
            }
        });
        egress
    }

    /// The heads of all requests so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }

    /// The line of the configuration that leads here.
    pub(crate) fn via(&self) -> String {
        format!("    via: http://{}\n", self.address)
    }

    /// The same, with the credentials `user:hunter2` in a file.
    fn via_with_credentials(&self) -> String {
        let file = folder("egress").join("credentials");
        std::fs::write(&file, "user:hunter2\n").expect("a file");
        format!("    via: {{ url: \"http://{}\", credentials: {} }}\n", self.address, file.display())
    }
}

fn converse(
    mut stream: TcpStream,
    asked: &Mutex<Vec<String>>,
    answer: &dyn Fn(&str) -> &'static str,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    asked.lock().expect("no panic").push(head.clone());
    let answer = answer(&head);
    stream.write_all(answer.as_bytes())?;
    if answer == ESTABLISHED {
        let authority = head.split(' ').nth(1).unwrap_or_default().replace("localhost", "127.0.0.1");
        return splice(stream, TcpStream::connect(authority)?);
    }
    // Until the other side hangs up.
    std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
}

fn splice(mut caller: TcpStream, mut bank: TcpStream) -> std::io::Result<()> {
    let (mut from_caller, mut to_bank) = (caller.try_clone()?, bank.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_caller, &mut to_bank);
        to_bank.shutdown(Shutdown::Write)
    });
    let copied = std::io::copy(&mut bank, &mut caller).map(drop);
    copied.and(caller.shutdown(Shutdown::Write))
}

#[test]
fn a_company_proxy_leads_to_the_bank_and_sees_nothing_of_the_request() {
    let (bank, egress) = (FakeBank::good(), Egress::saying(ESTABLISHED));
    let rig = Rig::start(&config(bank.address, &egress.via(), ""));
    for _ in 0..2 {
        let answer = rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", "{}");
        assert_eq!((answer.status, &*answer.body), (200, "{}"), "{}", rig.log.text());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(bank.received()[0].header("signature").is_some());
    let authority = format!("localhost:{}", bank.address.port());
    let expected = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    assert_eq!(egress.asked(), [expected], "one tunnel, kept for both requests");
}

#[test]
fn credentials_reach_the_company_proxy_and_nobody_else() {
    let bank = FakeBank::good();
    let egress = Egress::answering(|head| match header(head, "proxy-authorization") {
        Some(BASIC) => ESTABLISHED,
        _ => "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
    });
    let rig = Rig::start(&config(bank.address, &egress.via_with_credentials(), ""));
    let answer = rig.get(ACCOUNTS);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(egress.asked()[0].contains(BASIC));
    rig.log.wait(1);
    let elsewhere = format!("{:?}{answer:?}{}{}", bank.only(), rig.log.text(), rig.metrics());
    for secret in ["hunter2", "dXNlcjpodW50ZXIy", "proxy-authorization", "Proxy-Authorization"] {
        assert!(!elsewhere.contains(secret), "{secret} in {elsewhere}");
    }
}

/// Expects this answer to a payment through a company's proxy, nothing sent, and a cause in the log.
#[track_caller]
fn fails_at(egress: &Egress, via: &str, (status, problem, cause): (u16, &str, &str)) {
    let bank = FakeBank::good();
    let rig = Rig::start(&config(bank.address, via, "timeouts: { via: 300ms }\n"));
    let answer = rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", "{}");
    let said = (answer.status, &*answer.problem(), &*answer.outcome());
    assert_eq!(said, (status, problem, "not_sent"), "{}", rig.log.text());
    let line = rig.log.wait(1).remove(0);
    assert!(line["cause"].as_str().is_some_and(|found| found.contains(cause)), "{cause}: {line}");
    let counted = format!("cause=\"{problem}\",upstream=\"bank\"}} 1");
    assert!(rig.metrics().contains(&counted), "{counted}");
    assert!(!format!("{answer:?}{line}").contains("hunter2"), "{line}");
    assert_eq!((bank.connections(), egress.asked().len()), (0, 1), "one attempt, and never around the proxy");
}

#[test]
fn a_company_proxy_that_asks_for_credentials() {
    let egress = Egress::saying("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 4\r\n\r\nwho?");
    fails_at(&egress, &egress.via(), (502, "via-authentication", "none are configured"));
}

#[test]
fn a_company_proxy_that_does_not_accept_our_credentials() {
    let egress = Egress::saying("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
    fails_at(&egress, &egress.via_with_credentials(), (502, "via-authentication", "does not accept our credentials"));
}

#[test]
fn a_company_proxy_that_opens_no_tunnel() {
    for (answer, status) in [
        ("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nsic!", "answered 502"),
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "answered 403"),
        ("HTTP/1.1 302 Found\r\nLocation: http://login.corp/\r\n\r\n", "answered 302"),
    ] {
        let egress = Egress::saying(answer);
        fails_at(&egress, &egress.via(), (502, "via-refused", status));
    }
}

#[test]
fn a_company_proxy_that_is_silent() {
    for answer in ["", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 Conn"] {
        let egress = Egress::saying(answer);
        fails_at(&egress, &egress.via(), (504, "via-timeout", "within 300ms"));
    }
}

#[test]
fn bytes_between_the_tunnel_and_tls_are_believed_by_nobody() {
    let egress = Egress::saying("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    fails_at(&egress, &egress.via(), (502, "via-malformed", "40 bytes follow the head"));
}

#[test]
fn a_company_proxy_that_speaks_no_http() {
    let egress = Egress::saying("SSH-2.0-OpenSSH_9.2\r\n");
    fails_at(&egress, &egress.via(), (502, "via-malformed", "not HTTP/1.1"));
}

#[test]
fn a_company_proxy_that_is_not_there() {
    let bank = FakeBank::good();
    let nobody = free_port();
    for (proxy, cause) in [(nobody.to_string(), "Connection refused"), ("egress.invalid:1".to_owned(), "resolve")] {
        let rig = Rig::start(&config(bank.address, &format!("    via: http://{proxy}\n"), ""));
        let answer = rig.get(ACCOUNTS);
        assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (502, "via-unreachable", "not_sent"));
        let line = rig.log.wait(1).remove(0);
        assert!(line["cause"].as_str().is_some_and(|found| found.contains(cause)), "{line}");
    }
    assert_eq!(bank.connections(), 0);
}

#[test]
fn a_private_address_is_legal_for_the_company_proxy_and_not_for_the_bank() {
    let egress = Egress::saying("HTTP/1.1 502 Bad Gateway\r\n\r\n");
    let with = |url: &str| {
        let yaml = config(SocketAddr::from(([127, 0, 0, 1], 443)), &egress.via(), "");
        yaml.replace("private: true", "private: false").replace("https://localhost:443", url)
    };
    // RFC 6598: shared within a provider's network.
    let findings = Config::parse(Path::new("f.yaml"), &with("https://100.64.0.1"), &|_| None).expect_err("refused");
    assert!(findings[0].to_string().contains("names an address within this machine or network"), "{findings:?}");
    assert_eq!(Rig::start(&with("https://bank.invalid")).get(ACCOUNTS).problem(), "via-refused");
    assert!(egress.asked()[0].starts_with("CONNECT bank.invalid:443 HTTP/1.1\r\n"));
}

/// What keeps this configuration from starting.
fn refusal(yaml: &str) -> String {
    let (config, _) = Config::parse(&folder("config").join("f.yaml"), yaml, &|_| None).expect("a legal text");
    let (log, writer) = Log::start(Lines::default(), 100).expect("a thread");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let built = runtime.block_on(App::build(config, log, std::time::SystemTime::now()));
    writer.close();
    match built {
        Err(findings) if findings.len() == 1 => findings[0].to_string(),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn credentials_that_cannot_be_used_are_found_at_start() {
    let egress = Egress::saying(ESTABLISHED);
    let via = egress.via_with_credentials();
    let file = via.split("credentials: ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a file");
    let yaml = config(egress.address, &via, "");
    std::fs::write(file, "hunter2").expect("a file");
    let told = refusal(&yaml);
    assert!(told.contains("upstreams.bank.via.credentials: ") && told.contains("not one line"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
    std::fs::remove_file(file).expect("it is there");
    assert!(refusal(&yaml).contains("cannot be read: No such file"));
}

#[test]
fn the_environment_s_proxy_variables_are_never_read() {
    let (bank, trap) = (FakeBank::good(), Egress::saying(ESTABLISHED));
    let (file, address) = (folder("environment").join("sealproxy.yaml"), free_port());
    let yaml = config(bank.address, "", "").replacen("127.0.0.1:0", &address.to_string(), 1);
    std::fs::write(&file, yaml).expect("a file");
    let names = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let proxy = format!("http://{}", trap.address);
    let _running = Running(
        Command::new(env!("CARGO_BIN_EXE_sealproxy"))
            .args(["run", "--config"])
            .arg(file)
            .envs(names.map(|name| (name, &*proxy)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts"),
    );
    wait_for(address);
    let request = format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    assert_eq!(send(address, request.as_bytes()).status, 200);
    assert_eq!((bank.connections(), trap.asked().len()), (1, 0));
}

/// tinyproxy, as Debian packages it, with one user and CONNECT to any port.
fn tinyproxy(address: SocketAddr) -> Running {
    let file = folder("tinyproxy").join("tinyproxy.conf");
    let port = address.port();
    let text = format!("Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 20\nBasicAuth user hunter2\n");
    std::fs::write(&file, text).expect("a file");
    let mut command = Command::new(which("tinyproxy").expect("tinyproxy is present"));
    let child = command.arg("-d").arg("-c").arg(file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let running = Running(child.expect("tinyproxy starts"));
    wait_for(address);
    running
}

#[test]
fn tinyproxy_is_the_company_proxy() {
    if !present(&["tinyproxy"]) {
        return;
    }
    let (bank, address) = (FakeBank::good(), free_port());
    let _running = tinyproxy(address);
    let egress = Egress { address, asked: Arc::default() };
    let rig = Rig::start(&config(bank.address, &egress.via_with_credentials(), ""));
    for _ in 0..2 {
        let answer = rig.request("POST", PAYMENTS, "Content-Type: application/json\r\n", "{}");
        assert_eq!(answer.status, 200, "{answer:?}\n{}", rig.log.text());
    }
    assert!(bank.received().iter().all(|request| request.header("signature").is_some()));
    let stranger = Rig::start(&config(bank.address, &egress.via(), ""));
    assert_eq!(stranger.get(ACCOUNTS).problem(), "via-authentication");
    let nobody = free_port();
    let dead_end = Rig::start(&config(nobody, &egress.via_with_credentials(), ""));
    assert_eq!(dead_end.get(ACCOUNTS).problem(), "via-refused");
}
