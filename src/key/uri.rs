//! `pkcs11:` URIs (RFC 7512): which key on which token, and how to get at it. Not PKCS#11 itself.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// Names one private key behind PKCS#11, the module that leads there and the file with its PIN.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenUri {
    /// The module's shared library, `module-path`: absolute.
    pub module: PathBuf,
    /// The file with the user's PIN, `pin-source`: absolute. `None`: the token asks for none, or has a keypad.
    pub pin: Option<PathBuf>,
    /// What the token must be like; at least one of them, or of [`slot_id`](Self::slot_id).
    pub token: TokenNames,
    /// The slot's number. Most modules number their slots anew at each start.
    pub slot_id: Option<u64>,
    /// The key's label, `object`. At least one of label and id.
    pub object: Option<String>,
    /// The key's `CKA_ID`.
    pub id: Option<Vec<u8>>,
}

/// What a token calls itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TokenNames {
    /// Its label, `token`.
    pub label: Option<String>,
    /// Who made it.
    pub manufacturer: Option<String>,
    /// What it is.
    pub model: Option<String>,
    /// Which one it is.
    pub serial: Option<String>,
}

impl TokenNames {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What every such URI begins with.
pub const SCHEME: &str = "pkcs11:";

impl FromStr for TokenUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let rest = text.strip_prefix(SCHEME).ok_or(UriError::Scheme)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut token, mut slot_id, mut object, mut id) = (TokenNames::default(), None, None, None);
        for (name, value) in attributes(path, ';')? {
            let first = match name {
                "token" => set(&mut token.label, words(name, &value)?),
                "manufacturer" => set(&mut token.manufacturer, words(name, &value)?),
                "model" => set(&mut token.model, words(name, &value)?),
                "serial" => set(&mut token.serial, words(name, &value)?),
                "slot-id" => set(&mut slot_id, words(name, &value)?.parse().map_err(|_| UriError::SlotId)?),
                "object" => set(&mut object, words(name, &value)?),
                "id" => set(&mut id, value),
                "type" if value == b"private" => true,
                "type" => return Err(UriError::Type),
                other => return Err(UriError::Unknown(other.to_owned())),
            };
            if !first {
                return Err(UriError::Twice(name.to_owned()));
            }
        }
        let (mut module, mut pin) = (None, None);
        for (name, value) in attributes(query, '&')? {
            let first = match name {
                "module-path" => set(&mut module, absolute(name, &value)?),
                "pin-source" => set(&mut pin, absolute(name, value.strip_prefix(b"file:").unwrap_or(&value))?),
                "pin-value" => return Err(UriError::PinValue),
                "module-name" => return Err(UriError::ModuleName),
                other => return Err(UriError::Unknown(other.to_owned())),
            };
            if !first {
                return Err(UriError::Twice(name.to_owned()));
            }
        }
        if object.is_none() && id.is_none() {
            return Err(UriError::NoObject);
        }
        if token.is_empty() && slot_id.is_none() {
            return Err(UriError::NoToken);
        }
        Ok(Self { module: module.ok_or(UriError::NoModule)?, pin, token, slot_id, object, id })
    }
}

/// Whether it was not set before.
fn set<T>(place: &mut Option<T>, value: T) -> bool {
    place.replace(value).is_none()
}

fn attributes(text: &str, separator: char) -> Result<Vec<(&str, Vec<u8>)>, UriError> {
    let parts = text.split(separator).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').ok_or_else(|| UriError::NoValue(part.to_owned()))?;
            Ok((name, decoded(value).ok_or_else(|| UriError::Encoding(name.to_owned()))?))
        })
        .collect()
}

/// Percent-decodes (RFC 3986 section 2.1).
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let (digits, after) = after.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    Some(bytes)
}

fn words(name: &str, value: &[u8]) -> Result<String, UriError> {
    String::from_utf8(value.to_vec()).map_err(|_| UriError::Encoding(name.to_owned()))
}

fn absolute(name: &str, value: &[u8]) -> Result<PathBuf, UriError> {
    let path = PathBuf::from(words(name, value)?);
    if path.is_absolute() { Ok(path) } else { Err(UriError::Path(name.to_owned())) }
}

impl fmt::Display for TokenUri {
    /// What names the key, in the order of RFC 7512's examples; neither module nor PIN.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TokenNames { label, manufacturer, model, serial } = &self.token;
        let texts = [("token", label), ("manufacturer", manufacturer), ("serial", serial), ("model", model)];
        let mut parts: Vec<String> = texts
            .iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", encoded(value.as_ref()?.bytes()))))
            .collect();
        parts.extend(self.slot_id.map(|slot| format!("slot-id={slot}")));
        parts.extend(self.object.as_ref().map(|object| format!("object={}", encoded(object.bytes()))));
        parts.extend(
            self.id.as_ref().map(|id| format!("id={}", id.iter().map(|b| format!("%{b:02x}")).collect::<String>())),
        );
        write!(f, "{SCHEME}{}", parts.join(";"))
    }
}

fn encoded(bytes: impl Iterator<Item = u8>) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]@!$'()*+,=&".contains(&byte);
    bytes.map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Why a text names no key on a token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UriError {
    /// Another scheme.
    #[error("is not a pkcs11: URI")]
    Scheme,
    /// An attribute without `=`.
    #[error("has an attribute without a value: `{0}`")]
    NoValue(String),
    /// A `%` that is not followed by two digits, or bytes that are no UTF-8.
    #[error("has a badly encoded `{0}`")]
    Encoding(String),
    /// The same attribute again.
    #[error("has `{0}` twice")]
    Twice(String),
    /// An attribute that says nothing about where a private key is.
    #[error("has `{0}`, which is not used here")]
    Unknown(String),
    /// Not a number.
    #[error("has a `slot-id` that is not a number")]
    SlotId,
    /// A certificate, a public key, …
    #[error("names another type than `private`")]
    Type,
    /// Neither label nor id.
    #[error("names no key")]
    NoObject,
    /// No token.
    #[error("names no token")]
    NoToken,
    /// No module.
    #[error("does not say which module leads to the token")]
    NoModule,
    /// A relative path.
    #[error("has a `{0}` that is not an absolute path")]
    Path(String),
    /// The secret itself.
    #[error("holds the PIN itself")]
    PinValue,
    /// A name in place of a path.
    #[error("has a `module-name`, whose place is not known here")]
    ModuleName,
}

impl UriError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoObject => "name it by `object=LABEL` or `id=%01`",
            Self::NoToken => "name it by `token=LABEL`, `serial=…` or `slot-id=…`",
            Self::NoModule | Self::ModuleName | Self::Path(_) => {
                "end it in ?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/run/secrets/pin, with your own paths"
            }
            Self::PinValue => "write the PIN to a file, and name the file: &pin-source=/run/secrets/pin",
            _ => "write it as RFC 7512 does: pkcs11:token=LABEL;object=LABEL?module-path=/PATH.so&pin-source=/PATH",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHERE: &str = "?module-path=/lib/p11.so&pin-source=/run/pin";

    fn parse(path: &str) -> Result<TokenUri, UriError> {
        format!("{path}{WHERE}").parse()
    }

    #[test]
    fn a_key_is_named_by_token_and_object() {
        let uri = parse(
            "pkcs11:token=My%20token;manufacturer=Snake%20Oil;serial=1;model=2;object=seal;id=%01%a0;type=private",
        )
        .expect("legal");
        assert_eq!(uri.module, PathBuf::from("/lib/p11.so"));
        assert_eq!(uri.pin, Some("/run/pin".into()));
        assert_eq!(uri.token.label.as_deref(), Some("My token"));
        assert_eq!((uri.object.as_deref(), uri.id.as_deref()), (Some("seal"), Some(&[0x01, 0xa0][..])));
        assert_eq!(
            uri.to_string(),
            "pkcs11:token=My%20token;manufacturer=Snake%20Oil;serial=1;model=2;object=seal;id=%01%a0"
        );
        assert_eq!(parse(&uri.to_string()), Ok(uri));
        let file: TokenUri = "pkcs11:slot-id=7;id=%01?pin-source=file:/p&module-path=/m".parse().expect("legal");
        assert_eq!((file.slot_id, file.pin), (Some(7), Some("/p".into())));
    }

    #[test]
    fn what_names_no_key_is_refused() {
        let twice = |name: &str| UriError::Twice(name.into());
        for (text, error) in [
            ("file:/a", UriError::Scheme),
            ("pkcs11:", UriError::NoObject),
            ("pkcs11:object=a", UriError::NoToken),
            ("pkcs11:token=a", UriError::NoObject),
            ("pkcs11:token=a;object=b;object=c", twice("object")),
            ("pkcs11:token=a;object", UriError::NoValue("object".into())),
            ("pkcs11:token=%zz;object=b", UriError::Encoding("token".into())),
            ("pkcs11:token=%+1;object=b", UriError::Encoding("token".into())),
            ("pkcs11:token=%1;object=b", UriError::Encoding("token".into())),
            ("pkcs11:token=%ff;object=b", UriError::Encoding("token".into())),
            ("pkcs11:token=a;object=b;type=cert", UriError::Type),
            ("pkcs11:token=a;object=b;slot-id=x", UriError::SlotId),
            ("pkcs11:token=a;object=b;x-vendor=1", UriError::Unknown("x-vendor".into())),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
        for (query, error) in [
            ("", UriError::NoModule),
            ("?module-path=lib.so", UriError::Path("module-path".into())),
            ("?module-name=softhsm", UriError::ModuleName),
            ("?module-path=/a&pin-value=1234", UriError::PinValue),
            ("?module-path=/a&pin-source=|cmd", UriError::Path("pin-source".into())),
            ("?module-path=/a&pin-source=pin", UriError::Path("pin-source".into())),
        ] {
            let found = format!("pkcs11:token=a;object=b{query}").parse::<TokenUri>();
            assert_eq!(found, Err(error), "{query}");
        }
    }
}
