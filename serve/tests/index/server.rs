//! A real PostgreSQL with pgvector, for as long as this process lives.
//!
//! `scripts/setup.sh tests` installs it in `.deps/postgres`; `MACRL_POSTGRES` names another installation.  Without one, the
//! tests that need it are skipped with a message, or fail if `MACRL_REQUIRE_POSTGRES` is set.
//!
//! A shell starts the server and reads commands from a pipe.  When this process ends, for whatever reason, the pipe closes,
//! and the shell stops the server and removes its folder.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// PostgreSQL refuses to run as root; for root it is started as `nobody`.
const NOBODY: u32 = 65534;
pub(crate) const PASSWORD: &str = "pass-word-of-the-tests";

const SHELL: &str = r#"
LD_LIBRARY_PATH="$1/lib" "$1/bin/initdb" -D "$2/data" -U macrl -E UTF8 --locale=C -N -A scram-sha-256 \
    --pwfile "$2/password" >"$2/log" 2>&1 </dev/null || { cat "$2/log" >&2; rm -rf "$2"; exit 1; }
pid=
while read -r order; do
    "$1/bin/postgres" -D "$2/data" -p "$3" $4 >>"$2/log" 2>&1 </dev/null &
    pid=$!
    echo $pid
done
[ -z "$pid" ] || { kill -QUIT $pid; wait $pid; } 2>/dev/null
cd / && rm -rf "$2"
"#;

const SETTINGS: &str = "-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c shared_buffers=64MB \
                        -c max_connections=200 -c dynamic_shared_memory_type=mmap";

/// A running server with its own data folder.
pub(crate) struct Server {
    port: u16,
    shell: Mutex<Shell>,
}

struct Shell {
    orders: Option<ChildStdin>,
    pids: BufReader<ChildStdout>,
    child: Child,
    /// Process id of the server.
    pid: u32,
}

/// Folder of an installation, with `bin`, `lib` and `share`.
fn installation() -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/postgres");
    let place = std::env::var_os("MACRL_POSTGRES").map_or(fetched, PathBuf::from);
    place.join("bin/postgres").is_file().then_some(place)
}

/// Whether there is a PostgreSQL to test with; if not, prints a message once.
pub(crate) fn is_there() -> bool {
    static SAID: OnceLock<bool> = OnceLock::new();
    *SAID.get_or_init(|| {
        let there = installation().is_some();
        let wanted = std::env::var_os("MACRL_REQUIRE_POSTGRES").is_some_and(|v| !v.is_empty());
        assert!(there || !wanted, "there is no PostgreSQL in .deps/postgres: `scripts/setup.sh tests` fetches it");
        if !there {
            let text = "\nSKIPPED: the tests with PostgreSQL; `scripts/setup.sh tests` fetches one\n";
            // Written directly to stderr: the harness hides the output of tests that pass.
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
        there
    })
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs one of PostgreSQL's programs, which must succeed.
pub(crate) fn tool(name: &str, args: &[&str]) {
    let place = installation().unwrap();
    let mut command = Command::new(place.join("bin").join(name));
    run(command.args(args).env("LD_LIBRARY_PATH", place.join("lib")));
}

fn as_user(command: &mut Command) -> &mut Command {
    if rustix::process::geteuid().is_root() { command.uid(NOBODY).gid(NOBODY) } else { command }
}

impl Server {
    /// Starts a server on a new data folder.
    pub(crate) fn start(more: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("macrl-postgres-").tempdir().unwrap();
        let dir = folder.path().to_path_buf();
        let mut place = installation().unwrap();
        if rustix::process::geteuid().is_root() {
            // The user `nobody` may be unable to enter the folders above the installation.
            let copy = dir.join("installed");
            fs::create_dir(&copy).unwrap();
            for part in ["bin", "lib", "share"] {
                run(Command::new("cp").arg("-r").arg(place.join(part)).arg(&copy));
            }
            place = copy;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
            chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
            run(Command::new("chown").arg("-R").arg(format!("{NOBODY}:{NOBODY}")).arg(&place));
        }
        fs::write(dir.join("password"), PASSWORD).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SHELL, "sh"]).arg(&place).arg(&dir).arg(port.to_string()).arg(format!("{SETTINGS} {more}"));
        shell.current_dir(&dir).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = as_user(&mut shell).spawn().unwrap();
        let (orders, pids) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        // From here on the shell removes the folder.
        let _ = folder.keep();
        let server = Self { port, shell: Mutex::new(Shell { orders, pids, child, pid: 0 }) };
        server.resume();
        server
    }

    /// Starts it again after [`Server::kill`]; returns when it takes connections.
    pub(crate) fn resume(&self) {
        let mut shell = self.shell.lock().unwrap();
        let since = Instant::now();
        loop {
            shell.orders.as_mut().unwrap().write_all(b"start\n").unwrap();
            let mut line = String::new();
            shell.pids.read_line(&mut line).unwrap();
            shell.pid = line.trim().parse().expect("initdb failed");
            // The killed server's shared memory may delay the start for a moment.
            while Path::new(&format!("/proc/{}", shell.pid)).exists() && !is_zombie(shell.pid) {
                if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(since.elapsed() < Duration::from_secs(30), "PostgreSQL does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the server with `kill -9`.
    pub(crate) fn kill(&self) {
        let pid = self.shell.lock().unwrap().pid;
        run(Command::new("kill").args(["-9", &pid.to_string()]));
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// URL of one of its databases.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://macrl:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// URL of a new database.
    pub(crate) fn database(&self) -> String {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        sql(&self.url("postgres"), &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }
}

fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut shell = self.shell.lock().unwrap_or_else(|e| e.into_inner());
        shell.orders = None;
        let _ = shell.child.wait();
    }
}

/// The server that the tests share; it ends with the process.
pub(crate) fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start("-c fsync=off"))
}

/// The first column of every row, as text.
pub(crate) fn sql(url: &str, statements: &str) -> Vec<String> {
    let (url, statements) = (url.to_string(), statements.to_string());
    // In a thread of its own: the caller's thread may belong to an async runtime.
    let ask = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let since = Instant::now();
            let (client, connection) = loop {
                match tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
                    Ok(connected) => break connected,
                    // The server accepts connections before it can answer.
                    Err(_) if since.elapsed() < Duration::from_secs(20) => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Err(error) => panic!("{error:?}"),
                }
            };
            tokio::spawn(connection);
            let rows = client.simple_query(&statements).await.unwrap();
            let text = |message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_string),
                _ => None,
            };
            rows.into_iter().filter_map(text).collect()
        })
    };
    std::thread::spawn(ask).join().unwrap()
}
