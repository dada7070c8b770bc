//! A payment is never sent twice, and what its caller is told agrees with what the bank recorded, while the bank cuts
//! connections at every phase.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::{Act, Answer, FakeBank, Rig, keep_alive, next_answer, ok};

const PAYMENTS: &str = "/sandbox/becm/stet-psd2-api/v2.1/payment-requests";

/// Requests in one run; `SEALPROXY_PAYMENTS` asks for more.
fn payments() -> u64 {
    std::env::var("SEALPROXY_PAYMENTS").ok().and_then(|count| count.parse().ok()).unwrap_or(4000)
}

/// What the bank does to the n-th request: mostly it answers, and keeps, closes or resets the connection.
fn act(number: u64) -> Act {
    let whole = ok("{}");
    let cut = |length: usize| whole[..length].to_vec();
    // Multiplied by a large odd number, consecutive requests meet unrelated fates.
    match number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56 {
        0..8 => Act::AnswerAndReset(Vec::new()),
        8..16 => Act::AnswerAndClose(Vec::new()),
        16..24 => Act::AnswerAndReset(cut(9)),
        24..32 => Act::AnswerAndClose(cut(20)),
        32..40 => Act::AnswerAndReset(cut(whole.len() - 1)),
        40..80 => Act::AnswerAndReset(whole),
        80..120 => Act::AnswerAndClose(whole),
        _ => Act::Answer(whole),
    }
}

/// Sends payments on kept-alive connections until none is left; returns each id with what the caller was told.
fn pay(address: SocketAddr, left: &AtomicU64) -> Vec<(String, Told)> {
    let mut told = Vec::new();
    let mut stream = None;
    while let Ok(number) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
        let mut reader = stream.take().unwrap_or_else(|| keep_alive(address));
        let id = format!("payment-{number}");
        let request = format!(
            "POST {PAYMENTS} HTTP/1.1\r\nHost: {address}\r\nX-Request-Id: {id}\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        reader.get_mut().write_all(request.as_bytes()).expect("written");
        match next_answer(&mut reader, &id) {
            Some(answer) => {
                told.push((id, Told::of(&answer)));
                stream = Some(reader);
            }
            None => told.push((id, Told::Cut)),
        }
    }
    told
}

/// What a caller knows of its payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Told {
    Answered,
    /// The head of the bank's answer, and then visibly less than the whole.
    Cut,
    NotSent,
    Unknown,
}

impl Told {
    fn of(answer: &Answer) -> Self {
        match (answer.status, answer.header("sealproxy-outcome")) {
            (200, None) => Self::Answered,
            (502, Some("not_sent")) => Self::NotSent,
            (502, Some("unknown")) => Self::Unknown,
            _ => panic!("{answer:?}"),
        }
    }
}

#[test]
fn no_payment_reaches_the_bank_twice_and_every_outcome_is_true() {
    let count = AtomicU64::new(0);
    let bank = FakeBank::doing(move |_| act(count.fetch_add(1, Ordering::Relaxed)));
    let rig = Rig::before(&bank);
    let left = AtomicU64::new(payments());
    let told: Vec<(String, Told)> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..16).map(|_| scope.spawn(|| pay(rig.address(), &left))).collect();
        callers.into_iter().flat_map(|caller| caller.join().expect("no panic")).collect()
    });
    assert_eq!(told.len() as u64, payments());
    let mut arrived: HashMap<String, u32> = HashMap::new();
    for request in bank.received() {
        *arrived.entry(request.header("x-request-id").expect("an id").to_owned()).or_default() += 1;
    }
    let mut tally: HashMap<Told, u32> = HashMap::new();
    for (id, told) in &told {
        *tally.entry(*told).or_default() += 1;
        match (told, arrived.get(id).copied().unwrap_or(0)) {
            (Told::Answered | Told::Cut, 1) | (Told::NotSent, 0) | (Told::Unknown, 0 | 1) => {}
            (told, times) => panic!("{id} reached the bank {times} times and its caller was told {told:?}"),
        }
    }
    eprintln!("{tally:?}");
    assert!(tally.contains_key(&Told::Unknown) && tally.contains_key(&Told::Cut), "{tally:?}");
    let unknown = tally[&Told::Unknown];
    let lines = rig.log.wait(told.len());
    assert_eq!(lines.iter().filter(|line| line["outcome"] == "unknown").count() as u32, unknown);
}
