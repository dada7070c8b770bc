//! QWAC keys that never leave a token. The banks end each connection and resume no session, so that each request needs
//! a handshake, and each handshake a signature.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::server::NoServerSessionStorage;
use sealproxy::sandbox::authority::{Authority, KeyKind, Tpp};

use super::softhsm::{Slow, SoftHsm, with_key};
use super::{Neighbours, get, keeps_its_pace, no_date_is_old};
use crate::cli::start;
use crate::outside::{NginxBank, OpenSslBank, free_port, head_of, openssl_verifies, present};
use crate::support::{Act, Answer, FakeBank, Manner, Running, file_config, folder, kit, ok};

/// The kit's QWAC, and one on P-256 of another authority.
struct Qwacs {
    token: SoftHsm,
    folder: PathBuf,
}

impl Qwacs {
    fn new() -> Option<Self> {
        let (token, folder) = (SoftHsm::new()?, folder("qwac"));
        let authority = Authority::new(SystemTime::now()).expect("an authority");
        let issued = authority.qwac(&Tpp::demo(), KeyKind::P256).expect("a QWAC");
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("a file");
        write("ca.pem", authority.certificate_pem());
        write("qwac.pem", &issued.chain_pem);
        write("qwac.key", &issued.key_pem);
        token.import(&folder.join("qwac.key"), "qwac-ec", "11");
        Some(Self { token, folder })
    }

    /// The usual configuration with one of the two, and who issued it.
    fn config(&self, bank: SocketAddr, p256: bool, module: &Path) -> String {
        let label = if p256 { "qwac-ec" } else { "qwac" };
        let uri = self.token.uri_through(module, &format!("token=seals;object={label}"));
        let yaml = with_key(&file_config(bank, "", ""), "qwac.key", &uri);
        let certificate = |of: &Path| of.join("qwac.pem").display().to_string();
        let kits = kit().path("qwac.pem").display().to_string();
        if p256 { yaml.replace(&kits, &certificate(&self.folder)) } else { yaml }
    }

    fn authority(&self, p256: bool) -> PathBuf {
        if p256 { self.folder.join("ca.pem") } else { kit().path("ca.pem") }
    }
}

/// A bank that makes every request shake hands anew.
fn forgetful_bank() -> FakeBank {
    let Manner { pause, tls } = Manner::good();
    let mut tls = Arc::unwrap_or_clone(tls);
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    FakeBank::with(Manner { pause, tls: Arc::new(tls) }, |_| Act::AnswerAndVanish(ok("{}")))
}

fn is_told_that_the_key_is_missing(answer: &Answer) {
    assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (503, "qwac-key-unavailable", "not_sent"));
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}

#[test]
fn nginx_sees_the_certificate_of_a_key_on_a_token_over_tls_1_2_and_1_3() {
    if !present(&["nginx", "openssl"]) {
        return;
    }
    let Some(qwacs) = Qwacs::new() else { return };
    for (p256, protocol) in [(false, "TLSv1.2"), (false, "TLSv1.3"), (true, "TLSv1.2"), (true, "TLSv1.3")] {
        let bank = NginxBank::trusting(&qwacs.authority(p256), protocol);
        let proxy = qwacs.token.start(&qwacs.config(bank.address, p256, &qwacs.token.module));
        let answer = get(proxy.address);
        assert_eq!((answer.status, &*answer.body), (200, "sealed"), "{protocol} {p256}");
        let line = bank.received(1).remove(0);
        assert!(line.contains("verify=SUCCESS\tdn=") && line.contains("PSDFR-ACPR-99999"), "{line}");
        let (head, body) = head_of(&line);
        openssl_verifies(&head, &body);
    }
}

/// A bank that takes one algorithm alone.
#[test]
fn openssl_verifies_every_scheme_whether_the_token_hashes_or_we_do() {
    if !present(&["openssl"]) {
        return;
    }
    let Some(qwacs) = Qwacs::new() else { return };
    let all = [
        (false, "-tls1_2", "RSA+SHA256"),
        (false, "-tls1_2", "RSA+SHA384"),
        (false, "-tls1_2", "RSA+SHA512"),
        (false, "-tls1_2", "RSA-PSS+SHA256"),
        (false, "-tls1_3", "RSA-PSS+SHA256"),
        (false, "-tls1_3", "RSA-PSS+SHA384"),
        (false, "-tls1_3", "RSA-PSS+SHA512"),
        (true, "-tls1_2", "ECDSA+SHA256"),
        (true, "-tls1_3", "ECDSA+SHA256"),
    ];
    for without in [&[][..], &HASHING] {
        let slow = Slow::before(&qwacs.token, without);
        for (p256, protocol, algorithm) in all {
            let (address, authority) = (free_port(), qwacs.authority(p256));
            let authority = authority.to_str().expect("UTF-8");
            // Of two options of a name OpenSSL takes the last.
            let options =
                [protocol, "-client_sigalgs", algorithm, "-chainCAfile", authority, "-verifyCAfile", authority];
            let mut bank = OpenSslBank::start(address, &options);
            let proxy = start(&qwacs.config(address, p256, &slow.module), &[]);
            let caller = std::thread::spawn(move || get(proxy.address));
            let (head, body) = bank.serve_one();
            assert_eq!(caller.join().expect("no panic").status, 200, "{protocol} {algorithm}");
            openssl_verifies(&head, &body);
        }
    }
}

/// The mechanisms that hash on the token: what is left of RSA are the bare ones.
const HASHING: [u32; 7] = [0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x1044];
/// All of RSA-PSS.
const PSS: [u32; 4] = [0x0d, 0x43, 0x44, 0x45];

#[test]
fn a_token_without_pss_serves_a_bank_of_tls_1_2_and_presents_nothing_to_one_of_tls_1_3() {
    if !present(&["nginx"]) {
        return;
    }
    let Some(qwacs) = Qwacs::new() else { return };
    let slow = Slow::before(&qwacs.token, &PSS);
    let bank = NginxBank::trusting(&kit().path("ca.pem"), "TLSv1.2");
    let proxy = start(&qwacs.config(bank.address, false, &slow.module), &[]);
    assert_eq!(get(proxy.address).status, 200);
    let bank = NginxBank::trusting(&kit().path("ca.pem"), "TLSv1.3");
    let proxy = start(&qwacs.config(bank.address, false, &slow.module), &[]);
    // nginx answers 400 to who shows no certificate.
    assert_eq!(get(proxy.address).status, 400);
}

#[test]
fn a_key_on_a_token_that_is_not_the_certificates_is_refused_at_start() {
    let Some(qwacs) = Qwacs::new() else { return };
    let bank = "127.0.0.1:1".parse().expect("an address");
    let yaml = |names: &str| with_key(&file_config(bank, "", ""), "qwac.key", &qwacs.token.uri(names));
    assert_eq!(qwacs.token.check(&yaml("token=seals;object=qwac")).0, Some(0));
    for (names, reason) in [
        ("token=seals;object=qseal", "the key does not match its certificate"),
        ("token=seals;object=qwac-ec", "the key does not match its certificate"),
        ("token=seals;object=other", "there is no such private key on the token"),
        ("token=other;object=qwac", "there is no such token"),
    ] {
        let (code, said) = qwacs.token.check(&yaml(names));
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("identities.main.qwac.key: ") && said.contains(reason), "{names}: {said}");
    }
}

#[test]
fn a_token_that_hangs_at_start_is_waited_for_but_not_for_ever() {
    let Some(token) = SoftHsm::new() else { return };
    let slow = Slow::before(&token, &[]);
    let bank = "127.0.0.1:1".parse().expect("an address");
    let uri = |label: &str| token.uri_through(&slow.module, &format!("token=seals;object={label}"));
    slow.takes(60_000);
    for (file, label, key) in [("qwac.key", "qwac", "qwac"), ("qsealc.key", "qseal", "qsealc")] {
        let began = Instant::now();
        let (code, said) = token.check(&with_key(&file_config(bank, "", ""), file, &uri(label)));
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains(&format!("identities.main.{key}.key: ")), "{said}");
        assert!(said.contains("the key did not sign in time"), "{said}");
        assert!((10..15).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }
}

#[test]
fn both_keys_on_a_token_that_is_lost_are_found_again_without_a_restart() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = forgetful_bank();
    let yaml = token.config(bank.address, &token.uri("token=seals;object=qseal"), "");
    let yaml = with_key(&yaml, "qwac.key", &token.uri("token=seals;object=qwac"));
    let proxy = token.start(&yaml);
    assert_eq!(get(proxy.address).status, 200);
    for _ in 0..2 {
        token.withdraw();
        let deadline = Instant::now() + Duration::from_secs(10);
        let lost = loop {
            let answer = get(proxy.address);
            // Either key may be the first to miss it.
            if answer.status != 200 && answer.problem() == "qwac-key-unavailable" {
                break answer;
            }
            assert!(Instant::now() < deadline, "the token goes on signing");
        };
        is_told_that_the_key_is_missing(&lost);
        let before = bank.received().len();
        is_told_that_the_key_is_missing(&get(proxy.address));
        assert_eq!(bank.received().len(), before, "nothing leaves");
        token.restore();
        let deadline = Instant::now() + Duration::from_secs(10);
        while get(proxy.address).status != 200 {
            assert!(Instant::now() < deadline, "the token is not found again");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    bank.received().iter().for_each(|request| openssl_verifies(&request.head, &request.body));
}

#[test]
fn a_token_that_is_slow_or_hangs_stalls_nobody_whose_handshakes_do_not_need_it() {
    let Some(token) = SoftHsm::new() else { return };
    let (needy, other) = (forgetful_bank(), FakeBank::good());
    let top = "limits: { waiting_seals: 4 }\ntimeouts: { handshake: 2s }\n";
    let neighbours = Neighbours::start(&token, &needy, &other, ("qwac.key", "qwac"), top);
    let address = neighbours.proxy.address;
    assert_eq!(get(address).status, 200);
    let (quiet, loaded, answers) = neighbours.beside(4, 100);
    keeps_its_pace("a QWAC's key that signs ten times a second", quiet, loaded);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    for _ in 0..2 {
        neighbours.slow.takes(0);
        assert!(comes_back(address));
        let (quiet, loaded, answers) = neighbours.beside(20, 60_000);
        keeps_its_pace("a QWAC's key that hangs", quiet, loaded);
        answers.iter().for_each(is_told_that_the_key_is_missing);
        assert!(answers.len() > 100, "whoever may not wait is told at once: {}", answers.len());
        assert_eq!(threads(&neighbours.proxy.child), (4, 1), "a token that hangs gathers no threads");
    }
    neighbours.ends_at_once();
}

fn comes_back(address: SocketAddr) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    std::iter::repeat_with(|| get(address).status == 200).find(|found| *found || Instant::now() > deadline)
        == Some(true)
}

/// How many threads sign, and how many shake hands aside.
fn threads(child: &Running) -> (usize, usize) {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.0.id())).expect("a process");
    let names =
        tasks.map(|task| std::fs::read_to_string(task.expect("a thread").path().join("comm")).unwrap_or_default());
    let names: Vec<_> = names.collect();
    let named = |wanted: &str| names.iter().filter(|name| name.trim() == wanted).count();
    (named("token"), named("token-tls"))
}

#[test]
fn a_token_that_hangs_stops_no_request_on_a_connection_that_stands() {
    let Some(token) = SoftHsm::new() else { return };
    let (bank, slow) = (FakeBank::good(), Slow::before(&token, &[]));
    let uri = token.uri_through(&slow.module, "token=seals;object=qwac");
    let top = "timeouts: { handshake: 1s }\n";
    // A request waits for its only connection to come back.
    let yaml = file_config(bank.address, "    connections: 1\n", top);
    let proxy = start(&with_key(&yaml, "qwac.key", &uri), &[]);
    assert_eq!(get(proxy.address).status, 200);
    slow.takes(60_000);
    for _ in 0..20 {
        assert_eq!(get(proxy.address).status, 200);
    }
    assert_eq!(bank.connections(), 1);
}

#[test]
fn a_wrong_signature_of_the_qwacs_key_opens_no_connection() {
    let Some(token) = SoftHsm::new() else { return };
    let (bank, slow) = (forgetful_bank(), Slow::before(&token, &[]));
    let uri = token.uri_through(&slow.module, "token=seals;object=qwac");
    let proxy = start(&with_key(&file_config(bank.address, "", ""), "qwac.key", &uri), &[]);
    assert_eq!(get(proxy.address).status, 200);
    slow.errs();
    is_told_that_the_key_is_missing(&get(proxy.address));
    assert_eq!(bank.received().len(), 1);
    slow.takes(0);
    assert!(comes_back(proxy.address));
}

#[test]
fn fifty_callers_of_a_slow_qwac_key_get_connections_or_are_told_that_nothing_was_sent() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = forgetful_bank();
    let slow = Slow::before(&token, &[]);
    let uri = token.uri_through(&slow.module, "token=seals;object=qwac");
    let yaml = with_key(&file_config(bank.address, "", "timeouts: { handshake: 2s }\n"), "qwac.key", &uri);
    let proxy = start(&yaml, &[]);
    assert_eq!(get(proxy.address).status, 200);
    slow.takes(100);
    let mut sealed = 0;
    // Ten a second, for two seconds, on a machine that may have other things to do: then once more.
    for _ in 0..3 {
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..50).map(|_| scope.spawn(|| get(proxy.address))).collect();
            callers.into_iter().map(|caller| caller.join().expect("no panic")).collect()
        });
        let (served, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
        assert!(served.len() <= 25, "{}", served.len());
        refused.into_iter().for_each(is_told_that_the_key_is_missing);
        sealed += served.len();
        if sealed >= 3 {
            break;
        }
    }
    assert!(sealed >= 3, "{sealed}");
    no_date_is_old(&bank);
    bank.received().iter().for_each(|request| openssl_verifies(&request.head, &request.body));
    assert_eq!(bank.received().len(), sealed + 1);
}
