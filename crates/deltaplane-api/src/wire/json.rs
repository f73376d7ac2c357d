//! Writing JSON with exact decimals.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use deltaplane_types::Decimal;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

/// Significant digits that a number of an answer has at most, as one of a request.
const DIGITS: u32 = 28;

/// A decimal written as a JSON number with all its digits and no others. Of the 29 that a quotient may have the last one
/// is rounded away: what an answer has can be sent back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number(pub(crate) Decimal);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let is_long = self.0.mantissa().unsigned_abs() >= 10_u128.pow(DIGITS);
        let value = if is_long { self.0.round_sf(DIGITS).unwrap_or(self.0) } else { self.0 }.normalize();
        let text = if value.is_zero() { "0".to_owned() } else { value.to_string() };
        RawValue::from_string(text).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

/// An object that is put together field by field; a later value of a name replaces an earlier one.
#[derive(Debug, Default)]
pub(crate) struct JsonObject(Vec<(String, Box<RawValue>)>);

impl JsonObject {
    pub(crate) fn put<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        // Our own types always serialize; a defect here must not take an answer down.
        let raw = to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned());
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, value)) => *value = raw,
            None => self.0.push((name.to_owned(), raw)),
        }
    }

    pub(crate) fn number(&mut self, name: &str, value: Decimal) {
        self.put(name, &Number(value));
    }

    /// Null where there is no value: what is not known is no zero.
    pub(crate) fn number_or_null(&mut self, name: &str, value: Option<Decimal>) {
        self.put(name, &value.map(Number));
    }

    /// Leaves the name out where there is no value.
    pub(crate) fn number_if(&mut self, name: &str, value: Option<Decimal>) {
        if let Some(value) = value {
            self.number(name, value);
        }
    }

    pub(crate) fn put_if<T: Serialize>(&mut self, name: &str, value: Option<&T>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }
}

impl Serialize for JsonObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// JSON as it is sent.
pub(crate) fn to_bytes<T: Serialize>(body: &T) -> Bytes {
    serde_json::to_vec(body).unwrap_or_default().into()
}

/// An answer before it is sent.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) body: Bytes,
    pub(crate) location: Option<String>,
    pub(crate) retry_after: Option<Duration>,
    /// Where a newer state of what the body tells is found.
    pub(crate) newer: Option<String>,
}

impl Reply {
    pub(crate) fn json<T: Serialize>(status: StatusCode, body: &T) -> Self {
        Self::written(status, to_bytes(body))
    }

    /// An answer whose JSON stands already.
    pub(crate) fn written(status: StatusCode, body: Bytes) -> Self {
        Self {
            status,
            content_type: "application/json",
            body,
            location: None,
            retry_after: None,
            newer: None,
        }
    }

    pub(crate) fn problem(status: StatusCode, body: JsonObject) -> Self {
        Self { content_type: "application/problem+json", ..Self::json(status, &body) }
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(location) = self.location.and_then(|location| HeaderValue::from_str(&location).ok()) {
            headers.insert(header::LOCATION, location);
        }
        let newer = self.newer.map(|path| format!("<{path}>; rel=\"latest-version\""));
        if let Some(link) = newer.and_then(|link| HeaderValue::from_str(&link).ok()) {
            headers.insert(header::LINK, link);
        }
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaplane_types::parse_exact;

    #[test]
    fn decimals_are_written_with_all_their_digits() {
        for (text, written) in [
            ("0.1", "0.1"),
            ("15234.50", "15234.5"),
            ("-0.0000000000000000000000000001", "-0.0000000000000000000000000001"),
            ("1234567890123456789012345678", "1234567890123456789012345678"),
            ("-0", "0"),
            ("1e3", "1000"),
        ] {
            assert_eq!(serde_json::to_string(&Number(parse_exact(text).unwrap())).unwrap(), written);
        }
        // 1.1119875048809058961343225303 as a decimal holds it.
        let quotient = Decimal::from(14_239) / Decimal::from(12_805);
        assert_eq!(serde_json::to_string(&Number(quotient)).unwrap(), "1.11198750488090589613432253");
    }
}
