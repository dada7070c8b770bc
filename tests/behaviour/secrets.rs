//! Keys that lie encrypted, as OpenSSL writes them, and secrets that others must not read.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::PrivateKeyDer;
use sealproxy::identity::{Credential, KeySource, Pair, Passphrase, PassphraseSource, Qwac, pem};
use sealproxy::key::Key;
use serde_json::Value;

use crate::cli::start;
use crate::outside::{output, present};
use crate::sealing::verify;
use crate::support::{FakeBank, Rig, config, file_config, folder, kit};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
const SECRET: &str = "correct horse – é";

/// A folder with the passphrase, and keys of the kit in other forms.
struct Safe(PathBuf);

impl Safe {
    fn new() -> Self {
        let safe = Self(folder("safe"));
        safe.write("pass", &format!("{SECRET}\n"));
        safe
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).expect("written");
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).expect("a file");
        self.path(name)
    }

    fn openssl(&self, arguments: &str) {
        let pass = format!("file:{}", self.path("pass").display());
        let arguments = arguments.split(' ').map(|argument| if argument == "PASS" { &pass } else { argument });
        output(Command::new("openssl").current_dir(&self.0).args(arguments));
    }

    /// The configuration of the kit, with another pair for one of the certificates.
    fn config(&self, bank: &FakeBank, name: &str, pair: &str) -> String {
        let (certificate, key) = (kit().path(&format!("{name}.pem")), kit().path(&format!("{name}.key")));
        let plain = format!("certificate: {}, key: {}", certificate.display(), key.display());
        // The keys of this test are files, whatever the tests are run for.
        let text = file_config(bank.address, "", "");
        assert!(text.contains(&plain), "{text}");
        text.replace(&plain, pair)
    }
}

/// What `check` finds in a configuration.
fn checked(yaml: &str) -> (bool, String, Value) {
    let file = folder("check").join("sealproxy.yaml");
    std::fs::write(&file, yaml).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealproxy"));
    let output = command.args(["check", "--json", "--config"]).arg(&file).env("SAFE_PASS", SECRET).output();
    let output = output.expect("it starts");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(!text.contains(SECRET), "{text}");
    (output.status.success(), text.clone(), serde_json::from_str(&text).expect("JSON"))
}

#[test]
fn keys_that_openssl_encrypted_seal_and_present() {
    if !present(&["openssl"]) {
        return;
    }
    let bank = FakeBank::good();
    let safe = Safe::new();
    for (number, how) in [
        "-v2 aes-256-cbc",
        "-v2 aes-128-cbc -v2prf hmacWithSHA512",
        "-v2 aes-192-cbc -iter 200000",
        "-v2 des3 -v2prf hmacWithSHA1",
        "-scrypt",
        "-v2 aes-256-cbc -outform DER",
    ]
    .into_iter()
    .enumerate()
    {
        for name in ["qsealc", "qwac"] {
            let key = format!("{name}-{number}.key");
            safe.openssl(&format!(
                "pkcs8 -topk8 {how} -passout PASS -in {} -out {key}",
                kit().path(&format!("{name}.key")).display()
            ));
            let certificate = kit().path(&format!("{name}.pem"));
            let (key, pass) = (safe.path(&key), safe.path("pass"));
            let pair = format!(
                "certificate: {}, key: {}, passphrase: {}",
                certificate.display(),
                key.display(),
                pass.display()
            );
            let rig = Rig::start(&safe.config(&bank, name, &pair));
            assert_eq!(rig.get(ACCOUNTS).status, 200, "{how}");
            verify(bank.received().last().expect("received")).expect("sealed");
        }
    }
}

#[test]
fn bundles_that_openssl_made_hold_certificate_chain_and_key() {
    if !present(&["openssl"]) {
        return;
    }
    let bank = FakeBank::good();
    let safe = Safe::new();
    for (number, how) in
        ["", "-keypbe AES-256-CBC -certpbe AES-256-CBC -macalg sha512", "-legacy"].into_iter().enumerate()
    {
        for name in ["qsealc", "qwac"] {
            let bundle = format!("{name}-{number}.p12");
            let (key, certificate) = (kit().path(&format!("{name}.key")), kit().path(&format!("{name}.pem")));
            let command = format!(
                "pkcs12 -export {how} -passout PASS -inkey {} -in {} -out {bundle}",
                key.display(),
                certificate.display()
            );
            safe.openssl(&command.replace("  ", " "));
            let pair = format!(
                "pkcs12: {}, passphrase: {{ file: {} }}",
                safe.path(&bundle).display(),
                safe.path("pass").display()
            );
            let rig = Rig::start(&safe.config(&bank, name, &pair));
            assert_eq!(rig.get(ACCOUNTS).status, 200, "{how}");
            verify(bank.received().last().expect("received")).expect("sealed");
        }
    }
}

/// OpenSSL puts the leaf first and keeps the order of the others.
#[test]
fn the_chain_of_a_bundle_has_the_order_that_banks_expect() {
    if !present(&["openssl"]) {
        return;
    }
    let safe = Safe::new();
    let authority = "-addext basicConstraints=critical,CA:true";
    for (name, issuer, more) in [("root", "root", authority), ("middle", "root", authority), ("leaf", "middle", "")] {
        safe.openssl(&format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.key"));
        let issued = if name == issuer { String::new() } else { format!(" -CA {issuer}.pem -CAkey {issuer}.key") };
        let command = format!("req -x509 -key {name}.key -subj /CN={name} -days 30 -out {name}.pem{issued} {more}");
        safe.openssl(command.trim_end());
    }
    let text = |name: &str| std::fs::read_to_string(safe.path(name)).expect("PEM");
    safe.write("others.pem", &format!("{}{}", text("root.pem"), text("middle.pem")));
    let passphrase = Passphrase::new(SECRET).expect("a text");
    for how in ["-macalg sha256", "-legacy", "-nomac", "-keypbe NONE -certpbe NONE"] {
        let files = "-inkey leaf.key -in leaf.pem -certfile others.pem -out leaf.p12";
        safe.openssl(&format!("pkcs12 -export {how} -passout PASS {files}"));
        let bundle = pem::read_bundle(&safe.path("leaf.p12"), &passphrase).expect("a bundle");
        let expected =
            ["leaf.pem", "middle.pem", "root.pem"].map(|name| pem::chain(text(name).as_bytes()).expect("PEM"));
        assert_eq!(bundle.chain, expected.concat(), "{how}");
        assert_eq!(*bundle.key, pem::read_key(&safe.path("leaf.key")).expect("a key"), "{how}");
    }
}

#[test]
fn what_does_not_open_says_why_and_never_what_was_tried() {
    if !present(&["openssl"]) {
        return;
    }
    let bank = FakeBank::good();
    let safe = Safe::new();
    let plain = kit().path("qsealc.key");
    safe.openssl(&format!("pkcs8 -topk8 -v2 aes-256-cbc -passout PASS -in {} -out good.key", plain.display()));
    safe.openssl(&format!("pkcs8 -topk8 -v1 PBE-SHA1-3DES -passout PASS -in {} -out pbes1.key", plain.display()));
    safe.openssl(&format!("rsa -traditional -aes256 -passout PASS -in {} -out old.key", plain.display()));
    safe.openssl(&format!(
        "pkcs8 -topk8 -v2 aes-256-cbc -iter 11000000 -passout PASS -in {} -out costly.key",
        plain.display()
    ));
    safe.openssl(&format!("pkcs8 -topk8 -v2 camellia-256-cbc -passout PASS -in {} -out camellia.key", plain.display()));
    for (name, how) in [("good.p12", "-macalg sha256"), ("costly.p12", "-iter 1000001")] {
        let certificate = kit().path("qsealc.pem");
        let (key, certificate) = (plain.display(), certificate.display());
        safe.openssl(&format!("pkcs12 -export {how} -passout PASS -inkey {key} -in {certificate} -out {name}"));
    }
    let whole = std::fs::read(safe.path("good.p12")).expect("a bundle");
    std::fs::write(safe.path("cut.p12"), &whole[..whole.len() / 2]).expect("written");
    safe.write("wrong", "hunter2\n");
    safe.write("empty", "\n");
    let certificate = kit().path("qsealc.pem");
    let pair = |key: &str, more: &str| {
        let key = if key.contains('/') { PathBuf::from(key) } else { safe.path(key) };
        format!("certificate: {}, key: {}{more}", certificate.display(), key.display())
    };
    let pass = |name: &str| format!(", passphrase: {}", safe.path(name).display());
    let bundle = |name: &str, passphrase: &str| format!("pkcs12: {}{}", safe.path(name).display(), pass(passphrase));
    let plain = plain.display().to_string();
    for (pair, reason) in [
        (pair("good.key", &pass("pass")), None),
        (pair("good.key", ", passphrase: { env: SAFE_PASS }"), None),
        (pair("good.key", ""), Some("the private key is encrypted")),
        (pair("good.key", &pass("wrong")), Some("the passphrase does not open the file")),
        (pair("good.key", &pass("empty")), Some("the passphrase is empty")),
        (pair("good.key", &pass("gone")), Some("there is no such passphrase file")),
        // Who writes the passphrase itself there must not find it in a log.
        (pair("good.key", ", passphrase: hunter2"), Some("there is no such passphrase file")),
        (pair("good.key", ", passphrase: hunter2/hunter2"), Some("there is no such passphrase file")),
        (pair("good.key", ", passphrase: /dev/zero"), Some("the passphrase cannot be read")),
        (
            pair("good.key", ", passphrase: { env: NO_SUCH }"),
            Some("the environment variable of the passphrase is not set"),
        ),
        (pair(&plain, &pass("pass")), Some("a passphrase is given, and the private key is not encrypted")),
        (pair("pbes1.key", &pass("pass")), Some("the encryption of the file is not supported: PBES1")),
        (pair("camellia.key", &pass("pass")), Some("the encryption of the file is not supported: an algorithm")),
        (pair("old.key", &pass("pass")), Some("encrypted in OpenSSL's older way")),
        (pair("costly.key", &pass("pass")), Some("asks for more work")),
        (pair("good.p12", ""), Some("the file is a PKCS#12 container")),
        (pair("good.p12", &pass("pass")), Some("the file is a PKCS#12 container")),
        (bundle("good.p12", "pass"), None),
        (bundle("good.p12", "wrong"), Some("the passphrase does not open the file")),
        (bundle("costly.p12", "pass"), Some("asks for more work")),
        (bundle("cut.p12", "pass"), Some("the file is damaged")),
        (bundle("good.key", "pass"), Some("the file is not a PKCS#12 bundle")),
    ] {
        let (ok, text, document) = checked(&safe.config(&bank, "qsealc", &pair));
        assert_eq!(ok, reason.is_none(), "{pair}: {text}");
        assert!(reason.is_none_or(|reason| text.contains(reason)), "{pair}: {text}");
        let errors = document["findings"].as_array().expect("a list").iter().filter(|it| it["level"] == "error");
        let places: Vec<_> = errors.map(|it| it["key"].as_str().expect("a key").to_owned()).collect();
        let place = ["pkcs12", "key", "passphrase"].map(|part| format!("identities.main.qsealc.{part}"));
        let is_told =
            places.len() == 1 && place.contains(&places[0]) && pair.contains("pkcs12") == (places[0] == place[0]);
        assert!(ok || is_told, "{pair}: {places:?}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// As the kubelet mounts a secret: the path is a link, and its target is what counts.
#[test]
fn keys_that_everybody_may_read_or_write_are_refused_where_money_is() {
    let bank = FakeBank::good();
    let safe = Safe::new();
    let key = safe.write("real.key", &std::fs::read_to_string(kit().path("qsealc.key")).expect("PEM"));
    symlink(&key, safe.path("link.key")).expect("a link");
    let pair = format!("certificate: {}, key: {}", kit().path("qsealc.pem").display(), safe.path("link.key").display());
    let sandbox = safe.config(&bank, "qsealc", &pair);
    let production =
        sandbox.replace("environment: sandbox", "environment: production").replace("/sandbox/becm", "/becm");
    let mode = |mode: u32| std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).expect("a file");
    let found = |yaml: &str| {
        let (ok, text, document) = checked(yaml);
        let finding =
            document["findings"].as_array().expect("a list").iter().find(|it| it["code"] == "exposed-secret").cloned();
        (ok, finding.map(|finding| (finding["level"].clone(), finding["key"].clone())), text)
    };
    for good in [0o600, 0o440, 0o640, 0o660] {
        mode(good);
        assert_eq!(found(&production).1, None);
    }
    mode(0o602);
    let (ok, finding, text) = found(&production);
    assert_eq!((ok, finding), (false, Some(("error".into(), "identities.main.qsealc.key".into()))), "{text}");
    assert!(text.contains("every user of this machine may write the secret (mode 0602)"), "{text}");
    mode(0o644);
    let (ok, finding, text) = found(&production);
    assert_eq!((ok, finding), (false, Some(("error".into(), "identities.main.qsealc.key".into()))), "{text}");
    assert!(
        text.contains("defaultMode: 0440") && text.contains("fsGroup: GID") && text.contains("(mode 0644)"),
        "{text}"
    );
    let (ok, finding, text) = found(&sandbox);
    assert_eq!((ok, finding.map(|(level, _)| level)), (true, Some("warning".into())), "{text}");
}

#[test]
fn a_running_process_leaves_no_core_and_cannot_be_dumped() {
    let bank = FakeBank::good();
    let started = start(&config(bank.address, "", ""), &[]);
    let of = |name: &str| std::fs::read_to_string(Path::new("/proc").join(started.child.0.id().to_string()).join(name));
    let limits = of("limits").expect("its limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    // What the kernel gives to root once a process is not dumpable.
    let environment = std::fs::metadata(format!("/proc/{}/environ", started.child.0.id())).expect("a file");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&environment), 0);
}

/// The thread that reads them accepts connections too.
#[test]
fn nobody_waits_for_a_costly_key() {
    if !present(&["openssl"]) {
        return;
    }
    let safe = Safe::new();
    let (certificate, plain) = (kit().path("qsealc.pem"), kit().path("qsealc.key"));
    safe.openssl(&format!("pkcs8 -topk8 -iter 100000 -passout PASS -in {} -out costly.key", plain.display()));
    let (key, passphrase) = (KeySource::File(safe.path("costly.key")), PassphraseSource::File(safe.path("pass")));
    let pair = Pair { setting: "qsealc".into(), certificate, key, passphrase: Some(passphrase) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut loading = std::pin::pin!(Credential::load(&pair));
        tokio::select! {
            biased;
            _ = &mut loading => panic!("it was opened here"),
            () = std::future::ready(()) => {}
        }
        loading.await.expect("a key that fits");
    });
}

/// Whatever is made of a secret, and whatever goes wrong with it.
#[test]
fn no_debug_and_no_error_holds_a_secret() {
    if !present(&["openssl"]) {
        return;
    }
    let safe = Safe::new();
    let (certificate, plain) = (kit().path("qsealc.pem"), kit().path("qsealc.key"));
    let input = format!("-passout PASS -in {}", plain.display());
    safe.openssl(&format!("pkcs8 -topk8 -v2 aes-256-cbc -iter 1 -outform DER {input} -out one.key"));
    let input = format!("-passout PASS -inkey {} -in {}", plain.display(), certificate.display());
    safe.openssl(&format!("pkcs12 -export -iter 1 {input} -out one.p12"));
    let key = pem::read_key(&plain).expect("a key");
    let secrets = renderings(key.secret_der());
    let hides = |shown: String| {
        let found = secrets.iter().find(|secret| shown.contains(*secret));
        assert_eq!(found, None, "{shown}");
    };
    let passphrase = Passphrase::new(SECRET).expect("a text");
    let read = |name: &str| std::fs::read(safe.path(name)).expect("a file");
    hides(format!("{passphrase:?} {:?} {:?}", pem::read_key(&plain), Key::from_der(&key)));
    for (kind, whole) in [(0, key.secret_der().to_vec()), (1, read("one.key")), (2, read("one.p12"))] {
        for at in (0..=whole.len()).step_by(3) {
            let mut damaged = whole.clone();
            damaged.get_mut(at).into_iter().for_each(|byte| *byte ^= 0x41);
            for bytes in [&damaged, &whole[..at]] {
                match kind {
                    0 => hides(told(pem::key(bytes).map(|key| told_key(&key)))),
                    1 => hides(told(pem::encrypted_key(bytes, &passphrase).map(|key| told_key(&key)))),
                    _ => hides(told(pem::bundle(bytes, &passphrase).map(|it| format!("{it:?}{}", told_key(&it.key))))),
                }
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for (file, pass) in [("one.key", "pass"), ("one.p12", "pass"), ("one.key", "one.key"), ("one.p12", "one.p12")] {
        let is_bundle = file.ends_with("p12");
        let pair = Pair {
            setting: "qsealc".into(),
            certificate: if is_bundle { safe.path(file) } else { certificate.clone() },
            key: if is_bundle { KeySource::Bundle } else { KeySource::File(safe.path(file)) },
            passphrase: Some(PassphraseSource::File(safe.path(pass))),
        };
        let (seal, qwac) = runtime.block_on(async { (Credential::load(&pair).await, Qwac::load(&pair).await) });
        assert_eq!((seal.is_ok(), qwac.is_ok()), (pass == "pass", pass == "pass"), "{seal:?} {qwac:?}");
        hides(format!("{pair:?} {seal:?} {qwac:?}"));
    }
}

/// Bytes of an RSA key of 2048 bits, in PKCS#8, that the certificate holds too: the modulus and what stands before it.
const PUBLIC: usize = 320;

/// The forms in which bytes of a key, or the passphrase, might stand in a text.
fn renderings(key: &[u8]) -> Vec<String> {
    let bytes = |at: usize| &key[at..at + 12];
    let forms = (PUBLIC..key.len() - 12).step_by(6).flat_map(|at| {
        let list = format!("{:?}", bytes(at));
        let hex: String = bytes(at).iter().map(|byte| format!("{byte:02x}")).collect();
        [list.trim_matches(['[', ']']).to_owned(), hex.to_uppercase(), hex, STANDARD.encode(bytes(at))]
    });
    forms.chain([SECRET.to_owned(), format!("{SECRET:?}")]).collect()
}

fn told(result: Result<String, pem::Reason>) -> String {
    match result {
        Ok(text) => text,
        Err(reason) => {
            let mut text = format!("{reason:?} {reason} {}", reason.hint());
            let mut source = std::error::Error::source(&reason);
            while let Some(error) = source {
                text += &format!(" {error:?} {error}");
                source = error.source();
            }
            text
        }
    }
}

fn told_key(der: &PrivateKeyDer<'_>) -> String {
    match Key::from_der(der) {
        Ok(key) => format!("{der:?} {key:?}"),
        Err(error) => format!("{der:?} {error:?} {error} {}", error.hint()),
    }
}
