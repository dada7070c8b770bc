//! What the leaf certificate of an identity says, parsed once. Judges nothing: the clock is an argument, and what is
//! expired or meant for another purpose is still a certificate.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ring::digest::{Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA256_OUTPUT_LEN, digest};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::asn1_rs::{Any, Tag, ToDer};
use x509_parser::error::X509Error;
use x509_parser::prelude::{
    ASN1Time, AttributeTypeAndValue, FromDer as _, GeneralName, ParsedExtension, RelativeDistinguishedName,
    SubjectPublicKeyInfo, X509Certificate, X509Name,
};
use x509_parser::{nom, parse_x509_certificate, public_key};

use super::algorithm;
use super::qcstatements::{self, QcStatements};
use crate::key::Scheme;

/// An X.509 certificate (RFC 5280) and the facts in it.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: CertificateDer<'static>,
    version: u32,
    serial: Vec<u8>,
    subject: String,
    issuer: String,
    self_issued: bool,
    authority_key_id: Option<Vec<u8>>,
    organization: Option<String>,
    organization_identifier: Option<String>,
    hosts: Vec<String>,
    not_before: SystemTime,
    not_after: SystemTime,
    signature_algorithm: String,
    public_key: PublicKey,
    public_key_info: Vec<u8>,
    qc_statements: Result<Option<QcStatements>, qcstatements::Error>,
    ca: bool,
}

impl Certificate {
    /// Parses one certificate, with nothing behind it.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, Error> {
        let x509 = parse(&der)?;
        Ok(Self {
            version: x509.version().0 + 1,
            serial: x509.raw_serial().to_vec(),
            subject: distinguished_name(x509.subject()),
            issuer: distinguished_name(x509.issuer()),
            self_issued: x509.subject().as_raw() == x509.issuer().as_raw(),
            authority_key_id: authority_key_id(&x509),
            organization: attribute(x509.subject(), "O"),
            organization_identifier: attribute(x509.subject(), "organizationIdentifier"),
            hosts: hosts(&x509),
            not_before: system_time(x509.validity().not_before),
            not_after: system_time(x509.validity().not_after),
            signature_algorithm: algorithm::signature(&x509.signature_algorithm),
            public_key: PublicKey::of(x509.public_key())?,
            public_key_info: x509.public_key().raw.to_vec(),
            qc_statements: qc_statements(&x509),
            ca: x509.is_ca(),
            der,
        })
    }

    /// The whole certificate, as it was given.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The subject as a string of RFC 4514: the most specific name first, non-ASCII kept as UTF-8. Names that
    /// RFC 4514 and the eIDAS profiles do not know are dotted decimals with the value in hex.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The issuer, in the form of [`Self::subject`].
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Which of its issuer's keys signed it, as that names them (authorityKeyIdentifier, RFC 5280 section 4.2.1.1).
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.authority_key_id.as_deref()
    }

    /// The serial number's magnitude in lower-case hex: whole bytes, without DER's sign byte or leading zero bytes;
    /// `00` for zero.
    pub fn serial_hex(&self) -> String {
        let first = self.serial.iter().position(|byte| *byte != 0).unwrap_or(self.serial.len().saturating_sub(1));
        hex(&self.serial[first..])
    }

    /// The subject's organization name (2.5.4.10).
    pub fn organization(&self) -> Option<&str> {
        self.organization.as_deref()
    }

    /// The subject's organizationIdentifier (2.5.4.97), such as `PSDFR-ACPR-12345` (TS 119 495 section 5.2.1).
    pub fn organization_identifier(&self) -> Option<&str> {
        self.organization_identifier.as_deref()
    }

    /// The DNS names and addresses that it is for (subjectAltName, RFC 5280 section 4.2.1.6), in its order. Control
    /// characters are written as in [`Self::subject`].
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The first second of its validity.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last second of its validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Where `now` lies; both ends are within the validity (RFC 5280 section 4.1.2.5).
    pub fn validity_at(&self, now: SystemTime) -> Validity {
        if now < self.not_before {
            Validity::NotYet
        } else if now > self.not_after {
            Validity::Expired
        } else {
            Validity::Valid
        }
    }

    /// The DER's SHA-1 in lower-case hex. A name, never a proof.
    pub fn sha1_hex(&self) -> String {
        self.fingerprint(&SHA1_FOR_LEGACY_USE_ONLY)
    }

    /// What tells it from every other.
    pub fn id(&self) -> Fingerprint {
        Fingerprint::of(&self.der)
    }

    /// The DER's SHA-256 in lower-case hex.
    pub fn sha256_hex(&self) -> String {
        self.fingerprint(&SHA256)
    }

    /// What it is signed with, in words such as `ECDSA and SHA-256`.
    pub fn signature_algorithm(&self) -> &str {
        &self.signature_algorithm
    }

    /// The key that the certificate binds to its subject.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The DER of `SubjectPublicKeyInfo` (RFC 5280 section 4.1.2.7): what pins are made of.
    pub fn public_key_info(&self) -> &[u8] {
        &self.public_key_info
    }

    /// Whether the certificate's key made this signature. Takes RSA of 2048 to 8192 bits and EC on P-256; a scheme
    /// that does not fit the key is a bad signature.
    pub fn verify(&self, message: &[u8], signature: &[u8], scheme: Scheme) -> Result<(), BadSignature> {
        let (algorithm, key): (&dyn VerificationAlgorithm, _) = match (&self.public_key, scheme) {
            (PublicKey::Rsa { pkcs1, .. }, Scheme::RsaPkcs1Sha256) => (&RSA_PKCS1_2048_8192_SHA256, pkcs1),
            (PublicKey::Rsa { pkcs1, .. }, Scheme::RsaPkcs1Sha384) => (&RSA_PKCS1_2048_8192_SHA384, pkcs1),
            (PublicKey::Rsa { pkcs1, .. }, Scheme::RsaPkcs1Sha512) => (&RSA_PKCS1_2048_8192_SHA512, pkcs1),
            (PublicKey::Rsa { pkcs1, .. }, Scheme::RsaPssSha256) => (&RSA_PSS_2048_8192_SHA256, pkcs1),
            (PublicKey::Rsa { pkcs1, .. }, Scheme::RsaPssSha384) => (&RSA_PSS_2048_8192_SHA384, pkcs1),
            (PublicKey::Rsa { pkcs1, .. }, Scheme::RsaPssSha512) => (&RSA_PSS_2048_8192_SHA512, pkcs1),
            (PublicKey::Ec { curve: Curve::P256, point }, Scheme::EcdsaP256Sha256) => (&ECDSA_P256_SHA256_ASN1, point),
            _ => return Err(BadSignature),
        };
        UnparsedPublicKey::new(algorithm, key).verify(message, signature).map_err(|_| BadSignature)
    }

    /// The qualified-certificate statements; `None` without the extension, an error if it is malformed.
    pub fn qc_statements(&self) -> Result<Option<&QcStatements>, &qcstatements::Error> {
        self.qc_statements.as_ref().map(Option::as_ref)
    }

    /// Whether it may issue certificates (basicConstraints, RFC 5280 section 4.2.1.9).
    pub fn is_ca(&self) -> bool {
        self.ca
    }

    /// 1, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether subject and issuer are the same name (RFC 5280 section 3.2). Says nothing of who signed.
    pub fn is_self_issued(&self) -> bool {
        self.self_issued
    }

    fn fingerprint(&self, algorithm: &'static Algorithm) -> String {
        hex(digest(algorithm, &self.der).as_ref())
    }
}

/// What tells a certificate from every other: the SHA-256 of its DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint([u8; SHA256_OUTPUT_LEN]);

impl Fingerprint {
    /// Of a certificate's DER.
    pub fn of(der: &[u8]) -> Self {
        Self(digest(&SHA256, der).as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

/// Where a moment lies to a certificate's validity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Within it.
    Valid,
    /// Before it.
    NotYet,
    /// After it.
    Expired,
}

/// A certificate's public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// rsaEncryption (RFC 8017).
    Rsa {
        /// Of the modulus.
        bits: usize,
        /// The DER of `RSAPublicKey` (RFC 8017 appendix A.1.1).
        pkcs1: Vec<u8>,
    },
    /// id-ecPublicKey (RFC 5480).
    Ec {
        /// The named curve.
        curve: Curve,
        /// The point as SEC 1 section 2.3.3 encodes it.
        point: Vec<u8>,
    },
    /// Another algorithm, by its object identifier.
    Other(String),
}

impl PublicKey {
    /// The key in the DER of a `SubjectPublicKeyInfo`; `None` if it is none.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (rest, info) = SubjectPublicKeyInfo::from_der(der).ok()?;
        rest.is_empty().then(|| Self::of(&info).ok()).flatten()
    }

    fn of(info: &SubjectPublicKeyInfo<'_>) -> Result<Self, Error> {
        let bytes = || info.subject_public_key.data.to_vec();
        Ok(match info.parsed().map_err(Error::Malformed)? {
            public_key::PublicKey::RSA(key) => Self::Rsa { bits: bits(key.modulus), pkcs1: bytes() },
            public_key::PublicKey::EC(_) => Self::Ec { curve: Curve::of(info), point: bytes() },
            _ => Self::Other(info.algorithm.algorithm.to_id_string()),
        })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa { bits, .. } => write!(f, "RSA {bits}"),
            Self::Ec { curve, .. } => write!(f, "EC {curve}"),
            Self::Other(oid) => match algorithm::key(oid) {
                Some(name) => f.write_str(name),
                None => write!(f, "of the algorithm {oid}"),
            },
        }
    }
}

/// The curve of an EC key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Curve {
    /// secp256r1.
    P256,
    /// secp384r1.
    P384,
    /// Another one, by its object identifier; empty if it has none.
    Other(String),
}

impl Curve {
    /// Whether it is one that every TLS library knows.
    pub fn is_common(&self) -> bool {
        matches!(self, Self::P256 | Self::P384)
    }

    fn of(info: &SubjectPublicKeyInfo<'_>) -> Self {
        let oid = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let oid = oid.map_or_else(String::new, |oid| oid.to_id_string());
        match oid.as_str() {
            "1.2.840.10045.3.1.7" => Self::P256,
            "1.3.132.0.34" => Self::P384,
            _ => Self::Other(oid),
        }
    }
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P256 => f.write_str("P-256"),
            Self::P384 => f.write_str("P-384"),
            Self::Other(oid) if oid.is_empty() => f.write_str("a curve without a name"),
            Self::Other(oid) => match algorithm::curve(oid) {
                Some(name) => f.write_str(name),
                None => write!(f, "the curve {oid}"),
            },
        }
    }
}

/// The certificate's key did not make this signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the signature is not by the certificate's key")]
pub struct BadSignature;

/// Why bytes are not a certificate.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Error {
    /// Not the DER of one.
    #[error("not an X.509 certificate")]
    Malformed(#[source] X509Error),
    /// A certificate, and something behind it.
    #[error("bytes follow the X.509 certificate")]
    Trailing,
}

/// Parses one certificate, with nothing behind it.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Error> {
    match parse_x509_certificate(der) {
        Ok(_) if !algorithm::is_sequence(der) => Err(Error::Malformed(X509Error::InvalidCertificate)),
        Ok(([], certificate)) if certificate.raw_serial().is_empty() => Err(Error::Malformed(X509Error::InvalidSerial)),
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(Error::Trailing),
        Err(nom::Err::Error(error) | nom::Err::Failure(error)) => Err(Error::Malformed(error)),
        Err(nom::Err::Incomplete(_)) => Err(Error::Malformed(X509Error::InvalidCertificate)),
    }
}

/// A DER-encoded name in the form of [`Certificate::subject`]; `None` if it is none.
pub fn name_in_words(der: &[u8]) -> Option<String> {
    let (rest, name) = X509Name::from_der(der).ok()?;
    rest.is_empty().then(|| distinguished_name(&name))
}

/// The same for a name without the tag and length around it, as trust anchors keep it.
pub fn name_content_in_words(content: &[u8]) -> Option<String> {
    name_in_words(&algorithm::sequence(content))
}

/// None where the extension is absent or malformed.
fn hosts(x509: &X509Certificate<'_>) -> Vec<String> {
    let extension = x509.subject_alternative_name().ok().flatten();
    let names = extension.iter().flat_map(|extension| &extension.value.general_names);
    names.filter_map(host).collect()
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match *name {
        GeneralName::DNSName(name) => Some(escaped(name)),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

fn authority_key_id(x509: &X509Certificate<'_>) -> Option<Vec<u8>> {
    x509.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(said) => Some(said.key_identifier.as_ref()?.0.to_vec()),
        _ => None,
    })
}

fn qc_statements(x509: &X509Certificate<'_>) -> Result<Option<QcStatements>, qcstatements::Error> {
    let is_it = |oid: &x509_parser::der_parser::Oid<'_>| {
        oid.iter().is_some_and(|arcs| arcs.eq(qcstatements::EXTENSION.iter().copied()))
    };
    x509.extensions()
        .iter()
        .find(|extension| is_it(&extension.oid))
        .map(|it| QcStatements::decode(it.value))
        .transpose()
}

/// The magnitude of a DER integer in bits.
fn bits(integer: &[u8]) -> usize {
    let magnitude = integer.iter().position(|byte| *byte != 0).map_or(&[][..], |first| &integer[first..]);
    magnitude.first().map_or(0, |first| magnitude.len() * 8 - first.leading_zeros() as usize)
}

pub(super) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

fn attribute(name: &X509Name<'_>, wanted: &str) -> Option<String> {
    let mut attributes = name.iter().flat_map(RelativeDistinguishedName::iter);
    attributes.find(|attribute| short_name(&attribute.attr_type().to_id_string()) == Some(wanted)).and_then(text)
}

/// RFC 4514 section 2: the sequence is written from its end, multiple values of one RDN with `+`.
pub(super) fn distinguished_name(name: &X509Name<'_>) -> String {
    let rdns: Vec<_> = name.iter().collect();
    let rdn = |rdn: &RelativeDistinguishedName<'_>| rdn.iter().map(written).collect::<Vec<_>>().join("+");
    rdns.into_iter().rev().map(rdn).collect::<Vec<_>>().join(",")
}

/// `NAME=value`, or both as numbers where the name or the value's type is not known (RFC 4514 sections 2.3, 2.4).
fn written(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    match (short_name(&oid), text(attribute)) {
        (Some(name), Some(value)) => format!("{name}={}", escaped(&value)),
        (name, _) => format!("{}=#{}", name.unwrap_or(&oid), hex(&der_of(attribute.attr_value()))),
    }
}

fn der_of(value: &Any<'_>) -> Vec<u8> {
    value.to_der_vec().expect("a value that was read can be written to memory")
}

/// RFC 4514 section 2.4. A carriage return or another control character would break the line that it is logged on.
fn escaped(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(value.len());
    for (at, character) in value.chars().enumerate() {
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', character]),
            ' ' if at == 0 || at == last => out.push_str("\\ "),
            '#' if at == 0 => out.push_str("\\#"),
            control if control.is_control() => {
                let mut utf8 = [0; 4];
                control.encode_utf8(&mut utf8).bytes().for_each(|byte| out.push_str(&format!("\\{byte:02x}")));
            }
            plain => out.push(plain),
        }
    }
    out
}

/// The text of a string type of X.520; `None` for anything else.
fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let value = attribute.attr_value();
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            String::from_utf8(value.data.to_vec()).ok()
        }
        // As everybody reads it: ISO 8859-1, not T.61.
        Tag::TeletexString => Some(value.data.iter().copied().map(char::from).collect()),
        Tag::BmpString => {
            let (units, rest) = value.data.as_chunks::<2>();
            let units: Vec<_> = units.iter().copied().map(u16::from_be_bytes).collect();
            String::from_utf16(&units).ok().filter(|_| rest.is_empty())
        }
        Tag::UniversalString => {
            let (units, rest) = value.data.as_chunks::<4>();
            let text: Option<String> = units.iter().copied().map(u32::from_be_bytes).map(char::from_u32).collect();
            text.filter(|_| rest.is_empty())
        }
        _ => None,
    }
}

/// The table of RFC 4514 section 3, and what the profiles of eIDAS and of website certificates add.
fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.15" => "businessCategory",
        "2.5.4.17" => "postalCode",
        "2.5.4.42" => "GN",
        "2.5.4.97" => "organizationIdentifier",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "1.3.6.1.4.1.311.60.2.1.1" => "jurisdictionL",
        "1.3.6.1.4.1.311.60.2.1.2" => "jurisdictionST",
        "1.3.6.1.4.1.311.60.2.1.3" => "jurisdictionC",
        _ => return None,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;

    use super::*;

    fn certificate() -> Certificate {
        Certificate::from_der(CertificateDer::from_pem_slice(PEM.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn the_facts_are_those_that_openssl_prints() {
        let certificate = certificate();
        assert_eq!(
            certificate.subject(),
            r##"CN=\#1\;\<a\>\\\ ,OU=\ #x\ +organizationIdentifier=PSDFR-ACPR-1,O=Société\, Générale \+ \"Fils\",C=FR"##
        );
        assert_eq!(certificate.issuer(), certificate.subject());
        assert!(certificate.is_self_issued());
        assert!(certificate.is_ca());
        assert_eq!(certificate.version(), 3);
        assert_eq!(certificate.serial_hex(), "ff01");
        assert_eq!(certificate.organization(), Some("Société, Générale + \"Fils\""));
        assert_eq!(certificate.organization_identifier(), Some("PSDFR-ACPR-1"));
        assert_eq!(certificate.sha1_hex(), "e4b983bdc5dd871aa36ef4c8e93c5ad4e513172c");
        assert_eq!(certificate.sha256_hex(), "b1cd884671e0b553386cae5136f4bcaed75f28ca82d0e1d77539079f53270afb");
        assert!(matches!(certificate.public_key(), PublicKey::Ec { curve: Curve::P256, point } if point.len() == 65));
        assert_eq!(certificate.qc_statements(), Ok(None));
        assert_eq!(certificate.hosts(), [""; 0]);
    }

    #[test]
    fn a_name_in_words_is_the_subject_s_and_damaged_bytes_are_none() {
        let certificate = certificate();
        let x509 = parse(certificate.der()).unwrap();
        let der = x509.subject().as_raw();
        assert_eq!(name_in_words(der).as_deref(), Some(certificate.subject()));
        assert_eq!(name_in_words(&[der, b"\0"].concat()), None);
        for end in 0..der.len() {
            assert_eq!(name_in_words(&der[..end]), None, "{end}");
        }
    }

    #[test]
    fn both_ends_of_the_validity_are_within() {
        let certificate = certificate();
        let at = |seconds| certificate.validity_at(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(1_795_411_083), Validity::NotYet);
        assert_eq!(at(1_795_411_084), Validity::Valid);
        assert_eq!(at(2_110_771_084), Validity::Valid);
        assert_eq!(at(2_110_771_085), Validity::Expired);
    }

    #[test]
    fn a_signature_of_openssl_verifies_and_another_does_not() {
        let certificate = certificate();
        let mut signature: Vec<u8> =
            (0..SIGNATURE.len()).step_by(2).map(|at| u8::from_str_radix(&SIGNATURE[at..at + 2], 16).unwrap()).collect();
        assert_eq!(certificate.verify(b"hello", &signature, Scheme::EcdsaP256Sha256), Ok(()));
        assert_eq!(certificate.verify(b"hullo", &signature, Scheme::EcdsaP256Sha256), Err(BadSignature));
        assert_eq!(certificate.verify(b"hello", &signature, Scheme::RsaPkcs1Sha256), Err(BadSignature));
        signature[20] ^= 1;
        assert_eq!(certificate.verify(b"hello", &signature, Scheme::EcdsaP256Sha256), Err(BadSignature));
    }

    #[test]
    fn truncated_and_damaged_bytes_are_errors_and_never_panics() {
        let der = certificate().der().to_vec();
        for end in 0..der.len() {
            assert!(Certificate::from_der(der[..end].to_vec().into()).is_err(), "{end}");
        }
        for at in 0..der.len() {
            for value in [0, 1, 0x30, 0x7f, 0x80, 0x84, 0xff] {
                let mut damaged = der.clone();
                damaged[at] = value;
                let _ = Certificate::from_der(damaged.into()).map(|damaged| damaged.serial_hex());
            }
        }
        let trailing = [der.as_slice(), b"\n"].concat();
        assert_eq!(Certificate::from_der(trailing.into()).unwrap_err(), Error::Trailing);
    }

    #[test]
    fn control_characters_are_written_as_hex_pairs() {
        assert_eq!(escaped("a\r\nb\u{85}"), "a\\0d\\0ab\\c2\\85");
        assert_eq!(escaped(" "), "\\ ");
        assert_eq!(escaped(""), "");
    }

    #[test]
    fn the_size_of_a_modulus_is_counted_in_bits() {
        assert_eq!(bits(&[0, 0x80, 0]), 16);
        assert_eq!(bits(&[0x7f, 0]), 15);
        assert_eq!(bits(&[0]), 0);
        assert_eq!(bits(&[]), 0);
    }

    // Made with OpenSSL 3.0 for this test alone; the signature is over "hello".
    const SIGNATURE: &str = "30450220360959c23040fdb04ca9cfa5d5810dcf2da3579d61c6fc0e159a93dd7f9781be022100ebd20fe386\
                             8e26a47883cc6ca6b3969ae3dc5e7fc8a4301d3ddeaa25de3bb6e1";
    const PEM: &str = "\
-----BEGIN CERTIFICATE-----
MIICHjCCAcSgAwIBAgIDAP8BMAoGCCqGSM49BAMCMG0xCzAJBgNVBAYTAkZSMScw
JQYDVQQKDB5Tb2Npw6l0w6ksIEfDqW7DqXJhbGUgKyAiRmlscyIxIjALBgNVBAsM
BCAjeCAwEwYDVQRhDAxQU0RGUi1BQ1BSLTExETAPBgNVBAMMCCMxOzxhPlwgMB4X
DTI2MTEyMzA1MTgwNFoXDTM2MTEyMDA1MTgwNFowbTELMAkGA1UEBhMCRlIxJzAl
BgNVBAoMHlNvY2nDqXTDqSwgR8OpbsOpcmFsZSArICJGaWxzIjEiMAsGA1UECwwE
ICN4IDATBgNVBGEMDFBTREZSLUFDUFItMTERMA8GA1UEAwwIIzE7PGE+XCAwWTAT
BgcqhkjOPQIBBggqhkjOPQMBBwNCAAQZIKqR8orbXN0JVAMB0vXDwYmiW5uuZLNh
TzCvi9hrDaffKfuD0OYpWe7mlaZvHEe2If7e9ZYiy1Ynq6faVAG4o1MwUTAdBgNV
HQ4EFgQU7sRp7PnIhYBHSFq960juIGiFKeQwHwYDVR0jBBgwFoAU7sRp7PnIhYBH
SFq960juIGiFKeQwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEA
+w20oNlGjqmUupgdmO+r23IKD5Ur7ybqRAvIfunbDOgCIAlpsL8HMpNYkiuC23vr
zJBhnTNZ7pXT1KiW8roYTvwk
-----END CERTIFICATE-----
";
}
