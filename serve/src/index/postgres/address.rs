//! `postgres://…`: where the database is, how connections to it are secured, and how many there may be.
//!
//! The form is libpq's, so the address that a hosting provider gives can be pasted, including several hosts and
//! `target_session_attrs`.  `sslmode` and `sslrootcert` mean what they mean to libpq; `pool_size` is ours.
//! A password that is not in the address comes from `PGPASSWORD`; neither is ever shown.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// Connections of one process, unless the address says otherwise.
const CONNECTIONS: usize = 8;
/// Time to connect, unless the address says otherwise: a host may neither accept nor refuse.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that disappeared without closing its connection is noticed after this time.
const PEER_TIMEOUT: Duration = Duration::from_secs(15);

/// Which certificates of the server are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    /// Any certificate: the connection is encrypted, but the server is not identified.
    Any,
    /// One made for the host by an authority that browsers trust.
    PublicAuthorities,
    /// One made for the host by an authority in this PEM file.
    File(PathBuf),
}

/// A parsed `postgres://…` address.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    pub(super) config: Config,
    pub(super) trust: Trust,
    pub(super) connections: usize,
    shown: String,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Parameters of an address that are not left to the driver.
#[derive(Default)]
struct Parameters {
    sslmode: Option<String>,
    sslrootcert: Option<PathBuf>,
    connections: Option<usize>,
    /// Parameters that are passed on to the driver.
    rest: Vec<String>,
}

impl FromStr for Address {
    type Err = String;

    /// Error messages never repeat the address: a mistyped one may have the password anywhere.
    fn from_str(text: &str) -> Result<Self, String> {
        // As in the driver, everything before the first @ is user and password, whatever characters it has.
        let (user, rest) = text.split_at(text.find('@').unwrap_or(0));
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let base = format!("{user}{place}");
        let parameters = Parameters::read(query)?;
        let rest = parameters.rest.join("&");
        let mut config = Config::from_str(&format!("{base}?{rest}")).map_err(|e| driver_error(&e))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(expected("no host"));
        }
        let invalid = |host: &Host| matches!(host, Host::Tcp(name) if name.contains(['@', ':', ' ']));
        if config.get_hosts().iter().any(invalid) {
            return Err(expected("a host with characters that no host name has: write @ in a name or password as %40"));
        }
        let (mode, trust) = tls_mode(parameters.sslmode.as_deref(), parameters.sslrootcert)?;
        config.ssl_mode(mode);
        set_defaults(&mut config);
        let shown = without_secrets(&config);
        Ok(Self { config, trust, connections: parameters.connections.unwrap_or(CONNECTIONS), shown })
    }
}

impl Parameters {
    fn read(query: &str) -> Result<Self, String> {
        let mut parameters = Self::default();
        for parameter in query.split('&').filter(|p| !p.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslmode", mode)) => parameters.sslmode = Some(mode.into()),
                Some(("sslrootcert", path)) => parameters.sslrootcert = Some(path.into()),
                Some(("pool_size", count)) => {
                    let count = count.parse().ok().filter(|count| (1..=1000).contains(count));
                    parameters.connections = Some(count.ok_or("`pool_size` must be in 1..=1000")?);
                }
                _ => parameters.rest.push(parameter.into()),
            }
        }
        Ok(parameters)
    }
}

/// libpq's `sslmode`.  As there, `require` verifies the certificate if `sslrootcert` is given.
fn tls_mode(mode: Option<&str>, root: Option<PathBuf>) -> Result<(SslMode, Trust), String> {
    let root = root.map(|path| if path.as_os_str() == "system" { Trust::PublicAuthorities } else { Trust::File(path) });
    Ok(match mode {
        Some("disable") => (SslMode::Disable, Trust::Any),
        None | Some("allow" | "prefer") => (SslMode::Prefer, Trust::Any),
        Some("require") => (SslMode::Require, root.unwrap_or(Trust::Any)),
        // `verify-ca` is stricter than in libpq: the host name is verified, too.
        Some("verify-ca" | "verify-full") => (SslMode::Require, root.unwrap_or(Trust::PublicAuthorities)),
        Some(_) => return Err("`sslmode` must be disable, prefer, require, verify-ca or verify-full".into()),
    })
}

/// Sets what the address leaves open and where the driver's default is not suitable.
fn set_defaults(config: &mut Config) {
    if config.get_application_name().is_none() {
        config.application_name("macrl-serve");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(PEER_TIMEOUT);
    }
    config.keepalives_idle(PEER_TIMEOUT);
    if config.get_password().is_none()
        && let Ok(password) = std::env::var("PGPASSWORD")
    {
        config.password(password);
    }
}

/// Hosts and database, without user and password.
fn without_secrets(config: &Config) -> String {
    let port = |i: usize| config.get_ports().get(i).or(config.get_ports().first()).copied().unwrap_or(5432);
    let host = |(i, host): (usize, &Host)| match host {
        Host::Tcp(name) => format!("{name}:{}", port(i)),
        Host::Unix(path) => format!("{}:{}", path.display(), port(i)),
    };
    let hosts: Vec<String> = config.get_hosts().iter().enumerate().map(host).collect();
    format!("postgres://{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default())
}

fn expected(found: &str) -> String {
    format!("expected postgres://user:password@host:port/database, found {found}")
}

/// The driver's message, if it names a parameter only.
fn driver_error(error: &tokio_postgres::Error) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let known = cause.starts_with("invalid value for option") || cause.starts_with("unknown option");
    let harmless = !cause.contains(['@', ':', '/', '%']);
    if known && harmless { expected(&format!("an {cause}")) } else { expected("something else") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Address, String> {
        text.parse()
    }

    #[test]
    fn libpq_addresses_are_parsed_and_the_password_is_not_shown() {
        let address =
            parse("postgresql://ann:s3cret%40@db.example:6432/photos?sslmode=verify-full&pool_size=3").unwrap();
        assert_eq!(address.config.get_password(), Some(&b"s3cret@"[..]));
        assert_eq!((address.config.get_ssl_mode(), &address.trust), (SslMode::Require, &Trust::PublicAuthorities));
        assert_eq!(address.connections, 3);
        for shown in [address.to_string(), format!("{address:?}")] {
            assert_eq!(shown, "postgres://db.example:6432/photos");
        }
        let address = parse("postgres://ann:a?b/c@h/x?sslmode=disable").unwrap();
        assert_eq!(
            (address.config.get_password(), address.to_string()),
            (Some(&b"a?b/c"[..]), "postgres://h:5432/x".into())
        );
        let several = parse("postgres://a,b:5433/x?target_session_attrs=read-write&sslrootcert=ca.pem&sslmode=require");
        let several = several.unwrap();
        assert_eq!(several.to_string(), "postgres://a:5432,b:5433/x");
        assert_eq!(several.trust, Trust::File("ca.pem".into()));
        assert_eq!(parse("postgres:///x?host=/run/pg").unwrap().to_string(), "postgres:///run/pg:5432/x");
    }

    #[test]
    fn error_messages_do_not_repeat_the_address() {
        for (wrong, hint) in [
            ("postgres://", "found no host"),
            ("postgres://ann:s3cret@h:port/x", "`port`"),
            ("postgres://ann:s3cret@h/x?colour=red", "`colour`"),
            ("postgres://ann:s3@cret@h/x", "%40"),
            ("postgres://ann:s3cret@h/x?cret", "found something else"),
            ("postgres://ann:s3cret@h/x?s3/cret=1", "found something else"),
            ("postgres://ann:s3cret@h/x?sslmode=yes", "`sslmode` must be"),
            ("postgres://ann:s3cret@h/x?pool_size=0", "`pool_size` must be"),
        ] {
            let message = parse(wrong).unwrap_err();
            assert!(message.contains(hint) && !message.contains("s3"), "{wrong}: {message}");
            assert!(!message.contains("cret"), "{message}");
        }
    }
}
