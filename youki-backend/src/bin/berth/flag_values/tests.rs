use super::*;

fn status(failure: &Failure) -> (&'static str, Option<u8>) {
    (failure.code(), failure.status)
}

fn own(name: &str) -> Option<String> {
    (name == "OWN").then(|| "mine".to_owned())
}

#[test]
fn memory_has_dockers_units() {
    for (text, bytes) in [
        ("17", 17),
        ("17b", 17),
        ("1k", 1024),
        ("1KB", 1024),
        ("512m", 512 << 20),
        ("512MiB", 512 << 20),
        ("512 mi", 512 << 20),
        ("1.5g", 3 << 29),
        ("2G", 2 << 30),
        ("1t", 1 << 40),
        ("0", 0),
    ] {
        assert_eq!(memory("-m", text).unwrap().as_u64(), bytes, "{text}");
    }
    for bad in ["", "m", "-1", "1x", "1 mm", "1ib", "5mbbb", "5miib", "5mbib", "99999999999t", "1..5m", "1e3", "NaN"] {
        assert_eq!(status(&memory("-m", bad).unwrap_err()), ("usage", Some(2)), "{bad}");
    }
}

#[test]
fn cpus_are_above_zero() {
    assert_eq!(cpus("0.5").unwrap(), 0.5);
    for bad in ["0", "-1", "x", "NaN", "inf", ""] {
        assert!(cpus(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_name_alone_is_taken_from_the_own_environment() {
    let set = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
    for (text, expected) in [
        ("A=1", set("A", "1")),
        ("A=", set("A", "")),
        ("A=b=c", set("A", "b=c")),
        ("OWN", set("OWN", "mine")),
        ("NONE", None),
    ] {
        assert_eq!(env(text, own).unwrap(), expected, "{text}");
    }
    for bad in ["", "=1"] {
        assert!(env(bad, own).is_err(), "{bad}");
    }
}

#[test]
fn an_env_file_is_too_large_before_it_is_anything_else() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let read = |bytes: &[u8]| {
        std::fs::write(file.path(), bytes).unwrap();
        environment(&[file.path().to_owned()], &[]).map_err(|failure| failure.text())
    };
    // The limit is in the middle of a character.
    let long = [&b"A="[..], "é".repeat(2 << 20).as_bytes()].concat();
    assert!(read(&long[1..]).unwrap_err().contains("larger than 2 MiB"));
    assert!(read(&long).unwrap_err().contains("larger than 2 MiB"));
    let said = read(b"A=\xe9").unwrap_err();
    assert!(said.contains("--env-file") && said.contains("not UTF-8"), "{said}");
    assert_eq!(read(b"A=1").unwrap()["A"], "1");
}

#[test]
fn env_files_are_taken_as_they_are() {
    let text = "\u{feff}# comment\n\n  A=1\nB=\"quoted # no comment\" \nOWN\nNONE\nC=\r\n#D=1\nE= x\n";
    let path = Path::new("/the/file");
    let read = env_file(path, text, own).unwrap();
    let expected = [("A", "1"), ("B", "\"quoted # no comment\" "), ("OWN", "mine"), ("C", ""), ("E", " x")];
    assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    for bad in ["C=0\nA B=s3cret\n", "\n=s3cret\n"] {
        let told = env_file(path, bad, own).unwrap_err().text();
        assert!(told.contains("/the/file") && told.contains("line 2") && !told.contains("s3cret"), "{told}");
    }
}

#[test]
fn volumes_by_name_path_and_target_alone() {
    let cwd = Some(Path::new("/here"));
    let bind = |source: &str, readonly| StorageSpec::Bind { source: source.into(), target: "/t".into(), readonly };
    let named = |readonly| StorageSpec::Named {
        name: "data".into(),
        target: "/t".into(),
        readonly,
        tier: None,
        size: None,
        take_over: false,
    };
    for (text, expected) in [
        ("/t", StorageSpec::Anonymous { target: "/t".into() }),
        ("data:/t", named(false)),
        ("data:/t:ro", named(true)),
        ("data:/t:rw", named(false)),
        ("/src:/t", bind("/src", false)),
        ("/src:/t:ro", bind("/src", true)),
        ("./src:/t", bind("/here/./src", false)),
    ] {
        assert_eq!(volume(text, cwd).unwrap(), expected, "{text}");
    }
    for (bad, code) in [
        ("", "usage"),
        ("data", "usage"),
        ("data:t", "usage"),
        (":/t", "usage"),
        ("a/b:/t", "usage"),
        ("a:/b:ro:x", "usage"),
        ("a:/b:Z", "unsupported"),
        ("a:/b:shared", "unsupported"),
    ] {
        assert_eq!(volume(bad, cwd).unwrap_err().code(), code, "{bad}");
    }
}

#[test]
fn tmpfs_takes_size_and_mode() {
    let tmpfs_of =
        |size: Option<u64>, mode| StorageSpec::Tmpfs { target: "/t".into(), size: size.map(ByteSize::new), mode };
    for (text, expected) in [
        ("/t", tmpfs_of(None, None)),
        ("/t:", tmpfs_of(None, None)),
        ("/t:size=64m,mode=1777", tmpfs_of(Some(64 << 20), Some(0o1777))),
        ("/t:rw,noexec,nosuid,nodev,mode=700", tmpfs_of(None, Some(0o700))),
    ] {
        assert_eq!(tmpfs(text).unwrap(), expected, "{text}");
    }
    for (bad, code) in [("t", "usage"), ("/t:mode=9", "usage"), ("/t:size=x", "usage"), ("/t:exec", "unsupported")] {
        assert_eq!(tmpfs(bad).unwrap_err().code(), code, "{bad}");
    }
}

#[test]
fn security_options() {
    for (text, expected) in [
        ("seccomp=unconfined", SecurityOption::Seccomp(SeccompSpec::Unconfined)),
        ("seccomp:unconfined", SecurityOption::Seccomp(SeccompSpec::Unconfined)),
        ("seccomp=/dev/null", SecurityOption::Seccomp(SeccompSpec::File("/dev/null".into()))),
        ("no-new-privileges", SecurityOption::NoNewPrivileges(true)),
        ("no-new-privileges:true", SecurityOption::NoNewPrivileges(true)),
        ("no-new-privileges=false", SecurityOption::NoNewPrivileges(false)),
        ("apparmor=unconfined", SecurityOption::AsItIs),
    ] {
        assert_eq!(security_option(text).unwrap(), expected, "{text}");
    }
    for (bad, code) in [
        ("seccomp=/no/such/file", "io.failed"),
        ("seccomp", "usage"),
        ("seccomp=", "usage"),
        ("no-new-privileges=maybe", "usage"),
        ("apparmor=docker-default", "unsupported"),
        ("bogus", "usage"),
    ] {
        assert_eq!(security_option(bad).unwrap_err().code(), code, "{bad}");
    }
}

#[test]
fn networks() {
    for (text, expected) in [
        ("host", NetworkMode::Host),
        ("none", NetworkMode::None),
        ("bridge", NetworkMode::Bridge),
        ("default", NetworkMode::Bridge),
        ("front", NetworkMode::Named("front".into())),
    ] {
        assert_eq!(network(text).unwrap(), expected);
    }
    assert_eq!(network("container:x").unwrap().container(), Some("x"));
    for bad in ["", "container:"] {
        assert_eq!(network(bad).unwrap_err().code(), "usage", "{bad:?}");
    }
}

#[test]
fn swap_is_what_is_beyond_memory() {
    let (mib, limit) = (1 << 20, Some(ByteSize::new(64 << 20)));
    assert_eq!(swap("64m", limit).unwrap(), Some(ByteSize::new(0)));
    assert_eq!(swap("65m", limit).unwrap(), Some(ByteSize::new(mib)));
    assert_eq!(swap("0", limit).unwrap(), None);
    for (text, limit, code) in
        [("63m", limit, "usage"), ("1g", None, "usage"), ("x", limit, "usage"), ("-1", limit, "unsupported")]
    {
        assert_eq!(swap(text, limit).unwrap_err().code(), code, "{text}");
    }
}

#[test]
fn devices_and_limits() {
    let of = |read, write, mknod| DeviceSpec { path: "/dev/fuse".into(), read, write, mknod };
    assert_eq!(device("/dev/fuse").unwrap(), of(true, true, true));
    assert_eq!(device("/dev/fuse:r").unwrap(), of(true, false, false));
    assert_eq!(device("/dev/fuse:/dev/fuse:rw").unwrap(), of(true, true, false));
    for (text, access) in [("/dev/a:/dev/b", (true, true, true)), ("/dev/a:/dev/b:r", (true, false, false))] {
        let device = device(text).unwrap();
        assert_eq!((device.paths(), (device.read, device.write, device.mknod)), (("/dev/a", "/dev/b"), access));
    }
    assert_eq!(device("/dev/a:b").unwrap_err().code(), "usage");
    assert_eq!(device("/dev/a:/dev/a:x").unwrap_err().code(), "usage");
    assert_eq!(device("fuse").unwrap_err().code(), "usage");

    let of = |soft, hard| ("nofile".to_owned(), RlimitSpec { soft, hard });
    assert_eq!(ulimit("nofile=1024").unwrap(), of(1024, 1024));
    assert_eq!(ulimit("nofile=1024:2048").unwrap(), of(1024, 2048));
    assert_eq!(ulimit("nofile=1:-1").unwrap(), of(1, u64::MAX));
    for bad in ["nofile", "=1", "nofile=x", "nofile=2:1", "nofile=-1:5"] {
        assert!(ulimit(bad).is_err(), "{bad}");
    }
}

#[test]
fn names_with_values() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(label("a").unwrap(), pair("a", ""));
    assert_eq!(label("a=b=c").unwrap(), pair("a", "b=c"));
    assert!(label("=b").is_err());
    assert_eq!(assignment("--sysctl", "net.core.somaxconn=1").unwrap(), pair("net.core.somaxconn", "1"));
    assert!(assignment("--sysctl", "net.core.somaxconn").is_err());
    assert_eq!(extra_host("db:10.0.0.1").unwrap(), "db:10.0.0.1");
    assert_eq!(extra_host("db=10.0.0.1").unwrap(), "db:10.0.0.1");
    assert_eq!(extra_host("six:[::1]").unwrap(), "six:::1");
    assert_eq!(extra_host("me:host-gateway").unwrap(), "me:host-gateway");
    for bad in ["", "db", ":1", "db:"] {
        assert!(extra_host(bad).is_err(), "{bad}");
    }
}

#[test]
fn credentials_are_split_at_the_first_colon_and_never_quoted() {
    let auth = credentials("me:a:b").unwrap();
    assert_eq!((auth.username.as_str(), auth.password.as_str()), ("me", "a:b"));
    assert!(!credentials("s3cret").unwrap_err().text().contains("s3cret"));
}

#[test]
fn times_are_absolute_or_before_now() {
    let now = "2026-01-02T03:04:05Z".parse::<DateTime<Utc>>().unwrap();
    for (text, expected) in [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("2026-01-01T02:00:00.5+02:00", "2026-01-01T00:00:00.5Z"),
        ("2026-01-01T00:00:00", "2026-01-01T00:00:00Z"),
        ("2026-01-01T00:00", "2026-01-01T00:00:00Z"),
        ("2026-01-01", "2026-01-01T00:00:00Z"),
        ("1767225600", "2026-01-01T00:00:00Z"),
        ("1767225600.25", "2026-01-01T00:00:00.25Z"),
        ("10m", "2026-01-02T02:54:05Z"),
        ("1h4m5s", "2026-01-02T02:00:00Z"),
    ] {
        assert_eq!(time("--since", text, now).unwrap(), expected.parse::<DateTime<Utc>>().unwrap(), "{text}");
    }
    for bad in ["", "yesterday", "2026-13-01", "1.2.3", "99999999999999999999", "10x"] {
        assert_eq!(time("--since", bad, now).unwrap_err().code(), "usage", "{bad}");
    }
}

#[test]
fn tails_and_time_outs() {
    assert_eq!(tail("all").unwrap(), None);
    assert_eq!(tail("-1").unwrap(), None);
    assert_eq!(tail("0").unwrap(), Some(0));
    assert!(tail("x").is_err());
    assert_eq!(timeout("--timeout", "1.5").unwrap(), Duration::from_millis(1500));
    assert_eq!(timeout("--timeout", "1m30s").unwrap(), Duration::from_secs(90));
    for bad in ["0", "-1", "x", "", "NaN", "inf"] {
        assert!(timeout("--timeout", bad).is_err(), "{bad}");
    }
    assert_eq!(stop_timeout(-1), FOREVER);
    assert_eq!(stop_timeout(3), Duration::from_secs(3));
}

#[test]
fn restart_policies_are_dockers() {
    let policy = |kind, max_attempts| RestartPolicy { kind, max_attempts, delay: None };
    for (text, expected) in [
        ("no", policy(RestartKind::No, None)),
        ("always", policy(RestartKind::Always, None)),
        ("unless-stopped", policy(RestartKind::UnlessStopped, None)),
        ("on-failure", policy(RestartKind::OnFailure, None)),
        ("on-failure:3", policy(RestartKind::OnFailure, Some(3))),
        ("on-failure:0", policy(RestartKind::OnFailure, None)),
    ] {
        assert_eq!(restart(text).unwrap(), expected, "{text}");
    }
    for bad in ["", "never", "always:3", "no:1", "on-failure:", "on-failure:-1", "on-failure:x"] {
        assert!(restart(bad).unwrap_err().text().contains("--restart"), "{bad}");
    }
}
