//! Durations as text: `5s`, `100ms`, `1m30s`, `2h`. Use with `#[serde(with = "…")]`, or [`option`].

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de};

const UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads `1m30s`; a number alone is seconds.
///
/// # Errors
/// A sentence naming the text.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(runtime_core::spec::duration::parse("1m30s"), Ok(Duration::from_secs(90)));
/// assert!(runtime_core::spec::duration::parse("soon").is_err());
/// ```
pub fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration: write 5s, 100ms, 1m30s or 2h");
    let mut nanos: u64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit = if unit.is_empty() && number == text { "s" } else { unit };
        let scale = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?.1;
        let part = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(scale).ok_or_else(invalid)?,
            Err(_) => {
                let part = number.parse::<f64>().map_err(|_| invalid())? * scale as f64;
                if part < u64::MAX as f64 { part as u64 } else { return Err(invalid()) }
            }
        };
        nanos = nanos.checked_add(part).ok_or_else(invalid)?;
        rest = tail;
    }
    Ok(Duration::from_nanos(nanos))
}

/// The shortest exact text that [`parse`] reads back.
#[must_use]
pub fn format(duration: Duration) -> String {
    let mut nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if nanos == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, scale) in UNITS {
        if nanos >= scale {
            text.push_str(&format!("{}{unit}", nanos / scale));
            nanos %= scale;
        }
    }
    text
}

/// For `#[serde(with)]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

/// For `#[serde(with)]`.
///
/// # Errors
/// When the text is not a duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Text::deserialize(deserializer).map(|text| text.0)
}

/// A duration that is read where it stands, so that whoever reads a whole document knows of which field an error is.
struct Text(Duration);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"5s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                parse(text).map(Text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// The same for a duration that may be absent.
pub mod option {
    use super::{Deserialize, Deserializer, Duration, Serializer};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// When the text is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<super::Text>::deserialize(deserializer)?.map(|text| text.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_are_no_duration_are_refused() {
        for bad in ["", "s", "5x", "-5s", "5 s", "1.2.3s", "99999999999999999999s", "5s5", "inf"] {
            assert!(parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn format_and_parse_are_inverse() {
        for nanos in [0, 1, 999, 1_500_000, 5_000_000_000, 90_061_000_000_000] {
            let duration = Duration::from_nanos(nanos);
            assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
