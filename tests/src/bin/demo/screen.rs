//! What the demo prints: colours and passing lines on a terminal, plain lines elsewhere.
use std::{
    io::{IsTerminal as _, Write as _, stdout},
    process::{Command, ExitCode, Output},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use pod_identity_tests::{process, signals::Signals};

/// For one command of the demo; the AWS CLI tries again for seconds before it gives up.
const RUNS: Duration = Duration::from_mins(1);

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const CYAN: &str = "\x1b[36m";
const PLAIN: &str = "\x1b[0m";

/// The terminal or file that the demo is shown on.
#[derive(Debug)]
pub(crate) struct Screen {
    terminal: bool,
    colours: bool,
    signals: Signals,
}

impl Screen {
    pub(crate) fn new(signals: Signals) -> Self {
        let terminal = stdout().is_terminal();
        // https://no-color.org
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { terminal, colours, signals }
    }

    /// A new part.
    pub(crate) fn heading(&self, text: &str) {
        println!("\n{}", self.paint(BOLD, text));
    }

    /// Fails when a signal has asked for the end.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.signals.arrived().is_some() {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Does something that takes its time, and says how long it took.
    pub(crate) fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.go_on()?;
        if self.terminal {
            print!("  … {what}");
            let _ = stdout().flush();
        }
        let begin = Instant::now();
        let outcome = work();
        let took = begin.elapsed();
        if self.terminal {
            // To the line's begin, and clear it.
            print!("\r\x1b[K");
        }
        match &outcome {
            Ok(_) => {
                let took = format!("({:.1} s)", took.as_secs_f64());
                println!("  {} {what} {}", self.paint(GREEN, "✓"), self.paint(DIM, &took));
            }
            Err(_) => println!("  {} {what}", self.paint(RED, "✗")),
        }
        // What a signal broke is not a failure of its own.
        self.go_on()?;
        outcome
    }

    /// A fact that was checked.
    pub(crate) fn holds(&self, what: &str) {
        println!("  {} {what}", self.paint(GREEN, "✓"));
    }

    /// Checks a fact: says it, or fails with it.
    pub(crate) fn check(&self, holds: bool, what: &str) -> Result<()> {
        self.go_on()?;
        if !holds {
            println!("  {} {what}", self.paint(RED, "✗"));
            bail!("not so: {what}");
        }
        self.holds(what);
        Ok(())
    }

    /// A named value.
    pub(crate) fn value(&self, name: &str, value: &str) {
        println!("  {} {value}", self.paint(DIM, &format!("{name:<15}")));
    }

    /// Shows a command, and what it printed.
    pub(crate) fn listing(&self, shown: &str, lines: &[&str]) {
        println!("  {}", self.paint(CYAN, &format!("$ {shown}")));
        for line in lines {
            println!("    {line}");
        }
    }

    /// Shows a command, runs it, and shows what it prints.
    pub(crate) fn command(&self, shown: &str, command: &mut Command) -> Result<Output> {
        self.go_on()?;
        println!("  {}", self.paint(CYAN, &format!("$ {shown}")));
        let output = process::run(command, RUNS)?;
        for text in [&output.stdout, &output.stderr] {
            for line in String::from_utf8_lossy(text).lines().map(str::trim_end).filter(|line| !line.is_empty()) {
                println!("    {}", line.replace('\t', "        "));
            }
        }
        self.go_on()?;
        Ok(output)
    }

    /// Says why the demo failed.
    pub(crate) fn failed(&self, error: &anyhow::Error) {
        if self.signals.arrived().is_some() {
            println!("\nInterrupted: the demo was not shown to its end.");
            return;
        }
        println!("\n{}", self.paint(RED, &format!("✗ The demo did not succeed: {error:#}")));
    }

    /// 1, or what a shell makes of a signal.
    pub(crate) fn exit_code(&self) -> ExitCode {
        let number = self.signals.arrived().and_then(|number| u8::try_from(number).ok());
        number.map_or(ExitCode::FAILURE, |number| ExitCode::from(128 + number))
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("{colour}{text}{PLAIN}") } else { text.to_owned() }
    }
}
