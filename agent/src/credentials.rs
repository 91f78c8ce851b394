//! A pod's credentials: [`issued`] is what is served, [`policy`] when to fetch, [`worker`] the one owner of each pod's
//! fetches, [`engine`] what the workers share.
pub mod clock;
pub mod engine;
pub mod issued;
pub mod policy;
pub mod worker;

pub use clock::Clock;
pub use engine::{Engine, Upstream, UpstreamFuture};
pub use issued::{Grant, Issued};
pub use worker::{Credentials, PresentedToken, State};
