//! The proxy under loads that other proxies fell to, as a process of its own so that its memory is its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::cli::{Started, standing_still, start, start_with};
use crate::support::{Act, Answer, FakeBank, Manner, Running, config, keep_alive, kit, next_answer, ok, page, until};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
const MIB: usize = 1 << 20;

/// A figure of `/proc/PID/status`, in KiB.
fn memory(child: &Running, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.0.id())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a figure");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
}

fn get(address: SocketAddr) -> Answer {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    write!(stream, "GET {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("written");
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        panic!("{error}, after {:?}", String::from_utf8_lossy(&answer));
    }
    Answer::parse(&answer)
}

/// Sends a head and then a body in these pieces for as long as anybody takes them; returns the answer and how much
/// went.
fn upload(address: SocketAddr, framing: &str, pieces: impl Iterator<Item = Vec<u8>>) -> (Answer, usize) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    write!(stream, "POST {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\nContent-Type: a/b\r\n{framing}\r\n\r\n")
        .expect("written");
    let mut sent = 0;
    for piece in pieces {
        match stream.write_all(&piece) {
            Ok(()) => sent += piece.len(),
            Err(_) => break,
        }
    }
    let mut head = Vec::new();
    let mut reader = BufReader::new(stream);
    while !head.ends_with(b"\r\n\r\n") && reader.read_until(b'\n', &mut head).is_ok_and(|read| read > 0) {}
    let mut answer = Answer::parse(&head);
    let mut body = vec![0; answer.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    if reader.read_exact(&mut body).is_ok() {
        answer.body = String::from_utf8_lossy(&body).into_owned();
    }
    (answer, sent)
}

#[test]
fn a_gibibyte_is_refused_long_before_it_is_there() {
    let bank = FakeBank::good();
    let proxy = start(&config(bank.address, "", "limits: { body: 8MiB }\n"), &[]);
    let gibibyte = 1024 * MIB;
    let length = format!("Content-Length: {gibibyte}");
    let (answer, _) = upload(proxy.address, &length, (0..1024).map(|_| vec![b'x'; MIB]));
    assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (413, "body-too-large", "not_sent"));
    let chunk = [format!("{MIB:x}\r\n").into_bytes(), vec![b'x'; MIB], b"\r\n".to_vec()].concat();
    let (_, sent) = upload(proxy.address, "Transfer-Encoding: chunked", (0..1024).map(|_| chunk.clone()));
    assert!(sent < 64 * MIB, "{sent} bytes were taken");
    assert_eq!(get(proxy.address).status, 200);
    assert_eq!(bank.received().len(), 1, "the small one alone");
    let peak = memory(&proxy.child, "VmHWM");
    eprintln!("peak {peak} KiB");
    assert!(peak < 64 * 1024, "{peak} KiB");
}

#[test]
fn two_hundred_uploads_stay_within_what_all_bodies_may_hold() {
    // A bank that takes its time keeps the bodies that it has yet to answer for in memory.
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_millis(50), ok("{}")));
    let top = "limits: { body: 8MiB, buffered: 64MiB }\n";
    let proxy = start(&config(bank.address, "", top), &[]);
    let address = proxy.address;
    let done = AtomicBool::new(false);
    let (answers, small) = std::thread::scope(|scope| {
        let body = Arc::new(vec![b'x'; 8 * MIB]);
        let uploads: Vec<_> = (0..200)
            .map(|_| {
                let body = Arc::clone(&body);
                let pieces = move || (0..8).map(move |piece| body[piece * MIB..(piece + 1) * MIB].to_vec());
                scope.spawn(move || upload(address, &format!("Content-Length: {}", 8 * MIB), pieces()).0)
            })
            .collect();
        let small = scope.spawn(|| {
            let mut answered = 0;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(get(address).status, 200, "small requests keep their answers");
                answered += 1;
            }
            answered
        });
        let answers: Vec<Answer> = uploads.into_iter().map(|upload| upload.join().expect("no panic")).collect();
        done.store(true, Ordering::Relaxed);
        (answers, small.join().expect("no panic"))
    });
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    let shed: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
    let peak = memory(&proxy.child, "VmHWM");
    eprintln!("{served} served, {} shed, {small} small ones meanwhile, peak {peak} KiB", shed.len());
    for answer in &shed {
        assert_eq!((&*answer.problem(), &*answer.outcome()), ("buffer-full", "not_sent"));
        assert!(answer.body.contains("the 64MiB of `limits.buffered`"), "{}", answer.body);
        assert!(answer.header("retry-after").is_some());
    }
    // A caller that is still sending when it is refused may lose the answer to a reset: its connection ends all the
    // same.
    assert!(answers.iter().all(|answer| [200, 503, 0].contains(&answer.status)));
    assert!(served >= 4, "the first ones fit into what large bodies may hold: {served}");
    assert!(!shed.is_empty() && small > 0);
    // Without optimisation code and futures are larger; a release build peaks at 85 to 106 MiB.
    let overhead = if cfg!(debug_assertions) { 96 } else { 64 };
    assert!(peak < (64 + overhead) * 1024, "{peak} KiB");
    assert_eq!(get(address).status, 200);
}

/// Opens connections until there are this many, whatever becomes of the earlier ones.
fn crowd(address: SocketAddr, count: usize, first: &[u8]) -> Vec<TcpStream> {
    let open = |_| {
        let mut stream = TcpStream::connect(address).expect("it listens");
        let _ = stream.write_all(first);
        stream
    };
    (0..count).map(open).collect()
}

#[test]
fn two_thousand_slow_heads_keep_nobody_out_and_are_closed_in_time() {
    let bank = FakeBank::good();
    let proxy = start(&config(bank.address, "", "timeouts: { header: 2s }\n"), &[]);
    for first in [&b"GET /slow HTTP/1.1\r\nX-"[..], b"", b"PRI * HTTP/2.0\r\n"] {
        let mut slow = crowd(proxy.address, 2000, first);
        let began = Instant::now();
        for _ in 0..10 {
            assert_eq!(get(proxy.address).status, 200);
            // A byte now and then wins no time.
            slow.iter_mut().filter(|_| !first.is_empty()).step_by(7).for_each(|stream| drop(stream.write(b"y")));
            std::thread::sleep(Duration::from_millis(100));
        }
        for mut stream in slow {
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
            let mut rest = Vec::new();
            match stream.read_to_end(&mut rest) {
                Ok(_) => {}
                // Evicted with bytes unread: the system resets.
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
            }
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

#[test]
fn the_limit_of_connections_holds_in_a_burst() {
    let bank = FakeBank::good();
    let proxy = start(&config(bank.address, "", "limits: { connections: 64 }\n"), &[]);
    let mut crowds = Vec::new();
    for _ in 0..4 {
        crowds.push(crowd(proxy.address, 300, b""));
        let open = figure(proxy.admin, "sealproxy_client_connections");
        assert!(open <= 64 + 64 / 8 + 16, "{open}");
    }
    assert_eq!(get(proxy.address).status, 200);
}

/// Who has sent a request has one, though nobody has read it yet.
#[test]
fn no_request_that_has_come_in_makes_room_for_another() {
    let bank = FakeBank::good();
    let proxy = start(&config(bank.address, "", "limits: { connections: 4 }\n"), &[]);
    let silent = crowd(proxy.address, 3, b"");
    let request = format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n", proxy.address);
    let callers = standing_still(&proxy.child, || crowd(proxy.address, 16, request.as_bytes()));
    let status = |mut caller: TcpStream| {
        caller.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        let mut answer = Vec::new();
        caller.read_to_end(&mut answer).expect("nobody is reset");
        let answer = Answer::parse(&answer);
        if answer.status == 200 { None } else { Some(answer.problem()) }
    };
    let (answered, refused): (Vec<_>, Vec<_>) = callers.into_iter().map(status).partition(Option::is_none);
    let refused: Vec<String> = refused.into_iter().flatten().collect();
    // Where those who read are quicker than the one who accepts, all four are busy when the next one comes.
    assert!(answered.len() >= 4 && refused.iter().all(|problem| problem == "crowded"), "{answered:?} {refused:?}");
    assert_eq!(figure(proxy.admin, "sealproxy_client_connections_refused_total"), refused.len());
    assert_eq!(figure(proxy.admin, "sealproxy_client_connections_evicted_total"), 3, "the silent ones alone");
    drop(silent);
}

/// The limit and what it leaves to those who go: `limit + limit / 8 + 16`.
const ALL_OF_FOUR: usize = 20;

/// Nobody waits for a place that does not come free.
#[test]
fn beyond_the_limit_whoever_has_no_place_is_told_at_once() {
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_secs(3), ok("{}")));
    let proxy = start(&config(bank.address, "", "limits: { connections: 4 }\n"), &[]);
    let request = format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n", proxy.address);
    let callers = standing_still(&proxy.child, || crowd(proxy.address, 60, request.as_bytes()));
    let began = Instant::now();
    let status = |mut caller: &TcpStream| {
        caller.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        let mut answer = [0; 12];
        caller.read_exact(&mut answer).expect("an answer");
        (String::from_utf8_lossy(&answer[9..]).into_owned(), began.elapsed() < Duration::from_secs(2))
    };
    // Those who came last.
    let told: Vec<_> = callers.iter().rev().map(status).collect();
    let is_refused = |told: &&(String, bool)| told.0 == "503";
    assert!(told.iter().filter(is_refused).all(|(_, soon)| *soon), "{told:?}");
    assert!(told.iter().all(|(status, _)| matches!(&**status, "503" | "200")), "{told:?}");
    let refused = told.iter().filter(is_refused).count();
    // It depends on who is quicker, the one who accepts or those who read.
    assert!((60 - ALL_OF_FOUR..=60 - 4).contains(&refused), "{told:?}");
    assert_eq!(figure(proxy.admin, "sealproxy_client_connections_refused_total"), refused);
    assert_eq!(bank.received().len(), 60 - refused);
}

/// A request of HTTP/2 (RFC 9113, RFC 7541 section 6.2.2) from somebody who answers no PING, so that a connection which
/// is to take no more streams does not end by itself.
fn http_2_request(address: SocketAddr) -> Vec<u8> {
    let authority = address.to_string();
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", &*authority), (":path", ACCOUNTS)];
    let literal = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    let block: Vec<u8> =
        fields.iter().flat_map(|(name, value)| [vec![0], literal(name), literal(value)].concat()).collect();
    let length = u8::try_from(block.len()).expect("short");
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let headers = [0, 0, length, 1, 5, 0, 0, 0, 1];
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..], &headers, &block].concat()
}

/// Those who stayed over the limit, because they sent in the moment in which they were asked to go, go when they are
/// idle.
#[test]
fn whoever_stayed_over_the_limit_keeps_nobody_out() {
    let bank = FakeBank::doing(|_| Act::Wait(Duration::from_millis(500), ok("{}")));
    let proxy = start(&config(bank.address, "", "limits: { connections: 4 }\n"), &[]);
    let callers = standing_still(&proxy.child, || crowd(proxy.address, ALL_OF_FOUR, &http_2_request(proxy.address)));
    until("all are seated or refused", Duration::from_secs(10), || came(proxy.admin) == ALL_OF_FOUR);
    until("all are idle", Duration::from_secs(10), || figure(proxy.admin, "sealproxy_in_flight") == 0);
    assert_eq!(get(proxy.address).status, 200);
    drop(callers);
}

/// Neither does anybody whose body does not come.
#[test]
fn bodies_that_do_not_come_are_no_reason_to_wait() {
    let bank = FakeBank::good();
    let top = "limits: { connections: 4 }\ntimeouts: { header: 2s }\n";
    let proxy = start(&config(bank.address, "", top), &[]);
    let head = format!(
        "POST {ACCOUNTS} HTTP/1.1\r\nHost: {}\r\nContent-Type: a/b\r\nContent-Length: 9\r\n\r\n",
        proxy.address
    );
    let callers = standing_still(&proxy.child, || crowd(proxy.address, ALL_OF_FOUR, head.as_bytes()));
    until("all are seated or refused", Duration::from_secs(10), || came(proxy.admin) == ALL_OF_FOUR);
    let began = Instant::now();
    assert_eq!(get(proxy.address).status, 503);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    std::thread::sleep(Duration::from_millis(2200));
    assert_eq!(get(proxy.address).status, 200, "by now they have kept us waiting for long");
    drop(callers);
}

/// Callers who come again as soon as they are sent away keep no process from its end.
#[test]
fn a_queue_that_never_ends_is_left_behind() {
    let top = "limits: { connections: 4 }\ntimeouts: { linger: 200ms, drain: 1s }\n";
    let mut proxy = start(&config(FakeBank::good().address, "", top), &[]);
    let (address, over) = (proxy.address, AtomicBool::new(false));
    let connect = || {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_nonblocking(true).expect("a socket");
        Some(stream)
    };
    let is_sent_away = |stream: &Option<TcpStream>| {
        let read = stream.as_ref().map(|mut stream| stream.read(&mut [0; 512]));
        !read.is_some_and(|read| read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock))
    };
    let come_again = || {
        let mut silent: Vec<_> = (0..100).map(|_| connect()).collect();
        while !over.load(Ordering::Relaxed) {
            silent.iter_mut().filter(|stream| is_sent_away(stream)).for_each(|stream| *stream = connect());
            std::thread::sleep(Duration::from_micros(200));
        }
    };
    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(come_again)));
        std::thread::sleep(Duration::from_millis(500));
        proxy.child.signal("TERM");
        let began = Instant::now();
        while proxy.child.0.try_wait().expect("a child").is_none() && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Relaxed);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    });
}

/// Callers who have a place or were told that there is none.
fn came(admin: SocketAddr) -> usize {
    figure(admin, "sealproxy_client_connections") + figure(admin, "sealproxy_client_connections_refused_total")
}

/// A metric, with its labels where it has some.
pub(crate) fn figure(admin: SocketAddr, name: &str) -> usize {
    let metrics = page(admin, "/metrics").body;
    let figure = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    figure.expect("a figure").parse().expect("a number")
}

/// A bank's answer in small chunks, more than sockets hold, which its caller does not take: what is read ahead costs
/// what it costs.
#[test]
fn tiny_pieces_that_are_read_ahead_are_joined() {
    let pieces = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let answer = [pieces, b"10\r\nsixteen letters.\r\n".repeat(350_000), b"0\r\n\r\n".to_vec()].concat();
    let bank = FakeBank::doing(move |_| Act::AnswerAndClose(answer.clone()));
    // Nobody is cut before all has been read.
    let top = "limits: { body: 8MiB, buffered: 64MiB }\ntimeouts: { body: 2m }\n";
    let proxy = start(&config(bank.address, "", top), &[]);
    let _slow =
        crowd(proxy.address, 1, format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: {}\r\n\r\n", proxy.address).as_bytes());
    until("the bank has the request", Duration::from_secs(10), || bank.received().len() == 1);
    until("all of the answer is read, though nobody takes it", Duration::from_secs(60), || {
        figure(proxy.admin, "sealproxy_upstream_in_flight{upstream=\"bank\"}") == 0
    });
    let peak = memory(&proxy.child, "VmHWM");
    assert!(peak < 96 * 1024, "{peak} KiB");
}

#[test]
fn a_log_that_nobody_reads_stops_no_request_and_what_is_lost_is_counted() {
    let bank = FakeBank::good();
    let proxy = start_with(&config(bank.address, "", ""), &[], Stdio::piped());
    let Started { mut child, address, admin, .. } = proxy;
    let requests = 18_000;
    let left = AtomicUsize::new(requests);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut reader = BufReader::new(TcpStream::connect(address).expect("it listens"));
                // Refused before the bank: cheap, and logged like any other.
                let request = format!("GET /nowhere HTTP/1.1\r\nHost: {address}\r\n\r\n");
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    reader.get_mut().write_all(request.as_bytes()).expect("written");
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        assert!(reader.read_line(&mut head).expect("an answer") > 0);
                    }
                    let answer = Answer::parse(head.as_bytes());
                    assert_eq!(answer.status, 404);
                    let length = answer.header("content-length").expect("a length").parse().expect("a number");
                    reader.read_exact(&mut vec![0; length]).expect("a body");
                }
            });
        }
    });
    assert_eq!(get(address).status, 200);
    let dropped = figure(admin, "sealproxy_log_dropped_lines_total");
    // What is not dropped is in the pipe, in the buffer, or in the writer's hands.
    assert!((500..requests - 16_000).contains(&dropped), "{dropped}");
    let began = Instant::now();
    assert_eq!(child.terminate_at_once(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Two banks; the second has routes of its own.
fn two_banks(one: SocketAddr, other: SocketAddr) -> String {
    config(one, "    in_flight: 32\n", "").replace(
        "routes:\n",
        &format!(
            "  other:\n    url: https://localhost:{}\n    environment: sandbox\n    identity: main\n    profile: becm\n    \
             trust: {}\n    private: true\nroutes:\n  \
             - {{ path: /sandbox/cic/stet-psd2-api/, upstream: other, methods: [GET] }}\n",
            other.port(),
            kit().path("ca.pem").display()
        ),
    )
}

#[test]
fn a_bank_that_hangs_slows_nobody_who_asks_another() {
    let hanging = FakeBank::doing(|_| Act::Wait(Duration::from_secs(20), ok("late")));
    let other = FakeBank::good();
    let proxy = start(&two_banks(hanging.address, other.address), &[]);
    let address = proxy.address;
    let times = || {
        let mut reader = BufReader::new(TcpStream::connect(address).expect("it listens"));
        let request = format!("GET /sandbox/cic/stet-psd2-api/v2.1/accounts HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let mut took: Vec<Duration> = (0..300)
            .map(|_| {
                let began = Instant::now();
                reader.get_mut().write_all(request.as_bytes()).expect("written");
                let mut answer = String::new();
                while !answer.ends_with("\r\n\r\n") {
                    assert!(reader.read_line(&mut answer).expect("an answer") > 0);
                }
                reader.read_exact(&mut [0; 2]).expect("{}");
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                began.elapsed()
            })
            .collect();
        took.sort();
        (took[150], took[296])
    };
    times();
    let quiet = times();
    // More than the bank's share; those beyond it ask again and again.
    let stuck: Vec<TcpStream> =
        crowd(address, 64, format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes());
    std::thread::sleep(Duration::from_millis(500));
    let answer = get(address);
    assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (503, "upstream-busy", "not_sent"));
    assert!(answer.header("retry-after").is_some());
    // The best of three: the bank hangs all the time, and a busy machine does not.
    let loaded: Vec<_> = (0..3).map(|_| times()).collect();
    let best = |of: fn(&(Duration, Duration)) -> Duration| loaded.iter().map(of).min().expect("three");
    let loaded = (best(|times| times.0), best(|times| times.1));
    eprintln!("p50 and p99 {quiet:?} quiet, {loaded:?} beside a bank that hangs");
    // The floors are what a busy test machine makes of two cores, and little beside the seconds for which the bank
    // hangs.
    let keeps =
        |loaded: Duration, quiet: Duration, floor| loaded < (2 * quiet).max(quiet + Duration::from_millis(floor));
    assert!(keeps(loaded.0, quiet.0, 100) && keeps(loaded.1, quiet.1, 250), "{quiet:?} {loaded:?}");
    stuck.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
}

/// A balancer between proxy and bank that forgets a connection without a word: nothing comes through any more.
struct Forgetful {
    address: SocketAddr,
    forgets: Arc<AtomicBool>,
}

impl Forgetful {
    fn before(bank: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (address, forgets) = (listener.local_addr().expect("bound"), Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&forgets);
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.expect("accepted"), TcpStream::connect(bank).expect("the bank listens"));
                // Connections that are made after the forgetting work.
                let born_forgetful = flag.load(Ordering::Relaxed);
                for (mut from, mut to) in
                    [(near.try_clone().expect("a socket"), far.try_clone().expect("a socket")), (far, near)]
                {
                    let flag = Arc::clone(&flag);
                    std::thread::spawn(move || {
                        let mut bytes = [0; 16 * 1024];
                        while let Ok(read @ 1..) = from.read(&mut bytes) {
                            let forgotten = flag.load(Ordering::Relaxed) && !born_forgetful;
                            if !forgotten && to.write_all(&bytes[..read]).is_err() {
                                return;
                            }
                        }
                    });
                }
            }
        });
        Self { address, forgets }
    }
}

#[test]
fn a_connection_that_a_balancer_forgot_costs_one_answer_and_no_second_payment() {
    let bank = FakeBank::with(Manner::good(), |_| Act::Answer(ok("{}")));
    let balancer = Forgetful::before(bank.address);
    // Whoever comes back before the connection does waits for it, instead of making another.
    let one = "    connections: 1\n";
    let rig = crate::support::Rig::start(&config(balancer.address, one, "timeouts: { response: 1s }\n"));
    let pay = || rig.request("POST", ACCOUNTS, "Content-Type: a/b\r\n", "{}");
    assert_eq!(pay().status, 200);
    balancer.forgets.store(true, Ordering::Relaxed);
    let lost = pay();
    assert_eq!((lost.status, &*lost.problem(), &*lost.outcome()), (504, "upstream-timeout", "unknown"));
    assert_eq!(lost.header("retry-after"), None);
    assert_eq!(pay().status, 200, "the next has a connection of its own");
    assert_eq!(bank.received().len(), 2, "the lost one did not arrive, and was not sent again");
}

/// Few callers keep few connections: each thread serves its share of them.
#[test]
fn connections_spread_over_the_reactors() {
    let bank = FakeBank::good();
    let Started { mut child, address, stderr: _stderr, .. } = start(&config(bank.address, "", ""), &[]);
    let mut callers: Vec<_> = (0..4).map(|_| keep_alive(address)).collect();
    let request = format!("GET {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    for number in 0..600 {
        let caller = &mut callers[number % 4];
        caller.get_mut().write_all(request.as_bytes()).expect("written");
        assert!(next_answer(caller, "").is_some());
    }
    let threads = std::fs::read_dir(format!("/proc/{}/task", child.0.id())).expect("its threads");
    let ticks: Vec<u64> = threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok())
        .filter_map(|stat| stat.split_once("(reactor-")?.1.split(' ').nth(12)?.parse().ok())
        .collect();
    let (least, most) = (ticks.iter().min().expect("reactors"), ticks.iter().max().expect("reactors"));
    assert!(ticks.len() == 2 && *most > 5 && 3 * least > *most, "{ticks:?} ticks");
    assert_eq!(child.terminate_at_once(), Some(0));
}
