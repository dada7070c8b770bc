//! One thread's place at the token: its session, and what it signs with there. Must not know who waits for a signature.

use std::sync::Arc;

use cryptoki::error::Error as Pkcs11Error;
use cryptoki::object::ObjectHandle;
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

use super::super::Scheme;
use super::door::Door;
use super::fault::{Fault, Refusal};
use super::mechanism::Way;
use super::module::{LOOK_ANEW, Module};

/// One thread's place at the token.
pub(super) struct Station {
    door: Arc<Door>,
    place: Option<Place>,
}

/// A session that is logged in and has found its key.
pub(super) struct Place {
    pub(super) session: Session,
    pub(super) module: Arc<Module>,
    pub(super) epoch: u64,
    pub(super) key: ObjectHandle,
    /// At least one.
    pub(super) ways: Vec<Way>,
    /// The PIN, where the key wants it anew for each signature (`CKA_ALWAYS_AUTHENTICATE`).
    pub(super) pin_each_time: Option<AuthPin>,
}

impl Station {
    pub(super) fn new(door: &Arc<Door>) -> Self {
        Self { door: Arc::clone(door), place: None }
    }

    /// Signs; where the session has died, once more on a new one. Nothing of the request has left by then.
    pub(super) fn sign(&mut self, scheme: Scheme, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let first = self.open()?.sign(scheme, message);
        if !matches!(&first, Err(Fault::Pkcs11(refusal)) if refusal.is_lost()) {
            return first;
        }
        self.close();
        self.open()?.sign(scheme, message).inspect_err(|_| self.close())
    }

    /// Learns what the key is. A token that only just cannot be read, because another process writes to it or it
    /// starts, is no reason to go without it, while nobody else works with its module.
    pub(super) fn open_at_first(&mut self) -> Result<Vec<Scheme>, Fault> {
        loop {
            let opened = self.open().map(Place::schemes);
            match opened {
                Err(fault) if fault.may_pass() && self.door.is_new() => std::thread::sleep(LOOK_ANEW),
                opened => return opened,
            }
        }
    }

    fn open(&mut self) -> Result<&Place, Fault> {
        if self.place.as_ref().is_some_and(|place| place.epoch != place.module.epoch()) {
            self.close();
        }
        if self.place.is_none() {
            self.place = Some(self.door.enter()?);
        }
        Ok(self.place.as_ref().expect("it was just entered"))
    }

    fn close(&mut self) {
        let Some(place) = self.place.take() else { return };
        let _library = place.module.library();
        // The handle of an earlier epoch may be somebody else's by now.
        if place.epoch == place.module.epoch() {
            // A session that has died is closed already.
            let _ = place.session.close();
        }
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        self.close();
    }
}

impl Place {
    fn schemes(&self) -> Vec<Scheme> {
        self.ways.iter().map(|way| way.scheme).collect()
    }

    fn sign(&self, scheme: Scheme, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let _library = self.module.library();
        // Another one stands in the token's slot since the key was opened.
        let way = self.ways.iter().find(|way| way.scheme == scheme).ok_or(Fault::NoMechanism)?;
        let signature = self.sign_as_told(way, message).map_err(Refusal::from)?;
        match scheme {
            Scheme::EcdsaP256Sha256 => der_of(&signature).ok_or(Fault::Malformed),
            _ => Ok(signature),
        }
    }

    fn sign_as_told(&self, way: &Way, message: &[u8]) -> Result<Vec<u8>, Pkcs11Error> {
        let (mechanism, data) = (way.mechanism(), way.data(message));
        let Some(pin) = &self.pin_each_time else { return self.session.sign(&mechanism, self.key, &data) };
        self.session.sign_init(&mechanism, self.key)?;
        self.session.login(UserType::ContextSpecific, Some(pin))?;
        self.session.sign_update(&data)?;
        self.session.sign_final()
    }
}

/// A token's `r || s` as `ECDSA-Sig-Value` (RFC 3279 section 2.2.3).
fn der_of(raw: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = (raw.len() == 64).then(|| raw.split_at(32))?;
    Some(yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            for number in [r, s] {
                writer.next().write_bigint_bytes(number, true);
            }
        });
    }))
}
