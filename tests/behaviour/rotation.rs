//! Certificates, keys and configuration that change while requests run. The judge is what the bank sees: the client
//! certificate of its TLS connections, and seals that verify with one certificate and no other.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use sealproxy::identity::certificate::Certificate;
use sealproxy::sandbox::authority::{Authority, Issued, KeyKind, Tpp};
use serde_json::Value;

use crate::sealing::{leaf, verify_by};
use crate::succession::judged;
use crate::support::{Act, FakeBank, Manner, Received, Rig, config, folder, gate, kit, meets, ok, send, tls, until};

/// Whoever comes before the connection is back waits for it, instead of making another.
const ONE: &str = ", connections: 1";
const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A secret's files as the kubelet keeps them: each is a link into `..data`, which is a link that is swapped.
struct Secret {
    folder: PathBuf,
    versions: usize,
}

impl Secret {
    fn new(files: &[(&str, &str)]) -> Self {
        let mut secret = Self { folder: folder("secret"), versions: 0 };
        secret.swap(files);
        for (name, _) in files {
            symlink(Path::new("..data").join(name), secret.path(name)).expect("a link");
        }
        secret
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Kubernetes' AtomicWriter: a new folder, a new link, renamed over the old one; the old folder goes.
    fn swap(&mut self, files: &[(&str, &str)]) {
        let old = std::fs::read_link(self.path("..data")).ok();
        self.versions += 1;
        let version = format!("..version_{}", self.versions);
        std::fs::create_dir(self.path(&version)).expect("a folder");
        for (name, text) in files {
            std::fs::write(self.path(&version).join(name), text).expect("written");
        }
        symlink(&version, self.path("..data_tmp")).expect("a link");
        std::fs::rename(self.path("..data_tmp"), self.path("..data")).expect("renamed");
        if let Some(old) = old {
            std::fs::remove_dir_all(self.path(&old.display().to_string())).expect("removed");
        }
    }
}

/// One TPP's authority, and a bank that trusts it.
struct World {
    authority: Authority,
    bank: FakeBank,
}

impl World {
    fn new() -> Self {
        Self::answering(|_| Act::Answer(ok("{}")))
    }

    fn answering(act: impl Fn(&Received) -> Act + Send + Sync + 'static) -> Self {
        let authority = Authority::new(SystemTime::now()).expect("an authority");
        let roots = folder("roots").join("ca.pem");
        std::fs::write(&roots, authority.certificate_pem()).expect("written");
        let tls = tls(kit().path("bank.pem"), kit().path("bank.key"), &roots, rustls::ALL_VERSIONS);
        let bank = FakeBank::with(Manner { tls, ..Manner::good() }, act);
        Self { authority, bank }
    }

    fn qwac(&self) -> Issued {
        self.authority.qwac(&Tpp::demo(), KeyKind::P256).expect("a QWAC")
    }

    fn seal(&self) -> Issued {
        self.authority.qsealc(&Tpp::demo(), KeyKind::Rsa2048).expect("a QSealC")
    }

    fn config(&self, identity: &str, upstream: &str) -> String {
        format!(
            "listen: [\"127.0.0.1:0\"]\nadmin: [\"127.0.0.1:0\"]\nthreads: 2\nidentities:\n  main: {identity}\nupstreams:\n  \
             bank: {{ url: \"https://localhost:{}\", environment: sandbox, identity: main, profile: becm, trust: {}, private: \
             true{upstream} }}\nroutes:\n  - {{ path: /sandbox/becm/stet-psd2-api/, upstream: bank }}\n",
            self.bank.address.port(),
            kit().path("ca.pem").display(),
        )
    }
}

impl World {
    /// The same, and the bank once more under another name and without settings, so that the identity is of use
    /// somewhere.
    fn with_spare(&self, identity: &str, upstream: &str) -> String {
        let plain = self.config(identity, "");
        let bank = plain.lines().find(|line| line.starts_with("  bank:")).expect("the bank");
        let spare = bank.replacen("bank", "spare", 1);
        let text = self.config(identity, upstream).replace("\nroutes:\n", &format!("\n{spare}\nroutes:\n"));
        format!("{text}  - {{ path: /sandbox/becm/spare/, upstream: spare }}\n")
    }
}

fn files<'a>(qwac: &'a Issued, seal: &'a Issued) -> [(&'static str, &'a str); 4] {
    [
        ("qwac.pem", &qwac.chain_pem),
        ("qwac.key", &qwac.key_pem),
        ("qsealc.pem", &seal.chain_pem),
        ("qsealc.key", &seal.key_pem),
    ]
}

fn pair(certificate: &Path, key: &Path) -> String {
    format!("{{ certificate: {}, key: {} }}", certificate.display(), key.display())
}

fn identity(secret: &Secret) -> String {
    format!(
        "{{ qwac: {}, qsealc: {} }}",
        pair(&secret.path("qwac.pem"), &secret.path("qwac.key")),
        pair(&secret.path("qsealc.pem"), &secret.path("qsealc.key"))
    )
}

pub(crate) fn status(rig: &Rig) -> Value {
    serde_json::from_str(&rig.page("/status").body).expect("JSON")
}

fn metric(rig: &Rig, line: &str) -> f64 {
    let metrics = rig.metrics();
    let value = metrics.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("{line}: {metrics}"))
}

const REFUSED: &str = "sealproxy_reloads_total{result=\"refused\"}";

/// A certificate's DER, of the first in a chain.
fn der(issued: &Issued) -> Vec<u8> {
    let file = folder("der").join("chain.pem");
    std::fs::write(&file, &issued.chain_pem).expect("written");
    leaf(&file).der().to_vec()
}

/// Threads that ask all the time, each on a connection of its own for every tenth request.
struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    fn on(rig: &Rig) -> Self {
        let (stop, asked, address) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), rig.address());
        let threads = (0..4).map(|_| {
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            std::thread::spawn(move || {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let post = format!(
                        "POST {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: a/b\r\n\
                         Content-Length: 2\r\n\r\n{{}}"
                    );
                    let answer = send(address, post.as_bytes());
                    if answer.status != 200 {
                        failed.push(format!("{answer:?}"));
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(15));
                }
                failed
            })
        });
        Self { threads: threads.collect(), stop, asked }
    }

    /// How many were asked, and what failed of them.
    fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
        (self.asked.load(Ordering::Relaxed), failed)
    }
}

/// One of the ways in which a set of files is bad.
fn broken(world: &World, present: &Issued, seal: &Issued, way: usize) -> Vec<(&'static str, String)> {
    let new = world.qwac();
    let mut set: Vec<(&'static str, String)> =
        files(&new, seal).into_iter().map(|(name, text)| (name, text.to_owned())).collect();
    match way % 6 {
        0 => set[1].1 = present.key_pem.clone(),
        1 => set[0].1.truncate(300),
        2 => drop(set.remove(1)),
        3 => {
            let other = Tpp { organization_identifier: "PSDFR-ACPR-11111".into(), ..Tpp::demo() };
            let other = world.authority.qwac(&other, KeyKind::P256).expect("a QWAC");
            (set[0].1, set[1].1) = (other.chain_pem, other.key_pem);
        }
        4 => set[2].1 = String::new(),
        _ => set[3].1.truncate(100),
    }
    set
}

/// As it is judged: every new connection after a good rotation presents the new QWAC, a bad one changes nothing, no
/// request fails, and a renewed seal that is not registered never seals.
#[test]
fn fifty_rotations_under_load_cost_no_request_and_each_is_what_the_bank_sees() {
    let world = World::new();
    let (mut qwac, seal) = (world.qwac(), world.seal());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let registered = leaf(&secret.path("qsealc.pem"));
    let rig = Rig::start(&world.config(&identity(&secret), ""));
    let (load, began) = (Load::on(&rig), Instant::now());
    for number in 0..50 {
        if number % 5 == 4 {
            let refused = metric(&rig, REFUSED);
            let broken = broken(&world, &qwac, &seal, number / 5);
            let broken: Vec<_> = broken.iter().map(|(name, text)| (*name, text.as_str())).collect();
            secret.swap(&broken);
            until("it is refused", Duration::from_secs(10), || metric(&rig, REFUSED) > refused);
            assert_eq!(metric(&rig, "sealproxy_reload_refused"), 1.0);
            let last = status(&rig)["last_reload"].clone();
            assert_eq!((&last["result"], &last["trigger"]), (&"refused".into(), &"files".into()));
            assert!(!last["findings"].as_array().expect("a list").is_empty());
        } else {
            qwac = world.qwac();
            // Now and then the seal is renewed too: it must lie staged.
            let renewed = if number % 10 == 3 { Some(world.seal()) } else { None };
            secret.swap(&files(&qwac, renewed.as_ref().unwrap_or(&seal)));
        }
        let new = der(&qwac);
        let fingerprint = leaf_of(&new).sha256_hex();
        until("it is in place", Duration::from_secs(10), || {
            status(&rig)["upstreams"]["bank"]["qwac_sha256"] == *fingerprint
        });
        // What is under way on the old connections may end; whatever connection is made from now on is the new QWAC's.
        let live = SystemTime::now();
        std::thread::sleep(Duration::from_millis(100));
        let last = || world.bank.received().last().expect("received").client == new;
        until("requests go out under it", Duration::from_secs(10), last);
        let received = world.bank.received();
        let mut since = received.iter().filter(|request| request.connected > live);
        assert!(since.all(|request| request.client == new), "round {number}: an old certificate is presented");
    }
    let (asked, failed) = load.end();
    eprintln!("{asked} requests in {:?}, {} failed", began.elapsed(), failed.len());
    assert_eq!(failed, Vec::<String>::new(), "of {asked}");
    assert!(asked > 500, "{asked}");
    let received = world.bank.received();
    assert_eq!(received.len(), asked, "nothing twice, nothing lost");
    for request in &received {
        verify_by(request, &registered, &registered.sha1_hex()).expect("sealed by the registered seal");
    }
    let certificates: std::collections::HashSet<_> = received.iter().map(|request| request.client.clone()).collect();
    assert_eq!(certificates.len(), 41, "the first and forty good ones");
}

fn leaf_of(der: &[u8]) -> Certificate {
    Certificate::from_der(der.to_vec().into()).expect("a certificate")
}

#[test]
fn a_seal_goes_live_when_its_time_has_come_and_not_before() {
    let world = World::new();
    let (qwac, old, new) = (world.qwac(), world.seal(), world.seal());
    let secret = Secret::new(&[
        ("qwac.pem", &qwac.chain_pem),
        ("qwac.key", &qwac.key_pem),
        ("old.pem", &old.chain_pem),
        ("old.key", &old.key_pem),
        ("new.pem", &new.chain_pem),
        ("new.key", &new.key_pem),
    ]);
    let named = |name: &str| {
        let (certificate, key) = (secret.path(&format!("{name}.pem")), secret.path(&format!("{name}.key")));
        format!("{{ name: {name}, certificate: {}, key: {} }}", certificate.display(), key.display())
    };
    let identity = format!(
        "{{ qwac: {}, qsealc: [{}, {}] }}",
        pair(&secret.path("qwac.pem"), &secret.path("qwac.key")),
        named("old"),
        named("new")
    );
    let soon = SystemTime::now() + Duration::from_secs(4);
    let soon = sealproxy::log::timestamp(soon);
    let keys = format!(
        ", seal_keys: [{{ qsealc: old, key_id: the-old-one, registered: true }}, {{ qsealc: new, active_from: \"{soon}\" }}]"
    );
    let (old, new) = (leaf(&secret.path("old.pem")), leaf(&secret.path("new.pem")));
    let rig = Rig::start(&world.config(&identity, &keys));
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    verify_by(&world.bank.only(), &old, "the-old-one").expect("sealed by the old one");
    assert_eq!(status(&rig)["upstreams"]["bank"]["seal"]["name"], "old");
    until("the new one is active", Duration::from_secs(10), || {
        status(&rig)["upstreams"]["bank"]["seal"]["name"] == "new"
    });
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    let received = world.bank.received();
    verify_by(&received[1], &new, &new.sha1_hex()).expect("sealed by the new one");
    assert_eq!(world.bank.connections(), 1, "the connection does not depend on the seal");
}

#[test]
fn a_seal_that_is_not_listed_is_staged_and_shown_and_never_used() {
    let world = World::new();
    let (qwac, seal, renewed) = (world.qwac(), world.seal(), world.seal());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let registered = leaf(&secret.path("qsealc.pem"));
    let rig = Rig::start(&world.config(&identity(&secret), ""));
    secret.swap(&files(&qwac, &renewed));
    until("it is staged", Duration::from_secs(10), || metric(&rig, "sealproxy_staged_seals{upstream=\"bank\"}") == 1.0);
    let staged = status(&rig)["upstreams"]["bank"]["staged"][0].clone();
    assert_eq!(staged["sha1"], leaf(&secret.path("qsealc.pem")).sha1_hex());
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    verify_by(&world.bank.only(), &registered, &registered.sha1_hex()).expect("sealed by the registered one");
}

/// The precaution of an operator who sees it staged: the registered one's name is written down. Nor does it help to
/// take the seal off the routes and put it back.
#[test]
fn a_staged_seal_does_not_go_live_under_the_name_of_the_registered_one() {
    let world = World::new();
    let (qwac, seal, renewed) = (world.qwac(), world.seal(), world.seal());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let registered = leaf(&secret.path("qsealc.pem"));
    let plain = world.config(&identity(&secret), "");
    let unsealed = plain.replace("upstream: bank }", "upstream: bank, seal: false, methods: [GET] }");
    let named = world.config(&identity(&secret), &format!(", key_id: {}", registered.sha1_hex()));
    let (rig, file) = Rig::start_with_file(&plain);
    secret.swap(&files(&qwac, &renewed));
    until("it is staged", Duration::from_secs(10), || metric(&rig, "sealproxy_staged_seals{upstream=\"bank\"}") == 1.0);
    let expiry =
        |rig: &Rig| metric(rig, "sealproxy_certificate_expiry_timestamp_seconds{identity=\"main\",use=\"qsealc\"}");
    let end = registered.not_after().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs_f64();
    assert_eq!(expiry(&rig), end, "of the seal in use");
    for text in [named, unsealed, plain] {
        let before = status(&rig)["last_reload"].clone();
        std::fs::write(&file, &text).expect("written");
        rig.reload();
        until("it is read", Duration::from_secs(10), || status(&rig)["last_reload"] != before);
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        let received = world.bank.received().pop().expect("received");
        if received.header("signature").is_some() {
            verify_by(&received, &registered, &registered.sha1_hex()).expect("sealed by the registered one");
        }
    }
}

/// The operator has written the new key's name into the configuration before the file is swapped.
#[test]
fn a_seal_whose_key_id_is_configured_goes_live_by_file() {
    let world = World::new();
    let (qwac, seal, renewed) = (world.qwac(), world.seal(), world.seal());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let new = leaf_of(&der(&renewed));
    let rig = Rig::start(&world.with_spare(&identity(&secret), &format!(", key_id: {}", new.sha1_hex())));
    let answer = rig.get(ACCOUNTS);
    assert!(answer.status == 503 && answer.body.contains("identity-unusable"), "{answer:?}");
    secret.swap(&files(&qwac, &renewed));
    until("it is in use", Duration::from_secs(10), || {
        status(&rig)["upstreams"]["bank"]["seal"]["sha256"] == new.sha256_hex()
    });
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    verify_by(&world.bank.only(), &new, &new.sha1_hex()).expect("sealed by the new one");
}

/// A process that begins has seen nothing of what the bank knows but the key id.
#[test]
fn a_seal_that_the_key_id_does_not_name_does_not_seal_after_a_restart() {
    let world = World::new();
    let (qwac, seal, renewed) = (world.qwac(), world.seal(), world.seal());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let registered = leaf(&secret.path("qsealc.pem"));
    let sha1 = registered.sha1_hex();
    let listed = format!(", seal_keys: [{{ qsealc: qsealc, key_id: {sha1}, registered: true }}]");
    secret.swap(&files(&qwac, &renewed));
    for named in [format!(", key_id: {sha1}"), listed] {
        let text = world.with_spare(&identity(&secret), &named);
        let before = world.bank.received().len();
        let rig = Rig::start(&text);
        let answer = rig.get(ACCOUNTS);
        assert!(answer.status == 503 && answer.body.contains("identity-unusable"), "{answer:?}");
        assert_eq!(world.bank.received().len(), before, "nothing was sealed with a key that the bank does not know");
        let staged = status(&rig)["upstreams"]["bank"]["staged"][0].clone();
        assert_eq!(staged["sha1"], leaf_of(&der(&renewed)).sha1_hex(), "{staged}");
        // What the bank knows comes back.
        secret.swap(&files(&qwac, &seal));
        until("it seals", Duration::from_secs(10), || rig.get(ACCOUNTS).status == 200);
        verify_by(&world.bank.received().pop().expect("received"), &registered, &sha1).expect("by the registered seal");
        drop(rig);
        secret.swap(&files(&qwac, &renewed));
    }
    // Some banks' own names look like fingerprints.
    let opaque = world.config(&identity(&secret), &format!(", key_id: {sha1}"));
    let opaque = opaque.replace("profile: becm", "profile: { like: becm, key_id_opaque: true }");
    let rig = Rig::start(&opaque);
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    let received = world.bank.received().pop().expect("received");
    verify_by(&received, &leaf_of(&der(&renewed)), &sha1).expect("by what lies there");
}

/// A key id and a certificate that were installed by mistake, and are taken back.
#[test]
fn what_is_put_back_with_its_settings_seals_as_before() {
    let world = World::new();
    let (qwac, seal, other) = (world.qwac(), world.seal(), world.seal());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let (first, second) = (leaf_of(&der(&seal)), leaf_of(&der(&other)));
    let plain = world.config(&identity(&secret), "");
    let mistaken = world.config(&identity(&secret), &format!(", key_id: {}", second.sha1_hex()));
    let (rig, config) = Rig::start_with_file(&plain);
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    let sealed_by = |leaf: &Certificate| {
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        verify_by(&world.bank.received().pop().expect("received"), leaf, &leaf.sha1_hex()).expect("sealed by it");
    };
    secret.swap(&files(&qwac, &other));
    reload(&rig, &config, &mistaken);
    sealed_by(&second);
    secret.swap(&files(&qwac, &seal));
    reload(&rig, &config, &plain);
    sealed_by(&first);
    // A file alone puts nothing back.
    secret.swap(&files(&qwac, &other));
    until("it is staged", Duration::from_secs(10), || metric(&rig, "sealproxy_staged_seals{upstream=\"bank\"}") == 1.0);
    sealed_by(&first);
}

/// Certificate and key are written one after the other, slowly and in place.
#[test]
fn a_set_that_is_written_file_by_file_is_taken_once_it_is_whole() {
    let world = World::new();
    let (qwac, seal) = (world.qwac(), world.seal());
    let place = folder("plain");
    let path = |name: &str| place.join(name);
    for (name, text) in files(&qwac, &seal) {
        std::fs::write(path(name), text).expect("written");
    }
    let identity = format!(
        "{{ qwac: {}, qsealc: {} }}",
        pair(&path("qwac.pem"), &path("qwac.key")),
        pair(&path("qsealc.pem"), &path("qsealc.key"))
    );
    let rig = Rig::start(&world.config(&identity, ""));
    let times_refused = || {
        let (next, before) = (world.qwac(), metric(&rig, REFUSED));
        std::fs::write(path("qwac.pem"), &next.chain_pem).expect("written");
        std::thread::sleep(Duration::from_millis(200));
        std::fs::write(path("qwac.key"), &next.key_pem).expect("written");
        let fingerprint = leaf(&path("qwac.pem")).sha256_hex();
        until("it is in place", Duration::from_secs(10), || {
            status(&rig)["upstreams"]["bank"]["qwac_sha256"] == *fingerprint
        });
        metric(&rig, REFUSED) - before
    };
    // It was only half written. A busy machine may take longer to write the other half than is waited for.
    meets(times_refused, |refused| *refused == 0.0);
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    assert_eq!(world.bank.only().client, leaf(&path("qwac.pem")).der());
}

#[test]
fn files_that_are_put_back_are_no_rotation() {
    let world = World::new();
    let (qwac, seal) = (world.qwac(), world.seal());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let rig = Rig::start(&world.config(&identity(&secret), ONE));
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    secret.swap(&files(&Issued { key_pem: world.qwac().key_pem, ..qwac.clone() }, &seal));
    until("it is refused", Duration::from_secs(10), || metric(&rig, "sealproxy_reload_refused") == 1.0);
    secret.swap(&files(&qwac, &seal));
    until("it is well again", Duration::from_secs(10), || metric(&rig, "sealproxy_reload_refused") == 0.0);
    assert_eq!(status(&rig)["last_reload"]["result"], "restored");
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    assert_eq!((world.bank.connections(), metric(&rig, "sealproxy_generation")), (1, 1.0));
}

/// A pipe would have the reader wait for its writer for ever, and with it the end of the process.
#[test]
fn what_is_no_file_is_refused_at_once_and_hurts_nobody() {
    let world = World::new();
    let (qwac, seal) = (world.qwac(), world.seal());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let rig = Rig::start(&world.config(&identity(&secret), ""));
    for made in ["mkfifo", "mkdir"] {
        let refused = metric(&rig, REFUSED);
        secret.swap(&files(&qwac, &seal)[..3]);
        let made = std::process::Command::new(made).arg(secret.path("..data/qsealc.key")).status();
        assert!(made.expect("it starts").success());
        until("it is refused", Duration::from_secs(10), || metric(&rig, REFUSED) > refused);
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        secret.swap(&files(&qwac, &seal));
        until("it is well again", Duration::from_secs(10), || metric(&rig, "sealproxy_reload_refused") == 0.0);
    }
}

/// T-pool, T-rot4: leased connections have the drain time and no longer.
#[test]
fn what_is_under_way_with_the_old_certificate_ends_or_is_cut_at_the_drain_deadline() {
    let world = World::answering(|request| match request.request_line().contains("slow") {
        true => Act::Wait(Duration::from_secs(1), ok("slow")),
        false if request.request_line().contains("stuck") => Act::Wait(Duration::from_secs(20), ok("stuck")),
        false => Act::Answer(ok("{}")),
    });
    let (qwac, seal, next) = (world.qwac(), world.seal(), world.qwac());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let rig = Rig::start(&(world.config(&identity(&secret), "") + "timeouts: { drain: 3s }\n"));
    let (old, new) = (der(&qwac), der(&next));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| rig.get(&format!("{ACCOUNTS}?slow")));
        let stuck = scope.spawn(|| {
            (rig.request("POST", &format!("{ACCOUNTS}?stuck"), "Content-Type: a/b\r\n", "{}"), Instant::now())
        });
        until("both are under way", Duration::from_secs(5), || world.bank.received().len() == 2);
        secret.swap(&files(&next, &seal));
        let fingerprint = leaf_of(&new).sha256_hex();
        until("it is in place", Duration::from_secs(5), || {
            status(&rig)["upstreams"]["bank"]["qwac_sha256"] == *fingerprint
        });
        let swapped = Instant::now();
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        let slow = slow.join().expect("no panic");
        assert_eq!((slow.status, &*slow.body), (200, "slow"));
        let (stuck, ended) = stuck.join().expect("no panic");
        assert_eq!((stuck.status, &*stuck.outcome()), (502, "unknown"));
        assert!((2..5).contains(&(ended - swapped).as_secs()), "{:?}", ended - swapped);
    });
    let received = world.bank.received();
    let presented = |word: &str| {
        received.iter().find(|request| request.request_line().contains(word)).expect("received").client.clone()
    };
    assert_eq!((presented("slow"), presented("stuck")), (old.clone(), old));
    assert_eq!(received.last().expect("one").client, new);
    until("the old connections are gone", Duration::from_secs(5), || {
        metric(&rig, "sealproxy_upstream_connections{upstream=\"bank\"}") == 1.0
    });
}

/// A request that came before the rotation and asks for its connection after it.
#[test]
fn a_body_that_took_its_time_is_sent_under_the_new_certificate() {
    use std::io::{Read as _, Write as _};
    let world = World::new();
    let (qwac, seal, next) = (world.qwac(), world.seal(), world.qwac());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let rig = Rig::start(&world.config(&identity(&secret), ""));
    let mut stream = std::net::TcpStream::connect(rig.address()).expect("connected");
    let head = format!(
        "POST {ACCOUNTS} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n{{",
        rig.address()
    );
    stream.write_all(head.as_bytes()).expect("written");
    std::thread::sleep(Duration::from_millis(100));
    secret.swap(&files(&next, &seal));
    let new = der(&next);
    let fingerprint = leaf_of(&new).sha256_hex();
    until("it is in place", Duration::from_secs(5), || {
        status(&rig)["upstreams"]["bank"]["qwac_sha256"] == *fingerprint
    });
    stream.write_all(b"}").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(world.bank.only().client, new);
}

/// The same with a configuration that is read anew in between, and says the same.
#[test]
fn a_body_that_took_its_time_survives_a_hang_up_and_a_rotation() {
    use std::io::{Read as _, Write as _};
    let world = World::new();
    let (qwac, seal, next) = (world.qwac(), world.seal(), world.qwac());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let rig = Rig::start(&world.config(&identity(&secret), ""));
    let mut stream = std::net::TcpStream::connect(rig.address()).expect("connected");
    let head = format!(
        "POST {ACCOUNTS} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n{{",
        rig.address()
    );
    stream.write_all(head.as_bytes()).expect("written");
    std::thread::sleep(Duration::from_millis(100));
    rig.reload();
    std::thread::sleep(Duration::from_millis(300));
    secret.swap(&files(&next, &seal));
    let new = der(&next);
    let fingerprint = leaf_of(&new).sha256_hex();
    until("it is in place", Duration::from_secs(5), || {
        status(&rig)["upstreams"]["bank"]["qwac_sha256"] == *fingerprint
    });
    stream.write_all(b"}").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(world.bank.only().client, new);
}

#[test]
fn an_upstream_whose_inputs_did_not_change_keeps_its_connections() {
    let world = World::new();
    let (qwac, seal, other) = (world.qwac(), world.seal(), world.qwac());
    let (secret, mut second) = (Secret::new(&files(&qwac, &seal)), Secret::new(&files(&other, &seal)));
    let two = world
        .config(&identity(&secret), "")
        .replace("upstreams:\n", &format!("  second: {}\nupstreams:\n", identity(&second)))
        .replace("routes:\n", &format!(
            "  other: {{ url: \"https://localhost:{}\", environment: sandbox, identity: second, profile: becm, trust: {}, \
             private: true }}\nroutes:\n  - {{ path: /sandbox/cic/stet-psd2-api/, upstream: other }}\n",
            world.bank.address.port(),
            kit().path("ca.pem").display()
        ));
    let rig = Rig::start(&two.replace("private: true", "private: true, connections: 1"));
    let of_other = "/sandbox/cic/stet-psd2-api/v2.1/accounts";
    // Both have the same host: the proxy's own name is used, and the paths tell them apart.
    assert_eq!((rig.get(ACCOUNTS).status, rig.get(of_other).status), (200, 200));
    let next = world.qwac();
    second.swap(&files(&next, &seal));
    let fingerprint = leaf_of(&der(&next)).sha256_hex();
    until("it is in place", Duration::from_secs(5), || {
        status(&rig)["upstreams"]["other"]["qwac_sha256"] == *fingerprint
    });
    assert_eq!((rig.get(ACCOUNTS).status, rig.get(of_other).status), (200, 200));
    let clients: Vec<_> = world.bank.received().into_iter().map(|request| request.client).collect();
    assert_eq!(clients, [der(&qwac), der(&other), der(&qwac), der(&next)]);
    assert_eq!(world.bank.connections(), 3, "the first upstream's is still the same");
}

#[test]
fn a_qwac_with_another_subject_needs_leave() {
    let world = World::new();
    let (qwac, seal) = (world.qwac(), world.seal());
    let renamed = Tpp { organization: "Démo Paiements SA".into(), ..Tpp::demo() };
    let renamed = world.authority.qwac(&renamed, KeyKind::P256).expect("a QWAC");
    for allowed in [false, true] {
        let mut secret = Secret::new(&files(&qwac, &seal));
        let leave = if allowed { ", allow_subject_change: true }" } else { " }" };
        let identity = identity(&secret);
        let rig = Rig::start(&world.config(&format!("{}{leave}", identity.strip_suffix(" }").expect("a map")), ""));
        secret.swap(&files(&renamed, &seal));
        until("it is judged", Duration::from_secs(10), || status(&rig)["last_reload"] != Value::Null);
        let last = status(&rig)["last_reload"].clone();
        assert_eq!(last["result"], if allowed { "applied" } else { "refused" }, "{last}");
        assert_eq!(last.to_string().contains("allow_subject_change: true"), !allowed, "{last}");
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        let presented = world.bank.received().pop().expect("received").client;
        assert_eq!(presented, der(if allowed { &renamed } else { &qwac }));
    }
}

#[test]
fn an_identity_that_cannot_be_used_stops_its_own_routes_alone() {
    let world = World::new();
    let (qwac, seal) = (world.qwac(), world.seal());
    let (secret, mut second) = (Secret::new(&files(&qwac, &seal)), Secret::new(&files(&world.qwac(), &seal)));
    // The second identity's key is another's.
    second.swap(&files(&Issued { key_pem: world.qwac().key_pem, ..world.qwac() }, &seal));
    let config = world
        .config(&identity(&secret), "")
        .replace("upstreams:\n", &format!("  second: {}\nupstreams:\n", identity(&second)))
        .replace("routes:\n", &format!(
            "  other: {{ url: \"https://localhost:{}\", environment: sandbox, identity: second, profile: becm, trust: {}, \
             private: true }}\nroutes:\n  - {{ path: /sandbox/cic/stet-psd2-api/, upstream: other }}\n",
            world.bank.address.port(),
            kit().path("ca.pem").display()
        ));
    let rig = Rig::start(&config);
    let of_other = "/sandbox/cic/stet-psd2-api/v2.1/accounts";
    let refused = rig.get(of_other);
    assert_eq!((refused.status, &*refused.problem(), &*refused.outcome()), (503, "identity-unusable", "not_sent"));
    assert_eq!(refused.header("retry-after"), None, "waiting a second mends nothing");
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    assert_eq!(world.bank.received().len(), 1);
    assert_eq!(rig.page("/readyz").status, 200);
    assert_eq!(rig.page("/readyz?upstream=bank").status, 200);
    assert_eq!(rig.page("/readyz?upstream=other").status, 503);
    let nobody = rig.page("/readyz?upstream=nobody%0a");
    assert_eq!((nobody.status, &*nobody.body), (404, "no upstream nobody0a; there are bank other\n"));
    assert_eq!(metric(&rig, "sealproxy_identity_usable{identity=\"second\"}"), 0.0);
    assert_eq!(metric(&rig, "sealproxy_identity_usable{identity=\"main\"}"), 1.0);
    let log = rig.log.wait(2);
    assert!(log.iter().any(|line| line["problem"] == "identity-unusable"), "{log:?}");
    // Mended, it serves without a restart.
    second.swap(&files(&world.qwac(), &seal));
    until("it is mended", Duration::from_secs(10), || rig.page("/readyz?upstream=other").status == 200);
    assert_eq!(rig.get(of_other).status, 200);
}

#[test]
fn readiness_falls_with_the_last_identity_whose_certificates_expire_and_comes_back() {
    let world = World::new();
    let now = SystemTime::now();
    let short = Authority::new(now).expect("an authority").with_validity(now - DAY..now + Duration::from_secs(4));
    let (qwac, seal) = (short.qwac(&Tpp::demo(), KeyKind::P256), short.qsealc(&Tpp::demo(), KeyKind::Rsa2048));
    let (qwac, seal) = (qwac.expect("a QWAC"), seal.expect("a QSealC"));
    let mut secret = Secret::new(&files(&world.qwac(), &seal));
    let (rig, file) = Rig::start_with_file(&world.config(&identity(&secret), ""));
    assert_eq!(rig.page("/readyz").status, 200);
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    until("the seal expires", Duration::from_secs(10), || rig.page("/readyz").status == 503);
    let refused = rig.get(ACCOUNTS);
    assert_eq!((refused.status, &*refused.problem()), (503, "identity-unusable"));
    assert_eq!(world.bank.received().len(), 1, "an expired seal seals nothing");
    // A set that has expired as well is no better.
    secret.swap(&files(&qwac, &seal));
    until("it is refused", Duration::from_secs(10), || metric(&rig, REFUSED) > 0.0);
    assert_eq!(rig.page("/readyz").status, 503);
    assert_eq!(rig.page("/livez").status, 200);
    // Its successor is valid, and not known to the bank: it lies staged, and the configuration says so in its turn.
    let renewed = world.seal();
    secret.swap(&files(&world.qwac(), &renewed));
    until("it is staged", Duration::from_secs(10), || metric(&rig, "sealproxy_staged_seals{upstream=\"bank\"}") == 1.0);
    assert_eq!(rig.page("/readyz").status, 503);
    let known = format!(", key_id: {}", leaf_of(&der(&renewed)).sha1_hex());
    std::fs::write(&file, world.config(&identity(&secret), &known)).expect("written");
    rig.reload();
    until("it is ready again", Duration::from_secs(10), || rig.page("/readyz").status == 200);
    assert_eq!(rig.get(ACCOUNTS).status, 200);
}

#[test]
fn sighup_takes_a_configuration_whole_or_not_at_all() {
    let world = World::new();
    let (qwac, seal) = (world.qwac(), world.seal());
    let secret = Secret::new(&files(&qwac, &seal));
    let good = world.config(&identity(&secret), ONE);
    let (rig, file) = Rig::start_with_file(&good);
    let token = "/sandbox/becm/oauth2/token";
    assert_eq!(rig.request("POST", token, "", "").status, 404);
    let reload = |text: &str, result: &str| {
        let last = reload(&rig, &file, text);
        assert_eq!((&last["result"], &last["trigger"]), (&result.into(), &"configuration".into()), "{last}");
        last.to_string()
    };
    let more = format!("{good}  - {{ path: {token}, upstream: bank, methods: [POST], seal: false }}\n");
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    reload(&more, "applied");
    assert_eq!(rig.request("POST", token, "", "").status, 200);
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    assert_eq!(world.bank.connections(), 1, "nothing about the bank has changed");
    assert!(reload(&format!("{good}nonsense: 1\n"), "refused").contains("nonsense"));
    assert!(reload(&good.replace("threads: 2", "threads: 3"), "refused").contains("only a restart"));
    assert!(reload(&good.replace("qwac.pem", "gone.pem"), "refused").contains("gone.pem"));
    assert!(reload(&good.replace("trust: ", "trust: /gone"), "refused").contains("/gone"));
    assert_eq!(rig.request("POST", token, "", "").status, 200, "the one before still holds");
    reload(&good, "applied");
    assert_eq!(rig.request("POST", token, "", "").status, 404);
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    // A name that no certificate came with.
    let said = reload(&world.config(&identity(&secret), &format!("{ONE}, key_id: KID-TYPO")), "applied");
    let known = leaf_of(&der(&seal)).sha1_hex();
    let sentence = format!(
        "the key id is now KID-TYPO, and the certificate in use is still the one that the bank knew as {known}"
    );
    assert!(said.contains(&sentence), "{said}");
}

/// A SIGHUP opens no second set of connections beside those that are under way.
#[test]
fn limits_count_what_is_under_way_across_a_change_of_settings() {
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_secs(3), ok("{}")));
    let text = |connections: usize, in_flight: usize| {
        let limits = format!("    connections: {connections}\n    in_flight: {in_flight}\n");
        config(bank.address, &limits, "timeouts: { connect: 100ms }\n")
    };
    let (rig, file) = Rig::start_with_file(&text(2, 2));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| rig.get(ACCOUNTS));
        until("it is under way", Duration::from_secs(5), || metric(&rig, "sealproxy_in_flight") == 1.0);
        let settings = [(text(1, 2), "all of the 1 `connections`"), (text(2, 1), "the 1 of its `in_flight`")];
        let later = text(1, 2).replace("    connections", "    idle: 7s\n    connections");
        for (text, limit) in settings.into_iter().chain([(later, "all of the 1 `connections`")]) {
            assert_eq!(reload(&rig, &file, &text)["result"], "applied");
            let second = rig.get(ACCOUNTS);
            assert_eq!((second.status, &*second.problem()), (503, "upstream-busy"), "{}", second.body);
            assert!(second.body.contains(limit), "{}", second.body);
        }
        assert_eq!(reload(&rig, &file, &text(2, 2))["result"], "applied");
        assert_eq!(rig.get(ACCOUNTS).status, 200, "there is room again");
        assert_eq!(first.join().expect("no panic").status, 200);
    });
    assert_eq!(bank.received().len(), 2);
}

/// T-res, over both versions of TLS: tickets and sessions of the old certificate are not used again.
#[test]
fn resumption_never_carries_an_old_certificate_on() {
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13][..]] {
        let authority = Authority::new(SystemTime::now()).expect("an authority");
        let roots = folder("roots").join("ca.pem");
        std::fs::write(&roots, authority.certificate_pem()).expect("written");
        let tls = tls(kit().path("bank.pem"), kit().path("bank.key"), &roots, versions);
        let manner = Manner { tls, ..Manner::good() };
        let bank = FakeBank::with(manner, |_| Act::AnswerAndVanish(ok("{}")));
        let world = World { authority, bank };
        let (mut qwac, seal) = (world.qwac(), world.seal());
        let mut secret = Secret::new(&files(&qwac, &seal));
        let rig = Rig::start(&world.config(&identity(&secret), ""));
        for round in 0..6 {
            let new = der(&qwac);
            let fingerprint = leaf_of(&new).sha256_hex();
            until("it is in place", Duration::from_secs(10), || {
                status(&rig)["upstreams"]["bank"]["qwac_sha256"] == *fingerprint
            });
            for _ in 0..3 {
                assert_eq!(rig.get(ACCOUNTS).status, 200);
                assert_eq!(world.bank.received().pop().expect("received").client, new, "round {round}");
            }
            qwac = world.qwac();
            secret.swap(&files(&qwac, &seal));
        }
        assert!(world.bank.connections() >= 18);
    }
}

/// Whom we trust is read anew as well: the bank's certificate is of the first authority.
#[test]
fn roots_that_change_hold_for_every_new_connection() {
    let world = World::new();
    let (qwac, seal) = (world.qwac(), world.seal());
    let secret = Secret::new(&files(&qwac, &seal));
    let roots = folder("trust").join("roots.pem");
    let first = std::fs::read_to_string(kit().path("ca.pem")).expect("PEM");
    std::fs::write(&roots, &first).expect("written");
    let text = world.config(&identity(&secret), "");
    let rig = Rig::start(&text.replace(&kit().path("ca.pem").display().to_string(), &roots.display().to_string()));
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    std::fs::write(&roots, world.authority.certificate_pem()).expect("written");
    until("the bank is trusted no more", Duration::from_secs(10), || rig.get(ACCOUNTS).status == 502);
    assert_eq!(rig.get(ACCOUNTS).problem(), "upstream-untrusted");
    std::fs::write(&roots, "nothing of use").expect("written");
    until("it is refused", Duration::from_secs(10), || metric(&rig, REFUSED) == 1.0);
    assert_eq!(rig.get(ACCOUNTS).problem(), "upstream-untrusted", "what was there before holds");
    std::fs::write(&roots, &first).expect("written");
    until("the bank is trusted again", Duration::from_secs(10), || rig.get(ACCOUNTS).status == 200);
}

/// A list of two seals, `old` and `new`, in a folder of plain files.
struct Two {
    folder: PathBuf,
}

impl Two {
    fn new(qwac: &Issued, old: &Issued, new: &Issued) -> Self {
        let two = Self { folder: folder("two") };
        for (name, issued) in [("qwac", qwac), ("old", old), ("new", new)] {
            two.write(name, issued);
        }
        two
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, issued: &Issued) {
        std::fs::write(self.path(&format!("{name}.key")), &issued.key_pem).expect("written");
        std::fs::write(self.path(&format!("{name}.pem")), &issued.chain_pem).expect("written");
    }

    fn leaf(&self, name: &str) -> Certificate {
        leaf(&self.path(&format!("{name}.pem")))
    }

    fn identity(&self) -> String {
        let files = |name: &str| (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        let named = |name: &str| {
            let (certificate, key) = files(name);
            format!("{{ name: {name}, certificate: {}, key: {} }}", certificate.display(), key.display())
        };
        let (certificate, key) = files("qwac");
        format!("{{ qwac: {}, qsealc: [{}, {}] }}", pair(&certificate, &key), named("old"), named("new"))
    }
}

fn presents(rig: &Rig, issued: &Issued) -> bool {
    status(rig)["upstreams"]["bank"]["qwac_sha256"] == *leaf_of(&der(issued)).sha256_hex()
}

pub(crate) fn reload(rig: &Rig, file: &Path, text: &str) -> Value {
    let before = status(rig)["last_reload"].clone();
    std::fs::write(file, text).expect("written");
    rig.reload();
    until("it is read", Duration::from_secs(10), || status(rig)["last_reload"] != before);
    status(rig)["last_reload"].clone()
}

/// A seal that no bank knows yet is whatever lies in its file when the configuration says that it is registered.
#[test]
fn a_seal_that_was_replaced_before_it_was_registered_seals_as_it_is_on_disk() {
    let world = World::new();
    let two = Two::new(&world.qwac(), &world.seal(), &world.seal());
    let keys = |known: bool| {
        format!(", seal_keys: [{{ qsealc: old, registered: {} }}, {{ qsealc: new, registered: {known} }}]", !known)
    };
    let (rig, config) = Rig::start_with_file(&world.config(&two.identity(), &keys(false)));
    two.write("new", &world.seal());
    let second = two.leaf("new");
    until("it is staged", Duration::from_secs(10), || {
        status(&rig)["upstreams"]["bank"]["staged"][0]["sha1"] == *second.sha1_hex()
    });
    let last = reload(&rig, &config, &world.config(&two.identity(), &keys(true)));
    assert_eq!(last["result"], "applied", "{last}");
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    verify_by(&world.bank.only(), &second, &second.sha1_hex()).expect("sealed by what lies on disk");
}

/// What is wrong with a seal that seals nowhere, or whose time is over, must not cost the QWAC its renewal.
#[test]
fn a_seal_that_is_not_in_use_holds_no_renewal_up() {
    let now = SystemTime::now();
    let world = World::new();
    let short = Authority::new(now).expect("an authority").with_validity(now - DAY..now + Duration::from_secs(3));
    let ending = short.qsealc(&Tpp::demo(), KeyKind::Rsa2048).expect("a QSealC");
    for (old, new, keys) in [
        (world.seal(), world.seal(), "[{ qsealc: old, registered: true }, { qsealc: new, registered: false }]"),
        (ending, world.seal(), "[{ qsealc: old, registered: true }, { qsealc: new, registered: true }]"),
    ] {
        let two = Two::new(&world.qwac(), &old, &new);
        let rig = Rig::start(&world.config(&two.identity(), &format!(", seal_keys: {keys}")));
        if keys.contains("false") {
            std::fs::write(two.path("new.key"), "no key").expect("written");
        } else {
            std::thread::sleep(Duration::from_secs(4));
        }
        let next = world.qwac();
        two.write("qwac", &next);
        until("it is in place", Duration::from_secs(10), || presents(&rig, &next));
        assert_eq!(rig.get(ACCOUNTS).status, 200, "{keys}");
        assert_eq!(metric(&rig, "sealproxy_reload_refused"), 0.0, "{keys}: {}", status(&rig));
    }
}

/// It lies there for weeks, and whoever installed it is to hear of a mistake before its time comes.
#[test]
fn what_is_wrong_with_a_seal_ahead_of_its_time_is_told_at_once() {
    let now = SystemTime::now();
    let world = World::new();
    let new = world.seal();
    let two = Two::new(&world.qwac(), &world.seal(), &new);
    let later = sealproxy::log::timestamp(now + DAY);
    let keys = format!("seal_keys: [{{ qsealc: old, registered: true }}, {{ qsealc: new, active_from: \"{later}\" }}]");
    let rig = Rig::start(&world.config(&two.identity(), &format!(", {keys}")));
    let certificate = two.path("new.pem");
    let told = |change: &dyn Fn()| {
        let reload = judged(&rig, change);
        (reload["result"].clone(), reload["findings"].to_string().matches("new.pem").count())
    };
    let write = |text: &str| std::fs::write(&certificate, text).expect("written");
    assert_eq!(told(&|| write("no certificate")), ("warned".into(), 1));
    assert_eq!(told(&|| write(&new.chain_pem)), ("restored".into(), 0));
    assert_eq!(told(&|| std::fs::remove_file(&certificate).expect("removed")), ("warned".into(), 1));
    let over = Authority::new(now).expect("an authority").with_validity(now - 2 * DAY..now - DAY);
    let over = over.qsealc(&Tpp::demo(), KeyKind::Rsa2048).expect("a QSealC");
    assert_eq!(told(&|| two.write("new", &over)), ("warned".into(), 1));
    assert!(status(&rig)["last_reload"]["findings"].to_string().contains("expired"), "{}", status(&rig));
    assert_eq!(metric(&rig, "sealproxy_staged_seals{upstream=\"bank\"}"), 0.0, "it lies ready for nothing");
    assert_eq!(metric(&rig, "sealproxy_reloads_total{result=\"warned\"}"), 3.0);
    assert_eq!((metric(&rig, REFUSED), rig.get(ACCOUNTS).status), (0.0, 200));
}

/// Until its time it has sealed nothing, and is what lies on disk, as for a process that starts.
#[test]
fn a_seal_that_is_corrected_before_its_time_seals_as_it_was_corrected() {
    let world = World::new();
    let (wrong, right) = (world.seal(), world.seal());
    let two = Two::new(&world.qwac(), &world.seal(), &wrong);
    let due = SystemTime::now() + Duration::from_secs(8);
    let keys = format!(
        "seal_keys: [{{ qsealc: old, key_id: OLD, registered: true }}, {{ qsealc: new, key_id: NEW, active_from: \"{}\" }}]",
        sealproxy::log::timestamp(due)
    );
    let rig = Rig::start(&world.config(&two.identity(), &format!(", {keys}")));
    two.write("new", &right);
    assert!(SystemTime::now() < due - Duration::from_secs(4), "this machine is too slow for the test");
    until("its time has come", Duration::from_secs(15), || {
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        world.bank.received().pop().expect("received").header("signature").expect("sealed").contains("keyId=\"NEW\"")
    });
    let received = world.bank.received().pop().expect("received");
    verify_by(&received, &leaf_of(&der(&right)), "NEW").expect("sealed by what lies on disk");
    // From then on the bank knows it, and another file waits for another word.
    let reload = judged(&rig, || two.write("new", &wrong));
    assert_eq!(reload["result"], "staged", "{reload}");
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    let received = world.bank.received().pop().expect("received");
    verify_by(&received, &leaf_of(&der(&right)), "NEW").expect("sealed by what the bank knows");
}

/// Once it has sealed the bank knows it: a time that is moved into the future does not make it anybody's.
#[test]
fn a_seal_whose_time_is_put_off_is_still_the_one_that_the_bank_knows() {
    let world = World::new();
    let (first, second) = (world.seal(), world.seal());
    let two = Two::new(&world.qwac(), &world.seal(), &first);
    let text = |from: SystemTime| {
        let from = sealproxy::log::timestamp(from);
        let new = format!("{{ qsealc: new, key_id: NEW, active_from: \"{from}\" }}");
        let keys = format!("seal_keys: [{{ qsealc: old, key_id: OLD, registered: true }}, {new}]");
        world.config(&two.identity(), &format!(", {keys}"))
    };
    let (rig, config) = Rig::start_with_file(&text(SystemTime::now() - DAY));
    let sealed_by = |issued: &Issued, name: &str| {
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        let received = world.bank.received().pop().expect("received");
        verify_by(&received, &leaf_of(&der(issued)), name).map(drop)
    };
    sealed_by(&first, "NEW").expect("sealed by the second of the list");
    let due = SystemTime::now() + Duration::from_secs(12);
    assert_eq!(reload(&rig, &config, &text(due))["result"], "applied");
    let reload = judged(&rig, || two.write("new", &second));
    assert!(SystemTime::now() < due, "this machine is too slow for the test");
    assert_eq!(reload["result"], "staged", "{reload}");
    until("its time has come again", Duration::from_secs(20), || {
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        world.bank.received().pop().expect("received").header("signature").expect("sealed").contains("keyId=\"NEW\"")
    });
    assert!(SystemTime::now() >= due);
    sealed_by(&first, "NEW").expect("sealed by what the bank knows");
}

/// Whatever is wrong with it is told in the same way, and counts as nothing that was refused.
#[test]
fn a_seal_ahead_of_its_time_is_warned_of_in_every_way_until_it_is_sound() {
    let now = SystemTime::now();
    let world = World::new();
    let (new, other) = (world.seal(), world.seal());
    let curve = world.authority.qsealc(&Tpp::demo(), KeyKind::P256).expect("a QSealC");
    let two = Two::new(&world.qwac(), &world.seal(), &new);
    let (certificate, key) = (two.path("new.pem"), two.path("new.key"));
    for file in [&certificate, &key] {
        std::fs::remove_file(file).expect("removed");
    }
    let keys = format!(
        "seal_keys: [{{ qsealc: old, registered: true }}, {{ qsealc: new, key_id: {}, active_from: \"{}\" }}]",
        leaf_of(&der(&new)).sha1_hex(),
        sealproxy::log::timestamp(now + DAY)
    );
    let rig = Rig::start(&world.config(&two.identity(), &format!(", {keys}")));
    let write = |file: &Path, text: &str| std::fs::write(file, text).expect("written");
    let steps: [(&dyn Fn(), &str, &str); 7] = [
        (&|| write(&certificate, &new.chain_pem), "warned", "new.key"),
        (&|| write(&key, &other.key_pem), "warned", "identities.main.qsealc[1].key"),
        (&|| two.write("new", &other), "warned", "upstreams.bank.seal_keys[1].key_id"),
        (&|| two.write("new", &curve), "warned", "identities.main.qsealc[1].key"),
        (&|| two.write("new", &new), "restored", ""),
        (&|| write(&certificate, "no certificate"), "warned", "new.pem"),
        (&|| two.write("new", &new), "restored", ""),
    ];
    for (number, (act, result, about)) in steps.into_iter().enumerate() {
        let reload = judged(&rig, act);
        assert_eq!(reload["result"], result, "{number}: {reload:#}");
        assert!(reload["findings"].to_string().contains(about), "{number}: {reload:#}");
        assert_eq!(metric(&rig, "sealproxy_reload_refused"), 0.0, "{number}");
    }
    assert_eq!(rig.get(ACCOUNTS).status, 200);
}

/// A process that starts takes the same files for a mistake: whoever reads of it has time to mend that.
#[test]
fn a_seal_that_would_keep_the_next_process_from_starting_is_a_warning() {
    let world = World::new();
    let seal = world.seal();
    let mut secret = Secret::new(&files(&world.qwac(), &seal));
    let known = format!(", key_id: {}", leaf_of(&der(&seal)).sha1_hex());
    let text = world.config(&identity(&secret), &known);
    let rig = Rig::start(&text);
    secret.swap(&files(&world.qwac(), &world.seal()));
    until("it is staged", Duration::from_secs(10), || metric(&rig, "sealproxy_staged_seals{upstream=\"bank\"}") == 1.0);
    let last = status(&rig)["last_reload"].clone();
    let findings = last["findings"].as_array().expect("findings").clone();
    let staged = findings.iter().filter_map(Value::as_str).find(|it| it.contains("lies ready")).expect("it is told");
    assert!(staged.starts_with("warning: ") && staged.contains("a process that starts meanwhile"), "{staged}");
    // One that this bank could never take is no successor.
    let curve = world.authority.qsealc(&Tpp::demo(), KeyKind::P256).expect("a QSealC");
    secret.swap(&files(&world.qwac(), &curve));
    until("it is refused", Duration::from_secs(10), || metric(&rig, "sealproxy_reload_refused") == 1.0);
    let last = status(&rig)["last_reload"].to_string();
    assert!(last.contains("no signature algorithm") && !last.contains("lies ready"), "{last}");
    assert_eq!(rig.get(ACCOUNTS).status, 200);
}

/// A bad set keeps what works, and what has expired does not work.
#[test]
fn an_expired_qwac_is_replaced_whatever_lies_beside_its_successor() {
    let now = SystemTime::now();
    let world = World::new();
    let short = World { authority: world.authority, bank: world.bank };
    let ending = now - DAY..now + Duration::from_secs(3);
    let authority = Authority::new(now).expect("an authority").with_validity(ending);
    let (first, seal) = (authority.qwac(&Tpp::demo(), KeyKind::P256).expect("a QWAC"), short.seal());
    let mut secret = Secret::new(&files(&first, &seal));
    let rig = Rig::start(&short.config(&identity(&secret), ""));
    let next = short.qwac();
    let broken = Issued { key_pem: String::new(), ..seal };
    secret.swap(&files(&next, &broken));
    until("it is refused", Duration::from_secs(10), || metric(&rig, REFUSED) > 0.0);
    until("it is in place", Duration::from_secs(30), || presents(&rig, &next));
    assert_eq!(rig.get(ACCOUNTS).status, 200);
}

/// Installed ahead of its time it waits for it, and not for the next look at the files.
#[test]
fn a_qwac_that_is_not_valid_yet_goes_live_when_it_is() {
    let now = SystemTime::now();
    let world = World::new();
    let begin = now + Duration::from_secs(9);
    let later = Authority::new(now).expect("an authority").with_validity(begin..now + 300 * DAY);
    let (first, seal) = (world.qwac(), world.seal());
    let mut secret = Secret::new(&files(&first, &seal));
    let rig = Rig::start(&world.config(&identity(&secret), ""));
    let next = later.qwac(&Tpp::demo(), KeyKind::P256).expect("a QWAC");
    secret.swap(&files(&next, &seal));
    until("it is refused", Duration::from_secs(8), || metric(&rig, REFUSED) > 0.0);
    assert!(presents(&rig, &first));
    until("its time comes", Duration::from_secs(13), || presents(&rig, &next));
    assert!(SystemTime::now() + Duration::from_secs(1) > begin, "certificates count whole seconds");
    assert_eq!(metric(&rig, "sealproxy_reload_refused"), 0.0);
}

/// The chain was cut on its way, or another one lies behind the leaf: a bank that takes chains as they come would
/// refuse it.
#[test]
fn a_chain_that_is_worse_than_the_one_in_use_is_refused() {
    let world = World::new();
    let (first, seal, next) = (world.qwac(), world.seal(), world.qwac());
    let mut secret = Secret::new(&files(&first, &seal));
    let rig = Rig::start(&world.config(&identity(&secret), ""));
    let (end, _) = next.chain_pem.match_indices("-----BEGIN").nth(1).expect("a second certificate");
    let alone = &next.chain_pem[..end];
    let other = Authority::new(SystemTime::now()).expect("an authority");
    for chain in
        [alone.to_owned(), format!("{alone}{}", world.seal().chain_pem), format!("{alone}{}", other.certificate_pem())]
    {
        let refused = metric(&rig, REFUSED);
        secret.swap(&files(&Issued { chain_pem: chain, ..next.clone() }, &seal));
        until("it is refused", Duration::from_secs(10), || metric(&rig, REFUSED) > refused);
        assert!(presents(&rig, &first), "{}", status(&rig));
    }
    secret.swap(&files(&next, &seal));
    until("it is in place", Duration::from_secs(10), || presents(&rig, &next));
    // Who has never had more gets no less.
    let mut secret = Secret::new(&files(&Issued { chain_pem: alone.to_owned(), ..next }, &seal));
    let rig = Rig::start(&world.config(&identity(&secret), ""));
    let last = world.qwac();
    let (end, _) = last.chain_pem.match_indices("-----BEGIN").nth(1).expect("a second certificate");
    let last = Issued { chain_pem: last.chain_pem[..end].to_owned(), ..last };
    secret.swap(&files(&last, &seal));
    until("it is in place", Duration::from_secs(10), || presents(&rig, &last));
}

/// A bank names the new key, and its name is written down before the files are there.
#[test]
fn a_key_id_that_comes_before_its_certificate_waits_for_it() {
    for (of_old, of_new) in [(Some("the-old-one"), Some("the-new-one")), (None, None)] {
        let world = World::new();
        let (qwac, old, new) = (world.qwac(), world.seal(), world.seal());
        let mut secret = Secret::new(&files(&qwac, &old));
        let (old_leaf, new_leaf) = (leaf_of(&der(&old)), leaf_of(&der(&new)));
        let of_old = of_old.map_or(old_leaf.sha1_hex(), str::to_owned);
        let of_new = of_new.map_or(new_leaf.sha1_hex(), str::to_owned);
        let named = |key_id: &str| world.config(&identity(&secret), &format!(", key_id: {key_id}"));
        let (first, second) = (named(&of_old), named(&of_new));
        let (rig, config) = Rig::start_with_file(&first);
        let last = reload(&rig, &config, &second);
        assert!(last.to_string().contains("is still the one that the bank knew as"), "{last}");
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        verify_by(&world.bank.only(), &old_leaf, &of_old).expect("sealed by the old one under its name");
        secret.swap(&files(&qwac, &new));
        until("it is in use", Duration::from_secs(10), || {
            status(&rig)["upstreams"]["bank"]["seal"]["sha256"] == new_leaf.sha256_hex()
        });
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        let received = world.bank.received().pop().expect("received");
        verify_by(&received, &new_leaf, &of_new).expect("sealed by the new one under its name");
        secret.swap(&files(&qwac, &world.seal()));
        until("a third is staged", Duration::from_secs(10), || {
            metric(&rig, "sealproxy_staged_seals{upstream=\"bank\"}") == 1.0
        });
    }
}

/// What the bank knows does not depend on what we call the bank.
#[test]
fn an_upstream_that_is_renamed_keeps_the_seal_that_the_bank_knows() {
    let world = World::new();
    let (qwac, seal, renewed) = (world.qwac(), world.seal(), world.seal());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let registered = leaf(&secret.path("qsealc.pem"));
    let text = world.config(&identity(&secret), "");
    let (rig, config) = Rig::start_with_file(&text);
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    secret.swap(&files(&qwac, &renewed));
    until("it is staged", Duration::from_secs(10), || metric(&rig, "sealproxy_staged_seals{upstream=\"bank\"}") == 1.0);
    let last =
        reload(&rig, &config, &text.replace("bank: {", "banque: {").replace("upstream: bank", "upstream: banque"));
    assert_eq!(last["result"], "applied", "{last}");
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    let received = world.bank.received().pop().expect("received");
    verify_by(&received, &registered, &registered.sha1_hex()).expect("sealed by the registered one");
    assert!(!rig.metrics().contains("upstream=\"bank\""), "{}", rig.metrics());
}

/// What a configuration was refused for is not mended by files that are written once more.
#[test]
fn files_that_are_written_again_do_not_restore_a_refused_configuration() {
    let world = World::new();
    let (qwac, seal) = (world.qwac(), world.seal());
    let secret = Secret::new(&files(&qwac, &seal));
    let text = world.config(&identity(&secret), "");
    let (rig, config) = Rig::start_with_file(&text);
    assert_eq!(reload(&rig, &config, &format!("{text}limits: {{ body: 1KiB }}\n"))["result"], "refused");
    for _ in 0..3 {
        // Long enough for a look to find it half written, and too short for one to give up on it.
        std::fs::write(secret.path("qwac.pem"), &qwac.chain_pem[..100]).expect("written");
        std::thread::sleep(Duration::from_millis(150));
        std::fs::write(secret.path("qwac.pem"), &qwac.chain_pem).expect("written");
        std::thread::sleep(Duration::from_millis(600));
    }
    // On a slow machine one may have given up, and restores what it had refused.
    if metric(&rig, REFUSED) == 1.0 {
        assert_eq!(metric(&rig, "sealproxy_reloads_total{result=\"restored\"}"), 0.0);
    }
    assert_eq!(metric(&rig, "sealproxy_reload_refused"), 1.0);
    assert_eq!(reload(&rig, &config, &text)["result"], "restored");
    assert_eq!(metric(&rig, "sealproxy_reload_refused"), 0.0);
}

/// Whoever sends a hang-up is told what became of it, and what is gone is gone from the metrics too.
#[test]
fn every_hang_up_is_answered_in_the_log_and_routes_that_are_gone_leave_no_series() {
    let world = World::new();
    let secret = Secret::new(&files(&world.qwac(), &world.seal()));
    let text = world.config(&identity(&secret), "");
    let token = "/sandbox/becm/oauth2/token";
    let more = format!("{text}  - {{ path: {token}, upstream: bank, methods: [POST], seal: false }}\n");
    let (rig, config) = Rig::start_with_file(&more);
    assert_eq!(rig.request("POST", token, "", "").status, 200);
    assert!(rig.metrics().contains(&format!("path=\"{token}\"")) || rig.metrics().contains(token));
    assert_eq!(reload(&rig, &config, &more)["result"], "unchanged");
    let refused = reload(&rig, &config, &format!("{more}limits: {{ body: 1KiB }}\n"));
    assert_eq!(refused["result"], "refused");
    assert!(refused.to_string().contains("limits.body"), "{refused}");
    assert_eq!(metric(&rig, "sealproxy_reload_refused"), 1.0);
    assert_eq!(reload(&rig, &config, &more)["result"], "restored");
    assert_eq!(metric(&rig, "sealproxy_reload_refused"), 0.0);
    assert_eq!(reload(&rig, &config, &text)["result"], "applied");
    assert!(!rig.metrics().contains(token), "{}", rig.metrics());
}

/// What ends after its route has gone, or has gone and come back, is counted where its line says it belongs.
#[test]
fn a_request_under_way_is_counted_whatever_becomes_of_its_route() {
    let (answer, until_let) = gate();
    let world = World::answering(move |request| {
        if request.request_line().contains("token") {
            until_let();
        }
        Act::Answer(ok("{}"))
    });
    let secret = Secret::new(&files(&world.qwac(), &world.seal()));
    let text = world.config(&identity(&secret), "");
    let token = "/sandbox/becm/oauth2/token";
    let more = format!("{text}  - {{ path: {token}, upstream: bank, methods: [POST], seal: false }}\n");
    let (rig, config) = Rig::start_with_file(&more);
    let counted = format!("sealproxy_requests_total{{outcome=\"answered\",route=\"{token}\",status=\"2xx\"}} ");
    std::thread::scope(|scope| {
        let ask = || {
            let before = world.bank.received().len();
            let asked = scope.spawn(|| rig.request("POST", token, "", "").status);
            until("it is with the bank", Duration::from_secs(10), || world.bank.received().len() > before);
            asked
        };
        answer.send(()).expect("the bank waits");
        assert_eq!(rig.request("POST", token, "", "").status, 200);
        let asked = ask();
        assert_eq!(reload(&rig, &config, &text)["result"], "applied");
        assert_eq!(reload(&rig, &config, &more)["result"], "applied");
        answer.send(()).expect("the bank waits");
        assert_eq!(asked.join().expect("no panic"), 200);
        until("it is counted", Duration::from_secs(10), || rig.metrics().contains(&format!("{counted}2")));
        let asked = ask();
        assert_eq!(reload(&rig, &config, &text)["result"], "applied");
        answer.send(()).expect("the bank waits");
        assert_eq!(asked.join().expect("no panic"), 200);
        until("its series are gone", Duration::from_secs(10), || !rig.metrics().contains(token));
    });
}

/// As the files of an identity are, so are the others that are read again: nobody waits for the writer of a pipe.
#[test]
fn a_pipe_in_the_place_of_the_configuration_stops_nobody() {
    let world = World::new();
    let mut secret = Secret::new(&files(&world.qwac(), &world.seal()));
    let seal = world.seal();
    let text = world.config(&identity(&secret), "");
    let (rig, config) = Rig::start_with_file(&text);
    std::fs::remove_file(&config).expect("removed");
    assert!(std::process::Command::new("mkfifo").arg(&config).status().expect("it starts").success());
    rig.reload();
    until("it is refused", Duration::from_secs(10), || metric(&rig, REFUSED) > 0.0);
    let next = world.qwac();
    secret.swap(&files(&next, &seal));
    until("files are followed", Duration::from_secs(10), || presents(&rig, &next));
    std::fs::remove_file(&config).expect("removed");
    assert_ne!(reload(&rig, &config, &text)["result"], "refused");
}

#[test]
fn a_key_that_becomes_readable_to_everybody_is_noticed_while_it_is_in_use() {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    let two = Two::new(&world.qwac(), &world.seal(), &world.seal());
    let key = two.path("qwac.key");
    let mode = |mode: u32| std::fs::set_permissions(&key, Permissions::from_mode(mode)).expect("set");
    for name in ["qwac", "old", "new"] {
        let file = two.path(&format!("{name}.key"));
        std::fs::set_permissions(file, Permissions::from_mode(0o600)).expect("set");
    }
    let keys = ", seal_keys: [{ qsealc: old, registered: true }, { qsealc: new, registered: true }]";
    let rig = Rig::start(&world.config(&two.identity(), keys));
    let is_told = || status(&rig)["identities"]["main"]["findings"].to_string().contains("every user of this machine");
    assert!(!is_told());
    mode(0o644);
    until("it is told", Duration::from_secs(10), is_told);
    mode(0o600);
    until("it is well", Duration::from_secs(10), || !is_told());
    assert_eq!(rig.get(ACCOUNTS).status, 200);
}

/// What the bank knows stays with the bank: whatever the identity is called, whether the upstream was away for a while,
/// and for whoever comes as a second brand of the same bank.
#[test]
fn what_a_bank_knows_outlives_every_change_of_the_configuration() {
    let world = World::new();
    let (qwac, seal, renewed) = (world.qwac(), world.seal(), world.seal());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let registered = leaf(&secret.path("qsealc.pem"));
    let text = world.config(&identity(&secret), "");
    let (rig, config) = Rig::start_with_file(&text);
    secret.swap(&files(&qwac, &renewed));
    until("it is staged", Duration::from_secs(10), || metric(&rig, "sealproxy_staged_seals{upstream=\"bank\"}") == 1.0);
    let renamed = text.replace("  main: {", "  other: {").replace("identity: main", "identity: other");
    let (upstream, routes) = text.split_once("routes:").expect("routes");
    let (head, upstream) = upstream.split_once("upstreams:\n").expect("upstreams");
    let away = format!(
        "{head}upstreams:\n{}routes:{}",
        upstream.replace("bank: {", "elsewhere: {").replace("https://localhost", "https://127.0.0.1"),
        routes.replace("upstream: bank", "upstream: elsewhere")
    );
    let brand = format!(
        "{head}upstreams:\n{upstream}{}routes:{routes}  - {{ path: /sandbox/cic/stet-psd2-api/, upstream: brand }}\n",
        upstream.replace("bank: {", "brand: {")
    );
    let listed = text.replace("qsealc: { ", "qsealc: [{ name: first, ").replace("qsealc.key } }", "qsealc.key }] }");
    let listed = listed.replace("private: true", "private: true, seal_keys: [{ qsealc: first, registered: true }]");
    for text in [&renamed, &text, &away, &text, &brand, &text, &listed] {
        let last = reload(&rig, &config, text);
        assert_eq!(last["result"], "applied", "{last}");
        if *text == away {
            continue;
        }
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        let mut received = vec![world.bank.received().pop().expect("received")];
        if *text == brand {
            assert_eq!(rig.get("/sandbox/cic/stet-psd2-api/v2.1/accounts").status, 200);
            received.extend(world.bank.received().pop());
        }
        for request in received {
            verify_by(&request, &registered, &registered.sha1_hex()).expect("sealed by the registered one");
        }
    }
}

/// The roots on disk are broken, those in memory are sound: no reason to let the QWAC end.
#[test]
fn a_broken_trust_file_keeps_no_qwac_out() {
    let world = World::new();
    let (qwac, seal, next) = (world.qwac(), world.seal(), world.qwac());
    let mut secret = Secret::new(&files(&qwac, &seal));
    let roots = folder("trust").join("roots.pem");
    std::fs::copy(kit().path("ca.pem"), &roots).expect("copied");
    let text = world.config(&identity(&secret), "");
    let rig = Rig::start(&text.replace(&kit().path("ca.pem").display().to_string(), &roots.display().to_string()));
    std::fs::write(&roots, "-----BEGIN CERTIFICATE-----\n").expect("written");
    until("it is refused", Duration::from_secs(10), || metric(&rig, REFUSED) > 0.0);
    secret.swap(&files(&next, &seal));
    until("it is in place", Duration::from_secs(10), || presents(&rig, &next));
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    assert_eq!(world.bank.received().pop().expect("received").client, der(&next));
    assert_eq!(metric(&rig, "sealproxy_reload_refused"), 1.0);
}

/// The configuration with another bank like its own, of an identity that may be one more, whose trust cannot be read.
fn beside_an_untrusted_one(text: &str, more_identities: &str, identity: &str) -> String {
    let (upstreams, routes) = text.split_once("routes:").expect("routes");
    let (head, upstream) = upstreams.split_once("upstreams:\n").expect("upstreams");
    let other = upstream.replace("bank: {", "other: {").replace("trust: ", "trust: /gone");
    let other = other.replace("identity: main", &format!("identity: {identity}"));
    assert!(other.contains(&format!("identity: {identity}")), "{other}");
    format!(
        "{head}{more_identities}upstreams:\n{upstream}{other}routes:{routes}  - {{ path: /sandbox/cic/stet-psd2-api/, upstream: other }}\n"
    )
}

/// One bank's revocation list has ended: the others can be reached, at a start as while running.
#[test]
fn a_bank_that_cannot_be_judged_stops_no_other_at_the_start() {
    let world = World::new();
    let secret = Secret::new(&files(&world.qwac(), &world.seal()));
    let text = world.config(&identity(&secret), "");
    let rig = Rig::start(&beside_an_untrusted_one(&text, "", "main"));
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    let refused = rig.get("/sandbox/cic/stet-psd2-api/v2.1/accounts");
    assert_eq!((refused.status, &*refused.problem(), &*refused.outcome()), (503, "identity-unusable", "not_sent"));
    assert_eq!((rig.page("/readyz").status, rig.page("/readyz?upstream=other").status), (200, 503));
    // Its identity is sound: the reason is its own.
    let upstreams = status(&rig)["upstreams"].clone();
    let reason = upstreams["other"]["findings"][0].as_str().expect("a finding").to_owned();
    assert!(reason.contains("upstreams.other.trust: /gone"), "{reason}");
    assert_eq!(upstreams["bank"]["findings"], serde_json::json!([]));
    assert_eq!(metric(&rig, "sealproxy_upstream_usable{upstream=\"other\"}"), 0.0);
    assert_eq!(metric(&rig, "sealproxy_upstream_usable{upstream=\"bank\"}"), 1.0);
    assert_eq!(metric(&rig, "sealproxy_identity_usable{identity=\"main\"}"), 1.0);
}

/// What we cut because its certificate has gone is no failure of the bank's.
#[test]
fn an_answer_that_a_rotation_cuts_is_not_counted_against_the_bank() {
    let world = World::answering(|request| match request.request_line() {
        line if line.contains("stuck") => Act::Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart".to_vec()),
        line if line.contains("silent") => Act::Wait(Duration::from_secs(5), ok("{}")),
        _ => Act::Answer(ok("{}")),
    });
    let seal = world.seal();
    let mut secret = Secret::new(&files(&world.qwac(), &seal));
    let rig = Rig::start(&(world.config(&identity(&secret), "") + "timeouts: { drain: 500ms }\n"));
    std::thread::scope(|scope| {
        let stuck = scope.spawn(|| rig.get(&format!("{ACCOUNTS}?stuck")));
        let silent = scope.spawn(|| rig.request("POST", &format!("{ACCOUNTS}?silent"), "Content-Type: a/b\r\n", "{}"));
        until("both are under way", Duration::from_secs(10), || world.bank.received().len() == 2);
        secret.swap(&files(&world.qwac(), &seal));
        assert_eq!(stuck.join().expect("no panic").body, "part", "cut");
        let silent = silent.join().expect("no panic");
        assert_eq!((silent.status, &*silent.problem(), &*silent.outcome()), (502, "stopped", "unknown"));
        assert!(silent.body.contains("timeouts.drain") && silent.body.contains("successor"), "{}", silent.body);
    });
    until("both are logged", Duration::from_secs(10), || {
        rig.log.text().matches("\"problem\":\"stopped\"").count() == 2
    });
    assert!(!rig.metrics().contains("sealproxy_upstream_failures_total{"), "{}", rig.metrics());
}

/// One identity has no QWAC, and its bank's trust cannot be read: that was so at the start, and keeps no change of
/// another out.
#[test]
fn a_bank_that_has_two_faults_holds_no_configuration_up() {
    let world = World::new();
    let secret = Secret::new(&files(&world.qwac(), &world.seal()));
    let text = world.config(&identity(&secret), "");
    let second = format!("  second: {}\n", identity(&secret).replace("qwac.pem", "gone.pem"));
    let all = beside_an_untrusted_one(&text, &second, "second");
    let (rig, config) = Rig::start_with_file(&all);
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    let more = format!("{all}  - {{ path: /sandbox/becm/other/, upstream: bank }}\n");
    let said = reload(&rig, &config, &more);
    assert_eq!(said["result"], "applied", "{said}");
}
