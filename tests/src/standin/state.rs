//! What all requests share.
use super::{
    associations::Associations, control::Counting, control::Rules, credentials::Source, nodes::Nodes, tokens::Verifier,
};

pub(super) struct State {
    pub(super) cluster: String,
    pub(super) verifier: Verifier,
    pub(super) nodes: Nodes,
    pub(super) associations: Associations,
    pub(super) source: Source,
    pub(super) rules: Rules,
    pub(super) counters: Counting,
}
