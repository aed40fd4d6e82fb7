//! What the operating system reports about this process: memory, processor time and files, and their limits.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are not connections of clients: the index, connections to its database, libraries, the bundle.
const RESERVED_FILES: usize = 128;

/// Resident memory; 0 on systems other than Linux.
pub fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Processor time of all threads; 0 on systems other than Linux.
pub fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in parentheses, may contain spaces.  After it, user and system time are fields 12 and 13, in hundredths.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields.split_ascii_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

/// Number of open files; 0 on systems other than Linux.
pub fn open_files() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64)
}

/// The limit of open files, if there is one.
pub fn max_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many of the `wanted` connections the limit of open files allows, after it was raised as far as needed and possible.
pub fn connections_within_files(wanted: usize) -> usize {
    let needed = (wanted + RESERVED_FILES) as u64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|files| files < needed) {
        let raised = maximum.map_or(needed, |most| most.min(needed));
        // The limit is read again below, so a failure needs no handling.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum });
    }
    max_files().map_or(wanted, |files| connections_for(wanted, files))
}

fn connections_for(wanted: usize, files: u64) -> usize {
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    // Of very few files, a quarter is for connections.
    wanted.min(files.saturating_sub(RESERVED_FILES).max(files / 4)).max(1)
}

/// Memory that this process may take: the limit of its control group or the machine's memory, whichever is smaller.
pub fn memory_limit() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max").or_else(|| number("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:").map(str::to_string))?;
        Some(line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024)
    });
    [group, machine].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_files_are_reserved_for_other_uses() {
        assert_eq!(connections_for(1024, 1 << 20), 1024);
        assert_eq!(connections_for(1024, 1024), 896);
        assert_eq!(connections_for(1024, 256), 128);
        assert_eq!(connections_for(1024, 64), 16);
        assert_eq!(connections_for(1024, 2), 1);
        assert_eq!(connections_for(10, 1024), 10);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_reports_memory_files_and_time() {
        assert!(resident_bytes() > 1 << 20 && open_files() >= 3 && memory_limit().is_some_and(|m| m > 1 << 20));
        let since = std::time::Instant::now();
        while cpu_seconds() == 0.0 {
            assert!(since.elapsed().as_secs() < 60, "no processor time is counted");
        }
    }
}
