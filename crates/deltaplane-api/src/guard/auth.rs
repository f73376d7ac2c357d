//! Who may ask: API keys, and for header-less requests in paper mode the Host and Origin of a local caller.

use std::fmt;
use std::net::IpAddr;

use axum::http::{HeaderMap, header};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Why a text is not an API key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyError {
    /// No dot between id and secret.
    #[error("an API key has the form id.secret")]
    Form,
    /// The secret can be guessed.
    #[error("the secret of an API key has at least 32 characters")]
    TooShort,
}

/// The digest of an API key. The key itself is not kept.
#[derive(Clone)]
pub struct ApiKey {
    digest: [u8; 32],
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(***)")
    }
}

impl ApiKey {
    /// Takes `id.secret`, a secret of at least 32 characters.
    ///
    /// # Errors
    ///
    /// [`ApiKeyError`] without the text.
    pub fn new(text: &SecretString) -> Result<Self, ApiKeyError> {
        let text = text.expose_secret().trim();
        let (id, secret) = text.split_once('.').ok_or(ApiKeyError::Form)?;
        if id.is_empty() || text.chars().any(|c| !c.is_ascii_graphic()) {
            return Err(ApiKeyError::Form);
        }
        if secret.len() < 32 {
            return Err(ApiKeyError::TooShort);
        }
        Ok(Self { digest: Sha256::digest(text.as_bytes()).into() })
    }

    fn matches(&self, presented: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(presented.as_bytes()).into();
        digest.ct_eq(&self.digest).into()
    }
}

/// Why a request is turned away.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// No key, or a wrong one.
    Key,
    /// A Host that is not this machine: a web page may have pointed its name here.
    Host(String),
    /// A web page of another origin.
    Origin(String),
}

/// Checks the headers of a request before its body is read. `public_hosts` are names beside those of this machine under
/// which it is reached, with no port.
pub(crate) fn check(
    key: Option<&ApiKey>,
    public_hosts: &[String],
    headers: &HeaderMap,
) -> Result<(), Denied> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    let name = name_of(host);
    if !is_local(name) && !public_hosts.iter().any(|public| public.eq_ignore_ascii_case(name)) {
        return Err(Denied::Host(host.chars().take(80).collect()));
    }
    if let Some(origin) = text(header::ORIGIN) {
        let same = origin.split_once("://").is_some_and(|(_, rest)| rest == host);
        if !same {
            return Err(Denied::Origin(origin.chars().take(80).collect()));
        }
    }
    let Some(key) = key else { return Ok(()) };
    // The name of a scheme has no case (RFC 9110, 11.1).
    let presented = text(header::AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    });
    if presented.is_some_and(|presented| key.matches(presented.trim())) { Ok(()) } else { Err(Denied::Key) }
}

/// A Host header without its port.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

/// Whether a name is this machine's or an address, which no web page can point elsewhere.
fn is_local(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_key_opens_and_nothing_else_does() {
        let text = format!("admin.{}", "s".repeat(43));
        let key = ApiKey::new(&text.clone().into()).unwrap();
        let bearer = |token: &str| {
            headers(&[(header::AUTHORIZATION, &format!("Bearer {token}")), (header::HOST, "localhost")])
        };
        assert_eq!(check(Some(&key), &[], &bearer(&text)), Ok(()));
        for scheme in ["bearer", "BEARER", "Basic"] {
            let mut headers = bearer(&text);
            headers.insert(header::AUTHORIZATION, format!("{scheme} {text}").parse().unwrap());
            let is_bearer = scheme.eq_ignore_ascii_case("bearer");
            assert_eq!(check(Some(&key), &[], &headers).is_ok(), is_bearer, "{scheme}");
        }
        assert_eq!(check(Some(&key), &[], &bearer("admin.wrong")), Err(Denied::Key));
        assert_eq!(check(Some(&key), &[], &headers(&[(header::HOST, "localhost")])), Err(Denied::Key));
        assert_eq!(format!("{key:?}"), "ApiKey(***)");
        // A page of another origin and a rebound host name are rejected before the key is read.
        let from = |host: &str, origin: &str| {
            let mut headers = bearer(&text);
            headers.insert(header::HOST, host.parse().unwrap());
            headers.insert(header::ORIGIN, origin.parse().unwrap());
            check(Some(&key), &["delta.example".to_owned()], &headers)
        };
        assert_eq!(
            from("localhost:3000", "https://evil.example"),
            Err(Denied::Origin("https://evil.example".to_owned()))
        );
        assert_eq!(from("evil.example", "http://evil.example"), Err(Denied::Host("evil.example".to_owned())));
        assert_eq!(from("Delta.example:443", "https://Delta.example:443"), Ok(()));
    }

    #[test]
    fn weak_keys_are_refused() {
        let refused = |text: &str| ApiKey::new(&text.into()).unwrap_err();
        assert_eq!(refused("no-dot"), ApiKeyError::Form);
        assert_eq!(refused(".secret"), ApiKeyError::Form);
        assert_eq!(refused("admin.short"), ApiKeyError::TooShort);
    }

    #[test]
    fn without_a_key_only_local_names_and_pages_pass() {
        for host in ["localhost:3000", "127.0.0.1:3000", "[::1]:3000", "127.0.0.1"] {
            assert_eq!(check(None, &[], &headers(&[(header::HOST, host)])), Ok(()), "{host}");
        }
        assert!(matches!(
            check(None, &[], &headers(&[(header::HOST, "evil.example:3000")])),
            Err(Denied::Host(_))
        ));
        let with = |origin| {
            check(None, &[], &headers(&[(header::HOST, "localhost:3000"), (header::ORIGIN, origin)]))
        };
        assert_eq!(with("http://localhost:3000"), Ok(()));
        assert!(matches!(with("https://evil.example"), Err(Denied::Origin(_))));
        assert!(matches!(with("null"), Err(Denied::Origin(_))));
    }
}
