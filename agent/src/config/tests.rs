use std::num::{NonZeroU8, NonZeroU32};
use std::time::Duration;

use super::*;
use crate::{commands::Form, confinement::Seccomp};

fn run(line: &str) -> Result<Command, Stop> {
    read(format!("pod-identity-agent {line}").split_whitespace().map(OsString::from))
}

fn server(line: &str) -> ServerConfig {
    match run(&format!("server {line}")) {
        Ok(Command::Server(config)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str) -> String {
    match run(line) {
        Err(Stop::Misconfigured(said)) => {
            assert_eq!(said.lines().count(), 1, "{said}");
            said
        }
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn defaults_are_those_of_the_official_agent() {
    let config = server("--cluster-name prod");
    assert_eq!(
        config,
        ServerConfig {
            cluster_name: Some("prod".to_owned()),
            target_port: 80,
            steer: Steer { v4: true, v6: true },
            probe_addr: "127.0.0.1:2703".parse().unwrap(),
            metrics_addr: None,
            listener_ports: 706..=737,
            kubepods_cgroup: None,
            kubelet_root: "/var/lib/kubelet".into(),
            run_dir: "/run/pod-identity-agent".into(),
            audit_log: None,
            audit_log_max_bytes: 16 << 20,
            endpoint: None,
            max_retention: Duration::from_hours(3),
            max_cache_size: 2000,
            max_service_qps: NonZeroU32::new(3).unwrap(),
            max_upstream_concurrency: NonZeroU32::new(64).unwrap(),
            max_share_per_pod: NonZeroU8::new(10).unwrap(),
            rotate_credentials: false,
            prefetch: true,
            host_network_pods: HostNetworkPods::Serve,
            seccomp: Seccomp::Enforce,
            log: LogConfig { format: LogFormat::Text, verbosity: "info".parse().unwrap() },
            notices: vec![],
        }
    );
}

#[test]
fn the_official_daemonsets_arguments_are_taken() {
    let config = server("--port 80 --cluster-name prod --probe-port 2703 -v trace --rotate-credentials true");
    assert!(config.rotate_credentials && config.log.verbosity == "trace".parse().unwrap());
    assert!(config.notices.is_empty(), "{:?}", config.notices);
    let config = server("-c=prod -p=8080 --max-cache-size=10 --max-credential-retention-before-renewal=1h30m -v=error");
    assert_eq!((config.target_port, config.max_cache_size), (8080, 10));
    assert_eq!(config.max_retention, Duration::from_mins(90));
    assert!(matches!(run("-v warning server -c prod"), Ok(Command::Server(_))));
}

#[test]
fn a_flag_given_twice_has_its_last_value() {
    let config = server("-c one -p 81 -p 82 -c two --rotate-credentials --rotate-credentials=false");
    assert_eq!(
        (config.cluster_name.as_deref(), config.target_port, config.rotate_credentials),
        (Some("two"), 82, false)
    );
}

#[test]
fn a_switch_is_turned_off_only_by_its_own_value() {
    assert!(!server("-c prod --rotate-credentials=false").rotate_credentials);
    assert!(server("-c prod --rotate-credentials=T").rotate_credentials);
    assert!(!server("-c prod --prefetch=false").prefetch);
    let config = server("-c prod --rotate-credentials false");
    assert!(config.rotate_credentials, "as pflag reads it");
    assert!(config.notices[0].contains("'false' belongs to no flag"), "{:?}", config.notices);
}

#[test]
fn bind_hosts_choose_which_addresses_are_steered_in_any_spelling() {
    let steered = |hosts: &str| server(&format!("-c prod {hosts}")).steer;
    assert_eq!(steered("-b 169.254.170.23"), Steer { v4: true, v6: false });
    assert_eq!(steered("-b ::ffff:169.254.170.23"), Steer { v4: true, v6: false });
    assert_eq!(steered("--bind-hosts [FD00:EC2:0::23]"), Steer { v4: false, v6: true });
    assert_eq!(steered("--bind-hosts=fd00:ec2::23 -b 169.254.170.23"), Steer { v4: true, v6: true });
    for host in ["127.0.0.1", "localhost", "[169.254.170.23", "169.254.170.2", "fd00:ec2::24"] {
        let said = refused(&format!("server -c prod -b {host}"));
        assert!(said.contains(host) && said.contains("169.254.170.23"), "{said}");
    }
}

#[test]
fn metrics_are_served_only_where_asked_for() {
    let address = |flags: &str| server(&format!("-c prod {flags}")).metrics_addr.unwrap().to_string();
    assert_eq!(address("--metrics-port 9000"), "0.0.0.0:9000");
    assert_eq!(address("--metrics-address 127.0.0.1"), "127.0.0.1:2705");
    assert_eq!(address("--metrics-address [::1] --metrics-port 1"), "[::1]:1");
    assert_eq!(address("--metrics-address localhost"), "127.0.0.1:2705");
    assert!(refused("server -c prod --metrics-address node").contains("no IP address"));
}

#[test]
fn listener_ports_stay_clear_of_ports_that_others_give_away() {
    assert_eq!(server("-c prod --listener-ports 800-800").listener_ports, 800..=800);
    for taken in ["30000-30010", "29990-30000", "32768-32800", "700-65535", "61000-61010"] {
        assert!(refused(&format!("server -c prod --listener-ports {taken}")).contains("below 30000"), "{taken}");
    }
    for wrong in ["706", "737-706", "0-5", "a-b", "1-2-3", "706-99999", "-706-737"] {
        assert!(refused(&format!("server -c prod --listener-ports={wrong}")).contains("706-737"), "{wrong}");
    }
}

#[test]
fn each_mistake_is_told_in_one_line_with_what_to_change() {
    let cases = [
        ("", "name a command"),
        ("serve", "'server'"),
        ("server -c a/b", "no EKS cluster name"),
        ("server -c -b", "--cluster-name"),
        ("server -c prod --port 0", "use a port from 1 to 65535"),
        ("server -c prod --port 65536", "--port"),
        ("server -c prod --max-share-per-pod 0", "use a whole number from 1 to 100"),
        ("server -c prod --max-share-per-pod 101", "use a whole number from 1 to 100"),
        ("server -c prod --port http", "--port"),
        ("server -c prod --unknown", "--unknown"),
        ("server -c prod --listener-port 7-8", "--listener-ports"),
        ("server -c prod --probe-port=", "unset the variable"),
        ("server -c prod -v loud", "use one of panic"),
        ("server -c prod --log-format xml", "json"),
        ("server -c prod --host-network-pods no", "refuse"),
        ("server -c prod --max-credential-retention-before-renewal 3", "3h"),
        ("server -c prod --max-credential-retention-before-renewal=-3h", "3h"),
        ("server -c prod --max-upstream-concurrency 0", "use a whole number"),
        ("server -c prod --max-cache-size=-1", "use a whole number"),
        ("server -c prod --rotate-credentials=maybe", "true or false"),
        ("server -c prod --kubelet-root var", "absolute"),
        ("server -c prod --kubepods-cgroup kubepods", "absolute"),
        ("server -c prod --run-dir .", "absolute"),
        ("server -c prod --endpoint eks-auth.test", "https://"),
        ("server -c prod --endpoint ftp://eks-auth.test", "https://"),
        ("server -c prod --endpoint https://", "https://"),
        ("probe", "--live"),
        ("probe --live --ready", "--live"),
    ];
    for (line, says) in cases {
        let said = refused(line);
        assert!(said.contains(says), "{line}: {said}");
    }
}

#[test]
fn an_empty_value_is_none_where_none_means_something() {
    let config = server("-c prod --endpoint= --metrics-address=");
    assert_eq!((config.endpoint, config.metrics_addr), (None, None));
    assert_eq!(server("--cluster-name=").cluster_name, None);
}

#[test]
fn a_bad_configuration_exits_64_and_help_exits_0() {
    assert_eq!(format!("{:?}", Stop::Misconfigured("x".into()).report()), format!("{:?}", ExitCode::from(64)));
    assert!(matches!(run("--help"), Err(Stop::Shown(text)) if text.contains("initialize")));
    assert!(matches!(run("--version"), Err(Stop::Shown(text)) if text.contains(env!("CARGO_PKG_VERSION"))));
}

#[test]
fn every_server_flag_has_a_variable_and_help_shows_both() {
    let Err(Stop::Shown(help)) = run("server --help") else { panic!("no help") };
    let mut flags = 0;
    for line in help.lines() {
        let Some(at) = line.find("--") else { continue };
        let flag: String = line[at + 2..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
        if !line.trim_start().starts_with('-') || flag == "help" {
            continue;
        }
        flags += 1;
        let variable = match flag.as_str() {
            // A Service called pod-identity-agent sets POD_IDENTITY_AGENT_PORT in every pod of its namespace.
            "port" => "POD_IDENTITY_AGENT_PORT_TARGET".to_owned(),
            "probe-port" => "POD_IDENTITY_AGENT_PORT_PROBE".to_owned(),
            "metrics-port" => "POD_IDENTITY_AGENT_PORT_METRICS".to_owned(),
            _ => format!("POD_IDENTITY_AGENT_{}", flag.to_uppercase().replace('-', "_")),
        };
        assert!(!variable.ends_with("_PORT"), "{variable}");
        assert!(help.contains(&variable), "{flag}");
    }
    assert_eq!(flags, 24, "{help}");
}

#[test]
fn an_endpoint_in_the_clear_is_allowed_and_pointed_out() {
    assert!(server("-c prod --endpoint https://eks-auth.test:8443").notices.is_empty());
    assert!(server("-c prod --endpoint http://127.0.0.1:1234").notices.is_empty());
    let config = server("-c prod --endpoint http://10.0.0.1:1234");
    assert_eq!(config.endpoint.as_deref(), Some("http://10.0.0.1:1234"));
    assert!(config.notices[0].contains("in the clear"));
}

#[test]
fn zero_renewals_per_second_mean_the_default_as_in_the_official_agent() {
    assert_eq!(server("-c prod --max-service-qps 0").max_service_qps.get(), 3);
}

#[test]
fn the_other_commands_take_what_they_are_given() {
    assert!(matches!(run("initialize"), Ok(Command::Initialize)));
    assert!(matches!(run("initialize -v trace --anything else"), Ok(Command::Initialize)));
    assert!(matches!(run("version"), Ok(Command::Version)));
    let Ok(Command::Probe { question, run_dir }) = run("probe --ready --run-dir /x") else { panic!("no probe") };
    assert_eq!((question, run_dir), (Question::Ready, "/x".into()));
    assert!(matches!(run("probe --live"), Ok(Command::Probe { question: Question::Live, .. })));
}

#[test]
fn commands_for_people_say_what_they_mean() {
    let inquire = |line: &str| match run(line) {
        Ok(Command::Inquire(inquiry)) => inquiry,
        other => panic!("{line}: {other:?}"),
    };
    let status = inquire("status");
    assert_eq!((status.action, status.form), (Action::Status { watch: None }, Form::Table));
    let watched = inquire("status --watch=500ms").action;
    assert_eq!(watched, Action::Status { watch: Some(Duration::from_millis(500)) });
    assert_eq!(inquire("status -w").action, Action::Status { watch: Some(Duration::from_secs(2)) });
    assert_eq!(inquire("explain shop/web-0 -o yaml").action, Action::Explain("shop/web-0".to_owned()));
    assert_eq!(inquire("status -o json").form, Form::Json);
    assert_eq!(inquire("audit -f").action, Action::Audit { follow: true });
    assert_eq!(inquire("flush --all").action, Action::Flush(Selection::All));
    assert_eq!(inquire("flush --pod shop/web-0").action, Action::Flush(Selection::Pod("shop/web-0".to_owned())));
    let account = Selection::ServiceAccount("shop/reader".to_owned());
    assert_eq!(inquire("flush --service-account shop/reader").action, Action::Flush(account));
    for wrong in ["flush", "flush --all --pod x", "status -o xml"] {
        refused(wrong);
    }
}

#[test]
fn completions_are_of_this_command_line() {
    for (shell, part) in [("bash", "complete -F"), ("zsh", "#compdef pod-identity-agent"), ("fish", "complete -c")] {
        match run(&format!("completions {shell}")) {
            Err(Stop::Shown(script)) => {
                assert!(script.contains(part) && script.contains("explain") && script.contains("audit-log-max-mib"));
            }
            other => panic!("{shell}: {other:?}"),
        }
    }
    refused("completions");
}

#[test]
fn the_audits_file_has_a_path_and_a_size() {
    let config = server("-c prod --audit-log /var/log/audit.log --audit-log-max-mib 1");
    assert_eq!((config.audit_log, config.audit_log_max_bytes), (Some("/var/log/audit.log".into()), 1 << 20));
    assert!(refused("server -c prod --audit-log audit.log").contains("--audit-log 'audit.log' is relative"));
    refused("server -c prod --audit-log-max-mib 0");
}
