//! For tests: where in memory the bytes lie that are read from and written to the caller and the bank, as far as this
//! thread does it. Must not know what they say.

#![cfg(test)]

use std::cell::RefCell;
use std::io::{self, IoSlice};

/// Where bytes come in and go out. Only the test that needs a sandbox has a caller.
#[cfg_attr(not(feature = "sandbox"), allow(dead_code))]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gate {
    FromCaller,
    ToBank,
    FromBank,
    ToCaller,
}

thread_local! {
    /// For each gate the addresses of the bytes that passed, and the bytes, in their order.
    pub(crate) static PASSED: RefCell<[Vec<(usize, u8)>; 4]> = RefCell::default();
}

/// Notes bytes that came in, or went out.
pub(crate) fn note(gate: Gate, bytes: &[u8]) {
    let first = bytes.as_ptr().addr();
    PASSED.with_borrow_mut(|passed| passed[gate as usize].extend((first..).zip(bytes.iter().copied())));
}

/// Notes, of the bytes that were offered, those that a write took.
pub(crate) fn note_written(gate: Gate, offered: &[IoSlice<'_>], written: &io::Result<usize>) {
    let mut left = *written.as_ref().unwrap_or(&0);
    for bytes in offered {
        let taken = left.min(bytes.len());
        note(gate, &bytes[..taken]);
        left -= taken;
    }
}
