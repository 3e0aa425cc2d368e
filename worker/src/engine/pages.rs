//! The pool of KV pages, kept by the driver for every rank of the replica.
//!
//! A page is a number: each rank holds its own heads' share of page `n` at index `n`, so one pool
//! on the driver speaks for all of them. Pages are counted by reference, so that sequences with an
//! equal prefix can share them. What it keeps true, in release builds too: free + in use = total.
//! Its only user is the batcher.

/// Hands out page numbers `0..total`.
#[derive(Debug)]
pub struct PagePool {
    free: Vec<u32>,
    /// References to each page; 0 is free.
    references: Vec<u32>,
    in_use: usize,
}

impl PagePool {
    pub fn new(total: u32) -> Self {
        Self {
            // Popped from the end, so that low pages are touched first and the rest of the rank's
            // lazily backed KV memory stays untouched while traffic is light.
            free: (0..total).rev().collect(),
            references: vec![0; total as usize],
            in_use: 0,
        }
    }

    pub fn total(&self) -> usize {
        self.references.len()
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// `count` pages with one reference each, or none at all.
    pub fn allocate(&mut self, count: usize) -> Option<Vec<u32>> {
        if count > self.free.len() {
            return None;
        }
        let pages = self.free.split_off(self.free.len() - count);
        for &page in &pages {
            let references = &mut self.references[page as usize];
            assert_eq!(*references, 0, "KV page {page} was free and referenced");
            *references = 1;
        }
        self.in_use += count;
        self.check();
        Some(pages)
    }

    /// One more reference to a page in use.
    pub fn share(&mut self, page: u32) {
        let references = &mut self.references[page as usize];
        assert!(*references > 0, "KV page {page} was shared while free");
        *references += 1;
    }

    /// Gives up one reference to each page; a page without references is free again.
    pub fn release(&mut self, pages: &[u32]) {
        for &page in pages {
            let references = &mut self.references[page as usize];
            assert!(*references > 0, "KV page {page} was released twice");
            *references -= 1;
            if *references == 0 {
                self.free.push(page);
                self.in_use -= 1;
            }
        }
        self.check();
    }

    fn check(&self) {
        assert_eq!(
            self.free.len() + self.in_use,
            self.references.len(),
            "KV pages: free + in use = total"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_or_nothing_and_every_page_comes_back() {
        let mut pool = PagePool::new(5);
        let first = pool.allocate(3).unwrap();
        assert!(pool.allocate(3).is_none());
        assert_eq!((pool.free(), pool.in_use()), (2, 3));
        let second = pool.allocate(2).unwrap();
        let mut all = [first.clone(), second.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, vec![0, 1, 2, 3, 4]);
        pool.release(&first);
        pool.release(&second);
        assert_eq!((pool.free(), pool.in_use()), (5, 0));
    }

    #[test]
    fn a_shared_page_is_free_after_its_last_owner() {
        let mut pool = PagePool::new(1);
        let page = pool.allocate(1).unwrap();
        pool.share(page[0]);
        pool.release(&page);
        assert_eq!(pool.free(), 0);
        pool.release(&page);
        assert_eq!(pool.free(), 1);
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
