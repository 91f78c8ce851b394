//! What an object of eBPF programs holds, read from its ELF sections.

use anyhow::{Result, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol, SectionKind, SymbolKind, read::elf::ElfFile64};

/// Bytes of one eBPF instruction. A 64-bit immediate takes two.
const INSTRUCTION: u64 = 8;

/// One function with a section of its own that says where it attaches.
#[derive(Debug)]
pub(crate) struct Program {
    /// Name of the section, such as `cgroup/connect4`.
    pub(crate) section: String,
    pub(crate) name: String,
    pub(crate) instructions: u64,
}

/// The programs and maps of an object, in the order of its symbols.
#[derive(Debug)]
pub(crate) struct Inventory {
    pub(crate) programs: Vec<Program>,
    pub(crate) maps: Vec<String>,
    pub(crate) btf_bytes: u64,
    pub(crate) btf_ext_bytes: u64,
}

impl Inventory {
    /// Fails when there is no program, no map or no BTF: such an object loads, but nobody could read it with bpftool.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let file = ElfFile64::<object::LittleEndian>::parse(bytes)?;
        let section_bytes = |name| file.section_by_name(name).map_or(0, |section| section.size());
        let mut inventory = Self {
            programs: Vec::new(),
            maps: Vec::new(),
            btf_bytes: section_bytes(".BTF"),
            btf_ext_bytes: section_bytes(".BTF.ext"),
        };
        for symbol in file.symbols().filter(ObjectSymbol::is_global) {
            let Some(index) = symbol.section_index() else { continue };
            let section = file.section_by_index(index)?;
            let (section_name, name) = (section.name()?, symbol.name()?.to_owned());
            match (section.kind(), symbol.kind()) {
                // Functions that programs call lie in `.text`.
                (SectionKind::Text, SymbolKind::Text) if section_name != ".text" => inventory.programs.push(Program {
                    section: section_name.to_owned(),
                    name,
                    instructions: symbol.size() / INSTRUCTION,
                }),
                (_, SymbolKind::Data) if matches!(section_name, ".maps" | "maps") => inventory.maps.push(name),
                _ => {}
            }
        }
        ensure!(!inventory.programs.is_empty(), "no program in it");
        ensure!(!inventory.maps.is_empty(), "no map in it");
        ensure!(inventory.btf_bytes > 0 && inventory.btf_ext_bytes > 0, "no BTF in it");
        Ok(inventory)
    }
}
