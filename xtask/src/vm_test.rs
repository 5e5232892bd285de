//! `cargo xtask vm-test`: the probes on other kernels, in virtual machines.
//!
//! Kernels are Debian's packages; the machine is qemu's, by emulation, so that it needs no privilege and runs anywhere. Its first
//! and only program is collector/examples/vm_init.rs, with the libraries that it is linked to.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process::root;

/// What is tried unless said: names of packages begin so, and the newest of each is taken.
const KERNELS: [&str; 2] = ["linux-image-6.1.", "linux-image-6.12."];

/// How long a machine may take. Emulated, on a slow computer, it is a minute.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the program says when all is well.
const WELL: &str = "nexus-vm-test: well";

const QEMU: &str = "qemu-system-x86_64";

/// Tries each kernel.
pub fn run(wanted: &[String]) -> Result<()> {
    let installed = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    ensure!(installed, "{QEMU} is missing: apt-get install --no-install-recommends qemu-system-x86");
    let work = root().join("target/vm-test");
    std::fs::create_dir_all(&work)?;
    let image = work.join("initramfs");
    build_image(&image)?;
    let wanted = if wanted.is_empty() { KERNELS.map(str::to_owned).to_vec() } else { wanted.to_vec() };
    let mut failed = Vec::new();
    for prefix in &wanted {
        let package = newest(prefix)?;
        println!("{package}");
        let kernel = fetch(&package, &work)?;
        if !boot(&kernel, &image)? {
            failed.push(package);
        }
    }
    ensure!(failed.is_empty(), "the probes do not work on {}", failed.join(", "));
    Ok(())
}

/// The newest package whose name begins so: for clouds, which are the smallest, unless the name says which.
fn newest(prefix: &str) -> Result<String> {
    let suffix = if prefix.ends_with("amd64") { "" } else { "cloud-amd64" };
    let pattern = format!("^{}.*{suffix}$", prefix.replace('.', "\\.").replace('+', "\\+"));
    let listed = Command::new("apt-cache").args(["search", "--names-only", &pattern]).output().context("apt-cache")?;
    let names = String::from_utf8(listed.stdout)?;
    let is_kernel = |name: &&str| name.starts_with("linux-image-") && !name.contains("unsigned");
    let names = names.lines().filter_map(|line| line.split_whitespace().next()).filter(is_kernel);
    let numbers = |name: &&str| {
        let numbers = name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok());
        numbers.collect::<Vec<_>>()
    };
    let newest = names.max_by_key(numbers);
    newest.map(str::to_owned).with_context(|| format!("there is no package {prefix}…; `apt-get update` lists them"))
}

/// The kernel of a package, unpacked and not installed.
fn fetch(package: &str, work: &Path) -> Result<PathBuf> {
    let folder = work.join(package);
    let kernel = || -> Option<PathBuf> {
        let entries = std::fs::read_dir(folder.join("boot")).ok()?;
        let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.find(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz")))
    };
    if let Some(found) = kernel() {
        return Ok(found);
    }
    let downloaded = Command::new("apt-get")
        .args(["download", "--quiet=2", "-o", "APT::Sandbox::User=root", package])
        .current_dir(work)
        .status()?;
    ensure!(downloaded.success(), "apt-get download {package} failed");
    let mut archive = None;
    for entry in std::fs::read_dir(work)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&format!("{package}_")) && name.ends_with(".deb") {
            archive = Some(path);
        }
    }
    let archive = archive.with_context(|| format!("{package} was not downloaded"))?;
    // Only the kernel itself: its modules are many times as large.
    let unpack = format!(
        "mkdir -p '{1}' && dpkg-deb --fsys-tarfile '{0}' | tar --extract --directory '{1}' --wildcards './boot/*'",
        archive.display(),
        folder.display()
    );
    ensure!(Command::new("sh").args(["-c", &unpack]).status()?.success(), "{package} cannot be unpacked");
    std::fs::remove_file(&archive)?;
    kernel().with_context(|| format!("{package} has no kernel"))
}

/// The machine's file system: the program, its libraries, and folders to mount on.
fn build_image(image: &Path) -> Result<()> {
    let built = Command::new("cargo")
        .args(["build", "--quiet", "--package", "nexus-collector", "--example", "vm_init"])
        .current_dir(root())
        .status()?;
    ensure!(built.success(), "the program for the machine does not build");
    let program = root().join("target/debug/examples/vm_init");
    let mut archive = Archive(File::create(image)?);
    let mut folders = Vec::new();
    let libraries = Command::new("ldd").arg(&program).output().context("ldd")?;
    let libraries = String::from_utf8(libraries.stdout)?;
    let libraries: Vec<&str> =
        libraries.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).collect();
    for library in &libraries {
        for folder in Path::new(library).ancestors().skip(1) {
            let folder = folder.display().to_string();
            if folder != "/" && !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    folders.extend(["/proc", "/sys", "/tmp", "/dev"].map(str::to_owned));
    folders.sort();
    for folder in &folders {
        archive.entry(folder, 0o040_755, &[])?;
    }
    archive.entry("/init", 0o100_755, &std::fs::read(&program)?)?;
    for library in libraries {
        archive.entry(library, 0o100_755, &std::fs::read(library).with_context(|| library.to_owned())?)?;
    }
    archive.entry("TRAILER!!!", 0, &[])
}

/// A cpio archive in the format that the kernel unpacks (`newc`, Documentation/driver-api/early-userspace/buffer-format.rst).
struct Archive(File);

impl Archive {
    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let name = path.trim_start_matches('/');
        let fields = [0, mode, 0, 0, 1, 0, u32::try_from(bytes.len())?, 0, 0, 0, 0, u32::try_from(name.len())? + 1, 0];
        let mut entry = b"070701".to_vec();
        for field in fields {
            write!(entry, "{field:08x}")?;
        }
        entry.extend_from_slice(name.as_bytes());
        entry.push(0);
        pad(&mut entry);
        entry.extend_from_slice(bytes);
        pad(&mut entry);
        self.0.write_all(&entry)?;
        Ok(())
    }
}

/// Up to a multiple of four bytes.
fn pad(entry: &mut Vec<u8>) {
    entry.resize(entry.len().next_multiple_of(4), 0);
}

/// Boots a kernel with the image, and shows what the program says. Whether all is well.
fn boot(kernel: &Path, image: &Path) -> Result<bool> {
    let began = Instant::now();
    let mut machine = Command::new(QEMU)
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"])
        .args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1024"])
        // The emulated counter is good enough, which the kernel cannot know: without it the clock is read by a system call, and
        // scheduling is not watched.
        .args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init tsc=reliable clocksource=tsc"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context(QEMU)?;
    let console = machine.stdout.take().context("piped")?;
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            // Nobody reads when it is given up.
            let _ = sender.send(String::from_utf8_lossy(&line).trim().to_owned());
        }
    });
    let mut well = false;
    let ended = loop {
        match lines.recv_timeout(PATIENCE.saturating_sub(began.elapsed())) {
            Ok(line) => {
                well |= line.ends_with(WELL);
                // The firmware draws on its terminal; the kernel and the program write lines.
                if !line.contains('\x1b') && !line.is_empty() {
                    println!("    {line}");
                } else if let Some((_, line)) = line.rsplit_once("nexus-vm-test:") {
                    println!("    nexus-vm-test:{line}");
                }
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break true,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => break false,
        }
    };
    if !ended {
        machine.kill()?;
    }
    machine.wait()?;
    if !ended {
        bail!("the machine did not end in {} s", PATIENCE.as_secs());
    }
    println!("    {} after {} s", if well { "well" } else { "not well" }, began.elapsed().as_secs());
    Ok(well)
}
