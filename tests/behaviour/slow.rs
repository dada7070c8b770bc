//! Callers that send their body or take their answer slowly hold no more than their connection.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::{Act, FakeBank, Manner, Rig, config, ok, until};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
const LARGE: usize = 24 << 20;

/// A bank whose answer to `?large` is more than sockets hold, and to `?chunked` of no known length.
fn bank() -> FakeBank {
    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsmall\r\n0\r\n\r\n";
    let large = ok(&"x".repeat(LARGE));
    FakeBank::doing(move |request| {
        Act::Answer(match request.request_line() {
            line if line.contains("large") => large.clone(),
            line if line.contains("chunked") => CHUNKED.to_vec(),
            line if line.contains("piece") => ok(&"x".repeat(60_000)),
            _ => ok("small"),
        })
    })
}

/// One connection to the bank, so that whoever keeps it keeps it from all others.
fn rig(bank: &FakeBank, top: &str) -> Rig {
    Rig::start(&config(bank.address, "    connections: 1\n    in_flight: 1\n", top))
}

/// A caller that asks and takes nothing yet.
fn stalled(rig: &Rig, method: &str) -> TcpStream {
    let mut stream = TcpStream::connect(rig.address()).expect("connected");
    let host = rig.address();
    write!(stream, "{method} {ACCOUNTS}?large HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("written");
    std::thread::sleep(Duration::from_millis(200));
    stream
}

fn rest(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn an_answer_that_nobody_takes_frees_the_bank_s_connection_and_is_whole_in_the_end() {
    let bank = bank();
    let rig = rig(&bank, "limits: { body: 32MiB, buffered: 128MiB }\n");
    let slow = stalled(&rig, "GET");
    let began = Instant::now();
    while rig.get(ACCOUNTS).status != 200 {
        assert!(began.elapsed() < Duration::from_secs(5), "the slow one keeps the bank for itself");
        std::thread::sleep(Duration::from_millis(50));
    }
    let answer = rest(slow);
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    assert_eq!(answer.len() - body, LARGE);
    assert!(answer[body..].iter().all(|byte| *byte == b'x'));
    let line = rig.log.wait(2).into_iter().find(|line| line["response_bytes"] == LARGE).expect("its line");
    assert!(line["problem"].is_null() && line["caller_gone"] == false, "{line}");
}

#[test]
fn a_caller_that_takes_its_answer_in_sips_frees_the_bank_s_connection_too() {
    let bank = bank();
    let rig = rig(&bank, "limits: { body: 32MiB, buffered: 128MiB }\n");
    let mut slow = stalled(&rig, "GET");
    until("the slow one is with the bank", Duration::from_secs(10), || bank.received().len() == 1);
    let (taken, served) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sipping = scope.spawn(|| {
            // Faster than what is taken for a stall, and slower than the bank.
            while taken.load(Ordering::SeqCst) < LARGE / 2 && !served.load(Ordering::SeqCst) {
                let sip = slow.read(&mut vec![0; 512 << 10]).expect("still coming");
                assert!(sip > 0, "still coming");
                taken.fetch_add(sip, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(200));
            }
            taken.load(Ordering::SeqCst) + rest(slow).len()
        });
        until("others are served", Duration::from_secs(30), || rig.get(ACCOUNTS).status == 200);
        let taken = taken.load(Ordering::SeqCst);
        served.store(true, Ordering::SeqCst);
        assert!(taken < LARGE / 2, "before the slow one has the half of its answer: {taken}");
        assert!(sipping.join().expect("no panic") > LARGE);
    });
}

#[test]
fn reading_ahead_ends_at_its_limit_and_goes_on_with_the_caller() {
    let bank = bank();
    let rig = rig(&bank, "limits: { body: 1MiB, buffered: 1MiB }\n");
    let slow = stalled(&rig, "GET");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(rig.get(ACCOUNTS).problem(), "upstream-busy");
    assert!(rest(slow).len() > LARGE);
    assert_eq!(rig.get(ACCOUNTS).status, 200);
}

#[test]
fn a_caller_that_never_takes_its_answer_is_cut_and_a_payment_is_logged_to_its_end() {
    let bank = bank();
    for (method, bytes_to_the_end) in [("GET", false), ("POST", true)] {
        let rig = rig(&bank, "limits: { body: 1MiB, buffered: 1MiB }\ntimeouts: { body: 1s }\n");
        let slow = stalled(&rig, method);
        let lines = rig.log.wait(1);
        assert_eq!(lines[0]["problem"], "caller-stalled", "{lines:?}");
        assert_eq!((&lines[0]["outcome"], &lines[0]["caller_gone"]), (&"answered".into(), &true.into()), "{lines:?}");
        let all = lines[0]["response_bytes"] == LARGE;
        assert_eq!(all, bytes_to_the_end, "{lines:?}");
        assert!(rest(slow).len() < LARGE, "visibly cut");
        assert_eq!(rig.get(ACCOUNTS).status, 200);
        assert!(rig.metrics().contains("sealproxy_in_flight 0"));
    }
}

#[test]
fn a_stalled_stream_is_cut_and_the_others_of_its_connection_go_on() {
    let bank = bank();
    let top = "limits: { body: 1MiB, buffered: 1MiB }\ntimeouts: { body: 1s }\n";
    let rig = Rig::start(&config(bank.address, "", top));
    let address = rig.address();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answered = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a preface");
        tokio::spawn(connection);
        let mut ask = async |query: &str| {
            sender.ready().await?;
            let uri = format!("http://{address}{ACCOUNTS}{query}");
            sender.send_request(http::Request::get(uri).body(Empty::<Bytes>::new()).expect("a request")).await
        };
        let slow = ask("?large").await.expect("a head");
        let mut answered = 0;
        for _ in 0..20 {
            match ask("").await {
                Ok(quick) => assert_eq!(quick.into_body().collect().await.expect("whole").to_bytes(), "small"),
                // Once the stalled one is cut, the connection may say goodbye: what comes then was never sent.
                Err(error) => {
                    assert!(error.is_canceled(), "{error:?}\n{}", rig.log.text());
                    break;
                }
            }
            answered += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(answered >= 5, "{answered}");
        assert!(slow.into_body().collect().await.is_err(), "visibly cut");
        answered
    });
    let lines = rig.log.wait(answered + 1);
    assert_eq!(lines.len(), answered + 1, "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line["problem"] == "caller-stalled").count(), 1, "{lines:?}");
}

#[test]
fn whoever_sends_slowly_keeps_nobody_else_s_place() {
    let bank = bank();
    let rig = Rig::start(&config(bank.address, "", "limits: { in_flight: 1 }\n"));
    let host = rig.address();
    let slow: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(host).expect("connected");
            let head =
                format!("POST {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: a/b\r\nContent-Length: 9\r\n\r\n.");
            stream.write_all(head.as_bytes()).expect("written");
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    drop(slow);
}

/// A caller of HTTP/2 that takes no more of each answer than this, unless it reads on.
async fn with_window(address: SocketAddr, window: u32) -> http2::SendRequest<Full<Bytes>> {
    let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let builder = builder.initial_stream_window_size(window);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("a preface");
    tokio::spawn(connection);
    sender
}

/// One HTTP/2 connection whose caller has no room for a byte of any answer, and one with room for one.
#[test]
fn streams_without_a_window_keep_nobody_else_s_place() {
    for window in [0, 1] {
        let bank = bank();
        let rig = Rig::start(&config(bank.address, "", "limits: { in_flight: 4 }\ntimeouts: { body: 2s }\n"));
        let address = rig.address();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let chunked = format!("{ACCOUNTS}?chunked");
        let stuck = runtime.block_on(async {
            let mut sender = with_window(address, window).await;
            let mut answers = Vec::new();
            for path in [ACCOUNTS, ACCOUNTS, &chunked, &chunked, "/nowhere", "/nowhere"] {
                let request = http::Request::get(format!("http://{address}{path}")).body(Full::default());
                answers.push(sender.send_request(request.expect("a request")).await.expect("a head"));
            }
            answers
        });
        assert_eq!(rig.get(ACCOUNTS).status, 200, "the bank's part is over");
        let lines = rig.log.wait(7);
        let cut = lines.iter().filter(|line| line["problem"] == "caller-stalled").count();
        assert_eq!(cut, 4, "{window}: {lines:?}");
        let gone = |line: &&serde_json::Value| line["problem"] == "no-route" && line["caller_gone"] == true;
        assert_eq!(lines.iter().filter(gone).count(), 2, "{window}, problems of ours included: {lines:?}");
        assert!(rig.metrics().contains("sealproxy_in_flight 0"));
        drop(stuck);
    }
}

/// What went wrong is told after the bank's part, as an answer is.
#[test]
fn a_problem_that_nobody_takes_keeps_nobody_else_s_place() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let rig = Rig::start(&config(nobody, "", "limits: { in_flight: 1 }\n"));
    let address = rig.address();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let stuck = runtime.block_on(async {
        let mut sender = with_window(address, 0).await;
        let request = http::Request::get(format!("http://{address}{ACCOUNTS}")).body(Full::default());
        sender.send_request(request.expect("a request")).await.expect("a head")
    });
    assert_eq!(stuck.status(), 502);
    assert_eq!(rig.get(ACCOUNTS).problem(), "upstream-refused");
    assert!(rig.metrics().contains("sealproxy_in_flight 1"), "it is still there");
    drop(stuck);
}

/// What is read to its end for it needs the bank no more.
#[test]
fn a_caller_of_http_1_0_that_takes_nothing_keeps_nobody_else_s_place() {
    let chunk = format!("{LARGE:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(LARGE));
    let bank = FakeBank::doing(move |request| {
        let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}");
        Act::Answer(if request.request_line().contains("large") { chunked.into_bytes() } else { ok("small") })
    });
    let top = "limits: { in_flight: 1, body: 32MiB, buffered: 128MiB }\n";
    let rig = Rig::start(&config(bank.address, "", top));
    let mut slow = TcpStream::connect(rig.address()).expect("connected");
    write!(slow, "GET {ACCOUNTS}?large HTTP/1.0\r\nHost: {}\r\n\r\n", rig.address()).expect("written");
    until("it is with the bank", Duration::from_secs(10), || bank.received().len() == 1);
    until("the bank's part is over", Duration::from_secs(10), || rig.get(ACCOUNTS).status == 200);
    assert!(rig.metrics().contains("sealproxy_in_flight 1"), "it is still there");
    let answer = rest(slow);
    let head = String::from_utf8_lossy(&answer[..answer.len().min(200)]);
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n") && answer.len() > LARGE, "{head} {}", answer.len());
}

/// Slow callers may have taken all room that there is for reading ahead: what a payment came to is told all the same.
#[test]
fn a_small_answer_reaches_a_caller_of_http_1_0_whatever_others_hold() {
    let bank = bank();
    let rig = Rig::start(&config(bank.address, "", "limits: { body: 1MiB, buffered: 1MiB }\n"));
    let slow = stalled(&rig, "GET");
    let ask = || rig.send(&format!("GET {ACCOUNTS}?chunked HTTP/1.0\r\nHost: {}\r\n\r\n", rig.address()));
    // The other's answer is read ahead from half a second on.
    let until = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < until {
        let answer = ask();
        assert_eq!((answer.status, &*answer.body), (200, "small"), "{answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(rest(slow).len() > LARGE);
}

/// An HTTP library sends once more what has no answer: a stream that is cut for want of room has had its head.
#[test]
fn an_answer_that_finds_no_room_has_its_head_first() {
    let bank = bank();
    let rig = Rig::start(&config(bank.address, "", "limits: { body: 1MiB, buffered: 1MiB }\n"));
    let address = rig.address();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (cut, bodies) = runtime.block_on(async {
        let sender = with_window(address, 16_000).await;
        let asked = (0..60).map(|number| {
            let uri = format!("http://{address}{ACCOUNTS}?piece={number}");
            let request = http::Request::post(uri).header("content-type", "a/b").body(Full::<Bytes>::from("{}"));
            tokio::spawn(sender.clone().send_request(request.expect("a request")))
        });
        let asked: Vec<_> = asked.collect();
        let mut answers = Vec::new();
        for answer in asked {
            answers.push(answer.await.expect("no panic").expect("a head"));
        }
        let (mut cut, mut bodies) = (0, 0);
        for answer in answers {
            match answer.into_body().collect().await {
                Ok(whole) => bodies += usize::from(whole.to_bytes().len() == 60_000),
                Err(_) => cut += 1,
            }
        }
        (cut, bodies)
    });
    assert!(cut > 0 && bodies > 0 && cut + bodies == 60, "{cut} of 60 were cut, and {bodies} whole");
    assert_eq!(bank.received().len(), 60);
}

#[test]
fn a_few_large_uploads_that_stall_keep_no_payment_out() {
    let bank = bank();
    let rig = Rig::start(&config(bank.address, "", "limits: { body: 1MiB, buffered: 4MiB }\n"));
    let host = rig.address();
    let stalled: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(host).expect("connected");
            let head = format!(
                "POST {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: a/b\r\nContent-Length: {}\r\n\r\n",
                1 << 20
            );
            stream.write_all(head.as_bytes()).expect("written");
            // Who is refused may not take it all.
            let _ = stream.write_all(&vec![b'x'; (1 << 20) - 100]);
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..20 {
        assert_eq!(rig.request("POST", ACCOUNTS, "Content-Type: a/b\r\n", "{}").status, 200);
    }
    drop(stalled);
}

#[test]
fn at_the_limit_of_connections_a_body_that_does_not_come_makes_room() {
    let bank = bank();
    let rig = Rig::start(&config(bank.address, "", "limits: { connections: 4 }\ntimeouts: { header: 3s }\n"));
    let host = rig.address();
    let head = format!("POST {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: a/b\r\nContent-Length: 9\r\n\r\n.");
    let slow: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(host).expect("connected");
            stream.write_all(head.as_bytes()).expect("written");
            stream
        })
        .collect();
    until("all are there", Duration::from_secs(5), || {
        rig.metrics().contains("sealproxy_client_connections 4") && rig.metrics().contains("sealproxy_in_flight 4")
    });
    let refused = rig.get(ACCOUNTS);
    assert_eq!((refused.status, &*refused.problem(), &*refused.outcome()), (503, "crowded", "not_sent"));
    assert!(refused.body.contains("the 4 of `limits.connections`"), "{}", refused.body);
    assert!(rig.metrics().contains("sealproxy_client_connections_refused_total 1"));
    std::thread::sleep(Duration::from_millis(3000));
    assert_eq!(rig.get(ACCOUNTS).status, 200);
    drop(slow);
}

/// The same over HTTP/2, whose farewell waits for nobody who keeps it waiting.
#[test]
fn at_the_limit_of_connections_streams_that_stall_make_room() {
    let bank = bank();
    let rig = Rig::start(&config(bank.address, "", "limits: { connections: 4 }\ntimeouts: { header: 500ms }\n"));
    let address = rig.address();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let stalled = runtime.block_on(async {
        let mut stalled = Vec::new();
        for _ in 0..24 {
            let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
            let Ok((mut sender, connection)) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await
            else {
                continue;
            };
            tokio::spawn(connection);
            let nothing =
                futures_util::stream::pending::<Result<hyper::body::Frame<Bytes>, std::convert::Infallible>>();
            let body = http_body_util::StreamBody::new(nothing);
            let request = http::Request::post(format!("http://{address}{ACCOUNTS}")).header("content-type", "a/b");
            let answer = tokio::spawn(sender.send_request(request.body(body).expect("a request")));
            stalled.push((sender, answer));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        stalled
    });
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..4 {
        assert_eq!(rig.get(ACCOUNTS).status, 200, "somebody has had its time");
    }
    until("their seats are free", Duration::from_secs(5), || {
        rig.metrics().lines().any(|line| line == "sealproxy_client_connections 3")
    });
    drop(stalled);
}

#[test]
fn a_body_that_comes_in_drops_is_not_waited_for_to_the_end() {
    let bank = bank();
    let rig = Rig::start(&config(bank.address, "", "timeouts: { body: 500ms, body_total: 1m }\n"));
    let host = rig.address();
    let mut stream = TcpStream::connect(host).expect("connected");
    let head = format!("POST {ACCOUNTS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: a/b\r\nContent-Length: 99\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("written");
    let mut dripping = stream.try_clone().expect("a socket");
    std::thread::spawn(move || {
        while dripping.write_all(b".").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let began = Instant::now();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 408");
    assert!((0.4..2.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
}

/// A caller that the exchange was too long for leaves its place with it.
#[test]
fn an_exchange_ends_at_its_end_whoever_waits_for_it() {
    let listener = drips();
    let rig = Rig::start(&config(listener, "    in_flight: 1\n", "timeouts: { exchange: 2s }\n"));
    let began = Instant::now();
    let answer = rig.request("POST", ACCOUNTS, "Content-Type: a/b\r\n", "{}");
    assert!(answer.status == 201 && answer.body.len() < 1000, "{answer:?}");
    let line = rig.log.wait(1).pop().expect("a line");
    assert_eq!(line["problem"], "exchange-timeout", "{line}");
    // The connection's own clock would give it two seconds more, and the bank takes twenty.
    assert!(began.elapsed() < Duration::from_millis(3700), "{:?}", began.elapsed());
    assert!(rig.metrics().contains("sealproxy_upstream_in_flight{upstream=\"bank\"} 0"));
}

/// A bank that answers byte by byte.
fn drips() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let (socket, _) = listener.accept().expect("a connection");
        let session = rustls::ServerConnection::new(Manner::good().tls).expect("a session");
        let mut tls = rustls::StreamOwned::new(session, socket);
        let mut request = [0; 4096];
        let _ = tls.read(&mut request).expect("a request");
        tls.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 1000\r\n\r\n").expect("written");
        while tls.write_all(b".").and_then(|()| tls.flush()).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    address
}
