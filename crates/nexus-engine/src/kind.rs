//! Telling the kinds of function apart, and saying no.

use nexus_core::function::FunctionKind;
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

/// A file that cannot be deployed; says what it is and what it lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// No bytes at all.
    #[error("the file is empty; a WebAssembly component or a preview-1 module is expected")]
    Empty,
    /// Not WebAssembly.
    #[error("the file is not WebAssembly: it begins with {0}, not with \\0asm")]
    NotWasm(String),
    /// WebAssembly that does not validate or compile.
    #[error("the file is not valid WebAssembly: {0}")]
    Invalid(String),
    /// It exports nothing that we can call.
    #[error(
        "the {what} exports nothing that Nexus can call; it must export wasi:http/incoming-handler@0.2, \
         wasi:cli/run@0.2, or `handle` of nexus:function, or be a preview-1 module with `_start`. It exports: {exports}"
    )]
    NoEntry {
        /// Component or module.
        what: &'static str,
        /// What it does export.
        exports: String,
    },
    /// It imports what we do not offer.
    #[error("the function needs {import}, which Nexus does not offer: {detail}")]
    MissingImport {
        /// The import's name.
        import: String,
        /// The linker's words.
        detail: String,
    },
    /// It needs more than the pool's places have.
    #[error("the function does not fit: {0}")]
    TooLarge(String),
}

/// What the bytes are by their first eight: a component or a core module.
pub(crate) enum Form {
    Component,
    Module,
}

pub(crate) fn form(bytes: &[u8]) -> Result<Form, Rejected> {
    if bytes.is_empty() {
        return Err(Rejected::Empty);
    }
    match bytes {
        [0, b'a', b's', b'm', _, _, 0, 0, ..] => Ok(Form::Module),
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => Ok(Form::Component),
        [0, b'a', b's', b'm', ..] => Err(Rejected::Invalid("its header ends too early".into())),
        _ => {
            let head: String = bytes.iter().take(8).flat_map(|b| b.escape_ascii()).map(char::from).collect();
            Err(Rejected::NotWasm(format!("{head:?}")))
        }
    }
}

pub(crate) fn of_component(engine: &Engine, component: &Component) -> Result<FunctionKind, Rejected> {
    let ty = component.component_type();
    let mut exports = Vec::new();
    for (name, item) in ty.exports(engine) {
        if name.starts_with("wasi:http/incoming-handler@0.2.") {
            return Ok(FunctionKind::WasiHttp);
        }
        if name.starts_with("wasi:cli/run@0.2.") {
            return Ok(FunctionKind::WasiCli);
        }
        if name == "handle" && is_handle(&item.ty) {
            return Ok(FunctionKind::NexusFunction);
        }
        exports.push(name.to_owned());
    }
    Err(Rejected::NoEntry { what: "component", exports: listed(exports) })
}

/// `func(list<u8>) -> result<list<u8>, string>`, exactly.
fn is_handle(item: &wasmtime::component::types::ComponentItem) -> bool {
    use wasmtime::component::types::{ComponentItem, Type};
    let ComponentItem::ComponentFunc(func) = item else { return false };
    let bytes = |ty: &Type| matches!(ty, Type::List(list) if matches!(list.ty(), Type::U8));
    let mut params = func.params();
    let mut results = func.results();
    let one_param = matches!((params.next(), params.next()), (Some((_, ty)), None) if bytes(&ty));
    let Some(Type::Result(result)) = results.next() else { return false };
    one_param && result.ok().is_some_and(|ty| bytes(&ty)) && matches!(result.err(), Some(Type::String))
}

pub(crate) fn of_module(module: &Module) -> Result<FunctionKind, Rejected> {
    if module.get_export("_start").is_some_and(|e| e.func().is_some()) {
        return Ok(FunctionKind::Preview1);
    }
    let exports = module.exports().map(|e| e.name().to_owned()).collect();
    Err(Rejected::NoEntry { what: "module", exports: listed(exports) })
}

fn listed(names: Vec<String>) -> String {
    match names.len() {
        0 => "nothing".into(),
        n if n > 12 => format!("{}, and {} more", names[..12].join(", "), n - 12),
        _ => names.join(", "),
    }
}

/// Names the import in a linker's error. wasmtime says it only in text; the text is shown whole beside it.
pub(crate) fn missing_import(error: &wasmtime::Error, imports: impl Iterator<Item = String>) -> Rejected {
    let detail = format!("{error:#}");
    let import = imports
        .filter(|name| detail.contains(name.as_str()))
        .max_by_key(String::len)
        .unwrap_or_else(|| "an import".into());
    Rejected::MissingImport { import, detail }
}
