//! What `check` says of certificates, as OpenSSL issues them with one thing wrong at a time, and of those of a real
//! provider's form.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::outside::{free_port, present};
use crate::support::{FakeBank, folder, kit};

/// One certificate, good unless something is changed.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) subject: &'static str,
    pub(crate) organization_identifier: &'static str,
    pub(crate) key_usage: &'static str,
    pub(crate) extended: Option<&'static str>,
    pub(crate) qc_type: Option<&'static str>,
    pub(crate) compliance: bool,
    pub(crate) roles: &'static [(&'static str, &'static str)],
    pub(crate) nca_id: &'static str,
    pub(crate) ca: bool,
    pub(crate) days: u32,
}

const AI: (&str, &str) = ("0.4.0.19495.1.3", "PSP_AI");
const PI: (&str, &str) = ("0.4.0.19495.1.2", "PSP_PI");

impl Wanted {
    pub(crate) fn qwac() -> Self {
        Self {
            subject: "Paiements SAS",
            organization_identifier: "PSDFR-ACPR-12345",
            key_usage: "critical,digitalSignature",
            extended: Some("clientAuth,serverAuth"),
            qc_type: Some("0.4.0.1862.1.6.3"),
            compliance: true,
            roles: &[AI, PI],
            nca_id: "FR-ACPR",
            ca: false,
            days: 365,
        }
    }

    /// As a real one: nonRepudiation alone, no extended key usage.
    pub(crate) fn seal() -> Self {
        Self { key_usage: "critical,nonRepudiation", extended: None, qc_type: Some("0.4.0.1862.1.6.2"), ..Self::qwac() }
    }

    fn extensions(&self) -> String {
        let mut text = format!(
            "[leaf]\nbasicConstraints=critical,CA:{}\nkeyUsage={}\nsubjectAltName=DNS:tpp.paiements.fr\n",
            if self.ca { "TRUE" } else { "FALSE" },
            self.key_usage
        );
        if let Some(extended) = self.extended {
            text.push_str(&format!("extendedKeyUsage={extended}\n"));
        }
        text.push_str("1.3.6.1.5.5.7.1.3=ASN1:SEQUENCE:qc\n[qc]\n");
        let mut sections = String::new();
        if self.compliance {
            text.push_str("a=SEQUENCE:compliance\n");
            sections.push_str("[compliance]\no=OID:0.4.0.1862.1.1\n");
        }
        if let Some(kind) = self.qc_type {
            text.push_str("b=SEQUENCE:type\n");
            sections.push_str(&format!("[type]\no=OID:0.4.0.1862.1.6\nv=SEQUENCE:types\n[types]\nt=OID:{kind}\n"));
        }
        if !self.roles.is_empty() {
            text.push_str("c=SEQUENCE:psd2\n");
            sections.push_str("[psd2]\no=OID:0.4.0.19495.2\nv=SEQUENCE:psd2v\n[psd2v]\nr=SEQUENCE:roles\n");
            sections.push_str(&format!("n=UTF8:Autorite de controle prudentiel\ni=UTF8:{}\n[roles]\n", self.nca_id));
            for (index, (oid, name)) in self.roles.iter().enumerate() {
                sections.push_str(&format!("r{index}=SEQUENCE:role{index}\n"));
                text.insert_str(0, &format!("[role{index}]\no=OID:{oid}\nn=UTF8:{name}\n"));
            }
        }
        text + &sections
    }
}

/// A folder with an authority of OpenSSL's.
pub(crate) struct Office {
    folder: PathBuf,
    issued: usize,
}

impl Office {
    pub(crate) fn new() -> Self {
        let office = Self { folder: folder("office"), issued: 0 };
        let root = "[req]\ndistinguished_name=d\n[d]\n[ca]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n";
        std::fs::write(office.path("root.cnf"), root).expect("written");
        for name in ["root", "twin"] {
            office.authority(name, "Racine");
        }
        office
    }

    /// Another root, into the files of this name.
    pub(crate) fn authority(&self, file: &str, name: &str) {
        let new = format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -config root.cnf -extensions ca -subj \
             /C=FR/O=Confiance/CN={name} -keyout {file}.key -out {file}.pem"
        );
        self.openssl(&new.split(' ').collect::<Vec<_>>());
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(&self.folder).output().expect("openssl");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Issues, and returns the paths of the certificate alone and of its key.
    pub(crate) fn issue(&mut self, wanted: &Wanted, key: &[&str]) -> (PathBuf, PathBuf) {
        self.issue_by("root", wanted, key)
    }

    pub(crate) fn issue_by(&mut self, issuer: &str, wanted: &Wanted, key: &[&str]) -> (PathBuf, PathBuf) {
        self.issued += 1;
        let (pem, secret) = (format!("{}.pem", self.issued), format!("{}.key", self.issued));
        let config = format!("[req]\ndistinguished_name=d\n[d]\n{}", wanted.extensions());
        std::fs::write(self.path("leaf.cnf"), config).expect("written");
        let subject = format!(
            "/C=FR/O={}/organizationIdentifier={}/CN=tpp.paiements.fr",
            wanted.subject, wanted.organization_identifier
        );
        let request =
            ["req", "-new", "-nodes", "-config", "leaf.cnf", "-subj", &subject, "-keyout", &secret, "-out", "csr"];
        self.openssl(&[&request[..], key].concat());
        self.sign(issuer, &pem, wanted.days, "-sha256");
        (self.path(&pem), self.path(&secret))
    }

    /// Signs the last request again.
    fn sign_last(&self, pem: &Path, digest: &str) {
        self.sign("root", pem.file_name().and_then(|name| name.to_str()).expect("a name"), 365, digest);
    }

    fn sign(&self, issuer: &str, pem: &str, days: u32, digest: &str) {
        let command = format!(
            "x509 -req -in csr -CA {issuer}.pem -CAkey {issuer}.key -CAcreateserial -days {days} -extfile leaf.cnf -extensions leaf \
             {digest} -out {pem}"
        );
        self.openssl(&command.split(' ').collect::<Vec<_>>());
    }

    pub(crate) fn join(&self, name: &str, parts: &[&Path]) -> PathBuf {
        let text: String = parts.iter().map(|part| std::fs::read_to_string(part).expect("PEM")).collect();
        std::fs::write(self.path(name), text).expect("written");
        self.path(name)
    }
}

pub(crate) const RSA: [&str; 2] = ["-newkey", "rsa:2048"];

/// `check --json` over one identity with these files.
struct Checked {
    code: Option<i32>,
    document: Value,
}

impl Checked {
    fn of(qwac: &(PathBuf, PathBuf), seal: &(PathBuf, PathBuf), identity: &str, upstream: &str, routes: &str) -> Self {
        let pair = |(certificate, key): &(PathBuf, PathBuf)| {
            format!("{{ certificate: {}, key: {} }}", certificate.display(), key.display())
        };
        let environment = if upstream.contains("environment") { "" } else { ", environment: production" };
        let profile = if upstream.contains("profile") { "" } else { ", profile: becm" };
        let yaml = format!(
            "identities: {{ main: {{ qwac: {}, qsealc: {}{identity} }} }}\nupstreams: {{ bank: {{ url: https://bank.example, \
             trust: {}{profile}{environment}{upstream} }} }}\nroutes: [{routes}]\n",
            pair(qwac),
            pair(seal),
            kit().path("ca.pem").display()
        );
        Self::yaml(&yaml, &[])
    }

    fn yaml(yaml: &str, more: &[&str]) -> Self {
        let file = folder("preflight").join("sealproxy.yaml");
        std::fs::write(&file, yaml).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_sealproxy"))
            .args(["check", "--json", "--config"])
            .arg(&file)
            .args(more)
            .output()
            .expect("it starts");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let document: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
        assert_eq!(document["ok"], output.status.success(), "{document}");
        Self { code: output.status.code(), document }
    }

    /// Level, key and code of each finding that has a code.
    fn found(&self) -> Vec<(String, String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let findings = self.document["findings"].as_array().expect("a list").iter();
        let coded = findings.filter(|finding| !finding["code"].is_null());
        coded.map(|finding| (text(&finding["level"]), text(&finding["key"]), text(&finding["code"]))).collect()
    }

    #[track_caller]
    fn finds(&self, expected: &[(&str, &str, &str)]) {
        let found = self.found();
        let found: Vec<_> =
            found.iter().map(|(level, key, code)| (level.as_str(), key.as_str(), code.as_str())).collect();
        assert_eq!(found, expected, "{:#}", self.document);
        let errors = expected.iter().any(|(level, ..)| *level == "error");
        assert_eq!(self.code, Some(if errors { 78 } else { 0 }));
    }
}

const ROUTE: &str = "{ path: /becm/stet-psd2-api/, upstream: bank }";
const QWAC: &str = "identities.main.qwac.certificate";
const SEAL: &str = "identities.main.qsealc.certificate";

#[test]
fn certificates_of_a_real_form_are_beyond_reproach() {
    if !present(&["openssl"]) {
        return;
    }
    let mut office = Office::new();
    let root = office.path("root.pem");
    let (qwac, seal) = (office.issue(&Wanted::qwac(), &RSA), office.issue(&Wanted::seal(), &RSA));
    let whole = |(pem, key): &(PathBuf, PathBuf)| {
        (office.join(&format!("{}.chain", pem.display()), &[pem, &root]), key.clone())
    };
    let demands = ", authorisation: PSDFR-ACPR-12345, roles: [AISP, PISP]";
    let routes = format!("{ROUTE}, {{ path: /becm/stet-psd2-api/v2.1/payment-requests, upstream: bank }}");
    Checked::of(&whole(&qwac), &whole(&seal), demands, "", &routes).finds(&[]);
}

#[test]
fn one_thing_wrong_at_a_time_is_found_where_it_is() {
    if !present(&["openssl"]) {
        return;
    }
    let mut office = Office::new();
    let root = office.path("root.pem");
    let cases: [(_, _, &[_]); 13] = [
        (Wanted { extended: None, ..Wanted::qwac() }, Wanted::seal(), &[("warning", QWAC, "qwac-without-client-auth")]),
        (
            Wanted { extended: Some("serverAuth"), ..Wanted::qwac() },
            Wanted::seal(),
            &[("warning", QWAC, "qwac-without-client-auth")],
        ),
        (
            Wanted { key_usage: "critical,keyEncipherment", ..Wanted::qwac() },
            Wanted::seal(),
            &[("warning", QWAC, "qwac-may-not-sign")],
        ),
        (
            Wanted::qwac(),
            Wanted { key_usage: "critical,keyAgreement", ..Wanted::seal() },
            &[("error", SEAL, "seal-may-not-sign")],
        ),
        (Wanted { compliance: false, ..Wanted::qwac() }, Wanted::seal(), &[("warning", QWAC, "no-qc-compliance")]),
        (Wanted::qwac(), Wanted { qc_type: None, ..Wanted::seal() }, &[("warning", SEAL, "no-qc-type")]),
        (Wanted::seal(), Wanted::seal(), &[("error", QWAC, "other-type")]),
        (Wanted::qwac(), Wanted { roles: &[], ..Wanted::seal() }, &[("warning", SEAL, "no-psd2-statement")]),
        (Wanted { nca_id: "ACPR", ..Wanted::qwac() }, Wanted::seal(), &[("warning", QWAC, "malformed-nca-id")]),
        (Wanted { nca_id: "DE-BAFIN", ..Wanted::qwac() }, Wanted::seal(), &[("warning", QWAC, "two-authorities")]),
        (
            Wanted::qwac(),
            Wanted { organization_identifier: "PSDFR-ACPR-99999", ..Wanted::seal() },
            &[("error", "identities.main", "two-organisations")],
        ),
        (Wanted { ca: true, ..Wanted::qwac() }, Wanted::seal(), &[("error", QWAC, "authority-as-leaf")]),
        (Wanted::qwac(), Wanted { days: 5, ..Wanted::seal() }, &[("warning", SEAL, "expires-soon")]),
    ];
    for (qwac, seal, expected) in cases {
        let (qwac, seal) = (office.issue(&qwac, &RSA), office.issue(&seal, &RSA));
        let whole = |name: &str, (pem, key): &(PathBuf, PathBuf)| (office.join(name, &[pem, &root]), key.clone());
        Checked::of(&whole("qwac.chain", &qwac), &whole("seal.chain", &seal), "", "", ROUTE).finds(expected);
    }
}

#[test]
fn what_the_configuration_states_must_stand_in_both_certificates() {
    if !present(&["openssl"]) {
        return;
    }
    let mut office = Office::new();
    let root = office.path("root.pem");
    let informing = office.issue(&Wanted { roles: &[AI], ..Wanted::qwac() }, &RSA);
    let (paying, seal) = (office.issue(&Wanted::qwac(), &RSA), office.issue(&Wanted::seal(), &RSA));
    let whole = |name: &str, (pem, key): &(PathBuf, PathBuf)| (office.join(name, &[pem, &root]), key.clone());
    let (informing, seal) = (whole("qwac.chain", &informing), whole("seal.chain", &seal));
    let paying = whole("paying.chain", &paying);
    let check =
        |identity: &str, upstream: &str, routes: &str| Checked::of(&informing, &seal, identity, upstream, routes);
    let reading = ROUTE.replace("upstream", "methods: [GET], upstream");
    check(", roles: [AISP]", "", &reading).finds(&[]);
    // Whatever POST goes through it, a payment is the first thing to expect.
    check("", "", ROUTE).finds(&[("warning", QWAC, "role-missing-for-route")]);
    check(", roles: [AISP, PISP]", "", &reading).finds(&[("error", QWAC, "role-missing")]);
    let payments = "{ path: /becm/stet-psd2-api/v2.1/payment-requests/, upstream: bank }";
    check("", "", payments).finds(&[("warning", QWAC, "role-missing-for-route")]);
    let elsewhere = payments.replace("upstream", "seal: false, methods: [GET], upstream");
    check("", "", &format!("{ROUTE}, {elsewhere}")).finds(&[("warning", QWAC, "role-missing-for-route")]);
    let both = |identity: &str, routes: &str| Checked::of(&paying, &seal, identity, "", routes);
    let not_stated = [("warning", "identities.main.roles", "role-not-stated")];
    both(", roles: [AISP]", payments).finds(&not_stated);
    both(", roles: [AISP]", ROUTE).finds(&not_stated);
    both(", roles: [AISP]", &reading).finds(&[]);
    both(", roles: [AISP, PISP]", ROUTE).finds(&[]);
    both(", roles: [PSP_AI, PSP_PI]", ROUTE).finds(&[]);
    check(", authorisation: PSDFR-ACPR-54321", "", &reading)
        .finds(&[("error", QWAC, "other-authorisation"), ("error", SEAL, "other-authorisation")]);
    let key_id = "dac579ef4ca6231e517fcc81af4a834a832a34df";
    let staged = ("note", "upstreams.bank.seal_keys", "staged");
    check("", &format!(", key_id: {key_id}"), &reading)
        .finds(&[("error", "upstreams.bank.key_id", "key-id-of-another-certificate"), staged]);
    let opaque = format!(", key_id: {key_id}, profile: {{ like: becm, key_id_opaque: true }}");
    check("", &opaque, &reading).finds(&[]);
    let sandbox = reading.replace("/becm", "/sandbox/becm");
    check("", ", environment: sandbox", &sandbox).finds(&[(
        "warning",
        "upstreams.bank.environment",
        "qualified-certificate-in-sandbox",
    )]);
    let refused = Checked::yaml("identities: 1\n", &[]);
    assert_eq!(refused.code, Some(78));
    assert_eq!(refused.document["findings"][0]["level"], "error");
}

#[test]
fn certificates_for_tests_are_noticed_in_production() {
    let kit_pair = |name: &str| (kit().path(&format!("{name}.pem")), kit().path(&format!("{name}.key")));
    Checked::of(&kit_pair("qwac"), &kit_pair("qsealc"), "", "", ROUTE).finds(&[(
        "warning",
        "upstreams.bank.environment",
        "test-certificate-in-production",
    )]);
}

#[test]
fn chains_are_judged_link_by_link() {
    if !present(&["openssl"]) {
        return;
    }
    let mut office = Office::new();
    let (root, twin) = (office.path("root.pem"), office.path("twin.pem"));
    let (qwac, seal) = (office.issue(&Wanted::qwac(), &RSA), office.issue(&Wanted::seal(), &RSA));
    let sealing = (office.join("seal.chain", &[&seal.0, &root]), seal.1.clone());
    let check =
        |parts: &[&Path]| Checked::of(&(office.join("qwac.chain", parts), qwac.1.clone()), &sealing, "", "", ROUTE);
    check(&[&qwac.0, &root]).finds(&[]);
    check(&[&qwac.0]).finds(&[("warning", QWAC, "chain-incomplete")]);
    // The same name, another key.
    check(&[&qwac.0, &twin]).finds(&[("error", QWAC, "chain-broken")]);
    let disorder = check(&[&qwac.0, &seal.0, &root]);
    disorder.finds(&[("warning", QWAC, "chain-order")]);
    let reason = disorder.document["findings"][0]["reason"].as_str().expect("text");
    assert!(
        reason.contains("in order: certificate 1 (") && reason.contains("not of this chain: certificate 2 ("),
        "{reason}"
    );
}

/// Version 1 has no extensions: it says nothing of what it is for, and TLS libraries present none.
#[test]
fn a_certificate_of_version_1_is_told_as_such() {
    if !present(&["openssl"]) {
        return;
    }
    let mut office = Office::new();
    let root = office.path("root.pem");
    let whole =
        |office: &Office, name: &str, (pem, key): &(PathBuf, PathBuf)| (office.join(name, &[pem, &root]), key.clone());
    let good = office.issue(&Wanted::qwac(), &RSA);
    let qwac = whole(&office, "qwac.chain", &good);
    let old = office.issue(&Wanted::seal(), &RSA);
    let sign = "x509 -req -in csr -CA root.pem -CAkey root.key -CAcreateserial -days 365 -out 2.pem";
    office.openssl(&sign.split(' ').collect::<Vec<_>>());
    let old = whole(&office, "old.chain", &old);
    Checked::of(&qwac, &old, "", "", ROUTE)
        .finds(&[("warning", SEAL, "old-version"), ("warning", SEAL, "not-qualified")]);
    let refused = Checked::of(&old, &qwac, "", "", ROUTE);
    assert_eq!(refused.code, Some(78));
    let finding = &refused.document["findings"][0];
    assert_eq!(finding["key"], QWAC);
    assert!(finding["reason"].as_str().expect("text").contains("X.509 version 1"), "{finding}");
}

/// An authority that renews its key keeps its name: both roots may come with the chain, and the right one counts.
#[test]
fn of_two_authorities_with_one_name_the_one_that_signed_counts() {
    if !present(&["openssl"]) {
        return;
    }
    let mut office = Office::new();
    let (root, twin) = (office.path("root.pem"), office.path("twin.pem"));
    let (qwac, seal) = (office.issue(&Wanted::qwac(), &RSA), office.issue(&Wanted::seal(), &RSA));
    let sealing = (office.join("seal.chain", &[&seal.0, &root]), seal.1.clone());
    for (parts, stray) in [([&qwac.0, &root, &twin], 3), ([&qwac.0, &twin, &root], 2)] {
        let parts = parts.map(PathBuf::as_path);
        let checked = Checked::of(&(office.join("qwac.chain", &parts), qwac.1.clone()), &sealing, "", "", ROUTE);
        checked.finds(&[("warning", QWAC, "chain-order")]);
        let reason = checked.document["findings"][0]["reason"].as_str().expect("text");
        assert!(reason.contains(&format!("not of this chain: certificate {stray} (")), "{reason}");
    }
}

/// What is not verified is not called broken: that would take a sound identity out of use.
#[test]
fn a_signature_by_a_key_of_another_size_is_not_called_broken() {
    if !present(&["openssl"]) {
        return;
    }
    for (key, size) in [("rsa:1024", 1024), ("rsa:2048", 2048)] {
        let mut office = Office::new();
        let renewed = format!(
            "req -x509 -newkey {key} -nodes -days 3650 -config root.cnf -extensions ca -subj /C=FR/O=Confiance/CN=Racine \
             -keyout root.key -out root.pem"
        );
        office.openssl(&renewed.split(' ').collect::<Vec<_>>());
        let root = office.path("root.pem");
        let (qwac, seal) = (office.issue(&Wanted::qwac(), &RSA), office.issue(&Wanted::seal(), &RSA));
        let whole = |name: &str, (pem, key): &(PathBuf, PathBuf)| (office.join(name, &[pem, &root]), key.clone());
        let checked = Checked::of(&whole("qwac.chain", &qwac), &whole("seal.chain", &seal), "", "", ROUTE);
        let unverifiable = [("note", QWAC, "unverifiable-signature"), ("note", SEAL, "unverifiable-signature")];
        checked.finds(if size < 2048 { &unverifiable } else { &[] });
    }
}

/// Nobody needs the issuer to see that nobody takes SHA-1.
#[test]
fn a_signature_over_sha_1_is_noticed_without_its_issuer() {
    if !present(&["openssl"]) {
        return;
    }
    let mut office = Office::new();
    let root = office.path("root.pem");
    let (seal, qwac) = (office.issue(&Wanted::seal(), &RSA), office.issue(&Wanted::qwac(), &RSA));
    office.sign_last(&qwac.0, "-sha1");
    let sealing = (office.join("seal.chain", &[&seal.0, &root]), seal.1.clone());
    let check =
        |parts: &[&Path]| Checked::of(&(office.join("qwac.chain", parts), qwac.1.clone()), &sealing, "", "", ROUTE);
    check(&[&qwac.0, &root]).finds(&[("warning", QWAC, "sha1-signature")]);
    check(&[&qwac.0]).finds(&[("warning", QWAC, "chain-incomplete"), ("warning", QWAC, "sha1-signature")]);
}

/// T-alg: what ring does not verify is said in words, and is no error: the bank's TLS stack may.
#[test]
fn signatures_that_cannot_be_verified_here_have_words() {
    if !present(&["openssl"]) {
        return;
    }
    for (key, digest, words) in [
        ("ec_paramgen_curve:P-384", "-sha512", "ECDSA with SHA-512"),
        ("ec_paramgen_curve:P-521", "-sha256", "ECDSA on another curve than P-256 and P-384"),
        ("ec_paramgen_curve:brainpoolP256r1", "-sha256", "ECDSA on another curve than P-256 and P-384"),
    ] {
        let mut office = Office::new();
        let renewed = format!(
            "req -x509 -newkey ec -pkeyopt {key} {digest} -nodes -days 3650 -config root.cnf -extensions ca -subj \
             /C=FR/O=Confiance/CN=Racine -keyout root.key -out root.pem"
        );
        office.openssl(&renewed.split(' ').collect::<Vec<_>>());
        let root = office.path("root.pem");
        let mut issue = |wanted: &Wanted| {
            let (pem, secret) = office.issue(wanted, &RSA);
            if digest == "-sha512" {
                office.sign_last(&pem, digest);
            }
            (office.join(&format!("{}.chain", pem.display()), &[&pem, &root]), secret)
        };
        let (qwac, seal) = (issue(&Wanted::qwac()), issue(&Wanted::seal()));
        let checked = Checked::of(&qwac, &seal, "", "", ROUTE);
        checked.finds(&[("note", QWAC, "unverifiable-signature"), ("note", SEAL, "unverifiable-signature")]);
        let reason = checked.document["findings"][0]["reason"].as_str().expect("text");
        assert!(reason.contains(words), "{reason}");
    }
}

/// In a file: TLS is done with ring, which knows a few kinds.
#[test]
fn a_qwac_over_a_key_that_tls_cannot_use_is_refused_by_the_name_of_its_kind() {
    if !present(&["openssl"]) {
        return;
    }
    let mut office = Office::new();
    let root = office.path("root.pem");
    let seal = office.issue(&Wanted::seal(), &RSA);
    let sealing = (office.join("seal.chain", &[&seal.0, &root]), seal.1.clone());
    let curve =
        |name: &str| vec!["-newkey".into(), "ec".into(), "-pkeyopt".into(), format!("ec_paramgen_curve:{name}")];
    let kind = |name: &str| vec!["-newkey".to_owned(), name.to_owned()];
    for (key, form, words) in [
        (curve("P-521"), "", "the key is EC on P-521, and"),
        (curve("P-521"), "ec", "the key is EC on P-521, and"),
        (curve("brainpoolP256r1"), "", "the key is EC on brainpoolP256r1, and"),
        (kind("ed448"), "", "the key is Ed448, and"),
        (kind("rsa:4608"), "", "the key is RSA of 4608 bits, and"),
        (kind("rsa:2560"), "rsa -traditional", "the key is RSA of 2560 bits, and"),
        (kind("rsa:1024"), "", "the certificate's RSA key has 1024 bits"),
        (curve("P-384"), "", ""),
        (kind("ed25519"), "", ""),
        (kind("rsa:3072"), "", ""),
    ] {
        let arguments: Vec<&str> = key.iter().map(String::as_str).collect();
        let (pem, secret) = office.issue(&Wanted::qwac(), &arguments);
        if !form.is_empty() {
            let secret = secret.display().to_string();
            office.openssl(&form.split(' ').chain(["-in", &secret, "-out", &secret]).collect::<Vec<_>>());
        }
        let qwac = (office.join("qwac.chain", &[&pem, &root]), secret);
        let checked = Checked::of(&qwac, &sealing, "", "", ROUTE);
        assert_eq!(checked.code, Some(if words.is_empty() { 0 } else { 78 }), "{key:?}: {:#}", checked.document);
        let findings = checked.document["findings"].to_string();
        assert!(findings.contains(words) && !findings.contains("failed to parse"), "{key:?}: {findings}");
        assert_eq!(
            findings.contains("EC on P-256 or P-384, or Ed25519"),
            words.starts_with("the key is"),
            "{findings}"
        );
    }
}

/// Whatever is wrong, machines read one document, and the exit code is the same as for people.
/// Of every kind one.
const MISTAKES: &str = "listn: 127.0.0.1:8080\nlisten: [\"0.0.0.0:8080\", \"127.0.0.1:1\", \"127.0.0.1:1\"]\nthreads: [1]\n\
    hosts: [\"${SEALPROXY_TEST_UNSET}\"]\nlimits: { body: 8MiB, buffered: 1MiB }\nidentities: { main: {} }\n\
    upstreams: { bank: { url: \"http://a\", environment: prodction, profile: becm, trust: } }\n\
    routes: [{ path: x, upstream: other }]\nroutes: []\n";

#[test]
fn check_prints_one_document_for_machines() {
    let check = |file: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealproxy"));
        let output = command.args(["check", "--config"]).arg(file).args(more).output().expect("it starts");
        let is_for_machines = more.contains(&"--json");
        assert!(output.stderr.is_empty() || !is_for_machines, "{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code(), output.stdout)
    };
    let folder = folder("json");
    let bank = FakeBank::good();
    let closed = free_port();
    let files = [
        ("missing.yaml", None, 78, 78),
        ("no.yaml", Some("a: [".to_owned()), 78, 78),
        ("binary.yaml", Some("a: \u{0}".to_owned()), 78, 78),
        ("mistakes.yaml", Some(MISTAKES.to_owned()), 78, 78),
        ("good.yaml", Some(crate::support::config(bank.address, "", "")), 0, 0),
        ("closed.yaml", Some(crate::support::config(closed, "", "")), 0, 1),
    ];
    for (name, text, alone, connected) in files {
        let file = folder.join(name);
        text.iter().for_each(|text| std::fs::write(&file, text).expect("written"));
        for (more, code) in [(&["--json"][..], alone), (&["--json", "--connect"], connected)] {
            let (found, stdout) = check(&file, more);
            assert_eq!((found, check(&file, &more[1..]).0), (Some(code), Some(code)), "{name} {more:?}");
            let document: Value = serde_json::from_slice(&stdout).expect("one JSON document");
            assert_eq!(document["file"], file.display().to_string());
            assert_eq!(document["ok"], code == 0, "{document}");
            assert_eq!(document.get("connect").is_some(), more.len() > 1, "{document}");
            let errors = |findings: &Value| {
                let findings = findings.as_array().map(Vec::as_slice).unwrap_or_default();
                findings.iter().filter(|finding| finding["level"] == "error" && finding["reason"].is_string()).count()
            };
            assert_eq!(errors(&document["findings"]) > 0, code == 78, "{document}");
            assert_eq!(errors(&document["connect"]["bank"]) > 0, code == 1, "{document}");
            let all = [&document["findings"], &document["connect"]["bank"]].map(|findings| findings.as_array());
            for finding in all.into_iter().flatten().flatten() {
                assert!(finding["code"].is_string(), "without a word for machines: {finding}");
            }
        }
    }
}

/// What `check --connect` says of the URL that serves this, where `config` is told the URL.
fn x5u(served: Vec<u8>, config: impl Fn(&str) -> String) -> Value {
    let web = Web::serving(served);
    let file = folder("x5u").join("sealproxy.yaml");
    let url = format!("    key_id: \"https://localhost:{}/chain.pem\"\n", web.0);
    std::fs::write(&file, config(&url)).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_sealproxy"))
        .args(["check", "--json", "--connect", "--config"])
        .arg(&file)
        .env("SSL_CERT_FILE", kit().path("ca.pem"))
        .output()
        .expect("it starts");
    let document: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    let last = document["connect"]["bank"].as_array().expect("a list").last().expect("a finding").clone();
    assert_eq!(last["key"], "upstreams.bank.key_id");
    last
}

/// The bank verifies seals with what the URL serves.
#[test]
fn an_x5u_must_serve_the_certificate_that_seals() {
    let bank = FakeBank::good();
    let seal = std::fs::read(kit().path("qsealc.pem")).expect("PEM");
    let other = std::fs::read(kit().path("qwac.pem")).expect("PEM");
    let key = std::fs::read(kit().path("qsealc.key")).expect("PEM");
    let both = [&seal[..], &key].concat();
    let nothing = b"x".to_vec();
    for (served, code) in
        [(seal, "x5u"), (other, "x5u-serves-another"), (nothing, "x5u-unreachable"), (both, "x5u-serves-key")]
    {
        let last = x5u(served, |key_id| crate::support::config(bank.address, key_id, ""));
        assert_eq!(last["code"], code, "{last}");
    }
}

/// It builds its path from there too.
#[test]
fn an_x5u_must_serve_what_issued_the_certificate_that_seals() {
    if !present(&["openssl"]) {
        return;
    }
    let (bank, mut office) = (FakeBank::good(), Office::new());
    let authority = Wanted { subject: "Intermediaire", key_usage: "critical,keyCertSign", ca: true, ..Wanted::seal() };
    let (middle, _) = office.issue(&authority, &RSA);
    let (alien, _) = office.issue(&authority, &RSA);
    let (leaf, key) = office.issue_by("1", &Wanted::seal(), &RSA);
    let root = office.path("root.pem");
    let chain = office.join("chain", &[&leaf, &middle, &root]);
    let plain = ["qsealc.pem", "qsealc.key"].map(|name| kit().path(name).display().to_string());
    let config = |key_id: &str| {
        let text = crate::support::file_config(bank.address, key_id, "");
        text.replace(&plain[0], &chain.display().to_string()).replace(&plain[1], &key.display().to_string())
    };
    let cases: [(&[&Path], &str); 6] = [
        (&[&leaf, &middle, &root], "x5u"),
        (&[&leaf, &middle], "x5u"),
        (&[&leaf, &root, &middle], "x5u"),
        (&[&leaf], "x5u-incomplete"),
        (&[&leaf, &root], "x5u-incomplete"),
        (&[&leaf, &alien, &root], "x5u-incomplete"),
    ];
    for (parts, code) in cases {
        let served = std::fs::read(office.join("served", parts)).expect("PEM");
        let last = x5u(served, config);
        assert_eq!(last["code"], code, "{last}");
        let reason = last["reason"].as_str().expect("text");
        assert_eq!(
            reason.contains("without what issued it") && reason.contains("O=Intermediaire"),
            code != "x5u",
            "{last}"
        );
    }
}

/// A web server that asks for no certificate. Holds its port.
struct Web(u16);

impl Web {
    fn serving(body: Vec<u8>) -> Self {
        use std::io::{Read as _, Write as _};
        use std::sync::Arc;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pem = sealproxy::identity::pem::read_chain(&kit().path("bank.pem")).expect("a chain");
        let key = sealproxy::identity::pem::read_key(&kit().path("bank.key")).expect("a key");
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(pem, key)
            .expect("a pair");
        let tls = Arc::new(tls);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let session = rustls::ServerConnection::new(Arc::clone(&tls)).expect("a session");
                let mut stream = rustls::StreamOwned::new(session, stream.expect("accepted"));
                let mut head = [0; 4096];
                let read = stream.read(&mut head).expect("a request");
                assert!(head[..read].starts_with(b"GET /chain.pem HTTP/1.1\r\n"));
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                stream.write_all(&[answer.as_bytes(), &body].concat()).expect("written");
                stream.conn.send_close_notify();
                stream.flush().expect("written");
            }
        });
        Self(port)
    }
}

/// Linters of the trust service providers take the sandbox's certificates for what they are to be.
#[test]
fn pkilint_takes_the_sandbox_certificates_for_those_of_psd2() {
    if !present(&["lint_etsi_cert"]) {
        return;
    }
    let lint = |file: &str, kind: &str| {
        // It reads one certificate alone.
        let chain = std::fs::read_to_string(kit().path(file)).expect("PEM");
        let leaf = folder("lint").join("leaf.pem");
        let (first, _) = chain.split_once("-----END CERTIFICATE-----").expect("a certificate");
        std::fs::write(&leaf, format!("{first}-----END CERTIFICATE-----\n")).expect("written");
        let mut command = Command::new("lint_etsi_cert");
        let output = command.args(["lint", "-t", kind, "-s", "WARNING", "-f", "CSV"]).arg(leaf).output();
        let output = output.expect("it starts");
        assert!(output.stdout.starts_with(b"node_path,") || output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let found = lint("qwac.pem", "QEVCP-W-PSD2-EIDAS-NON-BROWSER-FINAL-CERTIFICATE");
    let found: Vec<&str> = found.lines().skip(1).filter(|line| !line.is_empty()).collect();
    // The rules for browsers know neither the statements of a qualified certificate nor the extension of its subject's
    // organizationIdentifier, and other rules of the same linter demand both.
    let known = ["1.3.6.1.5.5.7.1.3", "2.23.140.3.1"];
    let is_known =
        |line: &&str| line.contains("unknown_extension_present") && known.iter().any(|oid| line.contains(oid));
    assert_eq!((found.len(), found.iter().all(is_known)), (2, true), "{found:#?}");
    let found = lint("qsealc.pem", "NCP-LEGAL-PERSON-CERTIFICATE");
    assert_eq!(found.lines().skip(1).filter(|line| !line.is_empty()).count(), 0, "{found}");
}

#[test]
fn openssl_reads_the_statements_of_the_sandbox_certificates() {
    if !present(&["openssl"]) {
        return;
    }
    for (file, kind) in [("qwac.pem", "0.4.0.1862.1.6.3"), ("qsealc.pem", "0.4.0.1862.1.6.2")] {
        let file = kit().path(file);
        let parse = |more: &[&str]| {
            let output =
                Command::new("openssl").args(["asn1parse", "-in"]).arg(&file).args(more).output().expect("openssl");
            assert!(output.status.success());
            String::from_utf8(output.stdout).expect("text")
        };
        let whole = parse(&[]);
        let (_, behind) = whole.split_once(":qcStatements").expect("the extension");
        let offset =
            behind.lines().nth(1).and_then(|line| line.trim().split(':').next()).expect("an offset").to_owned();
        let statements = parse(&["-strparse", &offset]);
        let role = |oid: &str, name: &str| {
            statements.contains(&format!(":{oid}\n")) && statements.contains(&format!("UTF8STRING        :{name}\n"))
        };
        assert!(statements.contains(&format!(":{kind}\n")), "{statements}");
        assert!(statements.contains(":0.4.0.19495.2\n"), "{statements}");
        assert!(role("0.4.0.19495.1.3", "PSP_AI") && role("0.4.0.19495.1.2", "PSP_PI"), "{statements}");
        assert!(statements.contains("UTF8STRING        :FR-ACPR\n"), "{statements}");
    }
}
