//! Total and free space of the disk that holds a folder.

use std::path::Path;

use sysinfo::Disks;

/// Size of a disk in bytes.
pub(crate) struct Space {
    pub(crate) total: u64,
    pub(crate) free: u64,
}

/// Space of the disk that holds `folder`, an absolute path; `None` where the system does not report it.
pub(crate) fn space(folder: &Path) -> Option<Space> {
    let disks = Disks::new_with_refreshed_list().ok()?;
    let holding = disks.iter().filter(|disk| folder.starts_with(disk.mount_point()));
    let disk = holding.max_by_key(|disk| disk.mount_point().as_os_str().len())?;
    Some(Space { total: disk.total_space(), free: disk.available_space() })
}
