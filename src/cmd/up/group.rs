//! The coordinator processes of `up`: the first founds the group, the others join it, one after the
//! other so that their numbers follow their folders.
//!
//! What it keeps true: a coordinator comes back where it listened before, also in a later `up`, for
//! that is where the others look for it; the file that tells its addresses is believed only if it is
//! of the process that runs.

use super::children::{Children, MakeCommand, Roster};
use super::steps::Step;
use super::supervise::{ChildId, Kind};
use super::{Running, UpArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::last::write_private;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use trireme_shared::api::*;
use trireme_shared::limits;

/// The coordinators join at once; an hour lets a debugger look in between.
const TOKEN_TTL: Duration = Duration::from_secs(3_600);
/// Where all of them listen, kept in the data folder.
const ADDRESSES_FILE: &str = "addresses.json";

/// Where a coordinator listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Addresses {
    pub http: SocketAddr,
    pub control: SocketAddr,
}

/// One coordinator process.
struct Seat {
    child: ChildId,
    name: String,
    dir: PathBuf,
    /// Known once it has listened.
    addresses: Arc<OnceLock<Addresses>>,
}

/// The coordinators of this `up`.
pub struct Seats {
    seats: Vec<Seat>,
    data_dir: PathBuf,
    token_file: PathBuf,
}

/// Tells all control addresses that are known by now.
#[derive(Clone)]
pub struct Controls(Vec<Arc<OnceLock<Addresses>>>);

impl Controls {
    pub fn list(&self) -> Vec<String> {
        let known = self.0.iter().filter_map(|a| a.get());
        known.map(|a| a.control.to_string()).collect()
    }
}

/// How many coordinators to run: as many as asked for, or as there are in the data folder, or one.
pub fn count(asked: Option<u16>, data_dir: &Path) -> Result<usize> {
    let there = (1..=usize::from(COORDINATORS[2]))
        .take_while(|number| belongs(&folder(data_dir, *number)))
        .count();
    match asked.map(usize::from) {
        None => Ok(there.max(1)),
        Some(asked) if asked < there => Err(Failure::usage(
            format!(
                "{} holds a group of {there} coordinators, which needs most of them to run",
                data_dir.display()
            ),
            format!("use --coordinators {there}, or another --data-dir"),
        )
        .into()),
        Some(asked) => Ok(asked),
    }
}

/// Sizes a group may have: an even one survives no more failures than the next smaller.
pub const COORDINATORS: [u16; 3] = [1, 3, 5];

fn folder(data_dir: &Path, number: usize) -> PathBuf {
    data_dir.join(format!("coordinator-{number}"))
}

/// Whether a coordinator has a place in a group there.
fn belongs(dir: &Path) -> bool {
    dir.join("identity.pem").exists()
}

impl Seats {
    /// Adds the processes to the roster; none of them runs yet. `log` makes a log file.
    pub fn new(
        args: &UpArgs,
        data_dir: &Path,
        program: (&Path, &[String]),
        roster: &mut Roster,
        log: impl Fn(&str) -> Result<PathBuf>,
    ) -> Result<Self> {
        let count = count(args.coordinators, data_dir)?;
        let token_file = data_dir.join("coordinator-token");
        let all: Vec<_> = (0..count).map(|_| Arc::new(OnceLock::new())).collect();
        let controls = Controls(all.clone());
        let saved = saved(data_dir);
        let mut seats = Vec::new();
        for (place, addresses) in all.into_iter().enumerate() {
            let number = place + 1;
            let dir = folder(data_dir, number);
            let first = first_addresses(args.listen, place, saved.get(place));
            let command: MakeCommand = {
                let (exe, common) = (program.0.to_owned(), program.1.to_vec());
                let (dir, token, addresses) = (dir.clone(), token_file.clone(), addresses.clone());
                let controls = controls.clone();
                let private_webhooks = args.allow_private_webhooks;
                Box::new(move || {
                    let at = addresses.get().unwrap_or(&first);
                    let mut command = Command::new(&exe);
                    command
                        .args(&common)
                        .args(["coordinator", "--lifeline"])
                        .args(["--listen", &at.control.to_string()])
                        .args(["--http", &at.http.to_string(), "--data-dir"])
                        .arg(&dir);
                    if private_webhooks {
                        command.arg("--allow-private-webhooks");
                    }
                    let others = controls.list();
                    if number > 1 && !others.is_empty() {
                        command.args(["--join", &others.join(",")]);
                        // Gone once all have joined; later starts use the certificate.
                        if token.exists() {
                            command.arg("--token-file").arg(&token);
                        }
                    }
                    Ok(command)
                })
            };
            let file = format!("coordinator-{number}");
            let name = format!("coordinator {number}");
            seats.push(Seat {
                child: roster.add(&name, Kind::Coordinator, log(&file)?, command),
                name,
                dir,
                addresses,
            });
        }
        Ok(Self {
            seats,
            data_dir: data_dir.to_owned(),
            token_file,
        })
    }

    pub fn controls(&self) -> Controls {
        Controls(self.seats.iter().map(|s| s.addresses.clone()).collect())
    }

    /// Starts the founder, and all others that have joined before.
    pub fn launch(&self, children: &Children) {
        for (place, seat) in self.seats.iter().enumerate() {
            // A file of an earlier run would only mislead; its absence is the normal case.
            let _ = fs::remove_file(seat.file());
            if place == 0 || belongs(&seat.dir) {
                children.launch(seat.child);
            }
        }
    }

    /// Waits for those that were launched, and has the others join.
    pub fn assemble(
        &self,
        children: &Children,
        step: &Step,
        running: &Running<'_>,
    ) -> Result<Vec<CoordinatorFile>> {
        let launched = |seat: &Seat| belongs(&seat.dir);
        let first = self.await_file(&self.seats[0], children, running)?;
        let missing: Vec<&Seat> = self.seats[1..].iter().filter(|s| !launched(s)).collect();
        for seat in self.seats[1..].iter().filter(|s| launched(s)) {
            self.await_file(seat, children, running)?;
        }
        if !missing.is_empty() {
            let admin = admin_client(std::slice::from_ref(&first));
            let token = TokenRequest {
                role: TokenRole::Coordinator,
                provider: None,
                // One that is killed before it saved its certificate joins anew.
                uses: (missing.len() + limits::CHILD_RESTARTS_MAX) as u32,
                ttl_seconds: TOKEN_TTL.as_secs(),
            };
            let token: TokenCreated = admin.post("/admin/v1/tokens", &token)?;
            write_private(&self.token_file, token.token.as_bytes())?;
            for seat in missing {
                step.doing(&format!("{} joins", seat.name));
                children.launch(seat.child);
                self.await_file(seat, children, running)?;
            }
            self.clean_up();
            let _: TokenReport = admin.delete(&format!("/admin/v1/tokens/{}", token.id.0))?;
        }
        let files = self.files(children, running)?;
        let addresses: Vec<_> = self
            .seats
            .iter()
            .filter_map(|s| s.addresses.get())
            .collect();
        let text = serde_json::to_vec_pretty(&addresses)?;
        write_private(&self.data_dir.join(ADDRESSES_FILE), &text)?;
        Ok(files)
    }

    /// The files of all coordinators that are members, as they run now.
    pub fn files(
        &self,
        children: &Children,
        running: &Running<'_>,
    ) -> Result<Vec<CoordinatorFile>> {
        let gone = children.view().gone;
        let members = self.seats.iter().filter(|seat| !gone[seat.child.0]);
        members
            .map(|seat| self.await_file(seat, children, running))
            .collect()
    }

    /// Removes what must not stay behind.
    pub fn clean_up(&self) {
        // Often it is gone already.
        let _ = fs::remove_file(&self.token_file);
    }

    /// The file that the running process (not an earlier one) wrote.
    fn await_file(
        &self,
        seat: &Seat,
        children: &Children,
        running: &Running<'_>,
    ) -> Result<CoordinatorFile> {
        let deadline = Instant::now() + limits::COORDINATOR_START_DEADLINE;
        loop {
            running.check()?;
            let pid = children.view().pids[seat.child.0];
            let file = fs::read(seat.file())
                .ok()
                .and_then(|text| serde_json::from_slice::<CoordinatorFile>(&text).ok())
                .filter(|file| Some(file.pid) == pid);
            if let Some(file) = file {
                remember(&seat.addresses, &file)?;
                return Ok(file);
            }
            if Instant::now() >= deadline {
                let log = self
                    .data_dir
                    .join(format!("{}.log", seat.name.replace(' ', "-")));
                return Err(Failure::new(
                    format!("{} does not listen", seat.name),
                    format!("look at {}", log.display()),
                )
                .into());
            }
            std::thread::sleep(limits::CLIENT_POLL_INTERVAL);
        }
    }
}

impl Seat {
    fn file(&self) -> PathBuf {
        self.dir.join("coordinator.json")
    }
}

/// Administers the group through any of these coordinators.
pub fn admin_client(files: &[CoordinatorFile]) -> Client {
    Client::new(&urls(files), Some(admin_key(files).to_owned()))
}

pub fn urls(files: &[CoordinatorFile]) -> Vec<String> {
    files.iter().map(|f| f.http.clone()).collect()
}

/// Only the founder's folder has it.
pub fn admin_key(files: &[CoordinatorFile]) -> &str {
    let mut keys = files.iter().filter_map(|f| f.admin_key.as_deref());
    keys.next().unwrap_or_default()
}

/// Where an earlier `up` in this folder listened.
fn saved(data_dir: &Path) -> Vec<Addresses> {
    let text = fs::read(data_dir.join(ADDRESSES_FILE)).ok();
    text.and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// Where a coordinator listens at its first start in this `up`; port 0 picks a free one.
fn first_addresses(listen: SocketAddr, place: usize, saved: Option<&Addresses>) -> Addresses {
    let any_http = match place {
        0 => listen,
        _ => SocketAddr::new(listen.ip(), 0),
    };
    let free = place > 0 || listen.port() == 0;
    let http = saved
        .map(|s| s.http)
        .filter(|http| free && http.ip() == listen.ip() && TcpListener::bind(http).is_ok());
    let control = saved.map(|s| s.control);
    let control = control.filter(|control| UdpSocket::bind(control).is_ok());
    Addresses {
        http: http.unwrap_or(any_http),
        control: control.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
    }
}

fn remember(addresses: &OnceLock<Addresses>, file: &CoordinatorFile) -> Result<()> {
    let http = file.http.trim_start_matches("http://").parse();
    let http = http.with_context(|| format!("{} is not an address", file.http))?;
    let control = file.control.parse();
    let control = control.with_context(|| format!("{} is not an address", file.control))?;
    addresses.get_or_init(|| Addresses { http, control });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_group_says_how_many_coordinators_there_are() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(count(None, dir.path()).unwrap(), 1);
        assert_eq!(count(Some(3), dir.path()).unwrap(), 3);
        for number in 1..=3 {
            let seat = folder(dir.path(), number);
            fs::create_dir(&seat).unwrap();
            fs::write(seat.join("identity.pem"), "").unwrap();
        }
        assert_eq!(count(None, dir.path()).unwrap(), 3);
        assert_eq!(count(Some(5), dir.path()).unwrap(), 5);
        let error = count(Some(1), dir.path()).unwrap_err().to_string();
        assert!(error.contains("a group of 3"), "{error}");
    }

    #[test]
    fn a_coordinator_comes_back_where_it_was_if_that_is_free() {
        let listen: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let free = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let saved = Addresses {
            http: taken.local_addr().unwrap(),
            control: free,
        };
        let second = first_addresses(listen, 1, Some(&saved));
        assert_eq!((second.http.port(), second.control), (0, free));
        let http = saved.http;
        drop(taken);
        assert_eq!(first_addresses(listen, 1, Some(&saved)).http, http);
        assert_eq!(first_addresses(listen, 0, Some(&saved)).http, listen);
    }
}
