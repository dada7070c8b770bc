//! Framing and smuggling, one test for each trap that another proxy fell into: the bank receives exactly one
//! well-framed request for each that is accepted, and none for those that are refused.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::{FakeBank, Rig, config, send};

const PAYMENTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/payment-requests";
const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";

fn rig() -> (FakeBank, Rig) {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    (bank, rig)
}

/// Sends these bytes as they are, and a request behind them; returns the statuses of all answers until the close.
pub(crate) fn statuses(rig: &Rig, bytes: &str) -> Vec<u16> {
    let mut stream = TcpStream::connect(rig.address()).expect("connected");
    let _ = stream.write_all(bytes.as_bytes());
    let raw = heard(&stream, |raw| !raw.is_empty());
    let raw = String::from_utf8_lossy(&raw).into_owned();
    raw.match_indices("HTTP/1.1 ").map(|(at, _)| raw[at + 9..at + 12].parse().expect("a status")).collect()
}

/// What comes until the close, or until half a second's silence. The first answer may stand behind a connection to the
/// bank and a seal: a silence before what comes `tells` is none.
fn heard(mut stream: &TcpStream, tells: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let (mut raw, mut piece): (Vec<u8>, _) = (Vec::new(), [0; 4096]);
    loop {
        let patience = if tells(&raw) { Duration::from_millis(500) } else { Duration::from_secs(10) };
        stream.set_read_timeout(Some(patience)).expect("a socket");
        match stream.read(&mut piece) {
            Ok(read @ 1..) => raw.extend_from_slice(&piece[..read]),
            _ => return raw,
        }
    }
}

/// Every request that the bank has is framed once, by us, and its body is what its length says.
#[track_caller]
fn well_framed(bank: &FakeBank, count: usize) {
    let received = bank.received();
    assert_eq!(received.len(), count, "{received:?}");
    for request in received {
        let framing: Vec<_> = request
            .names()
            .into_iter()
            .filter(|name| ["content-length", "transfer-encoding"].contains(&&**name))
            .collect();
        assert!(framing.is_empty() || framing == ["content-length"], "{}", request.head);
        assert!(!request.head.contains("smuggled"), "{}", request.head);
    }
}

/// T-s1: bytes behind an `Upgrade` are a request or nothing, never a tunnel.
#[test]
fn bytes_behind_an_upgrade_are_parsed_as_a_request() {
    let (bank, rig) = rig();
    let host = rig.address();
    let first = format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    let second = format!("GET /nowhere HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert_eq!(statuses(&rig, &(first + &second)), [200, 404]);
    well_framed(&bank, 1);
    assert_eq!(bank.only().header("upgrade"), None);
}

/// T-s2, T-s3: a length beside chunks, in either order. hyper takes the chunks and closes after its answer; what is
/// sent on has one length of ours.
#[test]
fn a_length_beside_chunks_never_makes_two_requests() {
    for fields in ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
    {
        let (bank, rig) = rig();
        let host = rig.address();
        let smuggled = format!("GET {ACCOUNTS}?smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let request = format!(
            "POST {PAYMENTS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: a/b\r\n{fields}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n{smuggled}"
        );
        assert_eq!(statuses(&rig, &request), [200], "{fields}: and the connection is closed");
        well_framed(&bank, 1);
        assert_eq!(bank.only().body, b"{}");
    }
}

/// T-s2: what two readers would cut differently is refused, and its connection ends.
#[test]
fn framings_that_readers_disagree_about_are_refused() {
    let (bank, rig) = rig();
    for fields in [
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: 2, 3",
        "Content-Length: +2",
        "Content-Length: -1",
        "Content-Length: 0x2",
        "Content-Length:",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
    ] {
        let request = format!(
            "POST {PAYMENTS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: a/b\r\n{fields}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
        );
        assert_eq!(statuses(&rig, &request), [400], "{fields}");
    }
    let old = format!(
        "POST {PAYMENTS} HTTP/1.0\r\nHost: localhost\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    );
    assert_eq!(statuses(&rig, &old), [400], "HTTP/1.0 has no chunks");
    well_framed(&bank, 0);
    assert!(rig.log.wait(11).iter().all(|line| line["event"] == "malformed"));
}

/// T-s4: the unread body of a refused request is not the next request.
#[test]
fn the_body_of_a_refused_request_is_no_request() {
    let (bank, rig) = rig();
    let smuggled = format!("GET {ACCOUNTS}?smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let request =
        format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len());
    let statuses = statuses(&rig, &request);
    assert_eq!(statuses, [404], "one answer");
    well_framed(&bank, 0);
}

/// T-s5, T-s6: heads and chunks that lenient readers forgive.
#[test]
fn malformed_heads_and_chunks_are_refused() {
    let (bank, rig) = rig();
    let get = |head: &str| format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n");
    for head in [": x", "x y: z", "x\u{0}: y", "x: a\u{0}b", " folded: x", "x : y"] {
        assert_eq!(statuses(&rig, &get(head)), [400], "{head:?}");
    }
    for line in [
        format!("GET  {ACCOUNTS} HTTP/1.1"),
        format!("GET {ACCOUNTS} HTTP/1.2"),
        format!("GET {ACCOUNTS} HTTP/3"),
        format!("GET {ACCOUNTS}"),
        "GET foo HTTP/1.1".to_owned(),
        format!("G@T {ACCOUNTS} HTTP/1.1"),
    ] {
        assert_eq!(statuses(&rig, &format!("{line}\r\nHost: localhost\r\n\r\n")), [400], "{line}");
    }
    for chunks in [
        "2\n{}\r\n0\r\n\r\n",
        "2 \t;\n{}\r\n0\r\n\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}xx0\r\n\r\n",
        "ffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    ] {
        let request = format!(
            "POST {PAYMENTS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
        );
        assert_eq!(statuses(&rig, &request), [400], "{chunks:?}");
    }
    well_framed(&bank, 0);
}

/// T-p4: the fragment goes nowhere, and what is signed is what is sent.
#[test]
fn a_fragment_is_cut_before_anyone_sees_it() {
    let (bank, rig) = rig();
    let answer = send(
        rig.address(),
        format!("GET {ACCOUNTS}#smuggled HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
    );
    assert!(matches!(answer.status, 200 | 400), "{answer:?}");
    for request in bank.received() {
        assert_eq!(request.request_line(), format!("GET {ACCOUNTS} HTTP/1.1"));
    }
}

/// T-100: the caller is told to go on only after the request may go on, and the bank never hears of it.
#[test]
fn a_caller_that_expects_to_be_asked_is_asked_once_and_only_if_its_request_may_pass() {
    let (bank, rig) = rig();
    let host = rig.address();
    let head = |target: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: a/b\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
    };
    let mut stream = TcpStream::connect(host).expect("connected");
    stream.write_all(head(PAYMENTS).as_bytes()).expect("written");
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).expect("an interim answer");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(bank.connections(), 0, "nothing leaves before the body is here");
    stream.write_all(b"{}").expect("written");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("an answer");
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n"), "{rest}");
    assert_eq!(bank.only().header("expect"), None);
    let refused = send(host, head("/nowhere").as_bytes());
    assert_eq!(refused.status, 404, "the first answer is the refusal");
}

/// One HTTP/2 frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A literal header field that is not indexed, with a new name (RFC 7541 section 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// Whether one of these frames is of the stream 1, or GOAWAY.
fn tells_of_the_stream(mut frames: &[u8]) -> bool {
    while let [a, b, c, kind, _, 0, 0, 0, stream, rest @ ..] = frames {
        if *kind == 7 || *stream == 1 {
            return true;
        }
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        frames = rest.get(length..).unwrap_or_default();
    }
    false
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", ACCOUNTS), (":authority", "localhost")];
const POST: [(&str, &str); 5] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", PAYMENTS),
    (":authority", "localhost"),
    ("content-type", "a/b"),
];
/// Flags of a HEADERS frame (RFC 9113 section 6.2).
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection of HTTP/2 as far as the head of its first request.
fn begun(flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value)).collect();
    let headers = frame(1, END_HEADERS | flags, 1, &block);
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), headers].concat()
}

/// Sends one HEADERS frame that ends the stream, and reads what becomes of it and what else comes for a moment.
pub(crate) fn h2(rig: &Rig, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut stream = TcpStream::connect(rig.address()).expect("connected");
    stream.write_all(&begun(END_STREAM, fields)).expect("written");
    heard(&stream, tells_of_the_stream)
}

/// T-s7, T-s8: a length without the bytes, and headers of one connection, end the stream.
#[test]
fn http_2_requests_that_would_become_other_http_1_requests_never_leave() {
    let (bank, rig) = rig();
    h2(&rig, &[&POST[..], &[("content-length", "10")]].concat());
    for (name, value) in [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "x"),
        ("te", "gzip"),
        ("Upper", "case"),
        ("x", "a\r\nb: c"),
    ] {
        h2(&rig, &[&GET[..], &[(name, value)]].concat());
    }
    h2(&rig, &[(":method", "GET"), (":scheme", "http"), (":path", "/a b"), (":authority", "localhost")]);
    h2(&rig, &[&GET[..], &[("host", "other.example")]].concat());
    well_framed(&bank, 0);
    h2(&rig, &GET);
    well_framed(&bank, 1);
}

/// A stream that is reset without an error has not ended, and what came of its body is not the body.
#[test]
fn a_body_whose_stream_is_given_up_never_leaves() {
    let (bank, rig) = rig();
    // A connection to the bank stands: what is whole would go in the turn in which it comes.
    h2(&rig, &GET);
    well_framed(&bank, 1);
    const NO_ERROR: [u8; 4] = [0; 4];
    const CANCEL: [u8; 4] = [0, 0, 0, 8];
    let (reset, data) = (|code| frame(3, 0, 1, code), frame(0, 0, 1, b"{\"half"));
    let begun = begun(0, &POST);
    let cases = [
        [begun.clone(), data.clone(), reset(&NO_ERROR)].concat(),
        [begun.clone(), reset(&NO_ERROR)].concat(),
        [begun.clone(), data.clone(), reset(&CANCEL)].concat(),
    ];
    for (number, request) in cases.iter().enumerate() {
        let mut stream = TcpStream::connect(rig.address()).expect("connected");
        stream.write_all(request).expect("written");
        let line = rig.log.wait(2 + number).pop().expect("its line");
        assert_eq!((&line["outcome"], &line["caller_gone"]), (&"not_sent".into(), &true.into()), "{number}: {line}");
    }
    // The same, and its end.
    let mut whole = TcpStream::connect(rig.address()).expect("connected");
    whole.write_all(&[begun, data, frame(0, END_STREAM, 1, b"\"}")].concat()).expect("written");
    rig.log.wait(5);
    let received = bank.received();
    assert_eq!(received.iter().filter(|request| request.request_line().starts_with("POST")).count(), 1);
    assert_eq!(received.last().map(|request| &*request.body), Some(&b"{\"half\"}"[..]));
}

/// RFC 9113 section 8.2.3: what HTTP/2 may send in crumbs is one line of HTTP/1.1.
#[test]
fn cookies_in_several_fields_of_http_2_are_one_line() {
    let bank = FakeBank::good();
    let rig = Rig::start(&config(bank.address, "    pass: [cookie]\n", ""));
    h2(&rig, &[&GET[..], &[("cookie", "a=1"), ("cookie", "b=2; c"), ("cookie", "d=")]].concat());
    assert_eq!(bank.only().values("cookie"), ["a=1; b=2; c; d="]);
    h2(&rig, &[&GET[..], &[("cookie", "a=1")]].concat());
    assert_eq!(bank.received().pop().expect("a second").values("cookie"), ["a=1"]);
}
