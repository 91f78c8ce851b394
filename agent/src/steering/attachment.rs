//! One program at its hook of the kubepods cgroup: attached in front where the kernel has an order, looked at, put back.
use std::{fs::File, io, os::fd::OwnedFd};

use aya::programs::ProgramFd;
use rustix::io::Errno;

use crate::sys::bpf::{self, BEFORE, PREORDER, Program};

/// Who runs first at a hook to which several programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// This agent's, before those of all cgroups below, where the kernel has an order of programs (Linux 6.15).
    First,
    /// Those of the cgroups below, then in the order in which they were attached: what older kernels do.
    AsTheyCome,
}

/// A hook, by the name of the program that belongs there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub(super) program: &'static str,
    /// `enum bpf_attach_type` of include/uapi/linux/bpf.h.
    kind: u32,
}

pub(super) const HOOKS: [Hook; 4] = [
    Hook { program: "connect4", kind: 10 },
    Hook { program: "connect6", kind: 11 },
    Hook { program: "getpeername4", kind: 29 },
    Hook { program: "getpeername6", kind: 30 },
];

/// A program at work, until it is dropped.
#[derive(Debug)]
pub(super) struct Attachment {
    hook: Hook,
    program: ProgramFd,
    link: OwnedFd,
    order: Order,
}

/// Where a program stands at its hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing runs before it.
    First,
    /// These run before it.
    Behind(Vec<Program>),
    /// Somebody took it off.
    Detached,
    /// Somebody put this one in its place.
    Replaced(Program),
}

impl Attachment {
    pub(super) fn new(hook: Hook, program: ProgramFd, kubepods: &File, order: Order) -> io::Result<Self> {
        let (link, order) = attach(&program, kubepods, hook, order, PREORDER)?;
        Ok(Self { hook, program, link, order })
    }

    /// The program's name.
    pub(super) fn name(&self) -> &'static str {
        self.hook.program
    }

    /// What the kernel made of the wish for an order.
    pub(super) fn order(&self) -> Order {
        self.order
    }

    pub(super) fn standing(&self, kubepods: &File) -> io::Result<Standing> {
        let (own, link) = (bpf::program(&self.program)?, bpf::cgroup_link(&self.link)?);
        if !link.attached {
            return Ok(Standing::Detached);
        }
        if link.program != own.id {
            return Ok(Standing::Replaced(describe(link.program)));
        }
        let order = bpf::programs_at(kubepods, self.hook.kind, true)?;
        match order.iter().position(|&id| id == own.id) {
            Some(0) => Ok(Standing::First),
            Some(at) => Ok(Standing::Behind(order.iter().take(at).copied().map(describe).collect())),
            // The link says that it is attached, so it is to another cgroup of this name: as good as none.
            None => Ok(Standing::Detached),
        }
    }

    /// Programs that are attached to a cgroup below, whose tasks meet them first unless this kernel has an order.
    pub(super) fn attached_below(&self, cgroup: &File) -> io::Result<Vec<Program>> {
        Ok(bpf::programs_at(cgroup, self.hook.kind, false)?.into_iter().map(describe).collect())
    }

    /// Whether a program has the same instructions: another agent, most likely.
    pub(super) fn is_like(&self, other: &Program) -> bool {
        bpf::program(&self.program).is_ok_and(|own| own.tag == other.tag)
    }

    /// Attaches it again, before whatever is there if the kernel can do that. The old link goes after the new one has
    /// come, so that no connection passes between them.
    pub(super) fn renew(&mut self, kubepods: &File) -> io::Result<()> {
        (self.link, self.order) = attach(&self.program, kubepods, self.hook, self.order, PREORDER | BEFORE)?;
        Ok(())
    }
}

/// Attaches in this order; to be first with these flags, or with less where the kernel does not know them.
fn attach(program: &ProgramFd, kubepods: &File, hook: Hook, order: Order, flags: u32) -> io::Result<(OwnedFd, Order)> {
    let to_be_first: &[u32] = if order == Order::First { &[flags, PREORDER] } else { &[] };
    for &flags in to_be_first {
        match bpf::attach(program, kubepods, hook.kind, flags) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {}
            attached => return Ok((attached?, Order::First)),
        }
    }
    Ok((bpf::attach(program, kubepods, hook.kind, 0)?, Order::AsTheyCome))
}

/// A program that may be gone by now.
fn describe(id: u32) -> Program {
    bpf::program_by_id(id).unwrap_or_else(|_| Program { id, name: "?".to_owned(), tag: [0; 8] })
}
