//! Intel's `crypto_mb`, called: eight RSA operations at a time, each checked. The one file with `unsafe`. Must not know
//! messages, nor who waits.

#![expect(unsafe_code, reason = "a C library is called")]

use zeroize::{Zeroize as _, Zeroizing};

use super::parts::Parts;

/// How many signatures the library makes at a time, whatever it is given.
pub(super) const LANES: usize = 8;

/// One of the messages that are signed together.
pub(super) struct Lane<'a> {
    pub(super) parts: &'a Parts,
    /// As [`encoded`](super::parts::encoded) makes it of a message: as long as the modulus.
    pub(super) encoded: &'a [u8],
}

/// A lane's buffer for a result.
type Out = [u8; 512];

/// The lanes' results. Wiped whatever comes: one that is wrong could tell the key, and so could what it is checked by.
struct Outs([Out; LANES]);

impl Outs {
    fn new() -> Self {
        Self([[0; 512]; LANES])
    }
}

impl Drop for Outs {
    fn drop(&mut self) {
        // As one slice: an array of arrays is wiped byte by byte, which takes longer than the check.
        self.0.as_flattened_mut().zeroize();
    }
}

/// Signs up to eight messages with keys of one length. `None`: at least one result does not verify, and none is to be
/// used.
pub(super) fn run(lanes: &[Lane<'_>], work: &mut Zeroizing<Vec<u64>>) -> Option<Vec<Vec<u8>>> {
    let first = lanes.first().filter(|_| lanes.len() <= LANES)?;
    let (bits, length) = (first.parts.bits(), first.parts.len());
    if lanes.iter().any(|lane| lane.parts.bits() != bits || lane.encoded.len() != length) {
        return None;
    }
    // The library reads and writes eight, so that those without a message do what the first does.
    let lane = |index: usize| lanes.get(index).unwrap_or(first);
    let modulus: [*const u64; LANES] = std::array::from_fn(|index| lane(index).parts.modulus().as_ptr());
    let [p, q, dp, dq, iq]: [[*const u64; LANES]; 5] =
        std::array::from_fn(|number| std::array::from_fn(|index| lane(index).parts.crt()[number].as_ptr()));
    let messages: [*const u8; LANES] = std::array::from_fn(|index| lane(index).encoded.as_ptr());
    let (mut made, mut opened) = (Outs::new(), Outs::new());
    let results: [*mut u8; LANES] = made.0.each_mut().map(|out| out.as_mut_ptr());
    // SAFETY: takes a number and returns a constant of the library, or null for a number that it does not know.
    let (method, public) = unsafe { (mbx_RSA_private_crt_Method(bits), mbx_RSA_pub65537_Method(bits)) };
    if method.is_null() || public.is_null() {
        return None;
    }
    // SAFETY: both methods are constants of the library.
    let room = unsafe { mbx_RSA_Method_BufSize(method).max(mbx_RSA_Method_BufSize(public)) };
    let words = usize::try_from(room).ok()?.div_ceil(8).max(work.len());
    work.resize(words, 0);
    // SAFETY: there are eight of everything. Each message and each result has `bits` / 8 bytes, of which a buffer has
    // at least as many; each part of a key has `bits` / 128 words; `work` is as large as the method asks for. All of
    // them outlive the call, nothing else refers to the results, and the CPU was asked for its instructions before
    // there were parts.
    let status = unsafe {
        mbx_rsa_private_crt_mb8(
            messages.as_ptr(),
            results.as_ptr(),
            p.as_ptr(),
            q.as_ptr(),
            dp.as_ptr(),
            dq.as_ptr(),
            iq.as_ptr(),
            bits,
            method,
            work.as_mut_ptr().cast(),
        )
    };
    let sources: [*const u8; LANES] = made.0.each_ref().map(|out| out.as_ptr());
    let targets: [*mut u8; LANES] = opened.0.each_mut().map(|out| out.as_mut_ptr());
    // SAFETY: as above; a modulus has `bits` / 64 words.
    let checked = unsafe {
        mbx_rsa_public_mb8(sources.as_ptr(), targets.as_ptr(), modulus.as_ptr(), bits, public, work.as_mut_ptr().cast())
    };
    // As a slice, which stays as long as it is: a vector is wiped word by word, and filled once more before the next
    // call.
    work.as_mut_slice().zeroize();
    let is_right = |(lane, opened): (&Lane<'_>, &Out)| opened[..length] == *lane.encoded;
    let all = status == 0 && checked == 0 && lanes.iter().zip(&opened.0).all(is_right);
    all.then(|| made.0.iter().take(lanes.len()).map(|out| out[..length].to_vec()).collect())
}

pub(super) fn is_applicable() -> bool {
    // SAFETY: asks the CPU, with no features given.
    unsafe { mbx_is_crypto_mb_applicable(0) != 0 }
}

#[repr(C)]
struct Method {
    _private: [u8; 0],
}

// crypto_mb/rsa.h and crypto_mb/cpu_features.h.
unsafe extern "C" {
    fn mbx_is_crypto_mb_applicable(features: u64) -> i32;
    fn mbx_RSA_private_crt_Method(bits: i32) -> *const Method;
    fn mbx_RSA_pub65537_Method(bits: i32) -> *const Method;
    fn mbx_RSA_Method_BufSize(method: *const Method) -> i32;
    fn mbx_rsa_private_crt_mb8(
        from: *const *const u8,
        to: *const *mut u8,
        p: *const *const u64,
        q: *const *const u64,
        dp: *const *const u64,
        dq: *const *const u64,
        iq: *const *const u64,
        bits: i32,
        method: *const Method,
        work: *mut u8,
    ) -> u32;
    fn mbx_rsa_public_mb8(
        from: *const *const u8,
        to: *const *mut u8,
        n: *const *const u64,
        bits: i32,
        method: *const Method,
        work: *mut u8,
    ) -> u32;
}

/// The library's functions for OpenSSL's numbers stand beside those that are called here, and ask for these. Nobody
/// calls them. They are not exported: an OpenSSL that a token's module brings along keeps its own.
mod openssl {
    // SAFETY: nothing else in the program has these names; ring and aws-lc give theirs a prefix.
    #[unsafe(no_mangle)]
    extern "C" fn BN_num_bits() -> ! {
        std::process::abort()
    }

    // SAFETY: as above.
    #[unsafe(no_mangle)]
    extern "C" fn BN_bn2lebinpad() -> ! {
        std::process::abort()
    }
}
