//! What the library needs of an RSA key: its numbers, as words. Its fields are its own, because what the library is
//! told of their lengths holds by how they are made. Must not know who signs.

use ring::digest::{SHA256, digest};
use rustls::pki_types::PrivateKeyDer;
use zeroize::Zeroizing;

use super::crypto_mb::is_applicable;

/// The numbers of an RSA key (RFC 8017 section 3.2), least significant word first.
pub(super) struct Parts {
    bits: i32,
    modulus: Vec<u64>,
    p: Zeroizing<Vec<u64>>,
    q: Zeroizing<Vec<u64>>,
    dp: Zeroizing<Vec<u64>>,
    dq: Zeroizing<Vec<u64>>,
    iq: Zeroizing<Vec<u64>>,
}

impl Parts {
    /// `Err`: why the library cannot sign with the key, in words.
    pub(super) fn of(der: &PrivateKeyDer<'_>) -> Result<Self, &'static str> {
        if !is_x86_feature_detected!("avx512ifma") || !is_applicable() {
            return Err("this CPU has no AVX-512 IFMA");
        }
        let [n, e, _, p, q, dp, dq, iq] = numbers(der).ok_or("the key's encoding is not read here")?;
        if trimmed(&e) != [1, 0, 1] {
            return Err("the key's public exponent is not 65537");
        }
        let bits = 8 * trimmed(&n).len();
        let is_whole = trimmed(&n).first().is_some_and(|first| first & 0x80 != 0);
        if ![2048, 3072, 4096].contains(&bits) || !is_whole {
            return Err("the key has not 2048, 3072 or 4096 bits");
        }
        let half = |number: &[u8]| words(number, bits / 128).ok_or("the key's primes are not of one length");
        let (p, q) = (half(&p)?, half(&q)?);
        if [&p, &q].iter().any(|prime| prime.last().is_none_or(|high| high >> 63 == 0)) {
            return Err("the key's primes are not of one length");
        }
        let modulus = words(&n, bits / 64).expect("it has that many bits").to_vec();
        let bits = i32::try_from(bits).expect("4096 at most");
        Ok(Self { bits, modulus, p, q, dp: half(&dp)?, dq: half(&dq)?, iq: half(&iq)? })
    }

    /// Of a signature, in bytes.
    pub(super) fn len(&self) -> usize {
        self.modulus.len() * 8
    }

    /// Of the modulus.
    pub(super) fn bits(&self) -> i32 {
        self.bits
    }

    /// `bits` / 64 words.
    pub(super) fn modulus(&self) -> &[u64] {
        &self.modulus
    }

    /// The primes, the exponents that belong to them, and the coefficient: p, q, dP, dQ, qInv. Each has `bits` / 128
    /// words.
    pub(super) fn crt(&self) -> [&[u64]; 5] {
        [&self.p, &self.q, &self.dp, &self.dq, &self.iq]
    }

    /// As a fault would: one bit of one of the five.
    #[cfg(test)]
    pub(super) fn damage(&mut self, part: usize) {
        let numbers = [&mut self.p, &mut self.q, &mut self.dp, &mut self.dq, &mut self.iq];
        numbers.into_iter().nth(part).expect("five")[3] ^= 1 << 17;
    }
}

/// The eight integers behind the version of an `RSAPrivateKey` (RFC 8017 appendix A.1.2), as it is or in PKCS#8 (RFC
/// 5208).
fn numbers(der: &PrivateKeyDer<'_>) -> Option<[Zeroizing<Vec<u8>>; 8]> {
    let inner;
    let der = match der {
        PrivateKeyDer::Pkcs1(key) => key.secret_pkcs1_der(),
        PrivateKeyDer::Pkcs8(key) => {
            inner = yasna::parse_der(key.secret_pkcs8_der(), octets).ok()?;
            &inner
        }
        _ => return None,
    };
    let read = yasna::parse_der(der, |reader| {
        reader.read_sequence(|reader| {
            reader.next().read_u8()?;
            let mut numbers: [Zeroizing<Vec<u8>>; 8] = Default::default();
            for number in &mut numbers {
                *number = Zeroizing::new(reader.next().read_bigint_bytes()?.0);
            }
            Ok(numbers)
        })
    });
    read.ok()
}

/// The key within a `PrivateKeyInfo`.
fn octets(reader: yasna::BERReader<'_, '_>) -> yasna::ASN1Result<Zeroizing<Vec<u8>>> {
    reader.read_sequence(|reader| {
        reader.next().read_u8()?;
        reader.next().read_der()?;
        let key = Zeroizing::new(reader.next().read_bytes()?);
        // Attributes.
        // The method itself is not general enough in its lifetimes.
        #[allow(clippy::redundant_closure_for_method_calls)]
        reader.read_optional(|reader| reader.read_der())?;
        Ok(key)
    })
}

fn trimmed(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|byte| **byte == 0).count()..]
}

/// A number of at most `count` words.
fn words(number: &[u8], count: usize) -> Option<Zeroizing<Vec<u64>>> {
    let number = trimmed(number);
    if number.len() > count * 8 {
        return None;
    }
    let mut words = Zeroizing::new(vec![0_u64; count]);
    for (index, byte) in number.iter().rev().enumerate() {
        words[index / 8] |= u64::from(*byte) << (8 * (index % 8));
    }
    Some(words)
}

/// EMSA-PKCS1-v1_5 with SHA-256 (RFC 8017 section 9.2): what the RSA operation is done on.
pub(super) fn encoded(message: &[u8], length: usize) -> Vec<u8> {
    const PREFIX: [u8; 19] = [
        0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04,
        0x20,
    ];
    let hash = digest(&SHA256, message);
    let behind = PREFIX.len() + hash.as_ref().len();
    let mut encoded = vec![0xff; length];
    encoded[..2].copy_from_slice(&[0, 1]);
    encoded[length - behind - 1] = 0;
    encoded[length - behind..length - hash.as_ref().len()].copy_from_slice(&PREFIX);
    encoded[length - hash.as_ref().len()..].copy_from_slice(hash.as_ref());
    encoded
}
