use std::{fs, path::Path};

/// All seeds of a target, or one of `agent/fuzz/seeds` by its name.
fn replay(target: &str, check: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut seeds: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "no seeds in {}", directory.display());
    for seed in seeds {
        println!("{}", seed.display());
        check(&fs::read(&seed).unwrap());
    }
}

#[test]
fn the_admin_sockets_seeds() {
    replay("admin", super::admin);
}

#[test]
fn cgroup_paths_seeds() {
    replay("cgroup_path", super::cgroup_path);
}

#[test]
fn eks_auths_seeds() {
    replay("eks_auth", super::eks_auth);
}

#[test]
fn the_credential_endpoints_seeds() {
    replay("http", super::http);
}

#[test]
fn netlinks_seeds() {
    replay("netlink", super::netlink);
}

#[test]
fn tokens_seeds() {
    replay("token", super::token);
}
