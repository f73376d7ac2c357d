//! HMAC keys: signatures are pure functions of their arguments.

use std::fmt;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::dialect::{Freshness, Signed, Signer, encode};

/// An API key and its secret. Nothing prints them.
#[derive(Clone)]
pub struct HmacKey {
    api_key: SecretString,
    keyed: Hmac<Sha256>,
}

impl fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HmacKey(***)")
    }
}

impl HmacKey {
    /// Takes a key and its secret.
    pub fn new(api_key: SecretString, secret: &SecretString) -> Self {
        let keyed = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes())
            .expect("HMAC takes keys of any length");
        Self { api_key, keyed }
    }

    /// Whether both are one login: they have the same API key.
    pub fn is_same_login(&self, other: &Self) -> bool {
        self.api_key.expose_secret() == other.api_key.expose_secret()
    }

    /// The signature of a payload: HMAC-SHA256 as lower-case hex.
    pub fn signature(&self, payload: &str) -> String {
        let mut mac = self.keyed.clone();
        mac.update(payload.as_bytes());
        hex::encode(mac.finalize().into_bytes())
    }

    /// Percent-encodes parameters in their order and appends their signature.
    pub fn signed_query(&self, params: &[(&str, &str)]) -> String {
        let mut query = encode(params);
        let signature = self.signature(&query);
        query.push_str("&signature=");
        query.push_str(&signature);
        query
    }
}

impl Signer for HmacKey {
    fn headers(&self) -> Vec<(&'static str, String)> {
        vec![("x-mbx-apikey", self.api_key.expose_secret().to_owned())]
    }

    fn sign(&self, params: &[(&str, &str)], freshness: Freshness) -> Signed {
        let (timestamp, window) = (freshness.at.to_string(), freshness.window.as_millis().to_string());
        let mut all: Vec<(&str, &str)> = params.to_vec();
        all.push(("recvWindow", &window));
        all.push(("timestamp", &timestamp));
        Signed { query: self.signed_query(&all), nonce: None }
    }

    fn sign_again(&self, _: &[(&str, &str)], _: i64) -> Option<String> {
        None
    }

    fn signs_listen_keys(&self) -> bool {
        false
    }

    fn fixed_validity(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET_A: &str = "2b5eb11e18796d12d88f13dc27dbbd02c2cc51ff7059765ed9821957d82bb4d9";
    const SECRET_B: &str = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j";

    #[track_caller]
    fn check(secret: &str, payload: &str, expected: &str) {
        let credential = HmacKey::new("key".into(), &secret.into());
        assert_eq!(credential.signature(payload), expected);
    }

    /// The vectors that Binance's documentation prints.
    #[test]
    fn published_vectors() {
        check(
            SECRET_A,
            "symbol=BTCUSDT&side=BUY&type=LIMIT&quantity=1&price=9000&timeInForce=GTC&recvWindow=5000&timestamp=1591702613943",
            "3c661234138461fcc7a7d8746c6558c9842d4e10870d2ecbedf7777cad694af9",
        );
        check(
            SECRET_A,
            "symbol=BTCUSDT&side=BUY&type=LIMIT&timeInForce=GTCquantity=1&price=9000&recvWindow=5000&timestamp= 1591702613943",
            "f9d0ae5e813ef6ccf15c2b5a434047a0181cb5a342b903b367ca6d27a66e36f2",
        );
        check(
            SECRET_B,
            "symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1&recvWindow=5000&timestamp=1499827319559",
            "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71",
        );
    }

    #[test]
    fn signed_parameters_are_percent_encoded() {
        let credential = HmacKey::new("key".into(), &SECRET_B.into());
        let query = credential.signed_query(&[
            ("symbol", "１２３４５６"),
            ("side", "BUY"),
            ("type", "LIMIT"),
            ("timeInForce", "GTC"),
            ("quantity", "1"),
            ("price", "0.1"),
            ("recvWindow", "5000"),
            ("timestamp", "1499827319559"),
        ]);
        assert_eq!(
            query,
            "symbol=%EF%BC%91%EF%BC%92%EF%BC%93%EF%BC%94%EF%BC%95%EF%BC%96&side=BUY&type=LIMIT&timeInForce=GTC\
             &quantity=1&price=0.1&recvWindow=5000&timestamp=1499827319559\
             &signature=e1353ec6b14d888f1164ae9af8228a3dbd508bc82eb867db8ab6046442f33ef3"
        );
    }

    #[test]
    fn a_batch_is_encoded_and_signed_as_published() {
        let credential = HmacKey::new("key".into(), &SECRET_A.into());
        let query = credential.signed_query(&[
            ("batchOrders", r#"[{"symbol":"BTCUSDT","side":"BUY","type":"LIMIT","timeInForce":"GTC","quantity":"0.001","price":"10001","newClientOrderId":"a:b/c_1.x-2"}]"#),
            ("recvWindow", "5000"),
            ("timestamp", "1591702613943"),
        ]);
        assert!(
            query.ends_with("&signature=9e9bd8d3d6e340ee14fbb22183b5e49c44cc0df49a3f782f091de137cc01492d"),
            "{query}"
        );
    }

    #[test]
    fn nothing_prints_a_credential() {
        let credential = HmacKey::new("the-key".into(), &"the-secret".into());
        assert_eq!(format!("{credential:?}"), "HmacKey(***)");
    }
}
