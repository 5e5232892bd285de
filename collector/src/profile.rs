//! A profile while it is taken.

use std::borrow::Cow;

use aya::maps::{MapData, RingBuf};
use aya::programs::perf_event::PerfEventLink;
use nexus_ebpf_common::{ENTER_NONE, Owner, Sample};
use parking_lot::MutexGuard;
use serde::{Deserialize, Serialize};
use zerocopy::FromBytes as _;

use crate::error::ProbesError;
use crate::loaded::Loaded;
use crate::names::slot_syscall_name;
use crate::remote::{Remote, RemoteProfile};

/// A profile that is being taken; dropping it ends that. Its samples lie in a ring that must be emptied several times a
/// second, by [`Profile::drain`]; what finds no room is counted among the failures, as `samples_full`.
pub struct Profile<'a>(Side<'a>);

enum Side<'a> {
    Here(Ring<'a>),
    Collector(RemoteProfile<'a>),
}

/// What makes whoever works for an account leave a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampled {
    /// The clock of its CPU.
    Clock {
        /// How often it strikes a second, `1..=1000`.
        hz: u32,
    },
    /// The return from a system call in which it was blocked.
    Blocked {
        /// For how long at least, in nanoseconds; not 0.
        min_ns: u64,
    },
    /// Touching a page of memory that is not there yet.
    PageFaults,
}

/// Where a thread was when it left a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stacks<'a> {
    /// Whose work it was.
    pub owner: Owner,
    /// The system call in which it had been blocked, and for how long, in nanoseconds. Of [`Sampled::Blocked`] only.
    pub blocked: Option<(Cow<'static, str>, u64)>,
    /// The kernel's frames, innermost first; empty where the thread was in user space, and of other kinds than
    /// [`Sampled::Clock`]. A collector keeps the kernel's
    /// addresses to itself: then there is one frame, 0.
    pub kernel: &'a [u64],
    /// The program's frames, innermost first. They are walked by frame pointers.
    pub user: &'a [u64],
}

impl std::fmt::Debug for Profile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Profile")
    }
}

impl<'a> Profile<'a> {
    pub(crate) fn here(loaded: &'a Loaded, sampled: Sampled) -> Result<Option<Self>, ProbesError> {
        Ok(Ring::begin(loaded, sampled)?.map(|ring| Self(Side::Here(ring))))
    }

    pub(crate) fn remote(remote: &'a Remote, sampled: Sampled) -> Result<Option<Self>, ProbesError> {
        Ok(remote.profile(sampled)?.map(|profile| Self(Side::Collector(profile))))
    }

    /// Hands over the samples that came since the last time.
    pub fn drain(&mut self, mut each: impl FnMut(Stacks<'_>)) -> Result<(), ProbesError> {
        match &mut self.0 {
            Side::Here(ring) => while ring.next(|sample| hand_over(sample, &mut each)) {},
            Side::Collector(profile) => {
                while let Some(samples) = profile.fetch()? {
                    samples.chunks_exact(size_of::<Sample>()).for_each(|sample| hand_over(sample, &mut each));
                }
            }
        }
        Ok(())
    }
}

fn hand_over(bytes: &[u8], each: &mut impl FnMut(Stacks<'_>)) {
    let Ok(sample) = Sample::read_from_bytes(bytes) else {
        return tracing::error!(bytes = bytes.len(), "a sample of another size than expected");
    };
    let frames = |bytes: i32, max: usize| usize::try_from(bytes / 8).unwrap_or(0).min(max);
    let user = frames(sample.user_bytes, sample.user.len());
    let kernel = frames(sample.kernel_bytes, sample.kernel.len());
    let blocked = (sample.nr != ENTER_NONE).then(|| (slot_syscall_name(sample.nr as u16), sample.off_cpu_ns));
    each(Stacks { owner: sample.owner, blocked, kernel: &sample.kernel[..kernel], user: &sample.user[..user] });
}

/// The ring of samples while they are left.
pub(crate) struct Ring<'a> {
    // Fields are dropped in order: the clocks have stopped when the next profile may begin.
    _links: Vec<PerfEventLink>,
    _wish: Wish<'a>,
    samples: MutexGuard<'a, RingBuf<MapData>>,
}

impl<'a> Ring<'a> {
    /// Has samples left. `None` while they are for another.
    pub(crate) fn begin(loaded: &'a Loaded, sampled: Sampled) -> Result<Option<Self>, ProbesError> {
        let Some(samples) = loaded.samples.try_lock() else { return Ok(None) };
        let wish = Wish(loaded);
        let links = loaded.begin_samples(sampled)?;
        let mut ring = Self { samples, _wish: wish, _links: links };
        // What a profile before left behind is not this one's.
        while ring.next(|_| {}) {}
        Ok(Some(ring))
    }

    /// Hands over the next sample, if there is one.
    pub(crate) fn next(&mut self, each: impl FnOnce(&[u8])) -> bool {
        let Some(item) = self.samples.next() else { return false };
        each(&item);
        true
    }
}

/// What is asked of the probes beside the clocks, until this is dropped.
struct Wish<'a>(&'a Loaded);

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.end_samples() {
            tracing::error!(%error, "samples go on being left");
        }
    }
}
