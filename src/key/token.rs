//! Keys behind PKCS#11: RSA and EC on P-256 that never leave their token. Own sessions, each on a thread of its own, so
//! that a slow token stalls nobody but those who wait for it. Twin of `ring.rs` in what it signs.
//!
//! A lost token is looked for anew with the next signature. A PIN that was refused once is not tried again until its
//! file says something else: tokens lock themselves after three wrong ones.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as Pkcs11Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use secrecy::ExposeSecret as _;
use tokio::sync::oneshot;

use super::desk::{Desk, Permit};
use super::mechanism::Way;
use super::uri::TokenUri;
use super::{Error, Patience, Scheme, TokenSettings};

pub(super) struct Key {
    /// At least one.
    schemes: Vec<Scheme>,
    desk: Arc<Desk>,
    jobs: Sender<Job>,
}

/// One message to sign.
struct Job {
    scheme: Scheme,
    message: Vec<u8>,
    answer: oneshot::Sender<Result<Vec<u8>, Error>>,
    permit: Permit,
}

/// The right to one of the sessions.
pub(super) struct Turn {
    key: Arc<Key>,
    permit: Permit,
}

impl Key {
    /// Opens the first session and learns what the key is. Blocks for as long as the token takes, `patience` at most.
    pub(super) fn open(settings: &TokenSettings, patience: Duration) -> Result<Self, Error> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let door = Arc::new(Door { uri: settings.uri.clone(), refused: refused_at(&settings.uri) });
        let (ready, opened) = channel();
        let opening = Opening::begin(&settings.uri, patience).ok_or(Error::Token(Fault::Silent(patience)))?;
        let first = Station::new(&door);
        start(first, Arc::clone(&queue), Some(First { ready, opening }))?;
        let schemes = opened.recv_timeout(patience).map_err(|_| Error::Token(Fault::Silent(patience)))??;
        for _ in 1..settings.sessions {
            start(Station::new(&door), Arc::clone(&queue), None)?;
        }
        Ok(Self { schemes, desk: Desk::new(settings.sessions, settings.waiting), jobs })
    }

    pub(super) fn scheme(&self) -> Scheme {
        self.schemes[0]
    }

    pub(super) fn schemes(&self) -> Vec<Scheme> {
        self.schemes.clone()
    }

    /// Waits for a session, among a limited number and for no longer than is of use.
    pub(super) async fn turn(self: &Arc<Self>, patience: Patience) -> Result<Turn, Error> {
        let permit = self.desk.turn(patience).await?;
        Ok(Turn { key: Arc::clone(self), permit })
    }
}

impl Turn {
    /// `None`: with the scheme of seals.
    pub(super) fn sign(self, scheme: Option<Scheme>, message: &[u8]) -> oneshot::Receiver<Result<Vec<u8>, Error>> {
        let (answer, signature) = oneshot::channel();
        let scheme = scheme.unwrap_or(self.key.scheme());
        // Nobody works where every thread has panicked: the receiver then says so.
        let _ = self.key.jobs.send(Job { scheme, message: message.to_vec(), answer, permit: self.permit });
        signature
    }
}

fn start(mut station: Station, queue: Arc<Mutex<Receiver<Job>>>, first: Option<First>) -> Result<(), Error> {
    let work = move || {
        if let Some(First { ready, opening }) = first {
            let opened = station.open_at_first().map_err(Error::Token);
            drop(opening);
            let failed = opened.is_err();
            // Who waited for it may have lost patience: then nobody will ever ask for a signature either.
            if ready.send(opened).is_err() || failed {
                return;
            }
        }
        while let Some(Job { scheme, message, answer, mut permit }) = next(&queue) {
            // Whoever has given up meanwhile gets nothing, and costs the token nothing.
            if !answer.is_closed() {
                let signature = station.sign(scheme, &message).map_err(Error::Token);
                if signature.is_ok() {
                    permit.signed();
                }
                let _ = answer.send(signature);
            }
        }
    };
    let thread = std::thread::Builder::new().name("token".into()).spawn(work);
    thread.map(drop).map_err(|error| Error::Token(Fault::Thread(error)))
}

/// The next job; `None` where the key is gone.
fn next(queue: &Mutex<Receiver<Job>>) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// What the stations of one key share.
struct Door {
    uri: TokenUri,
    refused: Refused,
}

/// The PIN that a token has refused. Of the process, because a key may be opened anew again and again, and a token counts.
type Refused = Arc<Mutex<Option<AuthPin>>>;

static REFUSED: LazyLock<Mutex<HashMap<String, Refused>>> = LazyLock::new(Mutex::default);

fn refused_at(uri: &TokenUri) -> Refused {
    // All keys of a token have one PIN.
    let token = format!("{} {:?} {:?}", uri.module.display(), uri.token, uri.slot_id);
    Arc::clone(lock(&REFUSED).entry(token).or_default())
}

/// What the first station of a key has beside the others: somebody waits for it.
struct First {
    ready: Sender<Result<Vec<Scheme>, Error>>,
    opening: Opening,
}

/// The only attempt to open a key: where a token hangs, further ones would gather threads.
struct Opening(String);

static OPENING: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);

impl Opening {
    /// Waits for an earlier one to end; `None` if it has not within `patience`.
    fn begin(uri: &TokenUri, patience: Duration) -> Option<Self> {
        let (name, began) = (uri.to_string(), Instant::now());
        while !Self::claim(&name) {
            if began.elapsed() >= patience {
                return None;
            }
            std::thread::sleep(LOOK);
        }
        Some(Self(name))
    }

    fn claim(name: &str) -> bool {
        lock(&OPENING).insert(name.to_owned())
    }
}

const LOOK: Duration = Duration::from_millis(5);

impl Drop for Opening {
    fn drop(&mut self) {
        lock(&OPENING).remove(&self.0);
    }
}

/// One thread's place at the token.
struct Station {
    door: Arc<Door>,
    place: Option<Place>,
}

/// A session that is logged in and has found its key.
struct Place {
    session: Session,
    module: Arc<Module>,
    epoch: u64,
    key: ObjectHandle,
    /// At least one.
    ways: Vec<Way>,
    /// The PIN, where the key wants it anew for each signature (`CKA_ALWAYS_AUTHENTICATE`).
    pin_each_time: Option<AuthPin>,
}

/// A key, and how it signs.
struct Found {
    key: ObjectHandle,
    ways: Vec<Way>,
    pin_each_time: bool,
}

impl Station {
    fn new(door: &Arc<Door>) -> Self {
        Self { door: Arc::clone(door), place: None }
    }

    /// Signs; where the session has died, once more on a new one. Nothing of the request has left by then.
    fn sign(&mut self, scheme: Scheme, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let first = self.open()?.sign(scheme, message);
        let Err(Fault::Pkcs11(error)) = &first else { return first };
        if !is_lost(error) {
            return first;
        }
        self.close();
        self.open()?.sign(scheme, message).inspect_err(|_| self.close())
    }

    /// Learns what the key is. Nobody waits with a request, so that a token that only just cannot be read, because another
    /// process writes to it or it starts, is no reason to go without it.
    fn open_at_first(&mut self) -> Result<Vec<Scheme>, Fault> {
        for _ in 0..FURTHER_TRIES {
            match self.open() {
                Err(fault) if fault.may_pass() => std::thread::sleep(LOOK_ANEW),
                opened => return opened.map(Place::schemes),
            }
        }
        self.open().map(Place::schemes)
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
        let _library = place.module.library.read().unwrap_or_else(PoisonError::into_inner);
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

impl Door {
    /// Opens a session; where the module knows of no such token, once more after it has looked anew.
    fn enter(&self) -> Result<Place, Fault> {
        let module = Module::load(&self.uri.module)?;
        let epoch = module.epoch();
        match self.try_enter(&module) {
            Err(fault) if fault.may_pass() && module.looks_anew(epoch) => self.try_enter(&module),
            result => result,
        }
    }

    fn try_enter(&self, module: &Arc<Module>) -> Result<Place, Fault> {
        // Held to the end: nobody starts the library anew under our hands.
        let library = module.library.read().unwrap_or_else(PoisonError::into_inner);
        let (slot, token) = self.slot(&library)?;
        let mechanisms = library.get_mechanism_list(slot).map_err(Fault::Pkcs11)?;
        let pin = self.pin()?;
        let session = library.open_ro_session_no_drop(slot).map_err(Fault::Pkcs11)?;
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
        for slot in library.get_slots_with_token().map_err(Fault::Pkcs11)? {
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
        // Whoever opens a pipe waits for its writer.
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(Fault::Pin(path.clone(), std::io::Error::other("not a regular file")));
        }
        let text =
            zeroize::Zeroizing::new(std::fs::read_to_string(path).map_err(|error| Fault::Pin(path.clone(), error))?);
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
            Err(error) => Err(Fault::Pkcs11(error)),
        }
    }

    fn key(&self, session: &Session) -> Result<ObjectHandle, Fault> {
        let mut wanted = vec![Attribute::Class(ObjectClass::PRIVATE_KEY)];
        wanted.extend(self.uri.object.as_ref().map(|label| Attribute::Label(label.clone().into_bytes())));
        wanted.extend(self.uri.id.as_ref().map(|id| Attribute::Id(id.clone())));
        let found = session.find_objects(&wanted).map_err(Fault::Pkcs11)?;
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
    let attributes = session.get_attributes(key, &asked).map_err(Fault::Pkcs11)?;
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

impl Place {
    fn schemes(&self) -> Vec<Scheme> {
        self.ways.iter().map(|way| way.scheme).collect()
    }

    fn sign(&self, scheme: Scheme, message: &[u8]) -> Result<Vec<u8>, Fault> {
        let _library = self.module.library.read().unwrap_or_else(PoisonError::into_inner);
        // Another one stands in the token's slot since the key was opened.
        let way = self.ways.iter().find(|way| way.scheme == scheme).ok_or(Fault::NoMechanism)?;
        let signature = self.sign_as_told(way, message).map_err(Fault::Pkcs11)?;
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

/// A module of this process. Loaded once, whoever asks: its state is the process's.
struct Module {
    library: RwLock<Pkcs11>,
    /// How often it was started.
    epoch: AtomicU64,
    started: Mutex<Instant>,
}

static MODULES: LazyLock<Mutex<HashMap<PathBuf, Arc<Module>>>> = LazyLock::new(Mutex::default);

impl Module {
    fn load(path: &PathBuf) -> Result<Arc<Self>, Fault> {
        let mut modules = lock(&MODULES);
        if let Some(module) = modules.get(path) {
            return Ok(Arc::clone(module));
        }
        let library = Pkcs11::new(path).map_err(|error| Fault::Module(path.clone(), error))?;
        initialize(&library).map_err(Fault::Pkcs11)?;
        let module = Arc::new(Self {
            library: RwLock::new(library),
            epoch: AtomicU64::new(0),
            started: Mutex::new(Instant::now()),
        });
        modules.insert(path.clone(), Arc::clone(&module));
        Ok(module)
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Starts the library anew, unless somebody has since `epoch`: some look for tokens only then. Not while another thread is
    /// in it, and not more often than once a second. Returns whether it is worth another try.
    fn looks_anew(&self, epoch: u64) -> bool {
        let mut started = lock(&self.started);
        if self.epoch() != epoch {
            return true;
        }
        if started.elapsed() < LOOK_ANEW {
            return false;
        }
        let Ok(library) = self.library.try_write() else { return false };
        *started = Instant::now();
        self.epoch.fetch_add(1, Ordering::Release);
        // One that was never started, or has ended by itself, cannot be ended.
        let _ = library.clone().finalize();
        initialize(&library).is_ok()
    }
}

const LOOK_ANEW: Duration = Duration::from_secs(1);

/// How often more a key is looked for while it is opened.
const FURTHER_TRIES: usize = 2;

/// Waits until no thread is in a module, for a moment at most, and lets none in again. A module's own memory is gone while the
/// process ends, and a thread that closes its session then would crash it.
pub(super) fn leave() {
    let began = Instant::now();
    let modules: Vec<_> = loop {
        if let Ok(modules) = MODULES.try_lock() {
            break modules.values().cloned().collect();
        }
        if began.elapsed() >= LEAVE {
            return;
        }
        std::thread::sleep(LOOK);
    };
    for module in modules {
        while began.elapsed() < LEAVE {
            if let Ok(library) = module.library.try_write() {
                std::mem::forget(library);
                break;
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// What a signature takes, unless the token hangs.
const LEAVE: Duration = Duration::from_millis(500);

fn initialize(library: &Pkcs11) -> Result<(), Pkcs11Error> {
    match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Err(Pkcs11Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        result => result,
    }
}

/// Whether a new session might do better: everything but what speaks of the request itself.
fn is_lost(error: &Pkcs11Error) -> bool {
    use RvError as R;
    !matches!(
        error,
        Pkcs11Error::Pkcs11(
            R::DataInvalid
                | R::DataLenRange
                | R::KeyFunctionNotPermitted
                | R::MechanismInvalid
                | R::PinIncorrect
                | R::PinLocked,
            _
        )
    )
}

/// Whether the module, or the token behind it, is out of order as a whole.
fn is_absence(error: &Pkcs11Error) -> bool {
    use RvError as R;
    matches!(
        error,
        Pkcs11Error::Pkcs11(
            R::CryptokiNotInitialized
                | R::DeviceError
                | R::DeviceMemory
                | R::DeviceRemoved
                | R::FunctionFailed
                | R::GeneralError
                | R::SessionClosed
                | R::SessionCount
                | R::SessionHandleInvalid
                | R::SlotIdInvalid
                | R::TokenNotPresent
                | R::TokenNotRecognized,
            _
        )
    )
}

/// What the token's vendor and its log call it, as `C_Login: CKR_DEVICE_ERROR` (PKCS#11 3.1 section 5.1).
fn in_its_words(error: &Pkcs11Error) -> String {
    let Pkcs11Error::Pkcs11(refusal, function) = error else { return error.to_string() };
    match refusal {
        RvError::VendorDefined(code) | RvError::UnknownErrorCode(code) => format!("C_{function:?}: {code:#x}"),
        known => format!("C_{function:?}: CKR{}", in_capitals(&format!("{known:?}"))),
    }
}

fn in_capitals(camel: &str) -> String {
    let mut snake = String::new();
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_uppercase());
    }
    snake
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these hold is whole after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn secret(pin: &AuthPin) -> &str {
    pin.expose_secret()
}

/// Why a token gives no key, or no signature.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The shared library.
    #[error("{}: the module cannot be loaded", .0.display())]
    Module(PathBuf, #[source] Pkcs11Error),
    /// The PIN's file.
    #[error("{}: the PIN cannot be read", .0.display())]
    Pin(PathBuf, #[source] std::io::Error),
    /// No PIN, and no keypad.
    #[error("the token asks for a PIN")]
    NoPin,
    /// The PIN is wrong, locked or has expired.
    #[error("the token refused the PIN; it is not tried again until its file has changed")]
    PinRefused,
    /// Not there, or not now.
    #[error("there is no such token")]
    NoToken,
    /// The URI fits several.
    #[error("{0} tokens are so named")]
    SeveralTokens(usize),
    /// The token has no such key.
    #[error("there is no such private key on the token")]
    NoKey,
    /// The URI fits several.
    #[error("{0} private keys on the token are so named")]
    SeveralKeys(usize),
    /// `CKA_SIGN` is false.
    #[error("the token's key may not sign")]
    MayNotSign,
    /// Another kind, size or curve.
    #[error("the token's key is neither RSA of 2048 to 4096 bits nor EC on P-256")]
    Kind,
    /// None that would do.
    #[error("the token has no mechanism for this key")]
    NoMechanism,
    /// A signature of another form.
    #[error("the token's signature is malformed")]
    Malformed,
    /// It does not answer.
    #[error("the token did not answer within {0:?}")]
    Silent(Duration),
    /// No thread.
    #[error("no thread for the token")]
    Thread(#[source] std::io::Error),
    /// What the module says.
    #[error("the token's module refused: {}", in_its_words(.0))]
    Pkcs11(Pkcs11Error),
}

impl Fault {
    /// Whether the same token may do better in a moment: half of what it keeps was read, or it was not there.
    fn may_pass(&self) -> bool {
        matches!(self, Self::NoToken | Self::Pkcs11(_))
    }

    /// Whether the token is not there now, or does not answer.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::NoToken | Self::Silent(_) => true,
            Self::Pkcs11(error) => is_absence(error),
            _ => false,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Module(..) => "install the token's PKCS#11 module, and name its shared library in `module-path`",
            Self::Pin(..) | Self::NoPin => "name a file with the PIN alone, readable by this user: &pin-source=/PATH",
            Self::PinRefused => "write the right PIN to its file before the token locks itself",
            Self::NoToken | Self::SeveralTokens(_) => "compare with `pkcs11-tool --module MODULE --list-slots`",
            Self::NoKey | Self::SeveralKeys(_) => {
                "compare with `pkcs11-tool --module MODULE --login --list-objects --type privkey`"
            }
            Self::Kind | Self::MayNotSign | Self::NoMechanism => {
                "use an RSA key of 2048 to 4096 bits, or an EC key on P-256, that may sign"
            }
            Self::Malformed | Self::Silent(_) | Self::Thread(_) | Self::Pkcs11(_) => {
                "look into the token's own log; `pkcs11-tool --module MODULE --login --test` tries it without us"
            }
        }
    }
}
