//! Lists whose rows are read one by one: a row that cannot be read costs that row.

use deltaplane_types::UnreadableRow;
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde_json::value::RawValue;

/// How much of a row's text is kept.
const KEPT: usize = 200;

/// The rows of a list that can be read, and those that cannot.
#[derive(Clone, Debug)]
pub struct Rows<T> {
    /// What could be read, in the list's order.
    pub read: Vec<T>,
    /// What could not.
    pub unreadable: Vec<UnreadableRow>,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self { read: Vec::new(), unreadable: Vec::new() }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Rows<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut rows = Self::default();
        for row in Vec::<Box<RawValue>>::deserialize(deserializer)? {
            match serde_json::from_str(row.get()) {
                Ok(read) => rows.read.push(read),
                Err(error) => rows.unreadable.push(UnreadableRow {
                    list: "",
                    text: row.get().chars().take(KEPT).collect(),
                    reason: error.to_string(),
                }),
            }
        }
        Ok(rows)
    }
}

impl<T> Rows<T> {
    /// What the rows that cannot be read tell in a field; none for those that do not tell it.
    pub fn unreadable_names(&self, field: &str) -> Vec<Option<&str>> {
        self.unreadable.iter().map(|row| row.text_of(field)).collect()
    }

    /// Takes the rows that cannot be read, of the list with this name.
    pub fn take_unreadable(&mut self, list: &'static str) -> Vec<UnreadableRow> {
        let rows = std::mem::take(&mut self.unreadable);
        rows.into_iter().map(|row| UnreadableRow { list, ..row }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_row_costs_that_row() {
        let mut rows: Rows<u32> = serde_json::from_str(r#"[1, {"odd": "x"}, 3, -4]"#).unwrap();
        assert_eq!(rows.read, [1, 3]);
        let named: Rows<u32> = serde_json::from_str(r#"[{"symbol": "BTCUSDT"}, {"symbol": 7}]"#).unwrap();
        assert_eq!(named.unreadable_names("symbol"), [Some("BTCUSDT"), None]);
        let odd = rows.take_unreadable("numbers");
        assert_eq!(
            odd.iter().map(|row| (row.list, row.text.as_str())).collect::<Vec<_>>(),
            [("numbers", r#"{"odd": "x"}"#), ("numbers", "-4")]
        );
        assert!(odd[1].reason.contains("-4"), "{}", odd[1].reason);
    }

    #[test]
    fn a_long_row_is_cut_and_what_is_no_list_is_an_error() {
        let text = format!("[\"{}\"]", "\u{e9}".repeat(500));
        let rows: Rows<u32> = serde_json::from_str(&text).unwrap();
        assert_eq!(rows.unreadable[0].text.chars().count(), 200);
        assert!(serde_json::from_str::<Rows<u32>>(r#"{"code": -1}"#).is_err());
    }
}
