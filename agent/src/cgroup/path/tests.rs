use super::*;

const UID: &str = "6a4d7b1e-0c7b-4b43-9f0e-1d6f3b1f2a77";
const UID_: &str = "6a4d7b1e_0c7b_4b43_9f0e_1d6f3b1f2a77";
const OTHER: &str = "00000000-0000-4000-8000-000000000000";
const OTHER_: &str = "00000000_0000_4000_8000_000000000000";
const CONTAINER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn fill(path: &str) -> String {
    path.replace("{U_}", UID_)
        .replace("{U}", UID)
        .replace("{O_}", OTHER_)
        .replace("{O}", OTHER)
        .replace("{C}", CONTAINER)
}

#[track_caller]
fn place(root: &str, path: &str) -> Placement {
    Driver::of_root(root).unwrap_or_else(|| panic!("{root} is a kubepods root")).place(&fill(path))
}

/// (name of the root, path below it, is a container, depth of the pod)
const PODS: &[(&str, &str, bool, usize)] = &[
    // containerd with systemd: what EKS's Amazon Linux 2023 and Bottlerocket nodes have
    ("kubepods.slice", "kubepods-burstable.slice/kubepods-burstable-pod{U_}.slice/cri-containerd-{C}.scope", true, 2),
    ("kubepods.slice", "kubepods-besteffort.slice/kubepods-besteffort-pod{U_}.slice/cri-containerd-{C}.scope", true, 2),
    ("kubepods.slice", "kubepods-pod{U_}.slice/cri-containerd-{C}.scope", true, 1),
    ("kubepods.slice", "kubepods-burstable.slice/kubepods-burstable-pod{U_}.slice", false, 2),
    ("kubepods.slice", "kubepods-pod{U_}.slice", false, 1),
    ("kubepods.slice", "/kubepods-pod{U_}.slice/", false, 1),
    // containerd with cgroupfs
    ("kubepods", "burstable/pod{U}/{C}", true, 2),
    ("kubepods", "besteffort/pod{U}/{C}", true, 2),
    ("kubepods", "pod{U}/{C}", true, 1),
    ("kubepods", "pod{U}", false, 1),
    // CRI-O: systemd, with crun's sub-cgroup, conmon, cgroupfs
    ("kubepods.slice", "kubepods-burstable.slice/kubepods-burstable-pod{U_}.slice/crio-{C}.scope", true, 2),
    ("kubepods.slice", "kubepods-burstable.slice/kubepods-burstable-pod{U_}.slice/crio-{C}.scope/container", true, 2),
    ("kubepods.slice", "kubepods-pod{U_}.slice/crio-conmon-{C}.scope", true, 1),
    ("kubepods", "burstable/pod{U}/crio-{C}", true, 2),
    // cri-dockerd
    ("kubepods.slice", "kubepods-burstable.slice/kubepods-burstable-pod{U_}.slice/docker-{C}.scope", true, 2),
    ("kubepods", "burstable/pod{U}/docker-{C}", true, 2),
    // kind, and any kubelet with --cgroup-root: the root's name repeats its parents
    (
        "kubelet-kubepods.slice",
        "kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{U_}.slice/cri-containerd-{C}.scope",
        true,
        2,
    ),
    ("kubelet-kubepods.slice", "kubelet-kubepods-pod{U_}.slice/cri-containerd-{C}.scope", true, 1),
    ("a-b-kubepods.slice", "a-b-kubepods-burstable.slice/a-b-kubepods-burstable-pod{U_}.slice/x", false, 2),
    // what a pod may do below its own cgroup
    ("kubepods", "burstable/pod{U}/{C}/system.slice/foo.service", true, 2),
    ("kubepods.slice", "kubepods-pod{U_}.slice/cri-containerd-{C}.scope/init.scope", true, 1),
    ("kubepods", "burstable/pod{U}/{C}/kubepods/pod{O}/{C}", true, 2),
    ("kubepods", "pod{U}/pod{O}/{C}", false, 1),
    (
        "kubepods.slice",
        "kubepods-burstable.slice/kubepods-burstable-pod{U_}.slice/cri-containerd-{C}.scope/kubepods.slice/kubepods-pod{O_}.slice/x",
        true,
        2,
    ),
    ("kubepods.slice", "kubepods-pod{U_}.slice/kubepods-pod{O_}.slice/cri-containerd-{C}.scope", false, 1),
    ("kubepods", "pod{U}/../pod{O}", false, 1),
    ("kubepods", "pod{U}/short-id", false, 1),
];

#[test]
fn every_form_of_a_pods_path_names_that_pod() {
    assert!(PODS.len() >= 25);
    for (root, path, container, depth) in PODS {
        let Placement::Pod(pod) = place(root, path) else { panic!("{root}/{path} is a pod's") };
        assert_eq!(pod.owner, Owner::Pod(UID.parse().unwrap()), "{root}/{path}");
        assert_eq!(pod.container.map(|c| c.to_string()), container.then(|| CONTAINER.to_owned()), "{root}/{path}");
        assert_eq!(pod.depth, *depth, "{root}/{path}");
    }
}

#[test]
fn static_pods_are_told_apart() {
    let hash = "d1cbf8a1c9aa4fe9b9d1fb1e7e1d6c2b";
    for (root, path) in [
        ("kubepods", format!("burstable/pod{hash}/{CONTAINER}")),
        ("kubepods.slice", format!("kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice")),
    ] {
        let Placement::Pod(pod) = place(root, &path) else { panic!("{path}") };
        assert_eq!(pod.owner, Owner::Static, "{path}");
    }
}

#[test]
fn the_levels_above_pods_are_no_pods() {
    for (root, path) in [
        ("kubepods", ""),
        ("kubepods", "/"),
        ("kubepods", "burstable"),
        ("kubepods", "/besteffort/"),
        ("kubepods.slice", "kubepods-burstable.slice"),
        ("kubelet-kubepods.slice", "kubelet-kubepods-besteffort.slice"),
    ] {
        assert_eq!(place(root, path), Placement::Above, "{root}/{path}");
    }
}

#[test]
fn anything_else_below_the_root_is_foreign() {
    for (root, path) in [
        ("kubepods", "burstable/x"),
        ("kubepods", "x"),
        ("kubepods", "pod"),
        ("kubepods", "pod../x"),
        ("kubepods", "guaranteed/pod{U}"),
        ("kubepods", "burstable/burstable/pod{U}"),
        ("kubepods", "pod{U_}"),
        ("kubepods", "pod{U}x"),
        ("kubepods", "podx{U}"),
        ("kubepods", "pod{U}.slice"),
        ("kubepods.slice", "pod{U}"),
        ("kubepods.slice", "evil-pod{U_}.slice/x"),
        ("kubepods.slice", "kubepods-pod{U}.slice"),
        ("kubepods.slice", "kubepods-burstable-pod{U_}.slice"),
        ("kubepods.slice", "kubepods-burstable.slice/kubepods-besteffort-pod{U_}.slice"),
        ("kubepods.slice", "kubepods-burstable.slice/kubepods-pod{U_}.slice"),
        ("kubepods.slice", "kubepods-pod{U_}"),
        ("kubelet-kubepods.slice", "kubepods-pod{U_}.slice"),
    ] {
        assert_eq!(place(root, path), Placement::Foreign, "{root}/{path}");
    }
}

#[test]
fn only_the_kubelets_names_are_roots() {
    assert_eq!(Driver::of_root("kubepods"), Some(Driver::Cgroupfs));
    assert_eq!(Driver::of_root("kubepods.slice"), Some(Driver::Systemd("kubepods".to_owned())));
    assert_eq!(Driver::of_root("kubelet-kubepods.slice"), Some(Driver::Systemd("kubelet-kubepods".to_owned())));
    for name in ["", "kubepods.scope", "xkubepods", "xkubepods.slice", "kubepods-burstable.slice", "system.slice"] {
        assert_eq!(Driver::of_root(name), None, "{name}");
    }
}

proptest::proptest! {
    #[test]
    fn no_path_makes_it_panic(path in "\\PC*", systemd: bool) {
        let driver = if systemd { Driver::Systemd("kubepods".to_owned()) } else { Driver::Cgroupfs };
        let _ = driver.place(&path);
    }

    /// Whatever a pod names its own directories, the pod stays the same.
    #[test]
    fn what_lies_below_a_pod_never_changes_the_pod(below in "[a-z0-9/._-]{0,200}") {
        let driver = Driver::Cgroupfs;
        let placement = driver.place(&format!("burstable/pod{UID}/{below}"));
        let Placement::Pod(pod) = placement else { panic!("{placement:?}") };
        proptest::prop_assert_eq!(pod.owner, Owner::Pod(UID.parse().unwrap()));
    }
}
