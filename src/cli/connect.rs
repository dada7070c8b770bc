//! What `check --connect` says of one bank: the report of a connection, in words.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls::ProtocolVersion;
use rustls::pki_types::CertificateDer;

use crate::causes::in_words;
use crate::config::Finding;
use crate::identity::certificate::{Certificate, Validity, name_in_words};
use crate::upstream::{
    Cause, Clocks, Connected, Failure, Pin, Question, Report, SendError, Session, Settings, TOLERATED_SKEW, Timeouts,
};

/// Who is connected to, and the longest that it may take: the sum of the deadlines of each step.
pub(super) fn announcement(upstream: &str, settings: &Settings) -> String {
    let Timeouts { resolve, connect, via, handshake, response, response_frame: _ } = settings.timeouts;
    let (way, tunnel) = match settings.via {
        Some(_) => (" through the proxy of `via`", via),
        None => ("", Duration::ZERO),
    };
    let longest = resolve + connect + tunnel + handshake + response;
    format!("connecting to {upstream}, https://{}{way}: takes {longest:?} at most, by `timeouts`", settings.origin)
}

/// One line for each thing that is known, in the order in which it became so. An error where requests would not reach
/// the bank.
pub(super) fn findings(file: &Path, upstream: &str, report: &Report, now: SystemTime) -> Vec<Finding> {
    let mut told = Told { file, key: format!("upstreams.{upstream}"), findings: Vec::new() };
    if let Some(connected) = &report.connected {
        told.connected(connected, report);
    }
    if let Some(session) = &report.session {
        told.session(session);
    }
    for (index, der) in report.chain.iter().enumerate() {
        told.certificate(&format!("certificate {} of {}", index + 1, report.chain.len()), der, now);
    }
    match &report.question {
        Some(question) => told.question(question, report.failure.as_ref()),
        None if report.session.is_some() => told.unasked(),
        None => {}
    }
    if let Some(clocks) = &report.clocks {
        told.clocks(clocks);
    }
    if let Some(failure) = &report.failure {
        told.failure(failure);
    }
    told.findings
}

struct Told<'a> {
    file: &'a Path,
    key: String,
    findings: Vec<Finding>,
}

impl Told<'_> {
    fn note(&mut self, code: &'static str, text: impl Into<String>) {
        self.findings.push(Finding::note(self.file, &self.key, text).code(code));
    }

    fn warning(&mut self, code: &'static str, text: impl Into<String>, hint: &str) {
        self.findings.push(Finding::warning(self.file, &self.key, text).hint(hint).code(code));
    }

    fn connected(&mut self, connected: &Connected, report: &Report) {
        let address = connected.address.map_or_else(|| "an address".to_owned(), |address| address.to_string());
        let others = report.addresses.iter().filter(|other| Some(**other) != connected.address);
        let others: Vec<_> = others.map(ToString::to_string).collect();
        let others = if others.is_empty() { String::new() } else { format!(" (the others: {})", list(&others, ", ")) };
        let (way, tunnel) = if report.via { ("the proxy of `via` at ", ", tunnel included") } else { ("", "") };
        self.note("connected", format!("connected to {way}{address} in {}{tunnel}{others}", millis(connected.took)));
    }

    fn session(&mut self, session: &Session) {
        let version = match session.version {
            Some(ProtocolVersion::TLSv1_2) => "TLS 1.2".to_owned(),
            Some(ProtocolVersion::TLSv1_3) => "TLS 1.3".to_owned(),
            other => other.map_or_else(|| "TLS".to_owned(), |other| format!("{other:?}")),
        };
        let suite = session.suite.map_or_else(String::new, |suite| format!(", {suite:?}"));
        let group = session.group.map_or_else(String::new, |group| format!(", {group:?}"));
        let alpn = session.alpn.as_ref().map_or_else(|| "no ALPN".to_owned(), |alpn| format!("ALPN {alpn}"));
        self.note("tls", format!("{version}{suite}{group}, {alpn}; handshake in {}", millis(session.took)));
    }

    fn certificate(&mut self, which: &str, der: &CertificateDer<'static>, now: SystemTime) {
        let Ok(certificate) = Certificate::from_der(der.clone()) else {
            return self.warning(
                "bank-certificate-unreadable",
                format!("{which} cannot be read"),
                "ask the bank for a proper chain",
            );
        };
        let hosts = match certificate.hosts() {
            [] => String::new(),
            hosts => format!(", for {}", list(hosts, ", ")),
        };
        let (validity, concern) = validity(&certificate, now);
        let text = format!(
            "{which}: {}, issued by {}, {validity}, {}{hosts}, SHA-256 {}, pin {}",
            certificate.subject(),
            certificate.issuer(),
            certificate.public_key(),
            certificate.sha256_hex(),
            Pin::of(certificate.public_key_info()),
        );
        match concern {
            Some((code, hint)) => self.warning(code, text, hint),
            None => self.note("bank-certificate", text),
        }
    }

    fn question(&mut self, question: &Question, failure: Option<&Failure>) {
        let distrusted = matches!(failure, Some(Failure::Acquire(error)) if error.is_distrust());
        let given =
            if distrusted { "was not given it, because we do not trust the bank" } else { "was given the QWAC" };
        self.note("qwac-asked-for", format!("the bank asked for our certificate in the handshake and {given}"));
        let accepted: Vec<_> = question.issuers.iter().map(|name| words(name)).collect();
        if accepted.is_empty() {
            return self.note("issuers-not-named", "the bank does not say whose certificates it accepts");
        }
        self.note("issuers-named", format!("the bank says that it accepts certificates of: {}", list(&accepted, "; ")));
        let mut ours: Vec<_> = question.presented.iter().filter_map(issuer).collect();
        ours.dedup();
        match ours.iter().find(|ours| accepted.contains(ours)) {
            Some(issuer) => self.note("issuer-named", format!("our QWAC's issuer {issuer} is among them")),
            None => self.warning(
                "issuer-not-named",
                format!("none of them issued our QWAC, which is of: {}", ours.join("; ")),
                "what a bank says here may be incomplete; if it refuses the QWAC, give the whole chain in \
                 `qwac.certificate` or ask the bank which issuers it trusts",
            ),
        }
    }

    fn unasked(&mut self) {
        self.warning(
            "qwac-not-asked-for",
            "the bank did not ask for our certificate in the handshake and has not seen the QWAC",
            "a bank that asks later, by TLS 1.2 renegotiation or TLS 1.3 post-handshake authentication, cannot be \
             served: our TLS library (rustls) does neither. Ask the bank for a host or port that asks in the handshake",
        );
    }

    fn clocks(&mut self, clocks: &Clocks) {
        let status = clocks.status.as_u16();
        match clocks.skew() {
            None => self.note(
                "clock-unknown",
                format!("HEAD / answered {status} without a Date: the bank's clock is not known"),
            ),
            Some(0) => self.note("clock", format!("HEAD / answered {status}; the bank's clock agrees with ours")),
            Some(skew) => {
                let side = if skew > 0 { "ahead of" } else { "behind" };
                let text = format!("HEAD / answered {status}; the bank's clock is {} s {side} ours", skew.abs());
                if skew.abs() > TOLERATED_SKEW.into() {
                    self.warning("clock-skew", text, "set this machine's clock: banks refuse seals whose Date is off");
                } else {
                    self.note("clock", text);
                }
            }
        }
    }

    fn failure(&mut self, failure: &Failure) {
        let (code, text, hint) = match failure {
            Failure::Acquire(error) => (error.kind(), in_words(error), error.hint()),
            Failure::Send(error) => (error.cause.kind(), in_words(&error.cause), error.cause.hint()),
        };
        if speaks_of_the_request(failure) {
            return self.warning(code, format!("HEAD / was not answered: {text}"), hint);
        }
        self.findings.push(Finding::error(self.file, &self.key, text).hint(hint).code(code));
    }
}

/// Whether a bank that fails so may still answer the requests that it knows: not everyone answers `HEAD /`.
fn speaks_of_the_request(failure: &Failure) -> bool {
    match failure {
        Failure::Acquire(_) => false,
        Failure::Send(SendError { cause, .. }) => match cause {
            Cause::QwacRefused(_) | Cause::Renegotiation | Cause::PostHandshakeAuthentication => false,
            Cause::Unasked(_) | Cause::MalformedHead(_) | Cause::Switched | Cause::TransferCoding => false,
            Cause::ClosedBeforeHead(_) | Cause::ClosedInHead(_) | Cause::ResponseTimeout(_) | Cause::Retired => true,
        },
    }
}

/// The validity in words, and what kind of concern it is and what to do about it.
fn validity(certificate: &Certificate, now: SystemTime) -> (String, Option<(&'static str, &'static str)>) {
    let (from, to) = (day(certificate.not_before()), day(certificate.not_after()));
    match certificate.validity_at(now) {
        Validity::NotYet => (
            format!("valid only from {from} to {to}"),
            Some(("bank-certificate-not-yet-valid", "check this machine's clock")),
        ),
        Validity::Expired => (
            format!("expired on {to}"),
            Some(("bank-certificate-expired", "tell the bank, if this machine's clock is right")),
        ),
        Validity::Valid => {
            let left = certificate.not_after().duration_since(now).unwrap_or_default().as_secs() / DAY;
            let soon = ("bank-certificate-expires-soon", "if `trust` names it, ask the bank for its successor");
            (format!("valid from {from} to {to} ({left} days left)"), (left < EXPIRES_SOON).then_some(soon))
        }
    }
}

/// Seconds.
const DAY: u64 = 24 * 3600;

/// Days, as for our own certificates.
const EXPIRES_SOON: u64 = 30;

/// `06 Nov 2026`. httpdate writes only years from 1970 to 9999, and a certificate may name others.
fn day(moment: SystemTime) -> String {
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let date = httpdate::fmt_http_date(moment.clamp(SystemTime::UNIX_EPOCH, last));
    date.get(5..16).unwrap_or(&date).to_owned()
}

fn words(name: &[u8]) -> String {
    name_in_words(name).unwrap_or_else(|| "a name that cannot be read".to_owned())
}

fn issuer(certificate: &CertificateDer<'static>) -> Option<String> {
    Certificate::from_der(certificate.clone()).ok().map(|certificate| certificate.issuer().to_owned())
}

/// Of a long list the beginning.
fn list(items: &[String], separator: &str) -> String {
    match items.get(..MOST) {
        Some(first) if items.len() > MOST => format!("{} and {} more", first.join(separator), items.len() - MOST),
        _ => items.join(separator),
    }
}

const MOST: usize = 20;

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}
