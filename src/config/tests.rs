//! The configuration as a whole: defaults, the three files of `config/`, and one wrong file after another.

use super::*;
use crate::identity::{KeySource, PassphraseSource};
use crate::proxy::listener::Address;
use crate::upstream::{Pin, Roots, Trust, Via};

const REFERENCE: &str = include_str!("../../config/sealproxy.yaml");
const EXAMPLES: [&str; 3] =
    [REFERENCE, include_str!("../../config/becm.yaml"), include_str!("../../config/becm-sandbox.yaml")];

const IDENTITIES: &str =
    "identities: {main: {qwac: {certificate: w.pem, key: w.key}, qsealc: {certificate: s.pem, key: s.key}}}\n";
const UPSTREAMS: &str =
    "upstreams: {becm: {url: https://oauth2-apisi.e-i.com, environment: production, profile: becm}}\n";
const ROUTES: &str = "routes: [{path: /becm/stet-psd2-api/, upstream: becm}, {path: /becm/oauth2/token, upstream: becm, methods: [POST], seal: false}]\n";
const MACHINE: Machine = Machine { cores: 3, memory: None };

fn env(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("8081".into()),
        "SECRET" => Some("hunter2: [#&*".into()),
        "PEM" => Some("-----BEGIN PRIVATE KEY-----\nhunter2\n".into()),
        "EMPTY" => Some(String::new()),
        "SEAL" => Some("false".into()),
        "SIZE" => Some("1MiB".into()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<(Config, Vec<Finding>), Vec<Finding>> {
    Config::parse_on(&MACHINE, Path::new("/etc/sealproxy/f.yaml"), text, &env)
}

fn legal(text: &str) -> Config {
    match parse(text) {
        Ok((config, findings)) if findings.is_empty() => config,
        other => panic!("{text}\n{other:?}"),
    }
}

fn minimal() -> String {
    format!("{IDENTITIES}{UPSTREAMS}{ROUTES}")
}

/// The legal minimum with further top-level settings.
fn with(more: &str) -> String {
    minimal() + more
}

/// The legal minimum with further settings of its upstream.
fn with_upstream(more: &str) -> String {
    minimal().replace("profile: becm", &format!("profile: becm, {more}"))
}

/// The legal minimum whose identity is checked for revocation.
fn with_revocation(settings: &str) -> String {
    minimal().replace("{main: {", &format!("{{main: {{revocation: {settings}, "))
}

/// The legal minimum with other routes.
fn with_routes(routes: &str) -> String {
    format!("{IDENTITIES}{UPSTREAMS}routes: {routes}\n")
}

fn findings(text: &str) -> Vec<String> {
    let findings = match parse(text) {
        Ok((_, findings)) | Err(findings) => findings,
    };
    findings.iter().map(|finding| finding.to_string().replace("/etc/sealproxy/f.yaml: ", "")).collect()
}

/// Asserts that a text has exactly one finding, which begins as expected.
#[track_caller]
fn expect(text: &str, beginning: &str) {
    let findings = findings(text);
    let matches = findings.len() == 1 && findings[0].starts_with(beginning);
    assert!(matches, "{text}\nexpected {beginning}\nfound    {findings:#?}");
}

#[test]
fn the_files_that_we_give_out_are_legal() {
    for text in EXAMPLES {
        legal(text);
    }
}

#[test]
fn the_reference_states_the_defaults() {
    let mut stated = legal(REFERENCE);
    let default = legal(&minimal());
    let files = |config: &Config| config.identities["main"].qwac.certificate.clone();
    assert_eq!(files(&stated), Path::new("/etc/sealproxy/qwac.pem"));
    stated.identities.clone_from(&default.identities);
    assert_eq!(format!("{stated:#?}"), format!("{default:#?}"));
}

/// Of the README's YAML whatever begins at its margin is a whole file; what is indented is a part of one.
#[test]
fn the_readme_s_examples_are_legal() {
    let (mut whole, mut lines) = (0, include_str!("../../README.md").lines());
    while let Some(fence) = lines.find(|line| line.trim_start() == "```yaml") {
        let margin = fence.len() - fence.trim_start().len();
        let block = lines.by_ref().take_while(|line| line.trim_start() != "```");
        let text: String = block.map(|line| format!("{}\n", line.get(margin..).unwrap_or_default())).collect();
        if !text.starts_with(' ') {
            legal(&text);
            whole += 1;
        }
    }
    assert!(whole >= 2, "the smallest file and that of a rotation are there: {whole}");
}

#[test]
fn the_reference_names_every_key() {
    let keys = KEYS
        .iter()
        .chain(&limits::LIMIT_KEYS)
        .chain(&limits::TIMEOUT_KEYS)
        .chain(&upstreams::KEYS)
        .chain(&upstreams::TRUST_KEYS)
        .chain(&upstreams::VIA_KEYS)
        .chain(&upstreams::PROFILE_KEYS)
        .chain(&upstreams::SEAL_KEY_KEYS);
    let keys = keys.chain(&routes::KEYS).chain(&listeners::LISTEN_KEYS).chain(&listeners::ADMIN_KEYS);
    for key in keys
        .chain(&identities::KEYS)
        .chain(&identities::PAIR_KEYS)
        .chain(&identities::PASSPHRASE_KEYS)
        .chain(&revocation::KEYS)
    {
        assert!(REFERENCE.contains(&format!("{key}:")), "{key}");
    }
}

#[test]
fn defaults_are_those_of_the_design() {
    let config = legal(&minimal());
    assert_eq!(config.listen, [Address::Tcp("127.0.0.1:8080".parse().expect("an address")).into()]);
    assert_eq!(config.admin[0].address, "127.0.0.1:9090".parse().expect("an address"));
    assert_eq!(config.admin[0].serve.len(), 4);
    assert_eq!((config.threads, config.hosts.len()), (3, 0));
    assert_eq!((config.linger.as_secs(), config.drain.as_secs()), (5, 25));
    let limits = config.limits;
    assert_eq!((limits.body, limits.buffered, limits.header_bytes), (8 << 20, 256 << 20, 32 << 10));
    assert_eq!((limits.connections, limits.in_flight, limits.headers), (1024, 512, 100));
    let t = config.timeouts;
    let seconds =
        [t.header, t.body, t.body_total, t.client_idle, t.seal, t.exchange].map(|duration| duration.as_secs());
    assert_eq!(seconds, [10, 30, 300, 600, 2, 600]);
    let becm = &config.upstreams["becm"];
    let t = becm.settings.timeouts;
    let seconds =
        [t.resolve, t.connect, t.via, t.handshake, t.response, t.response_frame].map(|duration| duration.as_secs());
    assert_eq!(seconds, [5, 5, 10, 5, 60, 60]);
    let settings = &becm.settings;
    assert_eq!((settings.idle.as_secs(), settings.max_age.as_secs()), (50, 600));
    assert_eq!((settings.connections, settings.in_flight, settings.private), (128, 256, false));
    assert_eq!((&settings.trust, &*becm.identity, becm.pass.len()), (&Trust::default(), "main", 0));
    assert_eq!(settings.via, None);
    assert_eq!((&becm.profile.key_id, becm.profile.key_id_quoted, becm.profile.sign.len()), (&None, None, 0));
    assert_eq!(config.routes[0].methods, ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]);
    assert_eq!((config.routes[0].seal, config.routes[1].seal), (true, false));
}

#[test]
fn relative_paths_begin_at_the_file_s_folder() {
    let config = legal(&with_upstream("trust: roots/bank.pem").replace("w.key", "/run/keys/w.key"));
    assert_eq!(config.identities["main"].qwac.key, KeySource::File("/run/keys/w.key".into()));
    assert_eq!(config.identities["main"].seals[0].pair.key, KeySource::File("/etc/sealproxy/s.key".into()));
    assert_eq!(config.upstreams["becm"].settings.trust.roots, Roots::File("/etc/sealproxy/roots/bank.pem".into()));
    let (config, _) = Config::parse(Path::new("f.yaml"), &minimal(), &env).expect("a legal text");
    assert_eq!(config.identities["main"].qwac.key, KeySource::File("w.key".into()));
}

#[test]
fn trust_is_its_roots_or_a_map_that_asks_for_more() {
    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const BASE64: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    const OTHER: &str = "ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs=";
    let trust = |text: &str| legal(&with_upstream(&format!("trust: {text}"))).upstreams["becm"].settings.trust.clone();
    assert_eq!(trust("{}"), Trust::default());
    assert_eq!(trust("{roots: system}"), trust("system"));
    assert_eq!(trust("{roots: a.pem}"), trust("a.pem"));
    let all = trust(&format!("{{pins: ['{HEX}', '{OTHER}'], crl: [a.crl, /b.crl]}}"));
    assert_eq!(all.pins, [Pin::of(b""), Pin::of(b"a")]);
    assert_eq!(all.lists, [Path::new("/etc/sealproxy/a.crl"), Path::new("/b.crl")]);
    assert_eq!(trust("{crl: a.crl}").lists, [Path::new("/etc/sealproxy/a.crl")]);
    for (text, finding) in [
        ("{root: a.pem}", "error: upstreams.becm.trust.root: unknown key `root`; did you mean `roots`?"),
        ("[a.pem]", "error: upstreams.becm.trust: is a list where text is expected"),
        ("{pins: []}", "error: upstreams.becm.trust.pins: names no key. Name one, or take `pins` away"),
        ("{crl: []}", "error: upstreams.becm.trust.crl: names no file"),
        ("{pins: abc}", "error: upstreams.becm.trust.pins: is text where a list is expected"),
        (
            "{pins: [sha1, abc]}",
            "error: upstreams.becm.trust.pins[0]: `sha1` is not the SHA-256 of a public key. Write sha256: and 64 hex",
        ),
        ("{pins: ['PIN']}", "note: upstreams.becm.trust.pins: names one key alone: "),
        ("{pins: ['PIN', 'PIN']}", "error: upstreams.becm.trust.pins[1]: the same key is listed twice"),
    ] {
        let found =
            findings(&with_upstream(&format!("trust: {}", text.replacen("PIN", HEX, 1).replace("PIN", BASE64))));
        assert!(found.first().is_some_and(|found| found.starts_with(finding)), "{text}: {found:#?}");
    }
}

#[test]
fn numbers_sizes_durations_and_booleans_may_come_from_the_environment() {
    let more = "listen: '127.0.0.1:${PORT}'\nthreads: ${THREADS:-4}\nlimits: {connections: '${PORT}', body: '${SIZE}'}\ntimeouts: {seal: '${SEAL_TIME:-3s}'}\n";
    let config = legal(&with(more).replace("seal: false", "seal: '${SEAL}'"));
    assert_eq!(config.listen, [Address::Tcp("127.0.0.1:8081".parse().expect("an address")).into()]);
    assert_eq!((config.threads, config.limits.connections, config.limits.body), (4, 8081, 1 << 20));
    assert_eq!((config.timeouts.seal.as_secs(), config.routes[1].seal), (3, false));
}

#[test]
fn a_variable_s_value_never_shows_and_never_becomes_yaml() {
    for text in [
        with("listen: '${SECRET}'"),
        with("admin: ['${SECRET}']"),
        with("hosts: ['${SECRET}']"),
        with("threads: '${SECRET}'"),
        with("limits: {body: '${SECRET}'}"),
        with("timeouts: {header: '${SECRET}'}"),
        with("timeouts: {header: '${PORT}'}"),
        minimal().replace("w.key", "'${PEM}'"),
        minimal().replace("https://oauth2-apisi.e-i.com", "'https://${SECRET}@bank'"),
        minimal().replace("profile: becm", "profile: '${SECRET}'"),
        with_upstream("identity: '${SECRET}'"),
        with_upstream("pass: ['${SECRET}']"),
        with_upstream("trust: '${PEM}'"),
        with_upstream("via: '${SECRET}'"),
        with_revocation("{ocsp: '${SECRET}'}"),
        with_revocation("{ocsp: 'http://u:${SECRET}@ocsp.example/'}"),
        with_revocation("{crl: '${PEM}'}"),
        with_upstream("via: 'http://u:${SECRET}@egress:3128'"),
        with_upstream("via: {url: 'http://egress:3128', credentials: 'u:${SECRET}'}"),
        with_routes("[{path: '${SECRET}', upstream: becm}]"),
        with_routes("[{path: /a, upstream: '${SECRET}'}]"),
        with_routes("[{path: /a, upstream: becm, methods: ['${SECRET}']}]"),
        with_routes("[{path: /a, upstream: becm, seal: '${SECRET}'}]"),
    ] {
        let findings = findings(&text);
        assert_eq!(findings.len(), 1, "{text}: {findings:?}");
        assert!(findings[0].starts_with("error: ") && findings[0].contains("the value"), "{findings:?}");
        assert!(!findings[0].contains("hunter2") && !findings[0].contains("8081"), "{findings:?}");
    }
    let config = legal(&with_upstream("key_id: '${SECRET}'"));
    assert_eq!(config.upstreams["becm"].profile.key_id.as_deref(), Some("hunter2: [#&*"));
    expect(&with("threads: '${NONE}'"), "error: threads: the environment variable NONE is not set");
    expect(&with("threads: '${EMPTY}'"), "error: threads: the value of `${EMPTY}` is empty. Write it in digits alone");
}

#[test]
fn a_secret_in_the_wrong_place_does_not_show() {
    let key = minimal().replace("w.key", r#""-----BEGIN PRIVATE KEY-----\nhunter2""#);
    expect(&key, "error: identities.main.qwac.key: the value is not a path. Write the PEM text to a file");
    let url = minimal().replace("https://oauth2-apisi.e-i.com", "'http://u:hunter2@bank/x'");
    expect(&url, "error: upstreams.becm.url: the value is not encrypted");
    for text in [key, url] {
        assert!(!findings(&text)[0].contains("hunter2"));
    }
}

#[test]
fn unknown_keys_are_refused_with_the_closest_known_one() {
    expect(&with("upstrems: {}"), "error: upstrems: unknown key `upstrems`; did you mean `upstreams`?");
    expect(&with_upstream("trsut: system"), "error: upstreams.becm.trsut: unknown key `trsut`; did you mean `trust`?");
    expect(&with("limits: {zzz: 1}"), "error: limits.zzz: unknown key `zzz`. Known here: body, buffered,");
    expect(&with("timeouts: {lingre: 5s}"), "error: timeouts.lingre: unknown key `lingre`; did you mean `linger`?");
    expect(
        &with("listen: [{address: '127.0.0.1:1', opne: true}]"),
        "error: listen[0].opne: unknown key `opne`; did you mean `open`?",
    );
    expect(
        &with_routes("[{path: /a, upstream: becm, sael: true}]"),
        "error: routes[0].sael: unknown key `sael`; did you mean `seal`?",
    );
    expect(&minimal().replace("qsealc: {", "qsealc: {ca: x, "), "error: identities.main.qsealc.ca: unknown key `ca`.");
}

#[test]
fn wrong_types_are_named() {
    expect("just text", "error: the file is text where a map is expected. Is it a configuration at all?");
    expect("[a]", "error: the file is a list where a map is expected");
    expect(&with("limits: [1]"), "error: limits: is a list where a map is expected");
    expect(&with("limits:"), "error: limits: has no value. Give it one, or take the key away");
    expect(&with("listen:"), "error: listen: has no value");
    expect(
        &with("listen: 8080"),
        "error: listen: `8080` is not an address to listen on. Name the address too: 127.0.0.1:8080",
    );
    expect(&with("hosts: proxy"), "error: hosts: is text where a list is expected");
    expect(&with("threads: [4]"), "error: threads: is a list where a single value is expected");
    expect(&with("threads: true"), "error: threads: `true` is not a whole number from 1 to 256. Write it in digits");
    expect(&with_upstream("key_id: 12345"), "error: upstreams.becm.key_id: is a number where text is expected. Put it");
    // Where quotes would not help.
    let url = minimal().replace("https://oauth2-apisi.e-i.com", "5");
    expect(&url, "error: upstreams.becm.url: is a number where text is expected. Write");
    let environment = minimal().replace("environment: production", "environment: true");
    expect(
        &environment,
        "error: upstreams.becm.environment: is a boolean where text is expected. Known here: production",
    );
    expect(
        &format!("{}---\nthreads: 1\n", minimal()),
        "error: the file holds more than one YAML document. Take the line",
    );
    expect(
        &with_upstream("private: yes"),
        "error: upstreams.becm.private: `yes` is not a boolean. Write true or false",
    );
    expect(&format!("{IDENTITIES}{UPSTREAMS}routes: {{}}"), "error: routes: is a map where a list is expected");
}

#[test]
fn every_error_says_what_to_do() {
    let url = |url: &str| minimal().replace("https://oauth2-apisi.e-i.com", url);
    for (text, hint) in [
        (url("''"), "write https://HOST"),
        (url("https://2130706433"), "write one DNS name or IP address; there are no patterns"),
        (url("'https://[::1'"), "write it in brackets: https://[2a00:1450::1]"),
        (url("https://0.0.0.0"), "if the bank is a simulation that runs there, write `private: true`"),
        (with("listen: ''"), "name the address too: 127.0.0.1:8080, or 0.0.0.0:8080 for all of this machine's"),
        (with("listen: '::1:8080'"), "put an IPv6 address in brackets, and its port behind them: [::1]:8080"),
        (with("listen: {address: '127.0.0.1:1', mode: '0600'}"), "take it away, or listen on unix:/path"),
        (
            with(&format!("listen: 'unix:/{}'", "x".repeat(107))),
            "write a shorter one, such as unix:/run/sealproxy/http.sock",
        ),
        (with("listen: ['127.0.0.1:1', '127.0.0.1:1']"), "take one away"),
        (with("admin: 'unix:/a'"), "write an IP address and a port, such as 127.0.0.1:9090"),
        (with("hosts: ['*']"), "write one DNS name or IP address; there are no patterns"),
        (with("timeouts: {header: 9999999999999999h}"), "write 168h or less"),
        (with("limits: {body: 99999999999GiB}"), "write 1024GiB or less"),
        (with("limits: {connections: 99999999999999999999}"), "write 1000000 or less"),
        (with_upstream("key_id: ''"), "write visible ASCII without `\"` and `\\`"),
        (minimal().replace("w.key", "''"), "give it a value, or take the key away"),
        (with_upstream("pass: [connection]"), "take it from the list"),
        (with_upstream("pass: [x-a, x-a]"), "take one away"),
        (minimal().replace("key: w.key", "key: w.key, sessions: 2"), "take it away"),
    ] {
        let findings = parse(&text).expect_err(&text);
        let hints: Vec<_> = findings.iter().map(|finding| finding.hint.as_deref().unwrap_or_default()).collect();
        assert_eq!(hints, [hint], "{text}: {findings:?}");
    }
}

#[test]
fn every_kind_of_fault_has_its_word_for_machines() {
    let code = |text: &str, key: &str| {
        let findings = parse(text).map_or_else(|findings| findings, |(_, findings)| findings);
        let finding = findings.iter().find(|finding| finding.key == key);
        finding.unwrap_or_else(|| panic!("nothing of {key}: {findings:?}")).code.unwrap_or_default()
    };
    for (text, key, expected) in [
        ("", "", "empty-file"),
        ("a: [", "", "not-yaml"),
        ("a: &b 1", "", "unsupported-yaml"),
        ("a: *b", "", "unsupported-yaml"),
        ("x: 1", "x", "unknown-setting"),
        ("threads: 1", "routes", "missing-setting"),
        ("threads: 0", "threads", "bad-value"),
        ("threads: [1]", "threads", "wrong-type"),
        ("threads: \"${UNSET}\"", "threads", "bad-variable"),
        ("start: always", "start", "unknown-name"),
        ("start: usable\nstart: usable", "start", "listed-twice"),
        ("hosts: [a.b, a.b]", "hosts[1]", "listed-twice"),
        ("listen: 0.0.0.0:1", "listen", "open-to-others"),
        ("limits: {buffered: 1MiB}", "limits.buffered", "conflict"),
        (&minimal().replace("path: /becm/o", "path: /sandbox/becm/o"), "routes[1].path", "other-environment"),
        (&minimal().replace("path: /becm/oauth2/token", "path: /becm/oauth2/"), "routes[1].path", "open-registrations"),
    ] {
        assert_eq!(code(text, key), expected, "{text}");
    }
}

#[test]
fn all_errors_are_told_at_once() {
    let found = findings(
        "listen: x\nthreads: 0\nidentities: {a b: {qwac: 1}}\nupstreams: {b: {}}\nlimits: {body: 1}\ntimeouts: {seal: 1}\nx: 1\nx: 2",
    );
    let keys: Vec<&str> = found.iter().map(|line| line.split(": ").nth(1).unwrap_or_default()).collect();
    assert_eq!(
        keys,
        [
            "x",
            "x",
            "timeouts.seal",
            "listen",
            "threads",
            "identities.a b",
            "identities.a b.qwac",
            "identities.a b.qsealc",
            "upstreams.b.url",
            "upstreams.b.environment",
            "upstreams.b.profile",
            "routes",
        ],
        "{found:#?}"
    );
}

#[test]
fn what_must_be_there_is_asked_for() {
    let missing = findings("threads: 1");
    assert_eq!(missing.len(), 3, "{missing:?}");
    for (line, key) in missing.iter().zip(["identities", "upstreams", "routes"]) {
        assert!(line.starts_with(&format!("error: {key}: is missing. ")), "{line}");
    }
    expect(&format!("identities: {{}}\n{UPSTREAMS}{ROUTES}"), "error: identities: is empty.");
    expect(&with_routes("[]"), "error: routes: is empty.");
    expect(&minimal().replace("profile: becm", "trust: system"), "error: upstreams.becm.profile: is missing.");
    expect(&minimal().replace("url: https://oauth2-apisi.e-i.com,", ""), "error: upstreams.becm.url: is missing.");
    expect(&minimal().replace("environment: production,", ""), "error: upstreams.becm.environment: is missing.");
    expect(&minimal().replace(", key: s.key", ""), "error: identities.main.qsealc.key: is missing.");
}

#[test]
fn listeners_beyond_loopback_are_asked_for_twice() {
    expect(&with("listen: '0.0.0.0:8080'"), "error: listen: other machines could reach this address");
    expect(&with("listen: [{address: '[::]:8080', open: false}]"), "error: listen[0].address: other machines");
    expect(&with("admin: ['0.0.0.0:9090']"), "error: admin[0]: other machines");
    expect(&with("admin: [{address: '0.0.0.0:9090'}]"), "error: admin[0].address: other machines");
    let config =
        legal(&with("listen: {address: '0.0.0.0:8080', open: true}\nadmin: {address: '0.0.0.0:9090', serve: [livez]}"));
    assert_eq!(config.listen, [Address::Tcp("0.0.0.0:8080".parse().expect("an address")).into()]);
    assert_eq!(config.admin[0].serve, [admin::Page::Livez]);
}

#[test]
fn listeners_are_legal_and_distinct() {
    let config = legal(&with(
        "listen: ['localhost:0', '127.0.0.1:0', 'unix:/run/s.sock', {address: 'unix:/run/t.sock'}]\nadmin: []",
    ));
    assert_eq!((config.listen.len(), config.admin.len()), (4, 0));
    expect(&with("listen: ['127.0.0.1:1', 'localhost:1']"), "error: listen[1]: the same address is listed twice");
    expect(&with("listen: ['unix:/a', {address: 'unix:/a'}]"), "error: listen[1]: the same address is listed twice");
    expect(
        &with("admin: '127.0.0.1:8080'"),
        "error: admin: the same address is listed twice, in `admin` or in `listen`",
    );
    expect(&with("admin: 'unix:/a'"), "error: admin: the admin pages are served on TCP addresses only");
    expect(
        &with("admin: {address: '127.0.0.1:1', serve: [stats]}"),
        "error: admin.serve[0]: unknown page `stats`; did you mean `status`?",
    );
    expect(
        &with("admin: {address: '0.0.0.0:1', serve: [livez, status]}"),
        "error: admin.address: other machines could reach this address, and `status` is for this one alone",
    );
    expect(&with("admin: {address: '127.0.0.1:1', serve: [livez, livez]}"), "error: admin.serve[1]: the same page");
    expect(&with("admin: {address: '127.0.0.1:1', serve: []}"), "error: admin.serve: names no page");
    expect(&with("listen: []"), "error: listen: names no address");
    expect(&with("listen: {open: true}"), "error: listen.address: is missing");
    expect(&with("listen: ':8080'"), "error: listen: `:8080` is not an address to listen on. Name the address too");
}

#[test]
fn names_of_the_proxy_are_lower_case_and_distinct() {
    assert_eq!(legal(&with("hosts: [Proxy.Internal, seal]")).hosts, ["proxy.internal", "seal"]);
    expect(&with("hosts: [a, A]"), "error: hosts[1]: the same name is listed twice");
    expect(&with("hosts: ['a:80']"), "error: hosts[0]: `a:80` has a port");
}

#[test]
fn revocation_is_looked_for_where_a_source_is_named() {
    let only = |settings: &str| legal(&with_revocation(settings)).revocation.remove("main");
    assert_eq!(only("{crl: [], ocsp: false, every: 2h, via: 'http://egress:3128'}"), None);
    for nothing in ["{}", "{crl: []}", "{every: 2h}"] {
        let said =
            "warning: identities.main.revocation: names no source, and no revocation is looked for. Name CRL files";
        expect(&with_revocation(nothing), said);
    }
    assert!(legal(&minimal()).revocation.is_empty());
    let lists = only("{crl: [a.crl, /run/b.pem]}").expect("checked");
    assert_eq!(lists.crl, [Path::new("/etc/sealproxy/a.crl"), Path::new("/run/b.pem")]);
    assert_eq!((lists.ocsp, lists.every.as_secs(), lists.via, lists.stops), (Ocsp::Off, 3600, None, false));
    assert_eq!(only("{crl: a.crl}").expect("checked").crl.len(), 1);
    let asked = only("{ocsp: true, every: 10m, stops: true, via: {url: 'http://egress:3128', credentials: c}}");
    let asked = asked.expect("checked");
    assert_eq!((asked.ocsp, asked.every.as_secs(), asked.stops), (Ocsp::Named, 600, true));
    let via = Via { host: "egress".into(), port: 3128, credentials: Some("/etc/sealproxy/c".into()) };
    assert_eq!(asked.via, Some(via));
    let at = only("{ocsp: 'http://ocsp.example:8080/a'}").expect("checked").ocsp;
    assert_eq!(at, Ocsp::At("http://ocsp.example:8080/a".parse().expect("a URL")));
}

#[test]
fn settings_of_revocation_that_cannot_be_meant_are_refused() {
    let refused = |settings: &str, beginning: &str| {
        expect(&with_revocation(settings), &format!("error: identities.main.revocation{beginning}"));
    };
    refused("true", ": is a boolean where a map is expected");
    refused("{oscp: true}", ".oscp: unknown key `oscp`; did you mean `ocsp`?");
    refused("{ocsp: 'https://ocsp.example/'}", ".ocsp: `https://ocsp.example/` asks for TLS, which OCSP does not need");
    refused("{ocsp: ocsp.example}", ".ocsp: `ocsp.example` is not an http URL. Write true for the responder");
    refused("{ocsp: 'http://u:hunter2@ocsp.example/'}", ".ocsp: the value has a user name or a password");
    refused("{ocsp: nonsense, stops: true}", ".ocsp: `nonsense` is not an http URL");
    refused("{crl: [7]}", ".crl[0]: is a number where text is expected");
    refused("{ocsp: true, every: 59s}", ".every: `59s` is shorter than a minute");
    refused("{ocsp: true, via: 'https://egress:3128'}", ".via: `https://egress:3128` asks for TLS to the proxy");
    refused("{stops: true}", ".stops: has nothing to go by: no revocation is looked for. Name CRL files in `crl`");
}

#[test]
fn identities_are_named_and_used() {
    let two = IDENTITIES.replace(
        "identities: {",
        "identities: {Old_1: {qwac: {certificate: a, key: b}, qsealc: {certificate: c, key: d}}, ",
    );
    let text = format!("{two}{UPSTREAMS}{ROUTES}");
    expect(&text, "error: upstreams.becm.identity: is missing. Name one of Old_1, main");
    let named = text.replace("profile: becm", "profile: becm, identity: main");
    expect(&named, "warning: identities.Old_1: no upstream has this identity");
    expect(
        &with_upstream("identity: mian"),
        "error: upstreams.becm.identity: unknown identity `mian`; did you mean `main`?",
    );
    expect(&minimal().replace("{main:", "{m.n:"), "error: identities.m.n: is not a name");
}

#[test]
fn a_profile_may_be_changed_in_details() {
    let text = minimal()
        .replace("profile: becm", "profile: {like: becm, key_id_quoted: false, sign: [PSU-IP-Address]}, key_id: abc");
    let profile = &legal(&text).upstreams["becm"].profile;
    assert_eq!(
        (profile.dialect.name, profile.key_id.as_deref(), profile.key_id_quoted),
        ("becm", Some("abc"), Some(false))
    );
    assert_eq!(profile.sign, ["psu-ip-address"]);
    expect(&text.replace("abc", "'a,b'"), "error: upstreams.becm.key_id: `a,b` cannot be written without quotes");
    expect(&with_upstream("key_id: 'a\"b'"), "error: upstreams.becm.key_id: `a\"b` cannot be written between quotes");
    expect(
        &minimal().replace("profile: becm", "profile: bcem"),
        "error: upstreams.becm.profile: unknown profile `bcem`; did you mean `becm`?",
    );
    expect(
        &minimal().replace("profile: becm", "profile: {sign: []}"),
        "error: upstreams.becm.profile.like: is missing",
    );
    for (name, reason) in [
        ("Authorization", "is not to be signed"),
        ("digest", "is signed already"),
        ("host", "is signed already"),
        ("connection", "cannot be signed"),
        ("signature", "cannot be signed"),
        ("x-other", "never reaches the bank. List it in `pass` too"),
        ("(request-target)", "is not a header's name"),
    ] {
        let text = minimal().replace("profile: becm", &format!("profile: {{like: becm, sign: ['{name}']}}"));
        expect(&text, &format!("error: upstreams.becm.profile.sign[0]: `{name}` {reason}"));
    }
    legal(&minimal().replace("profile: becm", "profile: {like: becm, sign: [x-other]}, pass: [x-other]"));
}

#[test]
fn only_headers_that_are_the_caller_s_may_pass() {
    assert_eq!(
        legal(&with_upstream("pass: [X-Correlation-Id, cookie]")).upstreams["becm"].pass,
        ["x-correlation-id", "cookie"]
    );
    for name in [
        "Connection",
        "te",
        "transfer-encoding",
        "host",
        "content-length",
        "date",
        "digest",
        "signature",
        "x-request-id",
        "sealproxy-outcome",
        "x-sandbox-fault",
        "x-*",
        "a b",
        "tpp-signature-certificate",
    ] {
        expect(&with_upstream(&format!("pass: ['{name}']")), &format!("error: upstreams.becm.pass[0]: `{name}` "));
    }
    legal(&with_upstream("pass: [x-sandbox-fault], private: true"));
    expect(&with_upstream("pass: [a, A]"), "error: upstreams.becm.pass[1]: the same header is listed twice");
    expect(
        &with_upstream("pass: [psu-ip-address]"),
        "note: upstreams.becm.pass: some of these headers reach the bank without",
    );
}

#[test]
fn an_upstream_has_limits_and_deadlines_of_its_own() {
    let text = with_upstream("idle: 5s, max_age: 1h, connections: 1, in_flight: 2, timeouts: {response: 90s}");
    let settings = &legal(&(text + "timeouts: {response: 30s, connect: 1s}")).upstreams["becm"].settings;
    assert_eq!(
        (settings.idle.as_secs(), settings.max_age.as_secs(), settings.connections, settings.in_flight),
        (5, 3600, 1, 2)
    );
    assert_eq!((settings.timeouts.response.as_secs(), settings.timeouts.connect.as_secs()), (90, 1));
    expect(&with_upstream("timeouts: {seal: 1s}"), "error: upstreams.becm.timeouts.seal: unknown key `seal`.");
    expect(
        &with_upstream("connections: 0"),
        "error: upstreams.becm.connections: `0` is not a whole number from 1 to 65536",
    );
    expect(&with_upstream("idle: 50"), "error: upstreams.becm.idle: `50` has no unit");
}

#[test]
fn a_url_has_scheme_and_host_only() {
    let url = |url: &str| minimal().replace("https://oauth2-apisi.e-i.com", &format!("'{url}'"));
    let config = legal(&url("https://OAUTH2-apisi.e-i.com:8443/"));
    assert_eq!(config.upstreams["becm"].settings.origin.to_string(), "oauth2-apisi.e-i.com:8443");
    expect(
        &url("https://bank/becm"),
        "error: upstreams.becm.url: `https://bank/becm` has a path. Write scheme and host alone: the caller's path is kept",
    );
    expect(
        &url("https://127.0.0.1:1"),
        "error: upstreams.becm.url: `https://127.0.0.1:1` names an address within this machine",
    );
    legal(&url("https://127.0.0.1:1").replace("profile: becm", "profile: becm, private: true"));
}

#[test]
fn a_company_proxy_has_a_url_and_perhaps_credentials() {
    let via = |text: &str| legal(&with_upstream(text)).upstreams["becm"].settings.via.clone();
    let proxy = |host: &str, port, credentials: Option<&str>| {
        Some(Via { host: host.into(), port, credentials: credentials.map(Into::into) })
    };
    assert_eq!(via("via: 'http://Egress.corp:3128'"), proxy("egress.corp", 3128, None));
    assert_eq!(via("via: 'http://10.1.2.3/'"), proxy("10.1.2.3", 80, None));
    assert_eq!(via("via: {url: 'http://[fd00::1]:8080'}"), proxy("fd00::1", 8080, None));
    let with_file = via("via: {url: 'http://egress:3128', credentials: egress.txt}");
    assert_eq!(with_file, proxy("egress", 3128, Some("/etc/sealproxy/egress.txt")));
    for (text, reason) in [
        ("via: egress:3128", "via: `egress:3128` is not a URL. Write http://HOST:PORT"),
        ("via: 'https://egress:3128'", "via: `https://egress:3128` asks for TLS to the proxy"),
        ("via: 'socks5://egress:3128'", "via: `socks5://egress:3128` has a scheme other than http"),
        ("via: 'http://egress:0'", "via: `http://egress:0` has no legal port"),
        ("via: 'http://egress/path'", "via: `http://egress/path` has a path. Write http://HOST:PORT"),
        ("via: 'http://u:hunter2@egress'", "via: the value has a user name or a password. Put them in a file"),
        ("via: {credentials: a}", "via.url: is missing"),
        ("via: {url: 'http://a', user: b}", "via.user: unknown key `user`"),
        ("via: {url: 'http://a', credentials: 'u:hunter2'}", "via.credentials: the value is not a path. Write user:"),
        ("via: [a]", "via: is a list where text is expected"),
    ] {
        expect(&with_upstream(text), &format!("error: upstreams.becm.{reason}"));
    }
}

#[test]
fn routes_name_their_upstream_and_methods() {
    expect(
        &with_routes("[{path: /a, upstream: bcem}]"),
        "error: routes[0].upstream: unknown upstream `bcem`; did you mean `becm`?",
    );
    expect(
        &with_routes("[{path: /a, upstream: becm, seal: false}]"),
        "error: routes[0].methods: is missing. List the methods",
    );
    expect(&with_routes("[{path: /a, upstream: becm, methods: []}]"), "error: routes[0].methods: names no method");
    expect(
        &with_routes("[{path: /a, upstream: becm, methods: [GET, GET]}]"),
        "error: routes[0].methods[1]: the same method",
    );
    expect(
        &with_routes("[{path: /a, upstream: becm, methods: [get]}]"),
        "error: routes[0].methods[0]: unknown method `get`; did you mean `GET`?",
    );
    expect(
        &with_routes("[{path: /a, upstream: becm, methods: [CONNECT]}]"),
        "error: routes[0].methods[0]: `CONNECT` is never proxied",
    );
    expect(
        &with_routes("[{path: /a, upstream: becm, methods: [TRACE]}]"),
        "error: routes[0].methods[0]: `TRACE` is never proxied",
    );
    expect(&with_routes("[{path: /a/../b, upstream: becm}]"), "error: routes[0].path: `/a/../b` holds a dot segment");
    expect(
        &with_routes("[{path: /a, upstream: becm}, {path: /a, upstream: becm, methods: [POST]}]"),
        "error: routes[1].path: routes[0] has the same path",
    );
    legal(
        &with_routes("[{path: /a, upstream: becm}, {path: /a/, upstream: becm, methods: [OPTIONS]}]").replace(
            "/a/, upstream: becm, methods: [OPTIONS]",
            "/a/stet-psd2-api/, upstream: becm, methods: [OPTIONS]",
        ),
    );
}

#[test]
fn the_same_path_at_the_same_host_is_one_route() {
    let twice = UPSTREAMS.replace(
        "upstreams: {",
        "upstreams: {other: {url: 'https://oauth2-apisi.e-i.com:443', environment: production, profile: becm}, ",
    );
    let routes = "routes: [{path: /a, upstream: becm}, {path: /a, upstream: other}]";
    expect(
        &format!("{IDENTITIES}{twice}{routes}"),
        "error: routes[1].path: routes[0] has the same path at the same bank",
    );
    legal(&format!("{IDENTITIES}{}{routes}", twice.replace(":443", ":444")));
}

#[test]
fn routes_stay_in_their_environment() {
    expect(
        &with_routes("[{path: /sandbox/becm/stet-psd2-api/, upstream: becm}]"),
        "error: routes[0].path: this is a path of sandbox, and the upstream `becm` is production",
    );
    let sandbox = |path: &str| {
        with_routes(&format!("[{{path: {path}, upstream: becm, methods: [GET]}}]"))
            .replace("environment: production", "environment: sandbox")
    };
    for path in ["/becm/stet-psd2-api/", "/sandbox", "/sandboxes/"] {
        expect(
            &sandbox(path),
            "error: routes[0].path: this is a path of production, and the upstream `becm` is sandbox",
        );
    }
    for path in ["/", "/sandbox/", "/sandbox/becm/x"] {
        legal(&sandbox(path));
    }
    legal(&with_routes("[{path: /, upstream: becm, methods: [GET]}]"));
}

#[test]
fn routes_that_reach_the_registration_are_pointed_out() {
    for path in ["/", "/becm/", "/becm/oauth2/", "/becm/oauth2/registrations"] {
        let text = with_routes(&format!("[{{path: {path}, upstream: becm, methods: [GET, POST], seal: false}}]"));
        expect(&text, "warning: routes[0].path: this covers …/oauth2/registrations");
    }
}

#[test]
fn an_upstream_that_nothing_leads_to_is_pointed_out() {
    let two =
        UPSTREAMS.replace("upstreams: {", "upstreams: {idle: {url: https://b, environment: sandbox, profile: becm}, ");
    expect(&format!("{IDENTITIES}{two}{ROUTES}"), "warning: upstreams.idle: no route leads to this upstream");
}

#[test]
fn limits_fit_each_other_and_the_machine() {
    let buffered = |memory, more: &str| {
        let machine = Machine { cores: 1, memory };
        Config::parse_on(&machine, Path::new("f"), &with(more), &env).map(|(config, _)| config.limits.buffered).ok()
    };
    assert_eq!(buffered(Some(128 << 20), ""), Some(32 << 20));
    assert_eq!(buffered(Some(u64::MAX), ""), Some(256 << 20));
    assert_eq!(buffered(Some(16 << 20), ""), None);
    assert_eq!(buffered(Some(16 << 20), "limits: {body: 4MiB}"), Some(4 << 20));
    assert_eq!(buffered(Some(16 << 20), "limits: {buffered: 8MiB}"), Some(8 << 20));
    expect(
        &with("limits: {buffered: 1MiB}"),
        "error: limits.buffered: 1MiB is less than one body of `limits.body`, 8MiB",
    );
    expect(&with("limits: {body: 1GiB}"), "error: limits.buffered: 256MiB (auto");
    expect(
        &with("limits: {header_bytes: 4KiB}"),
        "error: limits.header_bytes: `4KiB` is not between 8KiB and 1MiB. Write 8KiB",
    );
    expect(
        &with("limits: {headers: 1001}"),
        "error: limits.headers: `1001` is not a whole number from 1 to 1000. Write 1000 or less",
    );
    expect(&with("limits: {body: 0}"), "error: limits.body: `0` is not between 1B and 1024GiB. Write 1B or more");
    expect(&with("limits: {body: 8M}"), "error: limits.body: `8M` is not a size");
    expect(&with("threads: 257"), "error: threads: `257` is not a whole number from 1 to 256");
}

#[test]
fn deadlines_are_durations_above_zero() {
    expect(&with("timeouts: {header: 10}"), "error: timeouts.header: `10` has no unit. Add one");
    expect(&with("timeouts: {header: 0s}"), "error: timeouts.header: `0s` is no time at all");
    assert_eq!(legal(&with("timeouts: {drain: 0s}")).drain, Duration::ZERO);
    assert_eq!(legal(&with("timeouts: {linger: 0s}")).linger, Duration::ZERO);
    assert_eq!(legal(&with("timeouts: {header: 1m30s}")).timeouts.header.as_secs(), 90);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = std::env::temp_dir().join(format!("sealproxy-config-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("f.yaml");
    let fault = |path: &Path| match Config::load(path) {
        Err(findings) if findings.len() == 1 => findings[0].to_string(),
        other => panic!("{other:?}"),
    };
    assert!(fault(&file).contains("f.yaml: the file cannot be read: No such file"), "{}", fault(&file));
    assert!(fault(&folder).contains("this is a folder"), "{}", fault(&folder));
    for (bytes, reason) in [
        (&b""[..], "the file is empty"),
        (b"a: 1\nb: \xff", "line 2: the file is not UTF-8"),
        (&[b'#'; (1 << 20) + 1], "the file is larger than 1MiB"),
    ] {
        std::fs::write(&file, bytes).expect("a file");
        assert!(fault(&file).contains(reason), "{}", fault(&file));
    }
    for mark in ["", "\u{feff}"] {
        std::fs::write(&file, format!("{mark}{}", minimal())).expect("a file");
        assert!(Config::load(&file).is_ok(), "as some editors write it");
    }
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn a_unix_socket_has_peers_and_permissions_and_nothing_else_has() {
    let listen = |value: &str| with(&format!("listen: [{{address: 'unix:/run/s.sock', {value}}}]"));
    let settings = |text: &str| legal(&listen(text)).listen[0].clone();
    assert_eq!(settings("peers: [1000, '1001'], mode: '0660'").peers, Some(vec![1000, 1001]));
    assert_eq!(settings("peers: 1000, mode: 0660").mode, Some(0o660), "YAML leaves a leading zero alone");
    assert_eq!(settings("peers: [1000], mode: '0666'").mode, Some(0o666), "the list of users says who may");
    expect(&listen("mode: '0666'"), "error: listen[0].mode: lets every user of this machine use your seal.");
    expect(&listen("mode: 660"), "error: listen[0].mode: `660` is not a file mode.");
    expect(&listen("mode: 0o660"), "error: listen[0].mode: `432` is not a file mode.");
    expect(&listen("peers: []"), "error: listen[0].peers: names no user");
    expect(&listen("peers: [root]"), "error: listen[0].peers[0]: `root` is not the number of a user.");
    expect(&listen("peers: [1, 1]"), "error: listen[0].peers[1]: the same user is listed twice");
    expect(
        &with("listen: [{address: '127.0.0.1:1', peers: [1]}]"),
        "error: listen[0].peers: concerns Unix sockets alone",
    );
    expect(&with("listen: [{address: '127.0.0.1:1', mode: '0600'}]"), "error: listen[0].mode: concerns Unix sockets");
}

#[test]
fn the_key_of_the_qwac_may_be_on_a_token() {
    const URI: &str = "pkcs11:token=a;object=b?module-path=/m.so&pin-source=/pin";
    let text = |key: &str| with("limits: {waiting_seals: 9}").replacen("key: w.key", key, 1);
    let config = legal(&text(&format!("key: '{URI}', sessions: 2")));
    let KeySource::Token(settings) = &config.identities["main"].qwac.key else { panic!("a token") };
    assert_eq!((settings.uri.to_string().as_str(), settings.sessions), ("pkcs11:token=a;object=b", 2));
    assert_eq!(settings.waiting, 9);
    let place = "error: identities.main.qwac";
    expect(&text("key: w.key, sessions: 2"), &format!("{place}.sessions: concerns keys on a token alone"));
    expect(&text("key: 'pkcs11:token=x'"), &format!("{place}.key: the value names no key."));
}

#[test]
fn a_seal_key_may_be_on_a_token() {
    const URI: &str = "pkcs11:token=a;object=b?module-path=/m.so&pin-source=/pin";
    let sealed = |key: &str| {
        format!(
            "identities: {{main: {{qwac: {{certificate: w.pem, key: w.key}}, qsealc: {{certificate: s.pem, {key}}}}}}}"
        )
    };
    let text = |key: &str, more: &str| with(more).replace(&sealed("key: s.key"), &sealed(key));
    let key = |text: &str| match legal(text).identities["main"].seals[0].pair.key.clone() {
        KeySource::Token(settings) => settings,
        other => panic!("{other:?} is on no token"),
    };
    let settings = key(&text(&format!("key: '{URI}'"), ""));
    assert_eq!((settings.sessions, settings.waiting), (4, 64));
    assert_eq!(settings.uri.to_string(), "pkcs11:token=a;object=b");
    let settings = key(&text(&format!("key: '{URI}', sessions: 2"), "limits: {waiting_seals: 0}"));
    assert_eq!((settings.sessions, settings.waiting), (2, 0));
    let place = "error: identities.main.qsealc";
    expect(&text("key: s.key, sessions: 2", ""), &format!("{place}.sessions: concerns keys on a token alone"));
    expect(&text("key: 'pkcs11:token=a?module-path=/m'", ""), &format!("{place}.key: the value names no key."));
    expect(
        &text(&format!("key: '{URI}&pin-value=1234'"), ""),
        &format!("{place}.key: the value holds the PIN itself."),
    );
    let secret = findings(&text(&format!("key: '{URI}&pin-value=1234'"), ""));
    assert!(!secret[0].contains("1234"), "{secret:?}");
}

#[test]
fn seals_are_one_or_a_list_and_the_bank_knows_those_that_seal_keys_name() {
    let list = "qsealc: [{name: old, certificate: o.pem, key: o.key}, {name: new, certificate: n.pem, key: n.key}]";
    let text = |seal_keys: &str| {
        minimal().replace("qsealc: {certificate: s.pem, key: s.key}", list).replace("profile: becm", seal_keys)
    };
    let only = legal(&minimal()).upstreams["becm"].registrations.clone();
    assert_eq!(only.len(), 1);
    assert_eq!((&*only[0].seal, only[0].from), ("qsealc", Some(SystemTime::UNIX_EPOCH)));
    let several = legal(&text(
        "profile: becm, seal_keys: [{qsealc: old, key_id: k1, registered: true}, \
         {qsealc: new, active_from: '2026-12-01T01:00:00+01:00'}]",
    ));
    let registrations = &several.upstreams["becm"].registrations;
    assert_eq!(registrations[0].key_id.as_deref(), Some("k1"));
    assert_eq!(registrations[1].from, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_083_200)));
    let not_yet = legal(&text("profile: becm, seal_keys: [{qsealc: old, registered: false}]"));
    assert_eq!(not_yet.upstreams["becm"].registrations[0].from, None);
    for (seal_keys, reason) in [
        ("profile: becm", "upstreams.becm.seal_keys: is missing"),
        ("profile: becm, seal_keys: [{qsealc: old}]", "does not say whether the bank knows this seal"),
        ("profile: becm, seal_keys: [{qsealc: odl, registered: true}]", "unknown seal `odl`"),
        ("profile: becm, seal_keys: [{qsealc: old, active_from: tomorrow}]", "is not a moment"),
        ("profile: becm, seal_keys: [{qsealc: old, registered: true}, {qsealc: old, registered: true}]", "twice"),
        ("profile: becm, key_id: k, seal_keys: [{qsealc: old, registered: true}]", "stands beside `seal_keys`"),
    ] {
        let found = findings(&text(seal_keys)).join("\n");
        assert!(found.contains(reason), "{seal_keys}: {found}");
    }
    let twins = list.replace("name: new", "name: old");
    let found = findings(&minimal().replace("qsealc: {certificate: s.pem, key: s.key}", &twins));
    assert!(found.iter().any(|finding| finding.contains("two seals have the name old")), "{found:?}");
}

#[test]
fn a_passphrase_is_in_a_file_or_a_variable_and_a_bundle_holds_both() {
    let qwac = |settings: &str| minimal().replace("{certificate: w.pem, key: w.key}", settings);
    let pair = |settings: &str| legal(&qwac(settings)).identities["main"].qwac.clone();
    let file = |name: &str| PassphraseSource::File(Path::new("/etc/sealproxy").join(name));
    let variable = PassphraseSource::Variable("P".into());
    assert_eq!(pair("{certificate: w.pem, key: w.key}").passphrase, None);
    assert_eq!(pair("{certificate: w.pem, key: w.key, passphrase: w.pass}").passphrase, Some(file("w.pass")));
    assert_eq!(pair("{certificate: w.pem, key: w.key, passphrase: {file: p}}").passphrase, Some(file("p")));
    let bundle = pair("{pkcs12: w.p12, passphrase: {env: P}}");
    assert_eq!((bundle.passphrase, &bundle.key), (Some(variable), &KeySource::Bundle));
    assert_eq!(bundle.certificate, Path::new("/etc/sealproxy/w.p12"));
    for (settings, reason) in [
        ("{pkcs12: w.p12}", "identities.main.qwac.passphrase: is missing"),
        ("{pkcs12: w.p12, passphrase: p, key: w.key}", "identities.main.qwac.key: stands beside `pkcs12`"),
        ("{certificate: w.pem, key: w.key, passphrase: {env: P, file: p}}", "does not name one place"),
        (
            "{certificate: w.pem, key: w.key, passphrase: {env: 'hunter2!'}}",
            "the value is not the name of an environment",
        ),
        ("{certificate: w.pem, key: w.key, passphrase: {}}", "does not name one place"),
        (
            "{certificate: w.pem, key: 'pkcs11:token=t;object=a?module-path=/m', passphrase: p}",
            "concerns key files alone",
        ),
    ] {
        let found = findings(&qwac(settings)).join("\n");
        assert!(found.contains(reason) && !found.contains("hunter2"), "{settings}: {found}");
    }
}
