//! Configurations: any text gives settings or reasons, each in one line, and never the value of a variable.
//! What stands below a line `# repeat` is repeated up to the length of a large file, to find what grows faster than
//! its input; time and memory are bounded by libFuzzer's `-timeout` and `-rss_limit_mb`.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sealproxy::config::{Config, Finding};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let text = repeated(text);
    match Config::parse(Path::new("/etc/sealproxy/f.yaml"), &text, &env) {
        Ok((config, findings)) => {
            assert!(!findings.iter().any(Finding::is_error), "legal, with an error");
            is_legal(&config);
            judge(&text, &findings);
        }
        Err(findings) => {
            assert!(findings.iter().any(Finding::is_error), "refused without an error");
            judge(&text, &findings);
        }
    }
});

fn repeated(text: &str) -> String {
    match text.split_once("# repeat\n") {
        Some((before, unit)) if !unit.is_empty() => before.to_owned() + &unit.repeat(LENGTH / unit.len()),
        _ => text.to_owned(),
    }
}

/// A thousand routes; the limit of a file is 32 times that, and a square of this costs what libFuzzer notices.
const LENGTH: usize = 32 << 10;

fn judge(text: &str, findings: &[Finding]) {
    assert!(findings.len() <= text.len() + 16, "more findings than bytes");
    for finding in findings {
        let line = finding.to_string();
        assert!(!finding.reason.trim().is_empty(), "no reason: {line}");
        assert!(!finding.hint.as_ref().is_some_and(|hint| hint.trim().is_empty()), "an empty hint: {line}");
        assert!(!line.contains(char::is_control), "more than one line: {line:?}");
        assert!(!line.contains(SECRET) || text.contains(SECRET), "a variable's value is shown: {line}");
    }
}

/// What the types do not say of a value that "has passed every check".
fn is_legal(config: &Config) {
    assert!(!config.listen.is_empty() && (1..=256).contains(&config.threads));
    assert!(!config.identities.is_empty() && !config.upstreams.is_empty() && !config.routes.is_empty());
    for upstream in config.upstreams.values() {
        assert!(config.identities.contains_key(&upstream.identity), "an identity that is not there");
    }
    for route in &config.routes {
        assert!(config.upstreams.contains_key(&route.upstream), "an upstream that is not there");
        assert!(route.path.starts_with('/') && !route.path.contains("//"), "{}", route.path);
        assert!(!route.methods.is_empty(), "a route that nothing can take");
    }
}

fn env(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("8081".into()),
        "SECRET" => Some(SECRET.into()),
        "PEM" => Some(format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n")),
        "YAML" => Some(format!("{SECRET}: [#&*\"")),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

const SECRET: &str = "hunter2";
