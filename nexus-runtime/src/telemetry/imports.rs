//! Which import of a guest a thread works for: told to the kernel's account by the spans that wasmtime's bindings of WASI open
//! around every call.
//!
//! The bindings are generated with tracing: each call is in a span `wit-bindgen import` (components) or `wiggle abi`
//! (preview 1), of the level TRACE, entered whenever the call's future is polled. [`Imports`] takes these for itself; everything
//! else goes to the subscriber within. They cost no allocation: an import's number is its span's id.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Debug;

use nexus_collector::ImportId;
use rustc_hash::FxBuildHasher;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_core::span::Current;
use tracing_subscriber::filter::LevelFilter;

/// The upper part of ids of spans of imports. No other has it: a registry's ids have the number of a thread in bits that are all
/// set here, and there are not so many threads.
const IMPORT: u64 = !0xffff;

thread_local! {
    static THREAD: RefCell<Thread> = RefCell::default();
}

#[derive(Default)]
struct Thread {
    /// By where in the bindings the span is: they are some hundred.
    known: HashMap<Identifier, ImportId, FxBuildHasher>,
    /// What the imports that are entered take the place of.
    before: Vec<ImportId>,
}

/// A subscriber around another.
pub struct Imports<S>(S);

impl<S: Subscriber> Imports<S> {
    /// Around this one.
    pub fn around(inner: S) -> Self {
        Self(inner)
    }
}

fn is_import(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && matches!(metadata.name(), "wit-bindgen import" | "wiggle abi")
}

fn import_of(id: &Id) -> Option<ImportId> {
    let number = id.into_u64();
    (number & IMPORT == IMPORT).then(|| ImportId::numbered(number as u16))
}

/// The span's fields that name the import.
#[derive(Default)]
struct Named {
    module: String,
    function: String,
}

impl Visit for Named {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "module" => value.clone_into(&mut self.module),
            "function" => value.clone_into(&mut self.function),
            _ => {}
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn Debug) {}
}

/// An import's full name. The span has the interface without its package, which the path of the generated code has:
/// `…::wasi::clocks::monotonic_clock` is `wasi:clocks/monotonic-clock`.
fn full_name(module_path: &str, named: &Named) -> String {
    let mut segments = module_path.rsplit("::");
    let (interface, package) = (segments.next().unwrap_or_default(), segments.next().unwrap_or_default());
    let namespace = segments.next().unwrap_or_default();
    if interface.replace('_', "-") == named.module && !namespace.is_empty() {
        format!("{namespace}:{}/{}.{}", package.replace('_', "-"), named.module, named.function)
    } else {
        format!("{}.{}", named.module, named.function)
    }
}

fn id_of(span: &Attributes<'_>) -> ImportId {
    let metadata = span.metadata();
    let named = || {
        let mut named = Named::default();
        span.record(&mut named);
        ImportId::of(&full_name(metadata.module_path().unwrap_or_default(), &named))
    };
    // Fails in the thread's last moments only.
    let known = THREAD.try_with(|thread| {
        let mut thread = thread.try_borrow_mut().ok()?;
        Some(*thread.known.entry(metadata.callsite()).or_insert_with(named))
    });
    known.ok().flatten().unwrap_or_else(named)
}

impl<S: Subscriber> Subscriber for Imports<S> {
    fn on_register_dispatch(&self, dispatch: &tracing::Dispatch) {
        self.0.on_register_dispatch(dispatch);
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_import(metadata) { Interest::always() } else { self.0.register_callsite(metadata) }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_import(metadata) || self.0.enabled(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // The spans are of this level; what else there is on it the subscriber within refuses at its first look.
        Some(LevelFilter::TRACE)
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        if is_import(span.metadata()) {
            return Id::from_u64(IMPORT | u64::from(id_of(span).number()));
        }
        self.0.new_span(span)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        if import_of(span).is_none() {
            self.0.record(span, values);
        }
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        if import_of(span).or(import_of(follows)).is_none() {
            self.0.record_follows_from(span, follows);
        }
    }

    fn event_enabled(&self, event: &Event<'_>) -> bool {
        self.0.event_enabled(event)
    }

    fn event(&self, event: &Event<'_>) {
        self.0.event(event);
    }

    fn enter(&self, span: &Id) {
        let Some(import) = import_of(span) else { return self.0.enter(span) };
        // As above.
        let _ = THREAD.try_with(|thread| {
            if let Ok(mut thread) = thread.try_borrow_mut() {
                thread.before.push(import.enter());
            }
        });
    }

    fn exit(&self, span: &Id) {
        if import_of(span).is_none() {
            return self.0.exit(span);
        }
        // As above.
        let _ = THREAD.try_with(|thread| {
            if let Some(before) = thread.try_borrow_mut().ok().and_then(|mut thread| thread.before.pop()) {
                before.enter();
            }
        });
    }

    fn clone_span(&self, id: &Id) -> Id {
        if import_of(id).is_some() { id.clone() } else { self.0.clone_span(id) }
    }

    fn try_close(&self, id: Id) -> bool {
        if import_of(&id).is_some() { false } else { self.0.try_close(id) }
    }

    fn current_span(&self) -> Current {
        self.0.current_span()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_spans_are_never_taken_for_imports() {
        let subscriber = Imports::around(tracing_subscriber::registry());
        tracing::subscriber::with_default(subscriber, || {
            // Their ids count how often their place was used.
            for _ in 0..20_000 {
                let span = tracing::info_span!("ordinary");
                assert!(import_of(&span.id().expect("enabled")).is_none());
            }
        });
    }

    #[test]
    fn imports_have_their_full_names() {
        let named = |module: &str, function: &str| Named { module: module.into(), function: function.into() };
        let path = "wasmtime_wasi::p2::bindings::async_io::wasi::filesystem::types";
        assert_eq!(
            full_name(path, &named("types", "[method]descriptor.read")),
            "wasi:filesystem/types.[method]descriptor.read"
        );
        let path = "wasmtime_wasi::p2::bindings::sync::wasi::clocks::monotonic_clock";
        assert_eq!(full_name(path, &named("monotonic-clock", "now")), "wasi:clocks/monotonic-clock.now");
        let path = "wasmtime_wasi::p1::wasi_snapshot_preview1";
        assert_eq!(full_name("x", &named("wasi_snapshot_preview1", "fd_read")), "wasi_snapshot_preview1.fd_read");
        assert_eq!(
            full_name("wasmtime_wasi::p1::types", &named("wasi_snapshot_preview1", "fd_read")),
            "wasi_snapshot_preview1.fd_read"
        );
        assert!(full_name(path, &named("wasi_snapshot_preview1", "fd_read")).ends_with(".fd_read"));
    }
}
