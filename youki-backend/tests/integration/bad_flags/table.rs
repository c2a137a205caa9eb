//! What each flag of each command is tried with. The command's own tests read this file too: a flag without a row fails
//! there.

/// What comes of it.
#[derive(Debug, Clone, Copy)]
pub enum Value {
    /// It cannot be: a usage error, whose message has the flag in it.
    Bad(&'static str),
    /// The same of what may also stand in the environment or the file: the message has these words.
    BadSetting(&'static str, &'static str),
    /// It could be, and is not there, not permitted or not built: the message has the flag or the value in it.
    Refused(&'static str),
    /// Any text can be meant, for the reason given.
    Any(&'static str),
}

use Value::{Any, Bad, BadSetting, Refused};

/// By command; the first are those that every command takes.
pub const ROWS: &[(&str, &[(&str, Value)])] = &[
    (
        "",
        &[
            ("--root", Refused("/dev/null/root")),
            ("--run-dir", Refused("/dev/null/run")),
            ("--cgroup-parent", BadSetting("a b", "cgroup parent \"a b\"")),
            ("--bridge", BadSetting("a/b", "bridge \"a/b\"")),
            ("--subnet", BadSetting("10.0.0.0", "subnet \"10.0.0.0\"")),
            ("--s3-bucket", BadSetting("a b", "bucket \"a b\"")),
            ("--s3-endpoint", BadSetting("ftp://x", "endpoint \"ftp://x\"")),
            ("--s3-prefix", BadSetting("a\nb", "prefix \"a\\nb\"")),
            ("--s3-region", BadSetting("a b", "region \"a b\"")),
            ("--log-level", BadSetting("loud", "log level \"loud\"")),
            ("--config", Refused("/no/such/file")),
        ],
    ),
    (
        "run",
        &[
            ("--cidfile", Refused("/no/such/dir/file")),
            ("--name", Bad("../x")),
            ("--env", Bad("=x")),
            ("--env-file", Refused("/no/such/file")),
            ("--volume", Bad("data:relative")),
            ("--mount", Bad("type=floppy,target=/t")),
            ("--tmpfs", Bad("/t:mode=9")),
            ("--workdir", Bad("relative")),
            ("--user", Bad("99999999999")),
            ("--memory", Bad("-5")),
            ("--memory-swap", Bad("much")),
            ("--cpus", Bad("-1")),
            ("--cpu-shares", Bad("-3")),
            ("--cpuset-cpus", Bad("first")),
            ("--pids-limit", Bad("-2")),
            ("--network", Refused("nosuch")),
            ("--network-alias", Bad("a b")),
            ("--publish", Bad("65536:80")),
            ("--expose", Bad("http")),
            ("--hostname", Bad("a b")),
            ("--add-host", Bad("db")),
            ("--dns", Bad("nobody")),
            ("--dns-search", Bad("a b")),
            ("--cap-add", Bad("EVERYTHING")),
            ("--cap-drop", Bad("EVERYTHING")),
            ("--security-opt", Bad("seccomp")),
            ("--device", Bad("/dev/null:/dev/null:x")),
            ("--ulimit", Bad("nofile=many")),
            ("--sysctl", Bad("kernel.core_pattern=x")),
            ("--shm-size", Bad("-1")),
            ("--label", Bad("=x")),
            ("--log-driver", Refused("syslog")),
            ("--log-opt", Bad("max-size=big")),
            ("--entrypoint", Any("the image may have a program of any name")),
            ("--stop-signal", Bad("BOGUS")),
            ("--stop-timeout", Bad("soon")),
            ("--pull", Bad("sometimes")),
            ("--platform", Bad("bogus")),
            ("--creds", Bad("nobody")),
            ("--restart", Bad("sometimes")),
            ("--health-cmd", Any("it is a line for the container's shell")),
            ("--health-interval", Bad("often")),
            ("--health-timeout", Bad("soon")),
            ("--health-retries", Bad("-1")),
            ("--health-start-period", Bad("soon")),
        ],
    ),
    ("apply", &[("--file", Refused("/no/such/file")), ("--name", Bad("../x")), ("--creds", Bad("nobody"))]),
    ("stop", &[("--time", Bad("soon")), ("--signal", Bad("BOGUS"))]),
    ("restart", &[("--time", Bad("soon")), ("--signal", Bad("BOGUS"))]),
    ("shutdown", &[("--timeout", Bad("soon"))]),
    ("kill", &[("--signal", Bad("BOGUS"))]),
    (
        "update",
        &[
            ("--memory", Bad("-5")),
            ("--cpus", Bad("-1")),
            ("--cpu-shares", Bad("1")),
            ("--cpuset-cpus", Bad("first")),
            ("--pids-limit", Bad("-2")),
            ("--restart", Bad("sometimes")),
        ],
    ),
    ("ps", &[("--filter", Bad("color=red")), ("--format", Bad("{{.Nosuch")), ("--last", Bad("few"))]),
    ("inspect", &[("--format", Bad("{{.Nosuch")), ("--type", Bad("image"))]),
    ("logs", &[("--tail", Bad("few")), ("--since", Bad("once")), ("--until", Bad("then"))]),
    (
        "exec",
        &[
            ("--env", Bad("=x")),
            ("--env-file", Refused("/no/such/file")),
            ("--user", Bad("99999999999")),
            ("--workdir", Bad("relative")),
            ("--timeout", Bad("never")),
        ],
    ),
    ("export", &[("--output", Refused("/no/such/dir/file"))]),
    ("pull", &[("--policy", Bad("sometimes")), ("--platform", Bad("bogus")), ("--creds", Bad("nobody"))]),
    ("push", &[("--creds", Bad("nobody"))]),
    ("images", &[("--filter", Bad("color=red")), ("--format", Bad("{{.Nosuch"))]),
    ("image inspect", &[("--format", Bad("{{.Nosuch"))]),
    ("save", &[("--output", Refused("/no/such/dir/file"))]),
    ("load", &[("--input", Refused("/no/such/file"))]),
    ("volume restore", &[("--generation", Bad("newest")), ("--to", Refused("/dev/null/dir"))]),
    ("volume verify", &[("--generation", Bad("newest"))]),
    ("network ls", &[("--format", Bad("{{.Nosuch"))]),
    (
        "network create",
        &[
            ("--subnet", BadSetting("10.0.0.0", "subnet \"10.0.0.0\"")),
            ("--gateway", Bad("first")),
            ("--mtu", BadSetting("1", "MTU")),
            ("--driver", Refused("overlay")),
            ("--opt", Refused("parent=eth0")),
        ],
    ),
    (
        "events",
        &[
            ("--since", Bad("once")),
            ("--until", Bad("then")),
            ("--format", Bad("{{.Nosuch")),
            ("--filter", Bad("color=red")),
        ],
    ),
];
