//! Drives `supervise`: starts processes, waits for them, signals them.
//!
//! Each child has a lifeline (a pipe as its stdin, see `crate::lifeline`), a process group of its
//! own, so that a Ctrl-C in the terminal reaches only `up`, and a log file. One thread waits for
//! each child without reaping it; the supervisor thread alone reaps and signals, so a signal can
//! never reach a stranger that got the pid later.

use super::supervise::{ChildId, Effect, Ending, Event, Kind, Supervise};
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use trireme_shared::limits;

/// Writes one line to the user, above any progress bars.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// How to start a child; called again for each restart.
pub type MakeCommand = Box<dyn Fn() -> Result<Command> + Send>;

enum Message {
    Event(Event),
    /// The process of this child is a zombie.
    Gone(ChildId),
}

/// What others may know of the children.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Process ids by `ChildId`.
    pub pids: Vec<Option<u32>>,
    /// Removed from the cluster, by `ChildId`.
    pub gone: Vec<bool>,
    /// Processes started so far, restarts included.
    pub starts: u64,
    /// The end was decided: nothing more will be started.
    pub stopping: bool,
    /// Everything has ended, with this exit code.
    pub done: Option<u8>,
}

#[derive(Default)]
struct Shared {
    view: Mutex<View>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, View> {
        // A view is plain data: whatever a panicking holder left is whole.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The children of this `up`.
pub struct Children {
    messages: SyncSender<Message>,
    shared: Arc<Shared>,
}

/// Made first, so that children can be added by name before any runs.
pub struct Roster {
    core: Supervise,
    /// By `ChildId`.
    processes: Vec<Process>,
}

impl Roster {
    pub fn new() -> Self {
        Self {
            core: Supervise::new(),
            processes: Vec::new(),
        }
    }

    pub fn add(&mut self, name: &str, kind: Kind, log: PathBuf, command: MakeCommand) -> ChildId {
        self.processes.push(Process {
            log: log.clone(),
            command,
            running: None,
        });
        self.core.add(name.to_owned(), kind, log)
    }

    /// Starts the supervisor thread; no child runs before `Children::launch`.
    pub fn supervise(self, say: Say) -> Result<Children> {
        let (messages, inbox) = sync_channel(limits::SUPERVISOR_EVENTS_MAX);
        let shared = Arc::new(Shared::default());
        shared.lock().pids = vec![None; self.processes.len()];
        shared.lock().gone = vec![false; self.processes.len()];
        let mut supervisor = Supervisor {
            core: self.core,
            processes: self.processes,
            messages: messages.clone(),
            shared: shared.clone(),
            say,
        };
        std::thread::Builder::new()
            .name("supervisor".into())
            .spawn(move || supervisor.run(&inbox))?;
        Ok(Children { messages, shared })
    }
}

impl Children {
    pub fn launch(&self, child: ChildId) {
        self.tell(Event::Launch(child));
    }

    /// Tells the core something. After the end there is nobody to tell.
    pub fn tell(&self, event: Event) {
        let _ = self.messages.send(Message::Event(event));
    }

    /// A closure that tells the core of a signal, for the signal thread.
    pub fn interrupter(&self) -> impl Fn() + Send + 'static {
        let messages = self.messages.clone();
        move || {
            // A full queue holds an interrupt already, or the end is near anyway.
            let _ = messages.try_send(Message::Event(Event::Interrupt));
        }
    }

    pub fn view(&self) -> View {
        self.shared.lock().clone()
    }

    /// Waits until another process was started or the end was decided.
    pub fn wait_for_change(&self, starts: u64) -> View {
        let mut view = self.shared.lock();
        while view.starts == starts && !view.stopping && view.done.is_none() {
            view = self
                .shared
                .changed
                .wait(view)
                .unwrap_or_else(PoisonError::into_inner);
        }
        view.clone()
    }

    /// Waits for everything to have ended and gives the exit code. The core's deadlines bound it.
    pub fn wait_done(&self) -> u8 {
        let mut view = self.shared.lock();
        loop {
            if let Some(code) = view.done {
                return code;
            }
            view = self
                .shared
                .changed
                .wait(view)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Process {
    log: PathBuf,
    command: MakeCommand,
    running: Option<Child>,
}

struct Supervisor {
    core: Supervise,
    processes: Vec<Process>,
    messages: SyncSender<Message>,
    shared: Arc<Shared>,
    say: Say,
}

impl Supervisor {
    fn run(&mut self, inbox: &Receiver<Message>) {
        loop {
            let mut events = vec![self.next(inbox)];
            while let Some(event) = events.pop() {
                for effect in self.core.on(event, Instant::now()) {
                    match effect {
                        Effect::Say(line) => (self.say)(&line),
                        Effect::Start(child) => events.push(self.start(child)),
                        Effect::Terminate(child) => self.signal(child, Signal::TERM),
                        Effect::Kill(child) => self.signal(child, Signal::KILL),
                        Effect::Done { code } => {
                            self.shared.lock().done = Some(code);
                            self.shared.changed.notify_all();
                            return;
                        }
                    }
                }
            }
            let stopping = !self.core.is_running();
            let gone = self.core.gone();
            let mut view = self.shared.lock();
            view.gone = gone;
            if stopping && !view.stopping {
                view.stopping = true;
                self.shared.changed.notify_all();
            }
        }
    }

    fn next(&mut self, inbox: &Receiver<Message>) -> Event {
        // Without a due time there is only the inbox to wait for; an hour is "for ever" that ends.
        let wait = self
            .core
            .next_tick()
            .map_or(Duration::from_secs(3_600), |due| {
                due.saturating_duration_since(Instant::now())
            });
        match inbox.recv_timeout(wait) {
            Ok(Message::Event(event)) => event,
            Ok(Message::Gone(child)) => self.reap(child),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Event::Tick,
        }
    }

    fn start(&mut self, child: ChildId) -> Event {
        match self.spawn(child) {
            Ok(pid) => {
                let mut view = self.shared.lock();
                view.pids[child.0] = Some(pid);
                view.starts += 1;
                self.shared.changed.notify_all();
                Event::Started { child, pid }
            }
            Err(error) => Event::StartFailed {
                child,
                reason: format!("{error:#}"),
            },
        }
    }

    fn spawn(&mut self, child: ChildId) -> Result<u32> {
        let process = &mut self.processes[child.0];
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&process.log)
            .with_context(|| format!("cannot write {}", process.log.display()))?;
        let mut running = (process.command)()?
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("the operating system refused a new process")?;
        let pid = running.id();
        let messages = self.messages.clone();
        let watched = std::thread::Builder::new()
            .name("wait".into())
            .spawn(move || {
                wait_unreaped(pid);
                // The supervisor ends only after its children.
                let _ = messages.send(Message::Gone(child));
            });
        if let Err(error) = watched {
            // Unwatched it must not run.
            let _ = running.kill();
            let _ = running.wait();
            return Err(error).context("the operating system refused a new thread");
        }
        process.running = Some(running);
        Ok(pid)
    }

    fn reap(&mut self, child: ChildId) -> Event {
        self.shared.lock().pids[child.0] = None;
        let status = self.processes[child.0]
            .running
            .take()
            .map(|mut running| running.wait());
        let ending = match status {
            Some(Ok(status)) => match (status.code(), status.signal()) {
                (Some(code), _) => Ending::Code(code),
                (None, Some(signal)) => Ending::Signal(signal),
                (None, None) => Ending::Code(-1),
            },
            Some(Err(_)) | None => Ending::Code(-1),
        };
        Event::Exited { child, ending }
    }

    fn signal(&mut self, child: ChildId, signal: Signal) {
        let pid = self.processes[child.0]
            .running
            .as_ref()
            .and_then(|running| i32::try_from(running.id()).ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Not reaped yet, so the pid is still this child's; a zombie takes signals in silence.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// Returns when `pid`, a child of this process, has ended; leaves it as a zombie.
fn wait_unreaped(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(rustix::io::Errno::INTR) = rustix::process::waitid(WaitId::Pid(pid), options) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("trireme-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn shell(script: &'static str) -> MakeCommand {
        Box::new(move || {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            Ok(command)
        })
    }

    #[test]
    fn a_killed_process_is_reported_and_replaced_and_all_end_together() {
        let dir = folder("children");
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut roster = Roster::new();
        // `cat` ends when its lifeline does, and is a stand-in that dies of SIGTERM at once.
        let one = roster.add(
            "one",
            Kind::Coordinator,
            dir.join("1.log"),
            shell("exec cat"),
        );
        let two = roster.add(
            "two",
            Kind::Worker,
            dir.join("2.log"),
            shell("echo up; exec cat"),
        );
        let say: Say = {
            let said = said.clone();
            Arc::new(move |line| said.lock().unwrap().push(line.to_owned()))
        };
        let children = roster.supervise(say).unwrap();
        children.launch(one);
        children.launch(two);
        let mut view = children.wait_for_change(0);
        while view.starts < 2 {
            view = children.wait_for_change(view.starts);
        }
        let pid = view.pids[two.0].unwrap();
        rustix::process::kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        let view = children.wait_for_change(2);
        assert_eq!(view.starts, 3);
        assert_ne!(view.pids[two.0], Some(pid));
        assert!(
            said.lock().unwrap()[0].starts_with(&format!("two (pid {pid}) was killed by signal 9"))
        );
        children.tell(Event::Stop { code: 0 });
        assert_eq!(children.wait_done(), 0);
        assert_eq!(children.view().pids, [None, None]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_process_that_cannot_be_started_ends_the_attempt() {
        let dir = folder("nostart");
        let mut roster = Roster::new();
        let missing: MakeCommand = Box::new(|| Ok(Command::new("/nonexistent/cluster")));
        let child = roster.add("one", Kind::Worker, dir.join("1.log"), missing);
        let children = roster.supervise(Arc::new(|_| {})).unwrap();
        children.launch(child);
        assert_eq!(children.wait_done(), 1);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
