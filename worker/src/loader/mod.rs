//! From a manifest to exactly one rank's bytes.
//!
//! [`part`] is the arithmetic (which bytes of which file), pure; [`WeightFiles`] maps the files and
//! gives a backend views of those bytes and no others. Tensor-parallel ranks hold rows of q, k, v,
//! gate, up, embedding and output, and columns of the attention output and FFN down projections
//! (Shoeybi et al. 2019, "Megatron-LM"), of a mixture whole experts; the biases of q, k and v go with
//! their rows, norms and routers are small and held by every rank.

use crate::backend::WeightView;
use crate::model::LoadError;
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use trireme_shared::model::{
    DType, Manifest, RankShare, RopeDivisors, TensorEntry, TensorRole, layer_shapes,
};

/// A rank's part of one tensor: `rows` runs of `run_bytes`, `stride` apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPart {
    pub role: TensorRole,
    /// In the file.
    pub dtype: DType,
    /// In memory.
    pub packed: DType,
    pub rows: usize,
    pub columns: usize,
    /// Columns of each run's first block that are another part's.
    pub skip: usize,
    /// Index into `Manifest::files`.
    pub file: usize,
    /// Absolute offset of the first run.
    pub offset: u64,
    /// Whole blocks: of a super-block that is cut, the columns of other parts too.
    pub run_bytes: u64,
    pub stride: u64,
}

impl TensorPart {
    /// What this part weighs as it is packed, as `Manifest::share_bytes` counts.
    pub fn bytes(&self) -> u64 {
        let bytes = self
            .packed
            .share_bytes(self.rows as u64, self.columns as u64);
        bytes.unwrap_or(u64::MAX)
    }

    /// From the first byte to past the last, gaps included.
    fn extent(&self) -> u64 {
        match self.rows as u64 {
            0 => 0,
            rows => (rows - 1) * self.stride + self.run_bytes,
        }
    }
}

/// The tensors that the holder of `share` needs, in the order of use.
pub fn roles(manifest: &Manifest, share: &RankShare) -> Vec<TensorRole> {
    use TensorRole::*;
    let mut roles = Vec::new();
    if manifest.config.rope_divisors == RopeDivisors::Tensor {
        roles.push(RopeFactors);
    }
    if share.is_first_stage() {
        roles.push(Embedding);
    }
    let experts = manifest.config.experts_in(share.ffn).range();
    let is_held = |role: &TensorRole| {
        let expert = role.expert();
        expert.is_none_or(|e| experts.contains(&(e.0 as usize)))
    };
    for l in share.layers.start..share.layers.end {
        let all = layer_shapes(&manifest.config, l).into_iter();
        roles.extend(all.map(|(role, ..)| role).filter(is_held));
    }
    if share.is_last_stage() {
        roles.push(OutputNorm);
        match output_role(manifest) {
            // Tied, and already there.
            Embedding if share.is_first_stage() => {}
            role => roles.push(role),
        }
    }
    roles
}

/// The tensor of the output matrix.
pub fn output_role(manifest: &Manifest) -> TensorRole {
    if manifest.config.tied_embeddings {
        TensorRole::Embedding
    } else {
        TensorRole::Output
    }
}

/// Which bytes of `role` the holder of `share` needs.
pub fn part(
    manifest: &Manifest,
    share: &RankShare,
    role: TensorRole,
) -> Result<TensorPart, LoadError> {
    use TensorRole::*;
    let entry = manifest.tensors.get(&role).ok_or_else(|| {
        LoadError::Unsupported(format!(
            "the file has no tensor for {role:?}: it is not complete"
        ))
    })?;
    let config = &manifest.config;
    let (hidden, kv) = (config.hidden as usize, share.kv_heads.range());
    let per_kv = config.head_dim as usize;
    let per_query = per_kv * config.group() as usize;
    let queries = kv.start * per_query..kv.end * per_query;
    let keys = kv.start * per_kv..kv.end * per_kv;
    let (rows, columns) = match role {
        Embedding | Output => (share.vocab.range(), 0..hidden),
        OutputNorm | AttnNorm(_) | AttnPostNorm(_) | FfnNorm(_) | FfnPostNorm(_) => {
            (0..1, 0..hidden)
        }
        RopeFactors => (0..1, 0..config.rope.dims as usize / 2),
        QueryNorm(_) | KeyNorm(_) => (0..1, 0..per_kv),
        QueryBias(_) => (0..1, queries),
        KeyBias(_) | ValueBias(_) => (0..1, keys),
        Query(_) => (queries, 0..hidden),
        Key(_) | Value(_) => (keys, 0..hidden),
        AttnOutput(_) => (0..hidden, queries),
        FfnGate(_) | FfnUp(_) => (share.ffn.range(), 0..hidden),
        FfnDown(_) => (0..hidden, share.ffn.range()),
        Router(_) | ExpertGate(..) | ExpertUp(..) | ExpertDown(..) => {
            (0..entry.rows as usize, 0..entry.columns as usize)
        }
    };
    cut(role, entry, rows, columns)
}

fn cut(
    role: TensorRole,
    entry: &TensorEntry,
    rows: Range<usize>,
    columns: Range<usize>,
) -> Result<TensorPart, LoadError> {
    let refuse = |reason: String| LoadError::Unsupported(format!("{role:?}: {reason}"));
    if rows.end as u64 > entry.rows || columns.end as u64 > entry.columns {
        return Err(refuse(format!(
            "rows {rows:?}, columns {columns:?} were asked of a {} x {} tensor",
            entry.rows, entry.columns
        )));
    }
    // Floats may be cut anywhere, the blocks that they become not.
    let (block, unit) = (entry.dtype.block_elements(), entry.packed.cut_elements());
    let uneven = || {
        refuse(format!(
            "columns {columns:?} do not fall on the {unit} columns that a {:?} block may be cut to; \
             choose a split with fewer tensor-parallel ranks",
            entry.packed
        ))
    };
    if !columns.start.is_multiple_of(unit) || !columns.end.is_multiple_of(unit) {
        return Err(uneven());
    }
    let bytes_to = |column: usize| entry.dtype.bytes_of(column as u64).ok_or_else(uneven);
    let stride = bytes_to(entry.columns as usize)?;
    let skip = columns.start % block;
    let first = bytes_to(columns.start - skip)?;
    Ok(TensorPart {
        role,
        dtype: entry.dtype,
        packed: entry.packed,
        rows: rows.len(),
        columns: columns.len(),
        skip,
        file: entry.file,
        offset: entry.offset + rows.start as u64 * stride + first,
        run_bytes: bytes_to(columns.end.next_multiple_of(block))? - first,
        stride,
    })
}

/// A model's files, mapped.
pub struct WeightFiles<'a> {
    manifest: &'a Manifest,
    maps: Vec<Mmap>,
}

impl<'a> WeightFiles<'a> {
    pub fn open(manifest: &'a Manifest) -> Result<Self, LoadError> {
        let mut maps = Vec::with_capacity(manifest.files.len());
        for path in &manifest.files {
            let failed = |source| LoadError::Io {
                path: path.display().to_string(),
                source,
            };
            let file = File::open(path).map_err(failed)?;
            // SAFETY: the mapping is read only. Model files are replaced by renaming, never
            // written in place (the cache's rule), so the bytes do not change under us.
            maps.push(unsafe { Mmap::map(&file) }.map_err(failed)?);
        }
        Ok(Self { manifest, maps })
    }

    /// Gives the part's pages back to the kernel, which reads them again if anyone asks: a file that was packed
    /// is not resident a second time.
    pub fn release(&self, part: &TensorPart) {
        #[cfg(unix)]
        {
            let (offset, bytes) = (part.offset as usize, part.extent() as usize);
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: `view` has found the range in the mapping, which is of a file and read only: what is read
            // there afterwards is what the file has. It is a hint: failure costs memory only.
            let _ = unsafe { self.maps[part.file].unchecked_advise_range(advice, offset, bytes) };
        }
    }

    /// The part's bytes. Fails if the file has become shorter than its header says.
    pub fn view(&self, part: &TensorPart) -> Result<WeightView<'_>, LoadError> {
        let whole = usize::try_from(part.offset).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(part.extent()).ok()?)?;
            self.maps[part.file].get(start..end)
        });
        let bytes = whole.ok_or_else(|| LoadError::Io {
            path: self.manifest.files[part.file].display().to_string(),
            source: std::io::ErrorKind::UnexpectedEof.into(),
        })?;
        Ok(WeightView {
            dtype: part.dtype,
            packed: part.packed,
            rows: part.rows,
            columns: part.columns,
            skip: part.skip,
            bytes,
            stride: part.stride as usize,
        })
    }
}
