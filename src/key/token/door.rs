//! The way in: from a URI to a session that is logged in and has found its key. Must not know what is signed.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error as Pkcs11Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use secrecy::ExposeSecret as _;

use super::super::uri::TokenUri;
use super::fault::{Fault, Refusal};
use super::lock;
use super::mechanism::Way;
use super::module::Module;
use super::station::Place;
use crate::files;

/// What the stations of one key share.
pub(super) struct Door {
    began: Instant,
    uri: TokenUri,
    refused: Refused,
}

/// For how long a key is looked for while it is opened, and over how many starts of its module.
const NEW: Duration = Duration::from_millis(2500);
const STARTS: u64 = 2;
/// Bytes of a PIN's file: tokens take PINs of some dozen.
const MAX_PIN: u64 = 1024;

/// The PIN that a token has refused. Of the process, because a key may be opened anew again and again, and a token
/// counts.
type Refused = Arc<Mutex<Option<AuthPin>>>;

static REFUSED: LazyLock<Mutex<HashMap<String, Refused>>> = LazyLock::new(Mutex::default);

fn refused_at(uri: &TokenUri) -> Refused {
    // All keys of a token have one PIN.
    let token = format!("{} {:?} {:?}", uri.module.display(), uri.token, uri.slot_id);
    Arc::clone(lock(&REFUSED).entry(token).or_default())
}

/// A key, and how it signs.
struct Found {
    key: ObjectHandle,
    ways: Vec<Way>,
    pin_each_time: bool,
}

impl Door {
    pub(super) fn to(uri: &TokenUri) -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), uri: uri.clone(), refused: refused_at(uri) })
    }

    /// Whether the module has hardly been started: keys that are in use would be opened anew with each further start.
    pub(super) fn is_new(&self) -> bool {
        self.began.elapsed() < NEW && Module::loaded(&self.uri.module).is_none_or(|module| module.epoch() < STARTS)
    }

    /// Opens a session; where the module knows of no such token, once more after it has looked anew.
    pub(super) fn enter(&self) -> Result<Place, Fault> {
        let module = Module::load(&self.uri.module)?;
        let epoch = module.epoch();
        match self.try_enter(&module) {
            Err(fault) if fault.may_pass() && module.looks_anew(epoch) => self.try_enter(&module),
            result => result,
        }
    }

    fn try_enter(&self, module: &Arc<Module>) -> Result<Place, Fault> {
        let library = module.library();
        let (slot, token) = self.slot(&library)?;
        let mechanisms = library.get_mechanism_list(slot).map_err(Refusal::from)?;
        let pin = self.pin()?;
        let session = library.open_ro_session_no_drop(slot).map_err(Refusal::from)?;
        match self.find(&session, pin.as_ref(), &token, &mechanisms) {
            Ok(Found { key, ways, pin_each_time }) => {
                let pin_each_time = pin.filter(|_| pin_each_time);
                let (module, epoch) = (Arc::clone(module), module.epoch());
                Ok(Place { session, module, epoch, key, ways, pin_each_time })
            }
            Err(fault) => {
                // A token has few sessions, and every request may come this way.
                let _ = session.close();
                Err(fault)
            }
        }
    }

    fn find(
        &self,
        session: &Session,
        pin: Option<&AuthPin>,
        token: &TokenInfo,
        mechanisms: &[MechanismType],
    ) -> Result<Found, Fault> {
        if token.login_required() {
            self.log_in(session, pin, token)?;
        }
        let key = self.key(session)?;
        let (rsa, pin_each_time) = describe(session, key)?;
        let ways = Way::all(rsa, mechanisms, pin_each_time);
        if ways.is_empty() {
            return Err(Fault::NoMechanism);
        }
        Ok(Found { key, ways, pin_each_time })
    }

    fn slot(&self, library: &Pkcs11) -> Result<(Slot, TokenInfo), Fault> {
        let mut found = Vec::new();
        for slot in library.get_slots_with_token().map_err(Refusal::from)? {
            let Ok(token) = library.get_token_info(slot) else { continue };
            if token.token_initialized() && self.means(slot, &token) {
                found.push((slot, token));
            }
        }
        match found.len() {
            0 => Err(Fault::NoToken),
            1 => Ok(found.remove(0)),
            several => Err(Fault::SeveralTokens(several)),
        }
    }

    fn means(&self, slot: Slot, token: &TokenInfo) -> bool {
        let names = &self.uri.token;
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&names.label, token.label())
            && is(&names.manufacturer, token.manufacturer_id())
            && is(&names.model, token.model())
            && is(&names.serial, token.serial_number())
            && self.uri.slot_id.is_none_or(|wanted| wanted == slot.id())
    }

    /// The PIN as its file holds it now, without the line's end.
    fn pin(&self) -> Result<Option<AuthPin>, Fault> {
        let Some(path) = &self.uri.pin else { return Ok(None) };
        let fault = |error| Fault::Pin(path.clone(), error);
        let bytes = files::read(path, MAX_PIN).map_err(|error| fault(error.into()))?;
        let text = std::str::from_utf8(&bytes).map_err(|_| fault(io::Error::other("not text")))?;
        Ok(Some(AuthPin::from(text.trim_end_matches(['\r', '\n']).to_owned())))
    }

    fn log_in(&self, session: &Session, pin: Option<&AuthPin>, token: &TokenInfo) -> Result<(), Fault> {
        if pin.is_none() && !token.protected_authentication_path() {
            return Err(Fault::NoPin);
        }
        // Held meanwhile: several threads with one wrong PIN would use up the tries.
        let mut refused = lock(&self.refused);
        if let (Some(refused), Some(pin)) = (&*refused, pin)
            && secret(refused) == secret(pin)
        {
            return Err(Fault::PinRefused);
        }
        match session.login(UserType::User, pin) {
            Ok(()) | Err(Pkcs11Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(Pkcs11Error::Pkcs11(
                RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinLocked
                | RvError::PinExpired,
                _,
            )) => {
                *refused = pin.map(|pin| AuthPin::from(secret(pin).to_owned()));
                Err(Fault::PinRefused)
            }
            Err(error) => Err(Refusal::from(error).into()),
        }
    }

    fn key(&self, session: &Session) -> Result<ObjectHandle, Fault> {
        let mut wanted = vec![Attribute::Class(ObjectClass::PRIVATE_KEY)];
        wanted.extend(self.uri.object.as_ref().map(|label| Attribute::Label(label.clone().into_bytes())));
        wanted.extend(self.uri.id.as_ref().map(|id| Attribute::Id(id.clone())));
        let found = session.find_objects(&wanted).map_err(Refusal::from)?;
        match found.as_slice() {
            [] => Err(Fault::NoKey),
            [key] => Ok(*key),
            several => Err(Fault::SeveralKeys(several.len())),
        }
    }
}

/// Whether the key is RSA, or else on P-256, and whether it wants the PIN each time.
fn describe(session: &Session, key: ObjectHandle) -> Result<(bool, bool), Fault> {
    let asked = [
        AttributeType::KeyType,
        AttributeType::Sign,
        AttributeType::Modulus,
        AttributeType::EcParams,
        AttributeType::AlwaysAuthenticate,
    ];
    let attributes = session.get_attributes(key, &asked).map_err(Refusal::from)?;
    let (mut kind, mut bits, mut curve, mut each_time) = (None, 0, Vec::new(), false);
    for attribute in attributes {
        match attribute {
            Attribute::KeyType(found) => kind = Some(found),
            Attribute::Sign(false) => return Err(Fault::MayNotSign),
            Attribute::Modulus(modulus) => bits = modulus.iter().skip_while(|byte| **byte == 0).count() * 8,
            Attribute::EcParams(parameters) => curve = parameters,
            Attribute::AlwaysAuthenticate(always) => each_time = always,
            _ => {}
        }
    }
    match kind {
        Some(KeyType::RSA) if bits == 0 || (2048..=4096).contains(&bits) => Ok((true, each_time)),
        Some(KeyType::EC) if curve == PRIME256V1 => Ok((false, each_time)),
        _ => Err(Fault::Kind),
    }
}

/// The object identifier of P-256 in DER (RFC 5480 section 2.1.1.1).
const PRIME256V1: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

fn secret(pin: &AuthPin) -> &str {
    pin.expose_secret()
}
