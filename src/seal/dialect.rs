//! A dialect is data: how one bank wants a request signed. The renderer in `cavage.rs` reads it and never asks
//! which bank it serves; a new bank is a new constant. (`protocol.md` of the project lists what varies.)

use crate::key::Scheme;

/// How one bank wants requests signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// The profile's name in the configuration.
    pub name: &'static str,
    /// What is signed, in the order in which it is signed and listed.
    pub covered: &'static [Covered],
    /// The `algorithm` label printed for each scheme; a key of a scheme without a label cannot be used.
    pub labels: &'static [(Scheme, &'static str)],
    /// How the body's digest is made.
    pub digest: DigestRule,
    /// What `keyId` is unless the configuration names it.
    pub key_id: KeyIdRule,
    /// Whether `keyId`'s value stands in quotes.
    pub key_id_quoted: bool,
    /// What stands between the parameters of `Signature`.
    pub separator: &'static str,
    /// The header that carries the seal certificate as one base64 string of its DER, where a bank wants one.
    pub certificate_header: Option<&'static str>,
}

/// One line of the signing string: `(request-target)` or a lower-case header name, and when it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// [`REQUEST_TARGET`] or a header's name in lower case.
    pub name: &'static str,
    /// When it is signed.
    pub when: When,
}

/// The pseudo-header of draft-cavage-http-signatures-12 section 2.3: method and path with query.
pub const REQUEST_TARGET: &str = "(request-target)";

/// When a covered component is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// On every request; a request without it is not sealed.
    Always,
    /// Where the request has it; an absent header is neither listed nor signed.
    IfPresent,
    /// On every request with a body, which is not sealed without it.
    WithBody,
}

/// How a body's digest is computed and printed (RFC 3230 section 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestRule {
    /// The hash.
    pub algorithm: DigestAlgorithm,
    /// Whether a request without a body carries the digest of zero bytes.
    pub empty_body: bool,
}

/// The hash of a body, with its RFC 5843 name as banks print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestAlgorithm {
    /// `SHA-256=…`
    Sha256,
    /// `SHA-512=…`
    Sha512,
}

/// What `keyId` is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyIdRule {
    /// Lower-case hex SHA-1 of the seal certificate's DER.
    Sha1Hex,
    /// `SN=<serial, hex>,CA=<issuer, RFC 4514, each space as %20>` (NextGenPSD2 section 12).
    SerialAndIssuer,
}

/// Banque Européenne Crédit Mutuel and its sister brands of the group Crédit Mutuel Alliance Fédérale.
///
/// Source: the bank's developer portal, "Open Banking API" (headers to sign) and "Registration" (`kid`); order,
/// label and separator as two production clients send them.
pub const BECM: Dialect = Dialect {
    name: "becm",
    covered: &[
        Covered { name: REQUEST_TARGET, when: When::Always },
        Covered { name: "host", when: When::Always },
        Covered { name: "date", when: When::Always },
        Covered { name: "x-request-id", when: When::Always },
        Covered { name: "digest", when: When::WithBody },
        Covered { name: "content-type", when: When::WithBody },
    ],
    labels: &[(Scheme::RsaPkcs1Sha256, "rsa-sha256")],
    digest: DigestRule { algorithm: DigestAlgorithm::Sha256, empty_body: false },
    key_id: KeyIdRule::Sha1Hex,
    key_id_quoted: true,
    separator: ",",
    certificate_header: None,
};
