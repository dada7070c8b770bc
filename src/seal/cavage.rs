//! The signing string and the `Signature` header of draft-cavage-http-signatures-12. One loop over a list of
//! components serves signer and verifier alike. Must not know banks, keys or sockets.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use thiserror::Error;

use super::dialect::REQUEST_TARGET;

/// What a signature can cover of a request: its head as it is on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// Path and query, byte for byte as sent.
    pub target: &'a str,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

/// One line of the signing string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Component {
    /// `(request-target)`: lower-case method, a space, path and query (section 2.3).
    RequestTarget,
    /// A header field, all its instances joined with a comma and a space (section 2.3).
    Header(HeaderName),
}

impl Component {
    /// Reads a name as it stands in a `headers` list or a dialect; `None` if it is no header's name.
    pub fn parse(name: &str) -> Option<Self> {
        if name == REQUEST_TARGET {
            return Some(Self::RequestTarget);
        }
        HeaderName::from_bytes(name.as_bytes()).ok().map(Self::Header)
    }

    /// The name as it is signed and listed: lower case.
    pub fn name(&self) -> &str {
        match self {
            Self::RequestTarget => REQUEST_TARGET,
            Self::Header(name) => name.as_str(),
        }
    }

    /// Whether the message has it.
    pub fn is_in(&self, message: &Message<'_>) -> bool {
        match self {
            Self::RequestTarget => true,
            Self::Header(name) => message.headers.contains_key(name),
        }
    }

    fn append(&self, string: &mut Vec<u8>, message: &Message<'_>) -> Result<(), Absent> {
        match self {
            Self::RequestTarget => {
                string.extend(message.method.as_str().bytes().map(|byte| byte.to_ascii_lowercase()));
                string.push(b' ');
                string.extend_from_slice(message.target.as_bytes());
            }
            Self::Header(name) => {
                let mut values = message.headers.get_all(name).iter();
                let first = values.next().ok_or_else(|| Absent(name.clone()))?;
                string.extend_from_slice(first.as_bytes().trim_ascii());
                for value in values {
                    string.extend_from_slice(b", ");
                    string.extend_from_slice(value.as_bytes().trim_ascii());
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A header that is to be signed is not in the message: nothing may be signed then (section 2.3).
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the header {0} is to be signed, and the request has none")]
pub struct Absent(pub HeaderName);

/// Renders the signing string: `name: value` lines with a line feed between them and none at the end.
pub fn signing_string<'a>(
    components: impl Iterator<Item = &'a Component>,
    message: &Message<'_>,
) -> Result<Vec<u8>, Absent> {
    let mut string = Vec::with_capacity(TYPICAL_STRING + message.target.len());
    for component in components {
        if !string.is_empty() {
            string.push(b'\n');
        }
        string.extend_from_slice(component.name().as_bytes());
        string.extend_from_slice(b": ");
        component.append(&mut string, message)?;
    }
    Ok(string)
}

/// The signing string of a request with a body under the `becm` dialect is about this long without its target.
const TYPICAL_STRING: usize = 320;

/// The parameters of a `Signature` header that stay the same from request to request, rendered once.
#[derive(Clone, Debug)]
pub struct SignatureFrame {
    before_list: Vec<u8>,
    before_signature: Vec<u8>,
}

impl SignatureFrame {
    /// `key_id` holds no quote, backslash or control character: [`SignatureFrame::accepts`] tells.
    pub fn new(key_id: &str, quoted: bool, label: &str, separator: &str) -> Self {
        let key_id = if quoted { format!("\"{key_id}\"") } else { key_id.to_owned() };
        Self {
            before_list: format!("keyId={key_id}{separator}algorithm=\"{label}\"{separator}headers=\"").into_bytes(),
            before_signature: format!("\"{separator}signature=\"").into_bytes(),
        }
    }

    /// Whether a key id can be written: visible ASCII and spaces within quotes, a token without (RFC 9110 5.6).
    pub fn accepts(key_id: &str, quoted: bool) -> bool {
        let legal = |byte: u8| match byte {
            b'"' | b'\\' => false,
            b' '..=b'~' if quoted => true,
            _ => byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte),
        };
        !key_id.is_empty() && key_id.bytes().all(legal)
    }

    /// Renders the header's value around a list of covered components and a signature in base64.
    pub fn render<'a>(&self, covered: impl Iterator<Item = &'a Component>, signature: &str) -> HeaderValue {
        let mut value = Vec::with_capacity(
            self.before_list.len() + TYPICAL_LIST + self.before_signature.len() + signature.len() + 1,
        );
        value.extend_from_slice(&self.before_list);
        for (index, component) in covered.enumerate() {
            if index > 0 {
                value.push(b' ');
            }
            value.extend_from_slice(component.name().as_bytes());
        }
        value.extend_from_slice(&self.before_signature);
        value.extend_from_slice(signature.as_bytes());
        value.push(b'"');
        HeaderValue::from_maybe_shared(bytes::Bytes::from(value)).expect("every part is visible ASCII")
    }
}

/// Room for the names of the components that a dialect covers.
const TYPICAL_LIST: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn string(method: Method, target: &str, headers: &HeaderMap, list: &str) -> Result<String, Absent> {
        let components: Vec<_> = list.split(' ').map(|name| Component::parse(name).expect("a name")).collect();
        let message = Message { method: &method, target, headers };
        signing_string(components.iter(), &message).map(|bytes| String::from_utf8(bytes).expect("text"))
    }

    // The example of draft-cavage-http-signatures-12 section 2.3.
    #[test]
    fn renders_the_example_of_the_draft() {
        let mut fields = headers(&[
            ("host", "example.org"),
            ("date", "Tue, 07 Jun 2014 20:51:35 GMT"),
            ("x-example", "Example header with some whitespace.  "),
            ("x-emptyheader", ""),
            ("cache-control", "max-age=60"),
        ]);
        fields.append("cache-control", HeaderValue::from_static("must-revalidate"));
        let list = "(request-target) host date cache-control x-emptyheader x-example";
        assert_eq!(
            string(Method::GET, "/foo", &fields, list).expect("all there"),
            "(request-target): get /foo\nhost: example.org\ndate: Tue, 07 Jun 2014 20:51:35 GMT\n\
             cache-control: max-age=60, must-revalidate\nx-emptyheader: \nx-example: Example header with some whitespace."
        );
    }

    #[test]
    fn an_absent_header_is_an_error_and_never_an_empty_line() {
        let absent = string(Method::GET, "/", &HeaderMap::new(), "(request-target) digest");
        assert_eq!(absent, Err(Absent(HeaderName::from_static("digest"))));
    }

    #[test]
    fn the_target_keeps_its_bytes() {
        let target = "/a%2F%2f//b;c=1+:@~?a=1&a=2&b;c&=&%zz&";
        let line = string(Method::DELETE, target, &HeaderMap::new(), "(request-target)").expect("no header needed");
        assert_eq!(line, format!("(request-target): delete {target}"));
    }

    #[test]
    fn a_key_id_that_would_break_out_of_its_quotes_is_not_accepted() {
        assert!(SignatureFrame::accepts("SN=1,CA=CN=A%20B", true));
        assert!(!SignatureFrame::accepts("a\",algorithm=\"none", true));
        assert!(!SignatureFrame::accepts("a,b", false));
        assert!(!SignatureFrame::accepts("", true));
    }
}
