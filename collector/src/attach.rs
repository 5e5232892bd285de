//! The probes' programs: which attach to what, in which order, and how much is attached at a time.

use std::borrow::Cow;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::Ebpf;
use aya::programs::perf_event::{PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent};
use aya::programs::raw_trace_point::RawTracePointLinkId;
use aya::programs::{PerfEvent, ProgramError, RawTracePoint};
use aya::util::online_cpus;

use crate::error::ProbesError;
use crate::raw;
use crate::slots::{Detail, Level};

/// Who joins and leaves: always attached. The order is that of attaching: who joins a tree before who counts.
const MEMBERSHIP: [(&str, &str); 3] =
    [("nexus_fork", "sched_process_fork"), ("nexus_exec", "sched_process_exec"), ("nexus_exit", "sched_process_exit")];

/// Who counts system calls. An exit without its entry belongs to nobody, an entry without its exit would go on for ever: so
/// exits are watched first, and left last.
const SYSCALLS: [(&str, &str); 2] = [("nexus_sys_exit", "sys_exit"), ("nexus_sys_enter", "sys_enter")];

/// The family that watches scheduling.
const SCHEDULING: [(&str, &str); 2] = [("nexus_sched_wakeup", "sched_wakeup"), ("nexus_sched_switch", "sched_switch")];

/// The family that counts page faults, beside [`MAJOR_FAULT`].
const PAGE_FAULTS: [(&str, &str); 2] =
    [("nexus_page_fault_kernel", "page_fault_kernel"), ("nexus_page_fault_user", "page_fault_user")];

/// The probe of the software event of page faults that need the disk.
const MAJOR_FAULT: &str = "nexus_major_fault";

/// The probe of the CPUs' clocks, attached while a profile is taken.
pub(crate) const SAMPLE: &str = "nexus_sample";

/// How often a program is offered to the kernel while signals interrupt it.
const LOAD_ATTEMPTS: usize = 100;

/// The loaded programs, and what of them is attached.
pub(crate) struct Programs {
    ebpf: Ebpf,
    /// In the order of attaching.
    syscalls: Vec<(&'static str, RawTracePointLinkId)>,
    detail: Vec<(&'static str, RawTracePointLinkId)>,
    major_fault: Vec<PerfEventLinkId>,
}

impl Programs {
    /// Loads every program, attaches who joins and leaves, and says what else can be had. With `scheduling` off that is only
    /// loaded.
    pub(crate) fn load(mut ebpf: Ebpf, scheduling: bool) -> Result<(Self, Detail), ProbesError> {
        for (name, _) in MEMBERSHIP.iter().chain(&SYSCALLS) {
            load_program(&mut ebpf, name)?;
        }
        for (name, tracepoint) in MEMBERSHIP {
            attach(&mut ebpf, name, tracepoint)?;
        }
        let mut programs = Self { ebpf, syscalls: Vec::new(), detail: Vec::new(), major_fault: Vec::new() };
        let detail = programs.load_detail(scheduling);
        Ok((programs, detail))
    }

    /// What cannot be had says why, and everything else goes on.
    fn load_detail(&mut self, scheduling: bool) -> Detail {
        let because = |what: &str, error: ProbesError| Cow::from(format!("{what} cannot be watched: {error}"));
        let profiles = load_perf_event(&mut self.ebpf, SAMPLE).map(drop).map_err(|error| because("profiles", error));
        if !scheduling {
            let off: Cow<'static, str> = "scheduling is not watched, by configuration".into();
            return Detail {
                scheduling: Err(off.clone()),
                disk_waits: Err(off.clone()),
                page_faults: Err(off),
                profiles,
            };
        }
        let load = |ebpf: &mut Ebpf, programs: &[(&'static str, &'static str)]| {
            programs.iter().try_for_each(|(name, _)| load_program(ebpf, name).map(drop))
        };
        // Attached for a moment, so that what the kernel will not have is known now.
        let scheduling = load(&mut self.ebpf, &SCHEDULING)
            .and_then(|()| self.attach_family(&SCHEDULING))
            .map_err(|error| because("scheduling", error));
        let page_faults = load(&mut self.ebpf, &PAGE_FAULTS)
            .and_then(|()| load_perf_event(&mut self.ebpf, MAJOR_FAULT).map(drop))
            .and_then(|()| self.attach_family(&PAGE_FAULTS))
            .and_then(|()| self.attach_major_fault())
            .map_err(|error| because("page faults", error));
        self.detach_detail();
        Detail { disk_waits: scheduling.clone(), scheduling, page_faults, profiles }
    }

    /// Attaches what the level asks for and can be had, and nothing else.
    pub(crate) fn set_level(&mut self, level: Level, detail: &Detail) -> Result<(), ProbesError> {
        self.detach_detail();
        if level == Level::Off {
            for (name, link) in std::mem::take(&mut self.syscalls).into_iter().rev() {
                if let Ok(program) = raw_tracepoint(&mut self.ebpf, name) {
                    // As in `detach_detail`.
                    let _ = program.detach(link);
                }
            }
            return Ok(());
        }
        for (name, tracepoint) in SYSCALLS {
            // Where an earlier try ended half-way, the other half.
            if !self.syscalls.iter().any(|(attached, _)| *attached == name) {
                self.syscalls.push((name, attach(&mut self.ebpf, name, tracepoint)?));
            }
        }
        if level == Level::Full {
            if detail.scheduling.is_ok() {
                self.attach_family(&SCHEDULING)?;
            }
            if detail.page_faults.is_ok() {
                self.attach_family(&PAGE_FAULTS)?;
                self.attach_major_fault()?;
            }
        }
        Ok(())
    }

    /// Detaches everything, who counts first and entries before exits: whoever sees a call counted knows that nothing is gone.
    pub(crate) fn detach(&mut self) {
        let entry = self.syscalls.iter().position(|(name, _)| *name == SYSCALLS[1].0);
        if let Some((name, link)) = entry.map(|at| self.syscalls.remove(at))
            && let Ok(program) = raw_tracepoint(&mut self.ebpf, name)
        {
            // As in `detach_detail`.
            let _ = program.detach(link);
        }
        self.detach_detail();
        self.syscalls.clear();
    }

    fn attach_family(&mut self, family: &[(&'static str, &'static str)]) -> Result<(), ProbesError> {
        for (name, tracepoint) in family {
            self.detail.push((name, attach(&mut self.ebpf, name, tracepoint)?));
        }
        Ok(())
    }

    fn attach_major_fault(&mut self) -> Result<(), ProbesError> {
        let failed = |error| ProbesError::from_program(MAJOR_FAULT, error);
        for cpu in cpus()? {
            let event = PerfEventConfig::Software(SoftwareEvent::PageFaultsMaj);
            let scope = PerfEventScope::AllProcessesOneCpu { cpu };
            let program = perf_event(&mut self.ebpf, MAJOR_FAULT)?;
            self.major_fault.push(program.attach(event, scope, SamplePolicy::Period(1), false).map_err(failed)?);
        }
        Ok(())
    }

    fn detach_detail(&mut self) {
        // A link that cannot be detached is gone already: there is nothing else that could fail.
        for (name, link) in std::mem::take(&mut self.detail).into_iter().rev() {
            if let Ok(program) = raw_tracepoint(&mut self.ebpf, name) {
                let _ = program.detach(link);
            }
        }
        for link in std::mem::take(&mut self.major_fault) {
            if let Ok(program) = perf_event(&mut self.ebpf, MAJOR_FAULT) {
                let _ = program.detach(link);
            }
        }
    }

    /// Lets the clock of every CPU strike, until what is returned is dropped.
    pub(crate) fn attach_sample(
        &mut self,
        hz: u32,
    ) -> Result<Vec<aya::programs::perf_event::PerfEventLink>, ProbesError> {
        let failed = |error| ProbesError::from_program(SAMPLE, error);
        let mut links = Vec::new();
        for cpu in cpus()? {
            let event = PerfEventConfig::Software(SoftwareEvent::CpuClock);
            let scope = PerfEventScope::AllProcessesOneCpu { cpu };
            let program = perf_event(&mut self.ebpf, SAMPLE)?;
            let id = program.attach(event, scope, SamplePolicy::Frequency(u64::from(hz)), false).map_err(failed)?;
            links.push(program.take_link(id).map_err(failed)?);
        }
        Ok(links)
    }

    /// How often the kernel left a probe out.
    pub(crate) fn recursion_misses(&self) -> Result<u64, ProbesError> {
        let families = [&MEMBERSHIP[..], &SYSCALLS, &SCHEDULING, &PAGE_FAULTS];
        let all = families.into_iter().flatten().map(|(name, _)| name).chain([&MAJOR_FAULT, &SAMPLE]);
        let mut sum = 0;
        for (name, program) in all.filter_map(|name| Some((name, self.ebpf.program(name)?))) {
            // One of a family that could not be loaded.
            if matches!(program.fd(), Err(ProgramError::NotLoaded)) {
                continue;
            }
            let failed = |message: String| ProbesError::Other { what: format!("ask the kernel about {name}"), message };
            let fd = program.fd().map_err(|error| failed(error.to_string()))?;
            sum += raw::recursion_misses(fd).map_err(|error| failed(error.to_string()))?;
        }
        Ok(sum)
    }
}

fn cpus() -> Result<Vec<u32>, ProbesError> {
    online_cpus().map_err(|(what, error)| ProbesError::from_io(what, error))
}

fn attach(ebpf: &mut Ebpf, name: &'static str, tracepoint: &'static str) -> Result<RawTracePointLinkId, ProbesError> {
    raw_tracepoint(ebpf, name)?.attach(tracepoint).map_err(|error| ProbesError::from_program(name, error))
}

/// Loads the program that tells the kernel's id of a thread.
pub(crate) fn load_whoami(ebpf: &mut Ebpf) -> Result<OwnedFd, ProbesError> {
    const NAME: &str = "nexus_whoami";
    let program = load_program(ebpf, NAME)?;
    let fd = program.fd().map_err(|error| ProbesError::from_program(NAME, error))?;
    fd.as_fd().try_clone_to_owned().map_err(|error| ProbesError::from_io(format!("keep the probe {NAME}"), error))
}

fn load_program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut RawTracePoint, ProbesError> {
    let program = raw_tracepoint(ebpf, name)?;
    load_patiently(|| program.load()).map_err(|error| ProbesError::from_program(name, error))?;
    Ok(program)
}

fn load_perf_event<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut PerfEvent, ProbesError> {
    let program = perf_event(ebpf, name)?;
    load_patiently(|| program.load()).map_err(|error| ProbesError::from_program(name, error))?;
    Ok(program)
}

fn raw_tracepoint<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut RawTracePoint, ProbesError> {
    let program = ebpf.program_mut(name).ok_or_else(|| no_program(name))?;
    program.try_into().map_err(|error| ProbesError::from_program(name, error))
}

fn perf_event<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut PerfEvent, ProbesError> {
    let program = ebpf.program_mut(name).ok_or_else(|| no_program(name))?;
    program.try_into().map_err(|error| ProbesError::from_program(name, error))
}

/// The verifier gives up with EAGAIN when a signal comes for the thread, as happens to a program whose children end.
fn load_patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    for _ in 1..LOAD_ATTEMPTS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            ended => return ended,
        }
    }
    load()
}

fn no_program(name: &str) -> ProbesError {
    ProbesError::Other { what: format!("find the probe {name}"), message: "the object lacks it".into() }
}
