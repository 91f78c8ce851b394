//! A pod's credentials: [`issued`] is what is served, [`handle`] how it is asked for, [`policy`] when to fetch, the worker
//! the one owner of each pod's fetches, [`engine`] what the workers share.
mod cache;
pub mod clock;
pub mod engine;
pub mod gate;
pub mod handle;
pub mod issued;
pub mod policy;
#[cfg(test)]
mod simulation;
mod tokens;
mod worker;

pub use clock::Clock;
pub use engine::{Engine, NoTokens, TokenSource, Unreadable, Upstream, UpstreamFuture};
pub use handle::{Credentials, Flushed, PresentedToken, State, Subject};
pub(crate) use issued::written;
pub use issued::{CredentialNames, Grant, Issued};
