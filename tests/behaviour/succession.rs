//! Which QWAC may come after another one in production, and which pair may serve there. OpenSSL issues them, the judge
//! is what the bank is shown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::outside::present;
use crate::preflight::{Office, RSA, Wanted};
use crate::rotation::{reload, status};
use crate::support::{Act, FakeBank, Manner, Rig, folder, kit, ok, tls, until};

const ACCOUNTS: &str = "/becm/stet-psd2-api/v2.1/accounts";

/// A folder with the files of one identity, and a bank that trusts whoever issued them.
struct Scene {
    office: Office,
    bank: FakeBank,
    folder: PathBuf,
    seal: (PathBuf, PathBuf),
}

impl Scene {
    /// With the QWAC and the seal in place.
    fn new(qwac: &Wanted, seal: &Wanted) -> Self {
        let mut office = Office::new();
        office.authority("other", "Autre");
        let roots = office.join("roots.pem", &[&office.path("root.pem"), &office.path("other.pem")]);
        let tls = tls(kit().path("bank.pem"), kit().path("bank.key"), &roots, rustls::ALL_VERSIONS);
        let bank = FakeBank::with(Manner { tls, ..Manner::good() }, |_| Act::Answer(ok("{}")));
        let seal = Self::seal(&mut office, seal);
        let mut scene = Self { office, bank, folder: folder("scene"), seal };
        scene.install("qwac", qwac, "root");
        scene
    }

    /// Issues a seal: its chain and its key.
    fn seal(office: &mut Office, wanted: &Wanted) -> (PathBuf, PathBuf) {
        let (pem, key) = office.issue(wanted, &RSA);
        (office.join(&format!("{}.chain", pem.display()), &[&pem, &office.path("root.pem")]), key)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Issues a QWAC into the files of this name, and returns its DER.
    fn install(&mut self, name: &str, qwac: &Wanted, issuer: &str) -> Vec<u8> {
        let (pem, key) = self.office.issue_by(issuer, qwac, &RSA);
        let chain = self.office.join("chain", &[&pem, &self.office.path(&format!("{issuer}.pem"))]);
        std::fs::copy(key, self.path(&format!("{name}.key"))).expect("copied");
        std::fs::copy(&chain, self.path(&format!("{name}.pem"))).expect("copied");
        sealproxy::identity::pem::read_chain(&pem).expect("a chain")[0].to_vec()
    }

    fn identity(&self, qwac: &str) -> String {
        let pair = |certificate: &Path, key: &Path| {
            format!("{{ certificate: {}, key: {} }}", certificate.display(), key.display())
        };
        let qwac = pair(&self.path(&format!("{qwac}.pem")), &self.path(&format!("{qwac}.key")));
        format!("{{ qwac: {qwac}, qsealc: {} }}", pair(&self.seal.0, &self.seal.1))
    }

    /// One upstream `bank` in production, of the identity `main`.
    fn config(&self) -> String {
        format!(
            "listen: [\"127.0.0.1:0\"]\nadmin: [\"127.0.0.1:0\"]\nthreads: 2\nidentities:\n  main: {}\nupstreams:\n  bank: {{ url: \
             \"https://localhost:{}\", environment: production, identity: main, profile: becm, trust: {}, private: true }}\nroutes:\n  \
             - {{ path: /becm/stet-psd2-api/, upstream: bank }}\n",
            self.identity("qwac"),
            self.bank.address.port(),
            kit().path("ca.pem").display(),
        )
    }

    /// What the bank is shown now.
    fn shown(&self, rig: &Rig) -> Vec<u8> {
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        self.bank.received().pop().expect("received").client
    }
}

/// What came of a change of files.
pub(crate) fn judged(rig: &Rig, change: impl FnOnce()) -> Value {
    let before = status(rig)["last_reload"].clone();
    change();
    until("it is judged", Duration::from_secs(20), || status(rig)["last_reload"] != before);
    status(rig)["last_reload"].clone()
}

#[test]
fn certificates_of_two_organisations_stop_the_identity_in_production_alone() {
    if !present(&["openssl"]) {
        return;
    }
    let mut scene = Scene::new(&Wanted::qwac(), &Wanted::seal());
    let other = Wanted { organization_identifier: "PSDDE-BAFIN-777", nca_id: "DE-BAFIN", ..Wanted::seal() };
    let good = scene.identity("qwac");
    scene.seal = Scene::seal(&mut scene.office, &other);
    let beside = |plain: &str, mixed: &str| {
        let upstream = plain.lines().find(|line| line.starts_with("  bank: ")).expect("an upstream");
        let upstream = upstream.replace("bank: ", "mixed: ").replace("identity: main", "identity: mixed");
        plain.replace("upstreams:\n", &format!("  mixed: {mixed}\nupstreams:\n{upstream}\n"))
            + "  - { path: /cic/stet-psd2-api/, upstream: mixed }\n"
    };
    let plain = scene.config();
    let mixed = scene.identity("qwac");
    let production = beside(&plain.replace(&mixed, &good), &mixed);
    let rig = Rig::start(&production);
    let of_mixed = "/cic/stet-psd2-api/v2.1/accounts";
    let refused = rig.get(of_mixed);
    assert_eq!((refused.status, &*refused.problem(), &*refused.outcome()), (503, "identity-unusable", "not_sent"));
    assert_eq!((rig.get(ACCOUNTS).status, rig.page("/readyz?upstream=mixed").status), (200, 503));
    let sandbox =
        production.replace("environment: production", "environment: sandbox").replace("path: /", "path: /sandbox/");
    assert_eq!(Rig::start(&sandbox).get(&format!("/sandbox{of_mixed}")).status, 200);
}

/// A bank of PSD2 would refuse it, and the one in use is good.
#[test]
fn a_qwac_that_has_lost_its_qualification_is_refused_in_production() {
    if !present(&["openssl"]) {
        return;
    }
    let mut scene = Scene::new(&Wanted::qwac(), &Wanted::seal());
    let rig = Rig::start(&scene.config());
    let first = scene.shown(&rig);
    for worse in [
        Wanted { compliance: false, qc_type: None, roles: &[], ..Wanted::qwac() },
        Wanted { roles: &[], ..Wanted::qwac() },
        Wanted { compliance: false, ..Wanted::qwac() },
        Wanted { qc_type: Some("0.4.0.1862.1.6.1"), ..Wanted::qwac() },
    ] {
        let last = judged(&rig, || drop(scene.install("qwac", &worse, "root")));
        assert_eq!(last["result"], "refused", "{last}");
        assert!(last.to_string().contains("does not state what the certificate in use states"), "{last}");
        assert_eq!(scene.shown(&rig), first);
    }
    let sandbox = scene.config().replace("environment: production", "environment: sandbox");
    drop(scene.install("qwac", &Wanted::qwac(), "root"));
    let tried = Rig::start(&sandbox.replace("path: /", "path: /sandbox/"));
    let last = judged(&tried, || drop(scene.install("qwac", &Wanted { roles: &[], ..Wanted::qwac() }, "root")));
    assert_eq!(last["result"], "applied", "{last}");
    let good = scene.install("qwac", &Wanted::qwac(), "root");
    until("it is in place", Duration::from_secs(20), || scene.shown(&rig) == good);
}

/// Who has never been qualified loses nothing, and one more statement is a gain.
#[test]
fn a_qwac_that_states_as_much_as_the_one_before_or_more_is_taken() {
    if !present(&["openssl"]) {
        return;
    }
    let bare = Wanted { roles: &[], compliance: false, ..Wanted::qwac() };
    let mut scene = Scene::new(&bare, &Wanted::seal());
    let rig = Rig::start(&scene.config());
    for next in [bare.clone(), Wanted { compliance: true, ..bare }, Wanted::qwac()] {
        let mut new = Vec::new();
        let last = judged(&rig, || new = scene.install("qwac", &next, "root"));
        assert_eq!(last["result"], "applied", "{last}");
        assert_eq!(scene.shown(&rig), new);
    }
}

#[test]
fn a_qwac_of_another_issuer_is_taken_and_both_issuers_are_named() {
    if !present(&["openssl"]) {
        return;
    }
    let mut scene = Scene::new(&Wanted::qwac(), &Wanted::seal());
    let rig = Rig::start(&scene.config());
    let mut new = Vec::new();
    let last = judged(&rig, || new = scene.install("qwac", &Wanted::qwac(), "other"));
    assert_eq!(last["result"], "applied", "{last}");
    assert!(
        last.to_string().contains("is issued by CN=Autre,O=Confiance,C=FR, the one before it by CN=Racine,"),
        "{last}"
    );
    assert_eq!(scene.shown(&rig), new);
    let last = judged(&rig, || new = scene.install("qwac", &Wanted::qwac(), "other"));
    assert!(last["result"] == "applied" && !last.to_string().contains("is issued by"), "{last}");
}

/// Whatever the identity is called, and the upstream: the bank has not changed.
#[test]
fn another_subject_needs_leave_under_every_name() {
    if !present(&["openssl"]) {
        return;
    }
    let mut scene = Scene::new(&Wanted::qwac(), &Wanted::seal());
    let plain = scene.config();
    let (rig, file) = Rig::start_with_file(&plain);
    let first = scene.shown(&rig);
    let other = scene.install("other", &Wanted { subject: "Autre SAS", ..Wanted::qwac() }, "root");
    let (own, alien) = (scene.identity("qwac"), scene.identity("other"));
    let renamed = |text: &str| text.replace("main: ", "z: ").replace("identity: main", "identity: z");
    let banque = |text: &str| text.replace("bank: {", "banque: {").replace("upstream: bank", "upstream: banque");
    let second = format!("{own}\n  z: {alien}");
    let beside = plain.replace(&own, &second);
    let swapped = renamed(&plain).replace(&own, &alien);
    let switched = beside.replace("identity: main", "identity: z");
    // The names alone are nobody's business.
    for text in [&renamed(&plain), &banque(&plain), &banque(&renamed(&plain)), &plain, &beside] {
        let last = reload(&rig, &file, text);
        assert_eq!(last["result"], "applied", "{last}");
        assert_eq!(scene.shown(&rig), first);
    }
    for text in [&swapped, &banque(&swapped), &switched, &banque(&switched)] {
        let last = reload(&rig, &file, text);
        assert_eq!(last["result"], "refused", "{last}");
        assert!(last.to_string().contains("`allow_subject_change: true`"), "{last}");
        assert_eq!(scene.shown(&rig), first);
    }
    drop(scene.install("bare", &Wanted { roles: &[], ..Wanted::qwac() }, "root"));
    let last = reload(&rig, &file, &renamed(&plain).replace(&own, &scene.identity("bare")));
    assert_eq!(last["result"], "refused", "{last}");
    assert!(last.to_string().contains("does not state what the certificate in use states"), "{last}");
    // Nor does it help to be away for a while.
    let away = plain.replace("https://localhost", "https://127.0.0.1");
    assert_eq!(reload(&rig, &file, &away)["result"], "applied");
    assert_eq!(reload(&rig, &file, &swapped)["result"], "refused");
    let allowed = swapped.replace(&alien, &alien.replace("{ qwac", "{ allow_subject_change: true, qwac"));
    assert_eq!(reload(&rig, &file, &allowed)["result"], "applied");
    assert_eq!(scene.shown(&rig), other);
    // Another client of the same bank is none of the first one's business.
    let upstream = plain.lines().find(|line| line.starts_with("  bank: ")).expect("an upstream");
    let brand = upstream.replace("bank: ", "brand: ");
    let both = allowed
        .replace("upstreams:\n", &format!("  main: {own}\nupstreams:\n{brand}\n"))
        .replace("routes:\n", "routes:\n  - { path: /cic/stet-psd2-api/, upstream: brand }\n");
    let last = reload(&rig, &file, &both);
    assert_eq!(last["result"], "applied", "{last}");
}
