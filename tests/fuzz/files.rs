//! What disks hold: backups that were carried about, exports, model files from anywhere.

use crate::{Target, meta, state};
use std::io::{Read, Write};
use std::path::Path;
use trireme_coordinator::backup;
use trireme_coordinator::backup::seal::{Opener, SealKey, Sealer};
use trireme_coordinator::state::audit;
use trireme_shared::identity::ClusterAuthority;
use trireme_shared::model::dtype::DType;
use trireme_shared::model::gguf::Gguf;
use trireme_shared::model::random::RandomModel;
use trireme_shared::model::safetensors;
use trireme_shared::wire::control::CoordinatorAddress;

pub fn targets() -> Vec<Target> {
    let mut all = backups();
    all.extend(texts());
    all.extend(models());
    all
}

fn key() -> SealKey {
    SealKey::new([7; 32])
}

fn sealed(plain: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::new(Vec::new(), &key()).expect("a header");
    sealer.write_all(plain).expect("it seals");
    sealer.finish().expect("an end")
}

fn backups() -> Vec<Target> {
    let plain = backup::write(&state(), &meta(), Vec::new()).expect("a backup");
    assert!(backup::read(&plain[..], None).is_ok());
    vec![
        Target {
            name: "sealed backups",
            // Within one chunk, and over several.
            examples: vec![sealed(&plain), sealed(&vec![1; 200_000]), sealed(&[])],
            decode: |bytes| {
                if let Ok(mut opener) = Opener::new(bytes, &key()) {
                    let mut part = [0; 4096];
                    while matches!(opener.read(&mut part), Ok(n) if n > 0) {}
                }
                let _ = backup::read(bytes, Some(&key()));
            },
        },
        Target {
            name: "backups",
            examples: vec![plain.clone()],
            decode: |bytes| {
                let _ = backup::read(bytes, None);
                // Whoever has the key can seal anything.
                let _ = backup::read(&sealed(bytes)[..], Some(&key()));
            },
        },
        Target {
            name: "seal keys",
            examples: vec![vec![3; 32], [&[b'a'; 64][..], b"\n"].concat()],
            decode: |bytes| drop(SealKey::from_file(bytes)),
        },
    ]
}

fn texts() -> Vec<Target> {
    let state = state();
    let lines = state.audit_records().map(audit::to_json_line);
    let export = lines.collect::<Vec<_>>().join("\n").into_bytes();
    assert!(!export.is_empty(), "acts are recorded");
    let authority = ClusterAuthority::new("fuzz").expect("an authority");
    let group = br#"[{"id":1,"control":"127.0.0.1:1"},{"id":2,"control":"127.0.0.1:2"}]"#;
    assert!(serde_json::from_slice::<Vec<CoordinatorAddress>>(group).is_ok());
    vec![
        Target {
            name: "audit exports",
            examples: vec![export],
            decode: |bytes| {
                let text = String::from_utf8_lossy(bytes);
                let _ = audit::verify(text.lines(), None);
            },
        },
        Target {
            name: "authorities",
            examples: vec![authority.to_pem().into_bytes()],
            decode: |bytes| drop(ClusterAuthority::from_pem(&String::from_utf8_lossy(bytes))),
        },
        Target {
            name: "coordinators files",
            examples: vec![group.to_vec()],
            decode: |bytes| drop(serde_json::from_slice::<Vec<CoordinatorAddress>>(bytes)),
        },
    ]
}

/// What the model's file would hold behind its header.
const FILE_BYTES: u64 = 1 << 20;

fn models() -> Vec<Target> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = RandomModel {
        layers: 1,
        ..RandomModel::tiny(1)
    };
    let gguf = folder.path().join("m.gguf");
    model.write_gguf(&gguf).expect("a model");
    let header = Gguf::open(&gguf).expect("a header");
    assert!(header.file_bytes <= FILE_BYTES);
    let data = header.tensors.iter().map(|t| t.offset).min();
    let mut gguf = std::fs::read(gguf).expect("a model");
    gguf.truncate(usize::try_from(data.expect("tensors")).expect("a header"));
    let hf = folder.path().join("hf");
    model.write_hf(&hf, DType::F32, 1).expect("a model");
    let file = std::fs::read_dir(&hf).expect("a folder").flatten();
    let file = file
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "safetensors"));
    let tensors = std::fs::read(file.expect("a file")).expect("a model");
    let length = u64::from_le_bytes(*tensors.first_chunk().expect("a length")) as usize;
    let tensors = tensors[..8 + length].to_vec();
    let read = |bytes: &[u8]| safetensors::read(bytes, FILE_BYTES);
    assert!(read(&tensors).is_ok(), "{:?}", read(&tensors));
    vec![
        Target {
            name: "GGUF headers",
            examples: vec![gguf],
            decode: |bytes| drop(Gguf::read(bytes, FILE_BYTES, Path::new("m.gguf"))),
        },
        Target {
            name: "safetensors headers",
            examples: vec![tensors],
            decode: |bytes| drop(safetensors::read(bytes, FILE_BYTES)),
        },
    ]
}
