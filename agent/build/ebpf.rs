//! The build of the eBPF programs: which toolchain, with which flags, where to.
//!
//! Standard library only, because two programs are made with it: `agent/build.rs`, which embeds the object, and
//! `cargo xtask`, which reports about it. Nothing else builds the programs.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

/// The target of the programs. One object serves `x86_64` and `aarch64` alike.
const TARGET: &str = "bpfel-unknown-none";
/// Package and binary that hold the programs.
const PACKAGE: &str = "agent-ebpf";
/// Debian's compiler; a rustup proxy may shadow it in `PATH`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Debian's LLVM that fits `DEBIAN_RUSTC`.
const DEBIAN_LLVM_STRIP: &str = "/usr/lib/llvm-22/bin/llvm-strip";
/// The major version of that LLVM, which `cargo xtask setup` builds bpf-linker with.
const DEBIAN_LLVM: u32 = 22;
/// The part of a sysroot that `-Z build-std` compiles. rustup's component rust-src and Debian's package
/// rust-web-src put it at the same place.
const LIBRARY_SOURCE: &str = "lib/rustlib/src/rust/library/core";
/// Variables that stay when the environment of a nested cargo is cleaned: how to reach registries, and the job server.
const KEPT: [&str; 9] = [
    "CARGO_BUILD_JOBS",
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
];

/// Where the compiler comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A nightly of rustup, by name, that has the component rust-src.
    Rustup(String),
    /// Debian's rustc-web and rust-web-src.
    Debian,
}

/// A compiler that can build `core`.
#[derive(Debug)]
struct Compiler {
    origin: Origin,
    cargo: PathBuf,
    /// The directory that holds rustc and clippy-driver.
    bin: PathBuf,
}

/// A compiler for the programs, with the linker and the tool that strips what the linker made.
#[derive(Debug)]
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
    strip: PathBuf,
}

/// What a toolchain is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Compiler,
    Linker,
    Strip,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compiler => "a compiler with the source of core",
            Self::Linker => "bpf-linker",
            Self::Strip => "llvm-strip",
        })
    }
}

/// Why the programs were not built.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Parts of a toolchain that are nowhere on this machine.
    Missing(Vec<Part>),
    /// A tool could not be started.
    Start(PathBuf, io::Error),
    /// A tool ran and failed; it has said why on standard error.
    Tool(PathBuf, ExitStatus),
    /// A file or directory of the build could not be used.
    File(PathBuf, io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(parts) => {
                let names: Vec<_> = parts.iter().map(ToString::to_string).collect();
                let names = names.join(", ");
                write!(f, "no toolchain for the eBPF programs ({names} not found): run `cargo xtask setup` once")
            }
            Self::Start(tool, error) => write!(f, "eBPF programs: {} does not start: {error}", tool.display()),
            Self::Tool(tool, status) => write!(f, "eBPF programs: {} failed ({status})", tool.display()),
            Self::File(path, error) => write!(f, "eBPF programs: {}: {error}", path.display()),
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.compiler.origin {
            Origin::Rustup(name) => write!(f, "rustup's {name}, because it has rust-src"),
            Origin::Debian => write!(
                f,
                "Debian's rustc-web, because no nightly of rustup has rust-src and an LLVM that bpf-linker reads"
            ),
        }
    }
}

impl Toolchain {
    /// Finds what this machine has. A nightly without rust-src does not count: it cannot build `core` for BPF. Nor does
    /// a compiler with a newer LLVM than the linker's: its bitcode could not be read.
    pub(crate) fn find() -> Result<Self, Failure> {
        let linker = in_path("bpf-linker").or_else(|| file(cargo_home()?.join("bin/bpf-linker")));
        // A linker that has LLVM built in does not show its version; it is taken to fit.
        let llvm = linker.as_deref().map_or(Some(DEBIAN_LLVM), linkers_llvm).unwrap_or(u32::MAX);
        let compiler = rustup_nightly(llvm).or_else(|| debian(llvm));
        let strip = find_strip(compiler.as_ref().map(|compiler| compiler.bin.as_path()));

        match (compiler, linker, strip) {
            (Some(compiler), Some(linker), Some(strip)) => Ok(Self { compiler, linker, strip }),
            (compiler, linker, strip) => {
                let missing = [
                    compiler.is_none().then_some(Part::Compiler),
                    linker.is_none().then_some(Part::Linker),
                    strip.is_none().then_some(Part::Strip),
                ];
                Err(Failure::Missing(missing.into_iter().flatten().collect()))
            }
        }
    }

    /// Files that a build with this toolchain depends on: when one changes or goes, the build is to be repeated.
    pub(crate) fn files(&self) -> [PathBuf; 3] {
        [self.bin().join("rustc"), self.linker.clone(), self.strip.clone()]
    }

    /// A nested cargo that runs `subcommand` on the programs: same flags and same directory, whatever calls it.
    ///
    /// `architecture` is that of the kernel the programs will run on, and matters to code that reads registers only.
    pub(crate) fn cargo(&self, workspace: &Path, architecture: &str, subcommand: &str, flags: &[&str]) -> Command {
        let mut cargo = Command::new(&self.compiler.cargo);
        for (name, _) in env::vars_os() {
            if leaks(&name) {
                cargo.env_remove(name);
            }
        }
        let mut rustflags = vec![
            format!("--cfg=bpf_target_arch=\"{architecture}\""),
            // Fetching atomics, and shorter code. Kernel 5.12 and later.
            "-Ctarget-cpu=v3".into(),
            // Names and source lines for bpftool.
            "-Clink-arg=--btf".into(),
            format!("-Clinker={}", self.linker.display()),
            // The object is the same wherever the repository lies. What is left is relative to the workspace, where
            // the linker runs, so it still finds the lines of source that it puts into BTF.
            format!("--remap-path-prefix={}/=", workspace.display()),
        ];
        if let Some(home) = cargo_home() {
            rustflags.push(format!("--remap-path-prefix={}/registry/src/=", home.display()));
        }
        rustflags.extend(flags.iter().map(ToString::to_string));

        cargo
            .current_dir(workspace)
            .env("RUSTC", self.bin().join("rustc"))
            // A wrapper set in a configuration file of cargo gives way only to an empty variable.
            .env("RUSTC_WRAPPER", "")
            .env("RUSTC_WORKSPACE_WRAPPER", "")
            // What `-Z build-std` asks of a compiler that is no nightly.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\u{1f}"))
            // The workspace's release profile is for user space. Here BTF is made from the debug information.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
            .env("CARGO_PROFILE_RELEASE_LTO", "fat")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
            .env("CARGO_PROFILE_RELEASE_STRIP", "none")
            .args([subcommand, "--locked", "--release", "--package", PACKAGE, "--bin", PACKAGE])
            .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
            .arg(target_directory(workspace));
        cargo
    }

    /// The directory that holds rustc, and clippy-driver if it is installed: Debian has it in a package of its own.
    pub(crate) fn bin(&self) -> &Path {
        &self.compiler.bin
    }

    /// Builds the programs and writes them without debug information to `stripped`; BTF and line information stay.
    /// Returns the path of the object as it was linked.
    pub(crate) fn build(&self, workspace: &Path, architecture: &str, stripped: &Path) -> Result<PathBuf, Failure> {
        let directory = target_directory(workspace);
        // Two builds may come here at once (an editor's and a terminal's): the second must not replace the object
        // while the first one strips it. The lock ends with the file, at the end of this function.
        let lock_path = directory.join(".programs.lock");
        let lock = fs::create_dir_all(&directory).and_then(|()| fs::File::create(&lock_path));
        let lock = lock.map_err(|error| Failure::File(lock_path.clone(), error))?;
        lock.lock().map_err(|error| Failure::File(lock_path, error))?;

        run(&mut self.cargo(workspace, architecture, "build", &[]))?;
        let linked = directory.join(TARGET).join("release").join(PACKAGE);
        // `llvm-strip` and `rust-objcopy` are one program; this spelling is understood under both names.
        run(Command::new(&self.strip).arg("--strip-debug").arg(&linked).args(strip_output(&self.strip, stripped)))?;
        Ok(linked)
    }
}

/// The one directory of this build. A directory per profile would compile `core` for each.
fn target_directory(workspace: &Path) -> PathBuf {
    let absolute = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    absolute.unwrap_or_else(|| workspace.join("target")).join("ebpf")
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let status = command.status();
    let tool = PathBuf::from(command.get_program());
    match status {
        Err(error) => Err(Failure::Start(tool, error)),
        Ok(status) if !status.success() => Err(Failure::Tool(tool, status)),
        Ok(_) => Ok(()),
    }
}

/// Whether a variable of a calling cargo, or of its user's settings for host code, would change the nested build:
/// `crt-static`, coverage, wrappers, profiles, another target or compiler.
fn leaks(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let cargos = name.starts_with("CARGO_") && !KEPT.iter().any(|kept| name.starts_with(kept));
    cargos
        || name.starts_with("RUSTC")
        || name.starts_with("RUSTDOC")
        || name == "RUSTFLAGS"
        || name == "RUSTUP_TOOLCHAIN"
}

/// The nightly of rustup to use, if one has rust-src and an LLVM that is not newer than `llvm`.
fn rustup_nightly(llvm: u32) -> Option<Compiler> {
    let home = env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let toolchains = home.or_else(|| Some(env::home_dir()?.join(".rustup")))?.join("toolchains");
    let mut names: Vec<String> = fs::read_dir(&toolchains)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("nightly"))
        .filter(|name| toolchains.join(name).join(LIBRARY_SOURCE).is_dir())
        .filter(|name| compilers_llvm(&toolchains.join(name).join("bin/rustc")).is_some_and(|own| own <= llvm))
        .collect();
    // `nightly-<host>` sorts after every `nightly-<date>-<host>`, and later dates after earlier ones.
    names.sort();
    let name = names.pop()?;
    let bin = toolchains.join(&name).join("bin");
    Some(Compiler { origin: Origin::Rustup(name), cargo: bin.join("cargo"), bin })
}

/// Debian's compiler, driven by the cargo that runs now: Debian's own would do, but is not needed.
fn debian(llvm: u32) -> Option<Compiler> {
    let rustc = Path::new(DEBIAN_RUSTC);
    let sysroot = PathBuf::from(output(rustc, &["--print", "sysroot"])?.trim_end());
    if !sysroot.join(LIBRARY_SOURCE).is_dir() || compilers_llvm(rustc)? > llvm {
        return None;
    }
    let cargo = env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
    Some(Compiler { origin: Origin::Debian, cargo, bin: rustc.parent()?.to_path_buf() })
}

/// The major version of the LLVM in a compiler.
fn compilers_llvm(rustc: &Path) -> Option<u32> {
    leading_number(output(rustc, &["-vV"])?.split_once("LLVM version: ")?.1)
}

/// The major version of the shared LLVM that a linker loads, from the name in its dynamic section: `libLLVM.so.22.1`,
/// or `libLLVM-22.so.1`.
fn linkers_llvm(linker: &Path) -> Option<u32> {
    let bytes = fs::read(linker).ok()?;
    let names = [b"libLLVM.so.".as_slice(), b"libLLVM-".as_slice()];
    names.into_iter().find_map(|name| {
        let start = bytes.windows(name.len()).position(|window| window == name)? + name.len();
        leading_number(&String::from_utf8_lossy(bytes.get(start..start + 4)?))
    })
}

fn leading_number(text: &str) -> Option<u32> {
    text.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

/// What a tool prints, if it runs and succeeds.
fn output(tool: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(tool).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Newer first: an old `llvm-strip` in `PATH` may come from a release that does not know every section.
fn find_strip(bin: Option<&Path>) -> Option<PathBuf> {
    let with_compiler = || {
        let host_directories = fs::read_dir(bin?.parent()?.join("lib/rustlib")).ok()?;
        let tools = ["bin/llvm-strip", "bin/rust-objcopy"];
        host_directories
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find_map(|directory| tools.iter().find_map(|tool| file(directory.join(tool))))
    };
    file(PathBuf::from(DEBIAN_LLVM_STRIP)).or_else(with_compiler).or_else(|| in_path("llvm-strip"))
}

/// How the tool is told where to write: `llvm-strip -o OUT`, but `rust-objcopy OUT`.
fn strip_output(tool: &Path, out: &Path) -> Vec<OsString> {
    let objcopy = tool.file_name() == Some(OsStr::new("rust-objcopy"));
    if objcopy { vec![out.into()] } else { vec!["-o".into(), out.into()] }
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")))
}

fn in_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).find_map(|directory| file(directory.join(name)))
}

fn file(path: PathBuf) -> Option<PathBuf> {
    path.is_file().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_calling_cargo_reaches_the_nested_one() {
        for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_PROFILE_RELEASE_STRIP"] {
            assert!(leaks(OsStr::new(name)), "{name}");
        }
        for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN", "RUSTDOCFLAGS"] {
            assert!(leaks(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn the_nested_cargo_keeps_registries_and_the_job_server() {
        for name in
            ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_OFFLINE", "CARGO_REGISTRIES_X_INDEX", "PATH", "RUSTUP_HOME"]
        {
            assert!(!leaks(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn versions_are_read_up_to_the_first_other_character() {
        assert_eq!(leading_number("22.1.8\nmore"), Some(22));
        assert_eq!(leading_number("9-"), Some(9));
        assert_eq!(leading_number("git"), None);
    }
}
