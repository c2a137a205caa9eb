//! Every key of the file with a value that cannot be: an error that names it.

use super::tests::load;

/// The file's tables, by what begins each.
const TABLES: [&str; 9] = [
    "",
    "[network]\n",
    "[s3]\nbucket = 'b'\n",
    "[volumes]\n",
    "[volumes.keep]\n",
    "[images]\n",
    "[logs]\n",
    "[limits]\n",
    "[registry.'h:1']\n",
];

/// Keys that take all that can be written of their type, and why.
const WITHOUT_BAD_VALUES: [(&str, &str); 8] = [
    ("root", "any path can be made"),
    ("run_dir", "any path can be made"),
    ("keeper", "a switch"),
    ("network s3 volumes keep images logs limits registry", "tables"),
    ("allow_racy_put", "a switch"),
    ("plain_http", "a switch"),
    ("drop_blobs", "a switch"),
    ("ca", "read when the registry is asked"),
];

/// A key, and values of its type that cannot be.
const BAD_VALUES: [(&str, &str, &[&str]); 33] = [
    ("", "cgroup_parent", &["'a b'", "''", "'../x'"]),
    ("", "log_level", &["'loud'", "'warn info'"]),
    ("[network]\n", "bridge", &["'a/b'", "''", "'longer-than-15-letters'"]),
    ("[network]\n", "subnet", &["'10.0.0.0'", "'10.0.0.0/33'", "'nowhere'"]),
    ("[s3]\n", "bucket", &["''", "'a b'"]),
    ("[s3]\nbucket = 'b'\n", "endpoint", &["'ftp://x'", "'localhost:9000'"]),
    ("[s3]\nbucket = 'b'\n", "prefix", &["\"a\\nb\""]),
    ("[s3]\nbucket = 'b'\n", "region", &["'a b'"]),
    ("[s3]\nbucket = 'b'\n", "sse", &["'rot13'"]),
    ("[volumes]\n", "sync_on_stop", &["'soon'", "'-1s'"]),
    ("[volumes]\n", "take_over_after", &["'soon'", "'1ms'"]),
    ("[volumes]\n", "live_sync", &["'soon'", "'1ms'"]),
    ("[volumes]\n", "prune_grace", &["'soon'", "'-1s'"]),
    ("[volumes.keep]\n", "last", &["0", "-1", "4294967296"]),
    ("[volumes.keep]\n", "hourly", &["0", "-1"]),
    ("[volumes.keep]\n", "daily", &["0", "-1"]),
    ("[volumes.keep]\n", "weekly", &["0", "-1"]),
    ("[logs]\n", "max_size_bytes", &["0", "-1", "40959"]),
    ("[logs]\n", "mode", &["'loud'"]),
    ("[limits]\n", "manifest_bytes", &["0", "-1"]),
    ("[limits]\n", "config_bytes", &["0", "-1"]),
    ("[limits]\n", "layers", &["0", "-1"]),
    ("[limits]\n", "blob_bytes", &["0", "-1"]),
    ("[limits]\n", "layer_bytes", &["0", "-1"]),
    ("[limits]\n", "layer_entries", &["0", "-1"]),
    ("[limits]\n", "ratio", &["0", "-1"]),
    ("[limits]\n", "path_depth", &["0", "-1"]),
    ("[limits]\n", "no_progress_seconds", &["0", "-1"]),
    ("[limits]\n", "concurrent_layers", &["0", "-1"]),
    ("[registry.'h:1']\n", "max_connections", &["0", "-1"]),
    ("[registry.'h:1']\n", "mirrors", &["['ftp://x']", "['https://h:2']", "['']", "['h/path']"]),
    ("", "registry", &["{ 'https://h' = { plain_http = true } }", "{ 'a b' = {} }"]),
    ("", "keeper", &["'perhaps'"]),
];

fn refused(text: &str) -> String {
    let error = load(text, &[]).err().unwrap_or_else(|| panic!("{text:?} is accepted"));
    assert!(error.code() == "config.invalid" && error.hint().is_some(), "{text:?}: {error}");
    error.to_string()
}

/// The keys of a table, as the error about another one tells.
fn keys_of(table: &str) -> Vec<String> {
    let error = refused(&format!("{table}nosuch = 1\n"));
    assert!(error.contains("unknown field `nosuch`"), "{error}");
    let expected = error.split("expected").nth(1).unwrap_or_default();
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn each_key_refuses_a_value_of_another_type_and_one_out_of_its_range() {
    let mut tried = 0;
    for table in TABLES {
        for key in keys_of(table) {
            let name = table.lines().next().unwrap_or_default();
            let begin = if key == "bucket" { "[s3]\n" } else { table };
            // Nothing in the file is a list of lists.
            let error = refused(&format!("{begin}{key} = [[1]]\n"));
            assert!(error.contains(&key), "{name} {key}: {error}");
            let any = WITHOUT_BAD_VALUES.iter().any(|(keys, _)| keys.split(' ').any(|known| known == key));
            let has =
                BAD_VALUES.iter().any(|(table, known, _)| *known == key && table.lines().next().unwrap_or("") == name);
            assert!(any || has, "{name} {key} has no bad value here");
            tried += 1;
        }
    }
    assert!(tried > 35, "only {tried} keys were tried");
    for (table, key, values) in BAD_VALUES {
        for value in values {
            let error = refused(&format!("{table}{key} = {value}\n"));
            assert!(error.contains(&key.replace('_', " ")) || error.contains(key), "{table}{key} = {value}: {error}");
        }
    }
}
