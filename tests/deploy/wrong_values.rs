//! Wrong values: each ends in an error that says where it is and what would be right.
use anyhow::{Result, ensure};

use crate::tools::{run, template};

/// What is set, and what the error must say.
const WRONG: [(&str, &[&str]); 33] = [
    ("clusterName=a/b", &["/clusterName", "pattern"]),
    ("clusterNam=x", &["clusterNam", "not allowed"]),
    ("image.pull=Always", &["/image", "pull", "not allowed"]),
    ("image.pullPolicy=Sometimes", &["/image/pullPolicy", "'Always', 'IfNotPresent', 'Never'"]),
    ("image.repository=Upper", &["/image/repository", "Upper"]),
    ("image.tag=a b", &["/image/tag", "a b"]),
    ("imagePullSecrets[0]=mirror", &["/imagePullSecrets/0", "want object"]),
    ("securityMode=lax", &["/securityMode", "'privileged', 'restricted'"]),
    ("agent.probePort=70000", &["/agent/probePort", "65,535"]),
    ("agent.probePort=none", &["/agent/probePort", "want integer"]),
    ("agent.additionalArgs.verbosity=info", &["agent.additionalArgs", "'verbosity' is no flag"]),
    ("agent.additionalArgs=--verbosity", &["/agent/additionalArgs", "object"]),
    ("daemonsets.cloud.additionalArgs.x=1", &["daemonsets.cloud.additionalArgs", "'x' is no flag"]),
    ("env.a-b=c", &["env", "'a-b'"]),
    ("metrics.port=0", &["/metrics/port", "minimum"]),
    ("metrics.path=/other", &["/metrics/path", "'/metrics'"]),
    ("metrics.address=everywhere", &["/metrics/address", "everywhere"]),
    ("metrics.enabled=yes please", &["/metrics/enabled", "want boolean"]),
    ("metrics.podMonitor.enabled=true", &["metrics.podMonitor", "metrics.enabled"]),
    ("metrics.serviceMonitor.interval=often", &["/metrics/serviceMonitor/interval", "often"]),
    (
        "metrics.enabled=true,metrics.podMonitor.enabled=true,metrics.serviceMonitor.enabled=true",
        &["serviceMonitor and podMonitor", "twice"],
    ),
    ("kubeletRoot=var/lib/kubelet", &["/kubeletRoot", "var/lib/kubelet"]),
    ("auditLog.directory=audit", &["/auditLog/directory", "audit"]),
    ("auditLog.maxMib=0", &["/auditLog/maxMib", "minimum"]),
    ("nodeCaBundle=bundle.pem", &["/nodeCaBundle", "bundle.pem"]),
    ("resources.request.cpu=1", &["/resources", "request", "not allowed"]),
    ("tolerations=all", &["/tolerations", "array"]),
    ("updateStrategy.type=Recreate", &["/updateStrategy/type", "'RollingUpdate', 'OnDelete'"]),
    ("updateStrategy.rollingUpdate.maxSurge=half", &["/updateStrategy/rollingUpdate/maxSurge", "half"]),
    (
        "updateStrategy.rollingUpdate.maxSurge=1,updateStrategy.rollingUpdate.maxUnavailable=1",
        &["updateStrategy.rollingUpdate", "not both"],
    ),
    ("daemonsets.cloud.create=false", &["daemonsets", "none is to be created"]),
    ("daemonsets.cloud.creat=true", &["/daemonsets/cloud", "creat", "not allowed"]),
    ("daemonsets.hybrid.create=true,daemonsets.hybrid.nameSuffix=", &["nameSuffix", "the same"]),
];

#[test]
fn every_wrong_value_is_an_error_that_names_it() -> Result<()> {
    for (assignment, expected) in WRONG {
        let output = run("helm", &template(&["--set", "clusterName=my-cluster", "--set", assignment]))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{assignment} is taken");
        for part in expected {
            ensure!(error.contains(part), "{assignment}: no word of {part}: {error}");
        }
    }
    Ok(())
}
