//! Byte for byte: what a request leaves with where text could be mistaken for bytes, and what comes back.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::server::Acceptor;

use crate::framing::h2;
use crate::sealing::verify;
use crate::support::{Act, FakeBank, Manner, Rig, config, ok, send};

const API: &str = "/sandbox/becm/stet-psd2-api/v2.1";

/// T-d1: joined with a comma and a space, stripped of the space around, whatever the bytes.
#[test]
fn repeated_padded_empty_and_eight_bit_headers_are_signed_as_they_are_sent() {
    let bank = FakeBank::good();
    let yaml = config(bank.address, "", "")
        .replace("profile: becm", "profile: { like: becm, sign: [psu-twice, psu-padded, psu-latin, psu-empty] }");
    let rig = Rig::start(&yaml);
    let head = format!("GET {API}/accounts HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", rig.address());
    let headers: &[u8] =
        b"PSU-Twice: a, b\r\nPSU-Padded: \t x  y \t\r\nPSU-Latin: caf\xe9 \xff\r\nPSU-Empty:\r\npsu-twice: c\r\n\r\n";
    assert_eq!(send(rig.address(), &[head.as_bytes(), headers].concat()).status, 200);
    let received = bank.only();
    let covered = verify(&received).expect("verified");
    assert_eq!(covered[4..], ["psu-twice", "psu-padded", "psu-latin", "psu-empty"]);
    assert_eq!(received.values("psu-twice"), ["a, b", "c"]);
    assert_eq!(received.values("psu-padded"), ["x  y"]);
    assert_eq!(received.values("psu-latin"), ["caf\u{e9} \u{ff}"]);
    assert_eq!(received.values("psu-empty"), [""]);
}

/// T-h2: `host` is signed, and HTTP/2 has none.
#[test]
fn nothing_but_http_1_1_is_offered_to_the_bank() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let rig = Rig::start(&config(listener.local_addr().expect("bound"), "", ""));
    let (told, offered) = mpsc::channel();
    std::thread::spawn(move || {
        let mut stream = listener.accept().expect("a connection").0;
        let mut acceptor = Acceptor::default();
        loop {
            acceptor.read_tls(&mut stream).expect("a hello");
            if let Some(accepted) = acceptor.accept().expect("a hello") {
                let hello = accepted.client_hello();
                let offered = hello.alpn().expect("ALPN").map(<[u8]>::to_vec).collect::<Vec<_>>();
                return told.send(offered).expect("the test waits");
            }
        }
    });
    rig.get(&format!("{API}/accounts"));
    assert_eq!(offered.recv_timeout(Duration::from_secs(10)).expect("a hello"), [b"http/1.1"]);
}

/// T-h2.
#[test]
fn a_bank_that_insists_on_http_2_is_told_apart() {
    let mut tls = (*Manner::good().tls).clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let bank = FakeBank::with(Manner { tls: Arc::new(tls), ..Manner::good() }, |_| Act::Answer(ok("{}")));
    let answer = Rig::before(&bank).get(&format!("{API}/accounts"));
    let said = (answer.status, &*answer.problem(), &*answer.outcome());
    assert_eq!(said, (502, "upstream-no-common-protocol", "not_sent"));
}

/// One request's whole answer, as bytes.
fn answer_of(rig: &Rig, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(rig.address()).expect("connected");
    let host = rig.address();
    write!(stream, "GET {API}/accounts HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n")
        .expect("written");
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).expect("an answer");
    let end = raw.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    let body = raw.split_off(end);
    (String::from_utf8(raw).expect("text"), body)
}

/// T-gz, T-oct: 20 bytes that are a gzip file of nothing, and a zip archive of nothing.
#[test]
fn compressed_answers_and_archives_pass_as_they_are() {
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00".as_slice();
    let zip = b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".as_slice();
    let latin = b"caf\xe9\r\n\r\n\0".as_slice();
    for (headers, body) in [
        ("Content-Type: application/json\r\nContent-Encoding: gzip\r\nDigest: SHA-256=bank\r\nETag: \"a\"\r\n", gzip),
        ("Content-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=a.zip\r\n", zip),
        ("Content-Type: text/plain; charset=ISO-8859-1\r\n", latin),
    ] {
        let whole =
            [format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat();
        let bank = FakeBank::doing(move |_| Act::Answer(whole.clone()));
        let (head, came) = answer_of(&Rig::before(&bank), "Accept-Encoding: gzip\r\n");
        assert_eq!(came, body, "{headers}");
        for line in headers.lines() {
            assert!(head.to_ascii_lowercase().contains(&line.to_ascii_lowercase()), "{line} is missing in {head}");
        }
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        assert_eq!(bank.only().header("accept-encoding"), Some("gzip"));
    }
}

/// T-tr: trailers come behind what was told of the answer, and tell nothing in our name.
#[test]
fn trailers_of_an_answer_pass_to_whoever_takes_them() {
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-checksum, sealproxy-outcome\r\n\r\n2\r\n{}\r\n0\r\n\
        x-checksum: abc\r\nsealproxy-outcome: not_sent\r\n\r\n";
    let bank = FakeBank::doing(|_| Act::Answer(answer.to_vec()));
    let rig = Rig::start(&config(bank.address, "    connections: 1\n", ""));
    let (_, body) = answer_of(&rig, "TE: trailers\r\n");
    let body = String::from_utf8(body).expect("text").to_ascii_lowercase();
    assert_eq!(body, "2\r\n{}\r\n0\r\nx-checksum: abc\r\n\r\n");
    let (_, body) = answer_of(&rig, "");
    assert_eq!(body, b"2\r\n{}\r\n0\r\n\r\n", "nobody asked for them");
    for line in rig.log.wait(2) {
        assert_eq!((&line["caller_gone"], &line["problem"]), (&false.into(), &serde_json::Value::Null), "{line}");
    }
    assert_eq!(bank.connections(), 1, "an answer that ends so leaves the connection to the next request");
}

/// T-s8: the stream is reset or answered 400; a request that it could have become is answered.
#[test]
fn an_http_2_stream_with_headers_of_a_connection_is_refused() {
    let bank = FakeBank::good();
    let rig = Rig::before(&bank);
    let path = format!("{API}/accounts");
    let get = [(":method", "GET"), (":scheme", "http"), (":path", &*path), (":authority", "localhost")];
    for (name, value) in [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "x"),
        ("keep-alive", "1"),
        ("te", "gzip"),
    ] {
        let frames = frames(&h2(&rig, &[&get[..], &[(name, value)]].concat()));
        let refused = frames.iter().any(|(kind, payload)| match kind {
            // RST_STREAM, GOAWAY, or HEADERS that begin with the indexed `:status: 400` (RFC 7541 appendix A).
            3 | 7 => true,
            1 => payload.first() == Some(&0x8c),
            _ => false,
        });
        assert!(refused, "{name}: {frames:?}");
    }
    assert_eq!(bank.connections(), 0);
    let answered = frames(&h2(&rig, &get));
    assert!(answered.iter().any(|(kind, payload)| *kind == 1 && payload.first() == Some(&0x88)), "{answered:?}");
}

/// The frames of one side of an HTTP/2 connection: type and payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let (payload, after) = rest.split_at(length.min(rest.len()));
        frames.push((*kind, payload.to_vec()));
        bytes = after;
    }
    frames
}

/// To a HEAD there is no content, in our answers either (RFC 9110 section 9.3.2); a 204 has no length (section 8.6).
#[test]
fn answers_without_content_have_none_on_http_2() {
    let bank = FakeBank::doing(|_| {
        Act::Answer(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\nConnection: close\r\n\r\n".to_vec())
    });
    let rig = Rig::before(&bank);
    let address = rig.address();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answer = |method: &'static str, path: String| {
        runtime.block_on(async move {
            let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a preface");
            tokio::spawn(connection);
            let request = http::Request::builder().method(method).uri(format!("http://{address}{path}"));
            let request = request.body(Empty::<Bytes>::new()).expect("a request");
            let (head, body) = sender.send_request(request).await.expect("a head").into_parts();
            (head, body.collect().await.expect("no content").to_bytes())
        })
    };
    let (refused, body) = answer("HEAD", "/nowhere".to_owned());
    assert_eq!((refused.status.as_u16(), &body[..]), (404, &b""[..]));
    assert_eq!(refused.headers["sealproxy-outcome"], "not_sent");
    let (empty, body) = answer("GET", format!("{API}/accounts"));
    assert_eq!((empty.status.as_u16(), empty.headers.get("content-length"), &body[..]), (204, None, &b""[..]));
    let [head, get] = ["HEAD", "GET"].map(|method| rig.request(method, "/nowhere", "", ""));
    assert_eq!((head.header("content-length"), &*head.body), (Some(&*get.body.len().to_string()), ""));
    for line in rig.log.wait(4) {
        assert_eq!(line["caller_gone"], false, "{line}");
    }
}
