//! What `up` does when its children die and when it is asked to stop: a pure core.
//!
//! Keeps true: a child that dies is reported once and started again after a growing pause, at most
//! `CHILD_RESTARTS_MAX` times in `CHILD_RESTART_WINDOW`; one that was removed from the cluster is not
//! started again, and the others go on; before the cluster first serves, a child
//! that ends by itself with an error code is not restarted, for it would only fail again. Stopping
//! ends coordinators first, so that running requests can finish, then workers; coordinators one after
//! the other, so that a majority is there to record what the first ones' requests cost; whatever
//! outlives its deadline is killed. Exactly one `Done` is ever given. `children` drives this.

use crate::failure::REMOVED;
use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use trireme_shared::limits;

/// Which child: an index into the list the core was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildId(pub usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Coordinator,
    Worker,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Code(i32),
    Signal(i32),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with exit code {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Someone wants this child to run.
    Launch(ChildId),
    Started {
        child: ChildId,
        pid: u32,
    },
    StartFailed {
        child: ChildId,
        reason: String,
    },
    Exited {
        child: ChildId,
        ending: Ending,
    },
    /// The cluster answers requests.
    Serving,
    /// End everything and exit with this code.
    Stop {
        code: u8,
    },
    /// Ctrl-C or SIGTERM.
    Interrupt,
    /// Time passed.
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Say(String),
    Start(ChildId),
    /// Ask it to finish (SIGTERM).
    Terminate(ChildId),
    Kill(ChildId),
    /// Nothing runs any more.
    Done {
        code: u8,
    },
}

struct Child {
    name: String,
    kind: Kind,
    log: PathBuf,
    pid: Option<u32>,
    /// Between `Start` and `Started`.
    starting: bool,
    start_at: Option<Instant>,
    restarts: VecDeque<Instant>,
    /// Removed from the cluster.
    gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// One after the other finishes: a coordinator, or (`None`) all workers.
    Stopping {
        coordinator: Option<ChildId>,
        deadline: Instant,
        code: u8,
    },
    Killing {
        deadline: Instant,
        code: u8,
    },
    Done,
}

/// The state of one `up`.
pub struct Supervise {
    children: Vec<Child>,
    phase: Phase,
    serving: bool,
}

impl Supervise {
    pub fn new() -> Self {
        Self {
            children: Vec::new(),
            phase: Phase::Running,
            serving: false,
        }
    }

    /// Adds a child that is not started yet.
    pub fn add(&mut self, name: String, kind: Kind, log: PathBuf) -> ChildId {
        self.children.push(Child {
            name,
            kind,
            log,
            pid: None,
            starting: false,
            start_at: None,
            restarts: VecDeque::new(),
            gone: false,
        });
        ChildId(self.children.len() - 1)
    }

    /// Whether children are (still) meant to run.
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Whether each child was removed from the cluster.
    pub fn gone(&self) -> Vec<bool> {
        self.children.iter().map(|c| c.gone).collect()
    }

    /// When `Tick` is due.
    pub fn next_tick(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running => self.children.iter().filter_map(|c| c.start_at).min(),
            Phase::Stopping { deadline, .. } | Phase::Killing { deadline, .. } => Some(deadline),
            Phase::Done => None,
        }
    }

    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Launch(child) => {
                if self.is_running() {
                    self.start(child, &mut effects);
                }
            }
            Event::Started { child, pid } => {
                let running = self.is_running();
                let child_state = &mut self.children[child.0];
                child_state.starting = false;
                child_state.pid = Some(pid);
                if !running && self.is_asked(child) {
                    // It was being started while the stop was decided.
                    effects.push(Effect::Terminate(child));
                }
            }
            Event::StartFailed { child, reason } => {
                self.children[child.0].starting = false;
                let name = &self.children[child.0].name;
                effects.push(Effect::Say(format!("{name} cannot be started: {reason}")));
                self.stop(1, now, &mut effects);
            }
            Event::Exited { child, ending } => self.exited(child, ending, now, &mut effects),
            Event::Serving => self.serving = true,
            Event::Stop { code } => self.stop(code, now, &mut effects),
            Event::Interrupt => match self.phase {
                Phase::Running => {
                    effects.push(Effect::Say(
                        // Below the terminal's `^C`.
                        "\nstopping: running requests may finish (Ctrl-C again ends at once)"
                            .into(),
                    ));
                    self.stop(0, now, &mut effects);
                }
                Phase::Stopping { .. } => self.kill(1, now, &mut effects),
                Phase::Killing { .. } | Phase::Done => {}
            },
            Event::Tick => self.tick(now, &mut effects),
        }
        self.advance(now, &mut effects);
        effects
    }

    fn start(&mut self, id: ChildId, effects: &mut Vec<Effect>) {
        let child = &mut self.children[id.0];
        child.start_at = None;
        child.starting = true;
        effects.push(Effect::Start(id));
    }

    fn exited(&mut self, id: ChildId, ending: Ending, now: Instant, effects: &mut Vec<Effect>) {
        let (running, serving) = (self.is_running(), self.serving);
        let child = &mut self.children[id.0];
        let pid = child.pid.take().unwrap_or(0);
        if !running {
            return;
        }
        while child
            .restarts
            .front()
            .is_some_and(|&at| now.duration_since(at) > limits::CHILD_RESTART_WINDOW)
        {
            child.restarts.pop_front();
        }
        let what = format!("{} (pid {pid}) {ending}", child.name);
        let log = format!("its log: {}", child.log.display());
        if !serving && matches!(ending, Ending::Code(_)) {
            effects.push(Effect::Say(format!("{what}; {log}")));
            return self.stop(1, now, effects);
        }
        if ending == Ending::Code(REMOVED.into()) {
            child.gone = true;
            let name = &child.name;
            let text = format!("{name} was removed from the cluster; it is not started again");
            return effects.push(Effect::Say(text));
        }
        if child.restarts.len() >= limits::CHILD_RESTARTS_MAX {
            effects.push(Effect::Say(format!(
                "{what}, after {} restarts in {} s: giving up; {log}",
                limits::CHILD_RESTARTS_MAX,
                limits::CHILD_RESTART_WINDOW.as_secs(),
            )));
            return self.stop(1, now, effects);
        }
        // The folder is in the summary of `up`; the name alone keeps the line short.
        let log = child.log.file_name().unwrap_or_default().to_string_lossy();
        let pause = restart_pause(child.restarts.len());
        child.restarts.push_back(now);
        child.start_at = Some(now + pause);
        effects.push(Effect::Say(format!(
            "{what}; restarting it in {:.1} s (log: {log})",
            pause.as_secs_f64()
        )));
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Running => {
                for id in 0..self.children.len() {
                    if self.children[id].start_at.is_some_and(|at| at <= now) {
                        self.start(ChildId(id), effects);
                    }
                }
            }
            Phase::Stopping { deadline, code, .. } if now >= deadline => {
                for child in self.children.iter().filter(|c| c.pid.is_some()) {
                    effects.push(Effect::Say(format!(
                        "{} did not stop in time and is ended; its log: {}",
                        child.name,
                        child.log.display()
                    )));
                }
                self.kill(code, now, effects);
            }
            Phase::Killing { deadline, .. } if now >= deadline => {
                self.phase = Phase::Done;
                effects.push(Effect::Say("a killed process is still not gone".into()));
                effects.push(Effect::Done { code: 1 });
            }
            _ => {}
        }
    }

    fn stop(&mut self, code: u8, now: Instant, effects: &mut Vec<Effect>) {
        if !self.is_running() {
            return;
        }
        for child in &mut self.children {
            child.start_at = None;
        }
        self.stop_next(code, now, effects);
    }

    /// Whether it is this child's turn to finish.
    fn is_asked(&self, child: ChildId) -> bool {
        match self.phase {
            Phase::Stopping {
                coordinator: Some(asked),
                ..
            } => asked == child,
            Phase::Stopping {
                coordinator: None, ..
            }
            | Phase::Killing { .. } => true,
            Phase::Running | Phase::Done => false,
        }
    }

    /// Asks the first coordinator that is left to finish, or all workers where none is.
    fn stop_next(&mut self, code: u8, now: Instant, effects: &mut Vec<Effect>) {
        let alive = |c: &Child| c.pid.is_some() || c.starting;
        let mut children = self.children.iter();
        let coordinator = children
            .position(|c| c.kind == Kind::Coordinator && alive(c))
            .map(ChildId);
        self.phase = Phase::Stopping {
            coordinator,
            deadline: now + limits::CHILD_STOP_DEADLINE,
            code,
        };
        for (id, child) in self.children.iter().enumerate() {
            let id = ChildId(id);
            let asked = coordinator.map_or(child.kind == Kind::Worker, |one| one == id);
            if asked && child.pid.is_some() {
                effects.push(Effect::Terminate(id));
            }
        }
    }

    fn kill(&mut self, code: u8, now: Instant, effects: &mut Vec<Effect>) {
        self.phase = Phase::Killing {
            deadline: now + limits::CHILD_KILL_DEADLINE,
            code,
        };
        for (id, child) in self.children.iter().enumerate() {
            if child.pid.is_some() {
                effects.push(Effect::Kill(ChildId(id)));
            }
        }
    }

    /// Steps from coordinators to workers to done as processes end.
    fn advance(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if let Phase::Stopping {
            coordinator: Some(asked),
            code,
            ..
        } = self.phase
        {
            let child = &self.children[asked.0];
            if child.pid.is_none() && !child.starting {
                self.stop_next(code, now, effects);
            }
        }
        if let Phase::Stopping {
            coordinator: None,
            code,
            ..
        }
        | Phase::Killing { code, .. } = self.phase
            && !self.children.iter().any(|c| c.pid.is_some() || c.starting)
        {
            self.phase = Phase::Done;
            effects.push(Effect::Done { code });
        }
    }
}

fn restart_pause(restarts: usize) -> Duration {
    let doubled = limits::CHILD_RESTART_DELAY_MIN * (1 << restarts.min(10));
    doubled.min(limits::CHILD_RESTART_DELAY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: ChildId = ChildId(0);
    const W1: ChildId = ChildId(1);
    const W2: ChildId = ChildId(2);

    /// One coordinator and two workers, all started.
    fn cluster(now: Instant) -> Supervise {
        let mut core = Supervise::new();
        core.add("coordinator 1".into(), Kind::Coordinator, "c.log".into());
        core.add("worker 1".into(), Kind::Worker, "w1.log".into());
        core.add("worker 2".into(), Kind::Worker, "w2.log".into());
        for child in [C, W1, W2] {
            assert_eq!(core.on(Event::Launch(child), now), [Effect::Start(child)]);
            let pid = 100 + child.0 as u32;
            assert_eq!(core.on(Event::Started { child, pid }, now), []);
        }
        core
    }

    fn said(effects: &[Effect]) -> String {
        let mut said = effects.iter().filter_map(|effect| match effect {
            Effect::Say(text) => Some(text.as_str()),
            _ => None,
        });
        let line = said.next().unwrap_or_default().to_owned();
        assert_eq!(said.next(), None, "one line only");
        line
    }

    fn exited(child: ChildId, ending: Ending) -> Event {
        Event::Exited { child, ending }
    }

    #[test]
    fn a_killed_child_is_reported_in_one_line_and_restarted_after_a_pause() {
        let t0 = Instant::now();
        let mut core = cluster(t0);
        core.on(Event::Serving, t0);
        let effects = core.on(exited(W1, Ending::Signal(9)), t0);
        assert_eq!(
            said(&effects),
            "worker 1 (pid 101) was killed by signal 9; restarting it in 0.1 s (log: w1.log)"
        );
        assert_eq!(core.next_tick(), Some(t0 + limits::CHILD_RESTART_DELAY_MIN));
        assert_eq!(core.on(Event::Tick, t0), [], "not before its time");
        let due = t0 + limits::CHILD_RESTART_DELAY_MIN;
        assert_eq!(core.on(Event::Tick, due), [Effect::Start(W1)]);
        assert_eq!(core.next_tick(), None);
    }

    #[test]
    fn the_sixth_death_in_a_minute_ends_everything_with_code_1() {
        let mut now = Instant::now();
        let mut core = cluster(now);
        core.on(Event::Serving, now);
        for round in 0..limits::CHILD_RESTARTS_MAX {
            let effects = core.on(exited(W2, Ending::Code(1)), now);
            assert!(said(&effects).contains("restarting"), "round {round}");
            now = core.next_tick().unwrap();
            assert_eq!(core.on(Event::Tick, now), [Effect::Start(W2)]);
            core.on(
                Event::Started {
                    child: W2,
                    pid: 200 + round as u32,
                },
                now,
            );
        }
        let effects = core.on(exited(W2, Ending::Code(1)), now);
        assert!(said(&effects).contains("giving up"));
        assert!(effects.contains(&Effect::Terminate(C)));
        assert_eq!(
            core.on(exited(C, Ending::Code(0)), now),
            [Effect::Terminate(W1)]
        );
        assert_eq!(
            core.on(exited(W1, Ending::Code(0)), now),
            [Effect::Done { code: 1 }]
        );
    }

    #[test]
    fn deaths_far_apart_never_give_up() {
        let mut now = Instant::now();
        let mut core = cluster(now);
        core.on(Event::Serving, now);
        for _ in 0..20 {
            assert!(said(&core.on(exited(W2, Ending::Signal(9)), now)).contains("in 0.1 s"));
            now = core.next_tick().unwrap();
            core.on(Event::Tick, now);
            core.on(Event::Started { child: W2, pid: 9 }, now);
            now += limits::CHILD_RESTART_WINDOW + Duration::from_secs(1);
        }
    }

    #[test]
    fn a_child_that_fails_before_the_cluster_serves_ends_the_start() {
        let now = Instant::now();
        let mut core = cluster(now);
        let effects = core.on(exited(C, Ending::Code(1)), now);
        assert!(said(&effects).contains("ended with exit code 1"));
        assert!(effects.contains(&Effect::Terminate(W1)));
        assert!(!core.is_running());
        // A kill from outside is not the child's fault: it is restarted even then.
        let mut core = cluster(now);
        let effects = core.on(exited(W1, Ending::Signal(9)), now);
        assert!(said(&effects).contains("restarting"));
    }

    #[test]
    fn a_removed_child_stays_away_and_the_others_go_on() {
        let now = Instant::now();
        let mut core = cluster(now);
        core.on(Event::Serving, now);
        let effects = core.on(exited(W1, Ending::Code(REMOVED.into())), now);
        assert!(said(&effects).contains("was removed"));
        assert!(core.is_running());
        assert_eq!(core.next_tick(), None, "nothing is started");
        assert_eq!(core.gone(), [false, true, false]);
        // Before anything serves it ends the start: the folder is of no use.
        let mut core = cluster(now);
        core.on(exited(W1, Ending::Code(REMOVED.into())), now);
        assert!(!core.is_running());
    }

    #[test]
    fn ctrl_c_drains_the_coordinator_then_the_workers_and_exits_0() {
        let now = Instant::now();
        let mut core = cluster(now);
        core.on(Event::Serving, now);
        let effects = core.on(Event::Interrupt, now);
        assert!(effects.contains(&Effect::Terminate(C)));
        assert!(
            !effects.contains(&Effect::Terminate(W1)),
            "workers still serve"
        );
        assert_eq!(
            core.on(exited(C, Ending::Code(0)), now),
            [Effect::Terminate(W1), Effect::Terminate(W2)]
        );
        assert_eq!(core.on(exited(W1, Ending::Code(0)), now), []);
        assert_eq!(
            core.on(exited(W2, Ending::Code(0)), now),
            [Effect::Done { code: 0 }]
        );
    }

    #[test]
    fn coordinators_finish_one_after_the_other_and_workers_last() {
        let now = Instant::now();
        let mut core = Supervise::new();
        let children: Vec<ChildId> = [Kind::Coordinator, Kind::Coordinator, Kind::Worker]
            .into_iter()
            .map(|kind| core.add("x".into(), kind, "x.log".into()))
            .collect();
        for child in &children {
            core.on(Event::Launch(*child), now);
        }
        for child in [children[0], children[2]] {
            core.on(Event::Started { child, pid: 9 }, now);
        }
        let effects = core.on(Event::Stop { code: 0 }, now);
        assert_eq!(effects, [Effect::Terminate(children[0])]);
        // Started late, it waits for its turn like the others.
        let late = Event::Started {
            child: children[1],
            pid: 10,
        };
        assert_eq!(core.on(late, now), []);
        for (gone, next) in [
            (0, Effect::Terminate(children[1])),
            (1, Effect::Terminate(children[2])),
        ] {
            assert_eq!(
                core.on(exited(children[gone], Ending::Code(0)), now),
                [next]
            );
        }
        let effects = core.on(exited(children[2], Ending::Code(0)), now);
        assert_eq!(effects, [Effect::Done { code: 0 }]);
    }

    #[test]
    fn a_second_ctrl_c_kills_and_a_child_that_hangs_is_killed_at_its_deadline() {
        let now = Instant::now();
        let mut core = cluster(now);
        core.on(Event::Interrupt, now);
        assert_eq!(
            core.on(Event::Interrupt, now),
            [Effect::Kill(C), Effect::Kill(W1), Effect::Kill(W2)]
        );

        let mut core = cluster(now);
        core.on(Event::Stop { code: 0 }, now);
        let late = core.next_tick().unwrap();
        let effects = core.on(Event::Tick, late);
        assert!(effects.contains(&Effect::Kill(C)) && effects.contains(&Effect::Kill(W2)));
        for child in [C, W1] {
            core.on(exited(child, Ending::Signal(9)), late);
        }
        let effects = core.on(exited(W2, Ending::Signal(9)), late);
        assert_eq!(effects, [Effect::Done { code: 0 }]);
    }

    #[test]
    fn a_stop_while_a_child_is_being_started_still_ends_it() {
        let now = Instant::now();
        let mut core = Supervise::new();
        core.add("coordinator 1".into(), Kind::Coordinator, "c.log".into());
        core.on(Event::Launch(C), now);
        core.on(Event::Stop { code: 1 }, now);
        let started = core.on(Event::Started { child: C, pid: 7 }, now);
        assert_eq!(started, [Effect::Terminate(C)]);
        let effects = core.on(exited(C, Ending::Signal(15)), now);
        assert_eq!(effects, [Effect::Done { code: 1 }]);
        assert_eq!(core.on(Event::Interrupt, now), [], "done once");
    }

    #[test]
    fn stopping_with_nothing_started_is_done_at_once() {
        let mut core = Supervise::new();
        let effects = core.on(Event::Stop { code: 2 }, Instant::now());
        assert_eq!(effects, [Effect::Done { code: 2 }]);
    }
}
