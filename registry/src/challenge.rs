//! `WWW-Authenticate`: which authentication a registry wants.

/// Parameters of one challenge that are looked at; more are ignored.
const MAX_PARAMETERS: usize = 32;

/// One challenge: a scheme in lower case, and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// All challenges of one header value (RFC 9110, 11.6.1). What cannot be parsed ends the list.
    pub(crate) fn parse(header: &str) -> Vec<Self> {
        let mut challenges: Vec<Self> = Vec::new();
        let mut rest = header;
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let (word, after) = token(rest);
            if word.is_empty() {
                return challenges;
            }
            let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
            match (value, challenges.last_mut()) {
                (Some(value), Some(challenge)) => {
                    let Some((value, after)) = parameter_value(value.trim_start_matches([' ', '\t'])) else {
                        return challenges;
                    };
                    if challenge.parameters.len() < MAX_PARAMETERS {
                        challenge.parameters.push((word.to_ascii_lowercase(), value));
                    }
                    rest = after;
                }
                (Some(_), None) => return challenges,
                (None, _) => {
                    challenges.push(Self { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                    rest = after;
                }
            }
        }
    }

    /// A parameter's value, by its name in lower case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)));
    text.split_at(end.unwrap_or(text.len()))
}

fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_split_and_unquoted() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let parsed = Challenge::parse(hub);
        assert_eq!(parsed.len(), 1);
        assert_eq!(parsed[0].scheme, "bearer");
        assert_eq!(parsed[0].get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(parsed[0].get("scope"), Some("repository:a/b:pull,push"));
        let two = Challenge::parse(r#"BASIC realm="a \"b\", c", Bearer realm=x , service = "y""#);
        assert_eq!(two.len(), 2);
        assert_eq!((two[0].scheme.as_str(), two[0].get("realm")), ("basic", Some("a \"b\", c")));
        assert_eq!((two[1].get("realm"), two[1].get("service")), (Some("x"), Some("y")));
    }

    #[test]
    fn malformed_challenges_end_the_list_without_panic() {
        for text in ["", ",,,", "=", "a=b", "Bearer realm=\"", "Bearer realm=\"\\", "Bearer =", "é", "Bearer é=\"x\""]
        {
            for challenge in Challenge::parse(text) {
                assert!(challenge.get("realm").is_none(), "{text}");
            }
        }
    }
}
