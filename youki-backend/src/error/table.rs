//! The table of SPECIFICATION.md that says by which code each error is known, and which test makes it happen.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::supervisor::failure::CREATE_FAILED;

const SPECIFICATION: &str = include_str!("../../../SPECIFICATION.md");
const HEADING: &str = "## 13 Errors";
/// Stands for the code of an error that has that of the one it holds.
const OF_WHAT_IT_HOLDS: &str = "its own";

/// An enum of errors, by its name in the table, and the file that it is in.
const ENUMS: [(&str, &str); 4] = [
    ("registry::Error", include_str!("../../../registry/src/error.rs")),
    ("volumes_s3::Error", include_str!("../../../volumes-s3/src/error.rs")),
    ("youki_backend::Error", include_str!("../error.rs")),
    (AGENT_ERROR, include_str!("../../../runtime-core/src/error.rs")),
];
/// Its text ends in the code of what is behind it; its variants have one for backends without.
const AGENT_ERROR: &str = "runtime_core::AgentError";
/// What the command finds out by itself.
const COMMAND: &str = "the command";

struct Row {
    owner: &'static str,
    code: &'static str,
    variant: &'static str,
    tests: &'static str,
}

fn rows() -> Vec<Row> {
    let (_, section) = SPECIFICATION.split_once(HEADING).expect("the section is there");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut rows = Vec::new();
    let mut owner = "";
    for line in section.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [code, variant, tests] = cells[..] else { panic!("{line:?} has not three cells") };
        match (code, variant.strip_prefix("**").and_then(|text| text.strip_suffix("**"))) {
            ("code", _) => {}
            ("", Some(name)) => owner = name.trim_matches('`'),
            _ => rows.push(Row { owner, code: code.trim_matches('`'), variant: variant.trim_matches('`'), tests }),
        }
    }
    rows
}

/// What lies between `begin` and the next line that is `end`.
fn between<'a>(source: &'a str, begin: &str, end: &str) -> &'a str {
    let (_, rest) = source.split_once(begin).unwrap_or_else(|| panic!("no {begin:?}"));
    rest.split_once(end).unwrap_or_else(|| panic!("{begin:?} has no end")).0
}

fn variants(source: &str) -> BTreeSet<&str> {
    let names = ["pub enum Error {", "pub enum AgentError {"];
    let name = names.into_iter().find(|name| source.contains(name)).expect("an enum of errors");
    let body = between(source, name, "\n}\n");
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    let named = lines.filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()));
    named.map(|line| line.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or(line)).collect()
}

/// Texts in quotes that can be codes.
fn codes(body: &str) -> BTreeSet<&str> {
    let is_code =
        |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b"0123456789._".contains(&b));
    body.split('"').skip(1).step_by(2).filter(is_code).collect()
}

fn missing<'a>(wanted: &BTreeSet<&'a str>, there: &BTreeSet<&'a str>) -> Vec<&'a str> {
    wanted.difference(there).copied().collect()
}

#[test]
fn each_variant_and_each_code_is_in_the_table_and_no_other() {
    let rows = rows();
    for (owner, source) in ENUMS {
        let of_owner = || rows.iter().filter(|row| row.owner == owner);
        let told: BTreeSet<&str> = of_owner().map(|row| row.variant).collect();
        let there = variants(source);
        assert!(there.len() > 10, "only {there:?} of {owner} are read");
        assert_eq!(missing(&there, &told), [""; 0], "{owner}: not in the table");
        assert_eq!(missing(&told, &there), [""; 0], "{owner}: no such variants");
        let told: BTreeSet<&str> = of_owner().map(|row| row.code).filter(|code| *code != OF_WHAT_IT_HOLDS).collect();
        let mut there = codes(between(source, "pub fn code(&self)", "\n    }\n"));
        if owner == "youki_backend::Error" {
            there.insert(CREATE_FAILED);
        }
        assert_eq!(missing(&there, &told), [""; 0], "{owner}: not in the table");
        assert_eq!(missing(&told, &there), [""; 0], "{owner}: no such codes");
    }
    let told: BTreeSet<&str> = rows.iter().filter(|row| row.owner == COMMAND).map(|row| row.code).collect();
    let sources = sources_of_the_command();
    let found = sources.iter().flat_map(|source| source.split("Failure::found(").skip(1));
    let found = found.filter_map(|call| call.split('"').nth(1));
    let own =
        sources.iter().flat_map(|source| source.split(" code: \"").skip(1)).filter_map(|rest| rest.split('"').next());
    let there: BTreeSet<&str> = found.chain(own).collect();
    assert_eq!(missing(&there, &told), [""; 0], "{COMMAND}: not in the table");
    assert_eq!(missing(&told, &there), [""; 0], "{COMMAND}: no such codes");
}

fn sources_of_the_command() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/berth");
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn each_variant_has_a_hint() {
    for (owner, source) in ENUMS.into_iter().filter(|(owner, _)| *owner != AGENT_ERROR) {
        let body = between(source, "pub fn hint(&self)", "\n    }\n");
        assert!(!body.contains("_ =>") && !body.contains("None"), "{owner}: a variant may be without a hint");
        for variant in variants(source) {
            let named = body.split("Self::").skip(1).any(|rest| {
                rest.strip_prefix(variant).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
            });
            assert!(named, "{owner}: {variant} has no hint");
        }
    }
}

#[test]
fn each_test_is_there_and_asks_for_the_code() {
    let known: BTreeSet<String> = rows().iter().map(|row| format!("\"{}\"", row.code)).collect();
    for Row { owner, code, variant, tests } in rows() {
        if let Some(reason) = tests.strip_prefix("none: ") {
            assert!(owner == AGENT_ERROR && reason.split_whitespace().count() > 3, "{owner} {variant}: {reason}");
            continue;
        }
        let mut topic = "";
        for test in tests.split(", ").map(|test| test.trim_matches('`')) {
            let (file, name) = match test.split_once("::") {
                Some((path, name)) => (path.replacen("backend/", "youki-backend/src/", 1), name),
                None => {
                    let name = test.split_once(": ").map_or(test, |(named, name)| {
                        topic = named;
                        name
                    });
                    (format!("youki-backend/tests/integration/{topic}.rs"), name)
                }
            };
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&file);
            let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}, named at {code}: {error}"));
            let body = body_of_test(&source, name).unwrap_or_else(|| panic!("{file} has no test {name}"));
            let asked = match owner {
                AGENT_ERROR => format!("AgentError::{variant}"),
                _ if code == OF_WHAT_IT_HOLDS => {
                    assert!(known.iter().any(|code| body.contains(code)), "{file}: {name} asks for no code");
                    continue;
                }
                _ => format!("\"{code}\""),
            };
            assert!(body.contains(&asked), "{file}: {name} does not ask for {asked}");
        }
    }
}

/// From its name to its end, if it is one that is run.
fn body_of_test<'a>(source: &'a str, name: &str) -> Option<&'a str> {
    let begin = source.find(&format!("fn {name}("))?;
    let line = source[..begin].rfind('\n').map_or(0, |at| at + 1);
    let indent = " ".repeat(source[line..].len() - source[line..].trim_start().len());
    let body = source[begin..].split(&format!("\n{indent}}}\n")).next()?;
    let marked = source[..line].trim_end().rsplit('\n').next().is_some_and(|above| above.contains("test"));
    (marked || source.contains(&format!("    {name},\n"))).then_some(body)
}

/// By the trait nothing but the reason's text is left of an error.
#[test]
fn each_code_is_read_from_a_reason_that_ends_in_it() {
    let rows = rows();
    let codes = rows.iter().map(|row| row.code).filter(|code| code.contains('.'));
    for code in codes {
        assert_eq!(runtime_core::AgentError::Internal(format!("it failed [{code}]")).code(), code);
    }
}
