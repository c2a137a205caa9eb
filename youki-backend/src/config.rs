//! [`Config`]: where everything lies and how it behaves. Read from file and environment, or built in code.

use std::collections::BTreeMap;
use std::env::VarError;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runtime_core::SecretsProvider;
use runtime_core::spec::LogMode;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tracing::level_filters::LevelFilter;

use crate::container::MIN_LOG_BYTES;
use crate::error::{Error, Result};

/// Root of a configuration that names none.
pub const DEFAULT_ROOT: &str = "/var/lib/berth";
/// Run directory of the default root.
pub const DEFAULT_RUN_DIR: &str = "/run/berth";
/// The configuration file that is read if it exists and none is named.
pub const DEFAULT_FILE: &str = "/etc/berth/config.toml";
/// Longest configuration file.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// All that a container's log keeps, unless its spec says otherwise.
pub const DEFAULT_LOG_MAX_BYTES: u64 = 100 << 20;
/// Time that a stop gives to the sync of the container's volumes.
pub const DEFAULT_SYNC_ON_STOP: Duration = Duration::from_secs(60);
/// Time that restores have to read what the keeper has pruned: a volume of some 100 GiB comes over a gigabit line in it.
pub const DEFAULT_PRUNE_GRACE: Duration = Duration::from_secs(30 * 60);

/// Shortest interval between two syncs of a volume that is used: each walks the whole tree.
pub const SHORTEST_LIVE_SYNC: Duration = Duration::from_secs(1);

/// How a runtime is set up. Every field may be set; [`Config::new`] has the defaults for a root.
#[derive(Clone)]
pub struct Config {
    /// Where everything lies that survives a reboot.
    pub root: PathBuf,
    /// Where everything lies that does not; on a tmpfs.
    pub run_dir: PathBuf,
    /// Containers live in the cgroup `/<cgroup_parent>/<id>`. Two roots on one host need two.
    pub cgroup_parent: String,
    /// What the command logs: a level, or a filter such as `registry=debug`.
    pub log_level: String,
    /// Whether this process syncs volumes of containers that exit by themselves and retries what S3 refused.
    pub keeper: bool,
    /// The default network.
    pub network: NetworkConfig,
    /// Where named volumes are synced to; `None`: nowhere.
    pub s3: Option<volumes_s3::S3Config>,
    /// Named volumes.
    pub volumes: VolumesConfig,
    /// Logs of containers.
    pub logs: LogsConfig,
    /// Images.
    pub images: ImagesConfig,
    /// What an image or a registry may cost before it is refused.
    pub limits: registry::Limits,
    /// Registries, by `host:port`.
    pub registries: BTreeMap<String, registry::RegistryConfig>,
    /// The directory of `berth-supervisor` and `berth-create`; `None`: beside the current executable.
    pub helper_dir: Option<PathBuf>,
    /// Gives the values of `$S:name`.
    pub secrets: Option<Arc<dyn SecretsProvider>>,
}

/// The default network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Name of its bridge.
    pub bridge: String,
    /// Its addresses.
    pub subnet: String,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self { bridge: "berth0".to_owned(), subnet: "10.97.0.0/16".to_owned() }
    }
}

/// Named volumes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VolumesConfig {
    /// Time that a stop gives to the sync of the container's volumes.
    #[serde(with = "runtime_core::spec::duration")]
    pub sync_on_stop: Duration,
    /// How often the keeper syncs the volumes that containers here write to, while they are used; `None`: never.
    #[serde(with = "runtime_core::spec::duration::option")]
    pub live_sync: Option<Duration>,
    /// What of a volume's history stays when it is pruned, which the keeper does after syncs, at most once an hour;
    /// `None`: all of it, and nothing is pruned.
    pub keep: Option<volumes_s3::Keep>,
    /// A claim not renewed for so long may be taken over; `None`: never by time.
    #[serde(with = "runtime_core::spec::duration::option")]
    pub take_over_after: Option<Duration>,
    /// For so long what the keeper prunes stays in S3, for restores that read it.
    #[serde(with = "runtime_core::spec::duration")]
    pub prune_grace: Duration,
}

impl Default for VolumesConfig {
    fn default() -> Self {
        let (sync_on_stop, prune_grace) = (DEFAULT_SYNC_ON_STOP, DEFAULT_PRUNE_GRACE);
        Self { sync_on_stop, live_sync: None, keep: None, take_over_after: None, prune_grace }
    }
}

/// Logs of containers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogsConfig {
    /// All that a container's log keeps, in about ten files.
    pub max_size_bytes: u64,
    /// What happens when a container writes faster than its log can be.
    pub mode: LogMode,
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self { max_size_bytes: DEFAULT_LOG_MAX_BYTES, mode: LogMode::Blocking }
    }
}

/// Images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesConfig {
    /// Keep no compressed layer once it is unpacked. A push or save fetches it again.
    pub drop_blobs: bool,
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileConfig {
    root: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    cgroup_parent: Option<String>,
    log_level: Option<String>,
    keeper: Option<bool>,
    network: NetworkConfig,
    s3: Option<volumes_s3::S3Config>,
    volumes: VolumesConfig,
    logs: LogsConfig,
    images: ImagesConfig,
    limits: registry::Limits,
    registry: BTreeMap<String, registry::RegistryConfig>,
}

impl Config {
    /// The defaults for `root`. One that is not the default root gets a run directory of its own.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self {
            run_dir: default_run_dir(&root),
            root,
            cgroup_parent: "berth".to_owned(),
            log_level: "warn".to_owned(),
            keeper: true,
            network: NetworkConfig::default(),
            s3: None,
            volumes: VolumesConfig::default(),
            logs: LogsConfig::default(),
            images: ImagesConfig::default(),
            limits: registry::Limits::default(),
            registries: BTreeMap::new(),
            helper_dir: None,
            secrets: None,
        }
    }

    /// Reads `file`, or [`DEFAULT_FILE`] if there is one, then the environment (`BERTH_ROOT`, `BERTH_S3_BUCKET`, …),
    /// which wins.
    ///
    /// # Errors
    /// [`Error::Configuration`] naming the file and what is wrong in it; a named file must exist. [`Error::Volume`] for a
    /// bucket or an endpoint of S3 that cannot be.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        Self::load_from(file, Self::variable)
    }

    /// A variable of this process's own environment; an empty one counts as none.
    ///
    /// # Errors
    /// [`Error::Configuration`] naming it where it is not UTF-8: to go on as if it were not set would use another root.
    pub fn variable(name: &str) -> Result<Option<String>> {
        match std::env::var(name) {
            Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(_)) => {
                let (what, reason) = (name.to_owned(), "the variable's value is not UTF-8".to_owned());
                Err(Error::Configuration { what, reason })
            }
        }
    }

    /// [`Config::load`] with another source of the variables, for a caller whose own flags win over the environment.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(file: Option<&Path>, env: impl Fn(&str) -> Result<Option<String>>) -> Result<Self> {
        let FileConfig {
            root,
            run_dir,
            cgroup_parent,
            log_level,
            keeper,
            network,
            s3,
            volumes,
            logs,
            images,
            limits,
            registry,
        } = read_file(file)?;
        let root = env("BERTH_ROOT")?.map(PathBuf::from).or(root).unwrap_or_else(|| DEFAULT_ROOT.into());
        let mut config = Self { network, s3, volumes, logs, images, limits, registries: registry, ..Self::new(root) };
        if let Some(run_dir) = env("BERTH_RUN_DIR")?.map(PathBuf::from).or(run_dir) {
            config.run_dir = run_dir;
        }
        let set = |field: &mut String, name: &str, from_file: Option<String>| {
            if let Some(value) = env(name)?.or(from_file) {
                *field = value;
            }
            Ok::<_, Error>(())
        };
        set(&mut config.cgroup_parent, "BERTH_CGROUP_PARENT", cgroup_parent)?;
        set(&mut config.log_level, "BERTH_LOG", log_level)?;
        set(&mut config.network.bridge, "BERTH_BRIDGE", None)?;
        set(&mut config.network.subnet, "BERTH_SUBNET", None)?;
        config.keeper = keeper.unwrap_or(config.keeper);
        config.set_s3(
            env("BERTH_S3_BUCKET")?,
            env("BERTH_S3_ENDPOINT")?,
            env("BERTH_S3_PREFIX")?,
            env("BERTH_S3_REGION")?,
        )?;
        config.check()?;
        Ok(config)
    }

    /// Refuses what cannot be meant, before anything is made.
    pub(crate) fn check(&self) -> Result<()> {
        self.s3.as_ref().map_or(Ok(()), volumes_s3::S3Config::check)?;
        crate::network::check_default(&self.network)?;
        crate::cgroup::check_parent(&self.cgroup_parent)?;
        check_log_level(&self.log_level)?;
        self.volumes.keep.as_ref().map_or(Ok(()), volumes_s3::Keep::check)?;
        let shortest = volumes_s3::SHORTEST_TAKE_OVER;
        if let Some(after) = self.volumes.take_over_after.filter(|after| *after < shortest) {
            return Err(Error::Configuration {
                what: "volumes.take_over_after".to_owned(),
                reason: format!("{after:?} is shorter than {shortest:?}"),
            });
        }
        if self.volumes.live_sync.is_some_and(|interval| interval < SHORTEST_LIVE_SYNC) {
            return Err(Error::Configuration {
                what: "volumes.live_sync".to_owned(),
                reason: format!("shorter than {SHORTEST_LIVE_SYNC:?}"),
            });
        }
        let above_0 = |what: &str, number: u64| match number {
            0 => Err(Error::Configuration { what: what.to_owned(), reason: "it must be above 0".to_owned() }),
            _ => Ok(()),
        };
        let registry::Limits {
            manifest_bytes,
            config_bytes,
            layers,
            blob_bytes,
            layer_bytes,
            layer_entries,
            ratio,
            path_depth,
            no_progress_seconds,
            concurrent_layers,
        } = self.limits;
        for (name, limit) in [
            ("manifest_bytes", manifest_bytes),
            ("config_bytes", config_bytes),
            ("layers", layers as u64),
            ("blob_bytes", blob_bytes),
            ("layer_bytes", layer_bytes),
            ("layer_entries", layer_entries),
            ("ratio", ratio),
            ("path_depth", path_depth as u64),
            ("no_progress_seconds", no_progress_seconds),
            ("concurrent_layers", concurrent_layers as u64),
        ] {
            above_0(&format!("[limits] {name}"), limit)?;
        }
        for (host, registry) in &self.registries {
            check_host(&format!("[registry.{host:?}]"), host)?;
            for mirror in &registry.mirrors {
                check_host(&format!("[registry.{host:?}] mirrors: {mirror:?}"), mirror)?;
            }
            if let Some(number) = registry.max_connections {
                above_0(&format!("[registry.{host:?}] max_connections"), number as u64)?;
            }
        }
        if self.logs.max_size_bytes < MIN_LOG_BYTES {
            return Err(Error::Configuration {
                what: "[logs] max_size_bytes".to_owned(),
                reason: format!("it must be at least {MIN_LOG_BYTES}"),
            });
        }
        Ok(())
    }

    /// Overrides parts of the S3 configuration. A bucket turns it on; the rest without one is an error.
    ///
    /// # Errors
    /// [`Error::Configuration`].
    pub fn set_s3(
        &mut self,
        bucket: Option<String>,
        endpoint: Option<String>,
        prefix: Option<String>,
        region: Option<String>,
    ) -> Result<()> {
        if let Some(bucket) = bucket {
            self.s3.get_or_insert_default().bucket = bucket;
        }
        let given = endpoint.is_some() || prefix.is_some() || region.is_some();
        match &mut self.s3 {
            Some(s3) => {
                s3.endpoint = endpoint.or(s3.endpoint.take());
                s3.prefix = prefix.or(s3.prefix.take());
                s3.region = region.or(s3.region.take());
                Ok(())
            }
            None if given => Err(Error::Configuration {
                what: "s3".to_owned(),
                reason: "an endpoint, prefix or region without a bucket: name one by --s3-bucket".to_owned(),
            }),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("root", &self.root)
            .field("run_dir", &self.run_dir)
            .field("cgroup_parent", &self.cgroup_parent)
            .field("keeper", &self.keeper)
            .field("network", &self.network)
            .field("s3", &self.s3)
            .field("volumes", &self.volumes)
            .field("logs", &self.logs)
            .field("images", &self.images)
            .field("limits", &self.limits)
            .field("registries", &self.registries)
            .field("helper_dir", &self.helper_dir)
            .field("secrets", &self.secrets.is_some())
            .finish_non_exhaustive()
    }
}

/// Refuses a word that is no level. What is a filter is judged by who filters by it.
fn check_log_level(text: &str) -> Result<()> {
    if text.contains(['=', ',']) || text.parse::<LevelFilter>().is_ok() {
        return Ok(());
    }
    let reason = "it is no level, and no filter such as registry=debug".to_owned();
    Err(Error::Configuration { what: format!("log level {text:?}"), reason })
}

/// Refuses what is no `HOST[:PORT]`: a table of that name would be of no registry.
fn check_host(what: &str, host: &str) -> Result<()> {
    let is_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:[]".contains(c));
    match is_host {
        true => Ok(()),
        false => Err(Error::Configuration {
            what: what.to_owned(),
            reason: "write a registry as HOST[:PORT], without a scheme or a path".to_owned(),
        }),
    }
}

/// `/run/berth` for the default root, else a directory beneath it that is the root's own.
#[must_use]
pub fn default_run_dir(root: &Path) -> PathBuf {
    let default = Path::new(DEFAULT_ROOT);
    if root == default || canonical(root) == canonical(default) {
        return DEFAULT_RUN_DIR.into();
    }
    Path::new(DEFAULT_RUN_DIR).join("roots").join(root_tag(root))
}

/// The first 12 hexadecimal digits of the SHA-256 of a root's canonical path: tells the roots of one host apart.
pub(crate) fn root_tag(root: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    crate::layout::hex(&Sha256::digest(canonical(root).as_os_str().as_bytes()))[..12].to_owned()
}

/// The path that `root` has, or will have once it is made. What cannot be resolved stays as it is: it is refused by whoever
/// opens it.
fn canonical(root: &Path) -> PathBuf {
    crate::refusal::canonical(root).unwrap_or_else(|_| root.to_owned())
}

fn read_file(file: Option<&Path>) -> Result<FileConfig> {
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    let invalid = |reason: String| Error::Configuration { what: path.display().to_string(), reason };
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)) {
        Ok(_) if text.len() as u64 > MAX_FILE_BYTES => {
            return Err(invalid(format!("it is longer than {MAX_FILE_BYTES} bytes")));
        }
        Ok(_) => {}
        Err(error) if file.is_none() && error.kind() == ErrorKind::NotFound => return Ok(FileConfig::default()),
        Err(error) => return Err(Error::io("reading", path)(error)),
    }
    let text = String::from_utf8(text).map_err(|_| invalid("it is not UTF-8".to_owned()))?;
    toml::from_str(&text).map_err(|error| invalid(error.to_string().trim_end().to_owned()))
}

#[cfg(test)]
mod keys;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    pub(super) fn load(text: &str, env: &[(&str, &str)]) -> Result<Config> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let env = |name: &str| Ok(env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()));
        Config::load_from(Some(file.path()), env)
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
        let text = "root = '/a'\ncgroup_parent = 'x'\n[s3]\nbucket = 'b'\nendpoint = 'http://e'\n[volumes]\nsync_on_stop = '5s'\n\
                    live_sync = '5m'\nkeep.daily = 7\n\
                    [images]\ndrop_blobs = true\n\
                    [limits]\nlayer_entries = 5\n[registry.'localhost:5000']\nplain_http = true\n";
        let config = load(text, &[("BERTH_ROOT", "/b"), ("BERTH_S3_BUCKET", "c")]).unwrap();
        assert_eq!(config.root, Path::new("/b"));
        assert_eq!(config.cgroup_parent, "x");
        assert_eq!(config.volumes.sync_on_stop, Duration::from_secs(5));
        assert_eq!(config.volumes.live_sync, Some(Duration::from_secs(300)));
        assert_eq!(config.volumes.keep, Some(volumes_s3::Keep { daily: 7, ..volumes_s3::Keep::default() }));
        let s3 = config.s3.unwrap();
        assert_eq!((s3.bucket.as_str(), s3.endpoint.as_deref()), ("c", Some("http://e")));
        assert!(config.run_dir.starts_with("/run/berth/roots"));
        assert_eq!(config.limits, registry::Limits { layer_entries: 5, ..registry::Limits::default() });
        assert!(config.registries["localhost:5000"].plain_http && config.images.drop_blobs);
    }

    #[test]
    fn an_unknown_key_and_an_endpoint_without_a_bucket_are_errors() {
        for (text, env) in [
            ("rooot = '/a'", &[][..]),
            ("[s3]\nbukket = 'b'", &[]),
            ("[network]\nsubnets = 'x'", &[]),
            ("[images]\ndrop_blob = true", &[]),
            ("[logs]\nmode = 'sometimes'", &[]),
            ("", &[("BERTH_S3_ENDPOINT", "http://e")]),
            ("[s3]\nendpoint = 'http://e'", &[]),
            ("[s3]\nbucket = 'b'\nendpoint = 'ftp://e'", &[]),
            ("[volumes]\nlive_sync = '0s'", &[]),
            ("[volumes.keep]\nmonthly = 3", &[]),
            ("[volumes.keep]\nhourly = 0", &[]),
            ("[s3]\nbucket = 'b'", &[("BERTH_S3_ENDPOINT", "e:9000")]),
        ] {
            assert_eq!(load(text, env).unwrap_err().code(), "config.invalid", "{text}");
        }
    }

    #[test]
    fn a_file_without_an_end_or_not_in_utf_8_is_no_configuration() {
        let binary = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&binary, b"root = '/\xff'").unwrap();
        for (path, said) in [(Path::new("/dev/zero"), "longer than"), (binary.path(), "UTF-8")] {
            let error = Config::load_from(Some(path), |_| Ok(None)).unwrap_err();
            assert!(error.code() == "config.invalid" && error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn only_the_default_root_has_the_default_run_directory() {
        assert_eq!(default_run_dir(Path::new(DEFAULT_ROOT)), Path::new(DEFAULT_RUN_DIR));
        assert_ne!(default_run_dir(Path::new("/a")), default_run_dir(Path::new("/b")));
    }

    #[test]
    fn a_root_has_one_run_directory_whatever_leads_to_it_and_before_it_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let spellings = [real.join("root"), link.join("root"), real.join("../link/root"), link.join("./root/")];
        let tags = || spellings.iter().map(|root| default_run_dir(root)).collect::<std::collections::HashSet<_>>();
        let before = tags();
        std::fs::create_dir(real.join("root")).unwrap();
        assert_eq!((before.len(), &tags()), (1, &before));
    }
}
