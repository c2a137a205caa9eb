//! What requests carry to be let in: credentials as a registry's challenge wants them, or a token for them.

use reqwest::Response;
use reqwest::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use runtime_core::Secret;
use serde::Deserialize;
use url::Url;

use super::Endpoint;
use crate::challenge::Challenge;
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::limits::MAX_TOKEN_BYTES;

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Endpoint<'_> {
    /// Answers a 401: sets what further requests carry.
    pub(super) async fn authenticate(&self, response: &Response) -> Result<()> {
        let refused = |reason: &str| Error::Unauthorized {
            registry: self.registry().to_owned(),
            what: self.reference.repository().to_owned(),
            reason: reason.to_owned(),
        };
        let challenges: Vec<Challenge> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(Challenge::parse)
            .collect();
        let find = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let value = if let Some(challenge) = find("bearer") {
            if matches!(self.credentials, Credentials::Bearer(_)) {
                return Err(refused("it does not accept the token"));
            }
            self.token(challenge).await?
        } else if find("basic").is_some() {
            match &self.credentials {
                Credentials::Basic { username, password } => {
                    basic(username, password.expose()).ok_or_else(|| refused("user name or password are not usable"))?
                }
                Credentials::Anonymous => return Err(refused("it wants a user name and a password")),
                _ => return Err(refused("it wants a user name and a password, not a token")),
            }
        } else {
            return Err(refused("it offers neither Basic nor Bearer authentication"));
        };
        *self.authorization.write().await = Some(value);
        Ok(())
    }

    /// Fetches a token from the place that the registry names.
    async fn token(&self, challenge: &Challenge) -> Result<HeaderValue> {
        let refused = |reason: String| Error::Unauthorized {
            registry: self.registry().to_owned(),
            what: self.reference.repository().to_owned(),
            reason,
        };
        let realm = challenge.get("realm").unwrap_or_default();
        let mut url =
            Url::parse(realm).map_err(|_| refused(format!("its token service {realm:.200?} is no address")))?;
        let actions = if self.pushes { "pull,push" } else { "pull" };
        let own = format!("repository:{}:{actions}", self.reference.repository());
        // A push has one token for all, whichever request it is that was challenged.
        let scope = challenge.get("scope").filter(|_| !self.pushes).unwrap_or(&own);
        let client = self.client_for(&url)?;
        let request = match &self.credentials {
            Credentials::Identity(token) => {
                let service = challenge.get("service").unwrap_or_default();
                let form = url::form_urlencoded::Serializer::new(String::new())
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("client_id", "berth")
                    .append_pair("service", service)
                    .append_pair("scope", scope)
                    .append_pair("refresh_token", token.expose())
                    .finish();
                client.post(url.clone()).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
            }
            credentials => {
                if let Some(service) = challenge.get("service") {
                    url.query_pairs_mut().append_pair("service", service);
                }
                url.query_pairs_mut().append_pair("scope", scope);
                let request = client.get(url.clone());
                match credentials {
                    Credentials::Basic { username, password } => request.basic_auth(username, Some(password.expose())),
                    _ => request,
                }
            }
        };
        let response = self.in_time(request.send()).await?;
        if !response.status().is_success() {
            return Err(refused(format!("its token service answered {}", response.status())));
        }
        let body = zeroize::Zeroizing::new(self.read_whole(response, "the token", MAX_TOKEN_BYTES).await?);
        let answer: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| refused("its token service gave no token".into()))?;
        let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).map(Secret::new);
        token
            .and_then(|token| bearer(token.expose()))
            .ok_or_else(|| refused("its token service gave no usable token".into()))
    }
}

pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    use base64::Engine as _;
    let pair = zeroize::Zeroizing::new(format!("{username}:{password}"));
    sensitive(&format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair.as_bytes())))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
