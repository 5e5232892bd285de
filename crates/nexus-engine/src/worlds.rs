//! The worlds that a function may be of, linked once, instantiated for every invocation.

use std::path::Path;
use std::sync::Arc;

use nexus_core::function::FunctionKind;
use nexus_core::ids::Digest;
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};
use wasmtime::{Engine as Wasmtime, Module};
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

use crate::cache::{self, Artifact};
use crate::engine::{self, Engine, Profile, ProfileEngine};
use crate::host::{Host, Preview1Host};
use crate::kind::{self, Form, Rejected};
use crate::tape;
use crate::{EngineError, kind::missing_import};

/// What is offered to guests, for one engine.
pub(crate) struct Linkers {
    component: Linker<Host>,
    module: wasmtime::Linker<Preview1Host>,
}

impl Linkers {
    pub fn new(engine: &Wasmtime) -> wasmtime::Result<Self> {
        let mut component = Linker::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut component)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut component)?;
        component.allow_shadowing(true);
        tape::io::link(&mut component)?;
        tape::http::link(&mut component)?;
        tape::random::link(&mut component)?;
        tape::files::link(&mut component)?;
        let mut module = wasmtime::Linker::new(engine);
        wasmtime_wasi::p1::add_to_linker_async(&mut module, |host: &mut Preview1Host| &mut host.wasi)?;
        module.allow_shadowing(true);
        tape::preview1::link(&mut module)?;
        Ok(Self { component, module })
    }
}

/// A function that is ready to run: compiled, linked, its memory image mapped.
pub struct Loaded {
    pub(crate) engine: Arc<Engine>,
    pub(crate) profile: Profile,
    /// In the pool, for one instance.
    pub(crate) places: u32,
    pub(crate) world: World,
}

/// One function of a guest's code in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// Its first address.
    pub start: u64,
    /// The address behind its last.
    pub end: u64,
    /// Its name from the component's name section, as it stands there; its number where it has none.
    pub name: String,
}

fn of_component<T>(
    component: &Component,
    collect: impl FnOnce(&[u8], &mut dyn Iterator<Item = wasmtime::ModuleFunction>) -> T,
) -> T {
    collect(component.text(), &mut component.functions())
}

pub(crate) enum World {
    Http(ProxyPre<Host>),
    Cli(CommandPre<Host>),
    Nexus { pre: InstancePre<Host>, handle: ComponentExportIndex },
    Preview1(wasmtime::InstancePre<Preview1Host>),
}

impl Loaded {
    /// What kind of function it is.
    pub fn kind(&self) -> FunctionKind {
        match self.world {
            World::Http(_) => FunctionKind::WasiHttp,
            World::Cli(_) => FunctionKind::WasiCli,
            World::Nexus { .. } => FunctionKind::NexusFunction,
            World::Preview1(_) => FunctionKind::Preview1,
        }
    }

    /// The function's own code, as it lies in memory for as long as this does: by address, without gaps. What the compiler
    /// put between functions, to call in and out, is there as `[trampoline]`.
    pub fn code(&self) -> Vec<Code> {
        let collect = |text: &[u8], functions: &mut dyn Iterator<Item = wasmtime::ModuleFunction>| {
            let base = text.as_ptr() as u64;
            let code = |f: wasmtime::ModuleFunction| Code {
                start: base + f.offset as u64,
                end: base + (f.offset + f.len) as u64,
                name: f.name.unwrap_or_else(|| format!("wasm function {}", f.index.as_u32())),
            };
            let mut functions: Vec<Code> = functions.map(code).collect();
            functions.sort_by_key(|code| code.start);
            let mut all = Vec::with_capacity(2 * functions.len() + 1);
            let mut end = base;
            let gap = |start, end| Code { start, end, name: "[trampoline]".into() };
            for function in functions {
                if function.start > end {
                    all.push(gap(end, function.start));
                }
                end = function.end;
                all.push(function);
            }
            all.push(gap(end, base + text.len() as u64));
            all
        };
        match &self.world {
            World::Http(pre) => of_component(pre.instance_pre().component(), collect),
            World::Cli(pre) => of_component(pre.instance_pre().component(), collect),
            World::Nexus { pre, .. } => of_component(pre.component(), collect),
            World::Preview1(pre) => collect(pre.module().text(), &mut pre.module().functions()),
        }
    }

    /// From which offset of the component's (or module's) bytes the code is that begins at an address, by address; `None`: from
    /// none.
    pub fn offsets(&self) -> Vec<(u64, Option<u32>)> {
        let of = |text: &[u8], map: &mut dyn Iterator<Item = (usize, Option<u32>)>| {
            let base = text.as_ptr() as u64;
            let mut offsets: Vec<_> = map.map(|(at, from)| (base + at as u64, from)).collect();
            offsets.sort_by_key(|(at, _)| *at);
            offsets
        };
        let component = |c: &Component| match c.address_map() {
            Some(mut map) => of(c.text(), &mut map),
            None => Vec::new(),
        };
        match &self.world {
            World::Http(pre) => component(pre.instance_pre().component()),
            World::Cli(pre) => component(pre.instance_pre().component()),
            World::Nexus { pre, .. } => component(pre.component()),
            World::Preview1(pre) => match pre.module().address_map() {
                Some(mut map) => of(pre.module().text(), &mut map),
                None => Vec::new(),
            },
        }
    }

    pub(crate) fn profile_engine(&self) -> &ProfileEngine {
        self.engine.profile(self.profile)
    }
}

impl Engine {
    /// Compiles a component or module and keeps the artifact; also checks that it can be linked here. Takes as long as
    /// compiling does (seconds for megabytes): call it where blocking is allowed. What is kept already is only loaded.
    pub fn compile(
        self: &Arc<Self>,
        bytes: &[u8],
        digest: Digest,
        profile: Profile,
    ) -> Result<Arc<Loaded>, EngineError> {
        let form = kind::form(bytes)?;
        if let Some(loaded) = self.load(digest, profile)? {
            return Ok(loaded);
        }
        let wasmtime = &self.profile(profile).wasmtime;
        let invalid = |e: wasmtime::Error| Rejected::Invalid(format!("{e:#}"));
        let (artifact, code) = match form {
            Form::Component => {
                let component = Component::from_binary(wasmtime, bytes).map_err(invalid)?;
                let code = component.serialize().map_err(invalid)?;
                (Artifact::Component(component), code)
            }
            Form::Module => {
                let module = Module::from_binary(wasmtime, bytes).map_err(invalid)?;
                let code = module.serialize().map_err(invalid)?;
                (Artifact::Module(module), code)
            }
        };
        let loaded = self.link(artifact, profile)?;
        cache::write(&self.artifact_path(digest, profile), &code)?;
        Ok(loaded)
    }

    /// Maps a compiled artifact back and links it: the work of a cold start. `None` if it was not compiled yet.
    pub fn load(self: &Arc<Self>, digest: Digest, profile: Profile) -> Result<Option<Arc<Loaded>>, EngineError> {
        let path = self.artifact_path(digest, profile);
        match cache::read(&path, &self.profile(profile).wasmtime)? {
            Some(artifact) => Ok(Some(self.link(artifact, profile)?)),
            None => Ok(None),
        }
    }

    fn artifact_path(&self, digest: Digest, profile: Profile) -> std::path::PathBuf {
        cache::path(Path::new(&self.config.cache_dir), &self.profile(profile).wasmtime, digest, profile)
    }

    fn link(self: &Arc<Self>, artifact: Artifact, profile: Profile) -> Result<Arc<Loaded>, EngineError> {
        let ProfileEngine { wasmtime, linkers, places_max, .. } = self.profile(profile);
        let needed = match &artifact {
            Artifact::Component(component) => component.resources_required(),
            Artifact::Module(module) => Some(module.resources_required()),
        };
        // Not known for a component that imports modules, which nobody offers: linking refuses it.
        let places = needed.as_ref().map_or(1, engine::places_for);
        if places > *places_max {
            return Err(Rejected::TooLarge(format!(
                "its memories and tables take {places} places of the pool for instances, which has {places_max}"
            ))
            .into());
        }
        let world = match artifact {
            Artifact::Component(component) => {
                let imports = || {
                    let ty = component.component_type();
                    ty.imports(wasmtime).map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
                };
                let unlinked = |e: wasmtime::Error| missing_import(&e, imports().into_iter());
                // Linked before its exports are looked at: a component of another host lacks both, and its import says more.
                let pre = linkers.component.instantiate_pre(&component).map_err(unlinked)?;
                match kind::of_component(wasmtime, &component)? {
                    FunctionKind::WasiHttp => World::Http(ProxyPre::new(pre).map_err(unlinked)?),
                    FunctionKind::WasiCli => World::Cli(CommandPre::new(pre).map_err(unlinked)?),
                    FunctionKind::NexusFunction | FunctionKind::Preview1 => {
                        let handle = component
                            .get_export_index(None, "handle")
                            .ok_or(Rejected::NoEntry { what: "component", exports: "nothing".into() })?;
                        World::Nexus { pre, handle }
                    }
                }
            }
            Artifact::Module(module) => {
                let imports = || module.imports().map(|i| format!("{}::{}", i.module(), i.name())).collect::<Vec<_>>();
                let unlinked = |e: wasmtime::Error| missing_import(&e, imports().into_iter());
                let pre = linkers.module.instantiate_pre(&module).map_err(unlinked)?;
                kind::of_module(&module)?;
                World::Preview1(pre)
            }
        };
        Ok(Arc::new(Loaded { engine: self.clone(), profile, places, world }))
    }
}
