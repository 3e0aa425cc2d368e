//! What the model is asked to run in one step, and the check that kernels rely on.

use trireme_shared::limits::PAGE_TOKENS;

/// Rows of one step, flattened over sequences. Row counts are in tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token id of each row.
    pub tokens: Vec<u32>,
    /// In order of `first`, covering every row once.
    pub sequences: Vec<SequenceSlice>,
    /// Rows whose logits are wanted, ascending.
    pub outputs: Vec<u32>,
}

/// One sequence's rows in a batch: `len` rows from `first`, at positions `context..context + len`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceSlice {
    pub first: u32,
    pub len: u32,
    /// Tokens of this sequence already in the KV cache.
    pub context: u32,
    /// Physical KV pages in order, enough for `context + len` tokens.
    pub pages: Vec<u32>,
}

impl Batch {
    /// Position of each row in its sequence.
    pub(super) fn positions(&self) -> impl Iterator<Item = u32> {
        let slices = self.sequences.iter();
        slices.flat_map(|s| s.context..s.context + s.len)
    }

    /// Checks everything that memory safety rests on, and the token ids. What it cannot see is
    /// whether two sequences write the same page; that only garbles those two.
    pub(super) fn check(&self, vocab: u32, kv_pages: usize) -> Result<(), String> {
        if let Some(token) = self.tokens.iter().find(|&&t| t >= vocab) {
            return Err(format!("token {token} is not in a vocabulary of {vocab}"));
        }
        let rows = self.tokens.len() as u64;
        let mut next = 0u64;
        for (index, slice) in self.sequences.iter().enumerate() {
            if u64::from(slice.first) != next || slice.len == 0 {
                return Err(format!("sequence {index} does not begin at row {next}"));
            }
            next += u64::from(slice.len);
            let tokens = u64::from(slice.context) + u64::from(slice.len);
            if tokens > u64::from(u32::MAX)
                || tokens.div_ceil(PAGE_TOKENS as u64) > slice.pages.len() as u64
            {
                return Err(format!(
                    "sequence {index} has {} pages for {tokens} tokens",
                    slice.pages.len()
                ));
            }
            if let Some(page) = slice.pages.iter().find(|&&p| p as usize >= kv_pages) {
                return Err(format!("sequence {index} names page {page} of {kv_pages}"));
            }
        }
        if next != rows {
            return Err(format!("sequences cover {next} of {rows} rows"));
        }
        let ascending = self.outputs.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || self.outputs.last().is_some_and(|&o| u64::from(o) >= rows) {
            return Err("output rows do not ascend within the batch".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Batch {
        let slice = |first, len, context, pages: &[u32]| SequenceSlice {
            first,
            len,
            context,
            pages: pages.to_vec(),
        };
        Batch {
            tokens: vec![1, 2, 3, 4],
            sequences: vec![slice(0, 3, 14, &[4, 0]), slice(3, 1, 0, &[2])],
            outputs: vec![2, 3],
        }
    }

    #[test]
    fn a_batch_that_could_reach_outside_the_cache_is_refused() {
        good().check(5, 5).unwrap();
        assert_eq!(good().positions().collect::<Vec<_>>(), [14, 15, 16, 0]);
        assert!(good().check(4, 5).is_err(), "token outside the vocabulary");
        assert!(good().check(5, 4).is_err(), "page outside the cache");
        let spoil: [fn(&mut Batch); 6] = [
            |b| b.sequences[0].pages.truncate(1),
            |b| b.sequences[0].context = u32::MAX,
            |b| b.sequences[1].first = 2,
            |b| b.sequences.truncate(1),
            |b| b.outputs = vec![3, 2],
            |b| b.outputs = vec![4],
        ];
        for (which, spoil) in spoil.into_iter().enumerate() {
            let mut batch = good();
            spoil(&mut batch);
            assert!(batch.check(5, 5).is_err(), "case {which}");
        }
    }
}
