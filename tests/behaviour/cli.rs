//! The program as people start it: what it prints, and how it exits.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::support::{Running, folder, kit};
use sealproxy::sandbox::authority::{Authority, Issued, KeyKind, Tpp};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn sealproxy(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealproxy"));
    command.args(arguments);
    command
}

fn output(arguments: &[&str]) -> Output {
    sealproxy(arguments).output().expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads lines until one begins with `mark`; returns all so far.
pub(crate) fn read_until(reader: &mut impl std::io::BufRead, mark: &str) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        assert!(reader.read_line(&mut line).expect("text") > 0, "it ended after {lines:?}");
        let found = line.starts_with(mark);
        lines.push(line.trim_end().to_owned());
        if found {
            return lines;
        }
    }
}

fn get(address: SocketAddr, target: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
const BEARER: &str = "Authorization: Bearer demo\r\n";

/// `sealproxy dev` on a port of its own choice, up to its last line.
fn dev(folder: &Path) -> (Running, BufReader<std::process::ChildStdout>, Vec<String>, SocketAddr) {
    dev_with(folder, &[])
}

fn dev_with(folder: &Path, more: &[&str]) -> (Running, BufReader<std::process::ChildStdout>, Vec<String>, SocketAddr) {
    // Taken on purpose, so that the next free one is chosen and said.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let mut child = sealproxy(&["dev", "--port", &port, "--dir"])
        .arg(folder)
        .args(more)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut reader = BufReader::new(child.stdout.take().expect("piped"));
    let lines = read_until(&mut reader, "break it");
    assert!(lines[1].contains(&format!("({port} is taken)")), "{lines:?}");
    let address = lines[1].split("http://").nth(1).and_then(|rest| rest.split(' ').next()).expect("an address");
    let address = address.parse().expect("an address");
    (Running(child), reader, lines, address)
}

#[test]
fn dev_seals_a_first_request_and_shows_what_a_fault_looks_like() {
    let folder = folder("dev");
    let (mut child, mut reader, lines, address) = dev(&folder);
    assert!(lines[0].starts_with("bank      https://127.0.0.1:"), "{lines:?}");
    assert!(lines[2].starts_with(&format!("came in   GET {ACCOUNTS}")), "{lines:?}");
    assert!(lines[3].starts_with("sealed    (request-target) host date x-request-id "), "{lines:?}");
    assert!(lines[4].starts_with("bank      200, seal verified, 2 accounts, "), "{lines:?}");
    assert!(lines[5].starts_with("try       curl -s http://127.0.0.1:"), "{lines:?}");
    assert!(get(address, ACCOUNTS, BEARER).starts_with("HTTP/1.1 200 OK\r\n"));
    for (fault, message) in [
        ("stale-date", "the Date is 60"),
        ("wrong-key", "the signature does not verify with the registered certificate"),
        (
            "wrong-path",
            "the signature does not verify with the registered certificate over \\\"(request-target): get /rewritten/",
        ),
        ("nonsense", "X-Sandbox-Fault is none of stale-date, wrong-key, wrong-path"),
    ] {
        let answer = get(address, ACCOUNTS, &format!("{BEARER}X-Sandbox-Fault: {fault}\r\n"));
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(message), "{fault}: {answer}");
        assert!(!answer.contains("proxy-status"), "the bank's own answer");
    }
    let answer = get(address, ACCOUNTS, "");
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let another = output(&["dev", "--dir", folder.to_str().expect("UTF-8")]);
    assert_eq!(another.status.code(), Some(1));
    assert!(text_of(&another).contains("another `dev` is at work in"), "{}", text_of(&another));
    let log = read_until(&mut reader, "{");
    assert!(log[0].starts_with("kept      ") && log[1].contains("\"event\":\"exchange\""), "{log:?}");
    let config = folder.join("sealproxy.yaml");
    let checked = output(&["check", "--config", config.to_str().expect("UTF-8")]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stdout));
    assert_eq!(child.terminate(), Some(0));
}

#[test]
fn dev_injects_faults_from_the_second_request_on() {
    let refused = output(&["dev", "--faults", "garbage=1%,slow=2%"]);
    assert_eq!(refused.status.code(), Some(64));
    let message = "\"slow\" is no fault; the faults are reset-at-accept, ";
    assert!(text_of(&refused).contains(message), "{}", text_of(&refused));
    let (_child, _reader, lines, address) = dev_with(&folder("dev"), &["--faults", "refusal=100%:429"]);
    assert!(lines[4].starts_with("bank      200, seal verified, 2 accounts, "), "{lines:?}");
    let answer = get(address, ACCOUNTS, BEARER);
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("retry-after: 1\r\n"), "{answer}");
    // What a request asks for is done instead.
    let answer = get(address, ACCOUNTS, &format!("{BEARER}X-Sandbox-Fault: garbage\r\n"));
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("upstream-malformed"), "{answer}");
}

#[test]
fn dev_keeps_its_hands_off_files_that_are_not_its_own() {
    for (name, text) in [("sealproxy.yaml", "# mine"), ("qwac.key", "mine")] {
        let folder = folder("mine");
        std::fs::write(folder.join(name), text).expect("a file");
        let refused = output(&["dev", "--dir", folder.to_str().expect("UTF-8")]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(text_of(&refused).contains("choose an empty folder"), "{}", text_of(&refused));
        assert_eq!(std::fs::read_to_string(folder.join(name)).expect("still there"), text);
        // A configuration may name keys that are not there yet: they must not become ours.
        assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 1, "beside {name}");
    }
}

#[test]
fn dev_says_what_to_do_about_a_folder_of_its_own_that_is_broken() {
    let made = |name: &str| {
        let folder = folder(name);
        let dev = dev(&folder);
        drop(dev);
        folder
    };
    type Damage = fn(&Path) -> std::io::Result<()>;
    let damages: [(&str, Damage); 5] = [
        ("bank.key", |file| std::fs::remove_file(file)),
        ("qsealc.pem", |file| std::fs::remove_file(file)),
        ("bank.key", |file| std::fs::write(file, "broken")),
        ("qsealc.key", |file| std::fs::write(file, "broken")),
        ("bank.key", |file| std::fs::copy(file.with_file_name("qwac.key"), file).map(drop)),
    ];
    for (name, damage) in damages {
        let folder = made("broken");
        damage(&folder.join(name)).expect("damaged");
        let refused = output(&["dev", "--dir", folder.to_str().expect("UTF-8")]);
        let said = text(&refused.stderr);
        assert!(!refused.status.success(), "{said}");
        assert!(said.contains("Name another folder by --dir, or delete the files"), "{name}: {said}");
    }
}

fn text_of(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn ten_thousand_requests_over_thirty_two_connections_need_thirty_two_behind_them() {
    let (child, mut reader, lines, address) = dev(&folder("load"));
    // The log is read on, so that nobody waits for anybody.
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let request = format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\n{BEARER}\r\n");
    let left = AtomicUsize::new(10_000);
    let succeeded: usize = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..32).map(|_| scope.spawn(|| call(address, &request, &left))).collect();
        callers.into_iter().map(|caller| caller.join().expect("no panic")).sum()
    });
    assert_eq!(succeeded, 10_000);
    let admin = lines[1].rsplit("http://").next().expect("an address").parse().expect("an address");
    let metrics = get(admin, "/metrics", "");
    let handshakes = metrics
        .lines()
        .find_map(|line| line.strip_prefix("sealproxy_upstream_handshake_seconds_count{upstream=\"bank\"} "));
    let handshakes: usize = handshakes.expect("counted").parse().expect("a number");
    assert!(handshakes <= 48, "{handshakes} handshakes");
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.0.id())).expect("it runs");
    let rss =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(|line| line.trim().strip_suffix(" kB"));
    let rss: usize = rss.expect("VmHWM").parse().expect("a number");
    assert!(rss < 40 * 1024, "{rss} KiB");
}

/// One caller on one connection; returns how many answers were 200.
fn call(address: SocketAddr, request: &str, left: &AtomicUsize) -> usize {
    let mut reader = BufReader::new(TcpStream::connect(address).expect("it listens"));
    let mut succeeded = 0;
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        reader.get_mut().write_all(request.as_bytes()).expect("written");
        let head = read_until(&mut reader, "\r\n");
        let length =
            head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        let mut body = vec![0; length.expect("a length").parse().expect("a number")];
        reader.read_exact(&mut body).expect("a body");
        succeeded += usize::from(head[0] == "HTTP/1.1 200 OK");
    }
    succeeded
}

#[test]
fn what_init_prints_is_legal_but_for_the_files_it_asks_for() {
    for arguments in [&["init", "becm"][..], &["init", "becm", "--sandbox"], &["init", "reference"]] {
        let printed = output(arguments);
        assert_eq!(printed.status.code(), Some(0));
        let yaml = text(&printed.stdout);
        assert!(!yaml.contains("x-sandbox-fault") || arguments.contains(&"reference"), "{yaml}");
        let folder = folder("init");
        let file = folder.join("sealproxy.yaml");
        std::fs::write(&file, &yaml).expect("a file");
        let checked = output(&["check", "--config", file.to_str().expect("UTF-8")]);
        assert_eq!(checked.status.code(), Some(78), "{}", text(&checked.stdout));
        let errors: Vec<String> =
            text(&checked.stdout).lines().filter(|line| line.starts_with("error: ")).map(str::to_owned).collect();
        assert!(!errors.is_empty() && errors.iter().all(|line| line.contains("identities.")), "{errors:?}");
    }
}

#[test]
fn the_wrong_command_line_exits_64_and_none_names_the_first_two_commands() {
    let alone = output(&[]);
    assert_eq!(alone.status.code(), Some(64));
    assert!(text(&alone.stderr).contains("sealproxy dev") && text(&alone.stderr).contains("sealproxy run"));
    assert_eq!(output(&["nonsense"]).status.code(), Some(64));
    assert_eq!(output(&["run"]).status.code(), Some(64));
    let init = text(&output(&["init"]).stderr);
    assert!(init.contains("sealproxy init becm [--sandbox]") && init.contains("sealproxy init reference"), "{init}");
    assert_eq!(output(&["init", "reference", "--sandbox"]).status.code(), Some(64));
    assert_eq!(output(&["--help"]).status.code(), Some(0));
    assert_eq!(output(&["--version"]).status.code(), Some(0));
}

#[test]
fn health_asks_the_admin_port() {
    let (child, _reader, lines, _) = dev(&folder("health"));
    let admin = lines[1].rsplit("http://").next().expect("an address");
    let healthy = output(&["health", "--admin", admin]);
    assert_eq!((healthy.status.code(), text(&healthy.stdout).trim()), (Some(0), "ready"));
    assert_eq!(output(&["health", "--live", "--admin", admin]).status.code(), Some(0));
    let admin = admin.to_owned();
    drop(child);
    let gone = output(&["health", "--admin", &admin]);
    assert_eq!(gone.status.code(), Some(1));
    let said = text(&gone.stderr);
    assert!(said.contains(&format!("{admin}/readyz: nobody listens there")) && said.contains("--admin"), "{said}");
}

#[test]
fn health_tells_a_wrong_address_from_a_proxy_that_is_not_there() {
    for wrong in ["9090", "127.0.0.1", "https://127.0.0.1:9090", "127.0.0.1:99999", ""] {
        let refused = output(&["health", "--admin", wrong]);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(64), "{wrong}: {said}");
        assert!(said.contains("127.0.0.1:9090"), "an example: {said}");
    }
    // Somebody listens, and is no admin page.
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = other.local_addr().expect("bound").to_string();
    let serving = std::thread::spawn(move || {
        for answer in ["HTTP/1.1 404 Not Found\r\n\r\n", "SSH-2.0-x\r\n"] {
            let (mut stream, _) = other.accept().expect("a caller");
            let _ = stream.read(&mut [0; 1024]);
            stream.write_all(answer.as_bytes()).expect("written");
        }
    });
    for reason in ["/readyz answered 404", "/readyz gave no answer in HTTP"] {
        let odd = output(&["health", "--admin", &address]);
        let said = text(&odd.stderr);
        assert_eq!(odd.status.code(), Some(1), "{said}");
        assert!(said.contains(reason) && said.contains("the setting `admin`"), "{said}");
    }
    serving.join().expect("no panic");
}

#[test]
fn a_sandbox_that_cannot_begin_says_what_to_do() {
    let file = folder("sandbox").join("file");
    std::fs::write(&file, "mine").expect("a file");
    let below = file.join("below");
    let below = below.to_str().expect("UTF-8");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = listener.local_addr().expect("bound").to_string();
    // Where somebody else has it, it is taken as well.
    let _last = TcpListener::bind("127.0.0.1:65535");
    let folder = folder("sandbox");
    let folder = folder.to_str().expect("UTF-8");
    for (arguments, code, reason, advice) in [
        (&["dev", "--dir", below][..], 1, below, "Name a folder with --dir"),
        // The last port there is, so that no next one can be taken.
        (&["dev", "--port", "65535"], 1, "65535", "Name another with --port"),
        (&["sandbox", "--dir", below], 1, below, "Name a folder with --dir"),
        (&["sandbox", "--dir", folder, "--listen", &taken], 1, &taken, "Name another with --listen"),
        (&["sandbox", "--dir", folder, "--listen", "40443"], 64, "40443", "such as 127.0.0.1:40443"),
    ] {
        let refused = output(arguments);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(code), "{said}");
        assert!(said.contains(reason) && said.contains(advice), "{arguments:?}: {said}");
    }
    assert!(text(&output(&["--help"]).stdout).contains("  sandbox  "));
}

#[test]
fn a_configuration_is_a_file() {
    for command in ["check", "run"] {
        let piped = output(&[command, "--config", "-"]);
        assert_eq!(piped.status.code(), Some(64));
        assert!(text(&piped.stderr).contains("the configuration must be a file"), "{}", text(&piped.stderr));
        let folder = folder("config");
        let named = output(&[command, "--config", folder.to_str().expect("UTF-8")]);
        assert_eq!(named.status.code(), Some(78));
        let said = text_of(&named);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(&format!("{}: this is a folder. Name the file", folder.display())), "{said}");
        // Whose writer never comes.
        let pipe = folder.join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("it starts").success());
        let named = output(&[command, "--config", pipe.to_str().expect("UTF-8")]);
        assert_eq!(named.status.code(), Some(78));
        assert!(text_of(&named).contains("does not name a regular file. Give a file"), "{}", text_of(&named));
    }
}

/// A configuration that is legal, with `{name}` where the files of the kit go.
fn legal() -> String {
    let kit = |name: &str| kit().path(name).display().to_string();
    format!(
        "listen: [\"127.0.0.1:0\"]\nadmin: [\"127.0.0.1:0\"]\nidentities:\n  main:\n    qwac: {{ certificate: {}, key: {} }}\n    \
         qsealc: {{ certificate: {}, key: {} }}\nupstreams:\n  bank:\n    url: https://127.0.0.1:1\n    environment: sandbox\n    \
         profile: becm\n    trust: {}\n    private: true\nroutes:\n  - {{ path: /sandbox/becm/stet-psd2-api/, upstream: bank }}\n",
        kit("qwac.pem"),
        kit("qwac.key"),
        kit("qsealc.pem"),
        kit("qsealc.key"),
        kit("ca.pem")
    )
}

/// `check` and `run` both exit 78 and name file, key path, a part of the reason, and what to do.
#[track_caller]
fn refused(yaml: &str, key: &str, reason: &str) {
    let file = folder("refused").join("sealproxy.yaml");
    std::fs::write(&file, yaml).expect("a file");
    let path = file.to_str().expect("UTF-8");
    let checked = output(&["check", "--config", path]);
    let said = text(&checked.stdout);
    assert_eq!(checked.status.code(), Some(78), "{said}{}", text(&checked.stderr));
    let found = said.lines().find(|line| line.starts_with("error: ") && line.contains(key) && line.contains(reason));
    let found = found.unwrap_or_else(|| panic!("no line names {key} and {reason}: {said}"));
    assert!(found.contains(path) || found.contains("sealproxy.yaml"), "{found}");
    let ran = sealproxy(&["run", "--config", path]).stdin(Stdio::null()).output().expect("it starts");
    assert_eq!(ran.status.code(), Some(78), "{}", text(&ran.stderr));
    assert!(text(&ran.stderr).contains(reason), "{}", text(&ran.stderr));
}

/// Replaces one part of the legal configuration, which must be there.
#[track_caller]
fn with(from: &str, to: &str) -> String {
    let yaml = legal();
    assert!(yaml.contains(from), "{from} is not in {yaml}");
    yaml.replace(from, to)
}

#[test]
fn a_configuration_that_is_not_meant_so_is_refused() {
    refused(&with("routes:", "rutes: []\nroutes:"), "rutes", "unknown key");
    refused(&with("private: true", "private: maybe"), "upstreams.bank.private", "");
    refused(&with("routes:", "listen: []\nroutes:"), "", "listen");
    refused(
        &with("routes:\n", "routes:\n  - { path: /sandbox/becm/stet-psd2-api/, upstream: bank }\n"),
        "routes[1]",
        "",
    );
    refused(
        &with("url: https://127.0.0.1:1", "url: ${SEALPROXY_TEST_UNSET}"),
        "upstreams.bank.url",
        "SEALPROXY_TEST_UNSET",
    );
    refused(&with("path: /sandbox/becm/stet-psd2-api/", "path: /becm/stet-psd2-api/"), "routes[0].path", "");
    refused(&with("upstream: bank }", "upstream: bank, seal: false }"), "routes[0].methods", "");
    refused(&with("upstream: bank }", "upstream: other }"), "routes[0].upstream", "other");
    refused(&with("private: true", "private: true\n    pass: [signature]"), "upstreams.bank.pass", "signature");
    refused(&with("127.0.0.1:0\"]\nadmin", "0.0.0.0:0\"]\nadmin"), "listen[0]", "");
    refused(&with("identities:", "identities: &a\n  x: *a\nidentities:"), "", "");
    refused("", "", "empty");
    refused(
        &with("private: true", "private: true\n    key_id: \"a\\\"b\""),
        "upstreams.bank.key_id",
        "cannot be written",
    );
    let fault =
        with("private: true", "private: false\n    pass: [x-sandbox-fault]").replace("127.0.0.1:1", "bank.example");
    refused(&fault, "upstreams.bank.pass", "x-sandbox-fault");
}

/// A full disk: nothing that was asked for may seem to be there.
#[test]
fn output_that_cannot_be_written_is_no_success() {
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device"));
    let output = sealproxy(&["init", "becm"]).stdout(full()).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("error: standard output cannot be written: "), "{}", text(&output.stderr));
}

#[test]
fn a_missing_configuration_is_named() {
    for command in ["check", "run"] {
        let missing = output(&[command, "--config", "/nowhere/sealproxy.yaml"]);
        assert_eq!(missing.status.code(), Some(78));
        let said = text(&missing.stdout) + &text(&missing.stderr);
        assert!(said.contains("/nowhere/sealproxy.yaml"), "{said}");
    }
}

#[test]
fn an_environment_variable_is_a_value_and_never_yaml() {
    let file = folder("env").join("sealproxy.yaml");
    let yaml = with("profile: becm", "profile: becm\n    key_id: ${KEY_ID}");
    std::fs::write(&file, format!("threads: ${{THREADS:-3}}\n{yaml}")).expect("a file");
    let checked =
        sealproxy(&["check", "--config"]).arg(&file).env("KEY_ID", "a: b # c, [d] {e}").output().expect("it starts");
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stdout));
    let checked = sealproxy(&["check", "--config"])
        .arg(&file)
        .env("KEY_ID", "a")
        .env("THREADS", "3\nhosts: [evil]")
        .output()
        .expect("it starts");
    assert_eq!(checked.status.code(), Some(78), "{}", text(&checked.stdout));
}

/// A pair of an authority of its own.
fn issue(name: &str, validity: std::ops::Range<SystemTime>, make: impl Fn(&Authority) -> Issued) -> (PathBuf, PathBuf) {
    let folder = folder(name);
    let authority = Authority::new(SystemTime::now()).expect("an authority").with_validity(validity);
    let issued = make(&authority);
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    std::fs::write(&certificate, issued.chain_pem).expect("a file");
    std::fs::write(&key, issued.key_pem).expect("a file");
    (certificate, key)
}

fn with_file(name: &str, path: &Path) -> String {
    with(&kit().path(name).display().to_string(), &path.display().to_string())
}

#[test]
fn files_that_do_not_serve_are_named_with_the_reason() {
    let now = SystemTime::now();
    let seal = |kind| move |authority: &Authority| authority.qsealc(&Tpp::demo(), kind).expect("issued");
    let qsealc = "identities.main.qsealc";
    refused(&with_file("qsealc.key", Path::new("/nowhere/key.pem")), "identities.main.qsealc.key", "/nowhere/key.pem");
    let nobody_trusted = with_file("ca.pem", Path::new("/nowhere/ca.pem"));
    refused(&nobody_trusted, "upstreams.bank.trust", "/nowhere/ca.pem");
    // All at once, and not one behind the other.
    let qwac = kit().path("qwac.pem").display().to_string();
    refused(&nobody_trusted.replace(&qwac, "/nowhere/qwac.pem"), "upstreams.bank.trust", "/nowhere/ca.pem");
    refused(&with_file("qsealc.key", &kit().path("qwac.key")), "identities.main.qsealc.key", "does not match");
    refused(&with_file("qwac.key", &kit().path("qsealc.key")), "identities.main.qwac.key", "does not match");
    let (old, old_key) = issue("expired", now - 2 * DAY..now - DAY, seal(KeyKind::Rsa2048));
    let yaml = with_file("qsealc.pem", &old)
        .replace(&kit().path("qsealc.key").display().to_string(), &old_key.display().to_string());
    refused(&yaml, qsealc, "expired");
    // httpdate cannot write it, and panics.
    let ancient = SystemTime::UNIX_EPOCH - 2 * DAY..SystemTime::UNIX_EPOCH - DAY;
    let (old, old_key) = issue("ancient", ancient, seal(KeyKind::Rsa2048));
    let yaml = with_file("qsealc.pem", &old)
        .replace(&kit().path("qsealc.key").display().to_string(), &old_key.display().to_string());
    refused(&yaml, qsealc, "expired");
    let (early, early_key) = issue("early", now + DAY..now + 2 * DAY, seal(KeyKind::Rsa2048));
    let yaml = with_file("qsealc.pem", &early)
        .replace(&kit().path("qsealc.key").display().to_string(), &early_key.display().to_string());
    refused(&yaml, qsealc, "valid only from");
    let (ec, ec_key) = issue("ec", now - DAY..now + DAY, seal(KeyKind::P256));
    let yaml = with_file("qsealc.pem", &ec)
        .replace(&kit().path("qsealc.key").display().to_string(), &ec_key.display().to_string());
    refused(&yaml, "identities.main.qsealc.key", "no signature algorithm");
    let garbage = folder("garbage").join("key.pem");
    std::fs::write(&garbage, "-----BEGIN PRIVATE KEY-----\n!!!\n-----END PRIVATE KEY-----\n").expect("a file");
    refused(&with_file("qsealc.key", &garbage), "identities.main.qsealc.key", "");
    std::fs::write(&garbage, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n")
        .expect("a file");
    refused(&with_file("qwac.key", &garbage), "identities.main.qwac.key", "encrypted");
}

#[test]
fn openssl_keys_under_2048_bits_are_refused() {
    let folder = folder("small");
    let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:1024", "-nodes", "-days", "30", "-subj", "/CN=small", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("SEALPROXY_REQUIRE_JUDGES").is_none(), "openssl is missing");
        eprintln!("SKIPPED: openssl is not installed; `.ci/run` installs it");
        return;
    }
    let yaml = with_file("qsealc.pem", &certificate)
        .replace(&kit().path("qsealc.key").display().to_string(), &key.display().to_string());
    refused(&yaml, "identities.main.qsealc.certificate", "1024 bits");
}

#[test]
fn swapped_certificates_are_a_warning() {
    let swap = |yaml: String, one: &str, other: &str| {
        let (one, other) = (kit().path(one).display().to_string(), kit().path(other).display().to_string());
        yaml.replace(&one, "\u{0}").replace(&other, &one).replace('\u{0}', &other)
    };
    let yaml = swap(swap(legal(), "qwac.pem", "qsealc.pem"), "qwac.key", "qsealc.key");
    let file = folder("swapped").join("sealproxy.yaml");
    std::fs::write(&file, yaml).expect("a file");
    let checked = output(&["check", "--config", file.to_str().expect("UTF-8")]);
    let said = text(&checked.stdout);
    assert_eq!(checked.status.code(), Some(0), "{said}");
    let swapped = said.lines().filter(|line| line.starts_with("warning: ") && line.contains("swapped?")).count();
    assert_eq!(swapped, 2, "{said}");
}

#[test]
fn an_address_in_use_is_refused_at_start_and_a_second_process_never_shares_it() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let file = folder("taken").join("sealproxy.yaml");
    std::fs::write(&file, with("127.0.0.1:0\"]\nadmin", &format!("{address}\"]\nadmin"))).expect("a file");
    let ran = sealproxy(&["run", "--config"]).arg(&file).output().expect("it starts");
    assert_eq!(ran.status.code(), Some(78));
    let said = text(&ran.stderr);
    assert!(said.contains("listen[0]") && said.contains(&address) && said.contains("Another process"), "{said}");
}

/// `sealproxy run`, up to the line that says where it listens.
pub(crate) struct Started {
    pub(crate) child: Running,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) stderr: BufReader<std::process::ChildStderr>,
}

pub(crate) fn start(yaml: &str, environment: &[(&str, &str)]) -> Started {
    start_with(yaml, environment, Stdio::null())
}

/// With its log going there.
pub(crate) fn start_with(yaml: &str, environment: &[(&str, &str)], log: Stdio) -> Started {
    let mut command = sealproxy(&["run", "--config"]);
    command.envs(environment.iter().copied());
    start_by(command, yaml, log)
}

/// By a command that the configuration's file is the last argument of.
fn start_by(mut command: Command, yaml: &str, log: Stdio) -> Started {
    let file = folder("run").join("sealproxy.yaml");
    std::fs::write(&file, yaml).expect("a file");
    command.arg(&file).stderr(Stdio::piped()).stdout(log);
    let mut child = Running(command.spawn().expect("it starts"));
    let mut stderr = BufReader::new(child.0.stderr.take().expect("piped"));
    let lines = read_until(&mut stderr, "sealproxy ");
    let bodies = lines.last().and_then(|line| line.split("; request bodies ").nth(1)).expect("how much they may be");
    assert!(bodies.contains("B in all"), "{lines:?}");
    let place = |number: usize| {
        let text =
            lines.last().and_then(|line| line.split("http://").nth(number)).and_then(|rest| rest.split(';').next());
        text.expect("an address").parse().expect("an address")
    };
    Started { child, address: place(1), admin: place(2), stderr }
}

/// What `sealproxy check` makes of this configuration.
#[cfg(feature = "pkcs11")]
pub(crate) fn checked(yaml: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    ended("check", yaml, environment)
}

/// What a command comes to that is not going to serve.
#[cfg(feature = "pkcs11")]
pub(crate) fn ended(command: &str, yaml: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let file = folder(command).join("sealproxy.yaml");
    std::fs::write(&file, yaml).expect("a file");
    let output = sealproxy(&[command, "--config"]).arg(&file).envs(environment.iter().copied()).output();
    let output = output.expect("it starts");
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn run_says_what_makes_the_seals() {
    let file = folder("run").join("sealproxy.yaml");
    std::fs::write(&file, legal()).expect("a file");
    let mut command = sealproxy(&["run", "--config"]);
    command.arg(&file).stderr(Stdio::piped()).stdout(Stdio::piped());
    let mut child = Running(command.spawn().expect("it starts"));
    let said = read_until(&mut BufReader::new(child.0.stderr.take().expect("piped")), "sealproxy ");
    let seals: Vec<_> = said.iter().filter_map(|line| line.strip_prefix("seals of bank: ")).collect();
    assert!(seals.len() == 1 && (seals[0] == "batch" || seals[0].contains(", one at a time: ")), "{said:?}");
    assert_eq!(child.terminate(), Some(0));
    let mut log = String::new();
    child.0.stdout.take().expect("piped").read_to_string(&mut log).expect("text");
    assert_eq!(log, "", "a start is no request and no change");
}

#[test]
fn a_process_that_is_short_of_files_says_so_once_and_serves_on() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 40; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_sealproxy"), "run", "--config"]);
    let Started { mut child, address, admin, stderr: _stderr } = start_by(command, &legal(), Stdio::piped());
    let crowd: Vec<_> = (0..48).map(|_| TcpStream::connect(address).expect("the kernel lets it in")).collect();
    let mut log = BufReader::new(child.0.stdout.take().expect("piped"));
    let mut line = String::new();
    log.read_line(&mut line).expect("a line");
    let said: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(said["event"], "accept-failed", "{line}");
    assert!(line.contains("Too many open files") && line.contains("LimitNOFILE"), "{line}");
    std::thread::sleep(Duration::from_millis(300));
    drop(crowd);
    // Those who waited are let in, and are gone; whoever comes now is served.
    assert!(get(address, "/nowhere", "").starts_with("HTTP/1.1 404"));
    let metrics = get(admin, "/metrics", "");
    let failures = metrics.lines().find_map(|line| line.strip_prefix("sealproxy_accept_failures_total "));
    assert!(failures.expect("it is counted").parse::<u32>().expect("a number") > 2, "{failures:?}");
    assert_eq!(child.terminate_at_once(), Some(0));
    let mut rest = String::new();
    log.read_to_string(&mut rest).expect("text");
    assert!(!rest.contains("accept-failed"), "{rest}");
}

#[test]
fn run_lingers_after_sigterm_and_exits_0() {
    let Started { mut child, stderr: mut reader, .. } = start(&format!("{}timeouts: {{ linger: 1s }}\n", legal()), &[]);
    let began = Instant::now();
    assert_eq!(child.terminate(), Some(0));
    assert!((1.0..3.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    let said = read_until(&mut reader, "stopped");
    assert!(said[0].starts_with("SIGTERM: not ready any more; serving on for 1s"), "{said:?}");
}

#[test]
fn sigint_and_a_second_sigterm_end_the_linger() {
    for signals in [&["INT"][..], &["TERM", "TERM"], &["TERM", "INT"]] {
        let Started { mut child, stderr: _reader, .. } = start(&legal(), &[]);
        let began = Instant::now();
        for name in signals {
            child.signal(name);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(child.0.wait().expect("it ends").code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(3), "{signals:?} {:?}", began.elapsed());
    }
}

/// Does something while the process stands still.
pub(crate) fn standing_still<R>(child: &Running, act: impl FnOnce() -> R) -> R {
    child.signal("STOP");
    until_stopped(child);
    let done = act();
    child.signal("CONT");
    done
}

/// The signal is sent before each thread has heard of it, and one that has not takes callers in.
fn until_stopped(child: &Running) {
    let tasks = PathBuf::from(format!("/proc/{}/task", child.0.id()));
    let is_stopped = |task: PathBuf| {
        let stat = std::fs::read_to_string(task.join("stat")).expect("it lives");
        stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
    };
    let began = Instant::now();
    while !std::fs::read_dir(&tasks).expect("it lives").all(|task| is_stopped(task.expect("a thread").path())) {
        assert!(began.elapsed() < Duration::from_secs(10), "it does not stop");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn whoever_waits_in_the_accept_queue_at_the_end_is_answered() {
    let Started { mut child, stderr: _reader, address, .. } = start(&legal(), &[]);
    let waiting = standing_still(&child, || {
        let connect = |_| {
            let mut stream = TcpStream::connect(address).expect("the kernel lets it in");
            write!(stream, "GET /nowhere HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("written");
            stream
        };
        let waiting: Vec<TcpStream> = (0..20).map(connect).collect();
        child.signal("INT");
        waiting
    });
    for mut stream in waiting {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer, and then the end");
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close"), "{answer}");
    }
    assert_eq!(child.0.wait().expect("it ends").code(), Some(0));
}

/// The lines of a `run` that does not start.
#[track_caller]
fn not_started(yaml: &str) -> Vec<String> {
    let file = folder("stopped").join("sealproxy.yaml");
    std::fs::write(&file, yaml).expect("a file");
    let ran = sealproxy(&["run", "--config"]).arg(&file).stdin(Stdio::null()).output().expect("it starts");
    assert_eq!(ran.status.code(), Some(78), "{}", text(&ran.stderr));
    text(&ran.stderr).lines().map(str::to_owned).collect()
}

#[test]
fn run_that_does_not_start_ends_with_what_stops_it() {
    let broken = with_file("qsealc.key", Path::new("/nowhere/key.pem"));
    let said = not_started(&broken);
    let last = said.last().expect("a line");
    assert!(last.contains("identities: no identity is usable, and nothing starts without one. Mend"), "{said:?}");
    // Two identities, one of them sound.
    let legal = legal();
    let (_, sound) = legal.split_once("  main:").expect("an identity");
    let (sound, _) = sound.split_once("upstreams:\n").expect("upstreams");
    let (identities, rest) = broken.split_once("upstreams:\n").expect("upstreams");
    let rest = rest.replace("  bank:\n", "  bank:\n    identity: main\n");
    let trust = kit().path("ca.pem").display().to_string();
    let two = format!(
        "{identities}  sound:{sound}upstreams:\n  other: {{ url: \"https://127.0.0.1:2\", environment: sandbox, profile: becm, \
         private: true, identity: sound, trust: {trust} }}\n{rest}  - {{ path: /sandbox/becm/stet-psd2-api/, upstream: other }}\n"
    );
    let said = not_started(&format!("start: strict\n{two}"));
    let last = said.last().expect("a line");
    assert!(last.contains("start: `start: strict` lets nothing start while an identity"), "{said:?}");
    assert_eq!(start(&two, &[]).child.terminate(), Some(0));
}

#[test]
fn the_files_of_a_seal_whose_time_is_to_come_may_be_missing() {
    let kit = |name: &str| kit().path(name).display().to_string();
    let two = |from: [&str; 2]| {
        let one = format!("{{ certificate: {}, key: {} }}", kit("qsealc.pem"), kit("qsealc.key"));
        let seals = format!(
            "[{{ name: now, certificate: {}, key: {} }}, {{ name: next, certificate: next.pem, key: next.key }}]",
            kit("qsealc.pem"),
            kit("qsealc.key")
        );
        with(
            "private: true",
            &format!(
                "private: true\n    seal_keys: [{{ qsealc: now, key_id: a, active_from: {} }}, {{ qsealc: next, key_id: b, \
                 active_from: {} }}]",
                from[0], from[1]
            ),
        )
        .replace(&one, &seals)
    };
    let (past, future) = ("2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z");
    for (from, code, level) in
        [([past, future], 0, "warning"), ([past, past], 78, "error"), ([future, future], 78, "error")]
    {
        let file = folder("early").join("sealproxy.yaml");
        std::fs::write(&file, two(from)).expect("a file");
        let checked = output(&["check", "--config", file.to_str().expect("UTF-8")]);
        let said = text(&checked.stdout);
        assert_eq!(checked.status.code(), Some(code), "{said}");
        let missing = said.lines().filter(|line| line.contains("next.") && line.contains("does not exist"));
        let levels: Vec<_> = missing.map(|line| line.split(':').next().unwrap_or_default()).collect();
        assert_eq!(levels, [level, level], "{said}");
    }
}

/// A certificate of OpenSSL's over a key that it wrote in this way.
fn openssl_pair(key: &[&str]) -> Option<(PathBuf, PathBuf)> {
    let folder = folder("openssl");
    let (secret, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
    let made = Command::new("openssl").args(key).arg("-out").arg(&secret).stderr(Stdio::null()).status();
    if !made.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("SEALPROXY_REQUIRE_JUDGES").is_none(), "openssl is missing");
        eprintln!("SKIPPED: openssl is not installed; `.ci/run` installs it");
        return None;
    }
    let config = folder.join("leaf.cnf");
    std::fs::write(&config, "[req]\ndistinguished_name=d\nx509_extensions=e\n[d]\n[e]\nbasicConstraints=CA:FALSE\n")
        .expect("a file");
    let mut request = Command::new("openssl");
    request.args(["req", "-x509", "-days", "30", "-subj", "/CN=ours", "-config"]).arg(&config).arg("-key");
    request.arg(&secret).arg("-out").arg(&certificate);
    assert!(request.status().expect("openssl").success());
    Some((certificate, secret))
}

/// SEC1, as `openssl ecparam` writes it, behind a block with the curve.
#[test]
fn keys_are_taken_as_openssl_writes_them_or_refused_in_our_words() {
    let sec1 = |curve| ["ecparam", "-genkey", "-name", curve];
    let said = |part: &str, (certificate, key): &(PathBuf, PathBuf)| {
        let ours = |name: String| kit().path(&name).display().to_string();
        let yaml = with_file(&format!("{part}.pem"), certificate)
            .replace(&ours(format!("{part}.key")), &key.display().to_string());
        let file = folder("keys").join("sealproxy.yaml");
        std::fs::write(&file, yaml).expect("a file");
        let said = text(&output(&["check", "--config", file.to_str().expect("UTF-8")]).stdout);
        let about = format!("identities.main.{part}.key: ");
        said.lines().filter_map(|line| line.split_once(&about)).map(|(_, said)| said.to_owned()).collect::<String>()
    };
    let Some(ours) = openssl_pair(&sec1("prime256v1")) else { return };
    assert!(said("qsealc", &ours).contains("no signature algorithm"), "{}", said("qsealc", &ours));
    assert!(said("qsealc", &ours).ends_with("This bank takes seals of RSA keys"), "{}", said("qsealc", &ours));
    assert_eq!(said("qwac", &ours), "");
    let kind = "the key cannot be used: it is of another kind, or on another curve. Give an RSA key of 2048";
    for other in [&sec1("secp384r1")[..], &["genpkey", "-algorithm", "ed25519"]] {
        let other = openssl_pair(other).expect("made");
        assert!(said("qsealc", &other).contains(kind), "{other:?}: {}", said("qsealc", &other));
    }
    let other = openssl_pair(&sec1("secp521r1")).expect("made");
    assert!(said("qwac", &other).contains("the key is EC on P-521"), "{}", said("qwac", &other));
    // Beside a certificate that is large enough.
    let small = openssl_pair(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]).expect("made");
    let small = (kit().path("qsealc.pem"), small.1);
    assert!(said("qsealc", &small).contains("fewer than 2048 bits"), "{}", said("qsealc", &small));
}

#[test]
fn banks_that_share_a_path_are_told_of_once() {
    let text = legal();
    let (before, rest) = text.split_once("  bank:\n").expect("an upstream");
    let (settings, after) = rest.split_once("routes:\n").expect("routes");
    let route = after.lines().next().expect("a route");
    let names: Vec<String> = (0..9).map(|number| format!("bank{number}")).collect();
    let upstreams: String = names
        .iter()
        .map(|name| format!("  {name}:\n{}", settings.replace("https://127.0.0.1", &format!("https://{name}.invalid"))))
        .collect();
    let routes: String = names
        .iter()
        .map(|name| format!("{}\n", route.replace("upstream: bank", &format!("upstream: {name}"))))
        .collect();
    let file = folder("banks").join("sealproxy.yaml");
    std::fs::write(&file, format!("{before}{upstreams}routes:\n{routes}")).expect("a file");
    let said = text_of(&sealproxy(&["check", "--config"]).arg(&file).output().expect("it starts"));
    let notes: Vec<_> = said.lines().filter(|line| line.contains("must name the bank")).collect();
    assert!(notes.len() == 1 && notes[0].contains("bank0, bank1, bank2"), "{said}");
}
