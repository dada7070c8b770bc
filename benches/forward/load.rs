//! Callers on kept-alive connections, and what a proxy spends on them.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Case;
use super::process::Process;

pub(crate) const API: &str = "/sandbox/becm/stet-psd2-api/v2.1";
/// One of the sandbox bank's accounts.
pub(crate) const ACCOUNT: &str = sealproxy::sandbox::bank::DEMO_ACCOUNT;

/// Before the first figure, under load: connections to the bank are made, and buffers have their size.
const WARM_UP: Duration = Duration::from_millis(300);

/// Where callers reach a proxy.
#[derive(Clone)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// The same request on many connections.
pub(crate) struct Load {
    request: Vec<u8>,
    connections: usize,
    callers: usize,
}

/// What it took.
pub(crate) struct Run {
    /// Requests a second.
    pub(crate) rate: f64,
    /// µs of the proxy per request.
    pub(crate) cpu: f64,
    /// Milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Of all reactors' CPU, what the busiest had.
    pub(crate) busiest: f64,
}

impl Load {
    /// A request at a time on each connection.
    pub(crate) fn new(case: &Case, connections: usize) -> Self {
        let json = format!("{{\"a\":\"{}\"}}", "x".repeat(case.body.saturating_sub(8)));
        let rest = match case.body {
            0 => "\r\n".to_owned(),
            _ => format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}", json.len()),
        };
        let head = format!("{} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer bench\r\n", case.line);
        Self { request: format!("{head}{rest}").into_bytes(), connections, callers: connections }
    }

    /// Fewer requests at a time, which go round the connections.
    pub(crate) fn by(self, callers: usize) -> Self {
        Self { callers: callers.min(self.connections), ..self }
    }

    /// All connections, open and with one request behind them.
    pub(crate) fn connect(&self, address: &Address) -> Vec<Caller> {
        let mut callers: Vec<Caller> = (0..self.connections).map(|_| Caller::connect(address)).collect();
        callers.iter_mut().for_each(|caller| caller.call(&self.request));
        callers
    }

    pub(crate) fn run(&self, proxy: &Process, address: &Address, time: Duration) -> Run {
        let (ready, stop, done) = (Barrier::new(self.callers + 1), AtomicBool::new(false), AtomicU64::new(0));
        let mut connections = self.connect(address);
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..self.callers)
                .map(|caller| {
                    let share = connections.len().div_ceil(self.callers - caller);
                    let mut own = connections.split_off(connections.len() - share);
                    let (ready, stop, done) = (&ready, &stop, &done);
                    scope.spawn(move || {
                        ready.wait();
                        go_round(&mut own, &self.request, stop, done)
                    })
                })
                .collect();
            ready.wait();
            std::thread::sleep(WARM_UP);
            let before = (Instant::now(), done.load(Ordering::SeqCst), proxy.cpu(), proxy.reactors());
            std::thread::sleep(time);
            let count = (done.load(Ordering::SeqCst) - before.1) as f64;
            let (took, cpu, reactors) = (before.0.elapsed(), proxy.cpu() - before.2, proxy.reactors());
            stop.store(true, Ordering::SeqCst);
            let calls = callers.into_iter().flat_map(|caller| caller.join().expect("a caller"));
            let measured = calls.filter(|call: &Call| call.sent >= before.0);
            let mut times: Vec<Duration> = measured.map(|call| call.took).collect();
            times.sort_unstable();
            let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
            let spent: Vec<f64> =
                reactors.iter().zip(&before.3).map(|(now, then)| (*now - *then).as_secs_f64()).collect();
            Run {
                rate: count / took.as_secs_f64(),
                cpu: cpu.as_secs_f64() * 1e6 / count,
                p50: at(0.5),
                p99: at(0.99),
                busiest: spent.iter().copied().fold(0.0, f64::max) / spent.iter().sum::<f64>(),
            }
        })
    }
}

/// One request and its answer.
struct Call {
    sent: Instant,
    took: Duration,
}

fn go_round(own: &mut [Caller], request: &[u8], stop: &AtomicBool, done: &AtomicU64) -> Vec<Call> {
    let mut calls = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        for caller in &mut *own {
            let sent = Instant::now();
            caller.call(request);
            calls.push(Call { sent, took: sent.elapsed() });
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    calls
}

trait Socket: Read + Write + Send {}

impl<S: Read + Write + Send> Socket for S {}

/// One kept-alive connection.
pub(crate) struct Caller {
    socket: BufReader<Box<dyn Socket>>,
    line: String,
    body: Vec<u8>,
}

impl Caller {
    fn connect(address: &Address) -> Self {
        let socket: Box<dyn Socket> = match address {
            Address::Tcp(address) => {
                let socket = TcpStream::connect(address).expect("the proxy listens");
                socket.set_nodelay(true).expect("a socket");
                socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
                Box::new(socket)
            }
            Address::Unix(path) => {
                let socket = UnixStream::connect(path).expect("the proxy listens");
                socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
                Box::new(socket)
            }
        };
        Self { socket: BufReader::new(socket), line: String::new(), body: Vec::new() }
    }

    fn call(&mut self, request: &[u8]) {
        self.socket.get_mut().write_all(request).expect("written");
        let (mut length, mut status) = (0, None);
        loop {
            self.line.clear();
            assert!(self.socket.read_line(&mut self.line).expect("a line") > 0, "the proxy closed the connection");
            match self.line.trim_end() {
                "" => break,
                first if status.is_none() => status = Some(first.to_owned()),
                field => {
                    if let Some((name, value)) = field.split_once(':')
                        && name.eq_ignore_ascii_case("content-length")
                    {
                        length = value.trim().parse().expect("a length");
                    }
                }
            }
        }
        self.body.resize(length, 0);
        self.socket.read_exact(&mut self.body).expect("a body");
        let status = status.unwrap_or_default();
        assert!(status.starts_with("HTTP/1.1 2"), "{status}: {}", String::from_utf8_lossy(&self.body));
    }
}

/// Whatever the proxy does, a case ends.
const PATIENCE: Duration = Duration::from_secs(30);
