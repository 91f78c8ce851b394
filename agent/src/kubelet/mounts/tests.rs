use proptest::prelude::*;

use super::*;
use crate::kubelet::tests::{POD_A, POD_B, uid};

const PODS: &str = "/var/lib/kubelet/pods";

fn line(id: u64, mount_point: &str) -> String {
    format!("{id} 29 0:71 / {mount_point} rw,relatime shared:12 - tmpfs tmpfs rw,size=65536k,inode64\n")
}

fn volume(pod: &str) -> String {
    format!("{PODS}/{pod}/{VOLUME}")
}

#[track_caller]
fn found(table: &str, pods: &str) -> Volumes {
    token_volumes(table.as_bytes(), pods.as_bytes()).collect()
}

#[test]
fn token_volumes_are_found_among_other_mounts() {
    let table = [
        line(22, "/sys"),
        line(310, &volume(POD_A)),
        line(311, &format!("{PODS}/{POD_A}/volumes/kubernetes.io~projected/kube-api-access-x2x4d")),
        line(312, &format!("{PODS}/{POD_B}/volumes/kubernetes.io~secret/eks-pod-identity-token")),
        line(313, &format!("{PODS}/{POD_B}/volumes/kubernetes.io~projected/eks-pod-identity-token-2")),
        line(314, &volume(POD_B)),
    ]
    .concat();
    assert_eq!(found(&table, PODS), Volumes::from([(uid(POD_A), 310), (uid(POD_B), 314)]));
}

#[test]
fn only_this_kubelets_pods_count() {
    let empty_dir = format!("{PODS}/{POD_A}/volumes/kubernetes.io~empty-dir/var");
    for mount_point in [
        format!("{empty_dir}/lib/kubelet/pods/{POD_B}/{VOLUME}"),
        format!("{empty_dir}{}", volume(POD_B)),
        format!("/other{}", volume(POD_A)),
        format!("{PODS}-2/{POD_A}/{VOLUME}"),
        format!("{PODS}//{POD_A}/{VOLUME}"),
        format!("{PODS}/{VOLUME}"),
        format!("{PODS}/not-a-uid/{VOLUME}"),
        format!("{PODS}/{}/{VOLUME}", POD_A.replace('-', "")),
        format!("{PODS}/{POD_A}/x/{VOLUME}"),
        format!("{PODS}/{POD_A}{VOLUME}"),
        format!("{}//deleted", volume(POD_A)),
        format!("{PODS}/\\377{POD_A}/{VOLUME}"),
    ] {
        assert_eq!(found(&line(1, &mount_point), PODS), Volumes::new(), "{mount_point}");
    }
}

#[test]
fn escapes_of_the_kernel_are_undone() {
    let table = line(7, &format!("/data\\040disk\\134x\\011\\012y/pods/{POD_A}/{VOLUME}"));
    assert_eq!(found(&table, "/data disk\\x\t\ny/pods"), Volumes::from([(uid(POD_A), 7)]));
    for (written, plain) in [
        ("", ""),
        ("\\", "\\"),
        ("\\04", "\\04"),
        ("\\089", "\\089"),
        ("\\777", "\\777"),
        ("\\\\040", "\\ "),
        ("a\\040\\040b", "a  b"),
    ] {
        assert_eq!(unescaped(written.as_bytes()), plain.as_bytes(), "{written}");
    }
}

#[test]
fn odd_lines_are_passed_over() {
    let good = line(9, &volume(POD_A));
    let odd = format!("\n \n1\n1 2 3\nx 29 0:71 / {} rw\n1 29 0:71 /\n{good}", volume(POD_B));
    assert_eq!(found(&odd, PODS), Volumes::from([(uid(POD_A), 9)]));
    assert_eq!(found(good.trim_end(), PODS).len(), 1, "no newline at the end");
}

#[test]
fn the_mount_on_top_counts() {
    let table = [line(9, &volume(POD_A)), line(12, &volume(POD_A))].concat();
    assert_eq!(found(&table, PODS), Volumes::from([(uid(POD_A), 12)]));
}

#[test]
fn a_difference_names_what_came_went_and_was_mounted_anew() {
    let (a, b) = (uid(POD_A), uid(POD_B));
    let none = Volumes::new();
    let one = Volumes::from([(a, 1)]);
    assert_eq!(difference(&one, &one), Difference::default());
    assert_eq!(difference(&none, &one), Difference { appeared: vec![a], vanished: vec![] });
    assert_eq!(difference(&one, &none), Difference { appeared: vec![], vanished: vec![a] });
    assert_eq!(difference(&one, &[(a, 2)].into()), Difference { appeared: vec![a], vanished: vec![] });
    assert_eq!(difference(&one, &[(b, 1)].into()), Difference { appeared: vec![b], vanished: vec![a] });
}

#[tokio::test]
async fn this_systems_mount_table_is_read_whole_each_time() {
    let mut mounts = Mounts::open(Path::new(PODS)).unwrap();
    mounts.compare().unwrap();
    let first = mounts.read().unwrap();
    assert!(first.ends_with(b"\n"));
    mounts.compare().unwrap();
    let second = mounts.read().unwrap();
    assert!(second.ends_with(b"\n") && second.starts_with(first.split_at(8).0));
}

fn escaped(text: &[u8]) -> Vec<u8> {
    let mut written = Vec::new();
    for &byte in text {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => written.extend(format!("\\{byte:03o}").into_bytes()),
            _ => written.push(byte),
        }
    }
    written
}

proptest! {
    #[test]
    fn any_path_survives_the_kernels_escapes(path in prop::collection::vec(any::<u8>(), 0..40)) {
        prop_assert_eq!(unescaped(&escaped(&path)), path);
    }

    #[test]
    fn no_table_makes_the_reader_fail(
        table in prop::collection::vec(any::<u8>(), 0..200),
        pieces in prop::collection::vec("[0-9 /\\\\\n]{0,6}|/volumes/kubernetes\\.io~projected/eks-pod-identity-token|/pods", 0..12),
    ) {
        let _ = token_volumes(&table, b"/pods").count();
        let _ = token_volumes(pieces.concat().as_bytes(), b"/pods").count();
    }
}
