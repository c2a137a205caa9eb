//! `--format`: the part of Go's templates that docker's users write, `{{.name}}`, `{{json .spec}}`, `{{.Label "x"}}`.

use serde_json::Value;

use crate::failure::{Failure, Result};

/// What stands before a template whose lines are to be a table's.
const TABLE: &str = "table ";

/// A template.
#[derive(Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    /// Lines become rows, with headings.
    pub is_table: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// With `has_key` the last of the path is a key of a map, which may not be there.
    Field {
        path: Vec<String>,
        has_key: bool,
        as_json: bool,
    },
}

impl Template {
    /// Reads one. `json` alone is the whole as JSON, as with docker.
    pub fn parse(text: &str) -> Result<Self> {
        let (text, is_table) = text.strip_prefix(TABLE).map_or((text, false), |rest| (rest, true));
        if text == "json" {
            return Ok(Self {
                parts: vec![Part::Field { path: Vec::new(), has_key: false, as_json: true }],
                is_table: false,
            });
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once("{{") {
            if !before.is_empty() {
                parts.push(Part::Text(unescape(before)));
            }
            let (inner, after) = behind.split_once("}}").ok_or_else(|| wrong(text, "a {{ without its }}"))?;
            parts.push(field(inner.trim()).ok_or_else(|| wrong(text, &format!("{{{{{inner}}}}} is not understood")))?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(unescape(rest)));
        }
        Ok(Self { parts, is_table })
    }

    /// The text for `value`. `lookup` finds what is not a field of that name.
    pub fn render(&self, value: &Value, lookup: impl Fn(&[String]) -> Option<Value>) -> Result<String> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Field { path, has_key, as_json } => {
                    let in_map = || path.split_last().filter(|_| *has_key).and_then(|(_, map)| find(value, map));
                    let missing = || in_map().filter(Value::is_object).map(|_| Value::Null);
                    let found = lookup(path).or_else(|| find(value, path)).or_else(missing);
                    let found =
                        found.ok_or_else(|| Failure::usage(format!("--format: there is no .{}", path.join("."))))?;
                    text.push_str(&if *as_json { found.to_string() } else { plain(&found) });
                }
            }
        }
        Ok(text)
    }

    /// The headings of a table: the fields' names in capitals.
    pub fn headings(&self) -> String {
        let one = |part: &Part| match part {
            Part::Text(literal) => literal.clone(),
            Part::Field { path, .. } => path.last().map(|name| name.to_uppercase()).unwrap_or_default(),
        };
        self.parts.iter().map(one).collect()
    }
}

/// `.a.b`, `json .a`, `.Label "x"`, `index .a "x"`, each also with `.` alone.
fn field(inner: &str) -> Option<Part> {
    let (inner, as_json) = match inner.strip_prefix("json ") {
        Some(rest) => (rest.trim(), true),
        None => (inner, false),
    };
    let inner = inner.strip_prefix("index ").map_or(inner, str::trim);
    let (path, key) = match inner.split_once(char::is_whitespace) {
        Some((path, key)) => (path, Some(key.trim().strip_prefix('"')?.strip_suffix('"')?)),
        None => (inner, None),
    };
    let names = path.strip_prefix('.')?;
    let mut path: Vec<String> = names.split('.').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let plain = |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !path.iter().all(plain) || names.contains("..") {
        return None;
    }
    path.extend(key.map(str::to_owned));
    Some(Part::Field { path, has_key: key.is_some(), as_json })
}

/// The value at `path`, names compared without regard to case.
fn find(value: &Value, path: &[String]) -> Option<Value> {
    let Some((name, rest)) = path.split_first() else { return Some(value.clone()) };
    match value {
        Value::Object(fields) => {
            let found = fields
                .get(name)
                .or_else(|| fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value));
            find(found?, rest)
        }
        Value::Array(all) => find(all.get(name.parse::<usize>().ok()?)?, rest),
        // What is not known has no parts that are known.
        Value::Null => Some(Value::Null),
        _ => None,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn wrong(text: &str, reason: &str) -> Failure {
    Failure::usage(format!("--format {text:?}: {reason}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(template: &str, value: &Value) -> String {
        let nothing = |_: &[String]| None;
        match Template::parse(template).and_then(|template| template.render(value, nothing)) {
            Ok(text) => text,
            Err(failure) => format!("! {}", failure.code()),
        }
    }

    #[test]
    fn templates_are_the_part_of_gos_that_is_used() {
        let value =
            json!({"name": "web", "spec": {"labels": {"a.b": "c"}}, "nets": [{"ipv4": "10.0.0.2"}], "pid": null});
        for (template, text) in [
            ("{{.name}}", "web"),
            ("{{ .Name }}:{{.pid}}", "web:"),
            (r"{{.name}}\t{{json .nets}}\n", "web\t[{\"ipv4\":\"10.0.0.2\"}]\n"),
            ("{{.nets.0.ipv4}}", "10.0.0.2"),
            (r#"{{index .spec.labels "a.b"}}"#, "c"),
            (r#"{{index .spec.labels "x"}}|{{json .spec.labels "x"}}"#, "|null"),
            (r#"{{index .spec.nothing "x"}}"#, "! usage"),
            (r#"{{index .name "x"}}"#, "! usage"),
            ("{{.spec.labels.x}}", "! usage"),
            ("{{json .spec}}", r#"{"labels":{"a.b":"c"}}"#),
            ("plain", "plain"),
            ("{{.nothing}}", "! usage"),
            ("{{.name", "! usage"),
            ("{{range .nets}}{{end}}", "! usage"),
            ("{{.a..b}}", "! usage"),
        ] {
            assert_eq!(render(template, &value), text, "{template}");
        }
        assert_eq!(render("json", &value), value.to_string());
    }

    #[test]
    fn a_table_has_headings() {
        let template = Template::parse(r"table {{.ID}}\t{{.Names}}").unwrap();
        assert!(template.is_table);
        assert_eq!(template.headings(), "ID\tNAMES");
    }
}
