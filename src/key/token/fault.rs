//! Why a token gives no key, or no signature, and what may be done about it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use cryptoki::context::Function;
use cryptoki::error::{Error as Pkcs11Error, RvError};

/// Why a token gives no key, or no signature.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The shared library.
    #[error("{}: the module cannot be loaded", .0.display())]
    Module(PathBuf, #[source] Refusal),
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
    #[error("the token's module refused")]
    Pkcs11(#[from] Refusal),
}

impl Fault {
    /// Whether the same token may do better in a moment: half of what it keeps was read, or it was not there.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::NoToken => true,
            Self::Pkcs11(refusal) => !refusal.may_be_of_the_pin(),
            _ => false,
        }
    }

    /// Whether the token is not there now, or does not answer.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::NoToken | Self::Silent(_) => true,
            Self::Pkcs11(refusal) => refusal.is_absence(),
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

/// What a module answered to a call.
#[derive(Debug)]
pub struct Refusal(Pkcs11Error);

impl Refusal {
    /// Whether it may have used up one of the few tries that a PIN has, in whatever words of its vendor's.
    fn may_be_of_the_pin(&self) -> bool {
        match &self.0 {
            Pkcs11Error::Pkcs11(RvError::UserPinNotInitialized, _) => false,
            Pkcs11Error::Pkcs11(_, function) => matches!(function, Function::Login),
            _ => false,
        }
    }

    /// Whether a new session might do better: everything but what speaks of the request itself.
    pub(super) fn is_lost(&self) -> bool {
        use RvError as R;
        !matches!(
            self.0,
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
    fn is_absence(&self) -> bool {
        use RvError as R;
        matches!(
            self.0,
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
}

impl From<Pkcs11Error> for Refusal {
    fn from(error: Pkcs11Error) -> Self {
        Self(error)
    }
}

/// As the token's vendor and its log call it: `C_Login: CKR_DEVICE_ERROR` (PKCS#11 3.1 section 5.1).
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Pkcs11Error::Pkcs11(RvError::VendorDefined(code) | RvError::UnknownErrorCode(code), function) => {
                write!(f, "C_{function:?}: {code:#x}")
            }
            Pkcs11Error::Pkcs11(known, function) => {
                write!(f, "C_{function:?}: CKR{}", in_capitals(&format!("{known:?}")))
            }
            other => other.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Three tries, and the token locks itself.
    #[test]
    fn no_refused_login_is_tried_again() {
        let fault = |answer, function| Fault::from(Refusal(Pkcs11Error::Pkcs11(answer, function)));
        assert!(!fault(RvError::VendorDefined(0x8000_0a01), Function::Login).may_pass());
        assert!(!fault(RvError::FunctionFailed, Function::Login).may_pass());
        assert!(!Fault::PinRefused.may_pass());
        assert!(fault(RvError::UserPinNotInitialized, Function::Login).may_pass(), "no PIN was looked at");
        assert!(fault(RvError::GeneralError, Function::Initialize).may_pass());
        assert!(Fault::NoToken.may_pass());
    }

    #[test]
    fn a_refusal_is_spelt_as_the_standard_spells_it() {
        for (answer, function, expected) in [
            (RvError::PinLenRange, Function::Login, "C_Login: CKR_PIN_LEN_RANGE"),
            (RvError::UserPinNotInitialized, Function::OpenSession, "C_OpenSession: CKR_USER_PIN_NOT_INITIALIZED"),
            (RvError::VendorDefined(0x8000_0001), Function::Sign, "C_Sign: 0x80000001"),
        ] {
            assert_eq!(Refusal(Pkcs11Error::Pkcs11(answer, function)).to_string(), expected);
        }
    }
}
