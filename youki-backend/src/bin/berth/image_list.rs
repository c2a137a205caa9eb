//! `images`.

use chrono::{DateTime, Utc};
use registry::{Reference, StoredImage};
use serde_json::{Value, json};

use crate::cli::ImagesArgs;
use crate::failure::{Failure, Result};
use crate::format::Template;
use crate::output::{self, Table, decimal_size};
use crate::progress;
use crate::session::Session;

/// In the place of what an image has not, as docker's.
const NONE: &str = "<none>";
/// What docker leaves out of a name, the longest first.
const LEFT_OUT: [&str; 2] = ["docker.io/library/", "docker.io/"];

/// `berth images`
pub async fn images(session: &Session, args: &ImagesArgs) -> Result<i32> {
    let filters = args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>>>()?;
    let template = args.format.as_deref().map(Template::parse).transpose()?;
    let mut images = session.runtime.images().list().await?;
    if let Some(wanted) = &args.repository {
        Reference::parse(wanted)?;
        images.retain(|image| Reference::parse(&image.reference).is_ok_and(|reference| reference.is_meant_by(wanted)));
    }
    images.retain(|image| Filter::all_hold(&filters, image));
    if session.json {
        output::print_json(&images)?;
        return Ok(0);
    }
    let rows: Vec<Row> = images.iter().map(|image| Row::of(image, args.no_trunc)).collect();
    if args.quiet {
        let mut ids: Vec<String> = rows.into_iter().map(|row| row.id).collect();
        ids.dedup();
        output::print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>())?;
        return Ok(0);
    }
    if let Some(template) = template {
        let now = Utc::now();
        let lines = images
            .iter()
            .zip(&rows)
            .map(|(image, row)| template.render(&json!(image), |path| row.dockers(image, path, now)));
        output::print(&output::lines(template.is_table.then(|| template.headings()), lines)?)?;
        return Ok(0);
    }
    let mut table = Table::new(["REPOSITORY", "TAG", "IMAGE ID", "DIGEST", "SIZE", "UNIQUE", "SHARED"]);
    for (row, image) in rows.into_iter().zip(&images) {
        table.row([
            row.repository,
            row.tag,
            row.id,
            image.digest.clone(),
            decimal_size(image.size_bytes),
            decimal_size(image.unique_bytes),
            decimal_size(image.shared_bytes),
        ]);
    }
    output::print(&table.render())?;
    Ok(0)
}

/// What of a line is not as the store has it.
struct Row {
    repository: String,
    tag: String,
    id: String,
}

impl Row {
    fn of(image: &StoredImage, whole: bool) -> Self {
        let (repository, tag) = match Reference::parse(&image.reference) {
            Ok(name) => {
                // One pulled by digest has no tag here, whatever was written before the digest.
                let tag = name.tag().filter(|_| name.digest().is_none());
                (format!("{}/{}", name.registry(), name.repository()), tag.map(str::to_owned))
            }
            // It was loaded without a name.
            Err(_) => (NONE.to_owned(), None),
        };
        let tag = tag.unwrap_or_else(|| NONE.to_owned());
        Self { repository, tag, id: if whole { image.id.clone() } else { progress::short(&image.id) } }
    }

    /// Docker's names, for a template.
    fn dockers(&self, image: &StoredImage, path: &[String], now: DateTime<Utc>) -> Option<Value> {
        let created = || image.created.as_ref().and_then(|text| DateTime::parse_from_rfc3339(text).ok());
        Some(match path.join(".").as_str() {
            "Repository" => self.repository.as_str().into(),
            "Tag" => self.tag.as_str().into(),
            "ID" => self.id.as_str().into(),
            "Digest" => image.digest.as_str().into(),
            "Size" | "VirtualSize" => decimal_size(image.size_bytes).into(),
            "UniqueSize" => decimal_size(image.unique_bytes).into(),
            "SharedSize" => decimal_size(image.shared_bytes).into(),
            "CreatedAt" => json!(created().map(|time| output::time(time.to_utc()))),
            "CreatedSince" => match created() {
                Some(time) => format!("{} ago", output::age(time.to_utc(), now)).into(),
                None => "N/A".into(),
            },
            _ => return None,
        })
    }
}

/// A `--filter`.
enum Filter {
    /// A name in any spelling, or docker's pattern of one.
    Reference(String),
    /// Without a tag, or with one.
    Dangling(bool),
}

impl Filter {
    fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: &str| Failure::usage(format!("--filter {text:?}: {reason}"));
        match text.split_once('=') {
            Some(("reference", pattern)) => Ok(Self::Reference(pattern.to_owned())),
            Some(("dangling", "true" | "1")) => Ok(Self::Dangling(true)),
            Some(("dangling", "false" | "0")) => Ok(Self::Dangling(false)),
            Some(("dangling", _)) => Err(wrong("write true or false")),
            Some(("label" | "before" | "since" | "until", _)) => Err(Failure::unsupported(format!("--filter {text}"))),
            Some(_) => Err(wrong("a key is one of reference and dangling")),
            None => Err(wrong("write KEY=VALUE")),
        }
    }

    /// Of several filters of one key one must hold.
    fn all_hold(filters: &[Self], image: &StoredImage) -> bool {
        let same = |a: &Self, b: &Self| std::mem::discriminant(a) == std::mem::discriminant(b);
        filters.iter().all(|filter| filters.iter().any(|other| same(filter, other) && other.holds(image)))
    }

    fn holds(&self, image: &StoredImage) -> bool {
        let name = Reference::parse(&image.reference).ok();
        match self {
            Self::Reference(pattern) => name.is_some_and(|name| is_of(&name, pattern)),
            Self::Dangling(dangling) => *dangling == name.is_none_or(|name| name.tag().is_none()),
        }
    }
}

/// Whether `pattern` is of `name` as it is stored, or as docker shortens it, each also without its tag.
fn is_of(name: &Reference, pattern: &str) -> bool {
    let repository = format!("{}/{}", name.registry(), name.repository());
    let whole = name.to_string();
    let spellings = [repository.as_str(), whole.as_str()];
    let short = spellings.iter().flat_map(|text| LEFT_OUT.iter().filter_map(|prefix| text.strip_prefix(prefix)));
    name.is_meant_by(pattern)
        || spellings.iter().copied().chain(short).any(|text| fits(pattern.as_bytes(), text.as_bytes()))
}

/// Whether `pattern` is all of `text`: `*` stands for any letters of one part of a path, `?` for one.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    // Where the last star is, and how much of the text it stands for: it alone need be tried again.
    let (mut at, mut read, mut star) = (0, 0, None);
    while read < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(letter) if *letter == text[read] || (*letter == b'?' && text[read] != b'/') => {
                at += 1;
                read += 1;
            }
            _ => match star {
                Some((place, taken)) if text[taken] != b'/' => {
                    star = Some((place, taken + 1));
                    (at, read) = (place + 1, taken + 1);
                }
                _ => return false,
            },
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_of_a_name_in_any_of_its_spellings() {
        let stored = Reference::parse("docker.io/library/busybox:1.36").unwrap();
        for pattern in ["busybox", "busybox:1.36", "busy*", "*:1.*", "busybox:1.3?", "docker.io/*/busy*", "library/b*x"]
        {
            assert!(is_of(&stored, pattern), "{pattern}");
        }
        for pattern in ["busybox:latest", "busy", "*/busybox", "docker.io/*", "busybox?1.36?", "", "?"] {
            assert_eq!(is_of(&stored, pattern), pattern == "*/busybox", "{pattern}");
        }
    }
}
