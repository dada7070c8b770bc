//! From how many signatures on a call of the library is worth it: timed, when a key is loaded. Must not know keys.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::crypto_mb::LANES;

/// How often each of the two ways is timed when a key is loaded, or for how long: what disturbs one disturbs hardly
/// all.
const TIMINGS: usize = 5;
const TIMED: Duration = Duration::from_millis(10);
/// How often, or for how long, before it is believed that the library is never worth it.
const MOST_TIMINGS: usize = 15;
const MOST_TIMED: Duration = Duration::from_millis(60);

/// From how many signatures on one call that makes eight is the faster way, by the shortest that a call and a signature
/// by itself take. They are timed in turn, so that a slow phase of the machine meets both, and on where it would seem
/// that a call never pays: a key that was mistimed is so until it is loaded anew. A lone signature is never worth a
/// call.
pub(super) fn worth(mut timed: impl FnMut() -> (Duration, Duration)) -> usize {
    let (mut together, mut alone) = (Duration::MAX, Duration::MAX);
    let (mut worth, mut took) = (usize::MAX, Duration::ZERO);
    for timing in 1..=MOST_TIMINGS {
        let (call, signature) = timed();
        took += call + signature;
        (together, alone) = (together.min(call), alone.min(signature));
        worth = usize::try_from(together.as_nanos().div_ceil(alone.as_nanos().max(1))).unwrap_or(usize::MAX);
        let is_enough = if worth <= LANES { timing >= TIMINGS || took >= TIMED } else { took >= MOST_TIMED };
        if timing > 1 && is_enough {
            break;
        }
    }
    worth.max(2)
}

/// What it takes of this thread's own time: a machine that has others to serve meanwhile is no slower for it.
pub(super) fn time<T>(work: impl FnOnce() -> T) -> Duration {
    let began = worked();
    drop(work());
    worked().saturating_sub(began)
}

/// The time that this thread has worked.
pub(super) fn worked() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(time.tv_sec.unsigned_abs(), nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_timed_until_the_machine_was_quiet_enough() {
        let quiet = (900, 300);
        let timed = |disturbed: &[(u64, u64)], usual: (u64, u64)| {
            let mut timings = disturbed.iter().copied().chain(std::iter::repeat(usual));
            let mut count = 0;
            let worth = worth(|| {
                count += 1;
                let (call, signature) = timings.next().expect("endless");
                (Duration::from_micros(call), Duration::from_micros(signature))
            });
            (worth, count)
        };
        assert_eq!(timed(&[], quiet), (3, TIMINGS));
        assert_eq!(timed(&[], (901, 300)), (4, TIMINGS));
        assert_eq!(timed(&[(2700, 300), (1500, 2700), (1500, 300)], quiet), (3, 4), "long enough");
        // Nobody called for the whole of the first round but once.
        assert_eq!(timed(&[(4500, 300); TIMINGS], quiet), (3, TIMINGS + 1));
        assert_eq!(timed(&[], (9000, 1000)), (9, 6), "as with 3072 bits on Zen 4");
        assert_eq!(timed(&[], (2700, 300)), (9, MOST_TIMINGS));
        assert_eq!(timed(&[], (250, 300)), (2, TIMINGS), "who is alone is signed alone");
        // Longer keys are not timed for longer.
        assert_eq!(timed(&[], (8000, 2500)), (4, 2));
        assert_eq!(timed(&[], (22_000, 2500)), (9, 3));
    }
}
