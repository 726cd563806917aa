//! The recipe as a JSON Schema, for editors (taplo and others) and for [`super::check`].

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::Recipe;

/// JSON Schema (draft 2020-12) of the recipe: every table and key with its meaning, its default and its valid names.
pub fn schema() -> Value {
    of::<Recipe>()
}

/// JSON Schema of `T` as it is read.
pub(super) fn of<T: schemars::JsonSchema>() -> Value {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Every schema in `schema` that is a table of known keys.
    fn tables<'a>(schema: &'a Value, found: &mut Vec<&'a Value>) {
        if schema["properties"].is_object() {
            found.push(schema);
        }
        match schema {
            Value::Object(map) => map.values().for_each(|value| tables(value, found)),
            Value::Array(items) => items.iter().for_each(|item| tables(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_table_is_closed_and_every_key_is_described() {
        let schema = schema();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        let mut found = Vec::new();
        tables(&schema, &mut found);
        assert!(found.len() >= 12, "{}", found.len());
        for table in found {
            assert_eq!(table["additionalProperties"], false, "{table:#}");
            for (name, key) in table["properties"].as_object().unwrap() {
                assert!(key["description"].is_string() || key["const"].is_string(), "`{name}` has no description");
            }
        }
    }
}
