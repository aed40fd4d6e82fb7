//! Keys and what their bearers may do.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::arguments::usage;

/// What the bearer of a key may do.  Each role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Embed, classify and search; read items, `/info` and `/metrics`.
    Read = 1,
    /// Store and delete items.
    Write = 2,
    /// Load another bundle.
    Admin = 3,
}

impl Role {
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.to_string() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        })
    }
}

/// The keys that a server accepts.  Only their hashes are kept.
#[derive(Clone, Default)]
pub struct Keys(Vec<(Role, [u8; 32])>);

impl fmt::Debug for Keys {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{} keys", self.0.len())
    }
}

impl Keys {
    /// Reads a file of keys: on each line a role and a key.  Empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// A [`UsageError`](crate::arguments::UsageError): the file cannot be read, or a line is wrong.
    pub fn read(path: &Path) -> Result<Self> {
        let at = || format!("--api-keys {}", path.display());
        let text = read_text(path).map_err(|cause| usage(format!("{}: {cause}", at())))?;
        Self::parse(&text).map_err(|cause| usage(format!("{}: {cause}", at())))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut keys = Self::default();
        for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            // The line is not repeated: it may hold a key.
            let [role, key] = words[..] else {
                return Err(format!("line {number}: expected a role and a key, found {} words", words.len()));
            };
            let role =
                Role::named(role).ok_or_else(|| format!("line {number}: expected read, write or admin first"))?;
            let key = check(key).map_err(|cause| format!("line {number}: {cause}"))?;
            if keys.role(key.as_bytes()).is_some() {
                return Err(format!("line {number}: this key was given before"));
            }
            keys.insert(role, &key);
        }
        if keys.is_empty() { Err("expected at least one key, found none".into()) } else { Ok(keys) }
    }

    /// Accepts one more key.
    pub fn insert(&mut self, role: Role, key: &str) {
        self.0.push((role, hash(key.as_bytes())));
    }

    /// Whether there is none: every request is then accepted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The roles that have keys, each once.
    pub fn roles(&self) -> Vec<String> {
        let has = |role: &Role| self.0.iter().any(|(other, _)| other == role);
        Role::ALL.into_iter().filter(has).map(|role| role.to_string()).collect()
    }

    /// The role of a key; `None` if it is not accepted.  All hashes are compared, each in constant time, so that the time tells
    /// nothing about the keys.
    pub fn role(&self, given: &[u8]) -> Option<Role> {
        let given = hash(given);
        let found = self.0.iter().fold(0u8, |found, (role, expected)| {
            let equal: Choice = given.ct_eq(expected);
            u8::conditional_select(&found, &(*role as u8), equal)
        });
        Role::ALL.into_iter().find(|role| *role as u8 == found)
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Largest file of keys.
const MAX_FILE: u64 = 1 << 20;

fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("expected at most {MAX_FILE} bytes, found more"));
    }
    String::from_utf8(bytes).map_err(|_| "expected UTF-8".into())
}

/// A warning if other users of the machine can read the file of keys.
pub fn warning(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let readable = mode & 0o044 != 0;
    readable.then(|| format!("{} can be read by other users: chmod 600", path.display()))
}

/// A key without the white space around it; a key that was read from a file may end with a newline.
fn check(key: &str) -> Result<String, String> {
    let key = key.trim();
    if key.is_empty() {
        return Err("expected a key, found none".into());
    }
    if key.chars().any(char::is_control) {
        return Err("expected a key without control characters".into());
    }
    Ok(key.into())
}

/// The key of the option `--api-key`, or of the environment variable `MACRL_API_KEY`; `None` if neither is set.
///
/// # Errors
/// A [`UsageError`](crate::arguments::UsageError) if it is empty or not UTF-8: a server must not ask for no key because the
/// variable with the key was empty.
pub fn single(option: Option<&str>) -> Result<Option<String>> {
    from(option, std::env::var_os("MACRL_API_KEY"))
}

fn from(option: Option<&str>, variable: Option<OsString>) -> Result<Option<String>> {
    let (name, key) = match (option, variable) {
        (Some(key), _) => ("--api-key", Some(key.to_string())),
        (None, Some(key)) => ("MACRL_API_KEY", key.into_string().ok()),
        (None, None) => return Ok(None),
    };
    let key = key.context("expected UTF-8").and_then(|key| check(&key).map_err(anyhow::Error::msg));
    key.map(Some).map_err(|cause| usage(format!("{name}: {cause}; leave it out if the server asks for no key")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn a_file_of_keys_gives_each_its_role() {
        let keys = Keys::parse("# for the web shop\nread  abc\n\n write\tdef \nadmin ghi\n").unwrap();
        let role = |key: &str| keys.role(key.as_bytes());
        assert_eq!((role("abc"), role("def"), role("ghi")), (Some(Role::Read), Some(Role::Write), Some(Role::Admin)));
        assert_eq!((role(""), role("ab"), role("abcd"), role("read")), (None, None, None, None));
        assert!(Role::Read < Role::Write && Role::Write < Role::Admin);
        assert_eq!(keys.roles(), ["read", "write", "admin"]);
    }

    #[test]
    fn a_wrong_line_is_named_without_its_key() {
        for (text, message) in [
            ("", "expected at least one key, found none"),
            ("# read abc", "expected at least one key, found none"),
            ("read a\nsecret", "line 2: expected a role and a key, found 1 words"),
            ("read a secret", "line 1: expected a role and a key, found 3 words"),
            ("root secret", "line 1: expected read, write or admin first"),
            ("read secret\nadmin secret", "line 2: this key was given before"),
            ("read secret\u{7f}", "line 1: expected a key without control characters"),
        ] {
            assert_eq!(Keys::parse(text).unwrap_err(), message);
        }
    }

    #[test]
    fn an_empty_or_unreadable_key_is_an_error() {
        let variable = |bytes: &[u8]| Some(OsString::from_vec(bytes.to_vec()));
        assert_eq!(from(None, None).unwrap(), None);
        assert_eq!(from(Some("a"), variable(b"b")).unwrap().as_deref(), Some("a"));
        assert_eq!(from(None, variable(b" b\n")).unwrap().as_deref(), Some("b"));
        for (option, bytes) in
            [(Some(""), &b"b"[..]), (Some("  "), b"b"), (None, b""), (None, b"\n"), (None, b"\xff"), (None, b"a\nb")]
        {
            let error = from(option, variable(bytes)).unwrap_err();
            assert!(error.is::<crate::arguments::UsageError>() && !error.to_string().contains('\n'), "{error}");
        }
    }
}
