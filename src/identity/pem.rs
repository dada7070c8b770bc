//! Files to certificate chains and private keys: PEM (RFC 7468) or DER in, DER out, and for whatever else people have
//! in such files, its name and the way out. Must not know which key fits which certificate. No error shows content.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls_pemfile::Item;
use thiserror::Error;
use x509_parser::asn1_rs::{Any, Class, FromBer as _, Tag};
use x509_parser::prelude::{FromDer, X509CertificationRequest};
use zeroize::Zeroizing;

use super::algorithm::is_sequence;
pub use super::encrypted::Bundle;
use super::passphrase::{Passphrase, PassphraseError};
use super::revocation_list::RevocationList;
use super::{certificate, encrypted};
use crate::files::{self, ReadError};

/// Reads a certificate chain, leaf first: PEM with any text around, or one DER certificate. Keys beside the
/// certificates are left alone. At least one certificate.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let chain = files::read(path, LIMIT).map_err(Reason::from).and_then(|bytes| chain(&bytes));
    chain.map_err(|reason| Error { path: path.to_owned(), reason })
}

/// Reads the one unencrypted private key of a file: PKCS#8 (RFC 5208), PKCS#1 (RFC 8017) or SEC1 (RFC 5915), as PEM
/// or DER. Certificates beside the key are left alone.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let key = files::read(path, LIMIT).map_err(Reason::from).and_then(|bytes| key(&bytes));
    key.map_err(|reason| Error { path: path.to_owned(), reason })
}

/// Reads the one private key of a file that a passphrase opens (PKCS#8, RFC 5958 section 3), and no unencrypted one:
/// whoever gives a passphrase believes that the key is encrypted.
pub fn read_encrypted_key(path: &Path, passphrase: &Passphrase) -> Result<PrivateKeyDer<'static>, Error> {
    let key = files::read(path, LIMIT).map_err(Reason::from).and_then(|bytes| encrypted_key(&bytes, passphrase));
    key.map_err(|reason| Error { path: path.to_owned(), reason })
}

/// Reads the certificate chain, leaf first, and the one key of a PKCS#12 bundle (RFC 7292).
pub fn read_bundle(path: &Path, passphrase: &Passphrase) -> Result<Bundle, Error> {
    let bundle = files::read(path, LIMIT).map_err(Reason::from).and_then(|bytes| bundle(&bytes, passphrase));
    bundle.map_err(|reason| Error { path: path.to_owned(), reason })
}

/// Reads the certificate revocation lists of a file: PEM with any text around, or one in DER. At least one list.
pub fn read_revocation_lists(path: &Path) -> Result<Vec<RevocationList>, Error> {
    let lists = files::read(path, LISTS_LIMIT).map_err(Reason::from).and_then(|bytes| revocation_lists(&bytes));
    lists.map_err(|reason| Error { path: path.to_owned(), reason })
}

/// The chain in the content of a file, as [`read_chain`] takes it.
pub fn chain(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Reason> {
    let blocks = blocks(bytes)?;
    let certificates = blocks.iter().filter(|block| block.kind == Kind::Certificate);
    let chain = certificates.map(Block::certificate).collect::<Result<Vec<_>, _>>()?;
    if chain.is_empty() { Err(refusal(&blocks, Reason::NoCertificate)) } else { Ok(chain) }
}

/// The key in the content of a file, as [`read_encrypted_key`] takes it.
pub fn encrypted_key(bytes: &[u8], passphrase: &Passphrase) -> Result<PrivateKeyDer<'static>, Reason> {
    let blocks = blocks(bytes)?;
    let keys: Vec<_> = blocks.iter().filter(|block| block.kind.is_key()).collect();
    match keys.as_slice() {
        [] => Err(refusal(&blocks, Reason::NoKey)),
        [key] if key.kind == Kind::Encrypted => {
            let plain = encrypted::key(&key.der, passphrase)?;
            match KeyForm::of(&plain) {
                Some(KeyForm::Pkcs8) => Ok(PrivatePkcs8KeyDer::from(plain.to_vec()).into()),
                _ => Err(Reason::WrongPassphrase),
            }
        }
        [key] if key.kind == Kind::Key => Err(Reason::NotEncrypted),
        [key] => key.key(),
        several => Err(Reason::SeveralKeys(several.len())),
    }
}

/// What the content of a file holds, as [`read_bundle`] takes it. Bundles have no PEM form.
pub fn bundle(bytes: &[u8], passphrase: &Passphrase) -> Result<Bundle, Reason> {
    match blocks(bytes)?.as_slice() {
        [Block { kind: Kind::Pkcs12, der, .. }] if !der.is_empty() => Bundle::open(der, passphrase),
        // What an archive cut short looks like.
        [Block { kind: Kind::Other, der, .. }] if !der.is_empty() => Err(Reason::Damaged),
        _ => Err(Reason::NoBundle),
    }
}

/// The key in the content of a file, as [`read_key`] takes it.
pub fn key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, Reason> {
    let blocks = blocks(bytes)?;
    let keys: Vec<_> = blocks.iter().filter(|block| block.kind.is_key()).collect();
    match keys.as_slice() {
        [] => Err(refusal(&blocks, Reason::NoKey)),
        [key] => key.key(),
        several => Err(Reason::SeveralKeys(several.len())),
    }
}

/// The lists in the content of a file, as [`read_revocation_lists`] takes it.
fn revocation_lists(bytes: &[u8]) -> Result<Vec<RevocationList>, Reason> {
    let blocks = blocks(bytes)?;
    let blocks = blocks.iter().filter(|block| block.kind == Kind::RevocationList);
    let parsed = |block: &Block| RevocationList::from_der(&block.der).ok_or(Reason::BadList { line: block.line });
    let lists = blocks.map(parsed).collect::<Result<Vec<_>, _>>()?;
    if lists.is_empty() { Err(Reason::NoList) } else { Ok(lists) }
}

/// Names what there is instead of what was looked for.
fn refusal(blocks: &[Block], nothing: Reason) -> Reason {
    blocks.iter().find_map(|block| block.kind.refusal()).unwrap_or(nothing)
}

/// Why a file gave no chain or no key.
#[derive(Debug)]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: Reason,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

/// The reason stands in the text already: the chain goes on with what is behind it.
impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.reason.source()
    }
}

/// What can be wrong with a certificate or key file.
#[derive(Debug, Error)]
pub enum Reason {
    /// No such file.
    #[error("the file does not exist")]
    Missing,
    /// The operating system refuses us the file.
    #[error("the file may not be read by this user")]
    Forbidden,
    /// Another failure of reading.
    #[error("the file cannot be read")]
    Unreadable(#[source] io::Error),
    /// A folder.
    #[error("the path leads to a folder")]
    Folder,
    /// A pipe or a device.
    #[error("the path does not lead to a regular file")]
    NoFile,
    /// More than this many bytes.
    #[error("the file is larger than {} MiB", .0 >> 20)]
    TooLarge(u64),
    /// Nothing, or only white space.
    #[error("the file is empty")]
    Empty,
    /// No PEM block and no DER.
    #[error("the file is neither PEM nor DER")]
    Unknown,
    /// A PEM block that does not end, or is not Base64.
    #[error("line {line}: {fault}")]
    Malformed {
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        fault: &'static str,
    },
    /// A certificate block without an X.509 certificate.
    #[error("line {line}: the block is labelled a certificate and is none")]
    BadCertificate {
        /// Where it begins, counted from 1.
        line: usize,
        /// What the parser says.
        source: certificate::Error,
    },
    /// A block labelled a revocation list without one.
    #[error("line {line}: the block is labelled a revocation list and is none")]
    BadList {
        /// Where it begins, counted from 1.
        line: usize,
    },
    /// PEM or DER, but of other things.
    #[error("there is no revocation list in the file")]
    NoList,
    /// PEM or DER, but of other things.
    #[error("there is no certificate in the file")]
    NoCertificate,
    /// PEM or DER, but of other things.
    #[error("there is no private key in the file")]
    NoKey,
    /// The two files may be swapped.
    #[error("the file holds a private key where a certificate is expected")]
    KeyForCertificate,
    /// The two files may be swapped.
    #[error("the file holds a certificate where a private key is expected")]
    CertificateForKey,
    /// Which one is meant is not for us to guess.
    #[error("there are {0} private keys in the file, and one is expected")]
    SeveralKeys(usize),
    /// PKCS#8 `EncryptedPrivateKeyInfo` (RFC 5208 section 6), and no passphrase.
    #[error("the private key is encrypted")]
    Encrypted,
    /// OpenSSL's older PEM encryption (RFC 1421).
    #[error("the private key is encrypted in OpenSSL's older way")]
    OldEncryption,
    /// A passphrase, and nothing that it would open.
    #[error("a passphrase is given, and the private key is not encrypted")]
    NotEncrypted,
    /// Something else where a bundle is expected.
    #[error("the file is not a PKCS#12 bundle")]
    NoBundle,
    /// Its structure, not only what is encrypted.
    #[error("the file is damaged, or encoded in a way that is not read here")]
    Damaged,
    /// The passphrase is another one; a file whose encrypted part is damaged looks the same.
    #[error("the passphrase does not open the file")]
    WrongPassphrase,
    /// A cipher or a way of deriving its key that is not supported.
    #[error("the encryption of the file is not supported: {0}")]
    Cipher(String),
    /// A work factor beyond reason.
    #[error("the file asks for more work to derive its key than is done here")]
    TooCostly,
    /// The passphrase.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// A PFX (RFC 7292).
    #[error("the file is a PKCS#12 container (.p12, .pfx)")]
    Pkcs12,
    /// A bundle of certificates (RFC 2315).
    #[error("the file is a PKCS#7 bundle (.p7b)")]
    Pkcs7,
    /// PKCS#10 (RFC 2986): what was sent to the trust service provider, not what came back.
    #[error("the file holds a certificate request")]
    Request,
    /// `SubjectPublicKeyInfo` or an RSA public key.
    #[error("the file holds only a public key")]
    PublicKey,
    /// OpenSSH's own format, or a kind of key that signs no request.
    #[error("the private key is of a format or kind that is not supported")]
    ForeignKey,
}

impl Reason {
    /// One stable word for machines, for all of them.
    pub const CODE: &str = "unreadable-file";

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Missing => "check the path; a relative one starts at the configuration's folder",
            Self::Forbidden => "make the file and its directories readable to the user that runs sealproxy",
            Self::Folder => "name the file in it",
            Self::Unreadable(_) | Self::NoFile => "name a regular file: a pipe or a device cannot be read again",
            Self::TooLarge(_) => "name the file of this certificate or key alone, not an archive",
            Self::Empty => "write the file again; a mounted secret may be missing",
            Self::Unknown => {
                "PEM lines begin with `-----BEGIN` in the first column; check with `openssl storeutl FILE`"
            }
            Self::Malformed { .. } => "copy the block again, whole, with its BEGIN and END lines",
            Self::BadCertificate { .. } => {
                "give the certificate as it was issued; check with `openssl x509 -in FILE -noout`"
            }
            Self::BadList { .. } => "fetch the list again; check with `openssl crl -in FILE -noout -text`",
            Self::NoList => "give the authority's list, in DER or as `-----BEGIN X509 CRL-----` blocks",
            Self::NoCertificate => "give the certificate, leaf first, as `-----BEGIN CERTIFICATE-----` blocks",
            Self::NoKey => "give the private key that the certificate request was made with",
            Self::KeyForCertificate => "name the file of the certificate; are `certificate` and `key` swapped?",
            Self::CertificateForKey => "name the file of the key; are `certificate` and `key` swapped?",
            Self::SeveralKeys(_) => "keep the key of this certificate alone in the file",
            Self::Encrypted => "say where its passphrase is: `passphrase: FILE`, or `passphrase: { env: NAME }`",
            Self::OldEncryption => "convert it: `openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out KEY`",
            Self::Cipher(_) => {
                "convert it: `openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out KEY`; a bundle with `openssl pkcs12 -legacy \
                 -in FILE -out BOTH.pem` and `openssl pkcs12 -export -in BOTH.pem -out BUNDLE`"
            }
            Self::NoBundle => "PEM files and keys alone belong in `certificate` and `key`",
            Self::Damaged => {
                "copy it again; if OpenSSL reads it, let it write it anew: `openssl pkcs8 -topk8 -in FILE -out KEY`, or \
                 `openssl pkcs12 -in FILE -out BOTH.pem` and `openssl pkcs12 -export -in BOTH.pem -out BUNDLE`"
            }
            Self::NotEncrypted => {
                "take `passphrase` away, or encrypt the key: `openssl pkcs8 -topk8 -in FILE -out KEY`"
            }
            Self::WrongPassphrase => {
                "compare with `openssl pkey -in FILE -noout`, or `openssl pkcs12 -in FILE -info -noout`"
            }
            Self::TooCostly => {
                "write it anew with OpenSSL's defaults: `openssl pkcs8 -topk8 -in FILE -out KEY`, or `openssl pkcs12 -in \
                 FILE -out BOTH.pem` and `openssl pkcs12 -export -in BOTH.pem -out BUNDLE`"
            }
            Self::Passphrase(error) => error.hint(),
            Self::Pkcs12 => "name it in `pkcs12`, in place of `certificate` and `key`, with its `passphrase`",
            Self::Pkcs7 => {
                "convert it: `openssl pkcs7 -in FILE -print_certs -out CHAIN.pem` (with -inform DER if binary)"
            }
            Self::Request => "give the certificate that the trust service provider returned for it",
            Self::PublicKey => "certificates and private keys are needed; a public key is part of both",
            Self::ForeignKey => "give an RSA or EC key; convert with `openssl pkcs8 -topk8 -nocrypt -in FILE -out KEY`",
        }
    }
}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            _ => Self::Unreadable(error),
        }
    }
}

impl From<ReadError> for Reason {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Folder => Self::Folder,
            ReadError::NoFile => Self::NoFile,
            ReadError::TooLarge(limit) => Self::TooLarge(limit),
            ReadError::Unreadable(error) => error.into(),
        }
    }
}

/// One thing in a file.
struct Block {
    kind: Kind,
    /// Where it begins, counted from 1.
    line: usize,
    /// Empty for kinds that are only refused. Wiped, because it may be a key.
    der: Zeroizing<Vec<u8>>,
}

impl Block {
    fn certificate(&self) -> Result<CertificateDer<'static>, Reason> {
        match certificate::parse(&self.der) {
            // The parser overlooks what stands behind the signature.
            Ok(_) if members(&self.der) != SIGNED => {
                Err(Reason::BadCertificate { line: self.line, source: certificate::Error::Trailing })
            }
            Ok(_) => Ok(self.der.to_vec().into()),
            Err(source) => Err(Reason::BadCertificate { line: self.line, source }),
        }
    }

    /// By structure, not by label: keys under the wrong label are common.
    fn key(&self) -> Result<PrivateKeyDer<'static>, Reason> {
        match KeyForm::of(&self.der) {
            _ if self.kind == Kind::Encrypted => Err(Reason::Encrypted),
            _ if self.kind == Kind::OldEncryption => Err(Reason::OldEncryption),
            _ if self.kind == Kind::ForeignKey => Err(Reason::ForeignKey),
            Some(KeyForm::Pkcs8) => Ok(PrivatePkcs8KeyDer::from(self.der.to_vec()).into()),
            Some(KeyForm::Pkcs1) => Ok(PrivatePkcs1KeyDer::from(self.der.to_vec()).into()),
            Some(KeyForm::Sec1) => Ok(PrivateSec1KeyDer::from(self.der.to_vec()).into()),
            None => {
                Err(Reason::Malformed { line: self.line, fault: "the block is labelled a private key and is none" })
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Certificate,
    Key,
    Encrypted,
    OldEncryption,
    ForeignKey,
    PublicKey,
    Request,
    Pkcs12,
    Pkcs7,
    RevocationList,
    Other,
}

impl Kind {
    fn of_label(label: &[u8]) -> Self {
        match label {
            b"CERTIFICATE" => Self::Certificate,
            b"PRIVATE KEY" | b"RSA PRIVATE KEY" | b"EC PRIVATE KEY" => Self::Key,
            b"ENCRYPTED PRIVATE KEY" => Self::Encrypted,
            b"PUBLIC KEY" | b"RSA PUBLIC KEY" => Self::PublicKey,
            b"CERTIFICATE REQUEST" | b"NEW CERTIFICATE REQUEST" => Self::Request,
            b"PKCS7" | b"CMS" => Self::Pkcs7,
            b"X509 CRL" => Self::RevocationList,
            b"PKCS12" => Self::Pkcs12,
            _ if label.ends_with(b"PRIVATE KEY") => Self::ForeignKey,
            _ => Self::Other,
        }
    }

    fn of_der(der: &[u8]) -> Self {
        if KeyForm::of(der).is_some() {
            return Self::Key;
        }
        match members(der).as_slice() {
            SIGNED if X509CertificationRequest::from_der(der).is_ok() => Self::Request,
            SIGNED if RevocationList::from_der(der).is_some() => Self::RevocationList,
            SIGNED => Self::Certificate,
            [Tag::Sequence, Tag::OctetString] => Self::Encrypted,
            [Tag::Sequence, Tag::BitString] | [Tag::Integer, Tag::Integer] => Self::PublicKey,
            [Tag::Integer, Tag::Sequence] | [Tag::Integer, Tag::Sequence, Tag::Sequence] => Self::Pkcs12,
            [Tag::Oid, _] => Self::Pkcs7,
            _ => Self::Other,
        }
    }

    fn is_key(self) -> bool {
        matches!(self, Self::Key | Self::Encrypted | Self::OldEncryption | Self::ForeignKey)
    }

    /// What to say of it where something else was looked for.
    fn refusal(self) -> Option<Reason> {
        match self {
            Self::Certificate => Some(Reason::CertificateForKey),
            Self::Key | Self::Encrypted | Self::OldEncryption | Self::ForeignKey => Some(Reason::KeyForCertificate),
            Self::PublicKey => Some(Reason::PublicKey),
            Self::Request => Some(Reason::Request),
            Self::Pkcs12 => Some(Reason::Pkcs12),
            Self::Pkcs7 => Some(Reason::Pkcs7),
            Self::RevocationList | Self::Other => None,
        }
    }
}

enum KeyForm {
    Pkcs8,
    Pkcs1,
    Sec1,
}

impl KeyForm {
    fn of(der: &[u8]) -> Option<Self> {
        match members(der).as_slice() {
            [Tag::Integer, Tag::Sequence, Tag::OctetString, ..] => Some(Self::Pkcs8),
            tags if tags.len() == 9 && tags.iter().all(|tag| *tag == Tag::Integer) => Some(Self::Pkcs1),
            [Tag::Integer, Tag::OctetString, ..] => Some(Self::Sec1),
            _ => None,
        }
    }
}

/// The tags of the members of a SEQUENCE; none for anything else. BER, because PKCS#12 and PKCS#7 come as BER. Copies
/// nothing, because it may be a key.
fn members(der: &[u8]) -> Vec<Tag> {
    if !is_sequence(der) {
        return Vec::new();
    }
    let Ok(([], Any { mut data, .. })) = Any::from_ber(der) else { return Vec::new() };
    let mut tags = Vec::new();
    while !data.is_empty() {
        let Ok((rest, member)) = Any::from_ber(data) else { return Vec::new() };
        tags.push(if member.class() == Class::Universal { member.tag() } else { FOREIGN });
        data = rest;
    }
    tags
}

/// The members of a certificate (RFC 5280 section 4.1), and of a request and a revocation list.
const SIGNED: &[Tag] = &[Tag::Sequence, Tag::Sequence, Tag::BitString];

/// Stands for every tag that is not universal.
const FOREIGN: Tag = Tag(u32::MAX);

fn blocks(bytes: &[u8]) -> Result<Vec<Block>, Reason> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    if bytes.trim_ascii().is_empty() {
        return Err(Reason::Empty);
    }
    let blocks = pem(bytes)?;
    match blocks.as_slice() {
        [_, ..] => Ok(blocks),
        [] if is_sequence(bytes) => Ok(vec![Block { kind: Kind::of_der(bytes), line: 1, der: bytes.to_vec().into() }]),
        [] => Err(Reason::Unknown),
    }
}

/// The PEM blocks, with what a PEM decoder would skip or misname: encrypted keys, unknown labels, blocks without end.
fn pem(bytes: &[u8]) -> Result<Vec<Block>, Reason> {
    let mut blocks = Vec::new();
    let mut open: Option<Open<'_>> = None;
    let mut end = 0;
    for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let (start, number) = (end, number + 1);
        end += line.len();
        match (boundary(line), &mut open) {
            (Some(Boundary::Begin(label)), None) => open = Some(Open { label, line: number, start, encrypted: false }),
            (Some(Boundary::End(label)), Some(begun)) if begun.label == label => {
                blocks.push(begun.close(&bytes[begun.start..end])?);
                open = None;
            }
            (Some(_), Some(begun)) => return Err(begun.endless()),
            (Some(Boundary::End(_)), None) => {
                return Err(Reason::Malformed { line: number, fault: "an END line without its BEGIN line" });
            }
            (None, Some(begun)) => {
                begun.encrypted |= line.starts_with(b"Proc-Type:") && line.trim_ascii().ends_with(b"ENCRYPTED");
            }
            (None, None) => {}
        }
    }
    match open {
        Some(begun) => Err(begun.endless()),
        None => Ok(blocks),
    }
}

/// A PEM block whose END line is still to come.
struct Open<'a> {
    label: &'a [u8],
    line: usize,
    start: usize,
    encrypted: bool,
}

impl Open<'_> {
    fn close(&self, text: &[u8]) -> Result<Block, Reason> {
        let kind = if self.encrypted { Kind::OldEncryption } else { Kind::of_label(self.label) };
        let der = match kind {
            Kind::Certificate | Kind::RevocationList => self.decode(text)?.into(),
            Kind::Key | Kind::Encrypted => self.decode_secret(text)?,
            _ => Zeroizing::default(),
        };
        Ok(Block { kind, line: self.line, der })
    }

    fn decode(&self, text: &[u8]) -> Result<Vec<u8>, Reason> {
        match rustls_pemfile::read_one_from_slice(text) {
            Ok(Some((Item::X509Certificate(der), _))) => Ok(der.to_vec()),
            Ok(Some((Item::Crl(der), _))) => Ok(der.to_vec()),
            _ => Err(self.no_base64()),
        }
    }

    /// The same of a key, in buffers that are never moved, and are wiped. In constant time: how long a table's look-up
    /// takes tells of the byte that was looked up.
    fn decode_secret(&self, text: &[u8]) -> Result<Zeroizing<Vec<u8>>, Reason> {
        let lines = text.split(|byte| *byte == b'\n').filter(|line| boundary(line).is_none());
        let mut base64 = Zeroizing::new(Vec::with_capacity(text.len()));
        let is_content = |byte: &&u8| !byte.is_ascii_whitespace() && **byte != VERTICAL_TAB;
        lines.for_each(|line| base64.extend(line.iter().filter(is_content)));
        let mut der = Zeroizing::new(vec![0; base64.len()]);
        let length = Base64::decode(&*base64, &mut der).map_err(|_| self.no_base64())?.len();
        der.truncate(length);
        Ok(der)
    }

    fn no_base64(&self) -> Reason {
        Reason::Malformed { line: self.line, fault: "the block that begins here is not Base64" }
    }

    fn endless(&self) -> Reason {
        Reason::Malformed { line: self.line, fault: "the block that begins here has no END line with its label" }
    }
}

/// White space too (RFC 7468 section 3), which Rust does not count as such.
const VERTICAL_TAB: u8 = 0x0b;

enum Boundary<'a> {
    Begin(&'a [u8]),
    End(&'a [u8]),
}

/// A line that begins or ends a block (RFC 7468 section 3).
fn boundary(line: &[u8]) -> Option<Boundary<'_>> {
    let line = line.trim_ascii_end().strip_suffix(b"-----")?;
    match line.strip_prefix(b"-----BEGIN ") {
        Some(label) => Some(Boundary::Begin(label)),
        None => line.strip_prefix(b"-----END ").map(Boundary::End),
    }
}

/// A chain is a few kilobytes and the largest bundle of trust anchors a few hundred: more is another file.
const LIMIT: u64 = 1 << 20;
/// The lists of large authorities have several megabytes.
const LISTS_LIMIT: u64 = 64 << 20;
/// Editors on Windows put it before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[cfg(test)]
mod tests {
    use super::*;

    fn der(pem: &str) -> Vec<u8> {
        use rustls::pki_types::pem::{PemObject as _, SectionKind};
        <(SectionKind, Vec<u8>)>::from_pem_slice(pem.as_bytes()).unwrap().1
    }

    fn reason_of_chain(text: impl AsRef<[u8]>) -> Reason {
        chain(text.as_ref()).unwrap_err()
    }

    fn reason_of_key(text: impl AsRef<[u8]>) -> Reason {
        key(text.as_ref()).unwrap_err()
    }

    #[test]
    fn a_chain_keeps_its_order_and_the_text_around_is_ignored() {
        let bundle =
            format!("Bag Attributes\r\n  friendlyName: leaf\n{CERTIFICATE}issuer:\n{SEC1}{CERTIFICATE}the end");
        assert_eq!(chain(bundle.as_bytes()).unwrap(), [der(CERTIFICATE).into(), der(CERTIFICATE).into()]);
        assert_eq!(chain(&der(CERTIFICATE)).unwrap(), [der(CERTIFICATE).into()]);
    }

    #[test]
    fn a_windows_editor_harms_nothing() {
        let windows = format!("\u{feff}{}", CERTIFICATE.replace('\n', "\r\n"));
        assert_eq!(chain(windows.as_bytes()).unwrap(), chain(CERTIFICATE.as_bytes()).unwrap());
        let windows = format!("\u{feff}{}", SEC1.replace('\n', "\r\n"));
        assert_eq!(key(windows.as_bytes()).unwrap(), key(SEC1.as_bytes()).unwrap());
    }

    #[test]
    fn every_encoding_of_a_key_is_known_as_pem_and_as_der() {
        for bytes in [PKCS8.as_bytes(), &der(PKCS8), PKCS8.replace("PRIVATE", "RSA PRIVATE").as_bytes()] {
            assert_eq!(key(bytes).unwrap(), PrivatePkcs8KeyDer::from(der(PKCS8)).into());
        }
        for bytes in [PKCS1.as_bytes(), &der(PKCS1)] {
            assert_eq!(key(bytes).unwrap(), PrivatePkcs1KeyDer::from(der(PKCS1)).into());
        }
        for bytes in [SEC1.as_bytes(), &der(SEC1), format!("{PARAMETERS}{SEC1}{CERTIFICATE}").as_bytes()] {
            assert_eq!(key(bytes).unwrap(), PrivateSec1KeyDer::from(der(SEC1)).into());
        }
    }

    #[test]
    fn swapped_files_are_told() {
        for key in [PKCS8.to_owned(), PKCS1.to_owned(), format!("{PARAMETERS}{SEC1}"), ENCRYPTED_OLD.to_owned()] {
            assert!(matches!(reason_of_chain(&key), Reason::KeyForCertificate), "{key}");
        }
        assert!(matches!(reason_of_chain(der(PKCS8)), Reason::KeyForCertificate));
        assert!(matches!(reason_of_key(CERTIFICATE), Reason::CertificateForKey));
        assert!(matches!(reason_of_key(der(CERTIFICATE)), Reason::CertificateForKey));
    }

    #[test]
    fn encrypted_keys_are_told() {
        assert!(matches!(reason_of_key(ENCRYPTED), Reason::Encrypted));
        assert!(matches!(reason_of_key(ENCRYPTED_OLD), Reason::OldEncryption));
        let unlabelled = ENCRYPTED.replace("ENCRYPTED ", "");
        assert!(matches!(reason_of_key(der(&unlabelled)), Reason::Encrypted));
    }

    #[test]
    fn several_keys_are_refused() {
        assert!(matches!(reason_of_key(format!("{PKCS8}{ENCRYPTED}")), Reason::SeveralKeys(2)));
    }

    #[test]
    fn other_files_are_named() {
        assert!(matches!(reason_of_key(PUBLIC), Reason::PublicKey));
        assert!(matches!(reason_of_chain(der(PUBLIC)), Reason::PublicKey));
        assert!(matches!(reason_of_chain(REQUEST), Reason::Request));
        assert!(matches!(reason_of_key(der(REQUEST)), Reason::Request));
        // INTEGER 3, ContentInfo, MacData; then the same in BER's indefinite length.
        let pfx = [0x30, 0x0b, 2, 1, 3, 0x30, 4, 6, 2, 0x2a, 3, 0x30, 0];
        assert!(matches!(reason_of_key(pfx), Reason::Pkcs12));
        let pfx = [0x30, 0x80, 2, 1, 3, 0x30, 0x80, 6, 2, 0x2a, 3, 0, 0, 0, 0];
        assert!(matches!(reason_of_chain(pfx), Reason::Pkcs12));
        assert!(matches!(reason_of_chain([0x30, 0x06, 6, 2, 0x2a, 3, 0xa0, 0]), Reason::Pkcs7));
        let openssh = PKCS8.replace("PRIVATE KEY", "OPENSSH PRIVATE KEY");
        assert!(matches!(reason_of_key(openssh), Reason::ForeignKey));
        assert!(matches!(reason_of_chain(PARAMETERS), Reason::NoCertificate));
        assert!(matches!(reason_of_key(PARAMETERS), Reason::NoKey));
        assert!(matches!(reason_of_key([0x30, 0]), Reason::NoKey));
        assert!(matches!(reason_of_key(" \r\n"), Reason::Empty));
        assert!(matches!(reason_of_chain("hello"), Reason::Unknown));
    }

    #[test]
    fn broken_pem_is_told_by_its_line() {
        let endless = format!("text\n{}", CERTIFICATE.replace("-----END CERTIFICATE-----", ""));
        assert!(matches!(reason_of_chain(&endless), Reason::Malformed { line: 2, .. }));
        assert!(matches!(reason_of_chain(endless + CERTIFICATE), Reason::Malformed { line: 2, .. }));
        let crossed = PKCS8.replace("END PRIVATE", "END RSA PRIVATE");
        assert!(matches!(reason_of_key(crossed), Reason::Malformed { line: 1, .. }));
        assert!(matches!(reason_of_key("-----END PRIVATE KEY-----"), Reason::Malformed { line: 1, .. }));
        let not_base64 = CERTIFICATE.replace("MII", "M!I");
        assert!(matches!(reason_of_chain(not_base64), Reason::Malformed { line: 1, .. }));
        let no_certificate = PKCS8.replace("PRIVATE KEY", "CERTIFICATE");
        assert!(matches!(reason_of_chain(no_certificate), Reason::BadCertificate { line: 1, .. }));
        let no_key = CERTIFICATE.replace("CERTIFICATE", "PRIVATE KEY");
        assert!(matches!(reason_of_key(no_key), Reason::Malformed { line: 1, .. }));
        // A SEQUENCE is constructed (X.690 section 8.9.1): the first octet is 0x30, and here 0x10.
        let no_sequence = PKCS8.replace("\nMIG", "\nEIG");
        assert!(matches!(reason_of_key(no_sequence), Reason::Malformed { line: 1, .. }));
        let no_sequence = CERTIFICATE.replace("\nMII", "\nEII");
        assert!(matches!(reason_of_chain(no_sequence), Reason::BadCertificate { line: 1, .. }));
    }

    #[test]
    fn an_error_shows_the_path_and_the_cause_and_no_content() {
        let error = read_key(Path::new("/no/such/file")).unwrap_err();
        assert_eq!(error.to_string(), "/no/such/file: the file does not exist");
        assert!(matches!(error.reason, Reason::Missing));
        let error = Error { path: "/f".into(), reason: io::Error::other("worn out").into() };
        assert!(error.source().is_some_and(<dyn StdError>::is::<io::Error>));
        assert!(matches!(read_chain(Path::new("/")).unwrap_err().reason, Reason::Folder));
        assert!(matches!(read_chain(Path::new("/dev/null")).unwrap_err().reason, Reason::NoFile));
        let secret = PKCS8.lines().nth(1).unwrap();
        let broken = PKCS8.replace(secret, &secret.replace('M', "!"));
        assert!(!format!("{:?}", reason_of_key(broken)).contains(&secret[4..12]));
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let path = std::env::temp_dir().join(format!("sealproxy-pem-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, vec![b' '; LIMIT as usize + 1]).unwrap();
        let refused = read_chain(&path).unwrap_err().reason;
        std::fs::write(&path, vec![b' '; LIMIT as usize]).unwrap();
        let allowed = read_chain(&path).unwrap_err().reason;
        std::fs::remove_file(&path).unwrap();
        assert!(matches!((refused, allowed), (Reason::TooLarge(LIMIT), Reason::Empty)));
    }

    #[test]
    fn damaged_der_never_panics() {
        for der in [der(PKCS8), der(PKCS1), der(SEC1), der(CERTIFICATE), der(REQUEST)] {
            for at in 0..der.len() {
                let _ = (chain(&der[..at]), key(&der[..at]));
                for value in [0, 1, 0x30, 0x7f, 0x80, 0x84, 0xff] {
                    let mut damaged = der.clone();
                    damaged[at] = value;
                    let _ = (chain(&damaged), key(&damaged));
                }
            }
        }
    }

    #[test]
    fn what_is_no_certificate_or_key_in_der_is_none_under_its_label() {
        let flipped = |sound: &[u8]| -> Vec<Vec<u8>> {
            let one = |bit: usize| {
                let mut der = sound.to_vec();
                der[bit / 8] ^= 1 << (bit % 8);
                der
            };
            (0..sound.len() * 8).map(one).collect()
        };
        let labelled = |kind, der: &[u8]| Block { kind, line: 1, der: der.to_vec().into() };
        for der in flipped(&der(CERTIFICATE)) {
            let block = labelled(Kind::Certificate, &der);
            assert_eq!(block.certificate().is_ok(), chain(&der).is_ok(), "{der:x?}");
        }
        for der in [PKCS8, PKCS1, SEC1].map(der).iter().flat_map(|sound| flipped(sound)) {
            assert_eq!(labelled(Kind::Key, &der).key().is_ok(), key(&der).is_ok(), "{der:x?}");
        }
    }

    // All made with OpenSSL 3.0 for this test alone.
    const CERTIFICATE: &str = "\
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
    const PKCS8: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg5TtBZzqmqiIKl0/C
03VTRY3h/nNU1FENn7j1gRs7dy2hRANCAAQZIKqR8orbXN0JVAMB0vXDwYmiW5uu
ZLNhTzCvi9hrDaffKfuD0OYpWe7mlaZvHEe2If7e9ZYiy1Ynq6faVAG4
-----END PRIVATE KEY-----
";
    const PKCS1: &str = "\
-----BEGIN RSA PRIVATE KEY-----
MIIBOwIBAAJBAN2BG1NZoYoACHKPXpEwvZGqvRhx3xYjcIak3UODZxE0ukC38/Ix
lI6ybn9cKAbR8T5kmf2Vj7rNyFLe1AsXGO0CAwEAAQJBAMiGkvhYElfeQ8eCZ3hF
ibiPu3Sf0fg2yS37npv6H5qAU/gOyRmmyP8V7gIlTAA2dZGqtR/M3sE49eiNOtWx
H3kCIQD4iHToZWNUQCix66tqL/CJDBdpL4ugVMtL4fTkhKqAmwIhAOQow5aOKTkB
sfjhhBl4vLSyvqi8+lj3FbVLri15RdEXAiEA6anhwF0SdjOcDyszjjJkQ3VKzWoW
LDeMq1tVk0PnyeECIAk/Ha4cVM9aojvT5+agXgV0uQVdo0e3u8l9J7HwGERBAiBg
b5N+8zEgNFOf/ceKF4m9KvA6lpyrg8y4sBXwVQt3WA==
-----END RSA PRIVATE KEY-----
";
    const PARAMETERS: &str = "\
-----BEGIN EC PARAMETERS-----
BggqhkjOPQMBBw==
-----END EC PARAMETERS-----
";
    const SEC1: &str = "\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIOU7QWc6pqoiCpdPwtN1U0WN4f5zVNRRDZ+49YEbO3ctoAoGCCqGSM49
AwEHoUQDQgAEGSCqkfKK21zdCVQDAdL1w8GJolubrmSzYU8wr4vYaw2n3yn7g9Dm
KVnu5pWmbxxHtiH+3vWWIstWJ6un2lQBuA==
-----END EC PRIVATE KEY-----
";
    const ENCRYPTED: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhYuCEKydSZlAICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEEU099wZz2Sa5d1S6PCUf1oEgZAx
0QqyhIRCI3jsBRGHx6aa1I1mZQeKHh4FQWZOgIhM6wsjCq61lSK7FPXbenZAtUqw
hnoDsYDNf5fNZpvkZKJEEYrULFxNPV/v0l5/5IEAv8PoC/M5lCPpYCM5riqnQy9n
SSao3Oh3jqNnsaH711EcsCqwWe+QA+++eE0STqvRk14spvuTNTwpH7q1nK4VXHE=
-----END ENCRYPTED PRIVATE KEY-----
";
    const ENCRYPTED_OLD: &str = "\
-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-128-CBC,619EB623FB41D4FFEDE4336A3A25370F

iYXXd6UQWVKJqdcUh7qsys3EFDYuDfnERdwwpgmhB9NjijwHD0/OO72ezTa1LrUb
KDxcRjyc/Rp8iG86kSLZ+GgpDmpa9LSZcYVwSf8VZJX+asW7BvXBwtr6QUdhFWwd
FufZ//xoeVQ/XfoNtSp6mAPLK2vXS/3UepbQC27bixg=
-----END EC PRIVATE KEY-----
";
    const PUBLIC: &str = "\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEGSCqkfKK21zdCVQDAdL1w8GJolub
rmSzYU8wr4vYaw2n3yn7g9DmKVnu5pWmbxxHtiH+3vWWIstWJ6un2lQBuA==
-----END PUBLIC KEY-----
";
    const REQUEST: &str = "\
-----BEGIN CERTIFICATE REQUEST-----
MIHGMG4CAQAwDDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IA
BBkgqpHyittc3QlUAwHS9cPBiaJbm65ks2FPMK+L2GsNp98p+4PQ5ilZ7uaVpm8c
R7Yh/t71liLLVierp9pUAbigADAKBggqhkjOPQQDAgNIADBFAiBfx8lyw0V1e8KF
gTk+Tx93LlvOizoKXK8gPLt5FPd+NwIhAK7TEdboVfmY3c+9gOgJhf+Tlf51HJ0o
P1SRK7aYYYfn
-----END CERTIFICATE REQUEST-----
";
}
