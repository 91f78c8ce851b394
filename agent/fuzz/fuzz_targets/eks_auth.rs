//! What EKS Auth, or whoever is in its place, answers.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| pod_identity_agent::fuzzing::eks_auth(data));

#[cfg(not(fuzzing))]
fn main() {
    // The target exists where cargo-fuzz builds it: `cargo xtask fuzz eks_auth`.
}
