//! What memory the computer has, as Linux says it.

/// Bytes of memory that the process has. `None` where nobody says.
pub(super) fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_size())
}

/// Bytes that a process may still write: what the system has, or what the process's group may use.
pub(super) fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let system = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    let read = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok()
    };
    let group = read("memory.max").zip(read("memory.current")).map(|(max, used)| max.saturating_sub(used));
    Some(group.map_or(system, |group| group.min(system)))
}

#[cfg(unix)]
fn page_size() -> u64 {
    // SAFETY: a question without arguments that point anywhere.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(not(unix))]
fn page_size() -> u64 {
    4096
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_is_written() {
        let written = std::hint::black_box(vec![1u8; 1 << 28]);
        assert!(resident().unwrap() >= 1 << 28);
        assert!(available().unwrap() > 1 << 20);
        drop(written);
    }
}
