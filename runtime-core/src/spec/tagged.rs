//! Maps whose field `type` tells which other fields they have. serde's own tagged enums have forgotten, by the time they
//! read the others, what these are called; here an error names the field.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, DeserializeOwned, Deserializer, MapAccess};
use serde_json::Value;

/// Fields that have not been read yet.
pub(super) struct Tagged(BTreeMap<String, Value>);

impl Tagged {
    pub fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Tagged;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map with a field `type`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tagged, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if fields.contains_key(&name) {
                        return Err(de::Error::custom(format_args!("duplicate field `{name}`")));
                    }
                    fields.insert(name, value);
                }
                Ok(Tagged(fields))
            }
        }
        deserializer.deserialize_map(Visitor)
    }

    /// A field that must be there.
    pub fn take<T: DeserializeOwned, E: de::Error>(&mut self, name: &'static str) -> Result<T, E> {
        let value = self.0.remove(name).ok_or_else(|| E::missing_field(name))?;
        serde_json::from_value(value).map_err(|error| E::custom(format_args!("{name}: {error}")))
    }

    /// A field that need not be.
    pub fn take_or_default<T: DeserializeOwned + Default, E: de::Error>(&mut self, name: &'static str) -> Result<T, E> {
        if self.0.contains_key(name) { self.take(name) } else { Ok(T::default()) }
    }

    /// All have been read, of which `known` are all that this `type` has.
    pub fn end<E: de::Error>(self, known: &'static [&'static str]) -> Result<(), E> {
        match self.0.into_keys().next() {
            Some(name) => Err(E::unknown_field(&name, known)),
            None => Ok(()),
        }
    }
}
