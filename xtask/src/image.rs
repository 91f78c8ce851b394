//! `image`: the agent as a container image of one static program and a bundle of CA certificates, with its bill of
//! materials.
//!
//! The image is written here, without a container tool: an OCI layout is a few JSON documents beside one archive, and
//! so the same sources, compiler and certificates give the same digest wherever this runs. Times are zero, owners are
//! root, paths of this machine are cut out of the program.

mod bill;
mod layer;
mod layout;
mod program;
mod trial;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{process, workspace};
use layer::Tree;

/// Where Debian and its kin keep the bundle.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// CA certificates to put into the image, as one PEM file.
    #[arg(long, value_name = "FILE", default_value = CA_BUNDLE)]
    ca_bundle: PathBuf,
    /// Where to write; by default below target/image.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the files of the image and its bill of materials only: what a container build copies.
    #[arg(long)]
    files_only: bool,
}

/// Builds the image as [`run`] does without options; says where its program is.
pub(crate) fn program() -> Result<PathBuf> {
    run(&Options { ca_bundle: CA_BUNDLE.into(), out: None, files_only: false })?;
    Ok(default_directory(architecture()?).join("root").join(layer::PROGRAM.trim_start_matches('/')))
}

/// The same; says where the archive for `ctr images import` is.
pub(crate) fn archive() -> Result<PathBuf> {
    run(&Options { ca_bundle: CA_BUNDLE.into(), out: None, files_only: false })?;
    let architecture = architecture()?;
    Ok(default_directory(architecture).join(layout::archive_name(architecture)))
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let architecture = architecture()?;
    let out = options.out.clone().unwrap_or_else(|| default_directory(architecture));
    let bundle = fs::read(&options.ca_bundle).with_context(|| format!("read {}", options.ca_bundle.display()))?;
    let certificates = count_certificates(&bundle);
    if certificates == 0 {
        bail!(
            "{} holds no certificate: install Debian's ca-certificates, or name a PEM file with --ca-bundle",
            options.ca_bundle.display()
        );
    }

    let (program, _) = process::timed("static program", program::build);
    let program = program?;
    // Files of an earlier run would become part of this one's directory.
    remove(&out)?;
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;

    let bill = bill::write(&out.join("sbom.cdx.json"), architecture, &program, (&options.ca_bundle, &bundle))?;
    let tree = Tree::new(&program, &bundle);
    println!("program      {} ({})", program.display(), bytes(fs::metadata(&program)?.len()));
    println!("certificates {} ({certificates}, {})", options.ca_bundle.display(), bytes(bundle.len() as u64));
    println!("bill         {} ({} components)", out.join("sbom.cdx.json").display(), bill.components);
    let root = out.join("root");
    tree.unpack(&root)?;
    trial::run(&root).with_context(|| format!("the program does not work from {}", root.display()))?;
    println!("files        {} (the program starts from there)", root.display());
    if options.files_only {
        return Ok(());
    }
    let image = layout::write(&out, architecture, &tree)?;
    println!("layer        {} ({} unpacked)", bytes(image.layer_bytes), bytes(image.unpacked_bytes));
    println!("layout       {}", image.directory.display());
    println!("archive      {}", image.archive.display());
    println!("digest       {}", image.digest);
    Ok(())
}

fn default_directory(architecture: &str) -> PathBuf {
    workspace::root().join("target/image").join(architecture)
}

/// This machine's architecture, as images name it. Another one's image is built on such a machine, or in a container
/// of it.
fn architecture() -> Result<&'static str> {
    match env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image for {other}: EKS has nodes of x86_64 and aarch64"),
    }
}

fn count_certificates(pem: &[u8]) -> usize {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    pem.windows(BEGIN.len()).filter(|window| *window == BEGIN).count()
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// A size for people.
fn bytes(count: u64) -> String {
    // Tenths of a megabyte, without a float's detours.
    format!("{}.{} MB", count / 1_000_000, count % 1_000_000 / 100_000)
}
