//! What the bank can be made to do wrong, how often, and how people write that. Pure: not how it is done.

use std::fmt;
use std::mem::discriminant;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use thiserror::Error;

use super::rules::FAULT;

/// Something that the bank does wrong. Displays as it is written: `NAME` or `NAME:ARGUMENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mishap {
    /// Resets a connection as soon as it is accepted.
    ResetAtAccept,
    /// Resets after the ClientHello.
    ResetInHandshake,
    /// Answers the ClientHello with the TLS alert `access_denied`.
    AlertInHandshake,
    /// Resets once both sides have shaken hands.
    ResetAfterHandshake,
    /// Resets when it has a request's head.
    ResetAfterHead,
    /// Resets when it has half of a request's body.
    ResetInBody,
    /// Answers 503 and closes when it has a request's head.
    EarlyAnswer,
    /// Resets when it has read a request whole.
    ResetAfterRequest,
    /// Closes when it has read a request whole.
    CloseAfterRequest,
    /// Sends the TLS alert `bad_record_mac` when it has read a request whole.
    AlertAfterRequest,
    /// Never answers: resets after this time at the latest.
    Silence(Duration),
    /// Sends something that is not HTTP, and closes.
    Garbage,
    /// Sends half of the answer's head.
    HalfHead(End),
    /// Sends the answer's head and half of its body.
    HalfAnswer(End),
    /// Announces more bytes than it sends, and keeps the connection.
    LongLength,
    /// Announces fewer bytes than it sends, and keeps the connection.
    ShortLength,
    /// Sends the answer's body byte by byte with this pause before each.
    Drip(Duration),
    /// Answers after this time.
    Delay(Duration),
    /// Acts on nothing and answers with this status, in the bank's error format.
    Refusal(StatusCode),
    /// Closes this long after a whole answer that announced nothing of the kind.
    CloseAfterAnswer(Duration),
    /// Resets right after a whole answer.
    ResetAfterAnswer,
    /// Announces with the answer that it closes, and does.
    AnnouncedClose,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// RST.
    Reset,
    /// `close_notify` and FIN.
    Close,
}

/// All of them, each with the argument that it has where none is written.
const KNOWN: [(&str, Mishap); 22] = [
    ("reset-at-accept", Mishap::ResetAtAccept),
    ("reset-in-handshake", Mishap::ResetInHandshake),
    ("alert-in-handshake", Mishap::AlertInHandshake),
    ("reset-after-handshake", Mishap::ResetAfterHandshake),
    ("reset-after-head", Mishap::ResetAfterHead),
    ("reset-in-body", Mishap::ResetInBody),
    ("early-answer", Mishap::EarlyAnswer),
    ("reset-after-request", Mishap::ResetAfterRequest),
    ("close-after-request", Mishap::CloseAfterRequest),
    ("alert-after-request", Mishap::AlertAfterRequest),
    ("silence", Mishap::Silence(LONGEST)),
    ("garbage", Mishap::Garbage),
    ("half-head", Mishap::HalfHead(End::Reset)),
    ("half-answer", Mishap::HalfAnswer(End::Reset)),
    ("long-length", Mishap::LongLength),
    ("short-length", Mishap::ShortLength),
    ("drip", Mishap::Drip(Duration::from_millis(5))),
    ("delay", Mishap::Delay(Duration::from_millis(300))),
    ("refusal", Mishap::Refusal(StatusCode::SERVICE_UNAVAILABLE)),
    ("close-after-answer", Mishap::CloseAfterAnswer(Duration::ZERO)),
    ("reset-after-answer", Mishap::ResetAfterAnswer),
    ("announced-close", Mishap::AnnouncedClose),
];

/// No fault lasts longer.
const LONGEST: Duration = Duration::from_secs(60);

impl Mishap {
    /// The names of all, in the order of a connection's life, separated by commas.
    pub fn names() -> String {
        KNOWN.map(|(name, _)| name).join(", ")
    }

    /// All of them, with the arguments that they have where none is written.
    pub fn all() -> impl Iterator<Item = Self> {
        KNOWN.into_iter().map(|(_, mishap)| mishap)
    }

    /// What a request asks for with `X-Sandbox-Fault`, if it is a fault of this kind.
    pub(super) fn asked(headers: &HeaderMap) -> Option<Self> {
        let mishap: Self = headers.get(FAULT)?.to_str().ok()?.parse().ok()?;
        (!mishap.befalls_connections()).then_some(mishap)
    }

    /// Whether it happens before there is a request.
    pub fn befalls_connections(self) -> bool {
        matches!(
            self,
            Self::ResetAtAccept | Self::ResetInHandshake | Self::AlertInHandshake | Self::ResetAfterHandshake
        )
    }

    fn name(self) -> &'static str {
        let known = KNOWN.iter().find(|(_, known)| discriminant(known) == discriminant(&self));
        known.expect("the table has every variant").0
    }

    fn with(self, argument: &str) -> Option<Self> {
        match self {
            Self::Silence(_) => duration(argument).map(Self::Silence),
            Self::Drip(_) => duration(argument).map(Self::Drip),
            Self::Delay(_) => duration(argument).map(Self::Delay),
            Self::CloseAfterAnswer(_) => duration(argument).map(Self::CloseAfterAnswer),
            Self::HalfHead(_) => end(argument).map(Self::HalfHead),
            Self::HalfAnswer(_) => end(argument).map(Self::HalfAnswer),
            Self::Refusal(_) => status(argument).map(Self::Refusal),
            _ => None,
        }
    }

    /// What may follow the colon.
    fn arguments(self) -> &'static str {
        match self {
            Self::Silence(_) | Self::Drip(_) | Self::Delay(_) | Self::CloseAfterAnswer(_) => {
                "a duration of at most a minute, such as 300ms or 2s"
            }
            Self::HalfHead(_) | Self::HalfAnswer(_) => "reset or close",
            Self::Refusal(_) => "429, 500 or 503",
            _ => "no argument",
        }
    }
}

impl fmt::Display for Mishap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Silence(time) | Self::Drip(time) | Self::Delay(time) | Self::CloseAfterAnswer(time) => {
                write!(f, ":{}ms", time.as_millis())
            }
            Self::HalfHead(End::Reset) | Self::HalfAnswer(End::Reset) => f.write_str(":reset"),
            Self::HalfHead(End::Close) | Self::HalfAnswer(End::Close) => f.write_str(":close"),
            Self::Refusal(status) => write!(f, ":{}", status.as_u16()),
            _ => Ok(()),
        }
    }
}

impl FromStr for Mishap {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, argument) =
            text.split_once(':').map_or((text, None), |(name, argument)| (name, Some(argument.trim())));
        let known = KNOWN.iter().find(|(known, _)| *known == name);
        let (name, mishap) = *known.ok_or_else(|| Error::Unknown(name.to_owned()))?;
        let Some(argument) = argument else { return Ok(mishap) };
        let arguments = mishap.arguments();
        mishap.with(argument).ok_or_else(|| Error::Argument { name, arguments, argument: argument.to_owned() })
    }
}

/// Milliseconds or seconds, up to [`LONGEST`].
fn duration(text: &str) -> Option<Duration> {
    let (number, factor) = match text.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (text.strip_suffix('s')?, 1000),
    };
    let duration = Duration::from_millis(digits(number)?.checked_mul(factor)?);
    (duration <= LONGEST).then_some(duration)
}

fn end(text: &str) -> Option<End> {
    match text {
        "reset" => Some(End::Reset),
        "close" => Some(End::Close),
        _ => None,
    }
}

fn status(text: &str) -> Option<StatusCode> {
    let known = [StatusCode::TOO_MANY_REQUESTS, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE];
    known.into_iter().find(|status| status.as_str() == text)
}

/// Only digits: `parse` alone would take a sign.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Which share of the connections, and of the requests, meets which fault. By default none does.
///
/// The n-th connection and the n-th request meet the same fate in every run with the same seed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    chances: Vec<(Mishap, Chance)>,
    seed: u64,
}

impl Faults {
    /// What befalls the connection of this number.
    pub(super) fn of_connection(&self, number: u64) -> Option<Mishap> {
        self.draw(CONNECTIONS, number)
    }

    /// What befalls the request of this number.
    pub(super) fn of_request(&self, number: u64) -> Option<Mishap> {
        self.draw(REQUESTS, number)
    }

    fn draw(&self, of: bool, number: u64) -> Option<Mishap> {
        let hash = scattered(scattered(self.seed.wrapping_mul(2) + u64::from(of)).wrapping_add(number));
        let mut drawn = hash % u64::from(Chance::CERTAIN.0);
        self.of(of).find_map(|(mishap, chance)| {
            let hit = drawn < u64::from(chance.0);
            drawn = drawn.saturating_sub(chance.0.into());
            hit.then_some(mishap)
        })
    }

    fn of(&self, of: bool) -> impl Iterator<Item = (Mishap, Chance)> {
        self.chances.iter().copied().filter(move |(mishap, _)| mishap.befalls_connections() == of)
    }
}

const CONNECTIONS: bool = true;
const REQUESTS: bool = false;

/// The output function of SplitMix64: neighbours become unrelated.
fn scattered(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

impl FromStr for Faults {
    type Err = Error;

    /// `NAME=CHANCE%` or `NAME=CHANCE%:ARGUMENT`, separated by commas, and at most one `seed=NUMBER`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut faults = Self::default();
        let mut seed = None;
        for item in text.split(',').map(str::trim) {
            let (name, value) = item.split_once('=').ok_or_else(|| Error::Shape(item.to_owned()))?;
            if name == "seed" {
                let number = digits(value).filter(|_| seed.is_none());
                seed = Some(number.ok_or_else(|| Error::Seed(value.to_owned()))?);
                continue;
            }
            let (chance, argument) =
                value.split_once(':').map_or((value, None), |(chance, argument)| (chance, Some(argument)));
            let mishap = argument.map_or_else(|| name.parse(), |argument| format!("{name}:{argument}").parse());
            let mishap: Mishap = mishap?;
            let chance = Chance::parse(chance)
                .ok_or_else(|| Error::Chance { name: mishap.name(), chance: chance.to_owned() })?;
            faults.chances.push((mishap, chance));
        }
        faults.seed = seed.unwrap_or_default();
        for (of, what) in [(CONNECTIONS, "connections"), (REQUESTS, "requests")] {
            if faults.of(of).map(|(_, chance)| u64::from(chance.0)).sum::<u64>() > Chance::CERTAIN.0.into() {
                return Err(Error::TooMuch(what));
            }
        }
        Ok(faults)
    }
}

/// In millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chance(u32);

impl Chance {
    const CERTAIN: Self = Self(1_000_000);
    const PERCENT: u32 = Self::CERTAIN.0 / 100;
    /// That a ten-thousandth of a percent has.
    const DECIMALS: usize = 4;

    /// `5%`, `0.25%`: up to 100 percent, with up to four decimals.
    fn parse(text: &str) -> Option<Self> {
        let number = text.strip_suffix('%')?;
        let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
        if decimals.len() > Self::DECIMALS {
            return None;
        }
        let whole = u32::try_from(digits(whole)?).ok()?.checked_mul(Self::PERCENT)?;
        let decimals = u32::try_from(digits(&format!("{decimals:0<width$}", width = Self::DECIMALS))?).ok()?;
        let chance = whole.checked_add(decimals)?;
        (chance <= Self::CERTAIN.0).then_some(Self(chance))
    }
}

/// Why a text names no faults.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// A name that is none.
    #[error("{0:?} is no fault; the faults are {names}", names = Mishap::names())]
    Unknown(String),
    /// An argument that the fault does not take.
    #[error("{name} takes {arguments}, and not {argument:?}")]
    Argument {
        /// The fault.
        name: &'static str,
        /// What it takes.
        arguments: &'static str,
        /// What was written.
        argument: String,
    },
    /// Something between two commas.
    #[error("{0:?} is not NAME=CHANCE, such as garbage=2% or delay=1%:300ms, and not seed=NUMBER")]
    Shape(String),
    /// A chance that is none.
    #[error("the chance of {name} is {chance:?}, and not a percentage up to 100%, such as 5% or 0.25%")]
    Chance {
        /// The fault.
        name: &'static str,
        /// What was written.
        chance: String,
    },
    /// More than certain.
    #[error("the chances of what befalls {0} add up to more than 100%")]
    TooMuch(&'static str),
    /// A seed that is none.
    #[error("the seed is {0:?}, and not one whole number, written once")]
    Seed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Faults {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str) -> String {
        text.parse::<Faults>().expect_err(text).to_string()
    }

    #[test]
    fn a_list_of_faults_is_chances_arguments_and_a_seed() {
        let faults = parsed("reset-after-request=5%, delay=2.5%:2s,half-answer=0.0001%:close,refusal=1%:429,seed=7");
        assert_eq!(faults.seed, 7);
        assert_eq!(
            faults.chances,
            [
                (Mishap::ResetAfterRequest, Chance(50_000)),
                (Mishap::Delay(Duration::from_secs(2)), Chance(25_000)),
                (Mishap::HalfAnswer(End::Close), Chance(1)),
                (Mishap::Refusal(StatusCode::TOO_MANY_REQUESTS), Chance(10_000)),
            ]
        );
        assert_eq!(parsed("garbage=100%,reset-at-accept=100%").seed, 0);
    }

    #[test]
    fn what_is_wrong_with_a_list_is_said() {
        let unknown = refused("reset=5%");
        assert!(unknown.starts_with("\"reset\" is no fault; the faults are reset-at-accept, reset-in-h"), "{unknown}");
        for (text, message) in [
            ("", "\"\" is not NAME=CHANCE, such as garbage=2% or delay=1%:300ms, and not seed=NUMBER"),
            ("garbage", "\"garbage\" is not NAME=CHANCE, such as garbage=2% or delay=1%:300ms, and not seed=NUMBER"),
            ("garbage=1%,", "\"\" is not NAME=CHANCE, such as garbage=2% or delay=1%:300ms, and not seed=NUMBER"),
            ("garbage=1%:now", "garbage takes no argument, and not \"now\""),
            ("delay=1%:300", "delay takes a duration of at most a minute, such as 300ms or 2s, and not \"300\""),
            ("half-head=1%:fin", "half-head takes reset or close, and not \"fin\""),
            ("refusal=1%:404", "refusal takes 429, 500 or 503, and not \"404\""),
            ("seed=x", "the seed is \"x\", and not one whole number, written once"),
            ("seed=1,seed=2", "the seed is \"2\", and not one whole number, written once"),
            ("garbage=60%,half-head=40.1%", "the chances of what befalls requests add up to more than 100%"),
            (
                "reset-at-accept=60%,reset-in-handshake=60%",
                "the chances of what befalls connections add up to more than 100%",
            ),
        ] {
            assert_eq!(refused(text), message, "{text}");
        }
        for chance in ["5", "101%", "-1%", "+1%", "1.00000%", "%", "5%%", ".%", "1e1%", "100.0001%", "99999999999%"] {
            let message = refused(&format!("garbage={chance}"));
            assert!(message.starts_with(&format!("the chance of garbage is {chance:?}, and not a ")), "{message}");
        }
        for time in ["61s", "60001ms", "1m", "s", "-1s", "18446744073709551616ms", "18446744073709551615s"] {
            assert!(refused(&format!("silence=1%:{time}")).starts_with("silence takes a duration"), "{time}");
        }
    }

    #[test]
    fn every_fault_reads_as_it_is_written() {
        for mishap in Mishap::all() {
            assert_eq!(mishap.to_string().parse(), Ok(mishap));
            assert_eq!(mishap.name().parse(), Ok(mishap));
        }
    }

    #[test]
    fn fates_follow_from_the_seed_and_come_as_often_as_asked() {
        let fates = |seed| {
            let faults = parsed(&format!("garbage=10%,half-head=1%,reset-at-accept=50%,seed={seed}"));
            (0..100_000).map(|number| faults.of_request(number)).collect::<Vec<_>>()
        };
        let drawn = fates(7);
        assert_eq!(drawn, fates(7));
        assert_ne!(drawn, fates(8));
        let count = |wanted| drawn.iter().filter(|drawn| **drawn == Some(wanted)).count();
        assert!((9_500..10_500).contains(&count(Mishap::Garbage)), "{}", count(Mishap::Garbage));
        let half = count(Mishap::HalfHead(End::Reset));
        assert!((850..1_150).contains(&half), "{half}");
        assert_eq!(count(Mishap::ResetAtAccept), 0);
        assert!((0..1000).all(|number| Faults::default().of_request(number).is_none()));
        assert!((0..1000).all(|number| parsed("garbage=100%").of_request(number).is_some()));
        assert!((0..1000).all(|number| parsed("garbage=100%").of_connection(number).is_none()));
    }
}
