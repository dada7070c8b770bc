//! RSA keys in memory that sign up to eight messages in one call of Intel's Cryptography Primitives Library
//! (`crypto_mb`), where the CPU has AVX-512 IFMA. What is alone, and what the library cannot do, aws-lc signs.
//!
//! No timers: what a reactor is asked to sign is gathered until eight are there or until its event loop brings nothing
//! more. A reactor that has other work for longer than that is worth lets each sign by itself, because whoever waits
//! for others also waits for all that is in between. Every signature is checked with the public key before it leaves:
//! one that was made by the Chinese remainder theorem with a fault in it may reveal the key (Boneh, DeMillo, Lipton
//! 1997). After the first that fails, aws-lc signs everything.

use std::cell::RefCell;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use rustls::pki_types::PrivateKeyDer;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use zeroize::Zeroizing;

use super::{Error, aws_lc};

mod crypto_mb;
mod parts;
mod record;
mod worth;

use crypto_mb::{LANES, Lane, run};
use parts::{Parts, encoded};
use record::Record;
use worth::{time, worked, worth};

/// The longest that a thread may work on other things while some wait to be signed: more than eight requests take, far
/// less than the end of a handshake with a key of 4096 bits. What is saved by gathering is a millisecond or two.
const OPEN: Duration = Duration::from_millis(4);
/// For how long a thread that was late twice within as long lets each sign by itself. Once may be an accident: a
/// machine that runs others meanwhile counts their time as ours.
const APART: Duration = Duration::from_secs(1);

/// A key that aws-lc signs with, and what the library needs of it.
pub(super) struct Key {
    scalar: aws_lc::Key,
    /// `Err`: why the library does not sign with it, in words.
    together: Result<Together, &'static str>,
    /// The process's, because a fault makes the CPU suspect.
    record: &'static Record,
}

/// A signature on its way.
pub(super) type Answer = oneshot::Receiver<Result<Vec<u8>, Error>>;

/// A signature: made at once, or on its way with others.
pub(super) enum Signed {
    Now(Result<Vec<u8>, Error>),
    Together(Answer),
}

impl Key {
    /// `None` for a key that is not RSA: another backend's turn.
    pub(super) fn from_der(der: &PrivateKeyDer<'_>) -> Result<Option<Self>, Error> {
        let Some(scalar) = aws_lc::Key::from_der(der)? else { return Ok(None) };
        let together = Parts::of(der).and_then(|parts| Together::tried(parts, &scalar, &RECORD));
        Ok(Some(Self { scalar, together, record: &RECORD }))
    }

    /// Why it signs one message at a time; `None`: it does not.
    pub(super) fn alone(&self) -> Option<&'static str> {
        match &self.together {
            Err(reason) => Some(reason),
            Ok(together) if together.worth > LANES => {
                Some("one by one is faster with a key of this length on this CPU")
            }
            Ok(_) if self.record.is_faulty() => Some(WRONG),
            Ok(_) => None,
        }
    }

    /// Signs by itself, at once.
    pub(super) fn sign_alone(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.record.of_size(1).inc();
        self.scalar.sign(message)
    }

    /// Signs, on a thread that gathers with others that want to.
    pub(super) fn sign(self: &Arc<Self>, message: &[u8]) -> Signed {
        if self.alone().is_some() {
            return Signed::Now(self.sign_alone(message));
        }
        let gathered = GATHERED.with_borrow_mut(|gathered| gathered.as_mut()?.gather(self, message));
        let Some((signature, is_first)) = gathered else { return Signed::Now(self.sign_alone(message)) };
        // With nothing borrowed: a runtime that is about to end drops the task at once.
        if is_first {
            tokio::spawn(sign_when_quiet(Watch));
        }
        Signed::Together(signature)
    }
}

/// What the library needs of a key, and when it is called.
struct Together {
    parts: Parts,
    /// From how many on signatures are made together. One call takes as long as 3.0 signatures of aws-lc with 2048 bits
    /// on a Xeon of 2023 (Sapphire Rapids), and as 4 on an EPYC of 2023 (Zen 4); there it takes as long as 9 with 3072
    /// and 4096 bits, and never pays (`benches/seal.rs`). So it is timed when the key is loaded.
    worth: usize,
}

impl Together {
    /// Of a key whose numbers are seen to sign as aws-lc does, with the time that it takes. aws-lc has checked that the
    /// numbers belong together: what is wrong then is a fault.
    fn tried(parts: Parts, scalar: &aws_lc::Key, record: &Record) -> Result<Self, &'static str> {
        const MESSAGE: &[u8] = b"sealproxy: is this signature that of aws-lc?";
        let encoded = encoded(MESSAGE, parts.len());
        let expected = scalar.sign(MESSAGE).map_err(|_| "aws-lc does not sign with this key")?;
        let mut work = Zeroizing::default();
        let mut is_right = || {
            let made = run(&[Lane { parts: &parts, encoded: &encoded }], &mut work);
            made.is_some_and(|made| made[0] == expected)
        };
        let mut all = is_right();
        let worth = worth(|| (time(|| all &= is_right()), time(|| scalar.sign(MESSAGE))));
        if !all {
            record.fault();
            return Err(WRONG);
        }
        Ok(Self { parts, worth })
    }
}

/// Lets this thread, which runs a current-thread runtime and nothing else, sign what comes in at a time together.
pub(super) fn gather_here() {
    GATHERED.set(Some(Gathered::default()));
}

/// What was signed together, and what went wrong with it.
pub(super) fn collectors() -> Vec<Box<dyn Collector>> {
    RECORD.collectors()
}

thread_local! {
    static GATHERED: RefCell<Option<Gathered>> = const { RefCell::new(None) };
}

static RECORD: LazyLock<Record> = LazyLock::new(Record::new);

const WRONG: &str = "a signature that the library made was wrong";

/// What waits to be signed on one thread.
#[derive(Default)]
struct Gathered {
    waiting: Vec<Job>,
    /// Counts all that came.
    came: u64,
    /// Whether a task waits for the event loop to bring nothing more.
    is_watched: bool,
    /// When the first of those came that wait.
    began: Option<Moment>,
    /// When the thread was last long in getting back to those who wait.
    late: Option<Instant>,
    /// Until when each signs by itself, because the thread has much else to do.
    apart: Option<Instant>,
    /// The library's own memory, which holds keys while it works.
    work: Zeroizing<Vec<u64>>,
}

/// A moment by the clock, and by the time that this thread has worked: what other processes take from it counts as
/// nobody's.
struct Moment {
    at: Instant,
    worked: Duration,
}

impl Moment {
    fn now() -> Self {
        Self { at: Instant::now(), worked: worked() }
    }

    /// Whether the thread has worked for longer than that since. The clock alone is cheaper to ask.
    fn is_past(&self, limit: Duration) -> bool {
        self.at.elapsed() > limit && worked().saturating_sub(self.worked) > limit
    }
}

struct Job {
    key: Arc<Key>,
    message: Vec<u8>,
    answer: oneshot::Sender<Result<Vec<u8>, Error>>,
}

/// Waits while each turn of the event loop, its sockets included, brings more.
async fn sign_when_quiet(watch: Watch) {
    let look = || GATHERED.with_borrow(|gathered| gathered.as_ref().map_or(0, |gathered| gathered.came));
    let mut before = look();
    loop {
        yield_now().await;
        let now = look();
        if now == before || GATHERED.with_borrow(|gathered| gathered.as_ref().is_none_or(Gathered::is_held_up)) {
            break;
        }
        before = now;
    }
    GATHERED.with_borrow_mut(|gathered| gathered.as_mut().map(Gathered::close));
    drop(watch);
}

/// A task that waits for the event loop to bring nothing more. However it ends, the next one who comes finds that there
/// is none, and whoever waits still is told that nothing will come: a runtime may end before it.
struct Watch;

impl Drop for Watch {
    fn drop(&mut self) {
        // A thread that ends signs nothing any more.
        let _ = GATHERED.try_with(|gathered| {
            if let Ok(mut gathered) = gathered.try_borrow_mut()
                && let Some(gathered) = gathered.as_mut()
            {
                gathered.is_watched = false;
                gathered.waiting.clear();
            }
        });
    }
}

impl Gathered {
    /// Takes a message in, and signs all that waits if that is enough. Says whether somebody is to watch from here on.
    /// `None`: sign it by itself.
    fn gather(&mut self, key: &Arc<Key>, message: &[u8]) -> Option<(Answer, bool)> {
        if self.apart.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let (answer, signature) = oneshot::channel();
        self.began.get_or_insert_with(Moment::now);
        self.waiting.push(Job { key: Arc::clone(key), message: message.to_vec(), answer });
        self.came += 1;
        if self.waiting.len() < LANES && !self.is_held_up() {
            return Some((signature, !std::mem::replace(&mut self.is_watched, true)));
        }
        self.close();
        Some((signature, false))
    }

    /// Whether the thread does other things while some wait.
    fn is_held_up(&self) -> bool {
        self.began.as_ref().is_some_and(|began| began.is_past(OPEN))
    }

    /// Signs all that waits. Where the thread was long in getting here, and before it too, the next ones do not wait
    /// for each other.
    fn close(&mut self) {
        // Somebody else has signed it.
        if self.waiting.is_empty() {
            return;
        }
        if self.is_held_up() {
            let now = Instant::now();
            if self.late.replace(now).is_some_and(|last| now - last < APART) {
                self.apart = Some(now + APART);
            }
        }
        self.sign();
    }

    fn sign(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        self.began = None;
        // Nobody waits for it any more.
        waiting.retain(|job| !job.answer.is_closed());
        while let Some(first) = waiting.first() {
            let bits = first.bits();
            let (same, others): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|job| job.bits() == bits);
            waiting = others;
            self.sign_alike(same);
        }
    }

    /// Signs with keys of one length.
    fn sign_alike(&mut self, jobs: Vec<Job>) {
        let is_worth_it = jobs.iter().all(|job| job.is_worth_it(jobs.len()));
        let signatures = if is_worth_it { together(&jobs, &mut self.work) } else { None };
        let mut signatures = signatures.unwrap_or_default().into_iter();
        for Job { key, message, answer } in jobs {
            let signature = signatures.next().map_or_else(|| key.sign_alone(&message), Ok);
            // Whoever asked may have gone.
            let _ = answer.send(signature);
        }
    }
}

impl Job {
    fn bits(&self) -> i32 {
        self.key.together.as_ref().map_or(0, |together| together.parts.bits())
    }

    /// Whether it is to be signed together with others, `count` in all.
    fn is_worth_it(&self, count: usize) -> bool {
        self.key.alone().is_none() && self.key.together.as_ref().is_ok_and(|together| together.worth <= count)
    }
}

/// The signatures of some jobs, all with keys of one length, each checked. `None`: sign them otherwise.
fn together(jobs: &[Job], work: &mut Zeroizing<Vec<u64>>) -> Option<Vec<Vec<u8>>> {
    let parts: Vec<&Parts> = jobs.iter().filter_map(|job| Some(&job.key.together.as_ref().ok()?.parts)).collect();
    let messages: Vec<_> = jobs.iter().zip(&parts).map(|(job, parts)| encoded(&job.message, parts.len())).collect();
    let lanes: Vec<_> = parts.iter().zip(&messages).map(|(parts, encoded)| Lane { parts, encoded }).collect();
    let made = run(&lanes, work);
    let record = jobs.first()?.key.record;
    match made {
        Some(_) => record.of_size(jobs.len()).inc(),
        None => record.fault(),
    }
    made
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;

    use aws_lc_rs::encoding::AsDer as _;
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use rustls::pki_types::{PrivatePkcs1KeyDer, PrivatePkcs8KeyDer};
    use tokio::runtime::{Builder, Runtime};

    use super::crypto_mb::is_applicable;
    use super::*;

    fn der(size: KeySize) -> PrivateKeyDer<'static> {
        let pair = KeyPair::generate(size).expect("a key");
        let pkcs8 = pair.as_der().expect("PKCS#8");
        PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec()).into()
    }

    /// With a record of its own.
    fn key(der: &PrivateKeyDer<'_>) -> Key {
        key_with(Box::leak(Box::new(Record::new())), der)
    }

    fn key_with(record: &'static Record, der: &PrivateKeyDer<'_>) -> Key {
        let mut key = Key::from_der(der).expect("taken").expect("RSA");
        // Whatever pays on the machine at hand.
        if let Ok(together) = &mut key.together {
            together.worth = 4;
        }
        Key { record, ..key }
    }

    fn edge(name: &str) -> PrivateKeyDer<'static> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/rsa").join(name);
        PrivatePkcs1KeyDer::from(std::fs::read(file).expect("the vector")).into()
    }

    /// Whether this machine can do it at all; says so where it cannot.
    fn can() -> bool {
        let can = is_x86_feature_detected!("avx512ifma") && is_applicable();
        if !can {
            // Past what the test harness keeps to itself.
            let _ = writeln!(std::io::stderr(), "SKIPPED: this CPU has no AVX-512 IFMA: nothing is signed together");
        }
        can
    }

    fn reactor() -> Runtime {
        gather_here();
        Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    /// What each message comes to when all are asked for at a time.
    fn all(runtime: &Runtime, keys: &[Arc<Key>], messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
        runtime.block_on(async {
            let keys = keys.iter().cycle();
            let asked: Vec<_> = messages
                .iter()
                .zip(keys)
                .map(|(message, key)| {
                    let (key, message) = (Arc::clone(key), message.clone());
                    tokio::spawn(async move {
                        match key.sign(&message) {
                            Signed::Now(signature) => signature,
                            Signed::Together(signature) => signature.await.expect("answered"),
                        }
                    })
                })
                .collect();
            let mut signatures = Vec::new();
            for signature in asked {
                signatures.push(signature.await.expect("no panic").expect("signed"));
            }
            signatures
        })
    }

    fn messages(count: usize, salt: usize) -> Vec<Vec<u8>> {
        (0..count).map(|index| format!("{salt}/{index}").repeat(index % 7).into_bytes()).collect()
    }

    #[test]
    fn every_count_of_every_size_is_signed_as_aws_lc_signs_it() {
        let runtime = reactor();
        for size in [KeySize::Rsa2048, KeySize::Rsa3072, KeySize::Rsa4096] {
            let keys: Vec<_> = (0..3).map(|_| Arc::new(key(&der(size)))).collect();
            assert!(keys.iter().all(|key| key.alone().is_none() == can()));
            for count in [1, 2, 3, 5, 8, 9, 17] {
                let messages = messages(count, count);
                let signatures = all(&runtime, &keys, &messages);
                for ((message, signature), key) in messages.iter().zip(&signatures).zip(keys.iter().cycle()) {
                    assert_eq!(*signature, key.scalar.sign(message).expect("signed"), "{count}");
                    assert!(!key.record.is_faulty());
                }
            }
        }
    }

    /// Keys of several lengths and kinds at a time.
    #[test]
    fn keys_of_all_kinds_are_signed_with_side_by_side() {
        let runtime = reactor();
        let edges = ["exponent-3.der", "short-crt-exponent.der", "smaller-prime-first.der"].map(edge);
        let ders = edges.into_iter().chain([der(KeySize::Rsa2048), der(KeySize::Rsa3072)]);
        let keys: Vec<_> = ders.map(|der| Arc::new(key(&der))).collect();
        let messages = messages(40, 0);
        let signatures = all(&runtime, &keys, &messages);
        for ((message, signature), key) in messages.iter().zip(&signatures).zip(keys.iter().cycle()) {
            assert_eq!(*signature, key.scalar.sign(message).expect("signed"));
        }
    }

    #[test]
    fn keys_that_the_library_cannot_sign_with_say_why() {
        let cannot = "this CPU has no AVX-512 IFMA";
        for (name, reason) in [
            ("exponent-3.der", Some("the key's public exponent is not 65537")),
            ("unequal-primes.der", Some("the key's primes are not of one length")),
            ("short-crt-exponent.der", None),
            ("smaller-prime-first.der", None),
        ] {
            // What aws-lc refuses, nobody signs with.
            let Ok(Some(mut key)) = Key::from_der(&edge(name)) else { continue };
            if let Ok(together) = &mut key.together {
                together.worth = LANES;
            }
            assert_eq!(key.alone(), if can() { reason } else { Some(cannot) }, "{name}");
        }
    }

    /// As a fault in the CPU would: one bit of one number is another one, in each of the parts.
    #[test]
    fn a_wrong_signature_never_leaves_and_ends_the_signing_together() {
        if !can() {
            return;
        }
        let runtime = reactor();
        let der = der(KeySize::Rsa2048);
        for part in 0..5 {
            let mut broken = key(&der);
            broken.together.as_mut().expect("a usual key").parts.damage(part);
            let sound = Arc::new(key_with(broken.record, &der));
            let broken = Arc::new(broken);
            let messages = messages(8, part);
            let signatures = all(&runtime, &[Arc::clone(&sound), Arc::clone(&broken)], &messages);
            for (message, signature) in messages.iter().zip(&signatures) {
                assert_eq!(*signature, sound.scalar.sign(message).expect("signed"), "{part}");
            }
            assert_eq!(broken.record.faults(), 1, "counted, and the last");
            assert_eq!((broken.alone(), sound.alone()), (Some(WRONG), Some(WRONG)), "from now on one by one");
            assert!(matches!(broken.sign(b"next"), Signed::Now(Ok(_))));
        }
    }

    /// As a fault would that strikes when a key is loaded: the library signs with other numbers than aws-lc.
    #[test]
    fn a_wrong_signature_of_a_key_that_is_loaded_ends_the_signing_together() {
        if !can() {
            return;
        }
        let (one, other) = (der(KeySize::Rsa2048), der(KeySize::Rsa2048));
        let scalar = aws_lc::Key::from_der(&one).expect("taken").expect("RSA");
        let record = Record::new();
        assert!(Together::tried(Parts::of(&one).expect("usual"), &scalar, &record).is_ok());
        assert_eq!((record.faults(), record.is_faulty()), (0, false));
        assert_eq!(Together::tried(Parts::of(&other).expect("usual"), &scalar, &record).err(), Some(WRONG));
        assert_eq!((record.faults(), record.is_faulty()), (1, true));
    }

    #[test]
    fn what_does_not_pay_is_signed_one_by_one() {
        if !can() {
            return;
        }
        let mut slow = key(&der(KeySize::Rsa2048));
        slow.together.as_mut().expect("a usual key").worth = LANES + 1;
        assert_eq!(slow.alone(), Some("one by one is faster with a key of this length on this CPU"));
        let _runtime = reactor();
        assert!(matches!(Arc::new(slow).sign(b"message"), Signed::Now(Ok(_))));
    }

    /// One of three would rather have five beside it.
    #[test]
    fn what_does_not_pay_for_one_of_them_is_signed_one_by_one() {
        if !can() {
            return;
        }
        let runtime = reactor();
        let (der, record) = (der(KeySize::Rsa2048), &*Box::leak(Box::new(Record::new())));
        let of_worth = |worth| {
            let mut key = key_with(record, &der);
            key.together.as_mut().expect("a usual key").worth = worth;
            Arc::new(key)
        };
        all(&runtime, &[of_worth(2), of_worth(2), of_worth(5)], &messages(3, 0));
        assert_eq!((record.of_size(1).get(), record.of_size(3).get()), (3, 0));
        all(&runtime, &[of_worth(2), of_worth(2), of_worth(3)], &messages(3, 0));
        assert_eq!((record.of_size(1).get(), record.of_size(3).get()), (3, 1));
    }

    /// Of one gathering the keys of one length are signed with first: what they show holds for the others.
    #[test]
    fn a_fault_ends_the_signing_together_within_one_gathering() {
        if !can() {
            return;
        }
        let runtime = reactor();
        let mut broken = key(&der(KeySize::Rsa2048));
        broken.together.as_mut().expect("a usual key").parts.damage(0);
        let sound = Arc::new(key_with(broken.record, &der(KeySize::Rsa3072)));
        let keys = [Arc::new(broken), Arc::clone(&sound)];
        all(&runtime, &keys, &messages(8, 0));
        assert_eq!(sound.record.faults(), 1);
        assert_eq!((sound.record.of_size(1).get(), sound.record.of_size(4).get()), (8, 0));
    }

    #[test]
    fn what_each_call_made_is_counted_by_what_it_made() {
        if !can() {
            return;
        }
        let runtime = reactor();
        let key = Arc::new(key(&der(KeySize::Rsa2048)));
        for count in [1, 2, 3, 5, 7, 8, 17] {
            all(&runtime, &[Arc::clone(&key)], &messages(count, count));
        }
        let counted: Vec<_> = (1..=LANES).map(|size| key.record.of_size(size).get()).collect();
        // One, two and three are made one by one, and so is the last of seventeen.
        assert_eq!(counted, [7, 0, 0, 0, 1, 0, 1, 3]);
    }

    #[test]
    fn nothing_of_a_key_stays_in_the_memory_that_was_worked_in() {
        if !can() {
            return;
        }
        let parts = Parts::of(&der(KeySize::Rsa2048)).expect("usual");
        let encoded = encoded(b"message", parts.len());
        let mut work = Zeroizing::default();
        run(&[Lane { parts: &parts, encoded: &encoded }], &mut work).expect("signed");
        assert!(work.len() > 1000 && work.iter().all(|word| *word == 0));
    }

    fn work_for(duration: Duration) {
        let began = worked();
        while worked() - began < duration {}
    }

    /// A crowd of handshakes, say: each turn of the event loop takes long, and brings one seal more.
    #[test]
    fn whoever_would_wait_for_other_work_is_signed_by_itself() {
        if !can() {
            return;
        }
        let key = Arc::new(key(&der(KeySize::Rsa2048)));
        let waited = reactor().block_on(async {
            let asked: Vec<_> = (0..10_u8)
                .map(|number| {
                    let key = Arc::clone(&key);
                    tokio::spawn(async move {
                        work_for(OPEN + OPEN / 4);
                        let signed = key.sign(&[number]);
                        let waits = matches!(&signed, Signed::Together(answer) if answer.is_empty());
                        let signature = match signed {
                            Signed::Now(signature) => signature,
                            Signed::Together(signature) => signature.await.expect("answered"),
                        };
                        assert_eq!(signature.expect("signed"), key.scalar.sign(&[number]).expect("signed"));
                        waits
                    })
                })
                .collect();
            let mut waited = Vec::new();
            for one in asked {
                waited.push(one.await.expect("no panic"));
            }
            waited
        });
        // Nobody could know it of the first, and it may have been an accident.
        let some = waited.iter().filter(|waits| **waits).count();
        assert!((1..=2).contains(&some) && !waited[4..].contains(&true), "{waited:?}");
    }

    /// Whoever watches comes last, and finds that others have signed what it watched over.
    #[test]
    fn a_thread_that_is_late_twice_lets_each_sign_by_itself() {
        if !can() {
            return;
        }
        let key = Arc::new(key(&der(KeySize::Rsa2048)));
        let mut gathered = Gathered::default();
        let late = |gathered: &mut Gathered| {
            let first = gathered.gather(&key, b"first").expect("nobody is late yet");
            work_for(OPEN + OPEN / 4);
            let second = gathered.gather(&key, b"second").expect("nobody knows yet");
            assert!([first, second].into_iter().all(|(mut answer, _)| answer.try_recv().is_ok()), "signed at once");
            gathered.close();
        };
        late(&mut gathered);
        // One that is in time in between says nothing of the next.
        drop(gathered.gather(&key, b"in time").expect("once may be an accident"));
        gathered.close();
        late(&mut gathered);
        assert!(gathered.gather(&key, b"third").is_none(), "by itself");
    }

    /// Nobody waits for company that does not come, and nobody gathers where there is no reactor.
    #[test]
    fn whoever_is_alone_is_signed_at_once() {
        let key = Arc::new(key(&der(KeySize::Rsa2048)));
        assert!(matches!(key.sign(b"no reactor"), Signed::Now(Ok(_))));
        // One without timers: who used one would panic, and the test with it.
        gather_here();
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let mut shortest = Duration::MAX;
        for _ in 0..20 {
            let began = Instant::now();
            let signed = all(&runtime, &[Arc::clone(&key)], &[b"alone".to_vec()]);
            shortest = shortest.min(began.elapsed());
            assert_eq!(signed, [key.scalar.sign(b"alone").expect("signed")]);
        }
        // A signature takes less than one.
        assert!(shortest < Duration::from_millis(20), "{shortest:?}");
    }

    /// What was given up is not signed, and holds nobody up. The key's numbers are wrong, which would show if it were:
    /// one by one aws-lc signs, with its own.
    #[test]
    fn requests_that_are_gone_cost_nothing() {
        let mut key = key(&der(KeySize::Rsa2048));
        if let Ok(together) = &mut key.together {
            together.parts.damage(0);
        }
        let key = Arc::new(key);
        reactor().block_on(async {
            drop((0..4).map(|_| key.sign(b"gone")).collect::<Vec<_>>());
            let stays = key.sign(b"stays");
            let signature = match stays {
                Signed::Now(signature) => signature,
                Signed::Together(signature) => signature.await.expect("answered"),
            };
            assert_eq!(signature.expect("signed"), key.scalar.sign(b"stays").expect("signed"));
        });
        assert!(!key.record.is_faulty(), "five were signed together");
    }

    /// Whoever waits is told when nobody will sign any more.
    #[test]
    fn a_watch_that_ends_too_early_leaves_nobody_waiting() {
        let key = Arc::new(key(&der(KeySize::Rsa2048)));
        let waiting = reactor().block_on(async { key.sign(b"message") });
        let Signed::Together(signature) = waiting else { return assert!(!can()) };
        let next = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let told = next.block_on(async { tokio::time::timeout(Duration::from_secs(5), signature).await });
        assert!(told.expect("told").is_err());
    }

    /// A watch that cannot begin keeps nobody waiting who comes later.
    #[test]
    fn where_no_task_can_be_begun_the_next_one_has_its_own_watch() {
        let key = Arc::new(key(&der(KeySize::Rsa2048)));
        gather_here();
        let outside = || drop(key.sign(b"outside of a runtime"));
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(outside)).is_err();
        assert_eq!(panics, can());
        let next = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let signed = next.block_on(async {
            let Signed::Together(signature) = key.sign(b"next") else { return None };
            tokio::time::timeout(Duration::from_secs(5), signature).await.ok()
        });
        assert_eq!(signed.is_some(), can(), "answered");
    }

    /// Eight are signed at once, and whoever watched over them may end with its runtime.
    #[test]
    fn a_watch_that_never_ended_keeps_nobody_waiting() {
        let key = Arc::new(key(&der(KeySize::Rsa2048)));
        all(&reactor(), &[Arc::clone(&key)], &messages(LANES, 0));
        let next = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let signed = next.block_on(async {
            let Signed::Together(signature) = key.sign(b"next") else { return None };
            tokio::time::timeout(Duration::from_secs(5), signature).await.ok()
        });
        assert_eq!(signed.is_some(), can(), "answered");
    }

    /// Three keys of the usual length and one of each other, from one message at a time to two calls full.
    fn compare(signatures: usize) {
        let runtime = reactor();
        let record: &'static Record = Box::leak(Box::new(Record::new()));
        let of = |size| Arc::new(key_with(record, &der(size)));
        let usual: Vec<_> = (0..3).map(|_| of(KeySize::Rsa2048)).collect();
        let (long, longest) = ([of(KeySize::Rsa3072)], [of(KeySize::Rsa4096)]);
        let (mut made, mut batch) = (0, 0);
        while made < signatures {
            let keys: &[Arc<Key>] = match batch % 16 {
                7 => &long,
                15 => &longest,
                _ => &usual,
            };
            let count = 1 + batch * 7 % 17;
            let messages: Vec<_> =
                (0..count).map(|index| format!("{batch}:{index}").repeat(1 + index).into_bytes()).collect();
            let signatures = all(&runtime, keys, &messages);
            for ((message, signature), key) in messages.iter().zip(&signatures).zip(keys.iter().cycle()) {
                assert_eq!(*signature, key.scalar.sign(message).expect("signed"), "{batch}");
            }
            (made, batch) = (made + count, batch + 1);
        }
        assert!(!record.is_faulty());
        let together: u64 = (2..=LANES).map(|size| record.of_size(size).get() * size as u64).sum();
        eprintln!("{together} of {made} were made together");
        assert!(!can() || together * 10 > made as u64 * 8, "{together} of {made} were made together");
    }

    #[test]
    fn a_thousand_signatures_are_those_of_aws_lc() {
        compare(1_000);
    }

    #[test]
    #[ignore = "a quarter of an hour in a release build: cargo test --release --features batch --lib -- --ignored a_million"]
    fn a_million_signatures_are_those_of_aws_lc() {
        compare(1_000_000);
    }
}
