//! `--mount`, in docker's grammar: `type=bind|volume|tmpfs,source=…,target=…,readonly,…`.

use std::path::Path;

use runtime_core::spec::{ByteSize, StorageSpec};

use crate::failure::{Failure, Result};
use crate::flag_values::{host_path, memory};

/// What one `--mount` asks for.
pub fn mount(text: &str, cwd: Option<&Path>) -> Result<StorageSpec> {
    let fields = Fields::read(text)?;
    let wrong = |reason: &str| wrong(text, reason);
    let target = fields.target.clone().ok_or_else(|| wrong("target= is missing"))?;
    if !target.starts_with('/') {
        return Err(wrong("the path in the container is not absolute"));
    }
    let in_memory = fields.size.is_some() || fields.mode.is_some();
    match (fields.kind.as_deref().unwrap_or("volume"), fields.source.as_deref()) {
        ("bind" | "volume", _) if in_memory => Err(wrong("tmpfs-size and tmpfs-mode are of type=tmpfs")),
        ("bind", Some(source)) => {
            let source = host_path("--mount", text, source, cwd)?;
            Ok(StorageSpec::Bind { source, target, readonly: fields.readonly })
        }
        ("bind", None) => Err(wrong("source= is missing")),
        ("volume", Some(name)) if name.contains('/') => Err(wrong("a volume has a name: a path is of type=bind")),
        ("volume", Some(name)) => Ok(StorageSpec::Named {
            name: name.to_owned(),
            target,
            readonly: fields.readonly,
            tier: None,
            size: None,
            take_over: false,
        }),
        ("volume", None) if !fields.readonly => Ok(StorageSpec::Anonymous { target }),
        ("tmpfs", Some(_)) => Err(wrong("a tmpfs has no source")),
        ("tmpfs", None) if !fields.readonly => Ok(StorageSpec::Tmpfs { target, size: fields.size, mode: fields.mode }),
        ("volume" | "tmpfs", None) => Err(Failure::unsupported(format!("--mount {text}: readonly, and nothing in it"))),
        ("npipe" | "cluster" | "image", _) => Err(Failure::unsupported(format!("--mount {text}"))),
        _ => Err(wrong("a type is bind, volume or tmpfs")),
    }
}

#[derive(Default)]
struct Fields {
    kind: Option<String>,
    source: Option<String>,
    target: Option<String>,
    readonly: bool,
    size: Option<ByteSize>,
    mode: Option<u32>,
}

impl Fields {
    fn read(text: &str) -> Result<Self> {
        let mut fields = Self::default();
        for field in split(text).ok_or_else(|| wrong(text, "a quotation mark does not end"))? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (field.as_str(), None),
            };
            match (key, value) {
                ("type", Some(value)) => fields.kind = Some(value.to_owned()),
                ("source" | "src", Some(value)) if !value.is_empty() => fields.source = Some(value.to_owned()),
                ("target" | "dst" | "destination", Some(value)) => fields.target = Some(value.to_owned()),
                ("readonly" | "ro", None | Some("true" | "1")) => fields.readonly = true,
                ("readonly" | "ro", Some("false" | "0")) => fields.readonly = false,
                ("tmpfs-size", Some(value)) => fields.size = Some(memory("--mount", value)?),
                ("tmpfs-mode", Some(value)) => {
                    let octal = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                    fields.mode = Some(octal.ok_or_else(|| wrong(text, "the mode is not an octal number up to 7777"))?);
                }
                // Of no meaning on Linux.
                ("consistency", Some(_)) => {}
                // What it is in any case.
                ("bind-propagation", Some("rprivate" | "private")) | ("volume-driver", Some("local")) => {}
                ("bind-propagation" | "bind-recursive" | "bind-nonrecursive" | "bind-create-src", _)
                | ("volume-driver" | "volume-opt" | "volume-label" | "volume-nocopy" | "volume-subpath", _) => {
                    return Err(Failure::unsupported(format!("--mount {text}: {key}")));
                }
                _ => return Err(wrong(text, &format!("{field:?} is no field of a mount"))),
            }
        }
        Ok(fields)
    }
}

fn wrong(text: &str, reason: &str) -> Failure {
    Failure::usage(format!("--mount {text:?}: {reason}"))
}

/// The fields of one CSV record (RFC 4180), as docker reads it: one that holds a comma is written in quotation marks.
/// `None` if such a mark does not end.
fn split(text: &str) -> Option<Vec<String>> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => field.extend(letters.next()),
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            _ => field.push(letter),
        }
    }
    fields.push(field);
    (!quoted).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_written_as_dockers() {
        let of = |text: &str| mount(text, Some(Path::new("/cwd")));
        let bind = |source: &str, readonly| StorageSpec::Bind { source: source.into(), target: "/t".into(), readonly };
        assert_eq!(of("type=bind,source=/a,target=/t").unwrap(), bind("/a", false));
        assert_eq!(of("type=bind,src=/a,dst=/t,readonly").unwrap(), bind("/a", true));
        assert_eq!(of("destination=/t,type=bind,src=./a,ro=true,consistency=cached").unwrap(), bind("/cwd/./a", true));
        assert_eq!(of("type=bind,src=/a,dst=/t,ro=false,bind-propagation=rprivate").unwrap(), bind("/a", false));
        assert_eq!(of(r#"type=bind,"source=/a,""b",target=/t"#).unwrap(), bind("/a,\"b", false));
        let named = of("source=data,target=/t,readonly").unwrap();
        assert!(matches!(named, StorageSpec::Named { name, readonly: true, .. } if name == "data"));
        assert_eq!(of("type=volume,target=/t").unwrap(), StorageSpec::Anonymous { target: "/t".into() });
        let memory = StorageSpec::Tmpfs { target: "/t".into(), size: Some(ByteSize::new(1 << 20)), mode: Some(0o700) };
        assert_eq!(of("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700").unwrap(), memory);
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        for (text, code) in [
            ("", "usage"),
            (r#"type=bind,"source=/a,target=/t"#, "usage"),
            ("type=bind,target=/t", "usage"),
            ("type=bind,source=/a", "usage"),
            ("type=bind,source=/a,target=t", "usage"),
            ("type=bind,source=a,target=/t", "usage"),
            ("type=bind,source=/a,target=/t,color=red", "usage"),
            ("type=bind,source=/a,target=/t,readonly=perhaps", "usage"),
            ("type=bind,source=/a,target=/t,tmpfs-size=1m", "usage"),
            ("type=volume,source=/a,target=/t", "usage"),
            ("type=tmpfs,source=/a,target=/t", "usage"),
            ("type=tmpfs,target=/t,tmpfs-mode=9", "usage"),
            ("type=floppy,target=/t", "usage"),
            ("type=tmpfs,target=/t,readonly", "unsupported"),
            ("type=volume,source=a,target=/t,volume-nocopy", "unsupported"),
            ("type=bind,source=/a,target=/t,bind-propagation=rshared", "unsupported"),
            ("type=image,source=a,target=/t", "unsupported"),
        ] {
            assert_eq!(mount(text, Some(Path::new("/"))).unwrap_err().code(), code, "{text}");
        }
    }
}
