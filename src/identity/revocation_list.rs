//! What a certificate revocation list says of itself (RFC 5280 section 5). Judges nothing, and looks up nobody in it.

use std::time::SystemTime;

use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use super::algorithm::is_sequence;
use super::certificate::{distinguished_name, system_time};

/// A revocation list and the facts about it.
#[derive(Clone, Debug)]
pub struct RevocationList {
    der: Vec<u8>,
    issuer: String,
    next_update: Option<SystemTime>,
}

impl RevocationList {
    /// Parses one list, with nothing behind it; `None` if it is none.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let Ok(([], list)) = CertificateRevocationList::from_der(der) else { return None };
        if !is_sequence(der) {
            return None;
        }
        Some(Self {
            der: der.to_vec(),
            issuer: distinguished_name(list.issuer()),
            next_update: list.next_update().map(system_time),
        })
    }

    /// The whole list, as it was given.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Who issued it, as a string of RFC 4514.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// When its successor is there at the latest.
    pub fn next_update(&self) -> Option<SystemTime> {
        self.next_update
    }
}
