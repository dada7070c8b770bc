//! PKCS#11 modules: shared libraries whose state is the process's. Must not know tokens, sessions or keys.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as Pkcs11Error, RvError};

use super::fault::{Fault, Refusal};
use super::{LOOK, lock};

/// A module of this process. Loaded once, whoever asks: its state is the process's.
pub(super) struct Module {
    library: RwLock<Pkcs11>,
    /// How often it was started.
    epoch: AtomicU64,
    started: Mutex<Instant>,
}

static MODULES: LazyLock<Mutex<HashMap<PathBuf, Arc<Module>>>> = LazyLock::new(Mutex::default);

impl Module {
    pub(super) fn load(path: &PathBuf) -> Result<Arc<Self>, Fault> {
        let mut modules = lock(&MODULES);
        if let Some(module) = modules.get(path) {
            return Ok(Arc::clone(module));
        }
        let library = Pkcs11::new(path).map_err(|error| Fault::Module(path.clone(), error.into()))?;
        initialize(&library).map_err(Refusal::from)?;
        let module = Arc::new(Self {
            library: RwLock::new(library),
            epoch: AtomicU64::new(0),
            started: Mutex::new(Instant::now()),
        });
        modules.insert(path.clone(), Arc::clone(&module));
        Ok(module)
    }

    pub(super) fn loaded(path: &PathBuf) -> Option<Arc<Self>> {
        lock(&MODULES).get(path).cloned()
    }

    /// Held while a call lasts: nobody starts the library anew under its hands.
    pub(super) fn library(&self) -> RwLockReadGuard<'_, Pkcs11> {
        self.library.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Starts the library anew, unless somebody has since `epoch`: some look for tokens only then. Not while another
    /// thread is in it, and not more often than once a second. Returns whether it is worth another try.
    pub(super) fn looks_anew(&self, epoch: u64) -> bool {
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

/// How often a library may be started.
pub(super) const LOOK_ANEW: Duration = Duration::from_secs(1);

/// Waits until no thread is in a module, for a moment at most, and lets none in again. A module's own memory is gone
/// while the process ends, and a thread that closes its session then would crash it.
pub(in super::super) fn leave() {
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
