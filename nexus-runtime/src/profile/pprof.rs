//! The format of pprof (github.com/google/pprof, proto/profile.proto), as far as it is needed here.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write as _;
use std::time::UNIX_EPOCH;

use flate2::Compression;
use flate2::write::GzEncoder;
use nexus_collector::Sampled;
use prost::Message;
use rustix::param::page_size;

use super::symbols::{Frame, Part};
use super::{Stack, Weight};

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, repeated, tag = "13")]
    comment: Vec<i64>,
    #[prost(int64, tag = "14")]
    default_sample_type: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    memory_start: u64,
    #[prost(uint64, tag = "3")]
    memory_limit: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// Texts by their place in the table, the first of which is empty.
struct Texts {
    table: Vec<String>,
    places: HashMap<String, i64>,
}

impl Texts {
    fn place(&mut self, text: &str) -> i64 {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let place = self.table.len() as i64;
        self.table.push(text.to_owned());
        self.places.insert(text.to_owned(), place);
        place
    }
}

/// The profile in its wire format, compressed with gzip as is the custom.
pub fn encode(profile: &mut super::Profile) -> std::io::Result<Vec<u8>> {
    let mut texts = Texts { table: vec![String::new()], places: HashMap::from([(String::new(), 0)]) };
    let mut kind = |kind: &str, unit: &str| ValueType { kind: texts.place(kind), unit: texts.place(unit) };
    // How often, and how much.
    let (names, period) = match profile.sampled {
        Sampled::Clock { hz } => ([("samples", "count"), ("cpu", "nanoseconds")], 1_000_000_000 / i64::from(hz)),
        Sampled::Blocked { .. } => ([("waits", "count"), ("off_cpu", "nanoseconds")], 1),
        Sampled::PageFaults => ([("page_faults", "count"), ("touched", "bytes")], page_size() as i64),
    };
    let sample_type = names.map(|(name, unit)| kind(name, unit)).to_vec();
    let period_type = sample_type.last().cloned();
    let parts = [
        (Part::Guest, format!("{} (WebAssembly)", profile.function)),
        (Part::Host, "nexus".to_owned()),
        (Part::Kernel, "[kernel]".to_owned()),
    ];
    let mapping_id = |part: Part| parts.iter().position(|(p, _)| *p == part).map_or(0, |at| at as u64 + 1);
    let mapping = parts
        .iter()
        .map(|(part, name)| Mapping {
            id: mapping_id(*part),
            // Where they are in memory says nothing to who reads this: every location has its names.
            memory_start: 0,
            memory_limit: 0,
            filename: texts.place(name),
            has_functions: true,
        })
        .collect();
    let mut wire = Profile { sample_type, mapping, period_type, period, ..Profile::default() };
    let mut functions: HashMap<(String, Option<String>), u64> = HashMap::new();
    // A blocking call has no address, but a name.
    let mut locations: HashMap<(u64, Option<Cow<'static, str>>), u64> = HashMap::new();
    let stacks: Vec<(Stack, Weight)> = profile.stacks.drain().collect();
    for (stack, weight) in stacks {
        let mut location_id = Vec::new();
        for (address, frames) in profile.frames(&stack) {
            let key = (address, stack.blocked_in.clone().filter(|_| address == 0));
            let known = locations.get(&key).copied();
            location_id.push(known.unwrap_or_else(|| {
                let id = wire.location.len() as u64 + 1;
                let line = |frame: &Frame| {
                    let next = functions.len() as u64 + 1;
                    let function_id = *functions.entry((frame.name.clone(), frame.file.clone())).or_insert_with(|| {
                        let name = texts.place(&frame.name);
                        let filename = texts.place(frame.file.as_deref().unwrap_or_default());
                        wire.function.push(Function { id: next, name, system_name: name, filename });
                        next
                    });
                    Line { function_id, line: i64::from(frame.line) }
                };
                let mapping_id = frames.first().map_or(0, |frame| mapping_id(frame.part));
                let line = frames.iter().map(line).collect();
                wire.location.push(Location { id, mapping_id, address, line });
                locations.insert(key, id);
                id
            }));
        }
        let mut label = vec![Label { key: texts.place("version"), text: texts.place(&stack.version.to_string()) }];
        if let Some((trace, span)) = stack.trace() {
            label.push(Label { key: texts.place("trace_id"), text: texts.place(&trace.to_string()) });
            label.push(Label { key: texts.place("span_id"), text: texts.place(&span.to_string()) });
        }
        let count = weight.samples as i64;
        let amount = if stack.blocked_in.is_some() { weight.off_cpu_ns as i64 } else { count * period };
        wire.sample.push(Sample { location_id, value: vec![count, amount], label });
    }
    wire.time_nanos = profile.began.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    wire.duration_nanos = profile.duration.as_nanos() as i64;
    wire.default_sample_type = texts.place(names[1].0);
    if profile.dropped > 0 {
        wire.comment.push(texts.place(&format!("{} samples found no room", profile.dropped)));
    }
    wire.string_table = texts.table;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&wire.encode_to_vec())?;
    gzip.finish()
}
