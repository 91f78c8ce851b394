use std::io;
use std::sync::{Arc, Mutex};

use log::Log as _;
use tracing::{debug, error, info, trace, warn};

use super::*;

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl io::Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logged(format: LogFormat, verbosity: &str, act: impl FnOnce()) -> String {
    let memory = Memory::default();
    let writer = memory.clone();
    let subscriber =
        Registry::default().with(filter(verbosity.parse().unwrap())).with(lines(format, false, move || writer.clone()));
    tracing::subscriber::with_default(subscriber, act);
    String::from_utf8(memory.0.lock().unwrap().clone()).unwrap()
}

fn all_levels() {
    error!("at error");
    warn!("at warn");
    info!("at info");
    debug!("at debug");
    trace!("at trace");
}

#[test]
fn logrus_names_choose_the_level() {
    let levels = [
        ("panic", 1),
        ("fatal", 1),
        ("error", 1),
        ("warn", 2),
        ("warning", 2),
        ("INFO", 3),
        ("debug", 4),
        ("trace", 5),
    ];
    for (name, lines) in levels {
        assert_eq!(logged(LogFormat::Text, name, all_levels).lines().count(), lines, "{name}");
    }
    assert_eq!("loud".parse::<Verbosity>(), Err(UnknownLevel));
}

#[test]
fn the_aws_sdk_never_says_what_could_be_a_secret() {
    let sdk = || {
        trace!(target: "aws_smithy_runtime::client::orchestrator", "SECRET");
        debug!(target: "aws_sigv4::http_request", "SECRET");
        trace!(target: "hyper_util::client", "SECRET");
        debug!(target: "rustls::client", "SECRET");
        trace!(target: "a_dependency_of_next_year", "SECRET");
        warn!(target: "aws_config::imds", "wanted");
    };
    for verbosity in ["info", "debug", "trace"] {
        let text = logged(LogFormat::Text, verbosity, sdk);
        assert!(!text.contains("SECRET") && text.contains("wanted"), "{verbosity}: {text}");
    }
    assert!(logged(LogFormat::Text, "error", sdk).is_empty());
}

#[test]
fn records_of_the_log_crate_arrive_under_their_own_target() {
    let bridge = tracing_log::LogTracer::new();
    let record = |target, level| {
        let text = format_args!("from a program").to_string();
        bridge.log(&log::Record::builder().target(target).level(level).args(format_args!("{text}")).build());
    };
    let text = logged(LogFormat::Json, "debug", || {
        record("agent_ebpf::connect", log::Level::Debug);
        record("aya::bpf", log::Level::Debug);
        record("rustls::client", log::Level::Debug);
    });
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let targets: Vec<_> = lines.iter().map(|line| line["target"].as_str().unwrap()).collect();
    assert_eq!(targets, ["agent_ebpf::connect", "aya::bpf"]);
}

#[test]
fn a_json_line_holds_its_fields_at_the_top() {
    let text = logged(LogFormat::Json, "info", || info!(reason = "no_token", status = 400, "refused\nforged"));
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(text.lines().count(), 1);
    assert_eq!((&line["reason"], &line["status"], &line["level"]), (&"no_token".into(), &400.into(), &"INFO".into()));
    assert_eq!(line["message"], "refused\nforged");
}

#[test]
fn lines_that_stderr_does_not_take_are_dropped_and_counted() {
    struct Stuck(std::sync::mpsc::Receiver<()>);
    impl io::Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (release, stuck) = std::sync::mpsc::channel();
    let (writer, guard) = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(2).finish(Stuck(stuck));
    let telemetry = Telemetry { dropped: writer.error_counter(), _writer: guard };
    let subscriber = Registry::default().with(filter(Verbosity::default())).with(lines(LogFormat::Text, false, writer));
    tracing::subscriber::with_default(subscriber, || (0..10).for_each(|_| info!("x")));
    // One line is with the writer at most, two wait.
    assert!((7..=8).contains(&telemetry.dropped_lines()()));
    drop(release);
}

#[test]
fn only_debug_and_trace_ask_the_programs_to_log() {
    let asks = |name: &str| name.parse::<Verbosity>().unwrap().includes_debug();
    assert!(asks("trace") && asks("debug") && !asks("info") && !asks("panic"));
}
