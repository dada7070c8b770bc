//! What reaches the bank: exactly what was signed, and nothing that should have stayed inside.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use sealproxy::identity::certificate::{Certificate, PublicKey};
use sealproxy::identity::pem;

use crate::outside::free_port;
use crate::support::{Act, FakeBank, Manner, Received, Rig, config, kit, ok, until};

const API: &str = "/sandbox/becm/stet-psd2-api/v2.1";

/// Verifies a request as the wire had it, with ring and a parser of this test's own.
pub(crate) fn verify(received: &Received) -> Result<Vec<String>, String> {
    let certificate = leaf(&kit().path("qsealc.pem"));
    verify_by(received, &certificate, &certificate.sha1_hex())
}

pub(crate) fn leaf(file: &Path) -> Certificate {
    Certificate::from_der(pem::read_chain(file).expect("a chain").remove(0)).expect("a certificate")
}

/// The same for any seal, under the name that the bank knows it by.
pub(crate) fn verify_by(received: &Received, certificate: &Certificate, key_id: &str) -> Result<Vec<String>, String> {
    let signature = received.header("signature").ok_or("no signature")?;
    let parameter = |name: &str| {
        let from = signature.find(&format!("{name}=\"")).ok_or(format!("no {name}"))? + name.len() + 2;
        let length = signature[from..].find('"').ok_or(format!("open {name}"))?;
        Ok::<_, String>(signature[from..from + length].to_owned())
    };
    assert_eq!(parameter("algorithm")?, "rsa-sha256");
    let covered: Vec<String> = parameter("headers")?.split(' ').map(str::to_owned).collect();
    let mut lines = Vec::new();
    for name in &covered {
        let value = if name == "(request-target)" {
            let mut line = received.request_line().split(' ');
            let (method, target) = (line.next().unwrap_or_default(), line.next().unwrap_or_default());
            format!("{} {target}", method.to_ascii_lowercase())
        } else {
            let values = received.values(name);
            if values.is_empty() {
                return Err(format!("{name} is signed and not sent"));
            }
            values.join(", ")
        };
        lines.push(format!("{name}: {value}"));
    }
    let PublicKey::Rsa { pkcs1, .. } = certificate.public_key() else { panic!("the kit's seal is RSA") };
    let (quoted, bare) = (format!("keyId=\"{key_id}\","), format!("keyId={key_id},"));
    assert!(signature.starts_with(&quoted) || signature.starts_with(&bare), "{signature}");
    let bytes = STANDARD.decode(parameter("signature")?).map_err(|error| error.to_string())?;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pkcs1)
        .verify(&latin1(&lines.join("\n")), &bytes)
        .map_err(|_| format!("does not verify: {lines:?}"))?;
    Ok(covered)
}

/// The bytes that the text of a head stands for.
fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(character).expect("a byte of the head")).collect()
}

#[test]
fn a_get_is_sealed_over_target_host_date_and_request_id() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    let answer =
        rig.request("GET", &format!("{API}/accounts?a=1&a=2&b;c&=&%zz&"), "Authorization: Bearer secret\r\n", "");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("proxy-status"), None, "the bank's own answer");
    let received = bank.only();
    assert_eq!(received.request_line(), format!("GET {API}/accounts?a=1&a=2&b;c&=&%zz& HTTP/1.1"));
    assert_eq!(verify(&received).expect("verified"), ["(request-target)", "host", "date", "x-request-id"]);
    assert_eq!(received.header("authorization"), Some("Bearer secret"));
    for name in ["digest", "content-type", "content-length", "transfer-encoding"] {
        assert_eq!(received.header(name), None, "{name}");
    }
    assert!(received.header("user-agent").is_some_and(|agent| agent.starts_with("sealproxy/")));
    assert_eq!(received.header("accept"), Some("application/json"));
    let id = received.header("x-request-id").expect("an id");
    assert_eq!(answer.header("sealproxy-request-id"), Some(id));
    let uuid = uuid::Uuid::parse_str(id).expect("a UUID");
    assert_eq!((uuid.get_version_num(), uuid.to_string()), (4, id.to_owned()));
}

#[test]
fn the_qwac_is_presented_to_the_bank() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    rig.get(&format!("{API}/accounts"));
    let qwac = pem::read_chain(&kit().path("qwac.pem")).expect("a chain");
    assert_eq!(bank.only().client, qwac[0].to_vec());
}

#[test]
fn a_body_is_sealed_with_digest_and_content_type() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    let body = "{\"hello\": \"world\"}";
    let headers = "Content-Type: application/json\r\nX-Request-Id: my-own.id~1\r\nUser-Agent: mine\r\nAccept: */*\r\n";
    assert_eq!(rig.request("POST", &format!("{API}/payment-requests"), headers, body).status, 200);
    let received = bank.only();
    let covered = ["(request-target)", "host", "date", "x-request-id", "digest", "content-type"];
    assert_eq!(verify(&received).expect("verified"), covered);
    assert_eq!(received.header("digest"), Some("SHA-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE="));
    assert_eq!(received.header("content-length"), Some("18"));
    assert_eq!(received.header("x-request-id"), Some("my-own.id~1"));
    assert_eq!((received.header("user-agent"), received.header("accept")), (Some("mine"), Some("*/*")));
    assert_eq!(received.body, body.as_bytes());
}

/// Whether or not several seals are made at a time, each is its own request's.
#[test]
fn requests_that_come_at_a_time_have_each_its_own_seal() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    send_at_a_time(&rig);
    let received = bank.received();
    assert_eq!(received.len(), 160);
    for request in &received {
        verify(request).expect("verified");
        let (_, query) = request.request_line().split_once('?').expect("a query");
        let (caller, number) = query.split_once(' ').and_then(|(query, _)| query.split_once('.')).expect("two numbers");
        assert_eq!(request.body, format!("{{\"{caller}\":{number}}}").as_bytes());
    }
    let metrics = rig.metrics();
    let info = metrics.lines().find(|line| line.starts_with("sealproxy_seal_backend_info{"));
    let info = info.unwrap_or_else(|| panic!("{metrics}"));
    assert_eq!(info.contains("alone=\"\",backend=\"batch\""), makes_several(), "{info}");
    if makes_several() {
        // A thread that is late for its seals, as a debug build easily is, makes them one by one for a second.
        let mut metrics = metrics;
        until("one call makes several", Duration::from_secs(20), || {
            let are_made = several_were_made(&metrics);
            if !are_made {
                send_at_a_time(&rig);
                metrics = rig.metrics();
            }
            are_made
        });
        assert!(metrics.contains("sealproxy_seal_batch_faults_total 0"), "{metrics}");
    }
}

/// 32 callers send five payments each, whose query and body say which they are.
fn send_at_a_time(rig: &Rig) {
    std::thread::scope(|scope| {
        for caller in 0..32 {
            scope.spawn(move || {
                for number in 0..5 {
                    let (body, target) =
                        (format!("{{\"{caller}\":{number}}}"), format!("{API}/accounts?{caller}.{number}"));
                    assert_eq!(rig.request("POST", &target, "Content-Type: application/json\r\n", &body).status, 200);
                }
            });
        }
    });
}

/// Whether one call made more than one seal.
fn several_were_made(metrics: &str) -> bool {
    let calls = metrics.lines().filter_map(|line| line.strip_prefix("sealproxy_seal_batches_total{seals=\""));
    calls.filter_map(|rest| rest.split_once("\"} ")).any(|(seals, count)| seals != "1" && count != "0")
}

/// Whether this build makes several seals at a time with a key of 2048 bits in memory, which pays on each CPU that can.
fn makes_several() -> bool {
    #[cfg(all(feature = "batch", target_arch = "x86_64"))]
    return is_x86_feature_detected!("avx512ifma") && std::env::var_os("SEALPROXY_TEST_TOKEN").is_none();
    #[cfg(not(all(feature = "batch", target_arch = "x86_64")))]
    false
}

#[test]
fn a_chunked_body_carries_the_same_digest_and_one_framing_header_of_ours() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    let host = rig.address();
    let request = format!(
        "POST {API}/payment-requests HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\nTrailer: x-evil\r\n\r\n3\r\n{{\"h\r\n1\r\ne\r\ne\r\nllo\": \"world\"}}\r\n0\r\nx-evil: 1\r\n\r\n"
    );
    assert_eq!(rig.send(&request).status, 200);
    let received = bank.only();
    verify(&received).expect("verified");
    assert_eq!(received.header("digest"), Some("SHA-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE="));
    let framing = |name: &&String| ["content-length", "transfer-encoding"].contains(&name.as_str());
    assert_eq!(received.names().iter().filter(framing).collect::<Vec<_>>(), ["content-length"]);
    assert!(!received.names().iter().any(|name| name == "x-evil" || name == "trailer"));
}

#[test]
fn a_request_without_a_body_carries_nothing_that_describes_one() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    let host = rig.address();
    let empty_chunked = format!(
        "POST {API}/a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    );
    assert_eq!(rig.send(&empty_chunked).status, 200);
    let zero = format!(
        "DELETE {API}/a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: a/b\r\nDigest: x\r\nContent-Length: 0\r\n\r\n"
    );
    assert_eq!(rig.send(&zero).status, 200);
    let received = bank.received();
    for request in &received {
        assert_eq!(verify(request).expect("verified"), ["(request-target)", "host", "date", "x-request-id"]);
        assert_eq!((request.header("digest"), request.header("content-type")), (None, None));
    }
    assert_eq!(received[0].header("content-length"), Some("0"), "POST");
    assert_eq!(received[1].header("content-length"), None, "DELETE");
}

#[test]
fn what_the_caller_says_in_our_name_is_replaced() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    let headers = "Signature: forged\r\nDigest: SHA-256=forged\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
                   TPP-Signature-Certificate: forged\r\nContent-Type: application/json\r\nSealproxy-Outcome: answered\r\n";
    assert_eq!(rig.request("POST", &format!("{API}/payment-requests"), headers, "{}").status, 200);
    let received = bank.only();
    verify(&received).expect("verified");
    assert!(!received.head.contains("forged") && !received.head.contains("Jan 1970"), "{}", received.head);
    for single in ["signature", "digest", "date", "host", "x-request-id"] {
        assert_eq!(received.names().iter().filter(|name| *name == single).count(), 1, "{single}");
    }
}

#[test]
fn what_belongs_inside_stays_inside() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    let headers = "Cookie: session=1\r\nX-Forwarded-For: 10.0.0.1\r\nTraceparent: 00-a-b-01\r\nProxy-Connection: keep-alive\r\n\
                   Keep-Alive: 300\r\nTE: trailers\r\nX-Whatever: 1\r\nForwarded: for=10.0.0.1\r\nX-Sandbox-Fault: stale-date\r\n\
                   Proxy-Authorization: Basic a\r\nPSU-IP-Address: 192.0.2.1\r\nIf-None-Match: \"a\"\r\nAccept-Language: fr\r\n";
    assert_eq!(rig.request("GET", &format!("{API}/accounts"), headers, "").status, 200);
    let mut names = bank.only().names();
    names.sort_unstable();
    let expected = [
        "accept",
        "accept-language",
        "date",
        "host",
        "if-none-match",
        "psu-ip-address",
        "signature",
        "user-agent",
        "x-request-id",
    ];
    assert_eq!(names, expected);
    assert!(rig.metrics().contains("sealproxy_dropped_headers_total{header=\"cookie\"} 1"));
}

#[test]
fn an_unsealed_route_presents_the_qwac_and_nothing_else() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    let headers = "Content-Type: application/x-www-form-urlencoded\r\nX-Forwarded-For: 10.0.0.1\r\nConnection: close, X-Drop\r\n\
                   X-Drop: 1\r\nX-Keep: 2\r\nSignature: forged\r\n";
    assert_eq!(rig.request("POST", "/sandbox/becm/oauth2/token", headers, "grant_type=client_credentials").status, 200);
    let mut names = bank.only().names();
    names.sort_unstable();
    assert_eq!(names, ["accept", "content-length", "content-type", "host", "user-agent", "x-keep", "x-request-id"]);
}

#[test]
fn further_headers_are_signed_where_the_configuration_says_so_and_the_key_id_can_stand_bare() {
    let bank = FakeBank::good();
    let yaml = config(bank.address, "    key_id: kid-from-the-bank\n", "")
        .replace("profile: becm", "profile: { like: becm, key_id_quoted: false, sign: [psu-ip-address] }");
    let rig = Rig::start(&yaml);
    rig.request("GET", &format!("{API}/accounts"), "PSU-IP-Address: 192.0.2.1\r\n", "");
    rig.get(&format!("{API}/accounts"));
    let received = bank.received();
    let signature = received[0].header("signature").expect("a signature");
    assert!(signature.starts_with("keyId=kid-from-the-bank,algorithm=\"rsa-sha256\",headers=\"(request-target) host date x-request-id psu-ip-address\",signature=\""), "{signature}");
    assert!(
        received[1].header("signature").expect("one").contains("headers=\"(request-target) host date x-request-id\",")
    );
}

#[test]
fn the_date_is_of_the_moment_of_sending_however_slow_the_handshake() {
    let manner = Manner { pause: Duration::from_secs(4), ..Manner::good() };
    let bank = FakeBank::with(manner, |_| Act::Answer(ok("{}")));
    let rig = Rig::before(&bank);
    assert_eq!(rig.request("POST", &format!("{API}/payment-requests"), "Content-Type: a/b\r\n", "{}").status, 200);
    let received = bank.only();
    let date = httpdate::parse_http_date(received.header("date").expect("a date")).expect("an IMF-fixdate");
    let age = received.at.duration_since(date).unwrap_or_default();
    assert!(age <= Duration::from_secs(2), "{age:?}");
}

#[test]
fn a_bank_that_is_down_costs_no_signature() {
    let port = free_port();
    let rig = Rig::start(&config(port, "", ""));
    let answer = rig.get(&format!("{API}/accounts"));
    assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (502, "upstream-refused", "not_sent"));
    let metrics = rig.metrics();
    assert!(metrics.contains("sealproxy_seal_seconds_count{route=\"/sandbox/becm/stet-psd2-api/\"} 0"), "{metrics}");
    assert_eq!(rig.log.wait(1)[0]["seal_ms"], serde_json::Value::Null);
}

#[test]
fn a_gzip_answer_a_redirect_and_trailers_pass_untouched() {
    let gzip: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\nDigest: SHA-256=x\r\nSet-Cookie: a=b\r\nKeep-Alive: timeout=5\r\n\r\n\x1f\x8b\x08\x00";
    let redirect: &[u8] = b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\nProxy-Status: sealproxy; error=x\r\n\r\n";
    let answers = std::sync::Mutex::new(vec![redirect, gzip]);
    let bank = FakeBank::doing(move |_| Act::Answer(answers.lock().expect("no panic").pop().expect("two").to_vec()));
    let rig = Rig::before(&bank);
    let answer = rig.get(&format!("{API}/accounts"));
    assert_eq!(
        (answer.header("content-encoding"), answer.header("digest"), answer.header("content-length")),
        (Some("gzip"), Some("SHA-256=x"), Some("4"))
    );
    assert_eq!((answer.header("keep-alive"), answer.header("set-cookie")), (None, Some("a=b")));
    let answer = rig.get(&format!("{API}/accounts"));
    assert_eq!((answer.status, answer.header("location")), (302, Some("https://elsewhere.example/")));
    assert_eq!(answer.header("proxy-status"), None, "only the proxy speaks in its own name");
    assert_eq!(bank.received().len(), 2, "a redirect is not followed");
}

/// Characters that a request target may hold, the dangerous ones among them.
fn target() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[A-Za-z0-9._~!$&'()*+,:@;=-]{1,8}",
        2 => "%[0-9A-Fa-f]{2}",
        1 => Just("%zz".to_owned()),
        1 => Just("/".to_owned()),
        1 => Just("//".to_owned()),
        1 => Just("%2F".to_owned()),
        1 => Just("/..".to_owned()),
        1 => Just("%".to_owned()),
    ];
    let query = prop_oneof![1 => Just(String::new()), 2 => "\\?[A-Za-z0-9%&=;/?:@!$'()*+,._~-]{0,24}"];
    (proptest::collection::vec(piece, 0..8), query).prop_map(|(path, query)| format!("{API}/{}{query}", path.concat()))
}

/// One bank and one proxy for all cases of the property tests.
fn shared() -> &'static (FakeBank, Rig) {
    static SHARED: std::sync::OnceLock<(FakeBank, Rig)> = std::sync::OnceLock::new();
    SHARED.get_or_init(|| {
        let bank = FakeBank::good();
        let rig = Rig::before(&bank);
        (bank, rig)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_signed_target_is_the_sent_target_byte_for_byte(target in target(), number in any::<u64>()) {
        let (bank, rig) = shared();
        let id = format!("id-{number}");
        let answer = rig.request("GET", &target, &format!("X-Request-Id: {id}\r\n"), "");
        let received = bank.received().into_iter().find(|received| received.header("x-request-id") == Some(&*id));
        match received {
            Some(received) => {
                prop_assert_eq!(answer.status, 200);
                prop_assert_eq!(received.request_line(), format!("GET {target} HTTP/1.1"));
                prop_assert!(verify(&received).is_ok());
            }
            None => prop_assert_eq!((answer.status, answer.problem()), (400, "ambiguous-target".to_owned())),
        }
    }

    #[test]
    fn the_digest_does_not_depend_on_framing(body in proptest::collection::vec(any::<u8>(), 1..3000), cut in 1_usize..700, number in any::<u64>()) {
        let (bank, rig) = shared();
        let chunks: Vec<u8> = body.chunks(cut).flat_map(|chunk| {
            [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()
        }).collect();
        let id = format!("framing-{number}");
        let head = format!(
            "POST {API}/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: {id}\r\n\
             Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let answer = crate::support::send(rig.address(), &[head.as_bytes(), &chunks, b"0\r\n\r\n"].concat());
        prop_assert_eq!(answer.status, 200);
        let received = bank.received().into_iter().find(|received| received.header("x-request-id") == Some(&*id)).expect("it arrived");
        let expected = STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, &body));
        prop_assert_eq!(received.header("digest"), Some(&*format!("SHA-256={expected}")));
        prop_assert_eq!(&received.body, &body);
        prop_assert!(verify(&received).is_ok());
    }

    #[test]
    fn no_header_outside_the_list_ever_leaves(name in "[A-Za-z][A-Za-z0-9-]{0,20}", value in "[ -~]{0,20}", option in "[A-Za-z-]{1,12}", number in any::<u64>()) {
        let (bank, rig) = shared();
        let id = format!("header-{number}");
        prop_assume!(!["host", "content-length", "transfer-encoding", "x-request-id", "connection", "expect", "origin", "sec-fetch-site", "upgrade"].contains(&&*name.to_ascii_lowercase()));
        let headers = format!("{name}: {value}\r\nConnection: {option}\r\nX-Request-Id: {id}\r\n");
        let answer = rig.request("GET", &format!("{API}/accounts"), &headers, "");
        let received = bank.received().into_iter().find(|received| received.header("x-request-id") == Some(&*id));
        let Some(received) = received else {
            prop_assert_eq!((answer.status, answer.problem()), (400, "connection-option".to_owned()));
            return Ok(());
        };
        let allowed = |name: &str| {
            ["authorization", "cache-control", "content-disposition", "date", "host", "range", "signature", "user-agent", "x-request-id"].contains(&name)
                || ["accept", "if-", "psu-", "tpp-"].iter().any(|prefix| name.starts_with(prefix))
        };
        for name in received.names() {
            prop_assert!(allowed(&name), "{} left", name);
        }
        prop_assert!(verify(&received).is_ok());
    }
}

/// The absolute form may leave the path out (RFC 3986 section 3.3), and what leaves begins with one.
#[test]
fn the_target_of_an_absolute_form_without_a_path_is_sealed_as_it_leaves() {
    let bank = FakeBank::good();
    let production = config(bank.address, "", "").replace("environment: sandbox", "environment: production");
    let production = production.replacen("path: /sandbox/becm/stet-psd2-api/", "path: /", 1);
    let rig = Rig::start(&production.replace("path: /sandbox/", "path: /"));
    for target in ["?a=b", "", "/?a=b"] {
        let host = rig.address();
        let answer =
            rig.send(&format!("GET http://{host}{target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert_eq!(answer.status, 200, "{answer:?}");
        let request = bank.received().pop().expect("received");
        let path = target.trim_start_matches('/');
        assert_eq!(request.request_line(), format!("GET /{path} HTTP/1.1"));
        verify(&request).expect("verified");
    }
}
