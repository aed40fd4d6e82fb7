//! This process as the system sees it: memory, processor time, files, and how many of them it may open.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are not connections: the index, the connections to its data base, libraries, the bundle while it is read.
const RESERVED_FILES: usize = 128;

/// Resident memory as Linux counts it; 0 elsewhere.
pub fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Processor time of all threads so far, as Linux counts it; 0 elsewhere.
pub fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in parentheses, may hold spaces.  Behind it, user and system time are fields 12 and 13, in hundredths.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields.split_ascii_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

/// Files that are open now, as Linux counts them; 0 elsewhere.
pub fn open_files() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64)
}

/// Files that may be open; `None` where there is no limit.
pub fn max_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// How many of the `wanted` connections the limit of open files leaves room for, after raising it as far as is needed and
/// allowed.
pub fn connections_within_files(wanted: usize) -> usize {
    let needed = (wanted + RESERVED_FILES) as u64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|files| files < needed) {
        let raised = maximum.map_or(needed, |most| most.min(needed));
        // Refused or not, what counts is read again.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum });
    }
    max_files().map_or(wanted, |files| fitting(wanted, files))
}

fn fitting(wanted: usize, files: u64) -> usize {
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    // With very few files, connections get a quarter of them.
    wanted.min(files.saturating_sub(RESERVED_FILES).max(files / 4)).max(1)
}

/// Memory that this process may take, where something says so: its control group's limit, or the machine's memory.
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
    fn connections_leave_room_for_other_files() {
        assert_eq!(fitting(1024, 1 << 20), 1024);
        assert_eq!(fitting(1024, 1024), 896);
        assert_eq!(fitting(1024, 256), 128);
        assert_eq!(fitting(1024, 64), 16);
        assert_eq!(fitting(1024, 2), 1);
        assert_eq!(fitting(10, 1024), 10);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_the_system_counts_is_read() {
        assert!(resident_bytes() > 1 << 20 && open_files() >= 3 && memory_limit().is_some_and(|m| m > 1 << 20));
        let since = std::time::Instant::now();
        while cpu_seconds() == 0.0 {
            assert!(since.elapsed().as_secs() < 60, "no processor time is counted");
        }
    }
}
