//! Judges that share no code with us: OpenSSL as the bank and as the verifier, nginx as the bank, curl as the caller.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::{Rig, Running, config, folder, header, kit};

const API: &str = "/sandbox/becm/stet-psd2-api/v2.1";

/// Whether every one of these is here. A missing judge is said out loud, and fails where
/// `SEALPROXY_REQUIRE_JUDGES` is set.
pub(crate) fn present(judges: &[&str]) -> bool {
    let missing: Vec<_> = judges.iter().filter(|judge| which(judge).is_none()).collect();
    assert!(missing.is_empty() || std::env::var_os("SEALPROXY_REQUIRE_JUDGES").is_none(), "missing: {missing:?}");
    if !missing.is_empty() {
        eprintln!("SKIPPED: {missing:?} not installed; `.ci/run` installs them");
    }
    missing.is_empty()
}

pub(crate) fn which(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    let sbin = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Where nobody listens, and nobody else begins to: below the ports that systems give out to whoever asks for any.
pub(crate) fn free_port() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id() * 64;
    let port = || 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
    let address = || SocketAddr::from(([127, 0, 0, 1], u16::try_from(port()).expect("below 30,000")));
    std::iter::repeat_with(address).find(|address| TcpListener::bind(address).is_ok()).expect("one of many")
}

pub(crate) fn wait_for(address: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on {address}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command to its end; returns its standard output.
pub(crate) fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Has OpenSSL check `Signature` and `Digest` of a request as the wire had it.
pub(crate) fn openssl_verifies(head: &str, body: &[u8]) {
    let folder = folder("openssl");
    let signature = header(head, "signature").expect("a signature");
    let parameter = |name: &str| {
        let rest = signature.split_once(&format!("{name}=\"")).expect("a parameter").1;
        rest.split_once('"').expect("closed").0
    };
    let line = |name: &str| {
        let mut first = head.lines().next().expect("a request line").split(' ');
        let (method, target) = (first.next().expect("a method"), first.next().expect("a target"));
        match name {
            "(request-target)" => format!("{name}: {} {target}", method.to_ascii_lowercase()),
            _ => format!("{name}: {}", header(head, name).expect("a signed header is sent")),
        }
    };
    let string = parameter("headers").split(' ').map(line).collect::<Vec<_>>().join("\n");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    };
    let (string, body_file) = (file("string", string.as_bytes()), file("body", body));
    let binary = file("signature", &STANDARD.decode(parameter("signature")).expect("base64"));
    let key = output(Command::new("openssl").args(["x509", "-pubkey", "-noout", "-in"]).arg(kit().path("qsealc.pem")));
    let key = file("key.pem", &key);
    let said = output(
        Command::new("openssl").args(["dgst", "-sha256", "-verify"]).arg(key).arg("-signature").arg(binary).arg(string),
    );
    assert_eq!(String::from_utf8_lossy(&said).trim(), "Verified OK");
    if !body.is_empty() {
        let digest = output(Command::new("openssl").args(["dgst", "-sha256", "-binary"]).arg(body_file));
        assert_eq!(header(head, "digest"), Some(&*format!("SHA-256={}", STANDARD.encode(digest))));
    }
    let der = output(Command::new("openssl").args(["x509", "-outform", "DER", "-in"]).arg(kit().path("qsealc.pem")));
    let fingerprint = output(Command::new("openssl").args(["dgst", "-sha1", "-r"]).arg(file("leaf.der", &der)));
    assert_eq!(parameter("keyId"), &String::from_utf8_lossy(&fingerprint)[..40], "key_id");
}

/// OpenSSL's own TLS server, which prints what it receives and sends what it is told.
pub(crate) struct OpenSslBank {
    process: Running,
    received: BufReader<std::process::ChildStdout>,
}

impl OpenSslBank {
    /// `options` say which version it speaks, and what else is special about it.
    pub(crate) fn start(address: SocketAddr, options: &[&str]) -> Self {
        let mut process = Command::new("openssl")
            .args(["s_server", "-quiet", "-naccept", "2", "-Verify", "2", "-verify_return_error"])
            .args(options)
            .args(["-accept", &address.port().to_string()])
            .arg("-cert")
            .arg(kit().path("bank.pem"))
            .arg("-key")
            .arg(kit().path("bank.key"))
            .arg("-CAfile")
            .arg(kit().path("ca.pem"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl starts");
        wait_for(address);
        let received = BufReader::new(process.stdout.take().expect("piped"));
        Self { process: Running(process), received }
    }

    /// Takes one request, answers it with 200.
    pub(crate) fn serve_one(&mut self) -> (String, Vec<u8>) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.received.read_line(&mut head).expect("a line") > 0, "openssl ended after {head:?}");
        }
        let length = header(&head, "content-length").map_or(0, |length| length.parse().expect("a length"));
        let mut body = vec![0; length];
        std::io::Read::read_exact(&mut self.received, &mut body).expect("a body");
        let stdin = self.process.0.stdin.as_mut().expect("piped");
        stdin
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            .and_then(|()| stdin.flush())
            .expect("an answer");
        (head.trim_end().to_owned(), body)
    }
}

#[test]
fn openssl_receives_and_verifies_what_was_sealed() {
    if !present(&["openssl", "curl"]) {
        return;
    }
    for protocol in ["-tls1_2", "-tls1_3"] {
        let address = free_port();
        let mut bank = OpenSslBank::start(address, &[protocol]);
        let rig = Rig::start(&config(address, "", ""));
        let url = format!("http://{}{API}/payment-requests?a=%2F%20b&c", rig.address());
        let caller = std::thread::spawn(move || {
            output(
                Command::new("curl")
                    .args(["-sSf", "--max-time", "10", "--json", "{\"amount\": \"1.00\"}"])
                    .args(["-H", "Authorization: Bearer secret", "-H", "Expect: 100-continue"])
                    .arg(url),
            )
        });
        let (head, body) = bank.serve_one();
        assert_eq!(caller.join().expect("no panic"), b"{}");
        assert_eq!(body, b"{\"amount\": \"1.00\"}");
        assert!(head.starts_with(&format!("POST {API}/payment-requests?a=%2F%20b&c HTTP/1.1\r\n")), "{head}");
        openssl_verifies(&head, &body);
    }
}

/// nginx as a bank that demands the client certificate and writes down what it receives.
pub(crate) struct NginxBank {
    _process: Running,
    folder: std::path::PathBuf,
    pub(crate) address: SocketAddr,
}

impl NginxBank {
    fn start() -> Self {
        Self::trusting(&kit().path("ca.pem"), "TLSv1.2 TLSv1.3")
    }

    /// One that trusts these authorities of client certificates and speaks these versions.
    pub(crate) fn trusting(authorities: &Path, protocols: &str) -> Self {
        let (folder, address) = (folder("nginx"), free_port());
        let body = folder.join("received");
        std::fs::create_dir_all(&body).expect("a folder");
        std::fs::write(folder.join("nginx.conf"), nginx_conf(&folder, address, authorities, protocols))
            .expect("a file");
        let process = Command::new(which("nginx").expect("nginx is present"))
            .arg("-e")
            .arg(folder.join("error.log"))
            .arg("-c")
            .arg(folder.join("nginx.conf"))
            .spawn()
            .expect("nginx starts");
        let bank = Self { _process: Running(process), folder, address };
        wait_for(address);
        bank
    }

    /// The requests so far: a line of `name=value` pairs each, between tabs.
    pub(crate) fn received(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let log = std::fs::read_to_string(self.folder.join("access.log")).unwrap_or_default();
            let lines: Vec<String> = log.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(Instant::now() < deadline, "{count} requests expected, nginx saw {lines:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn nginx_conf(folder: &Path, address: SocketAddr, authorities: &Path, protocols: &str) -> String {
    let path = |name: &str| kit().path(name).display().to_string();
    format!(
        "daemon off; master_process off; pid {folder}/pid; worker_rlimit_nofile 1024;
events {{ worker_connections 256; }}
http {{
  log_format seal escape=none 'request-line=$request\thost=$http_host\tdate=$http_date\tx-request-id=$http_x_request_id\t'
    'digest=$http_digest\tcontent-type=$content_type\tsignature=$http_signature\tauthorization=$http_authorization\t'
    'content-length=$content_length\tverify=$ssl_client_verify\tdn=$ssl_client_s_dn\tconnection=$connection\tbody=$request_body';
  access_log {folder}/access.log seal;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen {address} ssl; keepalive_requests 1000000;
    ssl_certificate {bank}; ssl_certificate_key {key}; ssl_client_certificate {ca}; ssl_verify_client on; ssl_protocols {protocols};
    location / {{ client_body_in_single_buffer on; proxy_pass http://unix:{folder}/inner.sock; }}
  }}
  server {{ listen unix:{folder}/inner.sock; access_log off; location / {{ return 200 'sealed'; }} }}
}}",
        folder = folder.display(),
        bank = path("bank.pem"),
        key = path("bank.key"),
        ca = authorities.display(),
    )
}

/// Rebuilds a head out of nginx's line, for the verifier.
pub(crate) fn head_of(line: &str) -> (String, Vec<u8>) {
    let value = |name: &str| {
        line.split('\t').find_map(|pair| pair.strip_prefix(&format!("{name}="))).unwrap_or_default().to_owned()
    };
    let names = ["host", "date", "x-request-id", "digest", "content-type", "signature"];
    let fields = names
        .iter()
        .filter(|name| !matches!(&*value(name), "" | "-"))
        .map(|name| format!("\r\n{name}: {}", value(name)));
    (format!("{}{}", value("request-line"), fields.collect::<String>()), value("body").into_bytes())
}

#[test]
fn nginx_with_a_mandatory_client_certificate_is_the_bank_and_curl_the_caller() {
    if !present(&["openssl", "nginx", "curl"]) {
        return;
    }
    let bank = NginxBank::start();
    let rig = Rig::start(&config(bank.address, "", ""));
    let origin = format!("http://{}", rig.address());
    let curl = |arguments: &[&str]| output(Command::new("curl").args(["-sSf", "--max-time", "10"]).args(arguments));
    let accounts = format!("{API}/accounts?x=%20&y=%2F;z&&");
    assert_eq!(curl(&["-H", "Authorization: Bearer a", &format!("{origin}{accounts}")]), b"sealed");
    assert_eq!(curl(&["--json", "{\"a\":1}", &format!("{origin}{API}/payment-requests")]), b"sealed");
    assert_eq!(
        curl(&["-H", "Transfer-Encoding: chunked", "--json", "{\"a\":2}", &format!("{origin}{API}/payment-requests")]),
        b"sealed"
    );
    assert_eq!(curl(&["--http2-prior-knowledge", &format!("{origin}{API}/accounts")]), b"sealed");
    assert_eq!(
        curl(&["--proxy", &origin, &format!("http://localhost:{}{API}/accounts", bank.address.port())]),
        b"sealed"
    );
    let lines = bank.received(5);
    for line in &lines {
        assert!(line.contains("verify=SUCCESS"), "{line}");
        let (head, body) = head_of(line);
        openssl_verifies(&head, &body);
    }
    assert!(lines[0].starts_with(&format!("request-line=GET {accounts} HTTP/1.1\t")), "{}", lines[0]);
    assert!(lines[2].contains("content-length=7\t"), "{}", lines[2]);
}
