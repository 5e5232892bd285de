//! The tape of an invocation: its journal while it is written, or while it is played back to the guest.
//!
//! What a guest learns is taken down where it is handed over (Golem's lesson: not where the host learns it). Only what does
//! not follow from the event and from what came before is: clocks, random numbers, what was ready, all of the answers to
//! outgoing requests, and files. Those functions of WASI are defined anew in [`io`], [`http`], [`files`] and [`preview1`]; each asks
//! the tape first, and does what wasmtime's does only where nothing is played back.

mod answers;
mod clocks;
mod failure;
pub(crate) mod files;
pub(crate) mod http;
pub(crate) mod io;
pub(crate) mod preview1;
pub(crate) mod random;
mod stand_in;
mod told;
mod words;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use chacha20::ChaCha12Rng;
use nexus_core::journal::{
    Divergence, ENTRIES_MAX, Entry, Header, Journal, Kept, Mask, Partial, Read, Redact, Whose, Writer,
};
use parking_lot::Mutex;
use rand::rand_core::{Rng as _, SeedableRng as _};

pub use answers::Unmatched;

use crate::streams::Lines;
pub(crate) use answers::{Answer, Answers, recorded, whole};

/// What becomes of an invocation's journal.
#[derive(Clone, Debug, Default)]
pub enum Journaling {
    /// None is written.
    #[default]
    Off,
    /// It is written.
    Record {
        /// The most bytes, before compression; at more it ends and is marked partial.
        bytes_max: usize,
        /// The first half of the digest of the function's configuration.
        config: [u8; 16],
        /// What is kept out.
        redacted: Arc<Redact>,
    },
    /// It is played back: the guest gets every answer from it, and stops at the first call that is not the recorded one.
    Replay {
        /// The journal.
        journal: Arc<Journal>,
        /// What was kept out of it.
        redacted: Arc<Redact>,
        /// Whether it is noted what the guest was like at each call.
        steps: bool,
    },
    /// Its answers are given to whoever asks the same, be it another version of the function, or on another payload.
    Answer {
        /// Where the answers are.
        journal: Arc<Journal>,
        /// Whether what is not in it may be asked of the world.
        allow_live: bool,
    },
}

/// What is known of a replay when it is over.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// Where it left the recording, if it did.
    pub divergence: Option<Divergence>,
    /// Calls of the host that were answered from the journal.
    pub calls: usize,
    /// Outgoing requests and questions about files that the journal had no answer to, and what became of them: the first 1,000.
    pub unmatched: Vec<Unmatched>,
    /// How many more there were.
    pub unmatched_dropped: u64,
    /// Whether any of all these went out into the world.
    pub went_out: bool,
    /// The hash of what the function gave back, as [`Header::output`] has it.
    pub output: u64,
    /// Whether its code was compiled by another engine when its journal was written.
    pub other_engine: bool,
    /// What the guest was like at each call that was answered, where that was asked for.
    pub steps: Vec<Step>,
}

/// A guest as it was when it made a call of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Lines that it had written.
    pub lines: usize,
    /// Bytes of its linear memories.
    pub memory_bytes: u64,
}

/// Where a tape looks for what a guest is like.
#[derive(Clone)]
pub(crate) struct Looks {
    pub lines: Arc<Mutex<Lines>>,
    pub memory: Arc<AtomicUsize>,
}

/// Ends a guest whose replay left the recording.
#[derive(Debug, thiserror::Error)]
#[error("the replay left the recording")]
pub(crate) struct Left;

/// Ends a guest that has come to where it was stopped when its journal was written.
#[derive(Debug, thiserror::Error)]
#[error("the recorded invocation was stopped here")]
pub(crate) struct CutHere;

/// Handed around to all who answer a guest. Nothing is in it where nothing is recorded.
#[derive(Clone, Default)]
pub(crate) struct Tape(Option<Arc<Mutex<Inner>>>);

struct Inner {
    side: Side,
    /// The host asks for itself: what it learns it does not hand on.
    aside: bool,
    /// The replay's code is of another engine than the recorded one's.
    other_engine: bool,
    /// The clocks as they were read last.
    wall: i64,
    monotonic: u64,
    /// Where random numbers come from, once some were drawn.
    secret: Option<ChaCha12Rng>,
    insecure: Option<ChaCha12Rng>,
}

enum Side {
    Record(Recorder),
    Play(Player),
    Answer(Answers),
}

struct Recorder {
    writer: Writer,
    header: Header,
    bytes_max: usize,
    redacted: Arc<Redact>,
    /// Where each answer is, in its JSON.
    masks: HashMap<u32, Mask>,
}

struct Player {
    journal: Arc<Journal>,
    redacted: Arc<Redact>,
    next: usize,
    divergence: Option<Divergence>,
    /// It has come to where the recorded one was stopped.
    cut: bool,
    looks: Option<Looks>,
    steps: Vec<Step>,
}

/// Which random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draw {
    Secret,
    Insecure,
}

impl Tape {
    /// For one invocation; `partial` where something of it will not be recorded.
    pub(crate) fn new(journaling: Journaling, engine: u64, partial: Option<Partial>, looks: Looks) -> Self {
        let other_engine = match &journaling {
            Journaling::Replay { journal, .. } | Journaling::Answer { journal, .. } => journal.header.engine != engine,
            Journaling::Off | Journaling::Record { .. } => false,
        };
        let side = match journaling {
            Journaling::Off => return Self(None),
            Journaling::Record { bytes_max, config, redacted } => {
                let header = Header { partial, config, engine, ..Header::default() };
                Side::Record(Recorder { writer: Writer::default(), header, bytes_max, redacted, masks: HashMap::new() })
            }
            Journaling::Replay { journal, redacted, steps } => {
                let looks = steps.then_some(looks);
                let player =
                    Player { journal, redacted, next: 0, divergence: None, cut: false, looks, steps: Vec::new() };
                Side::Play(player)
            }
            Journaling::Answer { journal, allow_live } => Side::Answer(Answers::of(&journal, allow_live)),
        };
        let inner = Inner { side, aside: false, other_engine, wall: 0, monotonic: 0, secret: None, insecure: None };
        Self(Some(Arc::new(Mutex::new(inner))))
    }

    /// Whether there is one at all.
    pub(crate) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the guest is played back to: then nothing of it may reach the world.
    pub(crate) fn plays(&self) -> bool {
        self.with(|inner| matches!(inner.side, Side::Play(_))).unwrap_or(false)
    }

    /// Whether this is a replay of any kind.
    pub(crate) fn is_replay(&self) -> bool {
        self.with(|inner| matches!(inner.side, Side::Play(_) | Side::Answer(_))).unwrap_or(false)
    }

    /// Whether the guest's requests are answered from a journal, without its calls being the recorded ones.
    pub(crate) fn answers<T>(&self, ask: impl FnOnce(&mut Answers) -> T) -> Option<T> {
        self.with(|inner| match &mut inner.side {
            Side::Answer(answers) => Some(ask(answers)),
            Side::Record(_) | Side::Play(_) => None,
        })
        .flatten()
    }

    /// From now on the host asks for itself, or no longer does.
    pub(crate) fn aside(&self, aside: bool) {
        self.with(|inner| inner.aside = aside);
    }

    /// Takes down that a call of the host ended the guest.
    pub(crate) fn trapped(&self, error: &wasmtime::Error) {
        // What ends a replay is no answer of the host's.
        if !error.is::<Left>() && !error.is::<CutHere>() {
            self.record(|| Entry::Trapped(error.root_cause().to_string()));
        }
    }

    /// Takes down a call and its answer, where one is recorded.
    pub(crate) fn record(&self, entry: impl FnOnce() -> Entry) {
        if let Some(inner) = &self.0
            && let Side::Record(recorder) = &mut inner.lock().side
        {
            recorder.push(entry);
        }
    }

    /// The recorded answer to a call. `None`: nothing is played back. An error ends the guest: the recorded call is another one.
    ///
    /// `pick` takes the answer out of an entry of the same call; `asked` is such an entry, for people to read.
    pub(crate) fn played<T>(
        &self,
        asked: impl FnOnce() -> Entry,
        pick: impl FnOnce(&Entry) -> Option<T>,
    ) -> wasmtime::Result<Option<T>> {
        let Some(inner) = &self.0 else { return Ok(None) };
        match &mut inner.lock().side {
            Side::Record(_) | Side::Answer(_) => Ok(None),
            Side::Play(player) => player.take(asked, pick).map(Some),
        }
    }

    /// Why the guest of a replay is to end, if it is: clocks and random numbers cannot say so themselves.
    pub(crate) fn over(&self) -> Option<wasmtime::Error> {
        self.with(|inner| match &inner.side {
            Side::Play(player) if player.divergence.is_some() => Some(Left.into()),
            Side::Play(player) if player.cut => Some(CutHere.into()),
            Side::Play(_) | Side::Record(_) | Side::Answer(_) => None,
        })
        .flatten()
    }

    /// Whether a replay has made all the calls of one that was stopped from without.
    pub(crate) fn is_played_to_its_cut(&self) -> bool {
        let all = |player: &Player| player.journal.header.cut && player.next >= player.journal.entries.len();
        self.with(|inner| matches!(&inner.side, Side::Play(player) if all(player))).unwrap_or(false)
    }

    /// What is kept out of what is recorded.
    pub(crate) fn redacted(&self) -> Arc<Redact> {
        self.with(|inner| match &inner.side {
            Side::Record(recorder) => recorder.redacted.clone(),
            Side::Play(player) => player.redacted.clone(),
            Side::Answer(_) => Arc::default(),
        })
        .unwrap_or_default()
    }

    /// Fills `bytes` with random numbers, the same ones in a replay.
    pub(crate) fn draw(&self, which: Draw, bytes: &mut [u8]) {
        let Some(inner) = &self.0 else { return rand::fill(bytes) };
        let inner = &mut *inner.lock();
        let drawn = |bytes: u64| match which {
            Draw::Secret => Entry::Random(bytes),
            Draw::Insecure => Entry::InsecureRandom(bytes),
        };
        let entry = drawn(bytes.len() as u64);
        let seed = match &mut inner.side {
            Side::Record(recorder) => {
                let seed = *recorder.header.seed.get_or_insert_with(rand::random);
                recorder.push(|| entry);
                seed
            }
            Side::Play(player) => {
                let same = |found: &Entry| (*found == entry).then_some(());
                // That it is another call is found out at the next one that can end the guest.
                let _ = player.take(|| entry.clone(), same);
                player.journal.header.seed.unwrap_or_default()
            }
            // What was never drawn is drawn now.
            Side::Answer(answers) => *answers.seed.get_or_insert_with(rand::random),
        };
        let (stream, generator) = match which {
            Draw::Secret => (0, &mut inner.secret),
            Draw::Insecure => (1, &mut inner.insecure),
        };
        let generator = generator.get_or_insert_with(|| {
            let mut generator = ChaCha12Rng::from_seed(seed);
            generator.set_stream(stream);
            generator
        });
        generator.fill_bytes(bytes);
    }

    /// The wall clock, in nanoseconds since 1970.
    pub(crate) fn wall(&self, now: impl FnOnce() -> i64) -> i64 {
        let Some(inner) = &self.0 else { return now() };
        let inner = &mut *inner.lock();
        if inner.aside {
            return now();
        }
        let last = inner.wall;
        inner.wall = match &mut inner.side {
            Side::Record(recorder) => {
                let now = now();
                recorder.push(|| Entry::Wall(now.wrapping_sub(last)));
                now
            }
            Side::Play(player) => {
                let pick = |entry: &Entry| if let Entry::Wall(since) = entry { Some(*since) } else { None };
                // As with random numbers: a clock cannot fail.
                last.wrapping_add(player.take(|| Entry::Wall(0), pick).unwrap_or(0))
            }
            Side::Answer(answers) => match answers.wall() {
                Some(since) => last.wrapping_add(since),
                // From where the recording ends it goes on; where there is none it is now.
                None if last == 0 => now(),
                None => last.wrapping_add(answers.since_last().as_nanos() as i64),
            },
        };
        inner.wall
    }

    /// The monotonic clock, in nanoseconds since the invocation began.
    pub(crate) fn monotonic(&self, now: impl FnOnce() -> u64) -> u64 {
        let Some(inner) = &self.0 else { return now() };
        let inner = &mut *inner.lock();
        if inner.aside {
            return now();
        }
        let last = inner.monotonic;
        inner.monotonic = match &mut inner.side {
            Side::Record(recorder) => {
                let now = now();
                recorder.push(|| Entry::Monotonic(now.wrapping_sub(last)));
                now
            }
            Side::Play(player) => {
                let pick = |entry: &Entry| if let Entry::Monotonic(since) = entry { Some(*since) } else { None };
                last.wrapping_add(player.take(|| Entry::Monotonic(0), pick).unwrap_or(0))
            }
            // As with the wall clock: a loop that waits for a time would never end.
            Side::Answer(answers) => match answers.monotonic() {
                Some(since) => last.wrapping_add(since),
                None => last.wrapping_add(answers.since_last().as_nanos() as u64),
            },
        };
        inner.monotonic
    }

    /// What was recorded; `cut` where the guest was stopped from without, `output` as [`Header::output`] has it.
    pub(crate) fn recorded(&self, cut: bool, output: u64, left_behind: bool) -> Option<(Kept, Option<Partial>)> {
        self.with(|inner| match &mut inner.side {
            Side::Record(recorder) => {
                let header = &mut recorder.header;
                (header.cut, header.output) = (cut, output);
                if left_behind {
                    header.partial.get_or_insert(Partial::LeftBehind);
                }
                Some((std::mem::take(&mut recorder.writer).finish(header), header.partial))
            }
            Side::Play(_) | Side::Answer(_) => None,
        })
        .flatten()
    }

    /// What is known of the replay, when its guest is gone.
    pub(crate) fn replayed(&self, output: u64) -> Option<Replayed> {
        self.with(|inner| {
            let mut replayed = match &mut inner.side {
                Side::Record(_) => return None,
                Side::Play(player) => player.ended(),
                Side::Answer(answers) => answers.ended(),
            };
            (replayed.output, replayed.other_engine) = (output, inner.other_engine);
            Some(replayed)
        })
        .flatten()
    }

    fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> Option<T> {
        self.0.as_ref().map(|inner| look(&mut inner.lock()))
    }
}

impl Recorder {
    fn push(&mut self, entry: impl FnOnce() -> Entry) {
        if self.header.partial.is_some() {
            return;
        }
        let mut entry = entry();
        if !self.redacted.fields.is_empty() {
            self.mask(&mut entry);
        }
        self.writer.push(&entry);
        if self.writer.len() > self.bytes_max || self.writer.count() > ENTRIES_MAX {
            self.header.partial = Some(Partial::TooLarge);
            self.writer = Writer::default();
        }
    }

    /// Takes out of an entry what is to be kept out of bodies.
    fn mask(&mut self, entry: &mut Entry) {
        hide(&self.redacted, entry);
        match entry {
            Entry::Body(of, Read::Bytes(bytes)) => {
                let mut masked = bytes.to_vec();
                self.masks.entry(*of).or_default().apply(&self.redacted.fields, &mut masked);
                *bytes = masked.into();
            }
            // Nobody knows where in it the rest is.
            Entry::Skipped(of, Ok(bytes)) if *bytes > 0 => self.masks.entry(*of).or_default().lose(),
            _ => {}
        }
    }
}

/// Stands for the hash of what is kept out: whoever has one of a short value, and knows the rest, has the value.
pub(crate) const HIDDEN: u64 = 0;

/// What a request says is not told where any field is kept out: it may be in the midst of one.
fn hide(redacted: &Redact, entry: &mut Entry) {
    if let (Entry::Write(Whose::Request, _, hash, beginning, _), false) = (entry, redacted.fields.is_empty()) {
        (*hash, *beginning) = (HIDDEN, Bytes::new());
    }
}

impl Player {
    fn take<T>(
        &mut self,
        asked: impl FnOnce() -> Entry,
        pick: impl FnOnce(&Entry) -> Option<T>,
    ) -> wasmtime::Result<T> {
        if self.divergence.is_some() {
            return Err(Left.into());
        }
        let recorded = self.journal.entries.get(self.next);
        if let Some(Entry::Trapped(why)) = recorded {
            self.next += 1;
            return Err(wasmtime::format_err!("{why}"));
        }
        if let Some(answer) = recorded.and_then(pick) {
            self.next += 1;
            if let Some(looks) = &self.looks {
                let memory_bytes = looks.memory.load(Ordering::Relaxed) as u64;
                self.steps.push(Step { lines: looks.lines.lock().len(), memory_bytes });
            }
            return Ok(answer);
        }
        if recorded.is_none() && self.journal.header.cut {
            self.cut = true;
            return Err(CutHere.into());
        }
        let expected = recorded.map(Entry::call);
        let mut actual = asked();
        hide(&self.redacted, &mut actual);
        self.divergence =
            Some(Divergence { call: self.next, expected, actual: Some(actual.call()), printed: Vec::new() });
        Err(Left.into())
    }

    /// A guest that ended before its recording did has left it too.
    fn ended(&mut self) -> Replayed {
        if let (None, Some(next)) = (&self.divergence, self.journal.entries.get(self.next)) {
            self.divergence =
                Some(Divergence { call: self.next, expected: Some(next.call()), actual: None, printed: Vec::new() });
        }
        let steps = std::mem::take(&mut self.steps);
        Replayed { divergence: self.divergence.clone(), calls: self.next, steps, ..Replayed::default() }
    }
}
