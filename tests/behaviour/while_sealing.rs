//! What a bank says or does between the taking of a connection and the request: while a seal is made nobody reads. The
//! runtime stands still here as it does for a seal, so that the bank is always there first.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use http::{Method, Request};
use http_body_util::BodyExt as _;
use prometheus::Registry;
use rustls::{ServerConnection, StreamOwned};
use sealproxy::config::Config;
use sealproxy::identity::Qwac;
use sealproxy::log::Log;
use sealproxy::upstream::{
    AcquireError, Cause, Destination, Families, Lease, Outcome, Payload, ReactorId, SendError, Upstream,
};

use crate::callers::one_answer;
use crate::cli::{Started, standing_still, start_with};
use crate::support::{Manner, Running, file_config, folder, meets, ok, reset};

#[derive(Clone, Copy, Debug)]
enum Deed {
    /// An answer that nobody asked for.
    Says(&'static [u8]),
    /// The end of TLS and of TCP.
    Closes,
    /// The end of TCP alone.
    Vanishes,
    Resets,
}

const STRAY: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// A bank that serves one connection at a time, and does in between what it is told.
struct Bank {
    address: SocketAddr,
    deeds: Sender<Deed>,
    done: Receiver<()>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Bank {
    fn start() -> Self {
        Self::with_pause(Duration::ZERO)
    }

    /// One that takes this long before each handshake but the first.
    fn with_pause(pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let ((deeds, told), (tells, done)) = (channel(), channel());
        let requests = Arc::new(Mutex::default());
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for (number, socket) in listener.incoming().enumerate() {
                std::thread::sleep(if number == 0 { Duration::ZERO } else { pause });
                let session = ServerConnection::new(Manner::good().tls).expect("a session");
                // A connection ends as it ends; what was received is what is judged.
                let _ = serve(StreamOwned::new(session, socket.expect("a connection")), &told, &tells, &seen);
            }
        });
        Self { address, deeds, done, requests }
    }

    /// Has the bank do something, and keeps the runtime from its turn until it is done.
    fn does(&self, deed: Deed) {
        self.deeds.send(deed).expect("the bank lives");
        self.done.recv_timeout(Duration::from_secs(10)).expect("it was done");
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }

    async fn upstream(&self) -> Upstream {
        self.upstream_with("").await
    }

    /// With more settings of its own.
    async fn upstream_with(&self, more: &str) -> Upstream {
        let yaml = file_config(self.address, more, "");
        let (config, _) = Config::parse(&folder("lease").join("f.yaml"), &yaml, &|_| None).expect("a legal text");
        let qwac = Qwac::load(&config.identities["main"].qwac).await.expect("the kit's");
        let families = Families::register(&Registry::new()).expect("a registry of our own");
        let (log, _) = Log::start(std::io::sink(), 10).expect("a thread");
        let destination = Destination::new("bank", config.upstreams["bank"].settings.clone(), &families, log);
        Upstream::new(destination, qwac.resolver(), None, SystemTime::now()).expect("its files are there")
    }
}

/// Answers a request as soon as it has its head, and then either reads on or does what it is told.
fn serve(
    mut tls: StreamOwned<ServerConnection, TcpStream>,
    told: &Receiver<Deed>,
    done: &Sender<()>,
    requests: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    // What is said has left when it is said.
    tls.sock.set_nodelay(true)?;
    tls.sock.set_read_timeout(Some(Duration::from_millis(5)))?;
    loop {
        if let Ok(deed) = told.try_recv() {
            act(&mut tls, deed)?;
            if matches!(deed, Deed::Resets) {
                drop(tls);
                done.send(()).expect("the test waits");
                return Ok(());
            }
            done.send(()).expect("the test waits");
        }
        let mut bytes = [0; 4096];
        match tls.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
                requests.lock().expect("no panic").push(text.lines().next().unwrap_or_default().to_owned());
                tls.write_all(&ok("{}"))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn act(tls: &mut StreamOwned<ServerConnection, TcpStream>, deed: Deed) -> std::io::Result<()> {
    match deed {
        Deed::Says(bytes) => tls.write_all(bytes),
        Deed::Closes => {
            tls.conn.send_close_notify();
            tls.flush()?;
            tls.sock.shutdown(Shutdown::Write)
        }
        Deed::Vanishes => tls.sock.shutdown(Shutdown::Write),
        Deed::Resets => reset(&tls.sock),
    }
}

fn request(path: &str) -> Request<Payload> {
    let mut body = Payload::default();
    body.push("{}".into());
    let request = Request::builder().method(Method::POST).uri(path).header("host", "localhost");
    request.header("content-length", "2").body(body).expect("a request")
}

/// Sends a request and reads its answer to the end.
async fn paid(lease: Lease, path: &str) -> Result<(), SendError> {
    let answer = lease.send(request(path)).await?;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.into_body().collect().await.expect("whole").to_bytes(), "{}");
    Ok(())
}

/// Whatever the event loop has to say is said.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn what_a_bank_does_while_a_seal_is_made_keeps_the_request_here() {
    for deed in [Deed::Says(STRAY), Deed::Says(b"x"), Deed::Closes, Deed::Vanishes, Deed::Resets] {
        runtime().block_on(async {
            let bank = Bank::start();
            let upstream = bank.upstream().await;
            paid(upstream.acquire(ReactorId(0)).await.expect("a connection"), "/first").await.expect("an answer");
            settle().await;
            let lease = upstream.acquire(ReactorId(0)).await.expect("the same connection");
            assert!(lease.is_reused());
            bank.does(deed);
            let error = paid(lease, "/second").await.expect_err("nobody may be answered by it");
            assert_eq!(error.outcome, Outcome::NotSent, "{deed:?}: {error:?}");
            let unasked = matches!(error.cause, Cause::Unasked(_));
            assert_eq!(unasked, matches!(deed, Deed::Says(_)), "{deed:?}: {error:?}");
            paid(upstream.acquire_again(ReactorId(0)).await.expect("another"), "/again").await.expect("an answer");
            let lines: Vec<_> = ["/first", "/again"].iter().map(|path| format!("POST {path} HTTP/1.1")).collect();
            assert_eq!(bank.requests(), lines, "{deed:?}");
        });
    }
}

#[test]
fn what_a_bank_says_on_a_new_connection_is_no_answer_either() {
    runtime().block_on(async {
        let bank = Bank::start();
        let upstream = bank.upstream().await;
        let lease = upstream.acquire(ReactorId(0)).await.expect("a connection");
        assert!(!lease.is_reused());
        bank.does(Deed::Says(STRAY));
        let error = paid(lease, "/first").await.expect_err("nobody may be answered by it");
        assert!(matches!((&error.cause, error.outcome), (Cause::Unasked(_), Outcome::NotSent)), "{error:?}");
        assert_eq!(bank.requests(), Vec::<String>::new());
    });
}

/// A new connection has session tickets to read, and a used one nothing.
#[test]
fn a_bank_that_does_nothing_is_asked() {
    runtime().block_on(async {
        let bank = Bank::start();
        let upstream = bank.upstream().await;
        for path in ["/new", "/used", "/again"] {
            let lease = upstream.acquire(ReactorId(0)).await.expect("a connection");
            assert_eq!(lease.is_reused(), path != "/new");
            std::thread::sleep(Duration::from_millis(20));
            paid(lease, path).await.expect("an answer");
            settle().await;
        }
        assert_eq!(bank.requests().len(), 3);
    });
}

/// A proxy in front of this bank, a process of its own that can be made to stand still, and a caller whose first
/// payment was answered.
fn paid_once(bank: &Bank) -> (Started, TcpStream) {
    paid_once_with(bank, "")
}

fn paid_once_with(bank: &Bank, top: &str) -> (Started, TcpStream) {
    let yaml = file_config(bank.address, "", top).replace("threads: 2", "threads: 1");
    let proxy = start_with(&yaml, &[], Stdio::piped());
    let mut caller = TcpStream::connect(proxy.address).expect("it listens");
    pay(&mut caller);
    caller.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    assert_eq!(one_answer(&mut caller).status, 200);
    // Its loop has done all that it had to do.
    std::thread::sleep(Duration::from_millis(50));
    (proxy, caller)
}

fn pay(caller: &mut TcpStream) {
    let head = "POST /sandbox/becm/stet-psd2-api/v2.1/payment-requests HTTP/1.1\r\nHost: localhost\r\n";
    write!(caller, "{head}Content-Type: a/b\r\nContent-Length: 2\r\n\r\n{{}}").expect("written");
}

/// The next payment is there first, and then the bank does this: both before the proxy has looked at either.
fn pay_while_it_stands_still(proxy: &Started, caller: &mut TcpStream, bank: &Bank, deed: Deed) {
    standing_still(&proxy.child, || {
        pay(caller);
        std::thread::sleep(Duration::from_millis(20));
        bank.does(deed);
        std::thread::sleep(Duration::from_millis(20));
    });
}

/// The log's last line, after the proxy's end.
fn last_line(child: &mut Running) -> serde_json::Value {
    child.terminate_at_once();
    let mut log = String::new();
    child.0.stdout.take().expect("piped").read_to_string(&mut log).expect("text");
    serde_json::from_str(log.lines().last().expect("a line")).expect("JSON")
}

/// From one end of the proxy to the other: nobody notices but the log. The proxy may see to the bank first: then the
/// payment does not meet its deed.
#[test]
fn what_stayed_here_goes_on_another_connection() {
    for deed in [Deed::Says(STRAY), Deed::Closes, Deed::Vanishes, Deed::Resets] {
        let tried = || {
            let bank = Bank::start();
            let (mut proxy, mut caller) = paid_once(&bank);
            pay_while_it_stands_still(&proxy, &mut caller, &bank, deed);
            let answer = one_answer(&mut caller);
            assert_eq!((answer.status, &*answer.body), (200, "{}"), "{deed:?}");
            assert_eq!(bank.requests().len(), 2, "{deed:?}");
            last_line(&mut proxy.child)
        };
        meets(tried, |line| line["attempts"] == 2 && line["outcome"] == "answered");
    }
}

/// Whoever has left by then would never learn what became of it.
#[test]
fn what_stayed_here_is_not_sent_again_for_nobody() {
    let tried = || {
        let bank = Bank::with_pause(Duration::from_millis(600));
        let (mut proxy, mut caller) = paid_once(&bank);
        pay_while_it_stands_still(&proxy, &mut caller, &bank, Deed::Says(STRAY));
        std::thread::sleep(Duration::from_millis(200));
        drop(caller);
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!(bank.requests().len(), 1);
        let line = last_line(&mut proxy.child);
        assert_eq!((&line["outcome"], &line["caller_gone"]), (&"not_sent".into(), &true.into()), "{line}");
        line
    };
    meets(tried, |line| line["problem"] == "upstream-malformed");
}

/// Whoever waits then for another connection has sent nothing, and is told what the log is told.
#[test]
fn what_stayed_here_stays_here_at_the_stop() {
    let tried = || {
        let bank = Bank::with_pause(Duration::from_secs(5));
        let (mut proxy, mut caller) = paid_once_with(&bank, "timeouts: { linger: 0s, drain: 300ms }\n");
        pay_while_it_stands_still(&proxy, &mut caller, &bank, Deed::Closes);
        std::thread::sleep(Duration::from_millis(100));
        proxy.child.signal("TERM");
        let answer = one_answer(&mut caller);
        let line = last_line(&mut proxy.child);
        assert_eq!((&*answer.problem(), &*answer.outcome()), ("stopped", "not_sent"), "{line}");
        assert_eq!((&line["problem"], &line["outcome"]), (&"stopped".into(), &"not_sent".into()), "{line}");
        line
    };
    meets(tried, |line| line["attempts"] == 1);
}

/// Where the bank has as many connections as it may have, others would come first until one of them ends.
#[test]
fn whoever_has_to_send_once_more_is_next() {
    runtime().block_on(async {
        let bank = Bank::start();
        let upstream = bank.upstream_with("    connections: 1\n").await;
        let lease = upstream.acquire(ReactorId(0)).await.expect("a connection");
        let served = Mutex::new(Vec::new());
        let pay = async |lease: Result<Lease, AcquireError>, path: &'static str| {
            paid(lease.expect("its turn"), path).await.expect("an answer");
            served.lock().expect("no panic").push(path);
        };
        let other = async { pay(upstream.acquire(ReactorId(0)).await, "/other").await };
        let again = async { pay(upstream.acquire_again(ReactorId(0)).await, "/again").await };
        let gives_back = async {
            settle().await;
            drop(lease);
        };
        let all = async { tokio::join!(other, again, gives_back) };
        tokio::time::timeout(Duration::from_secs(3), all).await.expect("sooner than a wait ends");
        assert_eq!(*served.lock().expect("no panic"), ["/again", "/other"]);
    });
}
