//! [`HostPolicy`]: the names under which a server without a key answers.
//!
//! A web page can give its own host name the address of this server (DNS rebinding).  The browser then takes the server for
//! the page's own origin: the page may read and write everything.  Such requests carry the page's name in `Host`, so a server
//! without a key answers only under names that a page cannot have.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Top-level names that are never in the public DNS (RFC 6761, RFC 6762, ICANN 2024).
const PRIVATE_SUFFIXES: [&str; 3] = [".local", ".internal", ".localhost"];

/// A host name that the operator allows, or `*` for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost(String);

impl FromStr for AllowedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = name_of(text).filter(|name| *text == *"*" || !name.contains('*'));
        let wrong = || format!("expected a host name like images.example.org, or *, found {text}");
        name.map(Self).ok_or_else(wrong)
    }
}

/// Decides under which names a server without a key answers.
#[derive(Debug, Clone, Default)]
pub struct HostPolicy {
    beyond_loopback: bool,
    any: bool,
    names: Vec<String>,
}

impl HostPolicy {
    /// The policy of a server that listens on `listen` (HOST:PORT).
    pub fn new(listen: &str, allowed: &[AllowedHost]) -> Self {
        let allowed_names = allowed.iter().map(|AllowedHost(name)| name.clone());
        let names = name_of(listen).into_iter().chain(allowed_names).collect();
        Self { beyond_loopback: !is_loopback(listen), any: allowed.iter().any(|a| a.0 == "*"), names }
    }

    /// Whether the listener can be reached from other machines.
    pub fn beyond_loopback(&self) -> bool {
        self.beyond_loopback
    }

    /// The names that are allowed beside those of the loopback interface.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether a request with this `Host` may be answered.
    ///
    /// A listener on the loopback interface answers to its names and addresses.  One beyond it also answers to every
    /// address and to names that are not in the public DNS: a page cannot be loaded from another server under those.
    pub fn allows(&self, host: &str) -> bool {
        if self.any {
            return true;
        }
        let Some(name) = name_of(host) else { return false };
        let address = name.parse::<IpAddr>().ok();
        if name == "localhost" || address.is_some_and(|a| a.is_loopback()) || self.names.contains(&name) {
            return true;
        }
        let private = !name.contains('.') || PRIVATE_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
        self.beyond_loopback && (address.is_some() || private)
    }
}

/// Whether an address HOST:PORT can be reached from this machine only.
pub fn is_loopback(listen: &str) -> bool {
    name_of(listen).is_some_and(|n| n == "localhost" || n.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
}

/// The name or address in HOST or HOST:PORT, in lower case, without the brackets of IPv6; `None` if it is neither.
fn name_of(host: &str) -> Option<String> {
    let port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let whole = rest.is_empty() || rest.strip_prefix(':').is_some_and(port);
        return address.parse::<Ipv6Addr>().ok().filter(|_| whole).map(|a| a.to_string());
    }
    let name = match host.split_once(':') {
        Some((name, rest)) => Some(name).filter(|_| port(rest))?,
        None => host,
    };
    // A trailing dot makes a name absolute; it is the same name.
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.*".contains(c);
    (!name.is_empty() && name.chars().all(valid)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_are_recognised() {
        for listen in ["127.0.0.1:80", "[::1]:80", "localhost:80", "127.9.9.9:0"] {
            assert!(is_loopback(listen), "{listen}");
        }
        for listen in ["0.0.0.0:80", "[::]:80", "192.168.0.2:80", "example.org:80"] {
            assert!(!is_loopback(listen), "{listen}");
        }
    }

    #[test]
    fn a_loopback_listener_answers_to_its_own_names_only() {
        let policy = HostPolicy::new("127.0.0.1:8080", &["Images.example.org".parse().unwrap()]);
        let own = ["localhost", "LOCALHOST:9", "localhost.", "127.0.0.1:8080", "127.8.8.8", "[::1]:8080", "[::1]"];
        let allowed = ["images.example.org", "images.EXAMPLE.org:443", "images.example.org."];
        for host in own.into_iter().chain(allowed) {
            assert!(policy.allows(host), "{host}");
        }
        let foreign = [
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "a.images.example.org",
            "10.0.0.1",
            "0.0.0.0:8080",
            "macrl",
            "",
            ":8080",
            "user@127.0.0.1",
            "127.0.0.1/x",
            "127.0.0.1:80:80",
            "[::1",
            "[::1]x",
            "::1",
        ];
        for host in foreign {
            assert!(!policy.allows(host), "{host}");
        }
        assert!(HostPolicy::new("127.0.0.1:80", &["*".parse().unwrap()]).allows("evil.example"));
        assert!(!HostPolicy::default().allows("evil.example") && HostPolicy::default().allows("127.0.0.1"));
    }

    #[test]
    fn a_listener_beyond_loopback_answers_to_names_that_a_page_cannot_have() {
        let policy = HostPolicy::new("0.0.0.0:8080", &[]);
        let own = [
            "localhost",
            "10.1.2.3:8080",
            "[fd00::1]:8080",
            "macrl",
            "macrl:8080",
            "a.svc.cluster.local",
            "a.internal",
        ];
        assert!(own.iter().all(|host| policy.allows(host)));
        assert!(!policy.allows("evil.example") && !policy.allows("10.1.2.3.evil.example"));
        assert!(HostPolicy::new("images.example.org:80", &[]).allows("images.example.org"));
    }

    #[test]
    fn what_is_not_a_host_name_is_refused() {
        for text in ["", "https://a.example", "a.example/x", "*.example", "a b", "ä.example", "a@b"] {
            assert!(text.parse::<AllowedHost>().is_err(), "{text}");
        }
    }
}
