//! A profile while it is taken.

use aya::maps::{MapData, RingBuf};
use aya::programs::perf_event::PerfEventLink;
use nexus_ebpf_common::{Owner, Sample};
use parking_lot::MutexGuard;
use zerocopy::FromBytes as _;

/// A profile that is being taken; dropping it ends that. Its samples lie in a ring that must be emptied several times a
/// second, by [`Profile::drain`]; what finds no room is counted among the failures, as `samples_full`.
pub struct Profile<'a> {
    // Fields are dropped in order: the clocks have stopped when the next profile may begin.
    _links: Vec<PerfEventLink>,
    samples: MutexGuard<'a, RingBuf<MapData>>,
}

/// Where a thread was when the clock struck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stacks<'a> {
    /// Whose work it was.
    pub owner: Owner,
    /// The kernel's frames, innermost first; empty where the thread was in user space.
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
    pub(crate) fn new(samples: MutexGuard<'a, RingBuf<MapData>>, links: Vec<PerfEventLink>) -> Self {
        Self { samples, _links: links }
    }

    /// Hands over the samples that came since the last time.
    pub fn drain(&mut self, mut each: impl FnMut(Stacks<'_>)) {
        while let Some(item) = self.samples.next() {
            let Ok(sample) = Sample::read_from_bytes(&item) else {
                tracing::error!(bytes = item.len(), "a sample of another size than expected");
                continue;
            };
            let frames = |bytes: i32, max: usize| usize::try_from(bytes / 8).unwrap_or(0).min(max);
            let user = frames(sample.user_bytes, sample.user.len());
            let kernel = frames(sample.kernel_bytes, sample.kernel.len());
            each(Stacks { owner: sample.owner, kernel: &sample.kernel[..kernel], user: &sample.user[..user] });
        }
    }
}
