//! Paths below the kubepods root.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| pod_identity_agent::fuzzing::cgroup_path(data));

#[cfg(not(fuzzing))]
fn main() {
    // The target exists where cargo-fuzz builds it: `cargo xtask fuzz cgroup_path`.
}
