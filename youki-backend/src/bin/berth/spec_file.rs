//! The spec of `apply`, from a file.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use runtime_core::ServiceSpec;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::json;
use serde_yaml_ng::with::singleton_map_recursive;
use youki_backend::Error;

use crate::failure::{Failure, Result};

/// Longest spec that is read; one of a thousand variables has some 100 KiB.
const MAX_SPEC_BYTES: u64 = 4 << 20;
/// Brackets within brackets that are read: to scan them costs the square of their number.
const MAX_BRACKETS: usize = 1_000;

/// Reads a spec from a file, or from standard input. JSON is YAML, too, in which a variant with a value is a map.
pub fn read(path: &Path) -> Result<ServiceSpec> {
    let failed = |error: io::Error| Failure::io("reading", path, &error);
    let mut bytes = Vec::new();
    let source: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path).map_err(failed)?) };
    source.take(MAX_SPEC_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    let invalid = |reason: String| Failure::from(Error::InvalidSpec { field: path.display().to_string(), reason });
    if bytes.len() as u64 > MAX_SPEC_BYTES {
        return Err(invalid("it is larger than 4 MiB".to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        invalid(format!("line {line} is not UTF-8"))
    })?;
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if brackets_within_brackets(text) > MAX_BRACKETS {
        return Err(invalid(format!("more than {MAX_BRACKETS} brackets stand open in one another")));
    }
    // One with a key twice is left to YAML, which refuses it.
    if text.starts_with('{') && serde_json::from_str::<EachKeyOnce>(text).is_ok() {
        // YAML would take a null where a text is due for the word.
        return serde_json::from_str(text).map_err(|error| invalid(error.to_string()));
    }
    let spec: ServiceSpec = singleton_map_recursive::deserialize(serde_yaml_ng::Deserializer::from_str(text))
        .map_err(|error| invalid(error.to_string()))?;
    let written = serde_yaml_ng::from_str(text).map_err(|error| invalid(error.to_string()))?;
    let misread = tagged(&written)
        .map(|field| (field, "it has a tag, which is not understood"))
        .or_else(|| Some((null_as_text(&written, &json!(spec))?, "a null is not a text")));
    match misread {
        Some((field, reason)) => Err(Error::InvalidSpec { field, reason: reason.to_owned() }.into()),
        None => Ok(spec),
    }
}

/// How many brackets are open at most, in texts or not.
fn brackets_within_brackets(text: &str) -> usize {
    let mut deepest = 0;
    text.bytes().fold(0_usize, |open, byte| {
        let open = match byte {
            b'[' | b'{' => open + 1,
            b']' | b'}' => open.saturating_sub(1),
            _ => open,
        };
        deepest = deepest.max(open);
        open
    });
    deepest
}

/// Where YAML has left out a tag, such as `!vault`, that says that what follows is not what is meant.
fn tagged(written: &serde_yaml_ng::Value) -> Option<String> {
    use serde_yaml_ng::Value as Yaml;
    match written {
        Yaml::Tagged(_) => Some(String::new()),
        Yaml::Mapping(map) => map.iter().find_map(|(key, value)| {
            let name = key.as_str().unwrap_or_default();
            tagged(key).or_else(|| tagged(value)).map(|deeper| joined(name.to_owned(), deeper))
        }),
        Yaml::Sequence(all) => {
            all.iter().enumerate().find_map(|(index, one)| Some(joined(index.to_string(), tagged(one)?)))
        }
        _ => None,
    }
}

/// The path of a field within another one.
fn joined(name: String, deeper: String) -> String {
    if deeper.is_empty() { name } else { format!("{name}.{deeper}") }
}

/// Where YAML took a null, which a template writes for what it lacks, for a word.
fn null_as_text(written: &serde_yaml_ng::Value, read: &serde_json::Value) -> Option<String> {
    use serde_json::Value as Json;
    use serde_yaml_ng::Value as Yaml;
    let within = |name: String, written, read| Some(joined(name, null_as_text(written, read)?));
    match (written, read) {
        (Yaml::Null, Json::String(_)) => Some(String::new()),
        (Yaml::Mapping(written), Json::Object(read)) => written.iter().find_map(|(key, value)| {
            let key = key.as_str()?;
            within(key.to_owned(), value, read.get(key)?)
        }),
        (Yaml::Sequence(written), Json::Array(read)) => written
            .iter()
            .zip(read)
            .enumerate()
            .find_map(|(index, (written, read))| within(index.to_string(), written, read)),
        _ => None,
    }
}

/// Any JSON in which no object has a key twice.
struct EachKeyOnce;

impl<'de> Deserialize<'de> for EachKeyOnce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for EachKeyOnce {
    type Value = Self;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> std::result::Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> std::result::Result<Self, A::Error> {
        while sequence.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self, A::Error> {
        let mut keys = BTreeSet::new();
        while let Some((key, Self)) = map.next_entry::<String, Self>()? {
            if let Some(key) = keys.replace(key) {
                return Err(A::Error::custom(format_args!("{key:?} is there twice")));
            }
        }
        Ok(self)
    }
}
