//! Other people's connection pools: Go's and both of Java's, which post, pause and post again.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::outside::present;
use crate::support::{Act, FakeBank, Rig, config, folder, ok};

const PAYMENTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/payment-requests";

/// How long a caller pauses, in milliseconds; `SEALPROXY_PAUSES=5000-89000` asks for what real callers do.
fn pauses() -> (String, String) {
    let asked = std::env::var("SEALPROXY_PAUSES").unwrap_or_else(|_| "0-1500".to_owned());
    let (least, most) = asked.split_once('-').expect("two numbers of milliseconds");
    (least.to_owned(), most.to_owned())
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

fn post_in_parallel(mut client: Command, url: &str, callers: usize, posts: usize) -> (Output, String) {
    let (least, most) = pauses();
    client.arg(url).args([callers.to_string(), posts.to_string(), least, most]);
    let output = client.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output, said)
}

fn go() -> Option<Command> {
    if !present(&["go"]) {
        return None;
    }
    let program = folder("go").join("pooled");
    let mut build = Command::new("go");
    build
        .args(["build", "-o"])
        .arg(&program)
        .arg(source("pooled.go"))
        .env("GOFLAGS", "-mod=mod")
        .env("GO111MODULE", "off");
    let built = build.output().expect("it starts");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(Command::new(program))
}

fn java(kind: &str) -> Option<Command> {
    if !present(&["java"]) {
        return None;
    }
    let mut command = Command::new("java");
    command.arg(source("Pooled.java")).arg(kind);
    Some(command)
}

#[test]
fn no_post_of_a_pooled_caller_fails_after_a_pause() {
    // A bank whose balancer closes idle connections soon: what the callers must not notice.
    let bank = FakeBank::good();
    let rig = Rig::start(&config(bank.address, "    idle: 500ms\n", ""));
    let url = format!("http://{}{PAYMENTS}", rig.address());
    let clients = [("go", go()), ("java.net.http", java("http")), ("HttpURLConnection", java("url"))];
    let present = clients.iter().filter(|(_, client)| client.is_some()).count();
    std::thread::scope(|scope| {
        for (name, client) in clients {
            let Some(client) = client else { continue };
            let url = &url;
            scope.spawn(move || {
                let (output, said) = post_in_parallel(client, url, 40, 5);
                eprintln!("{name}: {}", said.trim());
                assert!(output.status.success() && said.contains("200 posts, 0 failed"), "{name}: {said}");
            });
        }
    });
    assert_eq!(bank.received().len(), 200 * present, "each once");
}

/// HttpURLConnection sends a POST a second time where the connection ends without an answer (JDK-6427251).
#[test]
fn a_caller_that_resends_after_an_empty_close_never_sees_one() {
    let Some(client) = java("url") else { return };
    let count = AtomicUsize::new(0);
    let bank = FakeBank::doing(move |_| match count.fetch_add(1, Ordering::Relaxed) % 2 {
        0 => Act::AnswerAndReset(Vec::new()),
        _ => Act::AnswerAndClose(ok("{}")[..12].to_vec()),
    });
    let rig = Rig::before(&bank);
    let (output, said) = post_in_parallel(client, &format!("http://{}{PAYMENTS}", rig.address()), 4, 3);
    assert!(!output.status.success() && said.contains("12 posts, 12 failed"), "{said}");
    assert_eq!(said.matches("status 502").count(), 12, "{said}");
    assert_eq!(bank.received().len(), 12, "each once: {said}");
    let lines = rig.log.wait(12);
    assert!(lines.iter().all(|line| line["outcome"] == "unknown" && line["attempts"] == 1), "{lines:?}");
}
