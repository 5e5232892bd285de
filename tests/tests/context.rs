//! What other programs of the host can read of a server, by OpenTelemetry's proposals: who it is (OTEP 4719), and for which trace its
//! threads work (OTEP 4947). Read as these say, from outside.

use std::os::unix::fs::FileExt as _;

use nexus_tests::Server;
use nexus_tests::server::program;
use object::{Object as _, ObjectSymbol as _};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;

#[derive(Clone, PartialEq, prost::Message)]
struct ProcessContext {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    attributes: Vec<KeyValue>,
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|a| a.key == key)?.value.clone()?.value?;
    match value {
        any_value::Value::StringValue(text) => Some(text),
        _ => None,
    }
}

#[test]
fn a_server_says_who_it_is() {
    let server = Server::builder().arg("--kernel").arg("off").env("OTEL_SERVICE_NAME", "orders").start();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.pid())).expect("maps");
    let line = maps.lines().find(|line| line.contains("OTEL_CTX")).unwrap_or_else(|| panic!("not published: {maps}"));
    let base = u64::from_str_radix(line.split('-').next().expect("an address"), 16).expect("hex");
    let memory = std::fs::File::open(format!("/proc/{}/mem", server.pid())).expect("its memory");
    let mut header = [0; 32];
    memory.read_exact_at(&mut header, base).expect("a header");
    let number = |at: usize, len: usize| header[at..at + len].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    assert_eq!((&header[..8], number(8, 4)), (&b"OTEL_CTX"[..], 2));
    assert!(number(16, 8) > 1_700_000_000_000_000_000, "published at {}", number(16, 8));
    let mut payload = vec![0; usize::try_from(number(12, 4)).expect("a length")];
    memory.read_exact_at(&mut payload, number(24, 8)).expect("a payload");
    let context = <ProcessContext as prost::Message>::decode(&payload[..]).expect("a context");
    let resource = context.resource.expect("a resource").attributes;
    assert_eq!(text(&resource, "service.name").as_deref(), Some("orders"));
    assert_eq!(text(&resource, "faas.instance"), Some(format!("pid {}", server.pid())));
    assert_eq!(text(&context.attributes, "threadlocal.schema_version").as_deref(), Some("tlsdesc_v1_dev"));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_threads_variable_is_found_by_its_name() {
    let bytes = std::fs::read(program()).expect("the program");
    let file = object::File::parse(&bytes[..]).expect("an ELF file");
    let symbol = file.dynamic_symbols().find(|symbol| symbol.name() == Ok("otel_thread_ctx_v1")).expect("exported");
    assert_eq!((symbol.kind(), symbol.size()), (object::SymbolKind::Tls, 8));
}
