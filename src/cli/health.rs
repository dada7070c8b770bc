//! `sealproxy health`: ask a running proxy's admin port, for probes in images without a shell.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::str::FromStr;
use std::time::Duration;

use super::{Failure, say};

/// Where an admin port is: a host and a port, as the command line has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    host: String,
    port: u16,
}

impl FromStr for Admin {
    type Err = String;

    /// Takes a URL too: the banner writes it so, and that is what people paste.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("{what}; write HOST:PORT, such as 127.0.0.1:9090"));
        if text.starts_with("https://") {
            return wrong("the admin port speaks HTTP without TLS");
        }
        let authority = text.strip_prefix("http://").unwrap_or(text);
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.contains(['/', '?', '#', '@']) {
            return wrong("this is more than a host and a port");
        }
        let Some((host, port)) = authority.rsplit_once(':') else {
            let port = authority.bytes().all(|byte| byte.is_ascii_digit());
            return wrong(if port { "the host is missing" } else { "the port is missing" });
        };
        let Some(port) = port.parse().ok().filter(|number| *number != 0 && !port.starts_with('+')) else {
            return wrong("the port is no number from 1 to 65535");
        };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match bracketed.unwrap_or(host) {
            "" => wrong("the host is missing"),
            inner if bracketed.is_none() && inner.contains(':') => {
                Err("an IPv6 address stands in brackets, as in [::1]:9090".into())
            }
            inner if inner.contains(|c: char| c.is_whitespace() || c.is_control() || "[]".contains(c)) => {
                wrong("this is no host")
            }
            _ => Ok(Self { host: host.to_owned(), port }),
        }
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

pub(super) fn run(admin: &Admin, live: bool) -> Result<(), Failure> {
    let page = if live { "/livez" } else { "/readyz" };
    let place = format!("http://{admin}{page}");
    let answer = ask(admin, page).map_err(|error| unanswered(&place, &error))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    match status.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split(' ').next()) {
        Some("200") => {
            say(body.trim());
            Ok(())
        }
        // What is not ready says what is.
        Some("503") => Err(io::Error::other(format!("{place}: {}", body.trim())).into()),
        Some("404") => {
            let advice = format!("If this is the proxy's admin port, `serve` leaves the page out. {WHERE}");
            Err(Failure::Advised(format!("{place} answered 404"), advice))
        }
        Some(code) => Err(Failure::Advised(format!("{place} answered {code}"), WHERE.into())),
        None => Err(Failure::Advised(format!("{place} gave no answer in HTTP"), WHERE.into())),
    }
}

/// What to do where nobody answers.
fn unanswered(place: &str, error: &io::Error) -> Failure {
    let reason = match error.kind() {
        io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => format!("no answer within {PATIENCE:?}"),
        _ => error.to_string(),
    };
    Failure::Advised(format!("{place}: {reason}"), WHERE.into())
}

const WHERE: &str = "The start of `sealproxy run` says on stderr which address its admin pages have (the setting `admin`): see that it \
                     runs, and name it with --admin HOST:PORT";

fn ask(admin: &Admin, page: &str) -> io::Result<String> {
    let mut stream = connect(admin)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // In one piece: whoever answers after the first could close upon the others.
    stream.write_all(format!("GET {page} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A name such as `localhost` has several addresses, and the proxy listens on one of them.
fn connect(admin: &Admin) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in admin.to_string().to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Kubernetes gives a probe one second unless told otherwise.
const PATIENCE: Duration = Duration::from_millis(900);
const MAX_ANSWER: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_address_is_a_host_and_a_port_or_their_url() {
        for (text, shown) in [
            ("127.0.0.1:9090", "127.0.0.1:9090"),
            ("http://127.0.0.1:9090/", "127.0.0.1:9090"),
            ("localhost:1", "localhost:1"),
            ("[::1]:9090", "[::1]:9090"),
        ] {
            assert_eq!(text.parse::<Admin>().map(|admin| admin.to_string()).as_deref(), Ok(shown));
        }
        for (text, reason) in [
            ("9090", "the host is missing"),
            (":9090", "the host is missing"),
            ("[]:9090", "the host is missing"),
            ("127.0.0.1", "the port is missing"),
            ("", "the host is missing"),
            ("127.0.0.1:", "the port is no number"),
            ("127.0.0.1:0", "the port is no number"),
            ("127.0.0.1:+80", "the port is no number"),
            ("127.0.0.1:99999", "the port is no number"),
            ("::1:9090", "stands in brackets"),
            ("a b:9090", "this is no host"),
            ("https://127.0.0.1:9090", "without TLS"),
            ("http://127.0.0.1:9090/readyz", "more than a host and a port"),
        ] {
            let error = text.parse::<Admin>().expect_err(text);
            assert!(error.contains(reason) && error.contains(":9090"), "{text}: {error}");
        }
    }
}
