//! What other proxies got wrong, row by row, and the test that shows that it is right here. Rows that no other file's
//! tests cover have theirs below; rows that cannot apply say why.
//!
//! Framing and smuggling
//! - T-s1 `bytes_behind_an_upgrade_are_parsed_as_a_request`
//! - T-s2 `framings_that_readers_disagree_about_are_refused`
//! - T-s3 `a_length_beside_chunks_never_makes_two_requests` `a_name_listed_twice_is_refused_before_it_costs_anything`
//! - T-s4 `the_body_of_a_refused_request_is_no_request`
//! - T-s5 T-s6 `malformed_heads_and_chunks_are_refused`
//! - T-s7 T-s8 `http_2_requests_that_would_become_other_http_1_requests_never_leave`
//! - T-s9 `bytes_between_the_tunnel_and_tls_are_believed_by_nobody` `a_bank_that_speaks_no_tls`
//! - T-s10 cannot apply: bodies are never altered, and the length is counted from the bytes that are sent
//! - T-s11 `whoever_addresses_somebody_else_is_told_so`
//!
//! What is signed and what is sent
//! - T-p1 T-p3 `the_signed_target_is_the_sent_target_byte_for_byte`
//! - T-p2 `whatever_more_a_url_has_is_refused`: an upstream has no base path
//! - T-p4 `a_fragment_is_cut_before_anyone_sees_it`
//! - T-hop `headers_that_would_break_the_seal_are_refused` `no_header_outside_the_list_ever_leaves`
//! - T-d1 `repeated_headers_are_signed_joined_in_order` `headers_that_would_break_the_seal_are_refused`
//!   `repeated_padded_empty_and_eight_bit_headers_are_signed_as_they_are_sent`
//! - T-d2 `an_absent_header_is_an_error_and_never_an_empty_line` `a_head_without_what_must_be_signed_is_not_sealed`
//! - T-d3 `what_the_caller_says_in_our_name_is_replaced`
//! - T-d4 `a_chunked_body_carries_the_same_digest_and_one_framing_header_of_ours`
//! - T-d5 `a_request_without_a_body_carries_nothing_that_describes_one`: what this bank asks for; a dialect may ask
//!   otherwise
//! - T-d6 `a_body_keeps_its_bytes_whatever_they_are`
//! - T-d7 `the_date_is_gmt_wherever_the_machine_thinks_it_is`
//! - T-d8 T-d9 T-d13 `the_golden_vectors_byte_for_byte_with_every_backend`
//!   `openssl_receives_and_verifies_what_was_sealed`
//! - T-d10 `a_key_id_that_would_break_out_of_its_quotes_is_not_accepted`: no dialect here makes a key id from a serial
//!   or a DN
//! - T-d11 cannot apply: no issuer DN goes into a header
//! - T-d12 `a_second_dialect_goes_through_the_same_renderer`: the certificate header is in the signed list there
//! - T-h2 `nothing_but_http_1_1_is_offered_to_the_bank` `a_bank_that_insists_on_http_2_is_told_apart`
//! - T-case cannot be shown: header names are sent in lower case, and no bank is known that minds
//! - T-race `identities_and_profiles_never_mix_under_load`
//! - T-ret `a_request_that_is_tried_again_is_sealed_again`
//!
//! Bodies and HTTP mechanics
//! - T-100 `a_caller_that_expects_to_be_asked_is_asked_once_and_only_if_its_request_may_pass`
//! - T-gz T-redir T-oct T-tr `a_gzip_answer_a_redirect_and_trailers_pass_untouched`
//!   `compressed_answers_and_archives_pass_as_they_are` `trailers_of_an_answer_pass_to_whoever_takes_them`
//! - T-mem `a_gibibyte_is_refused_long_before_it_is_there` `two_hundred_uploads_stay_within_what_all_bodies_may_hold`
//! - T-mem2 `a_burst_over_http_2_leaves_no_high_water`
//! - T-dup `no_payment_reaches_the_bank_twice_and_every_outcome_is_true`
//! - T-slow `two_thousand_slow_heads_keep_nobody_out_and_are_closed_in_time`
//!   `whoever_sends_slowly_keeps_nobody_else_s_place`
//! - T-self `no_page_of_the_proxy_itself_shadows_a_path_of_the_bank`
//!
//! Connections, retries, TLS
//! - T-idle `a_connection_that_was_closed_or_reset_while_idle_costs_no_payment`
//!   `an_idle_time_below_that_of_a_silent_firewall_costs_no_payment`
//!   `an_idle_connection_that_the_bank_has_closed_costs_no_request`
//!   `a_connection_reset_before_the_head`
//!   `a_connection_that_a_balancer_forgot_costs_one_answer_and_no_second_payment`
//!   `idle_connections_to_the_bank_are_closed_before_the_bank_does_it`
//! - T-idle2 `a_slow_connect_does_not_count_as_idle`
//! - T-post `no_payment_reaches_the_bank_twice_and_every_outcome_is_true`
//! - T-cert13 `a_qwac_that_is_refused_under_tls_1_3_after_the_request_was_written`
//! - T-reneg `a_bank_that_renegotiates_for_the_certificate_is_named_at_once`
//!   `openssl_that_renegotiates_for_the_certificate_is_an_error`
//!   `a_bank_that_asks_after_the_handshake_is_named_and_counted`
//! - T-skew `a_bank_whose_clock_is_off_is_measured_and_told_once` `a_clock_that_is_off_is_a_warning_and_no_error`
//! - T-pool `identities_and_profiles_never_mix_under_load` `a_session_is_resumed_only_where_the_pins_were_checked`
//! - T-alg T-x509 `certificates_that_cannot_be_verified_are_refused_in_words`
//!   `a_signature_that_our_library_does_not_verify_is_named` `an_authority_that_is_signed_oddly_may_be_trusted_itself`
//!   `a_bank_s_own_certificate_that_our_library_does_not_take_is_told_why`
//! - T-dns `a_busy_connection_ends_with_its_age`: each new one looks the name up
//! - T-dns2 `a_name_that_resolves_into_our_own_network` `addresses_that_are_no_bank_on_the_internet_are_private`
//! - T-open `a_token_that_is_lost_is_found_again_and_nothing_leaves_unsealed_meanwhile`
//! - T-ssrf `whoever_addresses_somebody_else_is_told_so`
//! - T-err T-pii `causes_are_told_to_the_log_and_not_to_callers` `nothing_of_a_request_ends_in_log_metrics_or_problems`
//! - T-label `a_hundred_thousand_paths_make_no_more_series_than_one`
//! - T-503 `a_caller_that_resends_after_an_empty_close_never_sees_one`
//! - T-gone `a_caller_that_hangs_up_does_not_cut_a_payment`
//! - T-idle3 `no_post_of_a_pooled_caller_fails_after_a_pause`
//! - T-cold `one_request_a_second_on_sixteen_threads_meets_the_same_connection`
//! - T-port `an_address_in_use_is_refused_at_start_and_a_second_process_never_shares_it`
//! - T-yaml `equal_keys_and_merge_keys_are_reported_with_their_path`
//!   `variables_are_expanded_once_and_never_read_as_yaml`
//! - T-res `resumption_never_carries_an_old_certificate_on`
//! - T-pool `an_upstream_whose_inputs_did_not_change_keeps_its_connections`
//!   `identities_and_profiles_never_mix_under_load`
//! - T-rot1 `fifty_rotations_under_load_cost_no_request_and_each_is_what_the_bank_sees`
//! - T-rot2 `a_set_that_is_written_file_by_file_is_taken_once_it_is_whole` `files_that_are_put_back_are_no_rotation`
//! - T-rot3 `roots_that_change_hold_for_every_new_connection` `a_seal_goes_live_when_its_time_has_come_and_not_before`
//! - T-rot4 `what_is_under_way_with_the_old_certificate_ends_or_is_cut_at_the_drain_deadline`
//! - T-rot5 `hang_ups_during_a_drain_kill_nothing`
//! - T-subPath `mount_points_are_read_with_their_spaces`: mounting needs rights that a test should not have
//! - T-ready `readiness_falls_with_the_last_identity_whose_certificates_expire_and_comes_back`
//!   `an_identity_that_cannot_be_used_stops_its_own_routes_alone`
//! - T-web `no_web_page_can_make_the_proxy_seal`
//! - T-reg `routes_that_reach_the_registration_are_pointed_out`
//! - T-dot `dot_segments_in_every_spelling_are_refused` `a_target_that_a_lenient_reader_takes_elsewhere_is_refused`
//! - T-stale `the_date_is_of_the_moment_of_sending_however_slow_the_handshake` `a_bank_that_is_down_costs_no_signature`

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sha2::{Digest as _, Sha256};

use crate::cli::start;
use crate::outside::{free_port, present, wait_for};
use crate::support::{Act, Answer, FakeBank, Manner, Rig, Running, config, folder, header, kit, ok};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";

fn sources(path: &Path, found: &mut String) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("a folder") {
            sources(&entry.expect("an entry").path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        found.push_str(&std::fs::read_to_string(path).expect("a source file"));
    }
}

#[test]
fn every_test_that_a_row_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = String::new();
    for folder in ["src", "tests"] {
        sources(&root.join(folder), &mut all);
    }
    let table =
        include_str!("rows.rs").lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join("\n");
    let named: Vec<&str> = table.split('`').skip(1).step_by(2).collect();
    assert!(named.len() > 60);
    for name in named {
        assert!(all.contains(&format!("fn {name}(")), "{name}");
    }
}

#[test]
fn a_body_keeps_its_bytes_whatever_they_are() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    let latin1 = b"<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><Nm>Soci\xe9t\xe9 \xa0</Nm>\r\n".to_vec();
    let every_byte: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let multipart =
        [b"--b\r\nContent-Type: application/octet-stream\r\n\r\n", &every_byte[..], b"\r\n--b--\r\n"].concat();
    for (kind, body) in [
        ("application/xml; charset=ISO-8859-1", latin1),
        ("multipart/form-data; boundary=b", multipart),
        ("application/json", b"\xef\xbb\xbf{ }".to_vec()),
    ] {
        let host = rig.address();
        let mut stream = TcpStream::connect(host).expect("connected");
        let length = body.len();
        write!(
            stream,
            "POST {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )
        .expect("written");
        stream.write_all(&body).expect("written");
        stream.read_to_end(&mut Vec::new()).expect("an answer");
        let received = bank.received().pop().expect("it arrived");
        assert_eq!(received.body, body);
        assert_eq!(received.header("content-type"), Some(kind));
        assert_eq!(received.header("digest"), Some(&*format!("SHA-256={}", STANDARD.encode(Sha256::digest(&body)))));
    }
}

#[test]
fn the_date_is_gmt_wherever_the_machine_thinks_it_is() {
    let bank = FakeBank::good();
    for zone in ["Europe/Berlin", "Pacific/Kiritimati", "<+12>-12"] {
        let proxy = start(&config(bank.address, "", ""), &[("TZ", zone), ("LC_ALL", "de_DE.UTF-8")]);
        get(proxy.address);
        let received = bank.received().pop().expect("it arrived");
        let date = received.header("date").expect("a date").to_owned();
        assert!(date.ends_with(" GMT"), "{date}");
        let date = httpdate::parse_http_date(&date).expect("a date");
        let away = SystemTime::now().duration_since(date).expect("not in the future");
        assert!(away < Duration::from_secs(5), "{zone}: {away:?}");
    }
}

fn get(address: SocketAddr) -> Answer {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    write!(stream, "GET {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    Answer::parse(&answer)
}

/// Two banks with the same paths, each with its own profile, key id and identity; callers name the bank.
#[test]
fn identities_and_profiles_never_mix_under_load() {
    use sealproxy::sandbox::kit::Kit;
    let (one, other) = (FakeBank::good(), FakeBank::good());
    let second = Kit::open_or_make(&folder("second-kit"), SystemTime::now()).expect("a kit");
    // The second bank trusts the authority of the second kit, and shows the certificate of the first.
    drop(other);
    let manner = Manner {
        tls: crate::support::tls(
            kit().path("bank.pem"),
            kit().path("bank.key"),
            &second.path("ca.pem"),
            rustls::ALL_VERSIONS,
        ),
        ..Manner::good()
    };
    let other = FakeBank::with(manner, |_| Act::Answer(ok("{}")));
    let path = |name: &str| second.path(name).display().to_string();
    let yaml = config(one.address, "    key_id: first\n", "")
        .replace(
            "upstreams:\n",
            &format!(
                "  second:\n    qwac: {{ certificate: {}, key: {} }}\n    qsealc: {{ certificate: {}, key: {} }}\nupstreams:\n",
                path("qwac.pem"),
                path("qwac.key"),
                path("qsealc.pem"),
                path("qsealc.key")
            ),
        )
        .replace(
            "routes:\n",
            &format!(
                "  other:\n    url: https://localhost:{}\n    environment: sandbox\n    identity: second\n    \
                 profile: {{ like: becm, key_id_quoted: false, sign: [psu-ip-address] }}\n    key_id: second\n    \
                 trust: {}\n    private: true\nroutes:\n  \
                 - {{ path: /sandbox/becm/stet-psd2-api/, upstream: other, methods: [GET] }}\n",
                other.address.port(),
                kit().path("ca.pem").display()
            ),
        );
    let rig = Rig::start(&yaml);
    let address = rig.address();
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let bank = if caller % 2 == 0 { one.address } else { other.address };
            scope.spawn(move || {
                let mut reader = BufReader::new(TcpStream::connect(address).expect("it listens"));
                for number in 0..40 {
                    write!(
                        reader.get_mut(),
                        "GET {ACCOUNTS}?{caller}-{number} HTTP/1.1\r\nHost: localhost:{}\r\nPSU-IP-Address: 192.0.2.1\r\n\r\n",
                        bank.port()
                    )
                    .expect("written");
                    let mut answer = String::new();
                    while !answer.ends_with("\r\n\r\n") {
                        assert!(reader.read_line(&mut answer).expect("an answer") > 0);
                    }
                    reader.read_exact(&mut [0; 2]).expect("{}");
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                }
            });
        }
    });
    for (bank, kit, key_id, covers) in
        [(&one, kit(), "keyId=\"first\"", false), (&other, &second, "keyId=second,", true)]
    {
        let chain = sealproxy::identity::pem::read_chain(&kit.path("qwac.pem")).expect("a chain");
        let seal = sealproxy::identity::pem::read_chain(&kit.path("qsealc.pem")).expect("a chain");
        let seal = sealproxy::identity::certificate::Certificate::from_der(seal[0].clone()).expect("a certificate");
        assert_eq!(bank.received().len(), 160);
        for request in bank.received() {
            assert_eq!(request.client, chain[0].as_ref(), "the other's QWAC");
            let signature = request.header("signature").expect("a signature");
            assert!(signature.contains(key_id), "{signature}");
            let string = signing_string(&request.head, signature);
            assert_eq!(string.contains("psu-ip-address: 192.0.2.1"), covers);
            let bytes = signature.split("signature=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("bytes");
            let bytes = STANDARD.decode(bytes).expect("base64");
            seal.verify(string.as_bytes(), &bytes, sealproxy::key::Scheme::RsaPkcs1Sha256).expect("its own seal");
        }
    }
}

/// What the signature must be over, from the head as it was received.
fn signing_string(head: &str, signature: &str) -> String {
    let names = signature.split("headers=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("names");
    let mut first = head.lines().next().expect("a request line").split(' ');
    let (method, target) = (first.next().expect("a method"), first.next().expect("a target"));
    let line = |name: &str| match name {
        "(request-target)" => format!("{name}: {} {target}", method.to_ascii_lowercase()),
        _ => format!("{name}: {}", header(head, name).expect("a signed header is sent")),
    };
    names.split(' ').map(line).collect::<Vec<_>>().join("\n")
}

fn resident(child: &Running) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.0.id())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a figure");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_burst_over_http_2_leaves_no_high_water() {
    let bank = FakeBank::doing(|_| Act::Answer(ok(&"x".repeat(64 << 10))));
    let proxy = start(&config(bank.address, "", "limits: { body: 1MiB, buffered: 16MiB }\n"), &[]);
    let address = proxy.address;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut kept = Vec::new();
        let mut after = Vec::new();
        for round in 0..6 {
            for _ in 0..8 {
                let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
                let (mut sender, connection) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a preface");
                tokio::spawn(connection);
                let ask = |_| {
                    let uri = format!("http://{address}{ACCOUNTS}");
                    let body = Full::new(Bytes::from(vec![b'x'; 64 << 10]));
                    let request = http::Request::post(uri).header("content-type", "a/b").body(body).expect("a request");
                    sender.send_request(request)
                };
                let asked: Vec<_> = (0..8).map(ask).collect();
                for answer in asked {
                    // Some are shed: what counts here is what stays behind.
                    if let Ok(answer) = answer.await {
                        let _ = answer.into_body().collect().await;
                    }
                }
                // The connection stays, idle.
                kept.push(sender);
            }
            after.push((round, resident(&proxy.child)));
        }
        let (first, last) = (after[1].1, after[5].1);
        // Thirty-two more idle connections, each after a burst of a mebibyte.
        assert!(last < first + 16 * 1024, "{after:?} KiB");
    });
}

#[test]
fn a_slow_connect_does_not_count_as_idle() {
    let manner = Manner { pause: Duration::from_millis(1500), ..Manner::good() };
    let bank = FakeBank::with(manner, |_| Act::Answer(ok("{}")));
    let rig = Rig::start(&config(bank.address, "    idle: 500ms\n", ""));
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    // The answer is whole a moment before its connection is given back.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    assert_eq!(bank.connections(), 1, "the first one was fresh when it was given back");
}

#[test]
fn a_busy_connection_ends_with_its_age() {
    let bank = FakeBank::good();
    let rig = Rig::start(&config(bank.address, "    max_age: 400ms\n", ""));
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1500) {
        assert_eq!(rig.get(ACCOUNTS).status, 200);
    }
    assert!((3..=8).contains(&bank.connections()), "{}", bank.connections());
}

#[test]
fn a_hundred_thousand_paths_make_no_more_series_than_one() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    let paths = if cfg!(debug_assertions) { 10_000 } else { 100_000 };
    let series = || {
        rig.metrics().lines().filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect::<BTreeSet<String>>()
    };
    let ask = |reader: &mut BufReader<TcpStream>, number: usize| {
        let address = rig.address();
        // Routed ones would be sealed: that the label is the route's is shown by the first.
        let path = if number == 0 { format!("{ACCOUNTS}/{number}") } else { format!("/nowhere/{number}?{number}") };
        // In one write: the system would hold back the second for the answer to the first.
        let request = format!("X{number} {path} HTTP/1.1\r\nHost: {address}\r\nX-{number}: a\r\n\r\n");
        reader.get_mut().write_all(request.as_bytes()).expect("written");
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).expect("an answer") > 0);
        }
        let length = header(&head, "content-length").expect("a length").parse().expect("a number");
        reader.read_exact(&mut vec![0; length]).expect("a body");
    };
    let mut reader = BufReader::new(TcpStream::connect(rig.address()).expect("it listens"));
    (0..2).for_each(|number| ask(&mut reader, number));
    rig.log.wait(2);
    let before = series();
    (2..paths).for_each(|number| ask(&mut reader, number));
    assert_eq!(series().difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
}

fn openssl(arguments: &[&str], folder: &Path) {
    let done = Command::new("openssl").args(arguments).current_dir(folder).output().expect("it starts");
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Certificates that OpenSSL makes and serves, and that ring or webpki do not take.
#[test]
fn certificates_that_cannot_be_verified_are_refused_in_words() {
    if !present(&["openssl"]) {
        return;
    }
    let place = folder("odd");
    let own = |name: &str, new: &[&str], more: &[&str]| -> PathBuf {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
        let mut arguments = vec!["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", &key];
        arguments.extend(["-out", &certificate].iter().chain(new).chain(more));
        openssl(&arguments, &place);
        place.join(certificate)
    };
    let san = ["-addext", "subjectAltName=DNS:localhost"];
    let leaf = [&san[..], &["-addext", "basicConstraints=critical,CA:FALSE"]].concat();
    let p521 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"];
    let p256 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    for (name, certificate, words) in [
        // P-521 and brainpool are not offered in our hello, so such a server finds nothing in common.
        (
            "an authority as leaf",
            own("ca-leaf", &p256, &san),
            "the certificate of an authority, CN=localhost, as its own",
        ),
        ("P-521", own("p521", &p521, &leaf), ""),
        ("brainpool", own("brainpool", &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:brainpoolP256r1"], &leaf), ""),
        ("ECDSA with SHA-512", own("sha512", &[&p256[..], &["-sha512"]].concat(), &leaf), "ECDSA and SHA-512 on P-256"),
        (
            "no name",
            own("no-san", &p256, &["-addext", "basicConstraints=critical,CA:FALSE"]),
            "not valid for any names",
        ),
    ] {
        let address = free_port();
        let server = Command::new("openssl")
            .args(["s_server", "-quiet", "-accept", &address.port().to_string(), "-cert"])
            .arg(&certificate)
            .arg("-key")
            .arg(certificate.with_extension("key"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let _server = Running(server.expect("it starts"));
        wait_for(address);
        let trust = format!("trust: {}", kit().path("ca.pem").display());
        let yaml = config(address, "", "").replace(&trust, &format!("trust: {}", certificate.display()));
        let rig = Rig::start(&yaml);
        let answer = rig.request("POST", ACCOUNTS, "Content-Type: a/b\r\n", "{}");
        let lines = rig.log.wait(1);
        assert_eq!((answer.status, &*answer.outcome()), (502, "not_sent"), "{name}: {answer:?}");
        let expected = ["upstream-untrusted", "upstream-wrong-name", "upstream-no-common-protocol"];
        assert!(expected.contains(&&*answer.problem()), "{name}: {answer:?}");
        let cause = lines[0]["cause"].as_str().expect("a cause");
        assert!(cause.contains(words) && cause.len() > 20, "{name}: {cause}");
    }
}
