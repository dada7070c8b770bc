//! The tunnel through a company's proxy: CONNECT, and the answer's head read to its last byte (RFC 9110 section
//! 9.3.6). Must not know names, addresses or what passes through the tunnel.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{AcquireError, Origin};
use crate::files::{self, ReadError};

/// A company's proxy that is asked, with CONNECT and without TLS, for the way to a bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// A DNS name in lower case, or an address; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The file with `user:password` for the proxy.
    pub credentials: Option<PathBuf>,
}

/// The request for one bank. Holds the credentials, and is never shown.
pub(super) struct Tunnel {
    request: Vec<u8>,
    authenticates: bool,
}

impl Tunnel {
    /// Reads the credentials now, and never again.
    pub(super) fn new(bank: &Origin, credentials: Option<&Path>) -> Result<Self, CredentialsError> {
        let authorization = credentials.map(authorization).transpose()?;
        let Origin { host, port } = bank;
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
        if let Some(value) = &authorization {
            request.extend(["Proxy-Authorization: ", value, "\r\n"]);
        }
        request.push_str("\r\n");
        Ok(Self { request: request.into_bytes(), authenticates: authorization.is_some() })
    }

    /// Asks for the tunnel. Afterwards the stream is at the bank's first byte. Has no deadline of its own.
    pub(super) async fn open(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), AcquireError> {
        stream.write_all(&self.request).await.map_err(|error| AcquireError::ViaMalformed(ViaFault::Cut(error)))?;
        match answer(stream).await.map_err(AcquireError::ViaMalformed)? {
            200..=299 => Ok(()),
            407 if self.authenticates => Err(AcquireError::ViaCredentials),
            407 => Err(AcquireError::ViaNoCredentials),
            status => Err(AcquireError::ViaRefused(status)),
        }
    }
}

/// The status of the final answer. A bank says nothing before TLS begins: what follows a 2xx is not the bank's.
async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> Result<u16, ViaFault> {
    let mut buffer = vec![0; MAX_HEAD];
    let (mut begin, mut end) = (0, 0);
    loop {
        match head(&buffer[begin..end])? {
            Some((100 | 102..=199, length)) => {
                begin += length;
                continue;
            }
            Some((200..=299, length)) if begin + length < end => return Err(ViaFault::Extra(end - begin - length)),
            Some((status, _)) => return Ok(status),
            None if end == MAX_HEAD => return Err(ViaFault::TooLarge),
            None => {}
        }
        match stream.read(&mut buffer[end..]).await.map_err(ViaFault::Cut)? {
            0 => return Err(ViaFault::Ended),
            read => end += read,
        }
    }
}

/// Status and length of a head (RFC 9112 section 4); `None` while it is not whole.
fn head(bytes: &[u8]) -> Result<Option<(u16, usize)>, ViaFault> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(ViaFault::NoHttp)?;
    Ok(match parsed {
        httparse::Status::Complete(length) => response.code.map(|status| (status, length)),
        httparse::Status::Partial => None,
    })
}

/// Bytes of the answer's head, interim ones (1xx) included.
const MAX_HEAD: usize = 16 * 1024;

/// Header fields of one head.
const MAX_HEADERS: usize = 64;

/// How a proxy's answer to CONNECT is none.
#[derive(Debug, Error)]
pub enum ViaFault {
    /// Not HTTP/1.x.
    #[error("its answer is not HTTP/1.1")]
    NoHttp(#[source] httparse::Error),
    /// A head without end.
    #[error("its answer's head is larger than 16KiB")]
    TooLarge,
    /// It hung up in order.
    #[error("it closed the connection before its answer was whole")]
    Ended,
    /// It hung up otherwise.
    #[error("the connection broke before its answer was whole")]
    Cut(#[source] io::Error),
    /// Somebody speaks who should listen.
    #[error("{0} bytes follow the head of its answer")]
    Extra(usize),
    /// The same, noticed when TLS was to begin.
    #[error("what follows its answer is no TLS")]
    NoTls(#[source] io::Error),
}

/// `Basic` credentials (RFC 7617) out of a file.
fn authorization(path: &Path) -> Result<String, CredentialsError> {
    let fault = |reason| CredentialsError { path: path.to_owned(), reason };
    let bytes = files::read(path, MAX_CREDENTIALS).map_err(|error| match error {
        ReadError::TooLarge(_) => fault(CredentialsReason::TooLarge),
        error => fault(CredentialsReason::Unreadable(error.into())),
    })?;
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // RFC 7617 section 2: a user name, a colon, a password, and no control characters.
    if !line.contains(&b':') || line.iter().any(u8::is_ascii_control) {
        return Err(fault(CredentialsReason::NotCredentials));
    }
    Ok(format!("Basic {}", STANDARD.encode(line)))
}

/// No user name and password together are longer.
const MAX_CREDENTIALS: u64 = 4096;

/// Why a file holds no credentials. Never shows what it holds.
#[derive(Debug, Error)]
#[error("{}: {reason}", .path.display())]
pub struct CredentialsError {
    /// The file.
    path: PathBuf,
    reason: CredentialsReason,
}

#[derive(Debug, Error)]
enum CredentialsReason {
    #[error("the file cannot be read: {0}")]
    Unreadable(io::Error),
    #[error("the file is larger than 4KiB")]
    TooLarge,
    #[error("the file is not one line `user:password`")]
    NotCredentials,
}

impl CredentialsError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self.reason {
            CredentialsReason::Unreadable(_) => "name a file that the user that runs sealproxy may read",
            _ => "write the user name, a colon and the password on one line, and nothing else",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(host: &str) -> Tunnel {
        Tunnel::new(&Origin { host: host.to_owned(), port: 443 }, None).expect("no file")
    }

    /// What becomes of a proxy's answer that comes in pieces of `piece` bytes.
    async fn opened(answer: &[u8], piece: usize) -> Result<(), AcquireError> {
        let mut stream = proxy_that_says(answer, piece);
        tunnel("bank").open(&mut stream).await
    }

    fn proxy_that_says(answer: &[u8], piece: usize) -> tokio::io::DuplexStream {
        let (ours, mut theirs) = tokio::io::duplex(piece.max(1));
        let answer = answer.to_owned();
        tokio::spawn(async move {
            let mut request = vec![0; "CONNECT bank:443 HTTP/1.1\r\nHost: bank:443\r\n\r\n".len()];
            theirs.read_exact(&mut request).await.expect("a request");
            // Who has heard enough hangs up.
            let _ = theirs.write_all(&answer).await;
        });
        ours
    }

    #[test]
    fn the_request_names_the_bank_with_its_port() {
        for (host, authority) in [("bank.example", "bank.example:443"), ("2a00:1450::1", "[2a00:1450::1]:443")] {
            let expected = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
            assert_eq!(String::from_utf8_lossy(&tunnel(host).request), expected);
        }
    }

    #[tokio::test]
    async fn answers_are_read_whatever_their_pieces() {
        for piece in [1, 7, 65536] {
            for good in [
                "HTTP/1.1 200 Connection established\r\n\r\n",
                "HTTP/1.0 200 OK\r\nProxy-agent: tinyproxy/1.11.1\r\n\r\n",
                "HTTP/1.1 204\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            ] {
                opened(good.as_bytes(), piece).await.unwrap_or_else(|error| panic!("{good:?}: {error}"));
            }
            for (bad, kind) in [
                ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\nbody", "via-authentication"),
                ("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nbody", "via-refused"),
                ("HTTP/1.1 301 Moved\r\nLocation: http://elsewhere/\r\n\r\n", "via-refused"),
                ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "via-refused"),
                ("", "via-malformed"),
                ("HTTP/1.1 200 OK\r\nA: b", "via-malformed"),
                ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "via-malformed"),
                ("HTTP/1.1 2000 OK\r\n\r\n", "via-malformed"),
                ("HTTP/2 200\r\n\r\n", "via-malformed"),
                ("HTTP/1.1 200 OK\r\nno header\r\n\r\n", "via-malformed"),
            ] {
                let error = opened(bad.as_bytes(), piece).await.expect_err(bad);
                assert_eq!(error.kind(), kind, "{bad:?} in pieces of {piece}");
            }
        }
    }

    #[tokio::test]
    async fn nobody_speaks_between_the_answer_and_tls() {
        let error = opened(b"HTTP/1.1 200 OK\r\n\r\n\x16\x03", 65536).await.expect_err("two bytes too many");
        assert!(matches!(error, AcquireError::ViaMalformed(ViaFault::Extra(2))), "{error:?}");
    }

    #[tokio::test]
    async fn a_head_has_a_limit() {
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(MAX_HEAD));
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(MAX_HEAD);
        for answer in [endless, interim] {
            let error = opened(answer.as_bytes(), 65536).await.expect_err("too large");
            assert!(matches!(error, AcquireError::ViaMalformed(ViaFault::TooLarge)), "{error:?}");
        }
    }

    #[test]
    fn credentials_are_one_line_and_never_shown() {
        let folder = std::env::temp_dir().join(format!("sealproxy-via-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("credentials");
        let read = |bytes: &[u8]| {
            std::fs::write(&file, bytes).expect("a file");
            authorization(&file)
        };
        for text in ["Aladdin:open sesame", "Aladdin:open sesame\n", "Aladdin:open sesame\r\n"] {
            assert_eq!(read(text.as_bytes()).expect("credentials"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        }
        for bytes in [&b""[..], b"\n", b"hunter2", b"a:hunter2\nb:hunter2\n", b"a:hunter2\0", &[b':'; 5000]] {
            let error = read(bytes).expect_err("no credentials");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        assert!(authorization(&folder).is_err() && authorization(&folder.join("none")).is_err());
        let _ = std::fs::remove_dir_all(folder);
    }
}
