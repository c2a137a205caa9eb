//! The bundle as a whole.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::image::{ConfigBuilder, ImageConfiguration, ImageConfigurationBuilder};
use oci_spec::runtime::LinuxNamespaceType;
use runtime_core::spec::{NetworkMode, SeccompSpec};
use runtime_core::{ContainerId, ServiceSpec};

use super::*;

fn image() -> ImageConfiguration {
    let config = ConfigBuilder::default()
        .cmd(vec!["/bin/true".to_owned()])
        .user("app".to_owned())
        .stop_signal("SIGQUIT".to_owned())
        .build()
        .unwrap();
    ImageConfigurationBuilder::default().config(config).build().unwrap()
}

fn built(spec: &ServiceSpec, image: &ImageConfiguration, cgroup_v2: bool) -> Result<Bundle> {
    let file = Path::new("/run/x");
    build(&BundleInput {
        hostname: &hostname(&ContainerId::new("web", 0), spec)?,
        spec,
        image,
        env: &spec.env,
        rootfs: Path::new("/root/fs"),
        cgroup_path: "/berth/web-rep-0",
        mounts: &[],
        etc: EtcFiles { hosts: file, hostname: file, resolv_conf: file },
        cgroup_v2,
    })
}

#[test]
fn what_libcontainer_must_not_do_is_left_out_of_its_spec() {
    let bundle = built(&ServiceSpec::new("i"), &image(), false).unwrap();
    let json = serde_json::to_value(&bundle.oci).unwrap();
    let process = &json["process"];
    for absent in ["capabilities", "noNewPrivileges", "rlimits", "oomScoreAdj"] {
        assert!(process.get(absent).is_none(), "{absent}: {process}");
    }
    for absent in ["resources", "seccomp", "devices", "maskedPaths", "readonlyPaths"] {
        assert!(json["linux"].get(absent).is_none(), "{absent}");
    }
    assert!(json.get("hooks").is_none());
    assert_eq!(process["user"], serde_json::json!({"uid": 0, "gid": 0}));
    assert_eq!(json["linux"]["cgroupsPath"], "/berth/web-rep-0");
    assert_eq!(json["root"], serde_json::json!({"path": "/root/fs", "readonly": false}));
    assert_eq!(json["hostname"], "web-rep-0");
    let kinds: Vec<_> =
        bundle.oci.linux().as_ref().unwrap().namespaces().as_ref().unwrap().iter().map(|n| n.typ()).collect();
    assert!(!kinds.contains(&LinuxNamespaceType::Network) && kinds.contains(&LinuxNamespaceType::Cgroup));
    let env = bundle.oci.process().as_ref().unwrap().env().as_ref().unwrap();
    assert!(env.iter().any(|line| line.starts_with("PATH=")), "{env:?}");
    assert!(!env.iter().any(|line| line.starts_with("TERM=") || line.starts_with("HOME=")), "{env:?}");
}

#[test]
fn the_plan_has_dockers_defaults_and_the_images_user_and_signal() {
    let bundle = built(&ServiceSpec::new("i"), &image(), false).unwrap();
    assert_eq!(bundle.process.user.as_deref(), Some("app"));
    assert_eq!(bundle.process.seccomp, Some(SeccompPlan::Default));
    assert_eq!(bundle.process.capabilities.bounding, 0xa804_25fb);
    assert!(!bundle.process.no_new_privileges);
    assert_eq!(bundle.stop_signal, libc::SIGQUIT);
    assert_eq!(bundle.args, ["/bin/true"]);
    let text = serde_json::to_string(&bundle.process).unwrap();
    assert_eq!(serde_json::from_str::<ProcessPlan>(&text).unwrap(), bundle.process);
}

#[test]
fn the_spec_overrides_the_image() {
    let spec = ServiceSpec {
        user: Some("0:5".into()),
        stop_signal: Some("rtmin+3".into()),
        hostname: Some("front.example".into()),
        read_only: true,
        no_new_privileges: true,
        tty: true,
        sysctls: BTreeMap::from([("kernel.shmmax".into(), "1".into()), ("net.core.somaxconn".into(), "9".into())]),
        ..ServiceSpec::new("i")
    };
    let bundle = built(&spec, &image(), false).unwrap();
    assert_eq!((bundle.process.user.as_deref(), bundle.stop_signal), (Some("0:5"), 37));
    assert!(bundle.process.no_new_privileges);
    let json = serde_json::to_value(&bundle.oci).unwrap();
    assert_eq!(json["hostname"], "front.example");
    assert!(bundle.root.read_only);
    assert_eq!(json["linux"]["sysctl"], serde_json::json!({"kernel.shmmax": "1"}));
    assert!(bundle.process.net_sysctls.contains(&("net.core.somaxconn".into(), "9".into())));
    assert!(json["process"]["env"].as_array().unwrap().contains(&"TERM=xterm".into()));
    // The init makes it.
    assert_eq!(json["process"]["terminal"], false);
}

#[test]
fn privileged_means_everything_on_both_versions_of_cgroups() {
    let spec = ServiceSpec { privileged: true, ..ServiceSpec::new("i") };
    let bundle = built(&spec, &image(), false).unwrap();
    assert_eq!(bundle.process.seccomp, None);
    assert_eq!(bundle.process.capabilities.bounding, capabilities::available());
    assert!(bundle.process.cgroup_view_writable);
    assert!(bundle.root.masked.is_empty() && bundle.root.read_only_paths.is_empty());
    assert_eq!(built(&spec, &image(), true).unwrap().process, bundle.process);
    let (v1, v2) = (built(&ServiceSpec::new("i"), &image(), false), built(&ServiceSpec::new("i"), &image(), true));
    assert_eq!(v1.unwrap().process, v2.unwrap().process);
}

#[test]
fn seccomp_is_as_the_spec_says() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("profile.json");
    let mut spec = ServiceSpec { seccomp: SeccompSpec::Unconfined, ..ServiceSpec::new("i") };
    assert_eq!(built(&spec, &image(), false).unwrap().process.seccomp, None);
    spec.seccomp = SeccompSpec::File(file.to_str().unwrap().into());
    assert_eq!(built(&spec, &image(), false).unwrap_err().code(), "spec.invalid");
    std::fs::write(&file, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
    assert!(matches!(built(&spec, &image(), false).unwrap().process.seccomp, Some(SeccompPlan::Profile(_))));
    std::fs::write(&file, "no profile").unwrap();
    assert_eq!(built(&spec, &image(), false).unwrap_err().code(), "spec.invalid");
}

#[test]
fn host_names_are_checked_and_a_long_container_name_is_cut() {
    let mut spec = ServiceSpec::new("i");
    let long = ContainerId::new("a".repeat(62) + "-b", 3);
    assert_eq!(hostname(&long, &spec).unwrap(), "a".repeat(62));
    for bad in ["a b", "-a", ".a", "a\n", "ä", &"a".repeat(65)] {
        spec.hostname = Some(bad.to_owned());
        assert!(hostname(&long, &spec).unwrap_err().to_string().starts_with("hostname: "), "{bad:?}");
    }
    spec.hostname = None;
    spec.network.mode = NetworkMode::Host;
    assert_eq!(hostname(&long, &spec).unwrap(), rustix::system::uname().nodename().to_str().unwrap());
}

#[test]
fn a_signal_that_is_none_is_refused() {
    let spec = ServiceSpec { stop_signal: Some("SIGSTOPPED".into()), ..ServiceSpec::new("i") };
    assert!(built(&spec, &image(), false).unwrap_err().to_string().starts_with("stop_signal: "));
}
