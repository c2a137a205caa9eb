//! What is run: Docker's rules for entrypoint and command, environment and working directory.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use oci_spec::image::ImageConfiguration;
use runtime_core::ServiceSpec;

use crate::error::{Error, Result};

/// PATH where neither image nor spec sets one; Docker's.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command line: an entrypoint of the spec's drops the image's CMD, args alone keep the image's ENTRYPOINT, and
/// with neither both are the image's.
pub(super) fn args(image: &ImageConfiguration, spec: &ServiceSpec) -> Result<Vec<String>> {
    let config = image.config().as_ref();
    let image_entrypoint = config.and_then(|c| c.entrypoint().as_deref()).unwrap_or_default();
    let image_cmd = config.and_then(|c| c.cmd().as_deref()).unwrap_or_default();
    let (entrypoint, cmd): (&[String], &[String]) = match (&spec.command.entrypoint, &spec.command.args) {
        (Some(entrypoint), args) => (entrypoint, args.as_deref().unwrap_or_default()),
        (None, Some(args)) => (image_entrypoint, args),
        (None, None) => (image_entrypoint, image_cmd),
    };
    let line: Vec<String> = entrypoint.iter().chain(cmd).cloned().collect();
    if line.is_empty() {
        return Err(Error::invalid("command", "neither the spec nor the image names a command"));
    }
    check_line("command", &line)?;
    Ok(line)
}

/// Refuses what no kernel executes: a `line` without a program, or with a NUL character in a word.
pub(crate) fn check_line(field: &str, line: &[String]) -> Result<()> {
    match line.first().map(String::as_str) {
        None => Err(Error::invalid(field, "it is empty")),
        Some("") => Err(Error::invalid(field, "the program's name is empty")),
        Some(_) if line.iter().any(|word| word.contains('\0')) => {
            Err(Error::invalid(field, "an argument holds a NUL character"))
        }
        Some(_) => Ok(()),
    }
}

/// Where it starts: the spec's working directory, else the image's, else `/`.
pub(crate) fn workdir(image: &ImageConfiguration, spec: &ServiceSpec) -> Result<String> {
    if let Some(workdir) = spec.command.workdir.as_deref().filter(|text| !text.is_empty()) {
        return match workdir {
            _ if !workdir.starts_with('/') => {
                Err(Error::invalid("command.workdir", format!("{workdir:?} is not absolute")))
            }
            _ if workdir.contains('\0') => Err(Error::invalid("command.workdir", "it holds a NUL character")),
            _ => Ok(workdir.to_owned()),
        };
    }
    let image = image.config().as_ref().and_then(|config| config.working_dir().as_deref()).unwrap_or_default();
    if image.contains('\0') {
        return Err(Error::invalid("image.config.WorkingDir", "it holds a NUL character"));
    }
    // Docker reads an image's relative directory as one beneath the root.
    Ok(if image.starts_with('/') { image.to_owned() } else { format!("/{image}") })
}

/// The environment: PATH, HOSTNAME and (with a terminal) TERM, then the image's, then the spec's; the later wins, each
/// name stands once.
pub(crate) fn environment(
    image: &ImageConfiguration,
    env: &BTreeMap<String, String>,
    hostname: &str,
    tty: bool,
) -> Result<Vec<String>> {
    let mut lines: Vec<String> = Vec::new();
    // By name: an image may have very many lines.
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut set = |name: &str, value: &str| match places.entry(name.to_owned()) {
        Entry::Occupied(place) => lines[*place.get()] = format!("{name}={value}"),
        Entry::Vacant(place) => {
            place.insert(lines.len());
            lines.push(format!("{name}={value}"));
        }
    };
    set("PATH", DEFAULT_PATH);
    set("HOSTNAME", hostname);
    if tty {
        set("TERM", "xterm");
    }
    for line in image.config().as_ref().and_then(|config| config.env().as_deref()).unwrap_or_default() {
        // A line of an image that no environment can hold is left out, as execve's readers would.
        if let Some((name, value)) = line.split_once('=').filter(|(name, _)| !name.is_empty() && !line.contains('\0')) {
            set(name, value);
        }
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Error::invalid("env", format!("{name:?} is not a variable's name")));
        }
        if value.contains('\0') {
            return Err(Error::invalid(format!("env.{name}"), "its value holds a NUL character"));
        }
        set(name, value);
    }
    Ok(lines)
}

/// The image's VOLUMEs that no mount of the spec covers: each wants an anonymous volume. Sorted, each once; paths that
/// cannot be mounted on (relative ones, `/`, with `..`) are left out.
pub(crate) fn image_volumes(image: &ImageConfiguration, spec: &ServiceSpec) -> Vec<String> {
    let volumes = image.config().as_ref().and_then(|config| config.volumes().as_deref()).unwrap_or_default();
    let taken: BTreeSet<String> =
        spec.storage.iter().filter_map(|s| super::mounts::normal_target(s.target()).ok()).collect();
    let wanted: BTreeSet<String> = volumes.iter().filter_map(|path| super::mounts::normal_target(path).ok()).collect();
    wanted.into_iter().filter(|path| !taken.contains(path)).collect()
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};
    use runtime_core::spec::StorageSpec;

    use super::*;

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageConfiguration {
        let config = ConfigBuilder::default()
            .entrypoint(owned(entrypoint))
            .cmd(owned(cmd))
            .env(owned(&["PATH=/image/bin", "A=image", "B=image", "=broken", "broken"]))
            .volumes(owned(&["/data", "/data/", "relative", "/", "/x/../y", "/cache"]))
            .working_dir("/srv".to_owned())
            .build()
            .unwrap();
        ImageConfigurationBuilder::default().config(config).build().unwrap()
    }

    #[test]
    fn entrypoint_and_command_combine_as_with_docker() {
        let nothing: Option<&[&str]> = None;
        for (image_entrypoint, image_cmd, entrypoint, args_given, expected) in [
            (&["e"][..], &["c"][..], nothing, nothing, &["e", "c"][..]),
            (&[], &["c"], nothing, nothing, &["c"]),
            (&["e"], &[], nothing, nothing, &["e"]),
            (&["e"], &["c"], nothing, Some(&["a", "b"][..]), &["e", "a", "b"]),
            (&[], &["c"], nothing, Some(&["a"]), &["a"]),
            (&["e"], &["c"], Some(&["x"][..]), nothing, &["x"]),
            (&["e"], &["c"], Some(&["x"]), Some(&["a"]), &["x", "a"]),
            (&["e"], &["c"], Some(&[]), Some(&["a"]), &["a"]),
            (&["e"], &["c"], nothing, Some(&[]), &["e"]),
        ] {
            let mut spec = ServiceSpec::new("i");
            spec.command.entrypoint = entrypoint.map(owned);
            spec.command.args = args_given.map(owned);
            let line = args(&image(image_entrypoint, image_cmd), &spec).unwrap();
            assert_eq!(line, owned(expected), "{image_entrypoint:?} {image_cmd:?} {entrypoint:?} {args_given:?}");
        }
    }

    #[test]
    fn no_command_at_all_is_refused() {
        let mut spec = ServiceSpec::new("i");
        for (entrypoint, line) in
            [(None, None), (Some(vec![]), None), (Some(owned(&[""])), None), (None, Some(owned(&["a\0b"])))]
        {
            spec.command.entrypoint = entrypoint;
            spec.command.args = line;
            let error = args(&image(&[], &[]), &spec).unwrap_err();
            assert_eq!(error.code(), "spec.invalid");
        }
    }

    #[test]
    fn the_working_directory_is_the_specs_then_the_images() {
        let mut spec = ServiceSpec::new("i");
        assert_eq!(workdir(&image(&[], &[]), &spec).unwrap(), "/srv");
        assert_eq!(workdir(&ImageConfiguration::default(), &spec).unwrap(), "/");
        spec.command.workdir = Some("/opt".into());
        assert_eq!(workdir(&image(&[], &[]), &spec).unwrap(), "/opt");
        spec.command.workdir = Some("opt".into());
        assert!(workdir(&image(&[], &[]), &spec).unwrap_err().to_string().starts_with("command.workdir: "));
    }

    #[test]
    fn the_specs_environment_wins_and_path_is_always_there() {
        let env = BTreeMap::from([("B".to_owned(), "spec".to_owned()), ("C".to_owned(), "a=b".to_owned())]);
        let lines = environment(&image(&[], &[]), &env, "web", true).unwrap();
        assert_eq!(lines, ["PATH=/image/bin", "HOSTNAME=web", "TERM=xterm", "A=image", "B=spec", "C=a=b"]);
        let lines = environment(&ImageConfiguration::default(), &BTreeMap::new(), "web", false).unwrap();
        assert_eq!(lines, [&format!("PATH={DEFAULT_PATH}"), "HOSTNAME=web"]);
        for (name, value) in [("", "x"), ("A=B", "x"), ("A", "x\0"), ("A\0", "x")] {
            let env = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            assert_eq!(environment(&image(&[], &[]), &env, "web", false).unwrap_err().code(), "spec.invalid");
        }
    }

    #[test]
    fn image_volumes_are_those_the_spec_does_not_mount() {
        let mut spec = ServiceSpec::new("i");
        assert_eq!(image_volumes(&image(&[], &[]), &spec), ["/cache", "/data"]);
        spec.storage = vec![StorageSpec::Anonymous { target: "/data/".into() }];
        assert_eq!(image_volumes(&image(&[], &[]), &spec), ["/cache"]);
    }
}
