//! Sizes, durations, whole numbers and booleans as people write them. A fault's reason is a predicate: it follows
//! the value.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::finding::Fault;
pub(crate) use crate::proxy::show_size;

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;

/// No deadline is longer: a week.
const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, Fault> {
    text.parse().map_err(|_| Fault::new("is not a boolean").hint("write true or false"))
}

/// A whole number within a range.
pub(super) fn whole(text: &str, range: RangeInclusive<usize>) -> Result<usize, Fault> {
    let number = digits(text).map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    let legal = number.filter(|number| range.contains(number));
    legal.ok_or_else(|| {
        let hint = match number {
            Some(number) if number < *range.start() => format!("write {} or more", range.start()),
            Some(_) => format!("write {} or less", range.end()),
            None => format!("write it in digits alone, {} at most", range.end()),
        };
        Fault::new(format!("is not a whole number from {} to {}", range.start(), range.end())).hint(hint)
    })
}

/// A size within a range: bytes, or a number with its unit, such as `512KiB` or `8MB`.
pub(super) fn size(text: &str, range: RangeInclusive<u64>) -> Result<u64, Fault> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "B" => Some(1),
        "kB" | "KB" => Some(1000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        "KiB" => Some(KIB),
        "MiB" => Some(MIB),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let bytes = digits(number).zip(factor).map(|(number, factor)| number.saturating_mul(factor));
    let Some(bytes) = bytes else {
        return Err(Fault::new("is not a size")
            .hint("write a whole number of bytes, or one with its unit: 512KiB, 8MiB, 1GiB, 8MB"));
    };
    if range.contains(&bytes) {
        return Ok(bytes);
    }
    let (least, most) = (show_size(*range.start()), show_size(*range.end()));
    let hint = if bytes < *range.start() { format!("write {least} or more") } else { format!("write {most} or less") };
    Err(Fault::new(format!("is not between {least} and {most}")).hint(hint))
}

/// A duration above zero.
pub(super) fn duration(text: &str) -> Result<Duration, Fault> {
    let duration = duration_or_zero(text)?;
    if duration.is_zero() {
        return Err(Fault::new("is no time at all").hint("write a duration above zero: every wait has a deadline"));
    }
    Ok(duration)
}

/// A duration: numbers with their units, from the longest to the shortest, such as `250ms`, `10s` or `1m30s`.
pub(super) fn duration_or_zero(text: &str) -> Result<Duration, Fault> {
    const HOW: &str = "write whole numbers with their units: 250ms, 10s, 5m, 1h, 1m30s";
    if digits(text).is_some() {
        return Err(Fault::new("has no unit").hint("add one: `s` for seconds, `ms` for milliseconds, `m` for minutes"));
    }
    let Some(duration) = sum(text) else { return Err(Fault::new("is not a duration").hint(HOW)) };
    if duration > MAX_DURATION {
        return Err(Fault::new("is longer than a week").hint("write 168h or less"));
    }
    Ok(duration)
}

fn sum(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let mut units = UNITS.into_iter();
    let (mut rest, mut milliseconds) = (text, 0_u64);
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let (_, factor) = units.find(|(name, _)| *name == unit)?;
        milliseconds = milliseconds.saturating_add(digits(number)?.saturating_mul(factor));
        rest = tail;
    }
    Some(Duration::from_millis(milliseconds))
}

/// Only digits, `parse` alone would take a sign; a number that is too large to be held is as large as can be.
fn digits(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, milliseconds) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("1h1m1s1ms", 3_661_001),
            ("168h", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(duration_or_zero("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for (text, reason) in [
            ("10", "has no unit"),
            ("0", "has no unit"),
            ("0s", "is no time at all"),
            ("0m0s", "is no time at all"),
            ("s", "is not a duration"),
            ("1.5s", "is not a duration"),
            ("-1s", "is not a duration"),
            ("+1s", "is not a duration"),
            ("10 s", "is not a duration"),
            ("1s1m", "is not a duration"),
            ("1s1s", "is not a duration"),
            ("1d", "is not a duration"),
            ("10S", "is not a duration"),
            ("1m30", "is not a duration"),
            ("99999999999999999999s", "is longer than a week"),
            ("9999999999999999h", "is longer than a week"),
            ("169h", "is longer than a week"),
            ("\u{0661}s", "is not a duration"),
        ] {
            assert_eq!(duration(text).map_err(|fault| fault.reason), Err(reason.to_owned()), "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_numbers_with_units() {
        for (text, bytes) in [
            ("1", 1),
            ("8192", 8192),
            ("8MiB", 8 << 20),
            ("512KiB", 512 << 10),
            ("1GiB", 1 << 30),
            ("8MB", 8_000_000),
            ("8kB", 8000),
            ("8B", 8),
        ] {
            assert_eq!(size(text, 1..=1 << 30), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "8 MiB",
            "8M",
            "8mib",
            "1.5MiB",
            "-1",
            "+1",
            "99999999999GiB",
            "18446744073709551616",
            "0",
            "2GiB",
        ] {
            assert!(size(text, 1..=1 << 30).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_as_they_are_written() {
        for (bytes, shown) in [(8 << 20, "8MiB"), (1536, "1536B"), (1 << 30, "1GiB"), (0, "0B"), (8192, "8KiB")] {
            assert_eq!(show_size(bytes), shown);
        }
    }

    #[test]
    fn whole_numbers_and_booleans_are_read_strictly() {
        assert_eq!(whole("256", 1..=256), Ok(256));
        for text in ["0", "257", "1.0", "-1", "+1", "1e2", " 1", "four"] {
            assert!(whole(text, 1..=256).is_err(), "{text}");
        }
        assert_eq!(boolean("true"), Ok(true));
        for text in ["yes", "1", "True", "on"] {
            assert!(boolean(text).is_err(), "{text}");
        }
    }
}
