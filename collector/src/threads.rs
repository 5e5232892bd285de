//! Threads of other processes, by the ids that they know themselves by.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// The kernel's id of a thread of `process` that knows itself by `tid`: the same, but where the process is in a PID
/// namespace of its own. `None` if it has no such thread.
///
/// For a process in the first namespace. `NSpid` in a thread's `status` has its id in every namespace, the innermost last.
pub(crate) fn kernel_id(process: u32, tid: u32) -> io::Result<Option<u32>> {
    let task = PathBuf::from(format!("/proc/{process}/task"));
    if innermost_id(&task.join(tid.to_string()))? == Some(tid) {
        return Ok(Some(tid));
    }
    let mut ids: Vec<u32> = Vec::new();
    for entry in fs::read_dir(&task)? {
        ids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    // Whoever asks is new, most likely, and new ids are larger.
    ids.sort_unstable_by(|a, b| b.cmp(a));
    for id in ids {
        if innermost_id(&task.join(id.to_string()))? == Some(tid) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// The id by which a thread knows itself; `None` if there is none any more.
fn innermost_id(task: &Path) -> io::Result<Option<u32>> {
    let status = match fs::read_to_string(task.join("status")) {
        Ok(status) => status,
        // ESRCH: it ended while it was read.
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    Ok(ids.and_then(|ids| ids.split_whitespace().last()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_threads_are_found_and_others_are_not() {
        let (process, tid) = (std::process::id(), rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned());
        let expected = crate::loaded::in_first_pid_namespace().then_some(tid);
        let found = kernel_id(process, tid).expect("readable");
        assert!(found.is_some() && (expected.is_none() || found == expected), "{found:?}");
        assert_eq!(kernel_id(process, 1).expect("readable"), None);
        assert!(kernel_id(u32::MAX, 1).is_err());
    }
}
