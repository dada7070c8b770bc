//! What the proxy refuses before anything leaves, and how it says so.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::{Answer, FakeBank, Rig, config, send};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";

fn rig() -> (FakeBank, Rig) {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    (bank, rig)
}

/// Sends each, expects its status and problem, and that nothing reached the bank.
fn refused(cases: &[(&str, u16, &str)]) {
    let (bank, rig) = rig();
    for (request, status, problem) in cases {
        let request =
            request.replace("{proxy}", &rig.address().to_string()).replace("{bank}", &bank.address.to_string());
        let answer = rig.send(&request.replace('\n', "\r\n"));
        assert_eq!((answer.status, &*answer.problem()), (*status, *problem), "{request}\n{answer:?}");
        assert_eq!(answer.outcome(), "not_sent", "{request}");
        assert_eq!(answer.header("sealproxy-outcome"), Some("not_sent"), "{request}");
    }
    assert_eq!(bank.connections(), 0, "a refused request must not even open a connection");
    let lines = rig.log.wait(cases.len());
    assert!(lines.iter().all(|line| line["outcome"] == "not_sent"), "{lines:?}");
}

#[test]
fn dot_segments_in_every_spelling_are_refused() {
    let targets = [
        "/sandbox/becm/stet-psd2-api/../oauth2/registrations/1",
        "/sandbox/becm/stet-psd2-api/%2e%2e/oauth2/registrations/1",
        "/sandbox/becm/stet-psd2-api/.%2E/oauth2/registrations/1",
        "/sandbox/becm/stet-psd2-api/..%2foauth2/registrations/1",
        "/sandbox/becm/stet-psd2-api/..;x=y/oauth2/registrations/1",
        "/sandbox/becm/stet-psd2-api/..\\oauth2/registrations/1",
        "/sandbox/becm/stet-psd2-api/%5c..%5coauth2/registrations/1",
        "/sandbox/becm/stet-psd2-api/%252e%252e/oauth2/registrations/1",
        "/sandbox/becm/stet-psd2-api/./accounts",
        // Two dot leader, small full stops, a soft hyphen between, wide percent signs.
        "/sandbox/becm/stet-psd2-api/%E2%80%A5/oauth2/registrations/1",
        "/sandbox/becm/stet-psd2-api/%EF%B9%92%EF%B9%92/oauth2/registrations/1",
        "/sandbox/becm/stet-psd2-api/.%C2%AD./oauth2/registrations/1",
        "/sandbox/becm/stet-psd2-api/%EF%BC%852e%EF%BC%852e/oauth2/registrations/1",
        "/sandbox/becm/stet-psd2-api/v2.1/accounts/..",
        "/sandbox/../becm/stet-psd2-api/v2.1/accounts",
    ];
    let requests: Vec<String> =
        targets.iter().map(|target| format!("GET {target} HTTP/1.1\nHost: {{proxy}}\nConnection: close\n\n")).collect();
    let cases: Vec<_> = requests.iter().map(|request| (&**request, 400, "ambiguous-target")).collect();
    refused(&cases);
}

#[test]
fn a_target_that_a_lenient_reader_takes_elsewhere_is_refused() {
    refused(&[
        // Decoded, the exact unsealed path; raw, the sealed prefix does not match at all.
        ("GET /sandbox/becm/stet-psd2-api%2fv2.1 HTTP/1.1\nHost: {proxy}\nConnection: close\n\n", 404, "no-route"),
        (
            "GET /sandbox/becm/stet-psd2-api/a%00b HTTP/1.1\nHost: {proxy}\nConnection: close\n\n",
            400,
            "ambiguous-target",
        ),
    ]);
    let bank = FakeBank::good();
    let yaml = config(bank.address, "", "").replace(
        "routes:\n",
        "routes:\n  - { path: /sandbox/becm/stet-psd2-api/v2.1/other, upstream: bank, methods: [GET], seal: false }\n",
    );
    let rig = Rig::start(&yaml);
    for target in [
        "/sandbox/becm/stet-psd2-api/v2.1//other",
        "/sandbox/becm/stet-psd2-api/v2.1/othe%72",
        "/sandbox/becm/stet-psd2-api/v2.1/other;a=b",
        "/sandbox/becm/stet-psd2-api/;a=b/v2.1/other",
        "/sandbox/becm/stet-psd2-api/v2.1/;/%3bx/other",
    ] {
        let answer = rig.get(target);
        assert_eq!((answer.status, &*answer.problem()), (400, "ambiguous-target"), "{target}");
    }
    assert_eq!(bank.connections(), 0);
}

#[test]
fn no_route_lists_the_routes_and_a_wrong_method_the_right_ones() {
    let (bank, rig) = rig();
    let answer = rig.get("/becm/oauth2/registrations");
    assert_eq!((answer.status, &*answer.problem()), (404, "no-route"));
    assert!(answer.body.contains("/sandbox/becm/stet-psd2-api/"), "{}", answer.body);
    let answer = rig.get("/sandbox/becm/oauth2/token");
    assert_eq!((answer.status, &*answer.problem()), (405, "method-not-allowed"));
    assert_eq!(answer.header("allow"), Some("POST"));
    assert_eq!(bank.connections(), 0);
}

#[test]
fn whoever_addresses_somebody_else_is_told_so() {
    let get = format!("GET {ACCOUNTS} HTTP/1.1\nConnection: close\n");
    let cases = [
        (format!("{get}Host: evil.example\n\n"), 421, "misdirected"),
        (format!("{get}Host: 10.0.0.1\n\n"), 421, "misdirected"),
        (format!("{get}Host: a,b\n\n"), 400, "bad-host"),
        (format!("{get}Host: 127.0.0.1:8080, evil.example\n\n"), 400, "bad-host"),
        (format!("{get}Host: 127.0.0.1:99999\n\n"), 400, "bad-host"),
        (format!("{get}Host: 127.0.0.1:+443\n\n"), 400, "bad-host"),
        (format!("{get}Host: [::1]o:8080\n\n"), 400, "bad-host"),
        (format!("{get}Host: user@127.0.0.1\n\n"), 400, "user-info"),
        (format!("{get}Host: {{proxy}}\nHost: {{proxy}}\n\n"), 400, "duplicate-header"),
        (format!("{get}\n"), 400, "no-host"),
        (
            format!("GET http://evil.example{ACCOUNTS} HTTP/1.1\nConnection: close\nHost: evil.example\n\n"),
            421,
            "misdirected",
        ),
        (
            format!("GET http://{{bank}}{ACCOUNTS} HTTP/1.1\nConnection: close\nHost: evil.example\n\n"),
            400,
            "host-mismatch",
        ),
        (
            format!("GET http://user:password@localhost{ACCOUNTS} HTTP/1.1\nConnection: close\nHost: localhost\n\n"),
            400,
            "user-info",
        ),
        ("CONNECT oauth2-apisi.e-i.com:443 HTTP/1.1\nHost: oauth2-apisi.e-i.com:443\n\n".to_owned(), 405, "connect"),
    ];
    let cases: Vec<_> = cases.iter().map(|(request, status, problem)| (&**request, *status, *problem)).collect();
    refused(&cases);
}

#[test]
fn whoever_names_a_host_that_is_not_ours_reads_which_one_and_where_the_names_stand() {
    let (bank, rig) = rig();
    let answer = rig.send("GET / HTTP/1.1\r\nHost: Proxy.Internal:8080\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.status, 421);
    assert!(answer.body.contains("`proxy.internal:8080`") && answer.body.contains("`hosts`"), "{}", answer.body);
    let bank = format!(":{}", bank.address.port());
    assert!(!answer.body.contains(&bank), "a web page may read this: {}", answer.body);
}

#[test]
fn no_web_page_can_make_the_proxy_seal() {
    let get = format!("GET {ACCOUNTS} HTTP/1.1\nConnection: close\nHost: {{proxy}}\n");
    let cases = [
        (format!("{get}Origin: https://evil.example\n\n"), 403, "cross-site"),
        (format!("{get}Origin: null\n\n"), 403, "cross-site"),
        (format!("{get}Sec-Fetch-Site: cross-site\n\n"), 403, "cross-site"),
        (format!("{get}Sec-Fetch-Site: same-site\n\n"), 403, "cross-site"),
        (
            format!(
                "GET {ACCOUNTS} HTTP/1.1\nConnection: close\nHost: rebound.evil.example\nSec-Fetch-Site: same-origin\n\n"
            ),
            421,
            "misdirected",
        ),
    ];
    let cases: Vec<_> = cases.iter().map(|(request, status, problem)| (&**request, *status, *problem)).collect();
    refused(&cases);
}

#[test]
fn who_is_refused_for_the_host_or_the_page_is_told_what_to_do() {
    let (_, rig) = rig();
    let get = format!("GET {ACCOUNTS} HTTP/1.1\r\nConnection: close\r\n");
    for (request, advice) in [
        (format!("{get}\r\n"), "name the proxy's address"),
        (
            format!("GET http://127.0.0.1{ACCOUNTS} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
            "the same in both",
        ),
        (format!("{get}Host: user@127.0.0.1\r\n\r\n"), "leave out what stands before the @"),
        (format!("{get}Host: {}\r\nOrigin: null\r\n\r\n", rig.address()), "call the proxy from a service"),
    ] {
        let answer = rig.send(&request);
        assert!(answer.body.contains(advice), "{request}: {}", answer.body);
    }
}

#[test]
fn a_page_of_the_proxy_itself_is_no_other_site() {
    let (bank, rig) = rig();
    let origin = format!("Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", rig.address());
    assert_eq!(rig.request("GET", ACCOUNTS, &origin, "").status, 200);
    assert_eq!(bank.received().len(), 1);
}

#[test]
fn headers_that_would_break_the_seal_are_refused() {
    let get = format!("GET {ACCOUNTS} HTTP/1.1\nHost: {{proxy}}\n");
    let post = format!("POST {ACCOUNTS} HTTP/1.1\nHost: {{proxy}}\nConnection: close\n");
    let cases = [
        (format!("{get}Connection: close, Digest\n\n"), 400, "connection-option"),
        (format!("{get}Connection: close, Signature\n\n"), 400, "connection-option"),
        (format!("{get}Connection: close, authorization\n\n"), 400, "connection-option"),
        (format!("{get}Connection: close\nConnection: X-Request-ID\n\n"), 400, "connection-option"),
        (format!("{get}Connection: close, psu-ip-address\n\n"), 400, "connection-option"),
        (format!("{get}Connection: close\nDate: a\nDate: b\n\n"), 400, "duplicate-header"),
        (format!("{get}Connection: close\nDigest: a\nDigest: a\n\n"), 400, "duplicate-header"),
        (format!("{get}Connection: close\nX-Request-Id: a\nX-Request-Id: b\n\n"), 400, "duplicate-header"),
        (format!("{get}Connection: close\nX-Request-Id: a b\n\n"), 400, "malformed-request-id"),
        (format!("{get}Connection: close\nX-Request-Id:\n\n"), 400, "malformed-request-id"),
        (format!("{get}Connection: close\nX-Request-Id: {}\n\n", "a".repeat(129)), 400, "malformed-request-id"),
        (format!("{get}Connection: close\nExpect: a-miracle\n\n"), 417, "expectation"),
        (format!("{post}Content-Length: 2\n\n{{}}"), 400, "no-content-type"),
        (format!("{post}Content-Type: \nContent-Length: 2\n\n{{}}"), 400, "no-content-type"),
        (
            format!("{post}Content-Type: a/b\nTransfer-Encoding: gzip, chunked\n\n2\n{{}}\n0\n\n"),
            501,
            "transfer-coding",
        ),
        ("GET ftp://localhost/ HTTP/1.1\nHost: localhost\nConnection: close\n\n".to_owned(), 400, "bad-scheme"),
        (format!("{post}Transfer-Encoding: chunked\n\n2\n{{}}\n0\n\n"), 400, "no-content-type"),
    ];
    let cases: Vec<_> = cases.iter().map(|(request, status, problem)| (&**request, *status, *problem)).collect();
    refused(&cases);
}

#[test]
fn a_body_over_the_limit_is_refused_declared_or_chunked() {
    let bank = FakeBank::good();
    let rig = Rig::start(&config(bank.address, "", "limits: { body: 1KiB }\n"));
    let host = rig.address();
    let declared = format!(
        "POST {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/plain\r\nExpect: 100-continue\r\n\
         Content-Length: 1025\r\nConnection: close\r\n\r\n"
    );
    let answer = rig.send(&declared);
    assert_eq!((answer.status, &*answer.problem()), (413, "body-too-large"), "no 100 Continue, and no byte awaited");
    assert!(answer.body.contains("larger than the 1KiB of `limits.body`"), "{}", answer.body);
    let chunk = format!("400\r\n{}\r\n", "a".repeat(1024));
    let chunked = format!(
        "POST {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n{chunk}1\r\na\r\n0\r\n\r\n"
    );
    let answer = rig.send(&chunked);
    assert_eq!((answer.status, &*answer.problem()), (413, "body-too-large"));
    assert_eq!(bank.connections(), 0);
    let exactly = format!(
        "POST {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n{chunk}0\r\n\r\n"
    );
    assert_eq!(rig.send(&exactly).status, 200);
    assert_eq!(bank.only().body.len(), 1024);
}

/// It ends the connection, and a caller that keeps one is to know that.
#[test]
fn a_caller_that_waits_for_leave_and_is_refused_is_told_that_the_connection_ends() {
    let bank = FakeBank::good();
    let rig = Rig::start(&config(bank.address, "", "limits: { body: 1KiB }\n"));
    let host = rig.address();
    let post = |target: &str, more: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: a/b\r\n{more}\r\n\r\n")
    };
    for (request, status) in [
        (post("/nowhere", "Expect: 100-continue\r\nContent-Length: 9"), 404),
        (post(ACCOUNTS, "Expect: 100-continue\r\nContent-Length: 1025"), 413),
        (post(ACCOUNTS, "Expect: a-miracle\r\nContent-Length: 9"), 417),
        (post("/nowhere", "Expect: 100-continue\r\nTransfer-Encoding: chunked"), 404),
    ] {
        let mut stream = TcpStream::connect(host).expect("connected");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).expect("a socket");
        stream.write_all(request.as_bytes()).expect("written");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the end, and no reset");
        let answer = Answer::parse(&answer);
        assert_eq!((answer.status, answer.header("connection")), (status, Some("close")), "{request}");
    }
    // Who sends it all the same has the answer too, whatever it takes to write it.
    for length in [10, 3 << 20] {
        let mut stream = TcpStream::connect(host).expect("connected");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("a socket");
        let more = format!("Expect: 100-continue\r\nContent-Length: {length}");
        stream.write_all(post("/nowhere", &more).as_bytes()).expect("written");
        std::thread::sleep(std::time::Duration::from_millis(100));
        stream.write_all(&vec![b'x'; length]).expect("it is read");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the end, and no reset");
        assert_eq!(Answer::parse(&answer).status, 404);
    }
    // How long a chunked one is nobody knows.
    let mut stream = TcpStream::connect(host).expect("connected");
    stream.write_all(post("/nowhere", "Transfer-Encoding: chunked").as_bytes()).expect("written");
    stream.write_all(b"1\r\na\r\n0\r\n\r\n").expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the end, and no reset");
    assert_eq!(Answer::parse(&answer).header("connection"), Some("close"));
    // With nothing to come it stays.
    let mut stream = std::io::BufReader::new(TcpStream::connect(host).expect("connected"));
    for _ in 0..2 {
        let request = post("/nowhere", "Expect: 100-continue\r\nContent-Length: 0");
        stream.get_mut().write_all(request.as_bytes()).expect("written");
        let answer = crate::support::next_answer(&mut stream, "").expect("whole");
        assert_eq!((answer.status, answer.header("connection")), (404, None));
    }
}

#[test]
fn paths_of_the_other_environment_never_leave() {
    let bank = FakeBank::good();
    let yaml = config(bank.address, "", "").replace("path: /sandbox/becm/stet-psd2-api/", "path: /");
    let rig = Rig::start(&yaml);
    let answer = rig.get("/becm/stet-psd2-api/v2.1/accounts");
    assert_eq!((answer.status, &*answer.problem()), (403, "other-environment"));
    assert_eq!(bank.connections(), 0);
    assert_eq!(rig.get(ACCOUNTS).status, 200);
}

/// RFC 9112 section 9.6: a caller that writes all before it reads has its answer, and not a reset.
#[test]
fn a_refused_upload_is_read_to_its_end_so_that_the_answer_arrives() {
    let (bank, rig) = rig();
    let body = vec![b'x'; 9_000_000];
    for length in ["Content-Length: 9000000\r\n", "Transfer-Encoding: chunked\r\n"] {
        for _ in 0..5 {
            let mut stream = TcpStream::connect(rig.address()).expect("connected");
            let host = rig.address();
            write!(stream, "POST {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: a/b\r\n{length}\r\n")
                .expect("written");
            if length.starts_with("Transfer") {
                write!(stream, "{:x}\r\n", body.len()).expect("written");
            }
            stream.write_all(&body).expect("all of it");
            if length.starts_with("Transfer") {
                stream.write_all(b"\r\n0\r\n\r\n").expect("all of it");
            }
            if length.starts_with("Content") {
                write!(stream, "GET {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
                    .expect("written");
            }
            let mut raw = String::new();
            stream.read_to_string(&mut raw).expect("an end, and no reset");
            let statuses = raw.match_indices("HTTP/1.1 ").map(|(at, _)| &raw[at + 9..at + 12]).collect::<Vec<_>>();
            // Of a chunked one nobody knows beforehand whether its end will be reached.
            let expected: &[&str] = if length.starts_with("Transfer") { &["413"] } else { &["413", "200"] };
            assert_eq!(statuses, expected, "the rest was read to its end: {raw}");
        }
    }
    assert!(bank.received().iter().all(|request| request.request_line().starts_with("GET ")));
    let log = rig.log.wait(15);
    assert!(log.iter().all(|line| line["event"] == "exchange"), "{log:?}");
}

/// One that could never be read to its end is told that it is not.
#[test]
fn an_upload_beyond_all_limits_is_told_of_the_end() {
    let (_, rig) = rig();
    let request = format!(
        "POST {ACCOUNTS} HTTP/1.1\r\nHost: {}\r\nContent-Type: a/b\r\nContent-Length: 99000000\r\n\r\n",
        rig.address()
    );
    let mut stream = TcpStream::connect(rig.address()).expect("connected");
    stream.write_all(request.as_bytes()).expect("written");
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).expect("an end");
    let answer = Answer::parse(&raw);
    assert_eq!((answer.status, answer.header("connection")), (413, Some("close")), "{answer:?}");
}

/// Neither do those that a lenient server takes for one.
#[test]
fn paths_that_read_as_of_the_other_environment_never_leave() {
    let bank = FakeBank::good();
    let yaml = config(bank.address, "", "")
        .replace("path: /sandbox/becm/stet-psd2-api/", "path: /")
        .replace("path: /sandbox/becm/oauth2/token", "path: /becm/oauth2/token")
        .replace("environment: sandbox", "environment: production");
    let rig = Rig::start(&yaml);
    for path in [
        "/sandbox/becm/x",
        "/%73andbox/becm/x",
        "//sandbox/becm/x",
        "/;a/sandbox/becm/x",
        "/%2fsandbox/x",
        "/sandbox;a/becm/x",
        "/sandbox%2fbecm/x",
    ] {
        let answer = rig.get(path);
        assert_eq!((answer.status, &*answer.problem()), (403, "other-environment"), "{path}");
    }
    assert_eq!(bank.connections(), 0);
    assert_eq!(rig.get("/becm/%73andbox/x").status, 200);
}

/// RFC 9112 section 3.2.3: only `CONNECT` has it.
#[test]
fn a_host_and_a_port_are_no_target() {
    let bank = FakeBank::good();
    let rig = Rig::start(&config(bank.address, "", "").replace("path: /sandbox/becm/stet-psd2-api/", "path: /"));
    let host = format!("localhost:{}", rig.address().port());
    let request = format!("POST {host} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let answer = rig.send(&request);
    assert_eq!((answer.status, &*answer.problem()), (400, "ambiguous-target"), "{answer:?}");
    assert_eq!(bank.connections(), 0);
}

#[test]
fn bytes_that_are_no_http_are_logged_as_what_they_are() {
    let (bank, rig) = rig();
    assert_eq!(send(rig.address(), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").status, 0);
    assert_eq!(send(rig.address(), b"GET / HTTP/1.1\r\n: x\r\n\r\n").status, 400);
    assert_eq!(
        send(rig.address(), format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "a".repeat(40_000)).as_bytes())
            .status,
        431
    );
    let lines = rig.log.wait(3);
    assert!(lines.iter().all(|line| line["event"] == "malformed"), "{lines:?}");
    assert_eq!(lines[0]["kind"], "tls");
    assert_eq!(lines[1]["kind"], "http");
    let metrics = rig.metrics();
    assert!(metrics.contains("sealproxy_malformed_total{kind=\"tls\"} 1"), "{metrics}");
    assert!(metrics.contains("sealproxy_malformed_total{kind=\"http\"} 2"), "{metrics}");
    assert_eq!(bank.connections(), 0);
}

#[test]
fn a_caller_that_names_the_bank_is_served_as_one_that_names_the_proxy() {
    let (bank, rig) = rig();
    let authority = format!("localhost:{}", bank.address.port());
    for request in [
        format!("GET http://{authority}{ACCOUNTS} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"),
        format!("GET http://{authority}{ACCOUNTS} HTTP/1.0\r\n\r\n"),
        format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: LOCALHOST:{}\r\nConnection: close\r\n\r\n", bank.address.port()),
        format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: [::1]:1\r\nConnection: close\r\n\r\n"),
    ] {
        let answer = rig.send(&request);
        assert_eq!(answer.status, 200, "{request}{answer:?}");
    }
    for received in bank.received() {
        assert_eq!(received.request_line(), format!("GET {ACCOUNTS} HTTP/1.1"));
        assert_eq!(received.header("host"), Some(&*authority));
    }
}

/// Neither answers: the log tells whom the request was for.
#[test]
fn of_two_banks_on_one_host_the_port_that_is_named_decides() {
    let text = config("127.0.0.1:443".parse().expect("an address"), "", "");
    let (before, rest) = text.split_once("  bank:\n").expect("an upstream");
    let (settings, after) = rest.split_once("routes:\n").expect("routes");
    let settings = settings.replace("localhost:443", "bank.invalid");
    let other = settings.replace("bank.invalid", "bank.invalid:80");
    let more = format!("  - {{ path: {ACCOUNTS}, upstream: other }}\n");
    let text = format!("{before}  bank:\n{settings}  other:\n{other}routes:\n{more}{after}");
    let named = [("bank.invalid:80", "other"), ("bank.invalid", "bank"), ("bank.invalid:443", "bank")];
    // Which comes first in a table is another matter each time.
    for _ in 0..8 {
        let rig = Rig::start(&text);
        for (host, _) in named {
            let answer = rig.send(&format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
            assert_eq!(answer.problem(), "upstream-unresolvable");
        }
        let lines = rig.log.wait(named.len());
        let upstreams: Vec<_> = lines.iter().map(|line| line["upstream"].clone()).collect();
        assert_eq!(upstreams, named.map(|(_, upstream)| upstream));
    }
}

#[test]
fn of_a_thousand_routes_those_that_fit_are_listed() {
    let bank = FakeBank::good();
    let routes: String = (0..1000)
        .map(|number| format!("  - {{ path: /sandbox/becm/stet-psd2-api/{number}, upstream: bank }}\n"))
        .collect();
    let rig = Rig::start(&config(bank.address, "", "").replace("routes:\n", &format!("routes:\n{routes}")));
    let body = rig.get("/nowhere").body;
    assert!(body.contains("stet-psd2-api/49 (") && !body.contains("stet-psd2-api/50 ("), "{body}");
    assert!(body.contains("and 952 more"), "{body}");
}
