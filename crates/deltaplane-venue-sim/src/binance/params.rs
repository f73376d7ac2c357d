//! Query and form parameters.

use std::collections::BTreeMap;

use deltaplane_types::{Decimal, parse_exact};
use percent_encoding::percent_decode_str;

use crate::core::Reject;

/// Decoded parameters; the query wins over the body.
#[derive(Debug, Default)]
pub(crate) struct Params(BTreeMap<String, String>);

impl Params {
    pub(crate) fn parse(query: &str, body: &str) -> Result<Self, Reject> {
        let mut found = BTreeMap::new();
        for part in [body, query] {
            for pair in part.split('&').filter(|pair| !pair.is_empty()) {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let decode = |text: &str| {
                    percent_decode_str(&text.replace('+', " "))
                        .decode_utf8()
                        .map(std::borrow::Cow::into_owned)
                        .map_err(|_| Reject::new(-1100, "Illegal characters found in a parameter."))
                };
                found.insert(decode(name)?, decode(value)?);
            }
        }
        Ok(Self(found))
    }

    pub(crate) fn from_map(map: BTreeMap<String, String>) -> Self {
        Self(map)
    }

    /// The same with one parameter set.
    pub(crate) fn with(&self, name: &str, value: &str) -> Self {
        let mut params = self.0.clone();
        params.insert(name.to_owned(), value.to_owned());
        Self(params)
    }

    /// The same with one parameter left out.
    pub(crate) fn without(&self, name: &str) -> Self {
        let mut params = self.0.clone();
        params.remove(name);
        Self(params)
    }

    /// A parameter as it came; empty where it is missing.
    pub(crate) fn raw(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// All parameters but some as a JSON object of texts, sorted by name.
    pub(crate) fn as_sorted_json(&self, without: &[&str]) -> String {
        let kept = self.0.iter().filter(|(name, _)| !without.contains(&name.as_str()));
        serde_json::Value::Object(kept.map(|(name, value)| (name.clone(), value.clone().into())).collect())
            .to_string()
    }

    /// A parameter; an empty one is refused as the venue does.
    pub(crate) fn get(&self, name: &str) -> Result<Option<&str>, Reject> {
        match self.0.get(name).map(String::as_str) {
            Some("") => Err(Reject::new(-1105, format!("Parameter '{name}' was empty."))),
            other => Ok(other),
        }
    }

    pub(crate) fn need(&self, name: &str) -> Result<&str, Reject> {
        self.get(name)?.ok_or_else(|| {
            let text = format!("Mandatory parameter '{name}' was not sent, was empty/null, or malformed.");
            Reject::new(-1102, text)
        })
    }

    pub(crate) fn decimal(&self, name: &str) -> Result<Option<Decimal>, Reject> {
        let Some(text) = self.get(name)? else { return Ok(None) };
        parse_exact(text).map(Some).map_err(|_| illegal(name))
    }

    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>, Reject> {
        let Some(text) = self.get(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| illegal(name))
    }

    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, Reject> {
        match self.get(name)?.map(str::to_ascii_lowercase).as_deref() {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(Reject::new(-1130, format!("Data sent for parameter '{name}' is not valid."))),
        }
    }

    /// The page size, `default` where none is given.
    pub(crate) fn limit(&self, default: usize, most: usize) -> Result<usize, Reject> {
        let Some(limit) = self.integer("limit")? else { return Ok(default) };
        usize::try_from(limit)
            .ok()
            .filter(|limit| (1..=most).contains(limit))
            .ok_or_else(|| Reject::new(-1130, "Data sent for parameter 'limit' is not valid."))
    }
}

fn illegal(name: &str) -> Reject {
    Reject::new(-1100, format!("Illegal characters found in parameter '{name}'."))
}
