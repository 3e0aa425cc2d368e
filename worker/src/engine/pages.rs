//! The pool of KV pages, kept by the driver for every rank of the replica.
//!
//! A page is a number: each rank holds its own heads' share of page `n` at index `n`, so one pool
//! on the driver speaks for all of them. Pages are counted by reference, so that sequences with an
//! equal prefix share them. A full page can be given a name for what it holds (`prefix`); named pages
//! that nobody uses any more are kept, and found again by their name, until there is no other page left
//! to give out: then the one that was used longest ago is. What it keeps true, in release builds too:
//! free + kept + in use = total. Its only user is the batcher.

use super::prefix::PageName;
use std::collections::{BTreeMap, HashMap};

/// Hands out page numbers `0..total`.
#[derive(Debug)]
pub struct PagePool {
    free: Vec<u32>,
    pages: Vec<Page>,
    named: HashMap<PageName, u32>,
    /// Named pages without references, by when they were last used.
    kept: BTreeMap<u64, u32>,
    /// Counts releases.
    clock: u64,
    in_use: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    references: u32,
    name: Option<PageName>,
    /// Its place in `kept`, while it has no references.
    kept_at: u64,
}

impl PagePool {
    pub fn new(total: u32) -> Self {
        Self {
            // Popped from the end, so that low pages are touched first and the rest of the rank's
            // lazily backed KV memory stays untouched while traffic is light.
            free: (0..total).rev().collect(),
            pages: vec![Page::default(); total as usize],
            named: HashMap::new(),
            kept: BTreeMap::new(),
            clock: 0,
            in_use: 0,
        }
    }

    pub fn total(&self) -> usize {
        self.pages.len()
    }

    /// Pages that can be given out: free ones, and those that are only kept.
    pub fn available(&self) -> usize {
        self.free.len() + self.kept.len()
    }

    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// How many of a sequence's pages nobody else uses.
    pub fn sole(&self, pages: &[u32]) -> usize {
        let references = |page: &&u32| self.pages[**page as usize].references;
        pages.iter().filter(|page| references(page) == 1).count()
    }

    /// `count` pages with one reference each, or none at all.
    pub fn allocate(&mut self, count: usize) -> Option<Vec<u32>> {
        if count > self.available() {
            return None;
        }
        while self.free.len() < count {
            let (_, page) = self.kept.pop_first()?;
            if let Some(name) = self.pages[page as usize].name.take() {
                self.named.remove(&name);
            }
            self.free.push(page);
        }
        let pages = self.free.split_off(self.free.len() - count);
        for &page in &pages {
            let references = &mut self.pages[page as usize].references;
            assert_eq!(*references, 0, "KV page {page} was free and referenced");
            *references = 1;
        }
        self.in_use += count;
        self.check();
        Some(pages)
    }

    /// How many pages of these names there are, from the first on, and how many of them are only kept.
    pub fn find(&self, names: &[PageName]) -> Found {
        let pages = names.iter().map_while(|name| self.named.get(name));
        pages.fold(Found::default(), |found, &page| Found {
            pages: found.pages + 1,
            kept: found.kept + usize::from(self.pages[page as usize].references == 0),
        })
    }

    /// The pages of these names, each with one reference more; of as many as there are.
    pub fn share(&mut self, names: &[PageName]) -> Vec<u32> {
        let pages = names.iter().map_while(|name| self.named.get(name).copied());
        let pages: Vec<u32> = pages.collect();
        for &number in &pages {
            let page = &mut self.pages[number as usize];
            if page.references == 0 {
                self.kept.remove(&page.kept_at);
                self.in_use += 1;
            }
            page.references += 1;
        }
        self.check();
        pages
    }

    /// Names a page in use by what it holds from now on. A second page of the same name stays without.
    pub fn name(&mut self, page: u32, name: PageName) {
        let held = &mut self.pages[page as usize];
        assert!(held.references > 0, "KV page {page} was named while free");
        if held.name.is_none() && !self.named.contains_key(&name) {
            held.name = Some(name);
            self.named.insert(name, page);
        }
    }

    /// Gives up one reference to each page of a sequence. A page without references is free again, or
    /// kept if it has a name: the later ones of a sequence are given out before the earlier.
    pub fn release(&mut self, pages: &[u32]) {
        for &number in pages.iter().rev() {
            let page = &mut self.pages[number as usize];
            assert!(page.references > 0, "KV page {number} was released twice");
            page.references -= 1;
            if page.references > 0 {
                continue;
            }
            self.in_use -= 1;
            if page.name.is_none() {
                self.free.push(number);
            } else {
                self.clock += 1;
                page.kept_at = self.clock;
                self.kept.insert(self.clock, number);
            }
        }
        self.check();
    }

    fn check(&self) {
        assert_eq!(
            self.free.len() + self.kept.len() + self.in_use,
            self.pages.len(),
            "KV pages: free + kept + in use = total"
        );
    }
}

/// Pages found by their names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub pages: usize,
    /// Of them, those in nobody's use.
    pub kept: usize,
}

#[cfg(test)]
mod tests {
    use super::super::prefix::PageNames;
    use super::*;
    use trireme_shared::ids::TenantId;
    use trireme_shared::limits::PAGE_TOKENS;

    fn names(first: u32, count: usize) -> Vec<PageName> {
        let tokens = vec![first; count * PAGE_TOKENS];
        PageNames::new(TenantId(1)).of(&tokens, count).to_vec()
    }

    fn held(pool: &mut PagePool, names: &[PageName]) -> Vec<u32> {
        let pages = pool.allocate(names.len()).unwrap();
        for (&page, &name) in pages.iter().zip(names) {
            pool.name(page, name);
        }
        pages
    }

    #[test]
    fn all_or_nothing_and_every_page_comes_back() {
        let mut pool = PagePool::new(5);
        let first = pool.allocate(3).unwrap();
        assert!(pool.allocate(3).is_none());
        assert_eq!((pool.available(), pool.in_use()), (2, 3));
        let second = pool.allocate(2).unwrap();
        let mut all = [first.clone(), second.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, vec![0, 1, 2, 3, 4]);
        pool.release(&first);
        pool.release(&second);
        assert_eq!((pool.available(), pool.in_use()), (5, 0));
    }

    #[test]
    fn a_shared_page_is_free_after_its_last_owner() {
        let mut pool = PagePool::new(1);
        let name = names(1, 1);
        let page = held(&mut pool, &name);
        assert_eq!(pool.share(&name), page);
        pool.release(&page);
        assert_eq!(pool.available(), 0);
        pool.release(&page);
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn named_pages_are_found_until_their_room_is_needed_the_oldest_tail_first() {
        let mut pool = PagePool::new(4);
        let (old, new) = (names(1, 2), names(2, 2));
        for names in [&old, &new] {
            let pages = held(&mut pool, names);
            pool.release(&pages);
        }
        assert_eq!((pool.available(), pool.in_use()), (4, 0));
        assert_eq!(pool.find(&old), Found { pages: 2, kept: 2 });
        // Used again, so that the other is the older now.
        let again = pool.share(&old);
        assert_eq!(pool.find(&old), Found { pages: 2, kept: 0 });
        pool.release(&again);
        let one = pool.allocate(1).unwrap();
        assert_eq!((pool.find(&old).pages, pool.find(&new).pages), (2, 1));
        let two = pool.allocate(2).unwrap();
        assert_eq!((pool.find(&old).pages, pool.find(&new).pages), (1, 0));
        pool.release(&one);
        pool.release(&two);
        assert_eq!(pool.available(), 4);
    }

    #[test]
    fn of_two_pages_with_the_same_tokens_one_is_kept() {
        let mut pool = PagePool::new(2);
        let name = names(1, 1);
        let (first, second) = (held(&mut pool, &name), held(&mut pool, &name));
        pool.release(&second);
        assert_eq!(pool.find(&name), Found { pages: 1, kept: 0 });
        pool.release(&first);
        assert_eq!(pool.find(&name), Found { pages: 1, kept: 1 });
        assert_eq!(pool.available(), 2);
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn a_double_release_is_caught() {
        let mut pool = PagePool::new(2);
        let page = pool.allocate(1).unwrap();
        pool.release(&page);
        pool.release(&page);
    }
}
