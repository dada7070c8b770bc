//! One check of one certificate: every CRL file and the OCSP responder, whatever the others say.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use thiserror::Error;
use zeroize::Zeroizing;

use super::Watched;
use super::ask::ask;
use crate::causes::in_words;
use crate::config::{Ocsp, Revocation};
use crate::files::{self, ReadError};
use crate::identity::revocation::{CrlError, Issued, ResponderUrl, Verdict, crls};

/// What the sources said.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// What those that spoke of the certificate come to.
    pub(super) verdict: Option<Verdict>,
    /// What was wrong with the others, a line each.
    pub(super) failures: Vec<String>,
}

/// Asks all sources. Takes as long as the slowest.
pub(super) async fn check(watched: &Watched) -> Round {
    let issued = match Issued::from_chain(&watched.chain) {
        Ok(issued) => issued,
        Err(error) => return Round { verdict: None, failures: vec![in_words(&error)] },
    };
    let heard = hear(&issued, &watched.settings).await;
    let files = watched.settings.crl.clone();
    // Lists are large, and files may be slow. A parser that panics ends nothing but this check.
    let judged = tokio::task::spawn_blocking(move || judge(&issued, &files, heard, SystemTime::now())).await;
    judged.unwrap_or_else(|error| Round { verdict: None, failures: vec![in_words(&error)] })
}

/// Asks the lists alone, which takes no longer than to read them.
pub(super) async fn lists(watched: &Watched) -> Round {
    let Ok(issued) = Issued::from_chain(&watched.chain) else { return Round::default() };
    let files = watched.settings.crl.clone();
    let judged = tokio::task::spawn_blocking(move || judge(&issued, &files, None, SystemTime::now())).await;
    judged.unwrap_or_default()
}

/// What a responder answered, or why not in words.
struct Heard {
    responder: String,
    answer: Result<Bytes, String>,
}

/// `None`: there is nobody to ask.
async fn hear(issued: &Issued, settings: &Revocation) -> Option<Heard> {
    let responder = match &settings.ocsp {
        Ocsp::Off => return None,
        Ocsp::At(url) => url.to_string(),
        Ocsp::Named => issued.responder()?.to_owned(),
    };
    let answer = match responder.parse::<ResponderUrl>() {
        Ok(url) => ask(&url, settings.via.as_ref(), issued.ocsp_request()).await.map_err(|error| in_words(&error)),
        Err(error) => Err(error.to_string()),
    };
    Some(Heard { responder, answer })
}

fn judge(issued: &Issued, files: &[PathBuf], heard: Option<Heard>, now: SystemTime) -> Round {
    let mut round = Round::default();
    files.iter().for_each(|file| round.read(issued, file, now));
    if let Some(Heard { responder, answer }) = heard {
        match answer.and_then(|der| issued.read_ocsp(&der, now).map_err(|error| in_words(&error))) {
            Ok(verdict) => round.add(verdict),
            Err(failure) => round.failures.push(format!("{responder}: {failure}")),
        }
    }
    if round.verdict.is_none() && round.failures.is_empty() {
        round.failures.push(NOBODY.to_owned());
    }
    round
}

pub(super) const NOBODY: &str = "nothing tells of this certificate: no CRL of the configuration is about it, and no OCSP responder is \
                      set or named in it";

impl Round {
    /// Takes in every list of a file that is about the certificate.
    fn read(&mut self, issued: &Issued, file: &Path, now: SystemTime) {
        let place = file.display().to_string();
        let lists = match read_lists(file) {
            Ok(lists) => lists,
            Err(error) => return self.fail(&place, &error),
        };
        for said in about(issued, &lists, now) {
            match said {
                Ok(verdict) => self.add(verdict),
                Err(error) => self.fail(&place, &error),
            }
        }
    }

    fn add(&mut self, verdict: Verdict) {
        self.verdict = Some(self.verdict.map_or(verdict, |other| other.join(verdict)));
    }

    fn fail(&mut self, source: &str, error: &dyn StdError) {
        self.failures.push(format!("{source}: {}", in_words(error)));
    }
}

/// The lists of a file, not yet judged.
pub(super) fn read_lists(file: &Path) -> Result<Vec<Vec<u8>>, FileError> {
    Ok(crls(&read(file)?)?)
}

/// What those of the lists say that are about a certificate.
pub(super) fn about(issued: &Issued, lists: &[Vec<u8>], now: SystemTime) -> Vec<Result<Verdict, CrlError>> {
    let said = lists.iter().map(|list| issued.read_crl(list, now));
    said.filter(|said| !said.as_ref().is_err_and(CrlError::concerns_others)).collect()
}

/// Why a file gave no list.
#[derive(Debug, Error)]
pub(super) enum FileError {
    #[error("the file cannot be read")]
    Unreadable(#[from] io::Error),
    #[error(transparent)]
    NoList(#[from] CrlError),
}

fn read(file: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    files::read(file, MAX_FILE).map_err(|error| match error {
        ReadError::TooLarge(_) => io::Error::other("larger than 16MiB"),
        error => error.into(),
    })
}

/// Lists of qualified providers have some hundred kilobytes; reading one takes twice its size.
const MAX_FILE: u64 = 16 << 20;
