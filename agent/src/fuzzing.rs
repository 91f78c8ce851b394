//! What has to hold whatever comes in: one function for each way in, for the targets of `agent/fuzz` and for the unit
//! tests, which replay the seeds of those. Not part of the product: compiled for tests and for cargo-fuzz.
//!
//! Each takes an input and panics where a property does not hold.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a failed property is told by a panic"
)]

pub(crate) mod answers;
mod cgroup_path;
pub(crate) mod node;
#[cfg(test)]
mod tests;
mod token;

pub use crate::{
    admin::fuzzing::admin, attestation::fuzzing::netlink, eks_auth::fuzzing::eks_auth, server::fuzzing::http,
};
pub use cgroup_path::cgroup_path;
pub use token::token;

/// An input as text, its lines apart from what follows the first empty one.
fn head_and_body(input: &[u8]) -> (String, &[u8]) {
    let end = input.windows(2).position(|two| two == b"\n\n");
    let (head, body) = end.map_or((input, &b""[..]), |at| (&input[..at], &input[at + 2..]));
    (String::from_utf8_lossy(head).into_owned(), body)
}
