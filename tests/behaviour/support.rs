//! The real app behind real sockets, a bank that speaks raw TLS and does as it is told, and a caller that sends raw
//! bytes.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sealproxy::app::{App, Ended, Signal};
use sealproxy::config::Config;
use sealproxy::identity::pem;
use sealproxy::log::Log;
use sealproxy::proxy::listener::Address;
use sealproxy::sandbox::kit::Kit;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use uuid::Uuid;

/// A folder of this run of the tests, below cargo's own for tests. Short, because sockets stand in some.
pub(crate) fn folder(name: &str) -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    static RUN: LazyLock<String> = LazyLock::new(|| Uuid::new_v4().simple().to_string()[..12].to_owned());
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{number}-{name}", *RUN));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    folder
}

/// Certificates that all tests of this process share.
pub(crate) fn kit() -> &'static Kit {
    static KIT: OnceLock<Kit> = OnceLock::new();
    KIT.get_or_init(|| Kit::open_or_make(&folder("kit"), SystemTime::now()).expect("a kit"))
}

/// A configuration for one bank at `bank`, sealed and unsealed routes. `more` is appended to the upstream, `top` at the
/// end.
pub(crate) fn config(bank: SocketAddr, more: &str, top: &str) -> String {
    on_token_if_asked(file_config(bank, more, top))
}

/// `SEALPROXY_TEST_TOKEN=seal` has the kit's seal key on a token, `both` the QWAC's too.
fn on_token_if_asked(yaml: String) -> String {
    let Some(asked) = std::env::var_os("SEALPROXY_TEST_TOKEN") else { return yaml };
    let files = match asked.to_str() {
        Some("seal") => &["qsealc.key"][..],
        Some("both") => &["qsealc.key", "qwac.key"],
        _ => panic!("SEALPROXY_TEST_TOKEN is seal or both, and not {}", asked.display()),
    };
    on_token(yaml, files)
}

#[cfg(feature = "pkcs11")]
fn on_token(yaml: String, files: &[&str]) -> String {
    files.iter().fold(yaml, |yaml, file| crate::token::softhsm::with_shared_key(&yaml, file))
}

#[cfg(not(feature = "pkcs11"))]
fn on_token(_: String, _: &[&str]) -> String {
    panic!("SEALPROXY_TEST_TOKEN needs the feature pkcs11")
}

/// The same, with its keys in files whatever the tests are run for.
pub(crate) fn file_config(bank: SocketAddr, more: &str, top: &str) -> String {
    let kit = |name: &str| kit().path(name).display().to_string();
    format!(
        "listen: [\"127.0.0.1:0\"]\nadmin: [\"127.0.0.1:0\"]\nthreads: 2\nidentities:\n  main:\n    \
         qwac: {{ certificate: {}, key: {} }}\n    qsealc: {{ certificate: {}, key: {} }}\nupstreams:\n  bank:\n    \
         url: https://localhost:{}\n    environment: sandbox\n    identity: main\n    profile: becm\n    \
         trust: {}\n    private: true\n{more}routes:\n  \
         - {{ path: /sandbox/becm/stet-psd2-api/, upstream: bank, methods: [GET, HEAD, POST, PUT, DELETE] }}\n  \
         - {{ path: /sandbox/becm/oauth2/token, upstream: bank, methods: [POST], seal: false }}\n{top}",
        kit("qwac.pem"),
        kit("qwac.key"),
        kit("qsealc.pem"),
        kit("qsealc.key"),
        bank.port(),
        kit("ca.pem"),
    )
}

/// The real app, served on a thread of its own.
pub(crate) struct Rig {
    pub(crate) proxy: Address,
    pub(crate) admin: SocketAddr,
    pub(crate) log: Lines,
    signal: UnboundedSender<Signal>,
    serving: Option<JoinHandle<Ended>>,
}

/// A child process that ends with its value.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Sends it a signal, named without its SIG.
    pub(crate) fn signal(&self, name: &str) {
        let killed = Command::new("kill").args([&format!("-{name}"), &self.0.id().to_string()]).status();
        assert!(killed.expect("kill").success());
    }

    /// Asks it to end without a linger; returns its exit code.
    pub(crate) fn terminate_at_once(&mut self) -> Option<i32> {
        self.signal("INT");
        self.0.wait().expect("it ends").code()
    }

    /// Asks it to end; returns its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.0.wait().expect("it ends").code()
    }
}

/// What the log's writer was given.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
    }

    /// Waits until `count` lines are there, and parses them.
    pub(crate) fn wait(&self, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let lines: Vec<Value> =
                self.text().lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(Instant::now() < deadline, "{count} log lines expected, got {lines:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Rig {
    /// Starts with this configuration.
    pub(crate) fn start(yaml: &str) -> Self {
        Self::start_with_file(yaml).0
    }

    /// The same, and where its configuration lies.
    pub(crate) fn start_with_file(yaml: &str) -> (Self, PathBuf) {
        let file = folder("config").join("sealproxy.yaml");
        std::fs::write(&file, yaml).expect("a file");
        (Self::start_file(&file), file)
    }

    pub(crate) fn start_file(file: &Path) -> Self {
        let (config, _) = Config::load(file).unwrap_or_else(|findings| panic!("{findings:?}"));
        let lines = Lines::default();
        let log_lines = lines.clone();
        let (signal, mut signals) = unbounded_channel();
        let (ready, started) = mpsc::channel();
        let serving = std::thread::spawn(move || {
            let (log, writer) = Log::start(log_lines, 100_000).expect("a thread");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let ended = runtime.block_on(async {
                let app =
                    App::build(config, log, SystemTime::now()).await.unwrap_or_else(|findings| panic!("{findings:?}"));
                let bound = app.bind().await.unwrap_or_else(|findings| panic!("{findings:?}"));
                ready.send((bound.addresses().remove(0), bound.admin_addresses().remove(0))).expect("the test waits");
                bound.serve(async || signals.recv().await.expect("the rig outlives it")).await.expect("it serves")
            });
            writer.close();
            ended
        });
        let (proxy, admin) = started.recv().expect("it starts");
        Self { proxy, admin, log: lines, signal, serving: Some(serving) }
    }

    /// In front of one bank, with the usual configuration.
    pub(crate) fn before(bank: &FakeBank) -> Self {
        Self::start(&config(bank.address, "", ""))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match &self.proxy {
            Address::Tcp(address) => *address,
            Address::Unix(path) => panic!("{} is not TCP", path.display()),
        }
    }

    /// Asks it to stop, as somebody who waits.
    pub(crate) fn signal(&self) {
        self.signal.send(Signal::Interrupt).expect("it still serves");
    }

    /// Asks it to stop, as somebody who has sent others here.
    pub(crate) fn terminate(&self) {
        self.signal.send(Signal::Terminate).expect("it still serves");
    }

    /// Asks it to read its configuration anew.
    pub(crate) fn reload(&self) {
        self.signal.send(Signal::Reload).expect("it still serves");
    }

    /// Waits until it has ended.
    pub(crate) fn ended(mut self) -> Ended {
        self.serving.take().expect("only once").join().expect("no panic")
    }

    pub(crate) fn send(&self, request: &str) -> Answer {
        send(self.address(), request.as_bytes())
    }

    /// `method target` with these header lines (each ended by CR LF) and body, as the only request of a connection.
    pub(crate) fn request(&self, method: &str, target: &str, headers: &str, body: &str) -> Answer {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let host = self.address();
        self.send(&format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}{length}\r\n{body}"
        ))
    }

    pub(crate) fn get(&self, target: &str) -> Answer {
        self.request("GET", target, "", "")
    }

    pub(crate) fn metrics(&self) -> String {
        self.page("/metrics").body
    }

    /// A page of the admin listener.
    pub(crate) fn page(&self, path: &str) -> Answer {
        page(self.admin, path)
    }
}

/// A page of an admin listener.
pub(crate) fn page(admin: SocketAddr, path: &str) -> Answer {
    send(admin, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            // Twice: the second ends the drain.
            let _ = self.signal.send(Signal::Interrupt);
            let _ = self.signal.send(Signal::Interrupt);
            let _ = serving.join();
        }
    }
}

/// An answer as a caller sees it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(raw: &[u8]) -> Self {
        let raw = String::from_utf8_lossy(raw).into_owned();
        let (head, body) = raw.split_once("\r\n\r\n").unwrap_or((&raw, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// A header's value, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The last part of a problem's `type`.
    pub(crate) fn problem(&self) -> String {
        let document: Value = serde_json::from_str(&self.body).unwrap_or(Value::Null);
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!(document["request_id"].as_str(), self.header("sealproxy-request-id"), "{self:?}");
        assert!(self.header("proxy-status").is_some_and(|status| status.starts_with("sealproxy;")), "{self:?}");
        assert_eq!(document["status"], self.status, "{self:?}");
        document["type"].as_str().expect("a type").rsplit(':').next().expect("a last part").to_owned()
    }

    pub(crate) fn outcome(&self) -> String {
        let document: Value = serde_json::from_str(&self.body).unwrap_or(Value::Null);
        document["outcome"].as_str().unwrap_or_default().to_owned()
    }
}

/// A header's value in a raw head, by its name in lower case.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// A connection for several requests.
pub(crate) fn keep_alive(address: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(address).expect("the proxy listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    BufReader::new(stream)
}

/// The answer to request `id` on a connection that stays; `None` where the connection ends before its body is whole.
pub(crate) fn next_answer(reader: &mut BufReader<TcpStream>, id: &str) -> Option<Answer> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let read = reader.read_line(&mut head);
        // HTTP libraries send again after an empty close.
        let has_more = read.as_ref().is_ok_and(|read| *read > 0);
        assert!(has_more, "{id}: never an empty close, and never half a head: {read:?} {head}");
    }
    let mut answer = Answer::parse(head.as_bytes());
    let length = answer.header("content-length").expect("a length").parse().expect("a number");
    let mut body = vec![0; length];
    match reader.read_exact(&mut body) {
        Ok(()) => answer.body = String::from_utf8_lossy(&body).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("{id}: no end: {head}"),
        Err(_) => return None,
    }
    Some(answer)
}

/// Sends raw bytes on a connection of their own and reads until the other side closes.
pub(crate) fn send(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).expect("the proxy listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    // The proxy may answer and close before it has read all: that is what some tests are about.
    let _ = stream.write_all(request);
    let mut raw = Vec::new();
    let _ = stream.read_to_end(&mut raw);
    Answer::parse(&raw)
}

/// A request as the bank's TLS stack delivered it.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// When its last byte was there.
    pub(crate) at: SystemTime,
    /// When its connection came in.
    pub(crate) connected: SystemTime,
    /// The leaf of the client certificate, DER.
    pub(crate) client: Vec<u8>,
    /// Whether its TLS session was resumed.
    pub(crate) resumed: bool,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// All values of a header, in their order.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim_matches([' ', '\t']))
            .collect()
    }

    pub(crate) fn request_line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.map(|(name, _)| name.to_ascii_lowercase()).collect()
    }
}

/// What the bank does once it has a request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Answers and keeps the connection.
    Answer(Vec<u8>),
    /// Answers as far as this and closes cleanly, a moment later: another request may have come meanwhile.
    AnswerAndClose(Vec<u8>),
    /// The same in one write: the end is there as soon as the answer is.
    AnswerAndVanish(Vec<u8>),
    /// Answers as far as this and ends with a fatal alert, in one write.
    AnswerAndAlert(Vec<u8>),
    /// Answers as far as this and resets.
    AnswerAndReset(Vec<u8>),
    /// Answers, and closes cleanly after this time without another look.
    AnswerAndLeave(Duration, Vec<u8>),
    /// Waits, then answers.
    Wait(Duration, Vec<u8>),
}

/// Waits for it: a sleep that is long enough on one machine is too short on another.
#[track_caller]
pub(crate) fn until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether it comes out so in one of five tries: who is quicker may be the machine's affair, and what is broken does in
/// none.
#[track_caller]
pub(crate) fn meets<T: std::fmt::Debug>(mut tried: impl FnMut() -> T, is_so: impl Fn(&T) -> bool) {
    let missed: Vec<T> = (0..5).map(|_| tried()).take_while(|result| !is_so(result)).collect();
    assert!(missed.len() < 5, "{missed:?}");
    missed.iter().for_each(|missed| eprintln!("missed: {missed:?}"));
}

/// Where a bank waits until the test lets one pass, or drops its end.
pub(crate) fn gate() -> (mpsc::Sender<()>, impl Fn() + Send + Sync + 'static) {
    let (opens, waits) = mpsc::channel();
    let waits = Mutex::new(waits);
    let wait = move || {
        // The end of the test opens it as well.
        let _ = waits.lock().expect("no panic").recv();
    };
    (opens, wait)
}

pub(crate) fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

/// A bank on raw TLS with a mandatory client certificate, one thread a connection.
pub(crate) struct FakeBank {
    pub(crate) address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    connections: Arc<AtomicUsize>,
}

/// How a fake bank departs from a good one before HTTP begins.
#[derive(Clone)]
pub(crate) struct Manner {
    /// Before the handshake.
    pub(crate) pause: Duration,
    pub(crate) tls: Arc<ServerConfig>,
}

impl Manner {
    pub(crate) fn good() -> Self {
        Self {
            pause: Duration::ZERO,
            tls: tls(kit().path("bank.pem"), kit().path("bank.key"), &kit().path("ca.pem"), rustls::ALL_VERSIONS),
        }
    }
}

/// A server that presents this pair, demands a client certificate of `roots` and speaks these versions.
pub(crate) fn tls(
    chain: PathBuf,
    key: PathBuf,
    roots: &Path,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut store = rustls::RootCertStore::empty();
    store.add_parsable_certificates(pem::read_chain(roots).expect("roots"));
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider)).build();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_client_cert_verifier(verifier.expect("roots"))
        .with_single_cert(pem::read_chain(&chain).expect("a chain"), pem::read_key(&key).expect("a key"));
    let mut config = config.expect("a pair");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

impl FakeBank {
    /// A bank that answers every request with 200.
    pub(crate) fn good() -> Self {
        Self::doing(|_| Act::Answer(ok("{}")))
    }

    pub(crate) fn doing(act: impl Fn(&Received) -> Act + Send + Sync + 'static) -> Self {
        Self::with(Manner::good(), act)
    }

    pub(crate) fn with(manner: Manner, act: impl Fn(&Received) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let bank = Self {
            address: listener.local_addr().expect("bound"),
            received: Arc::default(),
            connections: Arc::default(),
        };
        let (received, connections) = (Arc::clone(&bank.received), Arc::clone(&bank.connections));
        let act = Arc::new(act);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                connections.fetch_add(1, Ordering::SeqCst);
                let (manner, act, received) = (manner.clone(), Arc::clone(&act), Arc::clone(&received));
                std::thread::spawn(move || {
                    std::thread::sleep(manner.pause);
                    // A connection ends as it ends; what was received is what is judged.
                    let _ = converse(stream, &manner, &*act, &received);
                });
            }
        });
        bank
    }

    /// All requests so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().expect("no panic").clone()
    }

    /// The only request.
    pub(crate) fn only(&self) -> Received {
        let received = self.received();
        assert_eq!(received.len(), 1, "{received:?}");
        received.into_iter().next().expect("one")
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn converse(
    socket: TcpStream,
    manner: &Manner,
    act: &(dyn Fn(&Received) -> Act + Send + Sync),
    received: &Mutex<Vec<Received>>,
) -> std::io::Result<()> {
    let connected = SystemTime::now();
    let session = ServerConnection::new(Arc::clone(&manner.tls)).expect("a session");
    let mut tls = StreamOwned::new(session, socket);
    let mut buffer = Vec::new();
    loop {
        let Some((head, body)) = read_request(&mut tls, &mut buffer)? else { return Ok(()) };
        let client = tls.conn.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.to_vec());
        let resumed = tls.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        let client = client.unwrap_or_default();
        let request = Received { head, body, at: SystemTime::now(), connected, client, resumed };
        received.lock().expect("no panic").push(request.clone());
        match act(&request) {
            Act::Answer(answer) => tls.write_all(&answer)?,
            Act::Wait(pause, answer) => {
                std::thread::sleep(pause);
                tls.write_all(&answer)?;
            }
            Act::AnswerAndLeave(pause, answer) => {
                tls.write_all(&answer)?;
                std::thread::sleep(pause);
                tls.conn.send_close_notify();
                tls.flush()?;
                return tls.sock.shutdown(Shutdown::Both);
            }
            Act::AnswerAndClose(answer) => {
                tls.write_all(&answer)?;
                tls.conn.send_close_notify();
                tls.flush()?;
                return tls.sock.shutdown(Shutdown::Write);
            }
            Act::AnswerAndAlert(answer) => {
                tls.conn.writer().write_all(&answer)?;
                // What no client sends: the session says so by an alert, behind what it has to send.
                tls.conn.read_tls(&mut &[22, 3, 3, 0, 1, 99][..])?;
                tls.conn.process_new_packets().expect_err("no record of TLS");
                let mut both = Vec::new();
                while tls.conn.wants_write() {
                    tls.conn.write_tls(&mut both)?;
                }
                tls.sock.write_all(&both)?;
                return tls.sock.shutdown(Shutdown::Write);
            }
            Act::AnswerAndVanish(answer) => {
                tls.conn.writer().write_all(&answer)?;
                tls.conn.send_close_notify();
                tls.flush()?;
                return tls.sock.shutdown(Shutdown::Write);
            }
            Act::AnswerAndReset(answer) => {
                tls.write_all(&answer)?;
                tls.flush()?;
                std::thread::sleep(Duration::from_millis(50));
                return reset(&tls.sock);
            }
        }
    }
}

/// Closes with RST instead of FIN, once nobody holds the socket.
pub(crate) fn reset(socket: &TcpStream) -> std::io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO))?)
}

fn read_request(tls: &mut impl Read, buffer: &mut Vec<u8>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            // A character for each byte, so that none is lost.
            let head = buffer[..end].iter().copied().map(char::from).collect::<String>();
            let length = header(&head, "content-length").map_or(0, |length| length.parse().expect("a length"));
            if buffer.len() >= end + 4 + length {
                let rest = buffer.split_off(end + 4 + length);
                let body = buffer.split_off(end + 4);
                *buffer = rest;
                return Ok(Some((head, body)));
            }
        }
        let mut chunk = [0; 16 * 1024];
        let read = tls.read(&mut chunk)?;
        if read == 0 {
            return Ok(None);
        }
        buffer.extend_from_slice(&chunk[..read]);
    }
}
