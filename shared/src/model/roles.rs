//! What tensors a model has: names that do not depend on the file format, and their shapes.

use super::{ModelConfig, RopeDivisors};

/// The number of an expert in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expert(pub u32);

/// What a tensor is for. Both GGUF and safetensors names are mapped onto these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorRole {
    /// `[vocab, hidden]`
    Embedding,
    /// `[hidden]`
    OutputNorm,
    /// `[vocab, hidden]`; absent where embeddings are tied
    Output,
    /// `[rope.dims / 2]`: divisors of RoPE's frequencies
    RopeFactors,
    /// `[hidden]`, of this layer
    AttnNorm(u32),
    /// `[heads * head_dim, hidden]`
    Query(u32),
    /// `[kv_heads * head_dim, hidden]`
    Key(u32),
    /// `[kv_heads * head_dim, hidden]`
    Value(u32),
    /// `[heads * head_dim]`
    QueryBias(u32),
    /// `[kv_heads * head_dim]`
    KeyBias(u32),
    /// `[kv_heads * head_dim]`
    ValueBias(u32),
    /// `[head_dim]`, of every query head
    QueryNorm(u32),
    /// `[head_dim]`, of every key head
    KeyNorm(u32),
    /// `[hidden, heads * head_dim]`
    AttnOutput(u32),
    /// `[hidden]`: of what attention adds
    AttnPostNorm(u32),
    /// `[hidden]`
    FfnNorm(u32),
    /// `[ffn, hidden]`
    FfnGate(u32),
    /// `[ffn, hidden]`
    FfnUp(u32),
    /// `[hidden, ffn]`
    FfnDown(u32),
    /// `[experts, hidden]`: what of a mixture's experts a token goes through
    Router(u32),
    /// `[expert_ffn, hidden]`
    ExpertGate(u32, Expert),
    /// `[expert_ffn, hidden]`
    ExpertUp(u32, Expert),
    /// `[hidden, expert_ffn]`
    ExpertDown(u32, Expert),
    /// `[hidden]`: of what the FFN adds
    FfnPostNorm(u32),
}

impl TensorRole {
    /// The layer a role belongs to, if it is of one.
    pub fn layer(self) -> Option<u32> {
        use TensorRole::*;
        match self {
            Embedding | OutputNorm | Output | RopeFactors => None,
            AttnNorm(n) | Query(n) | Key(n) | Value(n) | QueryBias(n) | KeyBias(n)
            | ValueBias(n) | QueryNorm(n) | KeyNorm(n) | AttnOutput(n) | AttnPostNorm(n)
            | FfnNorm(n) | FfnGate(n) | FfnUp(n) | FfnDown(n) | Router(n) | FfnPostNorm(n) => {
                Some(n)
            }
            ExpertGate(n, _) | ExpertUp(n, _) | ExpertDown(n, _) => Some(n),
        }
    }

    /// The expert a role belongs to, if it is of one.
    pub fn expert(self) -> Option<Expert> {
        use TensorRole::*;
        match self {
            ExpertGate(_, e) | ExpertUp(_, e) | ExpertDown(_, e) => Some(e),
            _ => None,
        }
    }

    /// Multiplies activations (or, of the embedding, has a row for each token).
    pub fn is_matrix(self) -> bool {
        use TensorRole::*;
        matches!(
            self,
            Embedding
                | Output
                | Query(_)
                | Key(_)
                | Value(_)
                | AttnOutput(_)
                | FfnGate(_)
                | FfnUp(_)
                | FfnDown(_)
                | ExpertGate(..)
                | ExpertUp(..)
                | ExpertDown(..)
        )
    }

    /// The weights of a norm.
    pub fn is_norm(self) -> bool {
        use TensorRole::*;
        matches!(
            self,
            OutputNorm
                | AttnNorm(_)
                | QueryNorm(_)
                | KeyNorm(_)
                | AttnPostNorm(_)
                | FfnNorm(_)
                | FfnPostNorm(_)
        )
    }
}

/// A role with its tensor's rows and columns. A vector has one row.
pub type Shape = (TensorRole, u64, u64);

/// The tensors of one layer, in the order of use.
pub fn layer_shapes(config: &ModelConfig, n: u32) -> Vec<Shape> {
    use TensorRole::*;
    let (hidden, ffn) = (u64::from(config.hidden), u64::from(config.ffn));
    let head = u64::from(config.head_dim);
    let queries = u64::from(config.heads) * head;
    let keys = u64::from(config.kv_heads) * head;
    let architecture = config.architecture;
    let mut shapes = vec![
        (AttnNorm(n), 1, hidden),
        (Query(n), queries, hidden),
        (Key(n), keys, hidden),
        (Value(n), keys, hidden),
    ];
    if architecture.has_qkv_bias() {
        shapes.extend([
            (QueryBias(n), 1, queries),
            (KeyBias(n), 1, keys),
            (ValueBias(n), 1, keys),
        ]);
    }
    if architecture.has_head_norms() {
        shapes.extend([(QueryNorm(n), 1, head), (KeyNorm(n), 1, head)]);
    }
    shapes.push((AttnOutput(n), hidden, queries));
    if architecture.is_gemma() {
        shapes.push((AttnPostNorm(n), 1, hidden));
    }
    shapes.push((FfnNorm(n), 1, hidden));
    if let (Some(mixture), Some(ffn)) = (config.mixture, config.expert_ffn()) {
        let (count, ffn) = (mixture.experts, u64::from(ffn));
        let experts = || (0..count).map(Expert);
        shapes.push((Router(n), count.into(), hidden));
        shapes.extend(experts().map(|e| (ExpertGate(n, e), ffn, hidden)));
        shapes.extend(experts().map(|e| (ExpertUp(n, e), ffn, hidden)));
        shapes.extend(experts().map(|e| (ExpertDown(n, e), hidden, ffn)));
    } else {
        shapes.extend([
            (FfnGate(n), ffn, hidden),
            (FfnUp(n), ffn, hidden),
            (FfnDown(n), hidden, ffn),
        ]);
    }
    if architecture.is_gemma() {
        shapes.push((FfnPostNorm(n), 1, hidden));
    }
    shapes
}

/// Every tensor a model of this configuration has.
pub(super) fn expected(config: &ModelConfig) -> impl Iterator<Item = Shape> {
    use TensorRole::*;
    let (hidden, vocab) = (u64::from(config.hidden), u64::from(config.vocab));
    let output = (!config.tied_embeddings).then_some((Output, vocab, hidden));
    let pairs = u64::from(config.rope.dims / 2);
    let has_factors = config.rope_divisors == RopeDivisors::Tensor;
    let factors = has_factors.then_some((TensorRole::RopeFactors, 1, pairs));
    let layers = (0..config.layers).flat_map(move |n| layer_shapes(config, n));
    [(Embedding, vocab, hidden), (OutputNorm, 1, hidden)]
        .into_iter()
        .chain(output)
        .chain(factors)
        .chain(layers)
}
