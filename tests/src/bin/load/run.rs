//! The schedule, and the loop that keeps it.
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    mem::MaybeUninit,
    time::{Duration, Instant},
};

use anyhow::Result;
use pod_identity_tests::{load::Report, process::cpu_time};
use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    fd::OwnedFd,
    io::Errno,
};

use crate::{
    Args,
    client::{Client, Progress, name},
};

/// Between two looks for requests that have no answer in time.
const LOOK_FOR_LATE: Duration = Duration::from_millis(100);
/// Events taken at once.
const EVENTS: usize = 256;

/// Runs all clients to the end.
pub(crate) fn run(args: &Args) -> Result<Report> {
    let started = Instant::now();
    let mut run = Run::new(args, started)?;
    let ends = started + Duration::from_millis(args.for_ms);
    let mut looked = started;
    loop {
        let now = Instant::now();
        run.start_due(now, ends);
        if now - looked >= LOOK_FOR_LATE {
            looked = now;
            run.give_up_late(now);
        }
        let Some(wait) = run.next(now, ends) else { break };
        run.wait(wait.min(LOOK_FOR_LATE))?;
    }
    run.report.seconds = started.elapsed().as_secs_f64();
    run.report.cpu_seconds = cpu_time().as_secs_f64();
    Ok(run.report)
}

struct Run<'a> {
    args: &'a Args,
    epoll: OwnedFd,
    clients: Vec<Client>,
    /// Clients that wait for their next request to be due, the earliest on top.
    waiting: BinaryHeap<Reverse<(Instant, usize)>>,
    busy: usize,
    /// Requests that may still be started.
    left: u64,
    report: Report,
}

impl<'a> Run<'a> {
    fn new(args: &'a Args, started: Instant) -> Result<Self> {
        let host = if args.to.is_ipv4() { "169.254.170.23" } else { "[fd00:ec2::23]" };
        let clients: Vec<Client> = (0..args.clients)
            .map(|number| {
                // Spread over the first interval.
                let share = args.interval().map_or(Duration::ZERO, |interval| {
                    interval.mul_f64(
                        f64::from(u32::try_from(number).unwrap_or(0))
                            / f64::from(u32::try_from(args.clients).unwrap_or(1)),
                    )
                });
                Client::new(host, &args.token, args.connections, started + share)
            })
            .collect();
        let waiting = clients.iter().enumerate().map(|(number, client)| Reverse((client.due, number))).collect();
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let left = args.requests.unwrap_or(u64::MAX);
        Ok(Self { args, epoll, clients, waiting, busy: 0, left, report: Report::default() })
    }

    /// Starts what is due. After the end nothing is started, and what was due by then counts as well.
    fn start_due(&mut self, now: Instant, ends: Instant) {
        while let Some(&Reverse((due, number))) = self.waiting.peek() {
            if due > now || due >= ends || self.left == 0 {
                break;
            }
            self.waiting.pop();
            self.busy += 1;
            self.left -= 1;
            self.start(number, now);
        }
    }

    fn start(&mut self, number: usize, now: Instant) {
        let Some(client) = self.clients.get_mut(number) else { return };
        let started = client.start(self.args.to, now).and_then(|is_new| {
            if is_new && let Some(socket) = client.socket() {
                let wanted = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
                epoll::add(&self.epoll, socket, EventData::new_u64(number as u64), wanted)?;
            }
            Ok(())
        });
        match started {
            Ok(()) => self.advance(number),
            Err(errno) => {
                client.hang_up();
                self.done(number, Progress::Failed(name(errno)));
            }
        }
    }

    fn advance(&mut self, number: usize) {
        let Some(client) = self.clients.get_mut(number) else { return };
        if client.started.is_none() {
            // Its connection was closed while nothing was under way: the next request shows.
            return;
        }
        loop {
            let sent_before = client.has_sent();
            match client.advance(self.args.connections) {
                // What was sent may have been answered already.
                Progress::Waits if !sent_before && client.has_sent() => {}
                Progress::Waits => return,
                Progress::Failed(_) if client.crossed() => return self.start(number, Instant::now()),
                progress => return self.done(number, progress),
            }
        }
    }

    fn done(&mut self, number: usize, progress: Progress) {
        self.busy -= 1;
        let Some(client) = self.clients.get_mut(number) else { return };
        let now = Instant::now();
        match progress {
            Progress::Waits => {}
            Progress::Answered(status) => {
                *self.report.statuses.entry(status).or_default() += 1;
                self.report.latencies.add(now - client.due);
            }
            Progress::Failed(why) => *self.report.failures.entry(why.to_owned()).or_default() += 1,
        }
        client.due = self.args.interval().map_or(now, |interval| client.due + interval);
        self.waiting.push(Reverse((client.due, number)));
    }

    fn give_up_late(&mut self, now: Instant) {
        let timeout = Duration::from_millis(self.args.timeout_ms);
        for number in 0..self.clients.len() {
            let Some(client) = self.clients.get_mut(number) else { continue };
            if client.started.is_some_and(|started| now - started > timeout) {
                client.hang_up();
                self.done(number, Progress::Failed("no answer in time"));
            }
        }
    }

    /// How long to wait for events; `None` when all is done.
    fn next(&self, now: Instant, ends: Instant) -> Option<Duration> {
        let due = self.waiting.peek().map(|Reverse((due, _))| *due).filter(|due| *due < ends && self.left > 0);
        match due {
            None if self.busy == 0 => None,
            None => Some(LOOK_FOR_LATE),
            Some(due) => Some(due.saturating_duration_since(now)),
        }
    }

    fn wait(&mut self, time: Duration) -> Result<()> {
        let mut events = [MaybeUninit::<Event>::uninit(); EVENTS];
        let (events, _) = match epoll::wait(&self.epoll, &mut events, Some(&Timespec::try_from(time)?)) {
            Ok(events) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        for event in events {
            self.advance(usize::try_from(event.data.u64())?);
        }
        Ok(())
    }
}
