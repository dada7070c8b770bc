//! Banks and proxies as child processes, and what the system knows of them.

use std::cell::Cell;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::load::{API, Address};

/// A folder with two banks: one that demands seals, and one that asks for none.
pub(crate) struct Workshop {
    folder: PathBuf,
    proxies: Cell<usize>,
    _banks: [Process; 2],
}

/// How a proxy is set up.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) sealed: bool,
    pub(crate) threads: usize,
    /// Beside those of the sandbox, none of which is asked for.
    pub(crate) routes: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self { sealed: true, threads: 1, routes: 0 }
    }
}

impl Workshop {
    pub(crate) fn open() -> Self {
        let folder = std::env::temp_dir().join(format!("sealproxy-bench-{}", uuid::Uuid::new_v4()));
        let banks = [Process::bank(&folder.join(STRICT), true), Process::bank(&folder.join(LENIENT), false)];
        Self { folder, proxies: Cell::new(0), _banks: banks }
    }

    /// The folder of the bank that demands seals.
    pub(crate) fn strict(&self) -> PathBuf {
        self.folder.join(STRICT)
    }

    /// A proxy that seals stands before the strict bank, another before the lenient one.
    pub(crate) fn proxy(&self, setup: &Setup) -> Process {
        self.proxies.set(self.proxies.get() + 1);
        let bank = self.folder.join(if setup.sealed { STRICT } else { LENIENT });
        Process::proxy(&bank, &format!("proxy-{}", self.proxies.get()), setup)
    }
}

const STRICT: &str = "strict";
const LENIENT: &str = "lenient";

impl Drop for Workshop {
    fn drop(&mut self) {
        // Ours alone; what stays is lost with the system's temporary files.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A child process of ours, ended with its value.
pub(crate) struct Process {
    child: Child,
    address: SocketAddr,
    socket: PathBuf,
}

impl Process {
    fn bank(folder: &Path, demands_seal: bool) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sealproxy"))
            .args(["sandbox", "--listen", "127.0.0.1:0", "--dir"])
            .arg(folder)
            .args((!demands_seal).then_some("--unsealed"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary of this build");
        let line = first_line(child.stdout.take().expect("piped"), "bank https://");
        Self { child, address: line.parse().expect("an address"), socket: PathBuf::new() }
    }

    fn proxy(folder: &Path, name: &str, setup: &Setup) -> Self {
        let file = folder.join(format!("{name}.yaml"));
        let socket = folder.join(format!("{name}.sock"));
        let yaml = std::fs::read_to_string(folder.join("sealproxy.yaml")).expect("the bank wrote it");
        std::fs::write(&file, configuration(&yaml, &socket, setup)).expect("written");
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
        Self { child, address: line.parse().expect("an address"), socket }
    }

    pub(crate) fn tcp(&self) -> Address {
        Address::Tcp(self.address)
    }

    pub(crate) fn unix(&self) -> Address {
        Address::Unix(self.socket.clone())
    }

    /// User and system time so far.
    pub(crate) fn cpu(&self) -> Duration {
        cpu_in(&self.proc("stat"))
    }

    /// The same of each reactor.
    pub(crate) fn reactors(&self) -> Vec<Duration> {
        let tasks = std::fs::read_dir(self.proc("task")).expect("it runs");
        let tasks = tasks.map(|task| task.expect("an entry").path());
        let is_reactor =
            |task: &PathBuf| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("reactor-"));
        tasks.filter(is_reactor).map(|task| cpu_in(&task.join("stat"))).collect()
    }

    /// Resident memory in MiB.
    pub(crate) fn rss(&self) -> f64 {
        let status = std::fs::read_to_string(self.proc("status")).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("KiB") / 1024.0
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sandbox's own configuration, with what this proxy has of its own.
fn configuration(yaml: &str, socket: &Path, setup: &Setup) -> String {
    let listen = "listen: [\"127.0.0.1:0\"]";
    assert!(yaml.contains(listen), "the sandbox writes another configuration than it did");
    let both = format!("threads: {}\nlisten: [\"127.0.0.1:0\", \"unix:{}\"]", setup.threads, socket.display());
    let mut yaml = yaml.replace(listen, &both);
    if !setup.sealed {
        let unsealed = "/stet-psd2-api/, upstream: bank, seal: false, methods: [GET, POST] }";
        yaml = yaml.replace("/stet-psd2-api/, upstream: bank }", unsealed);
    }
    let others = (0..setup.routes).map(|index| format!("  - {{ path: {API}/route-{index}/, upstream: bank }}\n"));
    yaml + &others.collect::<String>()
}

/// Of a process or a thread, by its `stat`.
fn cpu_in(stat: &Path) -> Duration {
    let stat = std::fs::read_to_string(stat).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    // USER_HZ is 100 wherever Linux runs.
    Duration::from_millis(ticks * 10)
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

pub(crate) fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let ifma = if info.contains("avx512ifma") { "with AVX-512 IFMA" } else { "without AVX-512 IFMA" };
    format!("{}, {cores} cores, {ifma}", model.unwrap_or("unknown"))
}
