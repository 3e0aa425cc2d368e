//! One file over HTTP: resumed where it broke off, hashed while it streams.
//!
//! Keeps true: the target's `.part` file holds a prefix of the file and nothing else (a server that
//! cannot prove it is the same file starts it anew); it becomes the file only after size and hash
//! were checked. A wrong hash or a full disk removes it; a broken connection leaves it for next time.

use super::cache::{TICK, check_room, hash_into};
use super::{Bounds, Progress, Report, SourceError};
use crate::limits;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to fetch and what is known of it.
pub(super) struct Download<'a> {
    pub url: &'a str,
    /// The whole, checked file is left here; the caller lands it.
    pub part: PathBuf,
    pub sha256: Option<&'a str>,
    pub bytes: Option<u64>,
    /// Its first bytes must be these.
    pub magic: &'a [u8],
}

/// How one attempt ended without the file.
enum Broken {
    /// Try again: something may have been gained.
    Again(SourceError),
    Final(SourceError),
}

impl From<SourceError> for Broken {
    fn from(error: SourceError) -> Self {
        Self::Final(error)
    }
}

impl Download<'_> {
    /// Fetches into `part`; returns the file's SHA-256.
    pub(super) fn run(&self, bounds: &Bounds, report: Report) -> Result<String, SourceError> {
        let mut last = None;
        for _ in 0..bounds.attempts.max(1) {
            match self.attempt(bounds, report) {
                Ok(sha256) => return self.check(sha256),
                Err(Broken::Final(error)) => {
                    let keep = matches!(error, SourceError::Network(_) | SourceError::Cancelled);
                    if !keep {
                        self.forget();
                    }
                    return Err(error);
                }
                Err(Broken::Again(error)) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.broken("nothing was tried")))
    }

    fn attempt(&self, bounds: &Bounds, report: Report) -> Result<String, Broken> {
        let mut hasher = Sha256::new();
        let mut have = match fs::metadata(&self.part) {
            Ok(_) => hash_into(&mut hasher, &self.part, report)?,
            Err(_) => 0,
        };
        // Whole already: an earlier process ended before it could land it.
        let so_far = hex::encode(hasher.clone().finalize());
        if have > 0 && self.sha256 == Some(so_far.as_str()) {
            return Ok(so_far);
        }
        let etag = fs::read_to_string(self.etag_path()).ok();
        // Without a hash to check at the end, only the server's own tag proves it is the same file.
        if have > 0 && self.sha256.is_none() && etag.is_none() {
            have = 0;
        }
        let mut request = agent(self.url, bounds).get(self.url);
        if have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
            if let Some(etag) = &etag {
                request = request.header("If-Range", etag.as_str());
            }
        }
        let mut response = request
            .call()
            .map_err(|e| Broken::Again(self.broken(&e.to_string())))?;
        let status = response.status().as_u16();
        let header = |name: &str| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        match status {
            200 => have = 0,
            206 if have > 0 => {
                let range = header("content-range").unwrap_or_default();
                if !range.starts_with(&format!("bytes {have}-")) {
                    self.forget();
                    return Err(Broken::Again(self.broken("it answered with another range")));
                }
            }
            416 => {
                // What we have is as long as the file, or longer: not a prefix of it.
                self.forget();
                return Err(Broken::Again(self.broken("it has no more bytes to give")));
            }
            404 | 410 => {
                return Err(Broken::Final(SourceError::NotFound(format!(
                    "{} does not exist (the server answered {status}); check the name",
                    self.shown_url()
                ))));
            }
            401 | 403 => {
                return Err(Broken::Final(SourceError::NotFound(format!(
                    "{} may not be read (the server answered {status}): it is private, gated or \
                     misspelt; fetch it by other means and pass its path",
                    self.shown_url()
                ))));
            }
            408 | 429 | 500.. => {
                return Err(Broken::Again(
                    self.broken(&format!("the server answered {status}")),
                ));
            }
            _ => {
                return Err(Broken::Final(
                    self.broken(&format!("the server answered {status}")),
                ));
            }
        }
        let length: Option<u64> = header("content-length").and_then(|n| n.parse().ok());
        let total = length.map(|n| n.saturating_add(have));
        if let (Some(total), Some(want)) = (total, self.bytes)
            && total != want
        {
            return Err(Broken::Final(self.broken(&format!(
                "it offers {total} bytes where {want} are expected; it is another file"
            ))));
        }
        let tag = header("etag").filter(|tag| !tag.starts_with("W/"));
        if have == 0 {
            hasher = Sha256::new();
            self.start(tag.as_deref())?;
        }
        if let Some(folder) = self.part.parent() {
            check_room(folder, total.unwrap_or(0).saturating_sub(have))?;
        }
        let mut file = OpenOptions::new()
            .append(true)
            .open(&self.part)
            .map_err(|e| SourceError::io("write", &self.part, e))?;
        let mut body = response.body_mut().as_reader();
        let bound = self.bytes.or(total).unwrap_or(limits::MODEL_FILE_BYTES_MAX);
        let mut buffer = vec![0; limits::FETCH_BUFFER_BYTES];
        let mut told = Instant::now();
        loop {
            bounds.cancel.check()?;
            let count = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(e) => return Err(Broken::Again(self.broken(&e.to_string()))),
            };
            if have == 0 && !buffer[..count].starts_with(&self.magic[..self.magic.len().min(count)])
            {
                let error = self.broken("what it sends is not a model file");
                self.forget();
                return Err(Broken::Final(error));
            }
            have += count as u64;
            if have > bound {
                self.forget();
                return Err(Broken::Final(
                    self.broken("it sends more than it announced"),
                ));
            }
            file.write_all(&buffer[..count])
                .map_err(|e| SourceError::io("write", &self.part, e))?;
            hasher.update(&buffer[..count]);
            if told.elapsed() >= TICK {
                told = Instant::now();
                report(Progress {
                    stage: "fetching",
                    done_bytes: have,
                    total_bytes: total.or(self.bytes).unwrap_or(0),
                });
            }
        }
        match total.or(self.bytes) {
            Some(total) if have != total => Err(Broken::Again(
                self.broken(&format!("it broke off after {have} of {total} bytes")),
            )),
            _ => Ok(hex::encode(hasher.finalize())),
        }
    }

    fn check(&self, got: String) -> Result<String, SourceError> {
        let _ = fs::remove_file(self.etag_path());
        match self.sha256 {
            Some(want) if want != got => {
                self.forget();
                Err(SourceError::WrongHash {
                    what: self.shown_url(),
                    want: want.to_owned(),
                    got,
                })
            }
            _ => Ok(got),
        }
    }

    fn start(&self, etag: Option<&str>) -> Result<(), SourceError> {
        self.forget();
        File::create(&self.part).map_err(|e| SourceError::io("create", &self.part, e))?;
        if let Some(etag) = etag {
            let path = self.etag_path();
            fs::write(&path, etag).map_err(|e| SourceError::io("write", &path, e))?;
        }
        Ok(())
    }

    fn forget(&self) {
        let _ = fs::remove_file(&self.part);
        let _ = fs::remove_file(self.etag_path());
    }

    fn etag_path(&self) -> PathBuf {
        let mut name = self.part.as_os_str().to_owned();
        name.push(".etag");
        PathBuf::from(name)
    }

    fn broken(&self, why: &str) -> SourceError {
        let kept = Path::new(&self.part).exists();
        SourceError::Network(format!(
            "{} could not be fetched: {why}. Check the network and try again{}",
            self.shown_url(),
            if kept { "; what has come is kept" } else { "" }
        ))
    }

    /// Without a query, which may hold a signature.
    fn shown_url(&self) -> String {
        let url = self.url.split(['?', '#']).next().unwrap_or(self.url);
        match url
            .split_once("://")
            .and_then(|(s, rest)| Some((s, rest.split_once('@')?.1)))
        {
            Some((scheme, rest)) if !rest.is_empty() => format!("{scheme}://{rest}"),
            _ => url.to_owned(),
        }
    }
}

fn agent(url: &str, bounds: &Bounds) -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_resolve(Some(bounds.connect))
        .timeout_connect(Some(bounds.connect))
        .timeout_send_request(Some(bounds.stall))
        .timeout_recv_response(Some(bounds.stall))
        .timeout_per_read(Some(bounds.stall))
        .http_status_as_error(false)
        // A redirect must not lead from https to plain http.
        .https_only(url.starts_with("https://"))
        .user_agent(concat!("trireme/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}
