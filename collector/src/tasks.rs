//! The kernel's table of who watches which thread, and the ids by which it knows threads.

use std::io;
use std::os::fd::OwnedFd;

use aya::maps::{Array, MapData, MapError};
use parking_lot::Mutex;
use rustix::process::getpid;
use rustix::thread::gettid;

use crate::raw;

/// The map `TASKS`, by thread id as the kernel has it: in the first PID namespace.
pub(crate) struct Tasks {
    maps: Mutex<Maps>,
    /// The program that tells the kernel's id of the thread that runs it; `None` where threads see the kernel's ids.
    whoami: Option<OwnedFd>,
}

struct Maps {
    tasks: Array<MapData, u32>,
    whoami: Array<MapData, u32>,
}

impl Tasks {
    pub(crate) fn new(tasks: Array<MapData, u32>, whoami: Array<MapData, u32>, program: Option<OwnedFd>) -> Self {
        Self { maps: Mutex::new(Maps { tasks, whoami }), whoami: program }
    }

    /// The kernel's id of the current thread.
    pub(crate) fn current(&self) -> io::Result<u32> {
        let Some(program) = &self.whoami else {
            return Ok(gettid().as_raw_nonzero().get().cast_unsigned());
        };
        // One thread at a time: the answer comes through a map.
        let maps = self.maps.lock();
        raw::run_here(program)?;
        maps.whoami.get(&0, 0).map_err(io::Error::other)
    }

    /// The kernel's id of this process.
    pub(crate) fn process(&self) -> io::Result<u32> {
        let Some(program) = &self.whoami else {
            return Ok(getpid().as_raw_nonzero().get().cast_unsigned());
        };
        let maps = self.maps.lock();
        raw::run_here(program)?;
        maps.whoami.get(&1, 0).map_err(io::Error::other)
    }

    /// Who watches a thread.
    pub(crate) fn get(&self, tid: u32) -> Result<u32, MapError> {
        self.maps.lock().tasks.get(&tid, 0)
    }

    /// Notes who watches a thread.
    pub(crate) fn set(&self, tid: u32, value: u32) -> Result<(), MapError> {
        self.maps.lock().tasks.set(tid, value, 0)
    }
}
