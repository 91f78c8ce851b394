//! The bill of materials, as `CycloneDX` has it: every crate in the program and in the eBPF programs, and what is linked
//! or copied besides (the C library, Rust's own, the certificates). Made from what cargo itself says it builds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{layout::hex, program};
use crate::{process, workspace};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What the eBPF programs are built for.
const BPF_TARGET: &str = "bpfel-unknown-none";

/// What was written.
pub(super) struct Bill {
    pub(super) components: usize,
}

/// A crate: name and version.
type Crate = (String, String);

/// What cargo links into a package, by who asks for it.
#[derive(Default)]
struct Crates {
    licences: BTreeMap<Crate, String>,
    needs: BTreeMap<Crate, BTreeSet<Crate>>,
}

pub(super) fn write(path: &Path, architecture: &str, program: &Path, bundle: (&Path, &[u8])) -> Result<Bill> {
    let mut crates = Crates::default();
    crates.read(program::PACKAGE, &program::target())?;
    // The programs are a dependency in the program: their object is in it.
    crates.read("agent-ebpf", BPF_TARGET)?;
    let bill = crates.bill(architecture, &fs::read(program).context("read the program")?, bundle)?;
    let components = bill["components"].as_array().map_or(0, Vec::len);
    fs::write(path, format!("{bill:#}\n")).with_context(|| format!("write {}", path.display()))?;
    Ok(Bill { components })
}

impl Crates {
    /// Asks cargo what it links into `package`: no build scripts, no procedural macros, no tests.
    fn read(&mut self, package: &str, target: &str) -> Result<()> {
        let tree = stdout(process::cargo(&["tree", "--locked", "--package", package, "--target", target]).args([
            "--edges=normal,no-proc-macro",
            "--prefix=depth",
            "--format=|{p}|{l}",
        ]))?;
        let mut above: Vec<Crate> = Vec::new();
        for line in tree.lines() {
            let mut fields = line.split('|');
            let (Some(depth), Some(name), Some(licence)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let depth: usize = depth.parse().with_context(|| format!("cargo tree: {line}"))?;
            let mut words = name.split(' ');
            let name = words.next().unwrap_or_default().to_owned();
            let version = words.next().unwrap_or_default().trim_start_matches('v').to_owned();
            let this = (name, version);
            self.licences.insert(this.clone(), licence.trim_end_matches(" (*)").replace('/', " OR "));
            above.truncate(depth);
            if let Some(parent) = above.last() {
                self.needs.entry(parent.clone()).or_default().insert(this.clone());
            }
            above.push(this);
        }
        ensure!(!self.licences.is_empty(), "cargo tree shows nothing for {package}");
        Ok(())
    }

    fn bill(&self, architecture: &str, program: &[u8], (path, bundle): (&Path, &[u8])) -> Result<Value> {
        let checksums = checksums()?;
        let crates = self.licences.iter().map(|(this, licence)| {
            let mut component = json!({
                "type": "library",
                "bom-ref": reference(this),
                "name": this.0,
                "version": this.1,
                "purl": reference(this),
                "licenses": [{ "expression": licence }],
            });
            if let Some(checksum) = checksums.get(this) {
                component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
            }
            component
        });
        let components: Vec<_> = crates.chain(linked(path, bundle)?).collect();
        let mut dependencies: Vec<_> = self
            .needs
            .iter()
            .map(|(this, needs)| {
                json!({ "ref": reference(this), "dependsOn": needs.iter().map(reference).collect::<Vec<_>>() })
            })
            .collect();
        let name = program::PACKAGE;
        let agent = reference(&(name.to_owned(), VERSION.to_owned()));
        dependencies.push(json!({ "ref": "image", "dependsOn": [agent, "glibc", "rust-std", "ca-certificates"] }));
        Ok(json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            // No serial number and no time: the same image has the same bill.
            "metadata": {
                "component": {
                    "type": "container",
                    "bom-ref": "image",
                    "name": name,
                    "version": VERSION,
                    "properties": [
                        { "name": "architecture", "value": architecture },
                        { "name": "sha256 of /pod-identity-agent", "value": hex(program) },
                    ],
                },
            },
            "components": components,
            "dependencies": dependencies,
        }))
    }
}

/// What is in the image and is no crate.
fn linked(path: &Path, bundle: &[u8]) -> Result<[Value; 3]> {
    let glibc = stdout(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    let rustc = stdout(Command::new("rustc").arg("--version").current_dir(workspace::root()))?;
    let word = |text: &str| text.split(' ').nth(1).unwrap_or_default().trim().to_owned();
    Ok([
        json!({
            "type": "library", "bom-ref": "glibc", "name": "glibc", "version": word(&glibc),
            "licenses": [{ "expression": "LGPL-2.1-or-later" }],
        }),
        json!({
            "type": "library", "bom-ref": "rust-std", "name": "rust-std", "version": word(&rustc),
            "licenses": [{ "expression": "MIT OR Apache-2.0" }],
        }),
        json!({
            "type": "data", "bom-ref": "ca-certificates", "name": "ca-certificates",
            // A package's version where there is one; the hash says it in any case.
            "version": process::output("dpkg-query", &["--show", "--showformat=${Version}", "ca-certificates"])
                .unwrap_or_default(),
            "description": format!("{}, as it was found", path.display()),
            "hashes": [{ "alg": "SHA-256", "content": hex(bundle) }],
        }),
    ])
}

fn reference((name, version): &Crate) -> String {
    format!("pkg:cargo/{name}@{version}")
}

/// What Cargo.lock pins each crate to.
fn checksums() -> Result<BTreeMap<Crate, String>> {
    let lock = fs::read_to_string(workspace::root().join("Cargo.lock")).context("read Cargo.lock")?;
    let packages = lock.split("[[package]]").filter_map(|package| {
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""))?;
            line.strip_suffix('"').map(str::to_owned)
        };
        Some(((field("name")?, field("version")?), field("checksum")?))
    });
    Ok(packages.collect())
}

fn stdout(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("start {program}"))?;
    ensure!(output.status.success(), "{program} failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).with_context(|| format!("{program} prints no text"))
}
