//! Shares of every size: they cover the model once, none is empty, and faster ranks hold more.

use super::*;
use crate::model::random::{RandomModel, SplitMix};
use crate::model::{DType, Manifest};
use crate::test_folder::TestFolder;

fn smollm2() -> ModelConfig {
    let model = RandomModel {
        layers: 30,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        ffn: 1536,
        vocab: 49_152,
        context: 8_192,
        ..RandomModel::tiny(0)
    };
    model.config()
}

fn lengths(spans: &[Span]) -> Vec<u32> {
    spans.iter().map(|s| s.len()).collect()
}

/// The spans follow each other, cover `0..total`, and none is empty.
fn assert_covers(spans: impl IntoIterator<Item = Span>, total: u32) {
    let mut end = 0;
    for span in spans {
        assert_eq!(span.start, end);
        assert!(span.end > span.start);
        end = span.end;
    }
    assert_eq!(end, total);
}

#[test]
fn known_splits() {
    let of = |total, unit, weights: &[u64]| lengths(&split(total, unit, weights).unwrap());
    assert_eq!(of(3, 1, &[1, 1]), [2, 1]);
    assert_eq!(of(3, 1, &[1, 2]), [1, 2]);
    assert_eq!(of(3, 1, &[1, 1, 1]), [1, 1, 1]);
    assert_eq!(of(1536, 32, &[1, 1, 1, 1, 1]), [320, 320, 320, 288, 288]);
    assert_eq!(of(100, 32, &[1, 1]), [64, 36]);
    assert_eq!(of(10, 1, &[1_000_000, 1, 1]), [8, 1, 1]);
    assert_eq!(of(4, 1, &[0, 0]), [2, 2]);
    assert_eq!(of(7, 1, &[u64::MAX, u64::MAX]), [4, 3]);
    let refused = split(3, 1, &[1; 4]).unwrap_err();
    assert!(refused.to_string().contains("1 to 3"), "{refused}");
}

#[test]
fn any_split_covers_exactly_in_whole_units_near_its_proportions() {
    let mut random = SplitMix(7);
    for _ in 0..5_000 {
        let unit = [1, 16, 32, 256][random.below(4) as usize];
        let total = 1 + random.below(100_000) as u32;
        let parts = 1 + random.below(u64::from(total.div_ceil(unit)).min(64));
        let weights: Vec<u64> = (0..parts).map(|_| random.below(1_000)).collect();
        let spans = split(total, unit, &weights).unwrap();
        assert_eq!(spans.len(), weights.len());
        assert_covers(spans.iter().copied(), total);
        assert!(spans[..spans.len() - 1].iter().all(|s| s.len() % unit == 0));
        let sum: u64 = weights.iter().sum();
        let blocks = total.div_ceil(unit);
        for (span, weight) in spans.iter().zip(&weights).filter(|_| sum > 0) {
            // At most one above its due, or the one unit each is owed.
            let due = f64::from(blocks) * *weight as f64 / sum as f64;
            assert!(f64::from(span.len().div_ceil(unit)) < due + 1.0001);
        }
    }
}

#[test]
fn smollm2_splits_into_its_heads_and_layers() {
    let config = smollm2();
    let by = |tp: usize, pp: usize| shares(&config, &vec![vec![1; tp]; pp], 32).unwrap();
    let tp2 = by(2, 1);
    assert_eq!((tp2[0].kv_heads.len(), tp2[1].kv_heads.len()), (2, 1));
    // FFN is balanced on its own: heads do not tilt it.
    assert_eq!((tp2[0].ffn.len(), tp2[1].ffn.len()), (768, 768));
    // The output matrix weighs as much as 8 layers, so the last stage has 8 fewer.
    let pp2 = by(1, 2);
    assert_eq!((pp2[0].layers.len(), pp2[1].layers.len()), (19, 11));
    assert_eq!(by(2, 2).len(), 4);
    for (tp, pp) in [(4, 1), (1, 31), (0, 1)] {
        let refused = shares(&config, &vec![vec![1; tp]; pp], 32)
            .unwrap_err()
            .to_string();
        if tp > 0 {
            assert!(refused.contains("tp can be 1 to 3"), "{refused}");
            assert!(refused.contains("pp 1 to 30"), "{refused}");
        }
    }
    // Heads narrower than a quantisation block cannot be cut between.
    let narrow = ModelConfig {
        head_dim: 24,
        heads: 3,
        ..config
    };
    assert!(shares(&narrow, &[vec![1, 1]], 32).is_err());
    assert!(shares(&narrow, &[vec![1]], 32).is_ok());
}

#[test]
fn a_faster_stage_gets_more_layers() {
    let config = smollm2();
    let layers = |weights: &[Vec<u64>]| -> Vec<u32> {
        let all = shares(&config, weights, 32).unwrap();
        all.iter()
            .step_by(weights[0].len())
            .map(|s| s.layers.len())
            .collect()
    };
    // 7 layers at speed 1 against (23 + 8 for the output) at speed 4.
    assert_eq!(layers(&[vec![1], vec![4]]), [7, 23]);
    let uneven = layers(&[vec![100], vec![1], vec![1]]);
    assert_eq!(uneven.iter().sum::<u32>(), 30);
    assert_eq!(&uneven[1..], [1, 1]);
}

#[test]
fn every_rank_of_any_split_has_its_part_and_the_parts_are_the_whole_file() {
    let folder = TestFolder::new();
    let mut random = SplitMix(3);
    for case in 0..24 {
        let dtype = [DType::F32, DType::Q4_1, DType::Q8_0, DType::Q4_0][case % 4];
        let model = RandomModel {
            layers: 1 + random.below(5) as u32,
            hidden: 64,
            heads: 8,
            kv_heads: 4,
            ffn: 32 * (4 + random.below(6) as u32),
            vocab: 64 + random.below(100) as u32,
            tied_embeddings: case % 3 == 0,
            dtype,
            embedding_dtype: DType::Q8_0,
            tokenizer: false,
            ..RandomModel::tiny(case as u64)
        };
        let path = folder.path().join("m.gguf");
        model.write_gguf(&path).unwrap();
        let manifest = Manifest::open(&path).unwrap();
        assert_eq!(manifest.column_unit() as usize, dtype.cut_elements());
        let config = &manifest.config;

        let tp = 1 + random.below(4) as usize;
        let pp = 1 + random.below(u64::from(config.layers)) as usize;
        let weights: Vec<Vec<u64>> = (0..pp)
            .map(|_| (0..tp).map(|_| 1 + random.below(9)).collect())
            .collect();
        let shares = manifest.shares(&weights).unwrap();
        assert_eq!(shares.len(), tp * pp);
        assert_covers(shares.iter().step_by(tp).map(|s| s.layers), config.layers);
        for (stage, ranks) in shares.chunks(tp).enumerate() {
            assert_covers(ranks.iter().map(|s| s.kv_heads), config.kv_heads);
            assert_covers(ranks.iter().map(|s| s.ffn), config.ffn);
            assert_covers(ranks.iter().map(|s| s.vocab), config.vocab);
            for (rank, share) in ranks.iter().enumerate() {
                assert_eq!(
                    (share.stage, share.rank),
                    (Stage(stage as u16), Rank(rank as u16))
                );
            }
        }

        let norm = u64::from(config.hidden) * 4;
        let norms = u64::from(2 * config.layers + 1) * norm;
        let embedding = manifest.tensors[&crate::model::TensorRole::Embedding].bytes;
        let twice = if config.tied_embeddings && pp > 1 {
            embedding
        } else {
            0
        };
        let read: u64 = shares.iter().map(|s| manifest.share_bytes(s)).sum();
        assert_eq!(
            read,
            manifest.total_bytes() + norms * (tp as u64 - 1) + twice
        );
    }
}
