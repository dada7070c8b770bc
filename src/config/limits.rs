//! `limits` and `timeouts`: what the proxy takes at most, and how long it waits.

use std::time::Duration;

use super::finding::Fault;
use super::machine::Machine;
use super::quantity::{KIB, MIB, duration, duration_or_zero, show_size, size, whole};
use super::section::Section;
use crate::proxy::{Limits, Timeouts};
use crate::upstream;

pub(super) const LIMIT_KEYS: [&str; 7] =
    ["body", "buffered", "connections", "in_flight", "header_bytes", "headers", "waiting_seals"];
pub(super) const TIMEOUT_KEYS: [&str; 14] = [
    "header",
    "body",
    "body_total",
    "client_idle",
    "resolve",
    "connect",
    "via",
    "handshake",
    "seal",
    "response",
    "response_frame",
    "exchange",
    "linger",
    "drain",
];
/// Those of `timeouts` that an upstream may have of its own.
pub(super) const UPSTREAM_TIMEOUT_KEYS: [&str; 6] =
    ["resolve", "connect", "via", "handshake", "response", "response_frame"];

/// More than this much memory is never given to request bodies unasked.
const MAX_AUTO_BUFFERED: u64 = 256 * MIB;
/// Beyond any machine: sums of sizes stay far from the end of `u64`.
const MAX_SIZE: u64 = 1 << 40;

/// All limits of the file's `limits`.
pub(super) struct Limited {
    pub(super) proxy: Limits,
    /// Seals that may wait for one key on a token.
    pub(super) waiting_seals: usize,
}

/// Reads `limits`.
pub(super) fn limits(root: &Section<'_>, machine: &Machine) -> Limited {
    let section = root.section("limits", &LIMIT_KEYS);
    let body = section.quantity("body", 8 * MIB, |text| size(text, 1..=MAX_SIZE));
    let header_bytes = section.quantity("header_bytes", 32 * KIB, |text| size(text, 8 * KIB..=MIB));
    let waiting_seals = section.quantity("waiting_seals", 64, |text| whole(text, 0..=100_000));
    let proxy = Limits {
        body,
        buffered: buffered(&section, body, machine),
        connections: section.quantity("connections", 1024, |text| whole(text, 1..=1_000_000)),
        in_flight: section.quantity("in_flight", 512, |text| whole(text, 1..=1_000_000)),
        header_bytes: usize::try_from(header_bytes).expect("a mebibyte fits"),
        headers: section.quantity("headers", 100, |text| whole(text, 1..=1000)),
    };
    Limited { proxy, waiting_seals }
}

/// `auto`: a quarter of the memory that this process may use.
fn buffered(section: &Section<'_>, body: u64, machine: &Machine) -> u64 {
    let auto = machine.memory.map_or(MAX_AUTO_BUFFERED, |memory| (memory / 4).min(MAX_AUTO_BUFFERED));
    let read = |text: &str| if text == "auto" { Ok(None) } else { size(text, 1..=MAX_SIZE).map(Some) };
    let configured = section.quantity("buffered", None, read);
    let buffered = configured.unwrap_or(auto);
    if buffered < body {
        let here = if configured.is_some() { "" } else { " (auto: a quarter of the memory limit of this process)" };
        let fault =
            format!("{}{here} is less than one body of `limits.body`, {}", show_size(buffered), show_size(body));
        let hint = "lower `limits.body`, or raise `limits.buffered`";
        section.report.error("limits.buffered", Fault::new(fault).code("conflict").hint(hint));
    }
    buffered
}

/// All deadlines of the file's `timeouts`.
pub(super) struct Deadlines {
    pub(super) proxy: Timeouts,
    pub(super) upstream: upstream::Timeouts,
    pub(super) linger: Duration,
    pub(super) drain: Duration,
}

/// Reads `timeouts`.
pub(super) fn timeouts(root: &Section<'_>) -> Deadlines {
    let section = root.section("timeouts", &TIMEOUT_KEYS);
    let seconds = |key, default| section.quantity(key, Duration::from_secs(default), duration);
    let proxy = Timeouts {
        header: seconds("header", 10),
        body: seconds("body", 30),
        body_total: seconds("body_total", 300),
        client_idle: seconds("client_idle", 600),
        seal: seconds("seal", 2),
        exchange: seconds("exchange", 600),
    };
    let defaults = upstream::Timeouts {
        resolve: Duration::from_secs(5),
        connect: Duration::from_secs(5),
        via: Duration::from_secs(10),
        handshake: Duration::from_secs(5),
        response: Duration::from_secs(60),
        response_frame: Duration::from_secs(60),
    };
    let linger = section.quantity("linger", Duration::from_secs(5), duration_or_zero);
    let drain = section.quantity("drain", Duration::from_secs(25), duration_or_zero);
    Deadlines { proxy, upstream: upstream_timeouts(&section, defaults), linger, drain }
}

/// Reads the deadlines that concern an upstream, of all or of one.
pub(super) fn upstream_timeouts(section: &Section<'_>, defaults: upstream::Timeouts) -> upstream::Timeouts {
    let read = |key, default| section.quantity(key, default, duration);
    upstream::Timeouts {
        resolve: read("resolve", defaults.resolve),
        connect: read("connect", defaults.connect),
        via: read("via", defaults.via),
        handshake: read("handshake", defaults.handshake),
        response: read("response", defaults.response),
        response_frame: read("response_frame", defaults.response_frame),
    }
}
