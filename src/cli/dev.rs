//! `sealproxy dev`: a sandbox bank, throwaway certificates and the proxy, in one command and without a file. Sends
//! one request through itself, tells what happened to it, then stays up.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tokio::net::TcpListener;

use super::sandbox::{self, loopback, without_kit};
use super::signals::Signals;
use super::{Failure, LOG_LINES, control_runtime, say, tell};
use crate::app::{App, Bound};
use crate::config::{Config, Finding};
use crate::log::Log;
use crate::sandbox::bank::Bank;
use crate::sandbox::bank::faults::Faults;
use crate::sandbox::kit::Kit;

pub(super) fn run(folder: Option<PathBuf>, port: u16, faults: Faults) -> Result<(), Failure> {
    let scratch = folder.is_none().then(Scratch::new).transpose()?;
    let kept = folder.clone();
    let folder = folder.or_else(|| scratch.as_ref().map(|scratch| scratch.0.clone()));
    let folder = folder.expect("either was given or made");
    let (lines, first_line) = mpsc::channel();
    let (log, writer) = Log::start(Tap { first: Some(lines) }, LOG_LINES)?;
    let ended = control_runtime()?.block_on(serve(&folder, kept.as_deref(), port, faults, log, first_line));
    writer.close();
    ended
}

async fn serve(
    folder: &Path,
    kept: Option<&Path>,
    port: u16,
    faults: Faults,
    log: Log,
    first_line: mpsc::Receiver<Value>,
) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let kit = Kit::open_or_make(folder, SystemTime::now()).map_err(|error| without_kit(&error))?;
    let _alone = alone(folder)?;
    let bank = SandboxBank::start(&kit)?;
    let (bound, address) = bind(&kit, &bank, port, &log).await?;
    print_parties(&bank, &bound, port);
    let kept = kept.map(|folder| {
        let folder = folder.display();
        let bank = bank.address;
        format!("kept      {folder}: later `sealproxy sandbox --dir {folder} --listen {bank}` and `sealproxy run --config {folder}/sealproxy.yaml`")
    });
    std::thread::spawn(move || {
        if let Err(error) = first_request(address, &first_line, &bank, faults, kept) {
            tell(format_args!("the first request failed: {error}"));
        }
    });
    bound.serve(async || signals.next_or_hangup().await).await?;
    Ok(())
}

/// Keeps others out of the folder: what one says of it would not be so once another has written its files anew.
fn alone(folder: &Path) -> Result<File, Failure> {
    let lock = File::open(folder)?;
    match lock.try_lock() {
        // Some file systems have no locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let reason = format!("another `dev` is at work in {}", folder.display());
            Err(Failure::Advised(reason, "End it, or name another folder with --dir".into()))
        }
    }
}

/// The proxy in front of the bank on free ports, and where it is. Another process may take one between the look and the
/// use: then once more.
async fn bind(kit: &Kit, bank: &SandboxBank, port: u16, log: &Log) -> Result<(Bound, SocketAddr), Failure> {
    let mut tries = TRIES;
    loop {
        let proxy = loopback(free_port(port, "Name another with --port")?);
        let admin = loopback(free_port(ADMIN, "End what listens there")?);
        let config = kit.write_config(bank.address, proxy, admin).map_err(|error| without_kit(&error))?;
        let (config, findings) = Config::load(&config).map_err(Failure::Configuration)?;
        findings.iter().for_each(tell);
        let app = App::build(config, log.clone(), SystemTime::now()).await.map_err(unusable)?;
        tries -= 1;
        match app.bind().await {
            Ok(bound) => return Ok((bound, proxy)),
            Err(_) if tries > 0 => {}
            Err(findings) => return Err(Failure::Configuration(findings)),
        }
    }
}

/// The files were good when they were made.
fn unusable(mut findings: Vec<Finding>) -> Failure {
    let file = findings.first().map(|finding| finding.file.clone()).unwrap_or_default();
    let reason = "what the sandbox made here cannot be used any more";
    findings.push(Finding::error(file, "", reason).hint(sandbox::ANEW).code("broken-sandbox"));
    Failure::Configuration(findings)
}

const TRIES: usize = 5;

/// The port that the admin pages have by default.
const ADMIN: u16 = 9090;
/// The sandbox bank's first choice of port.
const BANK: u16 = 40443;

fn free_port(wanted: u16, advice: &str) -> Result<u16, Failure> {
    Ok(listener(wanted, advice)?.local_addr()?.port())
}

/// On the first port from `wanted` on that nobody listens on, or what to do about it.
fn listener(wanted: u16, advice: &str) -> Result<std::net::TcpListener, Failure> {
    let candidates = wanted..=wanted.saturating_add(PORTS_TO_TRY);
    let mut failed = String::new();
    for port in candidates.clone() {
        match std::net::TcpListener::bind(loopback(port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = error.to_string(),
        }
    }
    let reason = format!("no port of 127.0.0.1 from {wanted} to {} can be had: {failed}", candidates.end());
    Err(Failure::Advised(reason, advice.to_owned()))
}

const PORTS_TO_TRY: u16 = 50;

/// A folder that goes when the process does.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("sealproxy-dev-{}", uuid::Uuid::new_v4()));
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Throwaway files that stay behind harm nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The bank on a thread of its own, as a bank would be a machine of its own.
struct SandboxBank {
    address: SocketAddr,
    bank: Arc<Bank>,
}

impl SandboxBank {
    fn start(kit: &Kit) -> Result<Self, Failure> {
        let listener = listener(BANK, "End what listens there")?;
        let address = listener.local_addr()?;
        let bank = sandbox::bank(kit, address, |settings| settings)?;
        listener.set_nonblocking(true)?;
        let serving = Arc::clone(&bank);
        std::thread::Builder::new().name("bank".into()).spawn(move || {
            let runtime = control_runtime().expect("this process has just started a runtime like it");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("the listener is non-blocking");
                serving.serve(listener, std::future::pending()).await;
            });
        })?;
        Ok(Self { address, bank })
    }
}

fn print_parties(bank: &SandboxBank, bound: &Bound, wanted: u16) {
    let proxy = bound.addresses().first().map(ToString::to_string).unwrap_or_default();
    let as_wanted = wanted == 0 || proxy.ends_with(&format!(":{wanted}"));
    let taken = if as_wanted { String::new() } else { format!("({wanted} is taken)") };
    let admin = bound.admin_addresses().first().map(ToString::to_string).unwrap_or_default();
    say(format_args!(
        "bank      https://{}   sandbox, strict, throwaway certificates; nothing leaves this machine",
        bank.address
    ));
    say(format_args!("proxy     {proxy:<27} {taken:<19} admin http://{admin}"));
}

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";

/// Sends one request through the proxy and tells what each party made of it.
fn first_request(
    proxy: SocketAddr,
    first_line: &mpsc::Receiver<Value>,
    bank: &SandboxBank,
    faults: Faults,
    kept: Option<String>,
) -> io::Result<()> {
    let began = Instant::now();
    let answer = ask(proxy)?;
    let took = began.elapsed();
    let line = first_line.recv_timeout(Duration::from_secs(5)).unwrap_or(Value::Null);
    let seen = bank.bank.observations().into_iter().next_back();
    // The first request shows a bank without faults.
    bank.bank.set_faults(faults);
    let verified = seen.and_then(|seen| seen.verified);
    let (covered, key_id) = verified.as_ref().map_or_else(Default::default, |verified| {
        (verified.covered.join(" "), format!("{}\u{2026}", verified.key_id.get(..8).unwrap_or(&verified.key_id)))
    });
    let status = answer.split(' ').nth(1).unwrap_or("no status");
    let accounts = answer.matches("\"resourceId\"").count();
    let seal = line["seal_ms"].as_f64().unwrap_or_default();
    say(format_args!("came in   GET {ACCOUNTS}        Authorization: Bearer demo"));
    say(format_args!("sealed    {covered}              key_id {key_id}  {seal:.1} ms"));
    say(format_args!(
        "bank      {status}, {}, {accounts} accounts, {:.1} ms",
        if verified.is_some() { "seal verified" } else { "seal NOT verified" },
        took.as_secs_f64() * 1e3
    ));
    say(format_args!("try       curl -s http://{proxy}{ACCOUNTS} -H 'Authorization: Bearer demo'"));
    say(format_args!(
        "break it  the same with -H 'X-Sandbox-Fault: stale-date'       next: sealproxy init becm --sandbox"
    ));
    kept.into_iter().for_each(say);
    Ok(())
}

fn ask(proxy: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&proxy, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {ACCOUNTS} HTTP/1.1\r\nHost: {proxy}\r\nAuthorization: Bearer demo\r\nAccept: application/json\r\n\
         Connection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

const PATIENCE: Duration = Duration::from_secs(10);

/// The log's first line goes to whoever tells of the first request, the others to stdout.
struct Tap {
    first: Option<mpsc::Sender<Value>>,
}

impl Write for Tap {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.first.take() {
            // Nobody waits for it only where the first request failed, which was told already.
            Some(first) => drop(first.send(serde_json::from_slice(line).unwrap_or(Value::Null))),
            // Who has stopped reading has seen enough.
            None => drop(io::stdout().write_all(line)),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}
