//! Answers in the language of the caller: `Accept-Language: zh` has Chinese texts before the English ones, which have the values.

use std::collections::BTreeMap;

use axum::body::{Body, HttpBody as _, to_bytes};
use axum::extract::Request;
use axum::http::header::{ACCEPT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use deltaplane_types::Code;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::texts;

/// Larger answers keep their English texts.
const MOST: u64 = 4 * 1024 * 1024;

/// A language of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    English,
    Chinese,
}

impl Language {
    /// The first language of `Accept-Language` that there are texts in; English without one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let asked = headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let known = asked.split(',').find_map(|range| {
            let name = range.split(';').next()?.trim().to_ascii_lowercase();
            match name.split('-').next()? {
                "zh" => Some(Self::Chinese),
                "en" | "*" => Some(Self::English),
                _ => None,
            }
        });
        known.unwrap_or(Self::English)
    }
}

/// Puts the Chinese texts of its code before the English `error` and `solution` of a problem, and those of its topic before
/// the `message` of an alert.
pub(crate) async fn translate(request: Request, next: Next) -> Response {
    let language = Language::of(request.headers());
    let has_alerts = request.uri().path().starts_with("/api/v1/risk/alerts");
    let response = next.run(request).await;
    let is_problem = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/problem+json"));
    if language == Language::English || !(is_problem || has_alerts) {
        return response;
    }
    // A larger answer stays as it is.
    if response.body().size_hint().exact().is_none_or(|size| size > MOST) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, usize::MAX).await else {
        return Response::from_parts(parts, Body::empty());
    };
    let translated = if is_problem { in_chinese(&bytes) } else { alerts_in_chinese(&bytes) };
    let Some(translated) = translated else { return Response::from_parts(parts, Body::from(bytes)) };
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(translated.len()));
    parts.headers.insert("content-language", HeaderValue::from_static("zh"));
    Response::from_parts(parts, Body::from(translated))
}

/// An object whose numbers keep every digit.
type Fields = BTreeMap<String, Box<RawValue>>;

/// Puts a text before one of the object.
fn put_before(fields: &mut Fields, name: &str, text: &str) -> Option<()> {
    let english: String =
        fields.get(name).and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    let both = serde_json::value::to_raw_value(format!("{text} {english}").trim_end()).ok()?;
    fields.insert(name.to_owned(), both);
    Some(())
}

fn in_chinese(problem: &[u8]) -> Option<Vec<u8>> {
    let mut problem: Fields = serde_json::from_slice(problem).ok()?;
    let number: u16 = serde_json::from_str(problem.get("code")?.get()).ok()?;
    let [_, chinese] = texts::of_code(Code::from_number(number)?);
    put_before(&mut problem, "error", chinese.meaning)?;
    put_before(&mut problem, "solution", chinese.remedy)?;
    serde_json::to_vec(&problem).ok()
}

fn alerts_in_chinese(answer: &[u8]) -> Option<Vec<u8>> {
    #[derive(Deserialize)]
    struct Data {
        topic: String,
    }
    let translate = |alert: &mut Fields| {
        let data: Data = serde_json::from_str(alert.get("data")?.get()).ok()?;
        let chinese = texts::of_topic(data.topic.parse().ok()?);
        put_before(alert, "message", &format!("{}{}", chinese.meaning, chinese.remedy))
    };
    // An acknowledgement answers with one alert.
    if let Ok(mut alert) = serde_json::from_slice::<Fields>(answer) {
        translate(&mut alert)?;
        return serde_json::to_vec(&alert).ok();
    }
    let mut alerts: Vec<Fields> = serde_json::from_slice(answer).ok()?;
    alerts.iter_mut().try_for_each(translate)?;
    serde_json::to_vec(&alerts).ok()
}

#[cfg(test)]
mod tests {
    use deltaplane_types::AlertTopic;
    use serde_json::Value;

    use super::*;

    fn asked(value: &'static str) -> Language {
        Language::of(&HeaderMap::from_iter([(ACCEPT_LANGUAGE, HeaderValue::from_static(value))]))
    }

    #[test]
    fn the_first_known_language_is_taken() {
        assert_eq!(Language::of(&HeaderMap::new()), Language::English);
        assert_eq!(asked("zh-CN,zh;q=0.9,en;q=0.8"), Language::Chinese);
        assert_eq!(asked("fr, zh;q=0.5"), Language::Chinese);
        assert_eq!(asked("en-GB, zh"), Language::English);
    }

    #[test]
    fn every_code_and_topic_has_texts_in_both_languages() {
        let is_chinese = |text: &str| text.chars().any(|letter| ('\u{4e00}'..='\u{9fff}').contains(&letter));
        for code in Code::ALL {
            let [english, chinese] = texts::of_code(code);
            assert!(!is_chinese(english.meaning) && english.meaning.ends_with('.'), "{code:?}");
            assert!(is_chinese(chinese.meaning) && is_chinese(chinese.remedy), "{code:?}");
        }
        for topic in AlertTopic::ALL {
            let chinese = texts::of_topic(*topic);
            assert!(is_chinese(chinese.meaning) && is_chinese(chinese.remedy), "{topic}");
        }
    }

    #[test]
    fn a_problem_keeps_its_values_beside_the_chinese_texts() {
        let problem = br#"{"code":1005,"error":"no usable price of ETH-USD","finalDelta":0.1234567890123456789012345678}"#;
        let translated = String::from_utf8(in_chinese(problem).unwrap()).unwrap();
        assert!(translated.contains("0.1234567890123456789012345678"), "{translated}");
        let translated: Value = serde_json::from_str(&translated).unwrap();
        assert_eq!(translated["error"], "没有可用的价格。 no usable price of ETH-USD");
        assert_eq!(translated["solution"], "见 GET /api/v1/market/feeds，几秒后再请求。");
        assert_eq!(in_chinese(b"{}"), None);
    }

    #[test]
    fn an_alert_keeps_its_message_after_the_chinese_texts() {
        let alerts =
            br#"[{"message":"BTC-USD: net delta 0.25 BTC","data":{"topic":"leg-unhedged","netDelta":0.25}}]"#;
        let translated: Value = serde_json::from_slice(&alerts_in_chinese(alerts).unwrap()).unwrap();
        let message = translated[0]["message"].as_str().unwrap();
        assert!(message.starts_with("一边成交，另一边没有跟上。"), "{message}");
        assert!(message.ends_with("BTC-USD: net delta 0.25 BTC"), "{message}");
    }
}
