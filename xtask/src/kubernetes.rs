//! Kubernetes for the cluster tier: Debian's source package, which brings all that it is made of, built once with
//! Debian's Go into the user's cache.
//!
//! Debian 12 has 1.20.2, and later releases have only kubectl. No registry that this repository uses has another.

mod source;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{cache, process, setup};
use source::Apt;

/// Names the recipe too: a change of what is built, or how, is another directory.
const DIRECTORY: &str = "kubernetes-1.20.2-1";

const PROGRAMS: [&str; 5] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"];

/// What the build starts, and Debian's packages of it.
const BUILDS_WITH: [(&str, &str); 6] = [
    ("go", "golang-go"),
    ("make", "make"),
    ("rsync", "rsync"),
    ("dpkg-source", "dpkg-dev"),
    ("patch", "patch"),
    ("xz", "xz-utils"),
];

/// A library that Kubernetes brings in a version which, with Go 1.18 and later, iterates maps over memory that is not
/// theirs: an API server that a webhook answers with a patch crashes. Debian's own is the next version.
const LIBRARY: &str = "golang-github-modern-go-reflect2-dev";
const LIBRARY_PATH: &str = "github.com/modern-go/reflect2";

/// The directory of its programs and of etcd, after all were built.
pub(crate) fn programs() -> Result<PathBuf> {
    cache::part(&cache::directory(DIRECTORY)?, "bin", |work| {
        process::timed("build Kubernetes from Debian's source package, once (10 min of two cores)", || build(work)).0
    })
}

/// Builds below `work`; says where the programs are.
fn build(work: &Path) -> Result<PathBuf> {
    setup::require(&BUILDS_WITH)?;
    let apt = Apt::new(work)?;
    let tree = apt.source("kubernetes", "cmd/kube-apiserver")?;
    let library = apt.unpack(LIBRARY)?.join("usr/share/gocode/src").join(LIBRARY_PATH);
    source::replace(&tree.join("vendor").join(LIBRARY_PATH), &library)?;
    make(work, &tree)?;
    let ready = work.join("bin");
    fs::create_dir(&ready)?;
    for program in PROGRAMS {
        fs::rename(tree.join("_output/bin").join(program), ready.join(program))
            .with_context(|| format!("the build made no {program}"))?;
    }
    // The program alone: the package, installed, would start a server.
    fs::rename(apt.unpack("etcd-server")?.join("usr/bin/etcd"), ready.join("etcd")).context("unpack etcd")?;
    Ok(ready)
}

fn make(work: &Path, tree: &Path) -> Result<()> {
    // As Debian builds it: in the place that its imports name.
    let go_path = tree.join(".go");
    fs::create_dir_all(go_path.join("src/k8s.io"))?;
    std::os::unix::fs::symlink("../../..", go_path.join("src/k8s.io/kubernetes"))?;
    let what: Vec<String> = PROGRAMS.iter().map(|program| format!("cmd/{program}")).collect();
    let mut make = Command::new("make");
    make.current_dir(tree).arg(format!("WHAT={}", what.join(" ")));
    // No settings of a Go developer's own.
    make.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
    make.env("HOME", work).env("GOPATH", go_path).env("CGO_ENABLED", "0");
    process::run(&mut make)
}
