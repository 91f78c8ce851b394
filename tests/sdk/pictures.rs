//! What docs/transcripts.md shows is what the commands say: whoever changes a text makes it anew.
use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_identity_tests::{
    aws::clients::Clients,
    host,
    process::{binary, run},
};

/// It takes 4 s on an idle machine.
const TAKES: Duration = Duration::from_mins(2);

#[test]
fn the_transcripts_are_what_the_commands_show() -> Result<()> {
    let directory = host::run_dir(&host::unique_name())?;
    let made = make(&directory);
    fs::remove_dir_all(&directory)?;
    let made = made?;
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs/transcripts.md");
    let committed = fs::read_to_string(&committed).with_context(|| committed.display().to_string())?;
    let (made, committed) = (without_numbers(&made), without_numbers(&committed));
    ensure!(made.iter().filter(|line| line.starts_with("problem ")).count() >= 6, "{made:#?}");
    let differs = made.iter().zip(&committed).find(|(made, committed)| made != committed);
    ensure!(
        differs.is_none() && made.len() == committed.len(),
        "docs/transcripts.md is not current: run `cargo xtask pictures --only transcripts`: {differs:#?}"
    );
    Ok(())
}

fn make(directory: &Path) -> Result<String> {
    let mut pictures = Command::new(binary("pictures")?);
    pictures.args(["--only", "transcripts", "--out"]).arg(directory);
    let output = run(pictures.env("POD_IDENTITY_CLIENTS", Clients::find()?.directory()), TAKES)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(fs::read_to_string(directory.join("transcripts.md"))?)
}

/// Lines in which seconds, jitter and widths of columns do not count; what `doctor` says is about the machine.
fn without_numbers(text: &str) -> Vec<String> {
    let chapters = text.split("\n## ").filter(|chapter| !chapter.starts_with("doctor\n"));
    let lines = chapters.flat_map(str::lines).map(|line| {
        let masked: String = line.chars().map(|c| if c.is_ascii_digit() { ' ' } else { c }).collect();
        masked.split_whitespace().collect::<Vec<_>>().join(" ")
    });
    lines.collect()
}
