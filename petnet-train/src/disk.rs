//! How much room a folder's disk has.

use std::path::Path;

use sysinfo::Disks;

/// Bytes of a disk.
pub(crate) struct Space {
    pub(crate) total: u64,
    pub(crate) free: u64,
}

/// The disk that a folder lies on; nothing where the system does not say. The path must be absolute.
pub(crate) fn space(folder: &Path) -> Option<Space> {
    let disks = Disks::new_with_refreshed_list().ok()?;
    let holding = disks.iter().filter(|disk| folder.starts_with(disk.mount_point()));
    let disk = holding.max_by_key(|disk| disk.mount_point().as_os_str().len())?;
    Some(Space { total: disk.total_space(), free: disk.available_space() })
}
