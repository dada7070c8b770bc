//! What is wrong with the sources of one identity, as far as its files tell: for who checks a configuration, before
//! anything is watched. Asks no responder.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use super::Watched;
use super::check::{FileError, NOBODY, about, read_lists};
use crate::causes::in_words;
use crate::config::{Finding, Ocsp, Revocation};
use crate::identity::revocation::{ChainError, Issued, Verdict};

/// Looks at every list for every certificate of `own`, as the checks of a proxy that runs do. `place` is the
/// configuration's file. All that is found is a warning: what fails here stops nothing there either.
pub(in crate::app) fn judge(
    place: &Path,
    identity: &str,
    settings: &Revocation,
    own: &[Watched],
    now: SystemTime,
) -> Vec<Finding> {
    let key = format!("identities.{identity}.revocation");
    let mut judged = Judged { place, key, findings: Vec::new() };
    let mut certificates: Vec<_> = own.iter().filter_map(|watched| judged.certificate(watched)).collect();
    for file in &settings.crl {
        judged.list(file, &mut certificates, now);
    }
    for certificate in &certificates {
        judged.verdict(certificate, settings);
    }
    judged.findings
}

struct Judged<'a> {
    place: &'a Path,
    key: String,
    findings: Vec<Finding>,
}

/// A certificate, and what the lists say of it.
struct Certificate<'a> {
    part: &'a str,
    issued: Issued,
    verdict: Option<Verdict>,
    /// Whether a list about it is out of order, which is a finding of its own.
    is_failed: bool,
}

impl Judged<'_> {
    fn certificate<'a>(&mut self, watched: &'a Watched) -> Option<Certificate<'a>> {
        let part = watched.name.part.as_str();
        match Issued::from_chain(&watched.chain) {
            Ok(issued) => Some(Certificate { part, issued, verdict: None, is_failed: false }),
            Err(error) => {
                let hint = match error {
                    ChainError::NoIssuer | ChainError::NotIssued(_) => "append the issuer's certificate to the file",
                    _ => "give the certificate as it was issued, followed by its issuer's",
                };
                self.warn("", "issuer-unknown", format!("{part}: {}", in_words(&error)), hint);
                None
            }
        }
    }

    fn list(&mut self, file: &Path, certificates: &mut [Certificate<'_>], now: SystemTime) {
        let place = file.display();
        let lists = match read_lists(file) {
            Ok(lists) => lists,
            Err(error) => {
                let hint = match &error {
                    FileError::Unreadable(_) => {
                        "fetch the list to this path, and let the user that runs sealproxy read it"
                    }
                    FileError::NoList(error) => error.hint(),
                };
                return self.warn(".crl", "unreadable-crl", format!("{place}: {}", in_words(&error)), hint);
            }
        };
        let (mut concerned, mut errors) = (false, BTreeSet::new());
        for certificate in certificates.iter_mut() {
            for said in about(&certificate.issued, &lists, now) {
                concerned = true;
                match said {
                    Ok(verdict) => {
                        certificate.verdict = Some(certificate.verdict.map_or(verdict, |other| other.join(verdict)));
                    }
                    Err(error) => {
                        certificate.is_failed = true;
                        errors.insert((error.code(), format!("{place}: {}", in_words(&error)), error.hint()));
                    }
                }
            }
        }
        for (code, reason, hint) in errors {
            self.warn(".crl", code, reason, hint);
        }
        if !concerned && !certificates.is_empty() {
            let reason = format!("{place}: no list in the file is about a certificate of this identity");
            let hint = "name the list of the issuer of the QWAC or of a seal: `openssl crl -in FILE -noout -issuer` shows \
                        whose a list is";
            self.warn(".crl", "unrelated-crl", reason, hint);
        }
    }

    fn verdict(&mut self, certificate: &Certificate<'_>, settings: &Revocation) {
        let part = certificate.part;
        match certificate.verdict {
            // Where that stops it, it is said already.
            Some(Verdict::Revoked { .. }) if !settings.stops => {
                let hint = "ask the trust service provider, and install a successor";
                self.warn("", "revoked", format!("the certificate of {part} has been revoked"), hint);
            }
            None if !certificate.is_failed && !is_asked(certificate, settings) => {
                let hint = "name the list of its issuer in `crl`, or a responder's URL in `ocsp`";
                self.warn("", "no-revocation-source", format!("{part}: {NOBODY}"), hint);
            }
            _ => {}
        }
    }

    fn warn(&mut self, setting: &str, code: &'static str, reason: String, hint: &str) {
        let finding = Finding::warning(self.place, format!("{}{setting}", self.key), reason);
        self.findings.push(finding.hint(hint).code(code));
    }
}

/// Whether a responder is asked for a certificate.
fn is_asked(certificate: &Certificate<'_>, settings: &Revocation) -> bool {
    match settings.ocsp {
        Ocsp::Off => false,
        Ocsp::Named => certificate.issued.responder().is_some(),
        Ocsp::At(_) => true,
    }
}
