//! Web origins for CORS: parses what an operator writes into what browsers send.

use std::fmt;
use std::str::FromStr;

use axum::http::HeaderValue;

/// A web origin whose pages may call the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `*`: every origin.
    Any,
    /// One origin in the form that browsers send: lower case, without the scheme's default port, and without a path.
    One(String),
}

impl Origin {
    /// The value of the `Origin` header for it; `None` for every origin.
    pub fn header(&self) -> Option<HeaderValue> {
        match self {
            Self::Any => None,
            Self::One(origin) => HeaderValue::from_str(origin).ok(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str(match self {
            Self::Any => "*",
            Self::One(origin) => origin,
        })
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let wrong =
            || format!("expected an origin like https://example.org or http://localhost:3000, or *, found {text}");
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let host = rest.strip_suffix('/').unwrap_or(rest);
        let scheme = scheme.to_ascii_lowercase();
        let valid = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(valid) {
            return Err(wrong());
        }
        // Browsers send international host names in ASCII form, so others are refused.
        if host.is_empty() || host.contains(|c: char| "/?#@*".contains(c) || !c.is_ascii_graphic()) {
            return Err(wrong());
        }
        let own_port = match scheme.as_str() {
            "http" => ":80",
            "https" => ":443",
            _ => "",
        };
        let host = host.to_ascii_lowercase();
        let host = if own_port.is_empty() { &host } else { host.strip_suffix(own_port).unwrap_or(&host) };
        Ok(Self::One(format!("{scheme}://{host}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_origin_are_equal() {
        for text in ["https://a.example", "https://a.example/", "HTTPS://A.Example", "https://a.example:443/"] {
            assert_eq!(text.parse(), Ok(Origin::One("https://a.example".into())), "{text}");
        }
        let kept = ["http://localhost:3000", "http://[::1]:8080", "chrome-extension://abcdef", "http://a.example:443"];
        for text in kept {
            assert_eq!(text.parse(), Ok(Origin::One(text.into())));
        }
        assert_eq!("*".parse(), Ok(Origin::Any));
    }

    #[test]
    fn what_is_not_an_origin_is_refused() {
        for text in ["", "a.example", "https://", "https://a.example/page", "https://*.example", "https://ä.example"] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
