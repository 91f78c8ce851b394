//! Who stands between a pod and the programs, asked of the kernel at this moment. Changes nothing: [`guard`](super::guard)
//! does that.
use std::{fs::File, io, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    Steering,
    attachment::{Attachment, Order, Standing},
};
use crate::sys::bpf::Program;

/// What is wrong at one hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disturbance {
    /// The agent's program that belongs there.
    pub program: String,
    /// What is wrong with it.
    pub kind: DisturbanceKind,
    /// Programs of others that have to do with it, as `NAME (id NUMBER)`.
    pub others: Vec<String>,
}

/// What is wrong at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisturbanceKind {
    /// Others run first, and may change or refuse a connect.
    Preceded,
    /// The agent's program is not attached.
    Detached,
    /// Another one is in its place.
    Replaced,
    /// The kernel does not say.
    Unknown,
}

impl Steering {
    /// What disturbs the programs of the kubepods cgroup, for pods of the cgroup `pod` if one is named: where the kernel
    /// has no order, that cgroup's own programs run first.
    #[must_use]
    pub fn disturbances(&self, kubepods: &Path, pod: Option<&Path>) -> Vec<Disturbance> {
        self.with_attachments(|attachments| {
            if attachments.is_empty() {
                return vec![disturbance("connect4, connect6", DisturbanceKind::Detached, &[])];
            }
            let at = |attachment: &Attachment| at_hook(attachment, kubepods, pod);
            attachments.iter().filter_map(|attachment| at(attachment).transpose()).map(told).collect()
        })
    }
}

type Inspected = Result<Disturbance, (&'static str, io::Error)>;

fn told(inspected: Inspected) -> Disturbance {
    inspected.unwrap_or_else(|(program, error)| Disturbance {
        program: program.to_owned(),
        kind: DisturbanceKind::Unknown,
        others: vec![error.to_string()],
    })
}

fn at_hook(
    attachment: &Attachment,
    kubepods: &Path,
    pod: Option<&Path>,
) -> Result<Option<Disturbance>, (&'static str, io::Error)> {
    let program = attachment.name();
    let failed = |error| (program, error);
    let directory = File::open(kubepods).map_err(failed)?;
    let mut before = match attachment.standing(&directory).map_err(failed)? {
        Standing::First => Vec::new(),
        Standing::Behind(programs) => programs,
        Standing::Detached => return Ok(Some(disturbance(program, DisturbanceKind::Detached, &[]))),
        Standing::Replaced(by) => return Ok(Some(disturbance(program, DisturbanceKind::Replaced, &[by]))),
    };
    if attachment.order() == Order::AsTheyCome
        && let Some(pod) = pod.and_then(|pod| File::open(pod).ok())
    {
        before.extend(attachment.attached_below(&pod).map_err(failed)?);
    }
    before.retain(|other| !attachment.is_like(other));
    Ok((!before.is_empty()).then(|| disturbance(program, DisturbanceKind::Preceded, &before)))
}

fn disturbance(program: &str, kind: DisturbanceKind, others: &[Program]) -> Disturbance {
    let others = others.iter().map(|other| format!("{} (id {})", other.name, other.id)).collect();
    Disturbance { program: program.to_owned(), kind, others }
}
