use crate::cgroup::path::{Driver, Owner, Placement, PodCgroup};

/// The name of a kubepods root, then a path below it, each on a line.
pub fn cgroup_path(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (root, path) = text.split_once('\n').unwrap_or(("kubepods.slice", &text));
    let Some(driver) = Driver::of_root(root) else { return };
    let Placement::Pod(placed) = driver.place(path) else { return };

    let pod = placed.pod_path(path);
    assert!(path.trim_start_matches('/').starts_with(pod), "{pod} is the beginning of {path}");
    let segments: Vec<&str> = pod.split('/').collect();
    assert_eq!(segments.len(), placed.depth, "{pod}");
    assert!(matches!(placed.depth, 1 | 2), "{pod}");
    named(&placed, &driver, segments[placed.depth - 1]);

    // A pod can make whatever it likes below its own cgroup: it stays that pod.
    let own = PodCgroup { container: None, ..placed.clone() };
    assert_eq!(driver.place(pod), Placement::Pod(own.clone()));
    for below in ["x", "kubepods.slice", "pod00000000-0000-4000-8000-000000000000", path] {
        let Placement::Pod(below) = driver.place(&format!("{pod}/{below}")) else {
            unreachable!("{below} below {pod} is not in it")
        };
        assert_eq!(PodCgroup { container: None, ..below }, own);
    }
    if let Some(container) = placed.container {
        assert!(container.as_str().len() == 64 && path.contains(container.as_str()), "{container}");
    }
}

/// The pod's own segment holds the UID that was read, as this driver writes it.
fn named(placed: &PodCgroup, driver: &Driver, segment: &str) {
    match placed.owner {
        Owner::Static => assert!(segment.contains("pod"), "{segment}"),
        Owner::Pod(uid) => {
            let uid = match driver {
                Driver::Cgroupfs => uid.to_string(),
                Driver::Systemd(_) => uid.to_string().replace('-', "_"),
            };
            let end = if matches!(driver, Driver::Systemd(_)) { ".slice" } else { "" };
            assert!(segment.to_ascii_lowercase().ends_with(&format!("pod{uid}{end}")), "{segment} is not {uid}'s");
        }
    }
}
