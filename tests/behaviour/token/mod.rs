//! Seal keys that never leave a token: SoftHSM2, as it is and behind a module that makes it slow.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

mod qwac;
pub(crate) mod softhsm;

use softhsm::{Slow, SoftHsm, with_key};

use crate::cli::{Started, start};
use crate::outside::openssl_verifies;
use crate::rotation::{reload, status};
use crate::support::{Answer, FakeBank, Rig, file_config, header, kit, until};

const ACCOUNTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/accounts";
fn get(address: SocketAddr) -> Answer {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    write!(stream, "GET {ACCOUNTS} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    Answer::parse(&answer)
}

#[test]
fn a_key_on_a_token_seals_as_one_in_a_file() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    for names in ["token=seals;object=qseal", "token=seals;id=%01;type=private"] {
        let proxy = token.start(&token.config(bank.address, &token.uri(names), ""));
        assert_eq!(get(proxy.address).status, 200);
        let body = "{\"a\":1}";
        let mut stream = TcpStream::connect(proxy.address).expect("it listens");
        write!(
            stream,
            "POST {ACCOUNTS} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            proxy.address,
            body.len()
        )
        .expect("written");
        stream.read_to_end(&mut Vec::new()).expect("an answer");
    }
    let received = bank.received();
    assert_eq!(received.len(), 4);
    for request in received {
        openssl_verifies(&request.head, &request.body);
    }
}

#[test]
fn what_is_wrong_with_a_token_is_said_at_start() {
    let Some(token) = SoftHsm::new() else { return };
    token.import(&kit().path("bank.key"), "of-another", "02");
    token.import(&kit().path("qsealc.key"), "twice", "03");
    token.import(&kit().path("qsealc.key"), "twice", "04");
    let bank = "127.0.0.1:1".parse().expect("an address");
    let check = |uri: &str| token.check(&token.config(bank, uri, ""));
    assert_eq!(check(&token.uri("token=seals;object=qseal")).0, Some(0));
    for (names, reason) in [
        ("token=other;object=qseal", "there is no such token"),
        ("token=seals;object=other", "there is no such private key on the token"),
        ("token=seals;object=twice", "2 private keys on the token are so named"),
        ("token=seals;object=of-another", "the key does not match its certificate"),
        ("token=seals", "names no key"),
    ] {
        let (code, said) = check(&token.uri(names));
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("identities.main.qsealc.key: ") && said.contains(reason), "{names}: {said}");
    }
    let (_, said) = check(&token.uri_through(Path::new("/nowhere.so"), "token=seals;object=qseal"));
    assert!(said.contains("/nowhere.so: the module cannot be loaded"), "{said}");
    std::fs::remove_file(token.folder.join("pin")).expect("a file");
    let (_, said) = check(&token.uri("token=seals;object=qseal"));
    assert!(said.contains("pin: the PIN cannot be read"), "{said}");
    std::fs::write(token.folder.join("pin"), "not-the-pin").expect("a file");
    let (_, said) = check(&token.uri("token=seals;object=qseal"));
    assert!(said.contains("the token refused the PIN") && !said.contains("not-the-pin"), "{said}");
}

#[test]
fn a_token_that_cannot_be_read_for_a_moment_is_asked_again() {
    let Some(token) = SoftHsm::new() else { return };
    let yaml = token.config("127.0.0.1:1".parse().expect("an address"), &token.uri("token=seals;object=qseal"), "");
    token.withdraw();
    let (code, said) = token.check(&yaml);
    let reason = "identities.main.qsealc.key: pkcs11:token=seals;object=qseal: the token's module refused: C_Initialize: \
                  CKR_GENERAL_ERROR. ";
    assert!(code == Some(78) && said.contains(reason), "{said}");
    let (code, said) = std::thread::scope(|scope| {
        let check = scope.spawn(|| token.check(&yaml));
        std::thread::sleep(Duration::from_millis(500));
        token.restore();
        check.join().expect("a check")
    });
    assert_eq!(code, Some(0), "{said}");
}

/// What makes the seals is in the log where it changes, in the metrics and on the page.
#[test]
fn what_makes_the_seals_is_told_when_it_changes() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    let module = Slow::before(&token, &[]).module;
    let in_file = file_config(bank.address, "", "");
    let on_token = with_key(&in_file, "qsealc.key", &token.uri_through(&module, "token=seals;object=qseal"));
    let (rig, config) = Rig::start_with_file(&in_file);
    let told = |backend: &str| {
        let text = rig.log.text();
        let last = text.lines().rfind(|line| line.contains("\"event\":\"seal-backend\""));
        let told = last.is_some_and(|line| line.contains(&format!("\"upstream\":\"bank\",\"backend\":\"{backend}\"")));
        let shown = rig.metrics().contains(&format!("backend=\"{backend}\",upstream=\"bank\"}} 1"));
        told && shown && status(&rig)["upstreams"]["bank"]["seal"]["key"] == *backend
    };
    let first = status(&rig)["upstreams"]["bank"]["seal"]["key"].as_str().expect("a name").to_owned();
    assert!(!rig.log.text().contains("seal-backend"), "a start is not a change");
    assert_eq!(reload(&rig, &config, &on_token)["result"], "applied");
    assert_ne!(first, "pkcs11");
    until("it is told", Duration::from_secs(10), || told("pkcs11"));
    assert_eq!(reload(&rig, &config, &in_file)["result"], "applied");
    until("it is told again", Duration::from_secs(10), || told(&first));
}

#[test]
fn a_token_that_is_lost_is_found_again_and_nothing_leaves_unsealed_meanwhile() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    let proxy = token.start(&token.config(bank.address, &token.uri("token=seals;object=qseal"), ""));
    assert_eq!(get(proxy.address).status, 200);
    token.withdraw();
    let deadline = Instant::now() + Duration::from_secs(10);
    let lost = loop {
        let answer = get(proxy.address);
        if answer.status != 200 {
            break answer;
        }
        assert!(Instant::now() < deadline, "the token goes on signing");
    };
    assert_eq!((lost.status, &*lost.problem(), &*lost.outcome()), (503, "seal-unavailable", "not_sent"));
    assert!(lost.header("retry-after").is_some());
    let before = bank.received().len();
    assert_eq!(get(proxy.address).status, 503);
    assert_eq!(bank.received().len(), before, "nothing leaves without a seal");
    token.restore();
    let deadline = Instant::now() + Duration::from_secs(10);
    while get(proxy.address).status != 200 {
        assert!(Instant::now() < deadline, "the token is not found again");
        std::thread::sleep(Duration::from_millis(100));
    }
    bank.received().iter().for_each(|request| openssl_verifies(&request.head, &request.body));
}

/// What a page of the admin port answers.
fn page(proxy: &Started, page: &str) -> Answer {
    let mut stream = TcpStream::connect(proxy.admin).expect("it listens");
    write!(stream, "GET {page} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", proxy.admin).expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    Answer::parse(&answer)
}

#[test]
fn a_token_that_is_down_at_start_is_waited_for() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    let seal = token.config(bank.address, &token.uri("token=seals;object=qseal"), "");
    let both = with_key(&seal, "qwac.key", &token.uri("token=seals;object=qwac"));
    token.withdraw();
    let (code, said) = token.check(&both);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("error: "), "{said}");
    token.refused(&format!("{both}start: strict\n"));
    let proxies = [token.start(&seal), token.start(&both)];
    for proxy in &proxies {
        let answer = get(proxy.address);
        assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (503, "identity-unusable", "not_sent"));
        assert_eq!((page(proxy, "/readyz").status, page(proxy, "/readyz?upstream=bank").status), (200, 503));
        let status = page(proxy, "/status").body;
        assert!(status.contains("\"usable\": false") && status.contains("error: "), "{status}");
    }
    token.restore();
    let deadline = Instant::now() + Duration::from_secs(40);
    for proxy in &proxies {
        while get(proxy.address).status != 200 {
            assert!(Instant::now() < deadline, "the token is not found");
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!((page(proxy, "/readyz").status, page(proxy, "/readyz?upstream=bank").status), (200, 200));
    }
    bank.received().iter().for_each(|request| openssl_verifies(&request.head, &request.body));
}

#[test]
fn what_no_waiting_mends_keeps_it_from_starting() {
    let Some(token) = SoftHsm::new() else { return };
    let config = |uri: &str| token.config("127.0.0.1:1".parse().expect("an address"), uri, "");
    token.refused(&config(&token.uri("token=seals;object=other")));
    token.refused(&config(&token.uri("token=seals;object=qwac")));
    token.refused(&config(&token.uri_through(Path::new("/nowhere.so"), "token=seals;object=qseal")));
    std::fs::write(token.folder.join("pin"), "not-the-pin").expect("a file");
    token.refused(&config(&token.uri("token=seals;object=qseal")));
}

#[test]
fn fifty_callers_of_a_slow_token_get_fresh_seals_or_are_told_that_nothing_was_sent() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    let slow = Slow::before(&token, &[]);
    let uri = token.uri_through(&slow.module, "token=seals;object=qseal");
    let yaml = token.config(bank.address, &uri, "limits: { waiting_seals: 30 }\n");
    let proxy = start(&yaml, &[]);
    assert_eq!(get(proxy.address).status, 200);
    slow.takes(100);
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..50).map(|_| scope.spawn(|| get(proxy.address))).collect();
        callers.into_iter().map(|caller| caller.join().expect("no panic")).collect()
    });
    let sealed = answers.iter().filter(|answer| answer.status == 200).count();
    assert!((10..=25).contains(&sealed), "ten a second, for two seconds and as long as callers come: {sealed}");
    let refused = answers.iter().filter(|answer| answer.status != 200);
    let mut kinds: Vec<String> = refused
        .map(|answer| {
            assert_eq!((answer.status, &*answer.outcome()), (503, "not_sent"), "{answer:?}");
            assert!(answer.header("retry-after").is_some());
            let limits = [
                "30 signatures wait for this key already, as many as `limits.waiting_seals`",
                "the end of `timeouts.seal`",
            ];
            assert!(limits.iter().any(|limit| answer.body.contains(limit)), "{}", answer.body);
            answer.problem()
        })
        .collect();
    kinds.dedup();
    assert_eq!(kinds, ["seal-busy"], "who may not wait, and who would wait too long");
    no_date_is_old(&bank);
    bank.received().iter().for_each(|request| openssl_verifies(&request.head, &request.body));
    assert_eq!(bank.received().len(), sealed + 1);
}

/// What callers were told who ask for `seconds`, each again as soon as he is answered, or a moment after he was
/// refused: when the answer came, how long it took, and itself.
fn closed_loop(address: SocketAddr, callers: usize, seconds: u64) -> Vec<(Duration, Duration, Answer)> {
    let start = Instant::now();
    let call = move || {
        let mut told = Vec::new();
        while start.elapsed() < Duration::from_secs(seconds) {
            let began = Instant::now();
            let answer = get(address);
            if answer.status != 200 {
                std::thread::sleep(Duration::from_millis(100));
            }
            told.push((start.elapsed(), began.elapsed(), answer));
        }
        told
    };
    let callers: Vec<_> = (0..callers).map(|_| std::thread::spawn(call)).collect();
    callers.into_iter().flat_map(|caller| caller.join().expect("no panic")).collect()
}

#[test]
fn more_callers_than_a_token_can_serve_get_all_that_it_can() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    let slow = Slow::before(&token, &[]);
    let uri = token.uri_through(&slow.module, "token=seals;object=qseal");
    let proxy = start(&token.config(bank.address, &uri, ""), &[]);
    assert_eq!(get(proxy.address).status, 200);
    slow.takes(100);
    let told = closed_loop(proxy.address, 50, 10);
    let (sealed, refused): (Vec<_>, Vec<_>) = told.iter().partition(|(_, _, answer)| answer.status == 200);
    for second in [2, 4, 6, 8] {
        let is_in = |at: &Duration| (second..second + 2).contains(&at.as_secs());
        let made = sealed.iter().filter(|(at, ..)| is_in(at)).count();
        eprintln!("{made} seals in the seconds {second} and {}", second + 1);
        assert!(made >= 12, "of the twenty that the token can make on a machine with nothing else to do: {made}");
    }
    let made = sealed.iter().filter(|(at, ..)| (2..10).contains(&at.as_secs())).count();
    assert!(made >= 64, "of eighty: {made}");
    for (_, _, answer) in &refused {
        assert_eq!((answer.status, &*answer.outcome()), (503, "not_sent"), "{answer:?}");
        assert!(answer.header("retry-after").is_some());
    }
    let late = refused.iter().filter(|(at, took, _)| at.as_secs() >= 2 && *took > Duration::from_secs(1)).count();
    assert!(late * 20 < refused.len(), "{late} of {} waited in vain", refused.len());
    slow.takes(0);
    assert_eq!(get(proxy.address).status, 200);
}

/// As the bank sees it.
fn no_date_is_old(bank: &FakeBank) {
    for request in bank.received() {
        let date = httpdate::parse_http_date(header(&request.head, "date").expect("a date")).expect("a date");
        let age = request.at.duration_since(date).unwrap_or_default();
        assert!(age <= Duration::from_secs(2), "{age:?}, cut to whole seconds");
    }
}

#[test]
fn a_token_that_takes_longer_than_a_date_may_be_old_sends_nothing() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    let slow = Slow::before(&token, &[]);
    let uri = token.uri_through(&slow.module, "token=seals;object=qseal");
    let proxy = start(&token.config(bank.address, &uri, "timeouts: { seal: 10s }\n"), &[]);
    assert_eq!(get(proxy.address).status, 200);
    slow.takes(2500);
    let answer = get(proxy.address);
    assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (503, "seal-timeout", "not_sent"));
    assert!(answer.body.contains("took too long for the `Date`"), "{}", answer.body);
    assert!(answer.header("retry-after").is_some());
    assert_eq!(bank.received().len(), 1);
    slow.takes(0);
    assert_eq!(get(proxy.address).status, 200);
    no_date_is_old(&bank);
}

/// Four at a time would take two seconds each, and no seal would be fresh.
#[test]
fn a_token_that_makes_two_seals_a_second_one_after_the_other_makes_fresh_ones() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    let slow = Slow::before(&token, &[]);
    let uri = token.uri_through(&slow.module, "token=seals;object=qseal");
    let proxy = start(&token.config(bank.address, &uri, ""), &[]);
    assert_eq!(get(proxy.address).status, 200);
    slow.takes(500);
    let told = closed_loop(proxy.address, 6, 12);
    let sealed = |(at, _, answer): &&(Duration, Duration, Answer)| at.as_secs() >= 4 && answer.status == 200;
    let made = told.iter().filter(sealed).count();
    eprintln!("{made} seals in eight seconds");
    assert!(made >= 13, "of the sixteen that the token can make: {made}");
    assert!(told.iter().all(|(_, _, answer)| answer.status == 200 || answer.outcome() == "not_sent"));
    no_date_is_old(&bank);
}

#[test]
fn whoever_leaves_before_the_seal_is_made_leaves_the_connection_to_the_next() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    let slow = Slow::before(&token, &[]);
    let uri = token.uri_through(&slow.module, "token=seals;object=qseal");
    // Whoever comes before it is back waits for it.
    let yaml = file_config(bank.address, "    connections: 1\n", "");
    let rig = Rig::start(&with_key(&yaml, "qsealc.key", &uri));
    assert_eq!(get(rig.address()).status, 200);
    slow.takes(1500);
    let under_way = |count: usize| {
        let line = format!("sealproxy_upstream_in_flight{{upstream=\"bank\"}} {count}");
        until("it is under way, or no more", Duration::from_secs(10), || rig.metrics().contains(&line));
    };
    let mut hasty = TcpStream::connect(rig.address()).expect("connected");
    write!(hasty, "GET {ACCOUNTS} HTTP/1.1\r\nHost: {}\r\n\r\n", rig.address()).expect("written");
    under_way(1);
    drop(hasty);
    under_way(0);
    slow.takes(0);
    assert_eq!(get(rig.address()).status, 200);
    assert_eq!((bank.received().len(), bank.connections()), (2, 1));
}

#[test]
fn a_wrong_signature_of_a_token_stays_here() {
    let Some(token) = SoftHsm::new() else { return };
    let bank = FakeBank::good();
    let slow = Slow::before(&token, &[]);
    let uri = token.uri_through(&slow.module, "token=seals;object=qseal");
    let rig = Rig::start(&token.config(bank.address, &uri, ""));
    assert_eq!(get(rig.address()).status, 200);
    slow.errs();
    let answer = get(rig.address());
    assert_eq!((answer.status, &*answer.problem(), &*answer.outcome()), (503, "seal-unavailable", "not_sent"));
    assert!(answer.header("retry-after").is_some());
    let line = rig.log.wait(2).pop().expect("two lines");
    assert!(line["cause"].as_str().expect("a cause").contains("the certificate does not verify it"), "{line}");
    assert_eq!(bank.received().len(), 1);
    slow.takes(0);
    assert_eq!(get(rig.address()).status, 200);
}

/// Two banks, one of them reached with a key on a token that is slow, and then hangs.
struct Neighbours {
    proxy: Started,
    slow: Slow,
}

impl Neighbours {
    /// `key`: the file in whose place the token's key is, and its label.
    fn start(token: &SoftHsm, needy: &FakeBank, other: &FakeBank, (file, label): (&str, &str), top: &str) -> Self {
        let slow = Slow::before(token, &[]);
        let uri = token.uri_through(&slow.module, &format!("token=seals;object={label}"));
        let path = |name: &str| kit().path(name).display().to_string();
        let yaml = with_key(&file_config(needy.address, "", top), file, &uri)
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
                    "  other:\n    url: https://localhost:{}\n    environment: sandbox\n    identity: second\n    profile: becm\n    \
                     trust: {}\n    private: true\nroutes:\n  \
                     - {{ path: /sandbox/cic/stet-psd2-api/, upstream: other, methods: [GET] }}\n",
                    other.address.port(),
                    path("ca.pem")
                ),
            );
        Self { proxy: start(&yaml, &[]), slow }
    }

    /// Of requests to the bank that needs no token.
    fn p99(&self) -> Duration {
        let mut took: Vec<Duration> = (0..100).map(|_| self.quick()).collect();
        took.sort();
        took[98]
    }

    fn quick(&self) -> Duration {
        let address = self.proxy.address;
        let mut stream = TcpStream::connect(address).expect("it listens");
        let began = Instant::now();
        write!(
            stream,
            "GET /sandbox/cic/stet-psd2-api/v2.1/accounts HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )
        .expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        began.elapsed()
    }

    /// With so many callers of the bank that needs the token at a time, each asking again and again for three seconds:
    /// the p99 of the others before and meanwhile, and what these callers were answered.
    fn beside(&self, callers: usize, milliseconds: u32) -> (Duration, Duration, Vec<Answer>) {
        let address = self.proxy.address;
        self.p99();
        let quiet = self.p99();
        self.slow.takes(milliseconds);
        let until = Instant::now() + Duration::from_secs(3);
        let ask = move || {
            let mut answers = vec![get(address)];
            while Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
                answers.push(get(address));
            }
            answers
        };
        let needy: Vec<_> = (0..callers).map(|_| std::thread::spawn(ask)).collect();
        std::thread::sleep(Duration::from_millis(300));
        // The best of three, as far as they end while they ask: whoever stood behind the token would stand there each
        // time, and a busy machine does not.
        let first = self.p99();
        let more = std::iter::repeat_with(|| self.p99()).take(2).take_while(|_| Instant::now() < until);
        let loaded = more.fold(first, Duration::min);
        let answers = needy.into_iter().flat_map(|caller| caller.join().expect("no panic")).collect();
        (quiet, loaded, answers)
    }

    /// A thread that hangs in the module does not keep the process.
    fn ends_at_once(mut self) {
        let began = Instant::now();
        assert_eq!(self.proxy.child.terminate_at_once(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
}

/// The floor is what a busy test machine makes of two cores, and half of what a slow token takes for one signature:
/// whoever stood behind it would show.
fn keeps_its_pace(what: &str, quiet: Duration, loaded: Duration) {
    eprintln!("p99 {quiet:?} quiet, {loaded:?} beside {what}");
    assert!(loaded < (2 * quiet).max(quiet + Duration::from_millis(50)), "{what}: {quiet:?} {loaded:?}");
}

#[test]
fn a_token_that_is_slow_or_hangs_stalls_nobody_whose_seals_do_not_need_it() {
    let Some(token) = SoftHsm::new() else { return };
    let (needy, other) = (FakeBank::good(), FakeBank::good());
    let neighbours = Neighbours::start(&token, &needy, &other, ("qsealc.key", "qseal"), "");
    assert_eq!(get(neighbours.proxy.address).status, 200);
    let (quiet, loaded, answers) = neighbours.beside(4, 100);
    keeps_its_pace("a seal key that signs ten times a second", quiet, loaded);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    neighbours.slow.takes(0);
    let (quiet, loaded, answers) = neighbours.beside(20, 60_000);
    keeps_its_pace("a seal key that hangs", quiet, loaded);
    for answer in &answers {
        assert_eq!((answer.status, &*answer.outcome()), (503, "not_sent"), "{answer:?}");
        // By what it took before it hung not all would have been served.
        assert!(["seal-timeout", "seal-busy"].contains(&&*answer.problem()), "{answer:?}");
    }
    assert!(answers.iter().any(|answer| answer.problem() == "seal-timeout"));
    neighbours.ends_at_once();
}
