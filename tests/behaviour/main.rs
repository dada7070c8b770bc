//! Behaviour through the real app and real sockets. One binary, topics as modules: it links once.

mod bank_faults;
mod callers;
mod cli;
mod connect;
mod drain;
mod framing;
mod inside;
mod late;
mod links;
mod load;
mod never_twice;
mod outside;
mod pooled;
mod preflight;
mod relay;
mod requests;
mod revocation;
mod rotation;
mod rows;
mod sealing;
mod secrets;
mod skew;
mod slow;
mod soak;
mod succession;
mod support;
#[cfg(feature = "pkcs11")]
mod token;
mod trust;
mod way;
mod while_sealing;
mod wire;
