//! Names of KV pages by what they hold, so that sequences with an equal beginning share them.
//!
//! A page's name is a hash of its tokens and of the name of the page before it, so that it stands for all
//! tokens up to its end (the block-hash chain of Kwon et al., "Efficient Memory Management for Large
//! Language Model Serving with PagedAttention", SOSP 2023, 4.4). The first link holds the tenant: no
//! tenant's pages are found by another's prompt, so that what it sent cannot be learnt from how fast an
//! answer comes. Names are SHA-256: nobody finds two beginnings of the same name.

use sha2::{Digest, Sha256};
use trireme_shared::ids::TenantId;
use trireme_shared::limits::PAGE_TOKENS;

/// What a full page holds, and all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageName([u8; 32]);

/// The names of a tenant's sequence's full pages, from its first on.
#[derive(Debug)]
pub struct PageNames {
    tenant: TenantId,
    names: Vec<PageName>,
}

impl PageNames {
    pub fn new(tenant: TenantId) -> Self {
        Self {
            tenant,
            names: Vec::new(),
        }
    }

    /// Those of the first `pages` pages of `tokens`, which begin as they did in all calls before.
    ///
    /// # Panics
    /// Where `tokens` do not fill them.
    pub fn of(&mut self, tokens: &[u32], pages: usize) -> &[PageName] {
        for page in self.names.len()..pages {
            let mut hash = Sha256::new();
            match page.checked_sub(1) {
                None => hash.update(self.tenant.0.to_le_bytes()),
                Some(before) => hash.update(self.names[before].0),
            }
            for token in &tokens[page * PAGE_TOKENS..][..PAGE_TOKENS] {
                hash.update(token.to_le_bytes());
            }
            self.names.push(PageName(hash.finalize().into()));
        }
        &self.names[..pages]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tenant: u32, tokens: &[u32]) -> Vec<PageName> {
        let mut names = PageNames::new(TenantId(tenant));
        names.of(tokens, tokens.len() / PAGE_TOKENS).to_vec()
    }

    #[test]
    fn a_name_stands_for_the_tenant_and_all_tokens_so_far() {
        let tokens: Vec<u32> = (0..3 * PAGE_TOKENS as u32).collect();
        let all = names(1, &tokens);
        let longer = [&tokens[..], &[7; PAGE_TOKENS]].concat();
        assert_eq!(names(1, &longer)[..3], all[..]);
        let mut other = tokens.clone();
        other[3] += 1;
        let changed = names(1, &other);
        assert!(all.iter().zip(&changed).all(|(a, b)| a != b));
        assert!(all.iter().zip(&names(2, &tokens)).all(|(a, b)| a != b));
        // Little by little they come out the same.
        let mut slowly = PageNames::new(TenantId(1));
        slowly.of(&tokens[..PAGE_TOKENS], 1);
        assert_eq!(slowly.of(&tokens, 3), all);
    }
}
