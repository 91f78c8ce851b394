//! The deploy tier: what operators install, without a cluster. The chart is rendered by helm itself, checked against
//! the schemas of Kubernetes, and its command lines are read by the agent's own parser.
mod alerts;
mod chart;
mod daemonset;
mod dashboard;
mod examples;
mod manifest;
mod metrics;
mod monitors;
mod readme;
mod tools;
mod wrong_values;
