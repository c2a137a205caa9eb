//! `events`: what happened, and what happens.

use std::cell::Cell;

use futures_util::StreamExt;
use runtime_core::{Event, EventKind, EventsOptions};
use serde_json::{Value, json};

use crate::cli::EventsArgs;
use crate::failure::{Failure, Result};
use crate::flag_values as values;
use crate::format::Template;
use crate::output;
use crate::session::Session;

/// What docker calls some kinds.
const DOCKERS: [(&str, EventKind); 3] =
    [("die", EventKind::Exit), ("destroy", EventKind::Remove), ("health_status", EventKind::Health)];

/// `berth events`
pub async fn events(session: &Session, args: &EventsArgs) -> Result<i32> {
    let now = chrono::Utc::now();
    let time = |flag, text: &Option<String>| text.as_deref().map(|text| values::time(flag, text, now)).transpose();
    let (since, until) = (time("--since", &args.since)?, time("--until", &args.until)?);
    let template = args.format.as_deref().map(Template::parse).transpose()?;
    let filters = args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>>>()?;
    let follow = args.follow && until.is_none_or(|until| until > now);
    let options = EventsOptions { after: None, since, follow };
    let last = Cell::new(None);
    let show = |event: Event| {
        last.set(Some(event.number));
        if until.is_some_and(|until| event.time >= until) || !Filter::all_hold(&filters, &event) {
            return Ok(());
        }
        match &template {
            _ if session.json => output::print_json_line(&event),
            Some(template) => output::print_line(&template.render(&json!(event), |path| dockers(&event, path))?),
            None => output::print_line(&line(&event)),
        }
    };
    let mut told = std::pin::pin!(session.runtime.events(&options).map(|event| show(event?)));
    let Some(until) = until.filter(|_| follow) else {
        while let Some(shown) = told.next().await {
            shown?;
        }
        return Ok(0);
    };
    let mut end = std::pin::pin!(tokio::time::sleep((until - now).to_std().unwrap_or_default().min(values::FOREVER)));
    loop {
        tokio::select! {
            shown = told.next() => match shown {
                Some(shown) => shown?,
                None => return Ok(0),
            },
            () = &mut end => break,
        }
    }
    // What was put down until then, and is not read yet.
    let options = EventsOptions { after: last.get(), since, follow: false };
    let mut rest = std::pin::pin!(session.runtime.events(&options).map(|event| show(event?)));
    while let Some(shown) = rest.next().await {
        shown?;
    }
    Ok(0)
}

/// A `--filter`.
#[derive(Debug, PartialEq, Eq)]
enum Filter {
    Container(String),
    Image(String),
    Volume(String),
    Kind(EventKind),
}

impl Filter {
    fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: &str| Failure::usage(format!("--filter {text:?}: {reason}"));
        let (key, value) = text.split_once('=').ok_or_else(|| wrong("write KEY=VALUE"))?;
        Ok(match key {
            "container" => Self::Container(value.to_owned()),
            "image" => Self::Image(value.to_owned()),
            "volume" => Self::Volume(value.to_owned()),
            "event" => Self::Kind(kind(value).ok_or_else(|| wrong(&format!("an event is one of {}", words())))?),
            _ => return Err(wrong("a key is one of container, image, volume and event")),
        })
    }

    /// Of several filters of one key one must hold.
    fn all_hold(filters: &[Self], event: &Event) -> bool {
        let same = |a: &Self, b: &Self| std::mem::discriminant(a) == std::mem::discriminant(b);
        filters.iter().all(|filter| filters.iter().any(|other| same(filter, other) && other.holds(event)))
    }

    fn holds(&self, event: &Event) -> bool {
        match self {
            // `web` is its replica 0, as everywhere.
            Self::Container(name) => event.container.as_ref().is_some_and(|id| {
                id == name || name.parse::<runtime_core::ContainerId>().is_ok_and(|named| named.to_string() == *id)
            }),
            Self::Image(name) => event.image.as_ref() == Some(name),
            Self::Volume(name) => event.volume.as_ref() == Some(name),
            Self::Kind(kind) => event.kind == *kind,
        }
    }
}

/// The kind of that name, or of docker's name for it.
fn kind(word: &str) -> Option<EventKind> {
    let dockers = DOCKERS.into_iter().find(|(known, _)| *known == word).map(|(_, kind)| kind);
    dockers.or_else(|| EventKind::ALL.into_iter().find(|kind| json!(kind) == word))
}

/// All that [`kind`] knows.
fn words() -> String {
    let own = EventKind::ALL.iter().filter_map(|kind| Some(json!(kind).as_str()?.to_owned()));
    own.chain(DOCKERS.iter().map(|(word, _)| (*word).to_owned())).collect::<Vec<_>>().join(", ")
}

/// The time, what it happened to, what, and in brackets what else is known, as docker shows them.
fn line(event: &Event) -> String {
    let (what, name) = subject(event);
    let more = [
        event.image.as_ref().filter(|_| what != "image").map(|image| format!("image={image}")),
        event.attempt.map(|attempt| format!("attempt={attempt}")),
        event.exit_code.map(|code| format!("exitCode={code}")),
        event.detail.clone(),
    ];
    let more = more.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let more = if more.is_empty() { more } else { format!(" ({more})") };
    let time = event.time.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
    let kind = json!(event.kind);
    let text = format!("{time} {what} {} {name}{more}", kind.as_str().unwrap_or_default());
    text.replace(char::is_control, " ")
}

/// What sort of thing it happened to, and which.
fn subject(event: &Event) -> (&'static str, &str) {
    match (&event.container, &event.image, &event.volume) {
        (Some(id), ..) => ("container", id),
        (_, _, Some(volume)) => ("volume", volume),
        (_, Some(image), _) => ("image", image),
        _ => ("root", ""),
    }
}

/// Docker's names, for a template.
fn dockers(event: &Event, path: &[String]) -> Option<Value> {
    let (what, name) = subject(event);
    Some(match path.join(".").as_str() {
        "Type" => what.into(),
        "Action" | "Status" => json!(event.kind),
        "ID" | "Actor.ID" => name.into(),
        "From" => json!(event.image),
        "Time" => event.time.timestamp().into(),
        "TimeNano" => json!(event.time.timestamp_nanos_opt()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_named_by_berths_word_or_dockers_and_no_other() {
        for (text, kind) in [
            ("event=exit", EventKind::Exit),
            ("event=die", EventKind::Exit),
            ("event=destroy", EventKind::Remove),
            ("event=health_status", EventKind::Health),
            ("event=oom", EventKind::Oom),
        ] {
            assert_eq!(Filter::parse(text).unwrap(), Filter::Kind(kind), "{text}");
        }
        for bad in ["event=bogus", "event=", "event=other", "event=Exit", "color=red", "event"] {
            assert_eq!(Filter::parse(bad).unwrap_err().code(), "usage", "{bad}");
        }
    }
}
