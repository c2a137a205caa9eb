//! The commonest `docker run` lines, word by word: what people type without looking.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::Case;
use crate::support::case::eventually;
use crate::support::image::Image;

crate::tests![
    lines_that_end_by_themselves_say_what_dockers_would,
    lines_that_run_in_the_background,
    what_is_not_built_is_refused_by_its_name,
    a_terminal_takes_one,
];

impl Case {
    /// `line` with the image for `IMAGE`, and quoted words kept together.
    async fn docker(&self, line: &str, image: &str) -> crate::support::berth::Said {
        let mut words = Vec::new();
        for (index, part) in line.split('\'').enumerate() {
            match index % 2 {
                0 => words.extend(part.split_whitespace().map(|word| word.replace("IMAGE", image))),
                _ => words.push(part.to_owned()),
            }
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.berth_with(&words, b"typed\n").await
    }
}

async fn lines_that_end_by_themselves_say_what_dockers_would(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let dir = case.suite.dir.path().join("docker-run-lines");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("file"), "here\n").unwrap();
    std::fs::write(dir.join("env"), "E1=one\n# a comment\n\nE2=two words\n").unwrap();
    let src = dir.display();
    let volume = format!("docker-lines-{}", std::process::id());
    let host = rustix::system::uname().nodename().to_str().unwrap().to_owned();
    let memory = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
    let digest = case.berth(&["pull", "-q", &image]).await.succeeded();
    let by_digest = format!("{}@{}", image.rsplit_once(':').unwrap().0, digest.trim());
    let architecture = Image::busybox().architecture;
    for (line, code, said) in [
        ("run --rm IMAGE echo hi".to_owned(), 0, "hi\n"),
        ("run --rm IMAGE".into(), 0, ""),
        ("run --rm -i IMAGE cat".into(), 0, "typed\n"),
        ("run --rm -i IMAGE sh -c 'read x; echo got $x'".into(), 0, "got typed\n"),
        ("run --rm -t IMAGE tty".into(), 0, "/dev/pts/0\r\n"),
        ("run --rm IMAGE sh -c 'exit 3'".into(), 3, ""),
        ("run --rm IMAGE no-such-program".into(), 127, ""),
        (format!("run --rm -v {src}:/src -w /src IMAGE cat file"), 0, "here\n"),
        (format!("run --rm -v{src}:/src:ro,cached -w/src IMAGE sh -c 'touch x 2>/dev/null; echo $?'"), 0, "1\n"),
        (format!("run --rm --mount type=bind,source={src},target=/src,readonly IMAGE cat /src/file"), 0, "here\n"),
        (
            format!("run --rm --mount type=bind,src={src},dst=/s,ro IMAGE sh -c 'touch /s/x 2>/dev/null; echo $?'"),
            0,
            "1\n",
        ),
        (format!("run --rm --mount source={volume},target=/v IMAGE sh -c 'echo kept > /v/x'"), 0, ""),
        (format!("run --rm -v {volume}:/p:ro IMAGE sh -c 'cat /p/x; touch /p/y 2>/dev/null; echo $?'"), 0, "kept\n1\n"),
        (
            "run --rm --mount type=tmpfs,target=/t,tmpfs-size=8m IMAGE sh -c 'df -m /t | tail -1 | cut -c22-31'".into(),
            0,
            "8\n",
        ),
        ("run --rm --tmpfs /tmp:size=64m IMAGE sh -c 'df -m /tmp | tail -1 | cut -c22-31'".into(), 0, "64\n"),
        (
            "run --rm --tmpfs /run:rw,noexec,nosuid,size=65536k IMAGE grep -c ' /run tmpfs' /proc/mounts".into(),
            0,
            "1\n",
        ),
        ("run --rm --user 1000:1000 IMAGE sh -c 'id -u; id -g'".into(), 0, "1000\n1000\n"),
        ("run --rm -u app IMAGE id -un".into(), 0, "app\n"),
        ("run --rm --entrypoint sh IMAGE -c 'echo by $0' x".into(), 0, "by x\n"),
        ("run --rm --entrypoint '' IMAGE echo plain".into(), 0, "plain\n"),
        ("run --rm -e A=B -eC=D --env F IMAGE sh -c 'echo $A$C$F'".into(), 0, "BD\n"),
        (format!("run --rm --env-file {src}/env IMAGE sh -c 'echo $E1 $E2'"), 0, "one two words\n"),
        ("run --rm --network host IMAGE hostname".into(), 0, &format!("{host}\n")),
        ("run --rm --net=none IMAGE sh -c 'ls /sys/class/net'".into(), 0, "lo\n"),
        ("run --rm -h front IMAGE hostname".into(), 0, "front\n"),
        ("run --rm --hostname=front IMAGE hostname".into(), 0, "front\n"),
        (
            "run --rm --cap-drop ALL --cap-add CHOWN IMAGE grep CapEff /proc/self/status".into(),
            0,
            "CapEff:\t0000000000000001\n",
        ),
        ("run --rm --cap-drop=all IMAGE grep CapEff /proc/self/status".into(), 0, "CapEff:\t0000000000000000\n"),
        (
            "run --rm --security-opt no-new-privileges:true IMAGE grep NoNewPrivs /proc/self/status".into(),
            0,
            "NoNewPrivs:\t1\n",
        ),
        ("run --rm --security-opt seccomp=unconfined IMAGE grep Seccomp: /proc/self/status".into(), 0, "Seccomp:\t0\n"),
        (format!("run --rm --memory 512m --cpus 1.5 IMAGE sh -c '{memory}'"), 0, "536870912\n"),
        (format!("run --rm -m 512M --memory-swap 512M --cpu-shares 512 IMAGE sh -c '{memory}'"), 0, "536870912\n"),
        ("run --rm --ulimit nofile=1024:2048 IMAGE sh -c 'ulimit -n; ulimit -Hn'".into(), 0, "1024\n2048\n"),
        ("run --rm --shm-size=128m IMAGE sh -c 'df -m /dev/shm | tail -1 | cut -c22-31'".into(), 0, "128\n"),
        (
            "run --rm --read-only --tmpfs /tmp IMAGE sh -c 'touch /x 2>/dev/null; echo $?; touch /tmp/x; echo $?'"
                .into(),
            0,
            "1\n0\n",
        ),
        ("run --rm --add-host database:1.2.3.4 IMAGE grep database /etc/hosts".into(), 0, "1.2.3.4\tdatabase\n"),
        (
            "run --rm --add-host host.docker.internal:host-gateway IMAGE grep -c docker.internal /etc/hosts".into(),
            0,
            "1\n",
        ),
        (
            "run --rm --dns 1.1.1.1 --dns-search example.org IMAGE cat /etc/resolv.conf".into(),
            0,
            "nameserver 1.1.1.1\nsearch example.org\n",
        ),
        (
            "run --rm --log-driver json-file --log-opt max-size=10m --log-opt max-file=3 IMAGE echo logged".into(),
            0,
            "logged\n",
        ),
        ("run --rm --log-opt mode=non-blocking --log-opt max-buffer-size=4m IMAGE echo logged".into(), 0, "logged\n"),
        ("run --rm --label a=b -l c IMAGE true".into(), 0, ""),
        ("run --rm=true --init=false --privileged=false IMAGE echo switched".into(), 0, "switched\n"),
        ("run --rm --init IMAGE sh -c '[ $$ != 1 ] && echo beneath'".into(), 0, "beneath\n"),
        ("run --rm --sysctl net.core.somaxconn=77 IMAGE cat /proc/sys/net/core/somaxconn".into(), 0, "77\n"),
        ("run --rm -q --pull never IMAGE echo quiet".into(), 0, "quiet\n"),
        (format!("run --rm --pull=always --platform linux/{architecture} IMAGE echo pulled"), 0, "pulled\n"),
        (format!("run --rm {by_digest} echo digest"), 0, "digest\n"),
        (format!("run --rm --cidfile {src}/cid IMAGE true"), 0, ""),
        (format!("run --rm --cidfile {src}/cid IMAGE true"), 125, ""),
    ] {
        let told = case.docker(&line, &image).await;
        assert_eq!(told.code, code, "{line}: {told:?}");
        assert!(told.stdout.split_whitespace().eq(said.split_whitespace()), "{line}: {told:?}");
    }
    assert!(std::fs::read_to_string(dir.join("cid")).unwrap().ends_with("-rep-0"));
}

async fn lines_that_run_in_the_background(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    let volume = format!("docker-lines-web-{}", std::process::id());
    let (web, other) = (case.id(), case.id());
    let (port, second) = (case.suite.share.port(), case.suite.share.port());
    let (name, other_name) = (web.service.clone(), other.service.clone());
    let serve = "sh -c 'echo served > /var/index.html; exec httpd -f -p 80 -h /var'";
    let line =
        format!("run -d -p {port}:80 --name {name} -v {volume}:/var -e A=B --restart unless-stopped IMAGE {serve}");
    assert_eq!(case.docker(&line, &image).await.succeeded(), format!("{web}\n"));
    let line = format!("run -dp{second}:80 -eA=B --name={other_name} --restart=on-failure:3 IMAGE {serve}");
    assert_eq!(case.docker(&line, &image).await.succeeded(), format!("{other}\n"));
    for port in [port, second] {
        eventually("it serves", || async { fetched(port).is_some_and(|page| page.ends_with("served\n")) }).await;
    }
    let spec = case.berth(&["inspect", "--json", &name]).await.json()[0]["spec"].clone();
    assert_eq!((&spec["restart_policy"]["kind"], &spec["env"]["A"]), (&"unless_stopped".into(), &"B".into()));
    assert_eq!(case.docker(&format!("exec {name} sh -c 'echo $A'"), &image).await.succeeded(), "B\n");
    assert_eq!(case.docker(&format!("exec -i {name} cat"), &image).await.succeeded(), "typed\n");
    assert!(case.berth(&["logs", &name]).await.code == 0 && case.berth(&["port", &name]).await.code == 0);

    for flags in ["-dit", "-itd", "-d -i -t", "-td", "-di"] {
        let id = case.id();
        let line = format!(
            "run {flags} --name {} --health-cmd true --health-interval=1s --health-retries 3 IMAGE",
            id.service
        );
        assert_eq!(case.docker(&line, &image).await.succeeded(), format!("{id}\n"), "{flags}");
        let inspected = case.berth(&["inspect", "--json", &id.to_string()]).await.json()[0].take();
        assert_eq!(inspected["state"], "running", "{flags}: its shell waits for input");
        assert_eq!(inspected["spec"]["tty"].as_bool().unwrap_or_default(), flags.contains('t'), "{flags}");
    }
}

/// What a port of the host's answers to a GET.
fn fetched(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}

async fn what_is_not_built_is_refused_by_its_name(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    for (flags, named) in [
        ("--gpus all", "--gpus"),
        ("--ipc=host", "--ipc"),
        ("--pid host", "--pid"),
        ("--link web", "--link"),
        ("--volumes-from web", "--volumes-from"),
        ("--group-add 29", "--group-add"),
        ("--ip 10.0.0.9", "--ip"),
        ("-a stdout", "-a"),
        ("--log-driver syslog", "syslog"),
        ("--log-driver none", "none"),
        ("--log-opt tag=x", "tag"),
        ("--mount type=bind,source=/,target=/t,bind-propagation=rshared", "bind-propagation"),
        ("-v /:/host:rslave", "rslave"),
        ("-v data:/data:z", "\"z\""),
        ("--security-opt label=type:x", "label"),
        ("--memory 64m --memory-swap -1", "--memory-swap"),
    ] {
        let told = case.docker(&format!("--json run --rm {flags} IMAGE true"), &image).await;
        let error: serde_json::Value =
            serde_json::from_str(&told.stderr).unwrap_or_else(|_| panic!("{flags}: {told:?}"));
        assert_eq!((told.code, &error["error"]["code"]), (125, &"unsupported".into()), "{flags}: {told:?}");
        assert!(error["error"]["message"].as_str().unwrap().contains(named), "{flags}: {told:?}");
        assert!(error["error"]["hint"].as_str().is_some(), "{flags}: {told:?}");
    }
    for (line, named) in [
        ("ps -as", "-s"),
        ("inspect --size x", "--size"),
        ("logs --details x", "--details"),
        ("update --memory-swap 1g x", "--memory-swap"),
        ("network create --label a=b x", "--label"),
        ("network ls --filter name=x", "--filter"),
        ("images --filter label=x", "--filter label=x"),
    ] {
        let told = case.docker(&format!("--json {line}"), &image).await;
        let (code, message) = told.refused(1);
        assert!(code == "unsupported" && message.starts_with(named), "{line}: {told:?}");
    }
    for (line, named, instead) in [
        ("version", "docker's version", "berth --version"),
        ("container ls -a", "docker's container", "berth ps"),
        ("image ls", "docker's image ls", "berth images"),
        ("volume create data", "docker's volume create", "-v NAME:/path"),
        ("network connect front ps", "docker's network connect", "--network"),
        ("rename ps run", "docker's rename", "create another"),
        ("run-d IMAGE", "", "berth --help"),
    ] {
        let told = case.docker(&format!("--json {line}"), &image).await;
        let status = if named.is_empty() { 2 } else { 1 };
        let (code, message) = told.refused(status);
        assert_eq!(code, if named.is_empty() { "usage" } else { "unsupported" }, "{line}: {told:?}");
        assert!(message.starts_with(named) && told.stderr.contains(instead), "{line}: {told:?}");
    }
    // Of the program's own, they are nobody's business.
    assert_eq!(case.docker("run --rm IMAGE echo --gpus --rm=true", &image).await.succeeded(), "--gpus --rm=true\n");
}

async fn a_terminal_takes_one(case: Case) {
    let image = case.suite.busybox().await.to_owned();
    for line in ["run --rm -it IMAGE sh", "run --rm -ti IMAGE"] {
        let told = case.docker(line, &image).await;
        assert!(told.code == 125 && told.stderr.contains("terminal"), "{line}: {told:?}");
    }
}
