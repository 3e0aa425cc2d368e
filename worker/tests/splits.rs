//! A split model answers as the whole one does: tensor parallel with uneven shares, pipeline
//! parallel, both. And, to the last bit, a sequence's logits do not depend on its chunks or on what
//! it is batched with. Random models, every storage type.

mod splitting;

use splitting::{PAGES, Split};
use std::path::PathBuf;
use trireme_shared::limits::PAGE_TOKENS;
use trireme_shared::model::random::RandomModel;
use trireme_shared::model::{
    ActivationFormat, DType, KvFormat, Manifest, Mixture, Precision, Quantize,
};
use trireme_worker::backend::Isa;
use trireme_worker::loader;
use trireme_worker::model::{Batch, ForwardError, RankModel, Runtime, SequenceSlice};
use trireme_worker::parallel::{Abort, Solo};

/// A random model's file, removed when dropped.
struct TestFile {
    path: PathBuf,
    manifest: Manifest,
}

impl TestFile {
    fn new(name: &str, model: &RandomModel) -> Self {
        let name = format!("trireme-splits-{}-{name}.gguf", std::process::id());
        let path = std::env::temp_dir().join(name);
        model.write_gguf(&path).unwrap();
        let manifest = Manifest::open(&path).unwrap();
        Self { path, manifest }
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Every storage type, with heads and FFN widths that split unevenly, and odd vocabularies.
fn models() -> Vec<(&'static str, RandomModel)> {
    let tiny = |dtype, embedding_dtype| RandomModel {
        dtype,
        embedding_dtype,
        vocab: 283,
        ..RandomModel::tiny(7)
    };
    // Whole super-blocks, in which every split of the heads makes a cut.
    let wide = |dtype, embedding_dtype| RandomModel {
        layers: 2,
        hidden: 256,
        heads: 8,
        kv_heads: 4,
        head_dim: 32,
        ffn: 768,
        ..tiny(dtype, embedding_dtype)
    };
    // Each expert as large as the FFN was, or a super-block.
    let mixture = |model: RandomModel, experts| RandomModel {
        ffn: experts * if model.ffn == 768 { 256 } else { model.ffn },
        mixture: Some(Mixture {
            experts,
            used: 3,
            normalised: true,
        }),
        ..model
    };
    vec![
        ("f32", tiny(DType::F32, DType::F32)),
        (
            "f16",
            RandomModel {
                tied_embeddings: false,
                ..tiny(DType::F16, DType::BF16)
            },
        ),
        ("q4_0", tiny(DType::Q4_0, DType::Q8_0)),
        (
            "q4_1",
            RandomModel {
                tied_embeddings: false,
                ..tiny(DType::Q4_1, DType::F16)
            },
        ),
        ("q8_0", tiny(DType::Q8_0, DType::Q4_1)),
        ("q5_0", tiny(DType::Q5_0, DType::Q5_1)),
        (
            "iq4_nl",
            RandomModel {
                tied_embeddings: false,
                ..tiny(DType::IQ4_NL, DType::Q5_0)
            },
        ),
        ("q4_k", wide(DType::Q4_K, DType::Q6_K)),
        ("q6_k", wide(DType::Q6_K, DType::Q4_K)),
        ("q5_k", wide(DType::Q5_K, DType::Q3_K)),
        ("q3_k", wide(DType::Q3_K, DType::Q5_K)),
        ("q2_k", wide(DType::Q2_K, DType::IQ4_XS)),
        ("iq4_xs", wide(DType::IQ4_XS, DType::Q2_K)),
        ("f32 mixture", mixture(tiny(DType::F32, DType::F32), 5)),
        ("q4_1 mixture", mixture(tiny(DType::Q4_1, DType::Q8_0), 7)),
        ("q4_k mixture", mixture(wide(DType::Q4_K, DType::Q6_K), 4)),
    ]
}

fn tokens(count: usize, salt: usize) -> Vec<u32> {
    (0..count)
        .map(|i| ((i * 37 + salt * 101 + i * i) % 270) as u32)
        .collect()
}

/// `tokens` of one sequence from `context` on, over pages from `page` on, all rows wanted.
fn slice(first: usize, len: usize, context: usize, page: usize) -> SequenceSlice {
    let count = (context + len).div_ceil(PAGE_TOKENS);
    SequenceSlice {
        first: first as u32,
        len: len as u32,
        context: context as u32,
        pages: (page..page + count).map(|p| p as u32).collect(),
    }
}

fn prompt(tokens: &[u32], page: usize) -> Batch {
    Batch {
        tokens: tokens.to_vec(),
        sequences: vec![slice(0, tokens.len(), 0, page)],
        outputs: (0..tokens.len() as u32).collect(),
    }
}

fn assert_close(got: &[Vec<f32>], want: &[Vec<f32>], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().flatten().fold(0f32, |a, v| a.max(v.abs()));
    assert!(
        size > 0.0 && size.is_finite(),
        "{what}: logits of size {size}"
    );
    for (row, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.len(), want.len(), "{what}");
        for (g, w) in got.iter().zip(want) {
            assert!(
                (g - w).abs() <= tolerance * size,
                "{what}: row {row}: {g}, not {w}"
            );
        }
    }
}

#[test]
fn every_split_agrees_with_the_whole_model() {
    for (name, model) in models() {
        let file = TestFile::new(&format!("agree-{name}"), &model);
        let batch = prompt(&tokens(45, 1), 3);
        let want = Split::load(&file.manifest, &[vec![1]], 1).logits(&batch);
        // int8 activations round differently where sums differ in the last bit.
        let tolerance = if name.starts_with('f') { 2e-3 } else { 2e-2 };
        for (split, weights) in [
            ("two threads", vec![vec![1]]),
            ("tp2 uneven", vec![vec![2, 1]]),
            ("tp3", vec![vec![1, 1, 1]]),
            ("pp2", vec![vec![1], vec![1]]),
            ("tp2 x pp2", vec![vec![1, 2], vec![2, 1]]),
        ] {
            let got = Split::load(&file.manifest, &weights, 2).logits(&batch);
            let tolerance = if split == "two threads" {
                0.0
            } else {
                tolerance
            };
            assert_close(&got, &want, tolerance, &format!("{name} {split}"));
        }
    }
}

/// Of keys and values, or activations, of bytes, too, neither a split nor chunks nor neighbours change a bit.
#[test]
fn numbers_of_bytes_are_the_same_however_they_come() {
    let (a, b) = (tokens(45, 1), tokens(20, 2));
    let halves = Precision::default();
    let kv = Precision {
        kv: KvFormat::Int8,
        ..halves
    };
    let activations = Precision {
        activations: ActivationFormat::Int8,
        ..halves
    };
    let bf16 = Precision {
        activations: ActivationFormat::Bf16,
        ..halves
    };
    for (precision, dtype) in [
        (kv, DType::F32),
        (activations, DType::Q4_1),
        (bf16, DType::Q4_1),
    ] {
        let model = RandomModel {
            ffn: 640,
            dtype,
            ..RandomModel::tiny(8)
        };
        let file = TestFile::new("bytes", &model);
        let load = |weights: &[Vec<u64>], precision| {
            Split::load_with(&file.manifest, weights, 2, Isa::detect(), precision)
        };
        let want = load(&[vec![1]], precision).logits(&prompt(&a, 3));
        let exact = load(&[vec![1]], halves).logits(&prompt(&a, 3));
        assert_ne!(want, exact);
        assert_close(&want, &exact, 2e-2, "bytes beside the default");
        for weights in [vec![vec![2, 1]], vec![vec![1, 2], vec![2, 1]]] {
            let mut split = load(&weights, precision);
            let mut got = Vec::new();
            for (at, len) in [(0, 17), (17, 1), (18, 27)] {
                let mut batch = Batch {
                    tokens: a[at..at + len].to_vec(),
                    sequences: vec![slice(0, len, at, 20)],
                    outputs: (0..len as u32).collect(),
                };
                batch.tokens.extend(&b);
                batch.sequences.push(slice(len, b.len(), 0, 30));
                got.extend(split.logits(&batch));
            }
            assert_eq!(got, want, "{precision:?} {weights:?}");
        }
    }
}

/// Random models of floats, quantised as they are loaded, are those that were written quantised.
#[test]
fn quantising_at_load_makes_the_blocks_that_files_have() {
    let of = |dtype, embedding_dtype| RandomModel {
        dtype,
        embedding_dtype,
        tied_embeddings: false,
        ffn: 640,
        ..RandomModel::tiny(5)
    };
    let file = TestFile::new("floats", &of(DType::F32, DType::F32));
    let batch = prompt(&tokens(45, 1), 3);
    for (quantize, layers) in [(Quantize::Q8, DType::Q8_0), (Quantize::Q4, DType::Q4_1)] {
        let name = format!("written-{}", quantize.name());
        let written = TestFile::new(&name, &of(layers, DType::Q8_0));
        let quantised = file.manifest.clone().quantised(Some(quantize));
        let want = Split::load(&written.manifest, &[vec![1]], 1).logits(&batch);
        for weights in [
            vec![vec![1]],
            vec![vec![2, 1]],
            vec![vec![1, 1, 1]],
            vec![vec![1, 2], vec![2, 1]],
        ] {
            let got = Split::load(&quantised, &weights, 2).logits(&batch);
            assert_eq!(got, want, "{name} {weights:?}");
            let bytes = |m: &Manifest| -> Vec<u64> {
                let shares = m.shares(&weights).unwrap();
                shares.iter().map(|s| m.share_bytes(s)).collect()
            };
            assert_eq!(bytes(&quantised), bytes(&written.manifest), "{name}");
        }
        // What is quantised already stays as it is.
        let again = written.manifest.clone().quantised(Some(Quantize::Q8));
        assert_eq!(again.tensors, written.manifest.tensors);
    }
}

/// Where every rank can have whole FFN segments, no split changes a single bit of the logits.
#[test]
fn splits_of_whole_segments_change_nothing() {
    for (name, model) in models() {
        let model = RandomModel {
            ffn: model.ffn.max(640),
            ..model
        };
        let file = TestFile::new(&format!("same-{name}"), &model);
        let batch = prompt(&tokens(45, 1), 3);
        let want = Split::load(&file.manifest, &[vec![1]], 1).logits(&batch);
        for weights in [
            vec![vec![2, 1]],
            vec![vec![1, 2]],
            vec![vec![1, 1, 1]],
            vec![vec![1, 2], vec![2, 1]],
        ] {
            let got = Split::load(&file.manifest, &weights, 2).logits(&batch);
            assert_eq!(got, want, "{name} {weights:?}");
        }
    }
}

#[test]
fn chunks_decode_and_neighbours_do_not_change_a_sequence() {
    for (name, model) in models() {
        let file = TestFile::new(&format!("chunks-{name}"), &model);
        let mut split = Split::load(&file.manifest, &[vec![1]], 2);
        let (a, b) = (tokens(41, 1), tokens(23, 2));
        let (want_a, want_b) = (split.logits(&prompt(&a, 0)), split.logits(&prompt(&b, 10)));

        // The same two, together: a in chunks of 17 and then token by token, b the other way.
        let (mut got_a, mut got_b) = (Vec::new(), Vec::new());
        let (mut at_a, mut at_b) = (0, 0);
        while at_a < a.len() || at_b < b.len() {
            let take_a = (if at_a < 34 { 17 } else { 1 }).min(a.len() - at_a);
            let take_b = (if at_b < 5 { 1 } else { 18 }).min(b.len() - at_b);
            let mut batch = Batch::default();
            for (all, at, take, page) in [(&a, at_a, take_a, 20), (&b, at_b, take_b, 30)] {
                if take > 0 {
                    batch
                        .sequences
                        .push(slice(batch.tokens.len(), take, at, page));
                    batch.tokens.extend(&all[at..at + take]);
                }
            }
            batch.outputs = (0..batch.tokens.len() as u32).collect();
            let rows = split.logits(&batch);
            got_a.extend_from_slice(&rows[..take_a]);
            got_b.extend_from_slice(&rows[take_a..]);
            at_a += take_a;
            at_b += take_b;
        }
        assert_eq!(got_a, want_a, "{name}: the first sequence");
        assert_eq!(got_b, want_b, "{name}: the second sequence");
    }
}

#[test]
fn ranks_read_every_weight_once_between_them() {
    for (name, model) in models() {
        let file = TestFile::new(&format!("bytes-{name}"), &model);
        let manifest = &file.manifest;
        let files: u64 = std::fs::metadata(&file.path).unwrap().len();
        let mut readers = vec![0u16; files as usize];
        let shares = manifest.shares(&[vec![2, 1], vec![1, 1]]).unwrap();
        for share in &shares {
            let mut bytes = 0;
            for role in loader::roles(manifest, share) {
                let part = loader::part(manifest, share, role).unwrap();
                bytes += part.bytes();
                for row in 0..part.rows as u64 {
                    let start = (part.offset + row * part.stride) as usize;
                    for reader in &mut readers[start..start + part.run_bytes as usize] {
                        *reader += 1;
                    }
                }
            }
            assert_eq!(bytes, manifest.share_bytes(share), "{name} {share:?}");
        }
        for (role, tensor) in &manifest.tensors {
            use trireme_shared::model::TensorRole::*;
            // Norms and routers are on every rank of their stage; a tied embedding on both end stages.
            let want = match role {
                AttnNorm(_) | FfnNorm(_) | OutputNorm | Router(_) => 2,
                Embedding if manifest.config.tied_embeddings => 2,
                _ => 1,
            };
            let range = tensor.offset as usize..(tensor.offset + tensor.bytes) as usize;
            // A super-block that is cut is read by each of the two that have a part of it.
            let cut = tensor.dtype.block_elements() > tensor.dtype.cut_elements()
                && matches!(role, AttnOutput(_) | FfnDown(_));
            let fits = |r: u16| r == want || (cut && r == 2);
            assert!(readers[range].iter().all(|&r| fits(r)), "{name} {role:?}");
        }
        let read = readers.iter().filter(|&&r| r > 0).count() as u64;
        assert_eq!(
            read,
            manifest.total_bytes(),
            "{name}: bytes outside tensors were read"
        );
    }
}

#[test]
fn a_bad_batch_or_a_cut_file_is_an_error() {
    let (_, model) = models().remove(0);
    let file = TestFile::new("bad", &model);
    let mut split = Split::load(&file.manifest, &[vec![1]], 1);
    let mut batch = prompt(&tokens(20, 0), 0);
    batch.sequences[0].pages[1] = PAGES as u32;
    let refused = split.stages[0][0].forward(&batch, None, &mut Solo);
    assert!(matches!(refused, Err(ForwardError::Batch(_))));

    let length = std::fs::metadata(&file.path).unwrap().len();
    let open = std::fs::OpenOptions::new()
        .write(true)
        .open(&file.path)
        .unwrap();
    open.set_len(length / 2).unwrap();
    let share = file.manifest.shares(&[vec![1]]).unwrap().remove(0);
    let runtime = Runtime {
        threads: 1,
        isa: Isa::detect(),
        kv_pages: 1,
        activations: ActivationFormat::default(),
        kv: KvFormat::default(),
    };
    let load =
        |abort: &Abort| RankModel::load(&file.manifest, &share, &runtime, &|_, _| {}, abort).err();
    let error = load(&Abort::default()).expect("half a file is refused");
    assert!(error.to_string().contains("cannot read"), "{error}");
    let stop = Abort::default();
    stop.raise();
    assert!(
        load(&stop)
            .expect("aborted")
            .to_string()
            .contains("stopped")
    );
}
