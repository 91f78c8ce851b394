//! The walkthrough of `deploy/examples`: its files are what they should be, say the same, and are all told of.
use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::tools::{KUBERNETES, deploy, documents_for, of_kind, text};

const PLACE: &str = "examples";

fn example(name: &str) -> Result<String> {
    text(&deploy(PLACE).join(name))
}

/// A Terraform file as HCL's own specification has it in JSON; an error for what is no HCL.
fn terraform(text: &str) -> Result<Value> {
    hcl::from_str(text).context("no HCL")
}

/// The one statement of a policy.
fn statement(policy: &str) -> Result<Value> {
    let policy: Value = serde_json::from_str(&example(policy)?).with_context(|| policy.to_owned())?;
    ensure!(policy["Version"] == "2012-10-17", "{policy}");
    let [statement] = &policy["Statement"].as_array().context("no statements")?[..] else {
        anyhow::bail!("{policy} has not one statement")
    };
    Ok(statement.clone())
}

/// The words of the walkthrough's commands, each command a line.
fn commands() -> Result<Vec<Vec<String>>> {
    let readme = example("README.md")?;
    let blocks = readme.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>());
    Ok(lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect())
}

/// The flags of the command that has these words.
fn flags(words: &[&str]) -> Result<BTreeMap<String, String>> {
    let commands = commands()?;
    let command = commands
        .iter()
        .find(|command| command.iter().zip(words).filter(|(word, wanted)| word == *wanted).count() == words.len());
    let command = command.with_context(|| format!("no command {words:?}"))?;
    Ok(command
        .windows(2)
        .filter(|pair| pair[0].starts_with("--"))
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect())
}

#[test]
fn the_role_is_one_that_eks_pod_identity_can_assume() -> Result<()> {
    let trust = statement("trust-policy.json")?;
    let expected = json!({
        "Effect": "Allow", "Principal": {"Service": "pods.eks.amazonaws.com"}, "Action": ["sts:AssumeRole", "sts:TagSession"],
    });
    ensure!(trust == expected, "{trust}");
    statement("permissions.json").map(drop)
}

#[test]
fn the_terraform_file_is_hcl_and_says_what_the_policies_say() -> Result<()> {
    let text = example("association.tf")?;
    let terraform = terraform(&text)?;
    let document = |name: &str| &terraform["data"]["aws_iam_policy_document"][name]["statement"];
    let (trust, trusted) = (statement("trust-policy.json")?, document("trust"));
    ensure!(trusted["actions"] == trust["Action"] && trusted["effect"] == trust["Effect"], "{trusted}");
    ensure!(
        trusted["principals"] == json!({"type": "Service", "identifiers": [trust["Principal"]["Service"]]}),
        "{trusted}"
    );
    let (permissions, permitted) = (statement("permissions.json")?, document("permissions"));
    ensure!(
        permitted["actions"] == permissions["Action"] && permitted["resources"] == permissions["Resource"],
        "{permitted}"
    );

    let association = &terraform["resource"]["aws_eks_pod_identity_association"]["reader"];
    let by_hand = flags(&["aws", "eks", "create-pod-identity-association"])?;
    for (member, flag) in [("namespace", "--namespace"), ("service_account", "--service-account")] {
        ensure!(association[member].as_str() == by_hand.get(flag).map(String::as_str), "{association} {by_hand:?}");
    }
    ensure!(association["role_arn"] == "${aws_iam_role.reader.arn}", "{association}");
    let role = &terraform["resource"]["aws_iam_role"]["reader"];
    ensure!(role["assume_role_policy"] == "${data.aws_iam_policy_document.trust.json}", "{role}");
    ensure!(
        by_hand["--role-arn"].ends_with(&format!(":role/{}", role["name"].as_str().unwrap_or_default())),
        "{by_hand:?}"
    );
    Ok(())
}

#[test]
fn a_broken_terraform_file_is_noticed() -> Result<()> {
    let text = example("association.tf")?;
    // Each of its braces, brackets, quotes and signs of equality is needed.
    for broken in ['{', '}', '[', ']', '"', '='] {
        for (at, _) in text.match_indices(broken) {
            let mut without = text.clone();
            without.remove(at);
            ensure!(terraform(&without).is_err(), "without {broken} at {at} it is taken");
        }
    }
    Ok(())
}

#[test]
fn the_pod_is_of_the_service_account_that_is_associated() -> Result<()> {
    for version in KUBERNETES {
        let documents = documents_for(version, &example("pod.yaml")?)?;
        let by_hand = flags(&["aws", "eks", "create-pod-identity-association"])?;
        let [pod] = of_kind(&documents, "Pod")[..] else { anyhow::bail!("not one pod") };
        let [account] = of_kind(&documents, "ServiceAccount")[..] else { anyhow::bail!("not one service account") };
        let name = account["metadata"]["name"].as_str();
        ensure!(name == by_hand.get("--service-account").map(String::as_str), "{account} {by_hand:?}");
        ensure!(pod["spec"]["serviceAccountName"].as_str() == name, "{pod}");
        for document in [pod, account] {
            let namespace = document["metadata"]["namespace"].as_str();
            ensure!(namespace == by_hand.get("--namespace").map(String::as_str), "{document} {by_hand:?}");
        }
        // What AWS's tools know under this name, and no other's.
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
        ensure!(text(&deploy("chart/values.yaml"))?.contains(image), "{image} is not the chart's");
    }
    Ok(())
}

#[test]
fn every_file_is_told_of_and_there() -> Result<()> {
    let readme = example("README.md")?;
    for entry in fs::read_dir(deploy(PLACE))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(name == "README.md" || readme.contains(&name), "no word of {name}");
    }
    for command in commands()? {
        for file in command.iter().filter_map(|word| word.strip_prefix("file://")) {
            ensure!(deploy(PLACE).join(file).is_file(), "{command:?}: there is no {file}");
        }
    }
    Ok(())
}
