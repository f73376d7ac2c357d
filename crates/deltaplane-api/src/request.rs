//! Reading a request body strictly: every problem at once, each with its JSON pointer.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use deltaplane_ports::bounds;
use deltaplane_types::{AccountId, Decimal, Symbol, parse_exact};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// One thing that is wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, as a JSON pointer (RFC 6901).
    pub pointer: String,
    /// What, with the value and the remedy.
    pub detail: String,
}

/// All that is wrong with a body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// What is wrong with the request itself.
    pub invalid: Vec<Problem>,
    /// Account ids that are malformed.
    pub bad_accounts: Vec<String>,
}

impl Problems {
    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.invalid.is_empty() && self.bad_accounts.is_empty()
    }
}

/// An object with its fields as they stand in the body; names may repeat.
struct RawObject<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for RawObject<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = RawObject<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawObject<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    fields.push((name, map.next_value::<&'de RawValue>()?));
                }
                Ok(RawObject(fields))
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

/// A body that is being read field by field.
pub struct Fields<'a> {
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
    known: Vec<&'static str>,
    problems: Problems,
}

/// Text of a value, shortened for an error.
fn shown(raw: &str) -> String {
    const MOST: usize = 60;
    if raw.chars().count() <= MOST {
        raw.to_owned()
    } else {
        format!("{}…", raw.chars().take(MOST).collect::<String>())
    }
}

fn kind_of(raw: &str) -> &'static str {
    match raw.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// A range of decimals.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// The least, and whether it is itself allowed.
    pub least: Option<(Decimal, bool)>,
    /// The most, itself allowed.
    pub most: Option<Decimal>,
}

impl Range {
    /// Every number.
    pub const ANY: Self = Self { least: None, most: None };

    /// From one number to another, both allowed.
    pub const fn between(least: Decimal, most: Decimal) -> Self {
        Self { least: Some((least, true)), most: Some(most) }
    }

    fn check(&self, value: Decimal) -> Result<(), String> {
        let low = self.least.is_some_and(|(least, allowed)| value < least || (value == least && !allowed));
        let high = self.most.is_some_and(|most| value > most);
        if !low && !high {
            return Ok(());
        }
        let from = match self.least {
            Some((least, true)) => format!("at least {least}"),
            Some((least, false)) => format!("above {least}"),
            None => String::new(),
        };
        let to = self.most.map(|most| format!("at most {most}")).unwrap_or_default();
        let both = if from.is_empty() || to.is_empty() { "" } else { " and " };
        Err(format!("must be {from}{both}{to}"))
    }
}

impl<'a> Fields<'a> {
    /// Begins to read a body.
    ///
    /// # Errors
    ///
    /// One problem at the root if the body is not UTF-8, not JSON, or not an object.
    pub fn read(body: &'a [u8]) -> Result<Self, Problems> {
        let root = |detail: String| Problems {
            invalid: vec![Problem { pointer: String::new(), detail }],
            bad_accounts: Vec::new(),
        };
        let text = std::str::from_utf8(body)
            .map_err(|error| root(format!("the body is not UTF-8 after byte {}", error.valid_up_to())))?;
        if text.trim().is_empty() {
            return Err(root("the body is empty; send a JSON object".to_owned()));
        }
        let RawObject(fields) = serde_json::from_str(text)
            .map_err(|error| root(format!("the body is not a JSON object: {error}")))?;
        let mut reader = Self { fields, known: Vec::new(), problems: Problems::default() };
        let mut seen = BTreeSet::new();
        let repeated: Vec<String> = reader
            .fields
            .iter()
            .filter(|(name, _)| !seen.insert(name.clone()))
            .map(|(name, _)| name.to_string())
            .collect();
        for name in repeated {
            reader.problem(&pointer(&name), "is given more than once; give it once");
        }
        Ok(reader)
    }

    fn problem(&mut self, pointer: &str, detail: impl Into<String>) {
        self.problems.invalid.push(Problem { pointer: pointer.to_owned(), detail: detail.into() });
    }

    fn raw(&mut self, name: &'static str) -> Option<&'a str> {
        self.known.push(name);
        self.fields.iter().find(|(known, _)| known == name).map(|(_, raw)| raw.get())
    }

    fn missing(&mut self, name: &'static str, what: &str) {
        self.problem(&pointer(name), format!("is missing; send {what}"));
    }

    /// A decimal, a JSON number or a string.
    pub fn decimal(&mut self, name: &'static str, range: Range) -> Option<Decimal> {
        let raw = self.raw(name)?;
        let value = match raw.as_bytes().first() {
            Some(b'"') => {
                let text: Cow<'_, str> = serde_json::from_str(raw).unwrap_or_default();
                parse_exact(&text)
            }
            Some(b'-' | b'0'..=b'9') => parse_exact(raw),
            _ => {
                self.problem(
                    &pointer(name),
                    format!("is {}: {}; send a decimal number", kind_of(raw), shown(raw)),
                );
                return None;
            }
        };
        let value = match value {
            Ok(value) => value,
            Err(error) => {
                self.problem(&pointer(name), format!("{} is {error}", shown(raw)));
                return None;
            }
        };
        if let Err(rule) = range.check(value) {
            self.problem(&pointer(name), format!("{} is out of range: {rule}", shown(raw)));
            return None;
        }
        Some(value)
    }

    /// A decimal that must be there.
    pub fn need_decimal(&mut self, name: &'static str, range: Range) -> Decimal {
        let before = self.problems.invalid.len();
        let value = self.decimal(name, range);
        if value.is_none() && self.problems.invalid.len() == before {
            self.missing(name, "a decimal number");
        }
        value.unwrap_or_default()
    }

    /// A whole number of milliseconds.
    pub fn millis(&mut self, name: &'static str, range: RangeInclusive<Duration>) -> Option<u64> {
        let ms = |time: &Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.whole_of(name, (ms(range.start()), ms(range.end())), " of milliseconds")
    }

    /// A whole number.
    pub fn whole(&mut self, name: &'static str, least: u64, most: u64) -> Option<u64> {
        self.whole_of(name, (least, most), "")
    }

    fn whole_of(&mut self, name: &'static str, (least, most): (u64, u64), unit: &str) -> Option<u64> {
        let value = self.decimal(name, Range::between(Decimal::from(least), Decimal::from(most)))?;
        if !value.is_integer() {
            self.problem(&pointer(name), format!("{value} is not a whole number{unit}"));
            return None;
        }
        u64::try_from(value).ok()
    }

    /// A list of 1 to `most` decimals.
    pub fn decimals(&mut self, name: &'static str, range: Range, most: usize) -> Option<Vec<Decimal>> {
        let raw = self.raw(name)?;
        let list: Result<Vec<&'a RawValue>, _> = serde_json::from_str(raw);
        let Ok(list) = list else {
            self.problem(
                &pointer(name),
                format!("is {}: {}; send a list of numbers", kind_of(raw), shown(raw)),
            );
            return None;
        };
        if list.is_empty() || list.len() > most {
            self.problem(&pointer(name), format!("has {} entries; send 1 to {most}", list.len()));
            return None;
        }
        let mut numbers = Vec::with_capacity(list.len());
        for (place, raw) in list.into_iter().enumerate() {
            let text: Result<Cow<'_, str>, _> = serde_json::from_str(raw.get());
            let text = text.unwrap_or(Cow::Borrowed(raw.get()));
            let checked = match parse_exact(&text) {
                Err(error) => Err(format!("{} is {error}", shown(raw.get()))),
                Ok(value) => range
                    .check(value)
                    .map(|()| value)
                    .map_err(|rule| format!("{} is out of range: {rule}", shown(raw.get()))),
            };
            match checked {
                Ok(value) => numbers.push(value),
                Err(detail) => self.problem(&format!("{}/{place}", pointer(name)), detail),
            }
        }
        Some(numbers)
    }

    /// True or false.
    pub fn flag(&mut self, name: &'static str) -> Option<bool> {
        let raw = self.raw(name)?;
        match raw {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.problem(
                    &pointer(name),
                    format!("is {}: {}; send true or false", kind_of(raw), shown(raw)),
                );
                None
            }
        }
    }

    /// A text of 1 to 1000 characters, where it is given.
    pub fn optional_text(&mut self, name: &'static str, what: &str) -> Option<String> {
        if self.has(name) {
            return Some(self.need_text(name, what));
        }
        self.known.push(name);
        None
    }

    fn text(&mut self, name: &'static str) -> Option<Cow<'a, str>> {
        let raw = self.raw(name)?;
        if !raw.starts_with('"') {
            self.problem(&pointer(name), format!("is {}: {}; send a string", kind_of(raw), shown(raw)));
            return None;
        }
        match serde_json::from_str(raw) {
            Ok(text) => Some(text),
            Err(_) => {
                self.problem(&pointer(name), "is a string with a broken escape");
                None
            }
        }
    }

    /// A text of 1 to 1000 characters, which must be there.
    pub fn need_text(&mut self, name: &'static str, what: &str) -> String {
        const MOST: usize = 1_000;
        let before = self.problems.invalid.len();
        let text = self.text(name).map(Cow::into_owned);
        match text {
            None => {
                if self.problems.invalid.len() == before {
                    self.missing(name, what);
                }
            }
            Some(ref text) if text.trim().is_empty() || text.chars().count() > MOST => {
                self.problem(
                    &pointer(name),
                    format!("has {} characters; send {what}, 1 to {MOST} characters", text.chars().count()),
                );
            }
            Some(_) => {}
        }
        text.unwrap_or_default()
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&mut self, name: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(name)?;
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let hint =
                nearest(&text, &words).map(|word| format!("; did you mean {word}?")).unwrap_or_default();
            self.problem(
                &pointer(name),
                format!("{:?} is not one of {}{hint}", shown(&text), words.join(", ")),
            );
        }
        found
    }

    /// One of a few words, which must be there.
    pub fn need_choice<T: Copy>(&mut self, name: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let before = self.problems.invalid.len();
        let value = self.choice(name, choices);
        if value.is_none() && self.problems.invalid.len() == before {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            self.missing(name, &format!("one of {}", words.join(", ")));
        }
        value
    }

    /// A canonical symbol, which must be there.
    pub fn need_symbol(&mut self, name: &'static str) -> Option<Symbol> {
        let before = self.problems.invalid.len();
        let text = self.text(name);
        let Some(text) = text else {
            if self.problems.invalid.len() == before {
                self.missing(name, Symbol::RULE);
            }
            return None;
        };
        let symbol = text.parse().ok();
        if symbol.is_none() {
            self.problem(&pointer(name), format!("{:?} is not a symbol: {}", shown(&text), Symbol::RULE));
        }
        symbol
    }

    /// 1 to 100 distinct account ids, which must be there.
    pub fn need_accounts(&mut self, name: &'static str) -> Vec<AccountId> {
        const MOST: usize = bounds::MOST_ACCOUNTS;
        let Some(raw) = self.raw(name) else {
            self.missing(name, "an array of account ids");
            return Vec::new();
        };
        let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(raw) else {
            self.problem(
                &pointer(name),
                format!("is {}: {}; send an array of account ids", kind_of(raw), shown(raw)),
            );
            return Vec::new();
        };
        if items.is_empty() || items.len() > MOST {
            self.problem(
                &pointer(name),
                format!("has {} elements; send 1 to {MOST} account ids", items.len()),
            );
            return Vec::new();
        }
        let mut accounts: Vec<AccountId> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let raw = item.get();
            let place = format!("{}/{index}", pointer(name));
            if !raw.starts_with('"') {
                self.problem(&place, format!("is {}: {}; send an account id", kind_of(raw), shown(raw)));
                continue;
            }
            let text: Cow<'_, str> = serde_json::from_str(raw).unwrap_or_default();
            match text.parse::<AccountId>() {
                Ok(id) if accounts.contains(&id) => {
                    self.problem(&place, format!("{id} is named twice; name it once"));
                }
                Ok(id) => accounts.push(id),
                Err(_) => self.problems.bad_accounts.push(shown(&text)),
            }
        }
        accounts
    }

    /// An object inside; its problems come with its name before them. `null` is none.
    pub fn object<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Fields<'a>) -> T) -> Option<T> {
        let raw = self.raw(name).filter(|raw| *raw != "null")?;
        let inside = Fields::read(raw.as_bytes()).and_then(|mut fields| {
            let value = read(&mut fields);
            fields.finish().map(|()| value)
        });
        match inside {
            Ok(value) => Some(value),
            Err(problems) => {
                for problem in problems.invalid {
                    self.problem(&format!("{}{}", pointer(name), problem.pointer), problem.detail);
                }
                self.problems.bad_accounts.extend(problems.bad_accounts);
                None
            }
        }
    }

    /// Whether a field is there.
    pub fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(known, _)| known == name)
    }

    /// Names a field that is known and not there.
    pub fn skip<T>(&mut self, name: &'static str) -> Option<T> {
        self.known.push(name);
        None
    }

    /// Adds a problem that concerns more than one field.
    pub fn reject(&mut self, name: &'static str, detail: impl Into<String>) {
        self.problem(&pointer(name), detail);
    }

    /// Ends the reading: unknown fields are problems too.
    ///
    /// # Errors
    ///
    /// Every problem that was found.
    pub fn finish(mut self) -> Result<(), Problems> {
        let known = std::mem::take(&mut self.known);
        let unknown: Vec<String> = self
            .fields
            .iter()
            .filter(|(name, _)| !known.contains(&name.as_ref()))
            .map(|(name, _)| name.to_string())
            .collect();
        for name in unknown {
            let all = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let hint = nearest(&name, &known)
                .map_or_else(|| format!("known fields are {all}"), |word| format!("did you mean {word}?"));
            self.problem(&pointer(&shown(&name)), format!("is not a known field; {hint}"));
        }
        if self.problems.is_empty() { Ok(()) } else { Err(self.problems) }
    }
}

/// A JSON pointer to a field (RFC 6901).
fn pointer(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// The known word that is most like another, if one is.
fn nearest<'w>(word: &str, known: &[&'w str]) -> Option<&'w str> {
    let lower = word.chars().take(64).collect::<String>().to_lowercase();
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), *candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(body: &str) -> Vec<String> {
        let mut fields = match Fields::read(body.as_bytes()) {
            Ok(fields) => fields,
            Err(problems) => {
                return problems.invalid.into_iter().map(|p| format!("{} {}", p.pointer, p.detail)).collect();
            }
        };
        fields.need_decimal("maxDeviation", Range::between(Decimal::ZERO, Decimal::ONE));
        fields.flag("dryRun");
        fields.need_accounts("accounts");
        fields.millis("timeout", bounds::TIMEOUT);
        fields.need_choice("hedgeStrategy", &[("delta-neutral", 1), ("same-platform", 2)]);
        match fields.finish() {
            Ok(()) => Vec::new(),
            Err(problems) => {
                let bad = problems.bad_accounts.iter().map(|id| format!("bad account {id}"));
                problems.invalid.iter().map(|p| format!("{} {}", p.pointer, p.detail)).chain(bad).collect()
            }
        }
    }

    #[test]
    fn every_problem_comes_at_once_with_its_pointer() {
        let found = problems(
            r#"{"maxdeviation": 0.1, "dryRun": "yes", "accounts": ["a", "a", 7, "B!"], "timeout": 1.5, "hedgeStrategy": "delta-natural"}"#,
        );
        assert_eq!(
            found,
            [
                "/maxDeviation is missing; send a decimal number",
                "/dryRun is a string: \"yes\"; send true or false",
                "/accounts/1 a is named twice; name it once",
                "/accounts/2 is a number: 7; send an account id",
                "/timeout 1.5 is out of range: must be at least 100 and at most 600000",
                "/hedgeStrategy \"delta-natural\" is not one of delta-neutral, same-platform; did you mean delta-neutral?",
                "/maxdeviation is not a known field; did you mean maxDeviation?",
                "bad account B!",
            ]
        );
    }

    #[track_caller]
    fn number(text: &str, expected: &str) {
        let body =
            format!(r#"{{"maxDeviation": {text}, "accounts": ["a"], "hedgeStrategy": "delta-neutral"}}"#);
        assert_eq!(problems(&body).join("|"), expected, "{text}");
    }

    #[test]
    fn numbers_are_exact_or_refused() {
        for good in ["0.1", "\"0.1\"", "1", "-0", "1e-1", "0.1234567890123456789012345678"] {
            number(good, "");
        }
        number("1e400", "/maxDeviation 1e400 is too large");
        number("\"NaN\"", "/maxDeviation \"NaN\" is not a decimal number");
        number("-0.1", "/maxDeviation -0.1 is out of range: must be at least 0 and at most 1");
        number("1e-30", "/maxDeviation 1e-30 is too small to be held exactly");
        number("\"1_0\"", "/maxDeviation \"1_0\" is not a decimal number");
        number("\"+1\"", "/maxDeviation \"+1\" is not a decimal number");
        number(
            "0.12345678901234567890123456789",
            "/maxDeviation 0.12345678901234567890123456789 is more than 28 significant digits",
        );
        number("null", "/maxDeviation is null: null; send a decimal number");
    }

    #[test]
    fn bodies_that_are_no_object_say_so() {
        for body in ["", "  ", "[]", "7", "{", "{\"a\":}", "\u{feff}{}", "{} x", "{\"a\":1,}", "NaN"] {
            let found = problems(body);
            assert_eq!(found.len(), 1, "{body:?}: {found:?}");
            assert!(found[0].starts_with(" the body is"), "{found:?}");
        }
        assert!(Fields::read(b"{\"a\": \"\xff\"}").is_err());
        let deep = format!("{{\"accounts\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(!problems(&deep).is_empty());
        assert_eq!(
            problems(
                r#"{"maxDeviation":1,"maxDeviation":1,"accounts":["a"],"hedgeStrategy":"same-platform"}"#
            ),
            ["/maxDeviation is given more than once; give it once"]
        );
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            if let Ok(mut fields) = Fields::read(&body) {
                fields.need_decimal("a", Range::ANY);
                fields.need_accounts("b");
                let _ = fields.finish();
            }
        }

        #[test]
        fn any_json_is_read_or_refused_without_a_panic(value in "[-+0-9.eE\\[\\]{}\",:a-z ]{0,80}") {
            let _ = problems(&format!("{{\"maxDeviation\": {value}, \"accounts\": {value}}}"));
        }
    }
}
