//! The `DaemonSet`s: what operators and the node can rely on, in every variant.
use std::ffi::OsString;

use anyhow::{Context as _, Result, ensure};
use pod_identity_agent::config::{self, Command, ServerConfig, Stop};
use pod_identity_tests::agent::CAPABILITIES;
use serde_json::Value;

use crate::{chart::rendered, tools::of_kind};

/// Every `DaemonSet` of every variant, with a name for messages.
fn daemonsets() -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for (variant, documents) in rendered()? {
        for daemonset in of_kind(documents, "DaemonSet") {
            found.push((format!("{variant}: {}", daemonset["metadata"]["name"]), daemonset.clone()));
        }
    }
    ensure!(found.len() >= 9, "only {} DaemonSets were rendered", found.len());
    Ok(found)
}

fn container(daemonset: &Value) -> &Value {
    &daemonset["spec"]["template"]["spec"]["containers"][0]
}

fn words(list: &Value) -> Result<Vec<String>> {
    let list = list.as_array().context("no list")?;
    list.iter().map(|word| Ok(word.as_str().context("no text")?.to_owned())).collect()
}

/// What the agent makes of a container's command line.
fn server(container: &Value) -> Result<ServerConfig> {
    let line = [words(&container["command"])?, words(&container["args"])?].concat();
    match config::read(line.iter().map(OsString::from)) {
        Ok(Command::Server(config)) => Ok(*config),
        Ok(other) => anyhow::bail!("{line:?} is {other:?}"),
        Err(Stop::Misconfigured(reason) | Stop::Shown(reason)) => anyhow::bail!("{line:?}: {reason}"),
    }
}

#[test]
fn the_agent_takes_every_command_line_without_a_notice() -> Result<()> {
    for (name, daemonset) in daemonsets()? {
        let config = server(container(&daemonset)).with_context(|| name.clone())?;
        let given =
            !["nothing set", "restricted", "AWS's placeholders"].iter().any(|variant| name.starts_with(variant));
        ensure!(config.cluster_name.as_deref() == given.then_some("my-cluster"), "{name}: {config:?}");
        let env = &container(&daemonset)["env"];
        ensure!(!env.to_string().contains("AWS_REGION_NAME"), "{name}: {env}");
        ensure!(config.notices.is_empty(), "{name}: {:?}", config.notices);
        let mounts = &container(&daemonset)["volumeMounts"];
        let kubelet = mounts.as_array().and_then(|mounts| mounts.iter().find(|mount| mount["name"] == "kubelet"));
        ensure!(
            kubelet.is_some_and(|mount| mount["mountPath"].as_str().map(AsRef::as_ref) == Some(&*config.kubelet_root)),
            "{name}: {} is not where {kubelet:?} is",
            config.kubelet_root.display()
        );
    }
    Ok(())
}

#[test]
fn flags_of_a_values_file_reach_the_agent_as_they_are() -> Result<()> {
    let daemonsets = daemonsets()?;
    let of = |name: &str| {
        let found = daemonsets.iter().find(|(at, _)| at.starts_with(name));
        server(container(&found.with_context(|| format!("no {name}"))?.1))
    };
    let official = of("AWS's values, cloud")?;
    // A number of seven digits is a float on its way through helm.
    ensure!(official.max_cache_size == 3_000_000 && official.metrics_addr.is_some(), "{official:?}");
    let everything = of("everything")?;
    ensure!(everything.steer.v4 && everything.steer.v6 && !everything.prefetch, "{everything:?}");
    ensure!(
        everything.rotate_credentials && everything.host_network_pods == config::HostNetworkPods::Refuse,
        "{everything:?}"
    );
    ensure!(everything.metrics_addr == Some(([127, 0, 0, 1], 2705).into()), "{everything:?}");
    Ok(())
}

#[test]
fn hybrid_nodes_lend_their_credentials_file_read_only() -> Result<()> {
    let hybrid: Vec<_> = daemonsets()?.into_iter().filter(|(_, d)| component(d).starts_with("hybrid")).collect();
    ensure!(hybrid.len() == 4, "{} DaemonSets for hybrid nodes", hybrid.len());
    for (name, daemonset) in hybrid {
        ensure!(server(container(&daemonset))?.rotate_credentials, "{name}");
        let path = if component(&daemonset) == "hybrid" { "/eks-hybrid/.aws" } else { "/var/eks-hybrid/.aws" };
        let volumes = daemonset["spec"]["template"]["spec"]["volumes"].as_array().context("no volumes")?;
        ensure!(volumes.iter().any(|volume| volume["hostPath"]["path"] == path), "{name}: {volumes:?}");
        let mounts = container(&daemonset)["volumeMounts"].as_array().context("no mounts")?;
        ensure!(
            mounts.iter().any(|mount| mount["mountPath"] == "/root/.aws" && mount["readOnly"] == true),
            "{name}: {mounts:?}"
        );
        let label = &container(&daemonset)["securityContext"]["seLinuxOptions"]["type"];
        ensure!((label == "spc_t") == (component(&daemonset) == "hybrid-bottlerocket"), "{name}: {label}");
    }
    Ok(())
}

fn component(daemonset: &Value) -> &str {
    daemonset["metadata"]["labels"]["app.kubernetes.io/component"].as_str().unwrap_or_default()
}

#[test]
fn two_agents_can_be_on_a_node_and_the_next_one_comes_first() -> Result<()> {
    for (name, daemonset) in daemonsets()? {
        let pod = &daemonset["spec"]["template"]["spec"];
        ensure!(pod["containers"].as_array().is_some_and(|list| list.len() == 1), "{name}");
        ensure!(pod["initContainers"].is_null(), "{name} has an init container");
        // With hostNetwork every declared port is the node's: the scheduler would never place the second one.
        ensure!(container(&daemonset)["ports"].is_null(), "{name} declares ports");
        for probe in ["livenessProbe", "readinessProbe"] {
            let command = words(&container(&daemonset)[probe]["exec"]["command"])?;
            let parsed = config::read(command.iter().map(OsString::from));
            ensure!(matches!(parsed, Ok(Command::Probe { .. })), "{name}: {command:?}");
        }
        let rolling = &daemonset["spec"]["updateStrategy"]["rollingUpdate"];
        if name.starts_with("AWS's values, cloud") {
            ensure!(rolling["maxUnavailable"] == "10%" && rolling["maxSurge"].is_null(), "{name}: {rolling}");
        } else {
            ensure!(rolling["maxUnavailable"] == 0 && rolling["maxSurge"] == 1, "{name}: {rolling}");
        }
    }
    Ok(())
}

#[test]
fn nothing_of_the_node_can_be_written_through_a_mount_but_an_audit_that_is_asked_for() -> Result<()> {
    for (name, daemonset) in daemonsets()? {
        let pod = &daemonset["spec"]["template"]["spec"];
        let volumes = pod["volumes"].as_array().context("no volumes")?;
        for mount in container(&daemonset)["volumeMounts"].as_array().context("no mounts")? {
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).context("no such volume")?;
            let hosts = !volume["hostPath"].is_null();
            let written = name.starts_with("everything") && mount["name"] == "audit-log";
            ensure!(!hosts || written || mount["readOnly"] == true, "{name}: {mount} can be written");
            // Token volumes are mounted after the agent has started; nothing may go the other way.
            let propagation = mount["mountPropagation"].as_str();
            let expected = (mount["name"] == "kubelet").then_some("HostToContainer");
            ensure!(propagation == expected, "{name}: {mount}");
        }
        ensure!(pod["hostNetwork"] == true && pod["hostPID"] == true, "{name}");
        ensure!(pod["automountServiceAccountToken"] == false, "{name}");
        ensure!(container(&daemonset)["securityContext"]["readOnlyRootFilesystem"] == true, "{name}");
    }
    Ok(())
}

#[test]
fn the_audit_lies_on_the_node_where_it_is_asked_for() -> Result<()> {
    for (name, daemonset) in daemonsets()? {
        let config = server(container(&daemonset))?;
        let volumes = daemonset["spec"]["template"]["spec"]["volumes"].as_array().context("no volumes")?;
        let volume = volumes.iter().find(|volume| volume["name"] == "audit-log");
        if !name.starts_with("everything") {
            ensure!(config.audit_log.is_none() && volume.is_none(), "{name}: {volume:?}");
            continue;
        }
        ensure!(config.audit_log.as_deref() == Some("/mnt/audit/audit.log".as_ref()), "{name}: {config:?}");
        ensure!(config.audit_log_max_bytes == 64 << 20, "{name}: {config:?}");
        let host_path = &volume.with_context(|| format!("{name} has nowhere to write"))?["hostPath"];
        // The root file system of the container is read-only, and a node has no such directory yet.
        ensure!(host_path["path"] == "/mnt/audit" && host_path["type"] == "DirectoryOrCreate", "{name}: {host_path}");
        let mounts = container(&daemonset)["volumeMounts"].as_array().context("no mounts")?;
        let mount = mounts.iter().find(|mount| mount["name"] == "audit-log").context("not mounted")?;
        ensure!(mount["mountPath"] == "/mnt/audit" && mount["readOnly"].is_null(), "{name}: {mount}");
    }
    Ok(())
}

#[test]
fn restricted_means_the_capabilities_that_the_tests_run_with() -> Result<()> {
    for (name, daemonset) in daemonsets()? {
        let context = &container(&daemonset)["securityContext"];
        if !name.starts_with("restricted") && !name.starts_with("everything") {
            ensure!(context["privileged"] == true, "{name}: {context}");
            continue;
        }
        ensure!(context["privileged"] == false, "{name}: {context}");
        ensure!(words(&context["capabilities"]["add"])?.join(",") == CAPABILITIES, "{name}: {context}");
        ensure!(words(&context["capabilities"]["drop"])? == ["ALL"], "{name}: {context}");
        ensure!(context["seccompProfile"]["type"] == "RuntimeDefault", "{name}: {context}");
    }
    Ok(())
}

#[test]
fn nodes_of_isolated_regions_lend_their_certificates() -> Result<()> {
    for (name, daemonset) in daemonsets()? {
        let env = container(&daemonset)["env"].as_array().cloned().unwrap_or_default();
        let bundle = env.iter().find(|variable| variable["name"] == "AWS_CA_BUNDLE");
        ensure!(bundle.is_some() == name.starts_with("everything"), "{name}: {env:?}");
        if let Some(bundle) = bundle {
            let mounts = container(&daemonset)["volumeMounts"].as_array().context("no mounts")?;
            ensure!(mounts.iter().any(|mount| mount["mountPath"] == bundle["value"]), "{name}: {mounts:?}");
        }
    }
    Ok(())
}
