//! The memory limit of the process: the memory of the machine, or the limit of its control group.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of memory that the process may use; `None` if the system does not report it.
pub(crate) fn bytes() -> Option<u64> {
    bytes_below_root(Path::new("/"))
}

/// Like [`bytes`], with the system files read below `root`.
fn bytes_below_root(root: &Path) -> Option<u64> {
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    let machine = read(root.join("proc/meminfo"));
    let machine = machine.and_then(|text| total_memory(&text));
    let groups = read(root.join("proc/self/cgroup")).unwrap_or_default();
    let group = cgroup_limit_files(&groups)
        .into_iter()
        .filter_map(|file| parse_limit(&read(root.join("sys/fs/cgroup").join(file))?))
        .min();
    match (machine, group) {
        // version 1 reports no limit as a number that is larger than any machine, so the minimum is correct
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, _) => machine,
    }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1 << 10)
}

/// The files below `/sys/fs/cgroup` that may limit the memory of the control groups listed in `/proc/self/cgroup`: one
/// for each group and one for each of its ancestors. In a container, the path of the group may be its path on the host;
/// then only the outermost of these files exist.
fn cgroup_limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = vec![];
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, group) = (fields.next(), fields.next(), fields.next());
        let (Some(controllers), Some(group)) = (controllers, group) else {
            continue;
        };
        let (hierarchy, file) = match controllers {
            // version 2 has a single hierarchy without controller names
            "" => ("", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // a path with `..` lies outside the container's namespace, and its files are not visible here
        let group = Path::new(group.trim_start_matches('/'));
        let is_inside = |path: &&Path| !path.starts_with("..");
        for folder in group.ancestors().filter(is_inside) {
            files.push(Path::new(hierarchy).join(folder).join(file));
        }
    }
    files
}

/// Parses a limit in bytes; `None` for `max`, which means no limit.
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str =
        "MemTotal:       16316412 kB\nMemFree:          871040 kB\nMemAvailable:    9127648 kB\n";

    #[test]
    fn system_files_are_parsed() {
        assert_eq!(total_memory(MEMINFO), Some(16_316_412 << 10));
        assert_eq!(total_memory("MemFree: 5 kB"), None);
        assert_eq!(total_memory("MemTotal: much"), None);
        assert_eq!(parse_limit("536870912\n"), Some(512 << 20));
        assert_eq!(parse_limit("max\n"), None);
        let files = |groups: &str| -> Vec<String> {
            let files = cgroup_limit_files(groups).into_iter();
            files.map(|file| file.display().to_string()).collect()
        };
        assert_eq!(
            files("0::/a.slice/b.scope\n"),
            [
                "a.slice/b.scope/memory.max",
                "a.slice/memory.max",
                "memory.max"
            ]
        );
        assert_eq!(files("0::/\n"), ["memory.max"]);
        assert_eq!(
            files("12:cpu,cpuacct:/docker/1\n9:memory:/docker/1\n"),
            [
                "memory/docker/1/memory.limit_in_bytes",
                "memory/docker/memory.limit_in_bytes",
                "memory/memory.limit_in_bytes"
            ]
        );
        assert_eq!(files("0::/../other\n"), ["memory.max"]);
        assert!(files("nonsense\n\n").is_empty());
    }

    #[test]
    fn the_smallest_limit_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let found = || bytes_below_root(root.path());
        assert_eq!(found(), None);
        write("proc/meminfo", MEMINFO);
        let machine = Some(16_316_412 << 10);
        assert_eq!(found(), machine);
        write("proc/self/cgroup", "0::/a/b\n");
        write("sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(found(), machine);
        write("sys/fs/cgroup/a/memory.max", "1073741824\n");
        assert_eq!(found(), Some(1 << 30));
        // version 1 reports no limit as its largest number
        write("proc/self/cgroup", "4:memory:/x\n0::/\n");
        let file = "sys/fs/cgroup/memory/memory.limit_in_bytes";
        write(file, "9223372036854771712\n");
        assert_eq!(found(), machine);
        write(file, "268435456\n");
        assert_eq!(found(), Some(256 << 20));
    }
}
