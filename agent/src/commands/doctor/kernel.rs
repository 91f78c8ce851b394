//! What the kernel and the container offer.
use std::ops::RangeInclusive;

use crate::{
    cgroup::{
        kubepods::{Kubepods, KubepodsError},
        mount::CgroupMount,
    },
    commands::checks::{Check, Verdict},
    self_test,
};

/// The oldest that takes the programs.
const OLDEST: (u32, u32) = (5, 18);
/// From here on the agent's programs run before all others of pods' cgroups.
const ORDERED: (u32, u32) = (6, 15);

pub(super) fn version() -> Check {
    judged(&rustix::system::uname().release().to_string_lossy())
}

fn judged(release: &str) -> Check {
    const STEP: &str = "kernel";
    let mut numbers = release.split(['.', '-']).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Check::not_known(STEP, format!("Linux {release}: not a version that can be read"), "");
    };
    match (major, minor) {
        version if version < OLDEST => Check::new(
            Verdict::Fail,
            STEP,
            format!("Linux {release} does not take the eBPF programs"),
            "use Linux 5.18 or newer",
        ),
        version if version < ORDERED => Check::ok(
            STEP,
            format!(
                "Linux {release}; programs of pods' own cgroups run before the agent's (it has an order from 6.15 on)"
            ),
        ),
        _ => Check::ok(STEP, format!("Linux {release}; the agent's programs run before those of pods' own cgroups")),
    }
}

pub(super) fn capabilities(listener_ports: &RangeInclusive<u16>) -> Check {
    const STEP: &str = "capabilities";
    match self_test::missing_capabilities(listener_ports) {
        Err(error) => Check::new(Verdict::Fail, STEP, error.to_string(), "mount /proc"),
        Ok(missing) if missing.is_empty() => Check::ok(STEP, "all that the agent needs"),
        Ok(missing) => {
            let missing: Vec<String> = missing.iter().map(|(name, purpose)| format!("{name} (to {purpose})")).collect();
            let remedy = "add them to the container's securityContext, run it privileged, or run this as root";
            Check::new(Verdict::Fail, STEP, format!("missing: {}", missing.join(", ")), remedy)
        }
    }
}

/// The look-up that every caller is attested with, tried on a connection to oneself.
pub(super) fn sockets() -> Check {
    const STEP: &str = "tcp_diag";
    match self_test::socket_cgroup() {
        Ok(()) => Check::ok(STEP, "the kernel tells the cgroup of a connection's socket"),
        Err(error) => Check::new(Verdict::Fail, STEP, error.to_string(), "callers cannot be attested until that is so"),
    }
}

pub(super) fn cgroup_mount() -> Check {
    const STEP: &str = "cgroups";
    match CgroupMount::all() {
        Ok(mounts) => {
            let places: Vec<String> = mounts.iter().map(|mount| mount.mount_point().display().to_string()).collect();
            Check::ok(STEP, format!("cgroup2 is mounted on {}", places.join(", ")))
        }
        Err(error) => {
            Check::new(Verdict::Fail, STEP, error.to_string(), "mount the node's /sys/fs/cgroup into the container")
        }
    }
}

pub(super) fn kubepods(found: &Result<Kubepods, KubepodsError>) -> Check {
    const STEP: &str = "kubepods";
    match found {
        Ok(kubepods) => Check::ok(STEP, format!("{} (cgroup id {})", kubepods.directory().display(), kubepods.id())),
        Err(error) => Check::new(
            Verdict::Fail,
            STEP,
            error.to_string(),
            "run this in the agent's container, or name the cgroup with --kubepods-cgroup",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        for (release, verdict) in [
            ("6.18.5", Verdict::Ok),
            ("6.1.0-40-cloud-amd64", Verdict::Ok),
            ("5.18", Verdict::Ok),
            ("5.10.240-238.955.amzn2.x86_64", Verdict::Fail),
            ("4.19.0", Verdict::Fail),
            ("mainline", Verdict::NotKnown),
        ] {
            assert_eq!(judged(release).verdict, verdict, "{release}");
        }
        assert!(judged("6.15.0").finding.contains("the agent's programs run before"));
        assert!(judged("6.12.0").finding.contains("run before the agent's"));
    }
}
