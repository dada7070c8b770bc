//! Where an OCSP responder listens. Answers are signed: plain HTTP is what RFC 6960 appendix A means.

use std::fmt;
use std::str::FromStr;

use http::Uri;
use thiserror::Error;

/// An http URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponderUrl {
    /// A DNS name or an address; an IPv6 address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Host and port as the URL has them.
    pub authority: String,
    /// Path and query, beginning with a slash.
    pub target: String,
}

impl FromStr for ResponderUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let url: Uri = text.parse().map_err(|_| UrlError::NoUrl)?;
        let authority = url.authority().ok_or(UrlError::NoUrl)?;
        match url.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(UrlError::Tls),
            _ => return Err(UrlError::NoUrl),
        }
        if authority.as_str().contains('@') {
            return Err(UrlError::UserInfo);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if authority.as_str().len() == authority.host().len() => 80,
            None => return Err(UrlError::NoUrl),
        };
        if host.is_empty() || port == 0 {
            return Err(UrlError::NoUrl);
        }
        let target = url.path_and_query().map_or("/", |target| target.as_str());
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Self { host, port, authority: authority.to_string(), target: format!("{slash}{target}") })
    }
}

impl fmt::Display for ResponderUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.target)
    }
}

/// Why a text names no responder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UrlError {
    /// Another scheme, no host, no legal port, or nothing of that kind.
    #[error("is not an http URL")]
    NoUrl,
    /// https.
    #[error("asks for TLS, which OCSP does not need: answers are signed")]
    Tls,
    /// Nobody logs in to a responder.
    #[error("has a user name or a password")]
    UserInfo,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, host, port, target) in [
            ("http://ocsp.example", "ocsp.example", 80, "/"),
            ("http://OCSP.example:8080/a/b?c", "ocsp.example", 8080, "/a/b?c"),
            ("HTTP://[::1]:80/", "::1", 80, "/"),
            ("http://ocsp.example?x", "ocsp.example", 80, "/?x"),
        ] {
            let url: ResponderUrl = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((&*url.host, url.port, &*url.target), (host, port, target), "{text}");
        }
    }

    #[test]
    fn what_names_no_responder_is_refused() {
        for (text, error) in [
            ("", UrlError::NoUrl),
            ("ocsp.example", UrlError::NoUrl),
            ("/path", UrlError::NoUrl),
            ("ldap://ocsp.example/", UrlError::NoUrl),
            ("http://ocsp.example:0/", UrlError::NoUrl),
            ("http://ocsp.example:/", UrlError::NoUrl),
            ("http://ocsp.example:99999/", UrlError::NoUrl),
            ("https://ocsp.example/", UrlError::Tls),
            ("http://u:p@ocsp.example/", UrlError::UserInfo),
        ] {
            assert_eq!(text.parse::<ResponderUrl>(), Err(error), "{text}");
        }
    }
}
