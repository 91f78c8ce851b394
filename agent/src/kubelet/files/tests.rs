use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
};

use proptest::prelude::*;
use rustix::fs::{CWD, mkfifoat};

use super::*;
use crate::kubelet::tests::{FakeKubelet, POD_A, POD_B, uid};

fn read(kubelet: &FakeKubelet) -> Result<Option<String>, TokenFileError> {
    let files = TokenFiles::open(kubelet.root()).unwrap();
    files.read(uid(POD_A)).map(|token| token.map(|token| token.to_string()))
}

#[test]
fn the_kubelets_token_is_read_through_its_links() {
    let kubelet = FakeKubelet::new();
    kubelet.write(POD_A, "first");
    assert_eq!(read(&kubelet).unwrap().as_deref(), Some("first"));
    kubelet.write(POD_A, "second\r\n");
    assert_eq!(read(&kubelet).unwrap().as_deref(), Some("second"), "rotated, and without the newline");
}

#[test]
fn what_is_not_there_is_no_error() {
    let kubelet = FakeKubelet::new();
    assert_eq!(read(&kubelet).unwrap(), None, "no such pod");
    kubelet.make_volume(POD_A);
    assert_eq!(read(&kubelet).unwrap(), None, "not written yet");
    kubelet.write(POD_B, "another pod's");
    assert_eq!(read(&kubelet).unwrap(), None);
    kubelet.write(POD_A, "\n");
    assert_eq!(read(&kubelet).unwrap(), None, "empty");
    kubelet.write(POD_A, "t");
    fs::remove_file(kubelet.volume(POD_A).join("..data")).unwrap();
    assert_eq!(read(&kubelet).unwrap(), None, "the link leads nowhere");
}

#[test]
fn links_out_of_the_volume_are_not_followed() {
    let kubelet = FakeKubelet::new();
    kubelet.write(POD_B, "another pod's");
    let volume = kubelet.make_volume(POD_A);
    let neighbour = format!("../../../../{POD_B}/{VOLUME}/eks-pod-identity-token");
    let own = volume.join("own");
    fs::write(&own, "absolute").unwrap();
    for target in
        ["/etc/passwd", "../../../../../../../../etc/passwd", &neighbour, own.to_str().unwrap(), "/proc/self/environ"]
    {
        symlink(target, volume.join(TOKEN_FILE)).unwrap();
        let error = read(&kubelet).unwrap_err();
        assert!(matches!(error, TokenFileError::Outside), "{target}: {error}");
        fs::remove_file(volume.join(TOKEN_FILE)).unwrap();
    }
    symlink(TOKEN_FILE, volume.join(TOKEN_FILE)).unwrap();
    assert!(matches!(read(&kubelet), Err(TokenFileError::Outside)), "a link to itself");
}

#[test]
fn a_link_on_the_way_to_the_volume_is_not_followed_even_to_another_pod() {
    for depth in 0..4 {
        let kubelet = FakeKubelet::new();
        kubelet.write(POD_B, "another pod's");
        let parts: Vec<&str> = VOLUME.split('/').collect();
        let above = |pod: &str| {
            parts.iter().take(depth).fold(kubelet.root().join("pods").join(pod), |path, part| path.join(part))
        };
        let link = above(POD_A);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(above(POD_B), &link).unwrap();
        let error = read(&kubelet).unwrap_err();
        assert!(matches!(error, TokenFileError::Outside), "{}: {error}", link.display());
    }
}

#[test]
fn only_a_regular_file_of_a_tokens_size_is_read() {
    let kubelet = FakeKubelet::new();
    let file = kubelet.make_volume(POD_A).join(TOKEN_FILE);

    mkfifoat(CWD, &file, Mode::RUSR).unwrap();
    assert!(matches!(read(&kubelet), Err(TokenFileError::NotAFile)), "and the pipe does not block");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(matches!(read(&kubelet), Err(TokenFileError::NotAFile)));
    fs::remove_dir(&file).unwrap();
    // Made elsewhere: the path of a socket must be short.
    let socket = kubelet.root().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::rename(&socket, &file).unwrap();
    assert!(matches!(read(&kubelet), Err(TokenFileError::NotAFile)));
    fs::remove_file(&file).unwrap();

    fs::write(&file, "t".repeat(MAX_TOKEN_BYTES)).unwrap();
    assert_eq!(read(&kubelet).unwrap().unwrap().len(), MAX_TOKEN_BYTES);
    fs::write(&file, "t".repeat(MAX_TOKEN_BYTES + 1)).unwrap();
    assert!(matches!(read(&kubelet), Err(TokenFileError::TooLarge)));
    fs::write(&file, b"ey\xff").unwrap();
    assert!(matches!(read(&kubelet), Err(TokenFileError::NotText)));
}

#[test]
fn a_kubelet_root_that_is_not_there_is_told_with_what_to_do() {
    let kubelet = FakeKubelet::new();
    let error = TokenFiles::open(&kubelet.root().join("nowhere")).unwrap_err();
    assert!(matches!(error, KubeletError::Directory { .. }));
    let sentence = error.to_string();
    assert!(sentence.contains("nowhere/pods: No such file"), "{sentence}");
    assert!(sentence.contains("--kubelet-root"), "{sentence}");

    fs::write(kubelet.root().join("file"), "").unwrap();
    assert!(TokenFiles::open(&kubelet.root().join("file")).is_err());
}

#[test]
fn a_kubelet_root_behind_a_link_is_known_by_its_true_path() {
    let kubelet = FakeKubelet::new();
    kubelet.write(POD_A, "t");
    let link = kubelet.root().join("link");
    symlink(kubelet.root(), &link).unwrap();
    let files = TokenFiles::open(&link).unwrap();
    assert_eq!(files.pods_directory(), kubelet.root().canonicalize().unwrap().join("pods"));
    assert!(files.read(uid(POD_A)).unwrap().is_some());
}

#[test]
fn no_error_says_what_the_file_holds() {
    let kubelet = FakeKubelet::new();
    let file = kubelet.make_volume(POD_A).join(TOKEN_FILE);
    fs::write(&file, b"planted\xff").unwrap();
    let error = read(&kubelet).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("planted"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let kubelet = FakeKubelet::new();
        fs::write(kubelet.make_volume(POD_A).join(TOKEN_FILE), &bytes).unwrap();
        match (read(&kubelet), str::from_utf8(&bytes)) {
            (Ok(token), Ok(text)) => prop_assert_eq!(token.unwrap_or_default(), text.trim_end_matches(['\r', '\n'])),
            (Err(TokenFileError::NotText), Err(_)) => {}
            (read, _) => prop_assert!(false, "{:?}", read),
        }
    }
}
