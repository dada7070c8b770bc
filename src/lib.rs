//! sealproxy: a mutual-TLS signing forward proxy for open-banking APIs. Internal services speak plain HTTP to it; it
//! presents the QWAC on the TLS connection to the bank, adds `Digest` and a QSealC `Signature`, and forwards.
//!
//! Tenets, ranked: sealed correctly, or not sent; no key, token, body or personal data leaks; a payment is never sent
//! twice and its caller learns what is known of it; observable; fast; small.
//!
//! The modules, in reading order. What each may import is held by the test `tests/layout.rs`.
//!
//! | module | what it is |
//! |---|---|
//! | [`causes`] | an error with what is behind it, on one line |
//! | [`files`] | reads what others write: keys, certificates, configuration |
//! | [`series`] | who counts under a label of a metric |
//! | [`key`] | a private key as a capability |
//! | [`identity`] | certificates and keys, checked against each other |
//! | [`seal`] | bytes in, headers out: digest and signature as a dialect wants them |
//! | [`upstream`] | live mutual-TLS connections to a bank |
//! | [`proxy`] | accepted connections to sealed requests; `proxy/forward.rs` is the page to read |
//! | [`admin`] | `/livez`, `/readyz`, `/metrics` |
//! | [`log`] | lines to one writer thread |
//! | [`config`] | YAML and the environment to typed settings |
//! | [`app`] | the composition root |
//! | `sandbox` | a bank and its trust service provider on loopback (feature `sandbox`) |
//! | [`cli`] | one file per command |

pub mod causes;

pub mod files;

pub mod series;

pub mod key;

pub mod identity;

pub mod seal;

pub mod upstream;

pub mod proxy;

pub mod admin;

pub mod log;

pub mod config;

pub mod app;

#[cfg(feature = "sandbox")]
pub mod sandbox;

pub mod cli;
