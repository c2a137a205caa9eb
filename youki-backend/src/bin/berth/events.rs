//! `events`: what happened, and what happens.

use futures_util::StreamExt;
use runtime_core::{Event, EventsOptions};
use serde_json::json;

use crate::cli::EventsArgs;
use crate::failure::{Failure, Result};
use crate::flag_values as values;
use crate::output;
use crate::session::Session;

/// `berth events`
pub async fn events(session: &Session, args: &EventsArgs) -> Result<i32> {
    let since = args.since.as_deref().map(|text| values::time("--since", text, chrono::Utc::now())).transpose()?;
    let filters = args.filter.iter().map(|text| filter(text)).collect::<Result<Vec<_>>>()?;
    let options = EventsOptions { after: None, since, follow: args.follow };
    let mut events = std::pin::pin!(session.runtime.events(&options));
    while let Some(event) = events.next().await {
        let event = event?;
        // One of each key must hold.
        let holds = |key: &str| filters.iter().any(|(known, value)| *known == key && fits(&event, key, value));
        if !filters.iter().all(|(key, _)| holds(key)) {
            continue;
        }
        if session.json {
            output::print_json_line(&event)?;
        } else {
            output::print_line(&line(&event))?;
        }
    }
    Ok(0)
}

fn filter(text: &str) -> Result<(&'static str, String)> {
    let known = |key: &str| ["container", "image", "volume", "event"].into_iter().find(|known| *known == key);
    text.split_once('=')
        .and_then(|(key, value)| Some((known(key)?, value.to_owned())))
        .ok_or_else(|| Failure::usage(format!("--filter {text:?}: write container=, image=, volume= or event=")))
}

fn fits(event: &Event, key: &str, value: &str) -> bool {
    match key {
        // `web` is its replica 0, as everywhere.
        "container" => event.container.as_ref().is_some_and(|id| {
            id == value || value.parse::<runtime_core::ContainerId>().is_ok_and(|named| named.to_string() == *id)
        }),
        "image" => event.image.as_deref() == Some(value),
        "volume" => event.volume.as_deref() == Some(value),
        _ => json!(event.kind) == value,
    }
}

/// The time, what it happened to, what, and in brackets what else is known, as docker shows them.
fn line(event: &Event) -> String {
    let (what, name) = match (&event.container, &event.image, &event.volume) {
        (Some(id), ..) => ("container", id.as_str()),
        (_, _, Some(volume)) => ("volume", volume.as_str()),
        (_, Some(image), _) => ("image", image.as_str()),
        _ => ("root", ""),
    };
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
