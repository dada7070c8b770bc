//! `sealproxy health`: ask a running proxy's admin port, for probes in images without a shell.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use super::{Failure, say};

pub(super) fn run(admin: &str, live: bool) -> Result<(), Failure> {
    let page = if live { "/livez" } else { "/readyz" };
    // The banner writes it as a URL, and that is what people paste.
    let admin = admin.trim_start_matches("http://").trim_end_matches('/');
    let answer = ask(admin, page).map_err(|error| io::Error::new(error.kind(), format!("{admin}{page}: {error}")))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        let said = if body.is_empty() { status } else { body.trim() };
        return Err(io::Error::other(format!("{admin}{page}: {said}")).into());
    }
    say(body.trim());
    Ok(())
}

fn ask(admin: &str, page: &str) -> io::Result<String> {
    let address = admin.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {page} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Kubernetes gives a probe one second unless told otherwise.
const PATIENCE: Duration = Duration::from_millis(900);
const MAX_ANSWER: u64 = 64 * 1024;
