//! Who asked for an operation.

use std::fmt;
use std::str::FromStr;

use crate::UnknownName;

/// Who asked for an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requester {
    /// A client of the control API.
    Client {
        /// The id of its API key.
        key: String,
    },
    /// A policy, or another rule of the configuration.
    Policy,
    /// The start of the engine, for what an earlier run left open.
    Recovery,
    /// The operator: a program around the engine, or a caller of an API that needs no key.
    #[default]
    Operator,
}

/// As the journal and the API write it: `client:admin`, `policy`, `recovery`, `operator`.
impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client { key } => write!(f, "client:{key}"),
            Self::Policy => f.write_str("policy"),
            Self::Recovery => f.write_str("recovery"),
            Self::Operator => f.write_str("operator"),
        }
    }
}

impl FromStr for Requester {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        match text {
            "policy" => Ok(Self::Policy),
            "recovery" => Ok(Self::Recovery),
            "operator" => Ok(Self::Operator),
            _ => match text.strip_prefix("client:") {
                Some(key) => Ok(Self::Client { key: key.to_owned() }),
                None => Err(UnknownName(text.to_owned(), "client:KEY, policy, recovery, operator")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let client = Requester::Client { key: "admin".to_owned() };
        assert_eq!(client.to_string(), "client:admin");
        for requester in [client, Requester::Policy, Requester::Recovery, Requester::Operator] {
            assert_eq!(requester.to_string().parse(), Ok(requester));
        }
        assert!("someone".parse::<Requester>().is_err());
    }
}
