//! The incremental digest of a body, and its `Digest` header (RFC 3230). Not HTTP: frames come in as bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use sha2::{Digest as _, Sha256, Sha512};

use super::dialect::DigestAlgorithm;

/// A digest that grows as body frames arrive.
#[derive(Clone, Debug)]
pub enum BodyDigest {
    /// SHA-256 so far.
    Sha256(Sha256),
    /// SHA-512 so far.
    Sha512(Sha512),
}

impl BodyDigest {
    /// The digest of no bytes yet.
    pub fn new(algorithm: DigestAlgorithm) -> Self {
        match algorithm {
            DigestAlgorithm::Sha256 => Self::Sha256(Sha256::new()),
            DigestAlgorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Takes the next bytes of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// Ends the body and renders the header's value, `SHA-256=<base64>`.
    pub fn finish(self) -> HeaderValue {
        let text = match self {
            Self::Sha256(hash) => render("SHA-256=", &hash.finalize()),
            Self::Sha512(hash) => render("SHA-512=", &hash.finalize()),
        };
        HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).expect("base64 is visible ASCII")
    }
}

fn render(label: &str, hash: &[u8]) -> String {
    let mut text = String::with_capacity(label.len() + hash.len().div_ceil(3) * 4);
    text.push_str(label);
    STANDARD.encode_string(hash, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(algorithm: DigestAlgorithm, frames: &[&str]) -> HeaderValue {
        let mut digest = BodyDigest::new(algorithm);
        frames.iter().for_each(|frame| digest.update(frame.as_bytes()));
        digest.finish()
    }

    // Values of RFC 9530 appendix D and of an empty body.
    #[test]
    fn equals_the_published_values() {
        let sha256 = |body| digest(DigestAlgorithm::Sha256, &[body]);
        assert_eq!(sha256("{\"hello\": \"world\"}"), "SHA-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=");
        assert_eq!(sha256(""), "SHA-256=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert_eq!(
            digest(DigestAlgorithm::Sha512, &["{\"hello\": \"world\"}"]),
            "SHA-512=WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew=="
        );
    }

    #[test]
    fn does_not_depend_on_framing() {
        let whole = digest(DigestAlgorithm::Sha256, &["abcdef"]);
        assert_eq!(whole, digest(DigestAlgorithm::Sha256, &["a", "", "bcd", "ef"]));
    }
}
