//! Seal keys that never leave a token: SoftHSM2, as it is and behind a module that makes it slow.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cli::{Started, checked, start};
use crate::outside::{openssl_verifies, present};
use crate::support::{Answer, FakeBank, config, folder, header, kit};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
const PIN: &str = "1234";

/// A token of this test alone, with the kit's seal key on it.
struct SoftHsm {
    folder: PathBuf,
    module: PathBuf,
}

impl SoftHsm {
    /// `None` where SoftHSM2 is not installed.
    fn new() -> Option<Self> {
        if !present(&["softhsm2-util"]) {
            return None;
        }
        let modules = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"];
        let module = modules.iter().map(PathBuf::from).find(|module| module.exists()).expect("SoftHSM2's module");
        let folder = folder("softhsm");
        std::fs::create_dir_all(folder.join("tokens")).expect("a folder");
        let conf = format!("directories.tokendir = {}\nobjectstore.backend = file\n", folder.join("tokens").display());
        std::fs::write(folder.join("softhsm2.conf"), conf).expect("a file");
        std::fs::write(folder.join("pin"), format!("{PIN}\n")).expect("a file");
        let token = Self { folder, module };
        token.util(&["--init-token", "--free", "--label", "seals", "--pin", PIN, "--so-pin", "12345678"]);
        token.import("qsealc.key", "qseal", "01");
        Some(token)
    }

    fn util(&self, arguments: &[&str]) {
        let done = Command::new("softhsm2-util").args(arguments).env("SOFTHSM2_CONF", self.conf()).output();
        let done = done.expect("it starts");
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn import(&self, key: &str, label: &str, id: &str) {
        let key = kit().path(key);
        let key = key.to_str().expect("UTF-8");
        self.util(&["--import", key, "--token", "seals", "--label", label, "--id", id, "--pin", PIN]);
    }

    fn conf(&self) -> PathBuf {
        self.folder.join("softhsm2.conf")
    }

    fn uri(&self, names: &str) -> String {
        self.uri_through(&self.module, names)
    }

    fn uri_through(&self, module: &Path, names: &str) -> String {
        let pin = self.folder.join("pin");
        format!("pkcs11:{names}?module-path={}&pin-source={}", module.display(), pin.display())
    }

    /// The usual configuration, with this key in place of the file.
    fn config(&self, bank: SocketAddr, uri: &str, top: &str) -> String {
        let file = format!("key: {}", kit().path("qsealc.key").display());
        config(bank, "", top).replace(&file, &format!("key: \"{uri}\""))
    }

    fn start(&self, yaml: &str) -> Started {
        start(yaml, &[("SOFTHSM2_CONF", self.conf().to_str().expect("UTF-8"))])
    }

    fn check(&self, uri: &str) -> (Option<i32>, String) {
        let bank = "127.0.0.1:1".parse().expect("an address");
        checked(&self.config(bank, uri, ""), &[("SOFTHSM2_CONF", self.conf().to_str().expect("UTF-8"))])
    }
}

/// The module that makes this token slow, and the file that says how slow.
fn slow_module(token: &SoftHsm) -> (PathBuf, PathBuf) {
    let (module, file) = (token.folder.join("slow.so"), token.folder.join("slow.ms"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/behaviour/token/slow_module.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", "-pthread", "-o"]).arg(&module).arg(source).arg("-ldl");
    assert!(compiler.status().expect("a C compiler").success());
    std::fs::write(&file, "0").expect("a file");
    (module, file)
}

fn get(address: SocketAddr) -> Answer {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    write!(stream, "GET {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    Answer::parse(&answer)
}

#[test]
fn a_key_on_a_token_seals_as_one_in_a_file() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    for names in ["token=seals;object=qseal", "token=seals;id=%01;type=private"] {
        let proxy = token.start(&token.config(bank.address, &token.uri(names), ""));
        assert_eq!(get(proxy.address).status, 200);
        let body = "{\"a\":1}";
        let mut stream = TcpStream::connect(proxy.address).expect("it listens");
        write!(
            stream,
            "POST {ACCOUNTS} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            proxy.address,
            body.len()
        )
        .expect("written");
        stream.read_to_end(&mut Vec::new()).expect("an answer");
    }
    let received = bank.received();
    assert_eq!(received.len(), 4);
    for request in received {
        openssl_verifies(&request.head, &request.body);
    }
}

#[test]
fn what_is_wrong_with_a_token_is_said_at_start() {
    let Some(token) = SoftHsm::new() else { return };
    token.import("bank.key", "of-another", "02");
    token.import("qsealc.key", "twice", "03");
    token.import("qsealc.key", "twice", "04");
    assert_eq!(token.check(&token.uri("token=seals;object=qseal")).0, Some(0));
    for (names, reason) in [
        ("token=other;object=qseal", "there is no such token"),
        ("token=seals;object=other", "there is no such private key on the token"),
        ("token=seals;object=twice", "2 private keys on the token are so named"),
        ("token=seals;object=of-another", "the key does not match its certificate"),
        ("token=seals", "names no key"),
    ] {
        let (code, said) = token.check(&token.uri(names));
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("identities.main.qsealc.key: ") && said.contains(reason), "{names}: {said}");
    }
    let (_, said) = token.check(&token.uri_through(Path::new("/nowhere.so"), "token=seals;object=qseal"));
    assert!(said.contains("/nowhere.so: the module cannot be loaded"), "{said}");
    std::fs::remove_file(token.folder.join("pin")).expect("a file");
    let (_, said) = token.check(&token.uri("token=seals;object=qseal"));
    assert!(said.contains("pin: the PIN cannot be read"), "{said}");
    std::fs::write(token.folder.join("pin"), "4321").expect("a file");
    let (_, said) = token.check(&token.uri("token=seals;object=qseal"));
    assert!(said.contains("the token refused the PIN") && !said.contains("4321"), "{said}");
}

#[test]
fn a_token_that_is_lost_is_found_again_and_nothing_leaves_unsealed_meanwhile() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    let proxy = token.start(&token.config(bank.address, &token.uri("token=seals;object=qseal"), ""));
    assert_eq!(get(proxy.address).status, 200);
    let (tokens, away) = (token.folder.join("tokens"), token.folder.join("away"));
    std::fs::rename(&tokens, &away).expect("a folder");
    let deadline = Instant::now() + Duration::from_secs(10);
    let lost = loop {
        let answer = get(proxy.address);
        if answer.status != 200 {
            break answer;
        }
        assert!(Instant::now() < deadline, "the token goes on signing");
    };
    assert_eq!((lost.status, &*lost.problem(), &*lost.outcome()), (503, "seal-unavailable", "not_sent"));
    assert!(lost.header("retry-after").is_some());
    let before = bank.received().len();
    assert_eq!(get(proxy.address).status, 503);
    assert_eq!(bank.received().len(), before, "nothing leaves without a seal");
    std::fs::rename(&away, &tokens).expect("a folder");
    let deadline = Instant::now() + Duration::from_secs(10);
    while get(proxy.address).status != 200 {
        assert!(Instant::now() < deadline, "the token is not found again");
        std::thread::sleep(Duration::from_millis(100));
    }
    bank.received().iter().for_each(|request| openssl_verifies(&request.head, &request.body));
}

#[test]
fn fifty_callers_of_a_slow_token_get_fresh_seals_or_are_told_that_nothing_was_sent() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    let (module, file) = slow_module(&token);
    let real = token.module.to_str().expect("UTF-8");
    let uri = token.uri_through(&module, "token=seals;object=qseal");
    let yaml = token.config(bank.address, &uri, "limits: { waiting_seals: 30 }\n");
    let conf = token.conf();
    let environment = [
        ("SOFTHSM2_CONF", conf.to_str().expect("UTF-8")),
        ("SLOW_MODULE_REAL", real),
        ("SLOW_MODULE_FILE", file.to_str().expect("UTF-8")),
    ];
    let proxy = start(&yaml, &environment);
    assert_eq!(get(proxy.address).status, 200);
    std::fs::write(&file, "100").expect("a file");
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..50).map(|_| scope.spawn(|| get(proxy.address))).collect();
        callers.into_iter().map(|caller| caller.join().expect("no panic")).collect()
    });
    let sealed = answers.iter().filter(|answer| answer.status == 200).count();
    assert!((10..=30).contains(&sealed), "ten a second, for two seconds: {sealed}");
    let refused = answers.iter().filter(|answer| answer.status != 200);
    let mut kinds: Vec<String> = refused
        .map(|answer| {
            assert_eq!((answer.status, &*answer.outcome()), (503, "not_sent"), "{answer:?}");
            assert!(answer.header("retry-after").is_some());
            answer.problem()
        })
        .collect();
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds, ["seal-busy", "seal-timeout"], "who may not wait, and who waited too long");
    for request in bank.received() {
        let date = httpdate::parse_http_date(header(&request.head, "date").expect("a date")).expect("a date");
        let age = request.at.duration_since(date).unwrap_or_default();
        assert!(age < Duration::from_secs(3), "{age:?}, cut to whole seconds");
        openssl_verifies(&request.head, &request.body);
    }
    assert_eq!(bank.received().len(), sealed + 1);
}

/// Two banks, one sealed for by a token that hangs.
#[test]
fn a_token_that_hangs_stalls_nobody_who_does_not_need_it() {
    let Some(token) = SoftHsm::new() else { return };
    let (hanging, other) = (FakeBank::good(), FakeBank::good());
    let (module, file) = slow_module(&token);
    let uri = token.uri_through(&module, "token=seals;object=qseal");
    let base = token.config(hanging.address, &uri, "");
    let path = |name: &str| kit().path(name).display().to_string();
    let yaml = base
        .replace(
            "upstreams:\n",
            &format!(
                "  second:\n    qwac: {{ certificate: {}, key: {} }}\n    qsealc: {{ certificate: {}, key: {} }}\nupstreams:\n",
                path("qwac.pem"),
                path("qwac.key"),
                path("qsealc.pem"),
                path("qsealc.key")
            ),
        )
        .replace(
            "routes:\n",
            &format!(
                "  other:\n    url: https://localhost:{}\n    environment: sandbox\n    identity: second\n    profile: becm\n    \
                 trust: {}\n    private: true\nroutes:\n  \
                 - {{ path: /sandbox/cic/stet-psd2-api/, upstream: other, methods: [GET] }}\n",
                other.address.port(),
                path("ca.pem")
            ),
        );
    let conf = token.conf();
    let environment = [
        ("SOFTHSM2_CONF", conf.to_str().expect("UTF-8")),
        ("SLOW_MODULE_REAL", token.module.to_str().expect("UTF-8")),
        ("SLOW_MODULE_FILE", file.to_str().expect("UTF-8")),
    ];
    let mut proxy = start(&yaml, &environment);
    let address = proxy.address;
    let quick = || {
        let mut stream = TcpStream::connect(address).expect("it listens");
        let began = Instant::now();
        write!(
            stream,
            "GET /sandbox/cic/stet-psd2-api/v2.1/accounts HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )
        .expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        began.elapsed()
    };
    let p99 = || {
        let mut took: Vec<Duration> = (0..100).map(|_| quick()).collect();
        took.sort();
        took[98]
    };
    assert_eq!(get(address).status, 200);
    let quiet = p99();
    std::fs::write(&file, "60000").expect("a file");
    let stuck: Vec<_> = (0..20).map(|_| std::thread::spawn(move || get(address))).collect();
    std::thread::sleep(Duration::from_millis(200));
    let loaded = p99();
    for caller in stuck {
        let answer = caller.join().expect("no panic");
        assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (503, "seal-timeout", "not_sent"));
    }
    // The floor is what a busy test machine makes of two cores.
    assert!(loaded < (2 * quiet).max(quiet + Duration::from_millis(20)), "{quiet:?} {loaded:?}");
    // A thread that hangs in the module does not keep the process.
    let began = Instant::now();
    assert_eq!(proxy.child.terminate_at_once(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
