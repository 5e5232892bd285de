//! Passing signals on to the programs that are observed.

use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use parking_lot::Mutex;

/// Programs that can be observed at a time, and so children that signals are passed on to.
const CHILDREN_MAX: usize = nexus_ebpf_common::TREES_MAX as usize;

/// No child, and nobody has the place.
const FREE: i32 = 0;

/// Somebody has the place, and no child yet.
const TAKEN: i32 = -1;

/// The signals that end a program, and that a user sends in order to end it.
const SIGNALS: [libc::c_int; 4] = [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGHUP];

static CHILDREN: [AtomicI32; CHILDREN_MAX] = [const { AtomicI32::new(FREE) }; CHILDREN_MAX];

/// A signal that came while a child was about to be; 0 for none.
static PENDING: AtomicI32 = AtomicI32::new(0);

/// The dispositions before ours, and how many guards want ours.
static INSTALLED: Mutex<Installed> = Mutex::new(Installed { guards: 0, previous: Vec::new() });

struct Installed {
    guards: usize,
    previous: Vec<(libc::c_int, libc::sigaction)>,
}

/// Passes signals for this process on to a child, as long as it lives.
///
/// Signals of the terminal reach the child by themselves, being of the same foreground group: they are only kept from ending
/// this process, so that it can still report.
pub(crate) struct SignalForwarding {
    place: Option<usize>,
}

impl SignalForwarding {
    /// Installs the handlers. The child is named later, by [`Self::forward_to`].
    pub(crate) fn install() -> Self {
        let mut installed = INSTALLED.lock();
        if installed.guards == 0 {
            PENDING.store(0, Ordering::SeqCst);
            installed.previous = SIGNALS.into_iter().filter_map(|signal| Some((signal, handle(signal)?))).collect();
        }
        installed.guards += 1;
        let taken = |place: &AtomicI32| place.compare_exchange(FREE, TAKEN, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        Self { place: CHILDREN.iter().position(taken) }
    }

    /// Names the child, or by `None` forgets it, which must be before it is waited for: then its id may be another's.
    pub(crate) fn forward_to(&self, child: Option<i32>) {
        let Some(place) = self.place else { return };
        CHILDREN[place].store(child.unwrap_or(TAKEN), Ordering::SeqCst);
        let pending = PENDING.swap(0, Ordering::SeqCst);
        if pending != 0 {
            pass_on(pending);
        }
    }
}

impl Drop for SignalForwarding {
    fn drop(&mut self) {
        let mut installed = INSTALLED.lock();
        if let Some(place) = self.place {
            CHILDREN[place].store(FREE, Ordering::SeqCst);
        }
        installed.guards -= 1;
        if installed.guards > 0 {
            return;
        }
        for (signal, old) in installed.previous.drain(..) {
            // SAFETY: `old` is what the kernel gave for this signal.
            unsafe { libc::sigaction(signal, &raw const old, ptr::null_mut()) };
        }
    }
}

/// Installs our handler for a signal. What was there before; `None` if the signal is ignored: whoever started us wants that
/// (nohup), and for the child too.
fn handle(signal: libc::c_int) -> Option<libc::sigaction> {
    // SAFETY: zero is a valid `sigaction`: default action, no flags, an empty mask.
    let (mut action, mut old): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the pointers are to valid structures; the handler does nothing that a handler must not.
    unsafe {
        let known = libc::sigaction(signal, ptr::null(), &raw mut old) == 0 && old.sa_sigaction != libc::SIG_IGN;
        (known && libc::sigaction(signal, &raw const action, ptr::null_mut()) == 0).then_some(old)
    }
}

extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid structure, as SA_SIGINFO asks.
    if unsafe { (*info).si_code } == libc::SI_KERNEL {
        return;
    }
    // SAFETY: it is this thread's errno, which the interrupted code may be about to read.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { *errno };
    pass_on(signal);
    // SAFETY: as above.
    unsafe { *errno = saved };
}

/// Sends a signal to all children, or keeps it for one that is about to be. Async-signal safe.
fn pass_on(signal: libc::c_int) {
    let mut awaited = false;
    for child in &CHILDREN {
        match child.load(Ordering::SeqCst) {
            FREE => {}
            TAKEN => awaited = true,
            pid => {
                // SAFETY: kill(2) has no precondition, and is async-signal safe.
                unsafe { libc::kill(pid, signal) };
            }
        }
    }
    if awaited {
        PENDING.store(signal, Ordering::SeqCst);
    }
}
