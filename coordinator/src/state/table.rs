//! The state's tables: ordered persistent maps. A clone shares everything and costs a pointer, so
//! that a snapshot is written from a clone while commands go on.

use super::codec::{CodecError, Sink, Source, Stored};
use imbl::OrdMap;
use std::borrow::Borrow;
use wincode::config::DefaultConfig;
use wincode::{SchemaRead, SchemaWrite};

/// An ordered map. Written as its length (u64) and its rows in the order of their keys; a reader
/// refuses another order, so that equal tables have one encoding.
#[derive(Clone)]
pub(super) struct Table<K, V>(OrdMap<K, V>);

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(OrdMap::new())
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<K: Ord, V: Eq> Eq for Table<K, V> {}

impl<K: Ord, V> Table<K, V> {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }

    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.contains_key(key)
    }

    /// In the order of the keys, like all that follow.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.0.iter()
    }

    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.0.keys()
    }

    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.0.values()
    }

    pub fn range(
        &self,
        range: impl std::ops::RangeBounds<K>,
    ) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.0.range(range)
    }

    pub fn first(&self) -> Option<&(K, V)> {
        self.0.get_min()
    }

    pub fn last(&self) -> Option<&(K, V)> {
        self.0.get_max()
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.0.insert(key, value)
    }

    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.0.remove(key)
    }

    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.0.get_mut(key)
    }

    pub fn or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        self.0.entry(key).or_default()
    }

    /// With rows as another version has them.
    pub fn with_rows<W: Clone + From<V>>(&self) -> Table<K, W> {
        let rows = self.iter();
        rows.map(|(key, row)| (key.clone(), row.clone().into()))
            .collect()
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Table<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(rows: I) -> Self {
        Self(rows.into_iter().collect())
    }
}

impl<K, V> Stored for Table<K, V>
where
    K: Ord + Clone + SchemaWrite<DefaultConfig, Src = K>,
    K: for<'de> SchemaRead<'de, DefaultConfig, Dst = K>,
    V: Clone + SchemaWrite<DefaultConfig, Src = V>,
    V: for<'de> SchemaRead<'de, DefaultConfig, Dst = V>,
{
    fn store(&self, out: &mut Sink<'_>) -> Result<(), CodecError> {
        out.value(&(self.len() as u64))?;
        for (key, value) in self.iter() {
            out.value(key)?;
            out.value(value)?;
        }
        Ok(())
    }

    /// Rows are taken in one by one: a length that claims more than there is costs nothing.
    fn load(input: &mut Source<'_>) -> Result<Self, CodecError> {
        let length: u64 = input.value()?;
        let mut table = Self::default();
        for _ in 0..length {
            let key: K = input.value()?;
            if table.last().is_some_and(|(last, _)| *last >= key) {
                return Err(CodecError::Damaged("its rows are out of order".into()));
            }
            let value: V = input.value()?;
            table.insert(key, value);
        }
        Ok(table)
    }
}
