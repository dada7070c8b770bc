//! How a request may be named outside the exchange itself: in logs, metrics and problems. Account and payment ids
//! stand in paths, and logs live for years.

use std::collections::HashSet;

use http::Method;

use super::api::Api;

/// The path segments that are words of an API or of the configuration, and so nobody's data.
#[derive(Debug)]
pub struct Words(HashSet<String>);

impl Words {
    /// The words of the APIs in use, and those of the configured paths.
    pub fn new<'a>(apis: impl Iterator<Item = &'a Api>, paths: impl Iterator<Item = &'a str>) -> Self {
        let words = apis.flat_map(|api| api.words).copied().chain(paths.flat_map(|path| path.split('/')));
        Self(words.filter(|word| !word.is_empty()).map(str::to_owned).collect())
    }

    /// The path without its query, each segment that is not a word written `{id}`.
    pub fn path(&self, path: &str) -> String {
        let mut redacted = String::with_capacity(path.len());
        // However many segments a caller sends, the line stays short.
        for segment in path.split('/').skip(1).take(MAX_SEGMENTS) {
            redacted.push('/');
            match segment {
                "" => {}
                word if self.0.contains(word) => redacted.push_str(word),
                _ => redacted.push_str("{id}"),
            }
        }
        redacted
    }

    /// The method, unless the caller made it up.
    pub fn method(method: &Method) -> &'static str {
        STANDARD_METHODS.iter().find(|(standard, _)| standard == method).map_or("{other}", |(_, name)| name)
    }
}

const MAX_SEGMENTS: usize = 32;

const STANDARD_METHODS: [(Method, &str); 9] = [
    (Method::GET, "GET"),
    (Method::POST, "POST"),
    (Method::PUT, "PUT"),
    (Method::DELETE, "DELETE"),
    (Method::PATCH, "PATCH"),
    (Method::HEAD, "HEAD"),
    (Method::OPTIONS, "OPTIONS"),
    (Method::CONNECT, "CONNECT"),
    (Method::TRACE, "TRACE"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::api::BECM;

    #[test]
    fn only_words_remain_of_a_path() {
        let words = Words::new([&BECM].into_iter(), ["/own/route"].into_iter());
        assert_eq!(
            words.path("/becm/stet-psd2-api/v2.1/accounts/FR76/balances"),
            "/becm/stet-psd2-api/v2.1/accounts/{id}/balances"
        );
        assert_eq!(words.path("/own/route/secret"), "/own/route/{id}");
        assert_eq!(words.path("/Accounts/accounts%20"), "/{id}/{id}");
        assert_eq!(words.path("/becm//"), "/becm//");
        assert_eq!(Words::method(&Method::from_bytes(b"SECRET").expect("a token")), "{other}");
    }
}
