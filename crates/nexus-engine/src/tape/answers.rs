//! The answers of a journal for whoever asks the same, in whatever order: another version of the function, or another payload.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use nexus_core::journal::{Entry, FileAnswer, Got, Head, HttpFailure, Journal, Read, Sent};
use serde::{Deserialize, Serialize};
use wasmtime_wasi_http::{Error, WasiBody};

use super::Replayed;
use super::http::{header_map, known};

/// An outgoing request that the journal has no answer to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmatched {
    /// The method and the URL.
    pub request: String,
    /// Whether it went out nevertheless; else the guest was told that it is denied.
    pub live: bool,
}

/// What a recorded request came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Came {
    /// An answer, as much of it as the guest read then, how it ended there, and its trailers.
    Answer(Head, Vec<Bytes>, Ended, Option<Head>),
    /// A failure.
    Failed(HttpFailure),
    /// The guest never looked.
    Nothing,
}

/// How the recorded guest's reading of an answer ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Ended {
    /// At the body's end.
    Whole,
    /// It broke off, with these words.
    Broke(String),
    /// It did not read on, or left something out: what comes then is not known.
    #[default]
    Unread,
}

/// What the recorded guest read, piece by piece, and how that ended.
pub(crate) type Content = (Arc<Vec<Bytes>>, Ended);

/// Of a stream of a file, what was read, and whether more is known of it.
#[derive(Default)]
struct FileContent {
    pieces: Arc<Vec<Bytes>>,
    ended: Ended,
    /// Something was left out: what comes then is not known.
    gap: bool,
}

/// Requests and questions without an answer that are told.
const UNMATCHED_MAX: usize = 1000;

/// What becomes of a request.
pub(crate) enum Answer {
    Recorded(Came),
    Denied,
    Live,
}

/// The whole of a URL, as it is compared.
pub(crate) fn whole(uri: &http::Uri) -> String {
    let authority = uri.authority().map_or("", |a| a.as_str().rsplit('@').next().unwrap_or_default());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    format!("{}://{authority}{path}", uri.scheme_str().unwrap_or("https"))
}

type Sending = Result<(http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

/// How a question for the next name in a folder begins: there is another answer each time.
const NEXT_NAME: &str = "read-directory-entry ";

/// A recorded answer as one that came over the network.
pub(crate) fn recorded(came: Came) -> Sending {
    let (head, chunks, ended, trailers) = match came {
        Came::Answer(head, chunks, ended, trailers) => (head, chunks, ended, trailers),
        Came::Failed(failure) => {
            return Err(known(&failure).map_or(Error::InternalError(Some(failure.to_string())), Error::from));
        }
        Came::Nothing => {
            return Err(Error::InternalError(Some(
                "the journal does not have this answer: the recorded guest did not read it".into(),
            )));
        }
    };
    let frames = chunks.into_iter().map(|chunk| Ok(Frame::data(chunk)));
    let last = match ended {
        Ended::Whole => trailers.map(|trailers| Ok(Frame::trailers(header_map(&trailers.headers)))),
        Ended::Broke(why) => Some(Err(Error::InternalError(Some(why)))),
        Ended::Unread => Some(Err(Error::InternalError(Some("the recorded guest did not read further".into())))),
    };
    let body = StreamBody::new(stream::iter(frames.chain(last))).boxed_unsync();
    let mut response = http::Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(head.status).map_err(|_| Error::HttpProtocolError)?;
    *response.headers_mut() = header_map(&head.headers);
    Ok((response, Box::new(std::future::ready(Ok(())))))
}

/// What there is to answer with.
pub(crate) struct Answers {
    wall: VecDeque<i64>,
    monotonic: VecDeque<u64>,
    pub(super) seed: Option<[u8; 32]>,
    exchanges: Vec<(Sent, Came, bool)>,
    files: HashMap<String, VecDeque<Result<FileAnswer, String>>>,
    streams: HashMap<u32, FileContent>,
    unmatched: Vec<Unmatched>,
    unmatched_dropped: u64,
    went_out: bool,
    allow_live: bool,
    calls: usize,
    /// When a clock was read last.
    read_at: Instant,
}

impl Answers {
    pub(super) fn of(journal: &Journal, allow_live: bool) -> Self {
        let mut answers = Self {
            wall: VecDeque::new(),
            monotonic: VecDeque::new(),
            seed: journal.header.seed,
            exchanges: Vec::new(),
            files: HashMap::new(),
            streams: HashMap::new(),
            unmatched: Vec::new(),
            unmatched_dropped: 0,
            went_out: false,
            allow_live,
            calls: 0,
            read_at: Instant::now(),
        };
        for entry in &journal.entries {
            answers.learn(entry);
        }
        answers
    }

    fn learn(&mut self, entry: &Entry) {
        match entry {
            Entry::Wall(since) => self.wall.push_back(*since),
            Entry::Monotonic(since) => self.monotonic.push_back(*since),
            Entry::Request(sent, refused) => {
                let came = refused.clone().map_or(Came::Nothing, Came::Failed);
                self.exchanges.push(((**sent).clone(), came, false));
            }
            Entry::Response(of, Got::Head(head)) => {
                if let Some(came) = self.came(*of) {
                    *came = Came::Answer((**head).clone(), Vec::new(), Ended::Unread, None);
                }
            }
            Entry::Response(of, Got::Failed(failure)) => {
                if let Some(came) = self.came(*of) {
                    *came = Came::Failed(failure.clone());
                }
            }
            Entry::Body(of, read) => {
                if let Some(Came::Answer(_, chunks, ended, _)) = self.came(*of) {
                    learn_read(chunks, ended, read);
                }
            }
            Entry::TrailersOf(of, Got::Head(head)) => {
                if let Some(Came::Answer(.., trailers)) = self.came(*of) {
                    *trailers = Some((**head).clone());
                }
            }
            Entry::File(asked, answer) => {
                self.files.entry(asked.clone()).or_default().push_back(answer.clone());
            }
            Entry::FileRead(of, read) => {
                let content = self.streams.entry(*of).or_default();
                if !content.gap {
                    learn_read(Arc::make_mut(&mut content.pieces), &mut content.ended, read);
                }
            }
            Entry::FileSkipped(of, skipped) if *skipped != Ok(0) => self.streams.entry(*of).or_default().gap = true,
            // What was left out is nowhere: so it ends there.
            Entry::Skipped(of, Ok(bytes)) if *bytes > 0 => {
                if let Some(came @ Came::Answer(..)) = self.came(*of) {
                    *came = Came::Nothing;
                }
            }
            _ => {}
        }
    }

    fn came(&mut self, of: u32) -> Option<&mut Came> {
        self.exchanges.get_mut(of as usize).map(|(_, came, _)| came)
    }

    /// The time since a clock was read last, or since the beginning.
    pub(super) fn since_last(&mut self) -> Duration {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.read_at, now))
    }

    pub(super) fn wall(&mut self) -> Option<i64> {
        self.wall.pop_front().inspect(|_| self.read_at = Instant::now())
    }

    pub(super) fn monotonic(&mut self) -> Option<u64> {
        self.monotonic.pop_front().inspect(|_| self.read_at = Instant::now())
    }

    /// The answer to a request of this method and URL: the first that was not given yet.
    pub(crate) fn to(&mut self, method: &str, url: &str) -> Answer {
        let found =
            self.exchanges.iter_mut().find(|(sent, _, given)| !given && sent.method == method && sent.url == url);
        if let Some((_, came, given)) = found {
            *given = true;
            self.calls += 1;
            return Answer::Recorded(came.clone());
        }
        let live = self.allow_live;
        self.went_out |= live;
        self.unmatched(|| Unmatched { request: format!("{method} {url}"), live });
        if self.allow_live { Answer::Live } else { Answer::Denied }
    }

    /// The answer to what is asked about a file: the first that was not given yet; then the last one again, as a file seldom
    /// changes, but for the names in a folder. What else is asked is not permitted.
    pub(crate) fn file(&mut self, asked: &str) -> Result<FileAnswer, String> {
        let answer = self.files.get_mut(asked).and_then(|answers| match answers.front() {
            Some(answer) if answers.len() == 1 && !asked.starts_with(NEXT_NAME) => Some(answer.clone()),
            _ => answers.pop_front(),
        });
        let Some(answer) = answer else {
            self.unmatched(|| Unmatched { request: asked.to_owned(), live: false });
            return Err("not-permitted".into());
        };
        self.calls += 1;
        answer
    }

    fn unmatched(&mut self, what: impl FnOnce() -> Unmatched) {
        if self.unmatched.len() < UNMATCHED_MAX {
            self.unmatched.push(what());
        } else {
            self.unmatched_dropped += 1;
        }
    }

    /// What was read of the file stream of this number.
    pub(crate) fn read(&self, stream: u32) -> Content {
        let of = |content: &FileContent| (content.pieces.clone(), content.ended.clone());
        self.streams.get(&stream).map(of).unwrap_or_default()
    }

    pub(super) fn ended(&mut self) -> Replayed {
        Replayed {
            calls: self.calls,
            unmatched: std::mem::take(&mut self.unmatched),
            unmatched_dropped: self.unmatched_dropped,
            went_out: self.went_out,
            ..Replayed::default()
        }
    }
}

fn learn_read(chunks: &mut Vec<Bytes>, ended: &mut Ended, read: &Read) {
    match read {
        // The first end is the end: after a failure a stream is closed.
        _ if *ended != Ended::Unread => {}
        Read::Bytes(bytes) if bytes.is_empty() => {}
        Read::Bytes(bytes) => chunks.push(bytes.clone()),
        Read::Failed(why) => *ended = Ended::Broke(why.clone()),
        Read::Closed => *ended = Ended::Whole,
    }
}
