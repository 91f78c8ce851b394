//! `build-ebpf`: what `agent/build.rs` does, with a report.

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    ebpf::Toolchain,
    object_file::{Inventory, Program},
    workspace,
};

pub(crate) fn run() -> Result<()> {
    let toolchain = Toolchain::find().map_err(|failure| anyhow!("{failure}"))?;
    println!("toolchain  {toolchain}");
    for file in toolchain.files() {
        println!("           {}", file.display());
    }

    let stripped = workspace::root().join("target/agent-ebpf.o");
    let linked =
        toolchain.build(workspace::root(), env::consts::ARCH, &stripped).map_err(|failure| anyhow!("{failure}"))?;
    println!("object     {} ({} bytes; {} as linked)", stripped.display(), size(&stripped)?, size(&linked)?);

    let bytes = fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))?;
    let inventory = Inventory::read(&bytes).with_context(|| format!("parse {}", stripped.display()))?;
    println!("sections   .BTF {} bytes, .BTF.ext {} bytes", inventory.btf_bytes, inventory.btf_ext_bytes);
    println!("programs   {}", inventory.programs.len());
    for Program { section, name, instructions } in &inventory.programs {
        println!("  {section:<22} {name:<16} {instructions:>5} instructions");
    }
    println!("maps       {}", inventory.maps.join(", "));
    Ok(())
}

fn size(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len())
}
