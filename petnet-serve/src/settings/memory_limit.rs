//! The default memory limit of the process: that of its control group.

/// Limit in bytes where neither a setting nor a control group has one.
const DEFAULT_BYTES: u64 = 512 << 20;

/// The limit of this process's control group in bytes, if it is below the machine's memory; else [`DEFAULT_BYTES`].
pub(super) fn default_limit() -> u64 {
    group_limit().unwrap_or(DEFAULT_BYTES)
}

fn group_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let file = match controllers {
            "" => "memory.max",
            "memory" => "memory/memory.limit_in_bytes",
            _ => return None,
        };
        let (folder, file) = file.split_once('/').unwrap_or(("", file));
        // Within a container, the container's own group is mounted as the root.
        let at =
            |path: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{folder}{path}/{file}"));
        let limit = at(path).or_else(|_| at("")).ok()?;
        limit.trim().parse::<u64>().ok()
    });
    let machine = machine_memory().unwrap_or(u64::MAX);
    limits.find(|limit| *limit < machine)
}

fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
