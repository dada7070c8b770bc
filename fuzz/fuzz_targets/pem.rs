//! Files of certificates and keys: the same bytes as PEM or DER, as an encrypted key and a bundle, as a qcStatements
//! extension, and as each part of a certificate that is otherwise sound, where no mutation would find the way to.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sealproxy::identity::Passphrase;
use sealproxy::identity::certificate::Certificate;
use sealproxy::identity::pem::{self, Reason};
use sealproxy::identity::qcstatements::QcStatements;
use sealproxy::key::{Key, Scheme};

fuzz_target!(|bytes: &[u8]| {
    chain(bytes);
    key(bytes);
    opened(bytes);
    certificate(bytes);
    statements(bytes);
    for part in Part::ALL {
        certificate(&certificate_with(part, bytes));
    }
});

fn chain(bytes: &[u8]) {
    match pem::chain(bytes) {
        Ok(chain) => {
            assert!(!chain.is_empty(), "a chain of nothing");
            for der in chain {
                assert_eq!(pem::chain(&der).expect("the DER of a certificate"), [der.clone()], "DER reads otherwise");
                certificate(&der);
            }
        }
        Err(reason) => is_a_reason(&reason),
    }
}

fn key(bytes: &[u8]) {
    match pem::key(bytes) {
        Ok(key) => {
            let again = pem::key(key.secret_der()).expect("the DER of a key");
            assert_eq!(again, key, "DER reads otherwise");
            assert!(std::mem::discriminant(&again) == std::mem::discriminant(&key), "DER is another format");
            usable(&key);
        }
        Err(reason) => is_a_reason(&reason),
    }
}

/// As an encrypted key and as a bundle, with the passphrase of those in the corpus.
fn opened(bytes: &[u8]) {
    if asks_for_much(bytes) || bytes.first() != Some(&SEQUENCE) {
        return;
    }
    let passphrase = Passphrase::new("fuzz").expect("a text");
    match pem::encrypted_key(bytes, &passphrase) {
        Ok(key) => usable(&key),
        Err(reason) => is_a_reason(&reason),
    }
    match pem::bundle(bytes, &passphrase) {
        Ok(bundle) => {
            assert!(!bundle.chain.is_empty(), "a bundle without a certificate");
            usable(&bundle.key);
            bundle.chain.iter().for_each(|der| certificate(der));
        }
        Err(reason) => is_a_reason(&reason),
    }
}

/// What is refused as too costly is more than a fuzzer waits for: here no work factor has more than two bytes. Told by
/// what follows it in such files: a number, a text, a sequence, encrypted content, or nothing.
fn asks_for_much(bytes: &[u8]) -> bool {
    let ends =
        |rest: &[u8]| rest.first().is_none_or(|next| [INTEGER, OCTET_STRING, SEQUENCE, 0x80, 0xa0].contains(next));
    (0..bytes.len()).any(|at| match &bytes[at..] {
        [INTEGER, 3, _, _, _, rest @ ..] | [INTEGER, 4, _, _, _, _, rest @ ..] => ends(rest),
        _ => false,
    })
}

fn usable(der: &PrivateKeyDer<'_>) {
    match Key::with_ring(der) {
        Ok(key) => assert!(!format!("{key:?}").is_empty()),
        Err(error) => is_a_line(&error.to_string()),
    }
}

fn is_a_reason(reason: &Reason) {
    is_a_line(&reason.to_string());
    is_a_line(reason.hint());
}

fn is_a_line(text: &str) {
    assert!(!text.is_empty() && text.len() < 1000 && !text.contains(char::is_control), "not one line: {text:?}");
}

/// Whatever a certificate says stands in one line of a log, and its bytes are kept.
fn certificate(bytes: &[u8]) {
    let certificate = match Certificate::from_der(CertificateDer::from(bytes.to_vec())) {
        Ok(certificate) => certificate,
        Err(error) => return is_a_line(&error.to_string()),
    };
    assert_eq!(certificate.der(), bytes);
    for name in [certificate.subject(), certificate.issuer()] {
        assert!(!name.contains(char::is_control), "a name breaks its line: {name:?}");
    }
    let serial = certificate.serial_hex();
    assert!(!serial.is_empty() && serial.len() % 2 == 0 && (serial == "00" || !serial.starts_with("00")), "{serial}");
    assert!(certificate.verify(b"", b"", Scheme::RsaPkcs1Sha256).is_err(), "an empty signature verifies");
    assert!(certificate.verify(b"", b"", Scheme::EcdsaP256Sha256).is_err(), "an empty signature verifies");
    for moment in [certificate.not_before(), certificate.not_after()] {
        certificate.validity_at(moment);
    }
    let _ = (certificate.organization(), certificate.organization_identifier(), certificate.is_self_issued());
    match certificate.qc_statements() {
        Ok(Some(statements)) => survives(statements),
        Ok(None) => {}
        Err(error) => is_a_line(&error.to_string()),
    }
}

fn statements(bytes: &[u8]) {
    match QcStatements::decode(bytes) {
        Ok(statements) => survives(&statements),
        Err(error) => is_a_line(&error.to_string()),
    }
}

fn survives(statements: &QcStatements) {
    assert_eq!(QcStatements::decode(&statements.encode()).as_ref(), Ok(statements), "encoding changes the statements");
}

/// Where in a sound certificate the input stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The content of the serial number.
    Serial,
    /// The subject, after its organization's object identifier.
    Organization,
    /// The whole issuer.
    Issuer,
    /// The content of the first moment, as GeneralizedTime.
    NotBefore,
    /// The subjectPublicKeyInfo.
    PublicKey,
    /// The value of qcStatements.
    QcStatements,
    /// All extensions.
    Extensions,
}

impl Part {
    const ALL: [Self; 7] = [
        Self::Serial,
        Self::Organization,
        Self::Issuer,
        Self::NotBefore,
        Self::PublicKey,
        Self::QcStatements,
        Self::Extensions,
    ];
}

/// A certificate whose lengths are right and whose one part is the input.
fn certificate_with(part: Part, bytes: &[u8]) -> Vec<u8> {
    let or = |this: Part, sound: &[u8]| if this == part { bytes.to_vec() } else { sound.to_vec() };
    let organization = tlv(UTF8_STRING, &[b"Golden TPP"]);
    let name = |value: &[u8]| tlv(SEQUENCE, &[&tlv(SET, &[&tlv(SEQUENCE, &[ORGANIZATION, value])])]);
    let algorithm = tlv(SEQUENCE, &[SHA256_WITH_RSA, &[0x05, 0x00]]);
    let point = [&[0x00, 0x04][..], &[7; 64]].concat();
    let public_key = tlv(SEQUENCE, &[&tlv(SEQUENCE, &[EC_PUBLIC_KEY, P256]), &tlv(BIT_STRING, &[&point])]);
    let statements = tlv(OCTET_STRING, &[&or(Part::QcStatements, &[SEQUENCE, 0])]);
    let validity = tlv(
        SEQUENCE,
        &[&tlv(GENERALIZED_TIME, &[&or(Part::NotBefore, b"20210420020755Z")]), &tlv(UTC_TIME, &[b"310420020755Z"])],
    );
    let body = tlv(
        SEQUENCE,
        &[
            &[0xa0, 3, INTEGER, 1, 2],
            &tlv(INTEGER, &[&or(Part::Serial, &[1])]),
            &algorithm,
            &or(Part::Issuer, &name(&organization)),
            &validity,
            &name(&or(Part::Organization, &organization)),
            &or(Part::PublicKey, &public_key),
            &tlv(0xa3, &[&tlv(SEQUENCE, &[&or(Part::Extensions, &tlv(SEQUENCE, &[QC_STATEMENTS, &statements]))])]),
        ],
    );
    tlv(SEQUENCE, &[&body, &algorithm, &tlv(BIT_STRING, &[&[0; 257]])])
}

/// One element of DER: tag, length, content.
fn tlv(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let length = content.len().to_be_bytes();
    let length = &length[content.len().leading_zeros() as usize / 8..];
    let head = match content.len() {
        short @ 0..=0x7f => vec![tag, short as u8],
        _ => [&[tag, 0x80 | length.len() as u8], length].concat(),
    };
    [head, content].concat()
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const ORGANIZATION: &[u8] = &[0x06, 3, 0x55, 0x04, 0x0a];
const SHA256_WITH_RSA: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
const EC_PUBLIC_KEY: &[u8] = &[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const QC_STATEMENTS: &[u8] = &[0x06, 8, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x03];
