//! [`Overlay`]: a model that takes some of its weights from another one. Nothing is written or copied.

use crate::RuntimeError;
use ashlar_tensor::{Bytes, Entry, FilePlace, StoreError, TensorStore};
use std::collections::HashSet;
use std::sync::Arc;

/// The weights of `base`, but those that were named from `over`.
pub struct Overlay {
    base: Arc<dyn TensorStore>,
    over: Arc<dyn TensorStore>,
    entries: Vec<Entry>,
    /// Names taken from `over`.
    taken: HashSet<String>,
}

impl Overlay {
    /// `base` with the weights called `names` taken from `over`.
    ///
    /// # Errors
    /// [`RuntimeError::Missing`] if one of the two has no weight of such a name; [`RuntimeError::Evaluate`] if their
    /// shapes differ.
    pub fn new<'n>(
        base: Arc<dyn TensorStore>,
        over: Arc<dyn TensorStore>,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<Self, RuntimeError> {
        let mut taken = HashSet::new();
        for name in names {
            let missing = || RuntimeError::Missing(name.to_owned());
            let (a, b) = (base.entry(name).ok_or_else(missing)?, over.entry(name).ok_or_else(missing)?);
            if a.shape != b.shape {
                let what = format!("tensor `{name}` is {:?} in one model and {:?} in the other", a.shape, b.shape);
                return Err(RuntimeError::Evaluate(what));
            }
            taken.insert(name.to_owned());
        }
        let pick = |e: &Entry| over.entry(&e.name).filter(|_| taken.contains(&e.name)).unwrap_or(e).clone();
        let entries = base.entries().iter().map(pick).collect();
        Ok(Self { base, over, entries, taken })
    }

    fn store(&self, entry: &Entry) -> &dyn TensorStore {
        if self.taken.contains(&entry.name) { &*self.over } else { &*self.base }
    }
}

impl TensorStore for Overlay {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn read(&self, entry: &Entry, plane: usize, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.store(entry).read(entry, plane, offset, out)
    }

    fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
        self.store(entry).map(entry, plane)
    }

    fn place(&self, entry: &Entry, plane: usize) -> Option<FilePlace> {
        self.store(entry).place(entry, plane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_tensor::{Order, Plane, PlaneKind};

    /// One byte per weight.
    struct List(Vec<Entry>, u8);

    impl List {
        fn shared(names: &[(&str, usize)], byte: u8) -> Arc<dyn TensorStore> {
            let entry = |(name, n): &(&str, usize)| Entry {
                name: (*name).into(),
                shape: vec![*n],
                format: format!("f{byte}"),
                order: Order::Rows,
                planes: vec![Plane { kind: PlaneKind::Values, bytes: 1 }],
                file: "f".into(),
            };
            Arc::new(Self(names.iter().map(entry).collect(), byte))
        }
    }

    impl TensorStore for List {
        fn entries(&self) -> &[Entry] {
            &self.0
        }
        fn read(&self, _entry: &Entry, _plane: usize, _offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
            out.fill(self.1);
            Ok(())
        }
        fn map(&self, entry: &Entry, plane: usize) -> Result<Bytes, StoreError> {
            Err(StoreError::Unknown { tensor: entry.name.clone(), plane })
        }
    }

    #[test]
    fn named_weights_come_from_the_other_store_with_its_format() -> Result<(), Box<dyn std::error::Error>> {
        let (base, over) = (List::shared(&[("a", 3), ("b", 3)], 1), List::shared(&[("a", 3), ("b", 3), ("z", 3)], 2));
        let both = Overlay::new(base, over, ["b"])?;
        let mut seen = Vec::new();
        for entry in both.entries() {
            let mut byte = [0];
            both.read(entry, 0, 0, &mut byte)?;
            seen.push((entry.name.clone(), entry.format.clone(), byte[0]));
        }
        assert_eq!(seen, [("a".into(), "f1".into(), 1), ("b".into(), "f2".into(), 2)]);
        Ok(())
    }

    #[test]
    fn weights_that_one_side_lacks_or_has_in_another_shape_are_refused() {
        let stores = || (List::shared(&[("a", 3), ("b", 3)], 1), List::shared(&[("a", 4), ("c", 3)], 2));
        for (name, says) in [("b", "`b` is missing"), ("c", "`c` is missing"), ("a", "[3] in one model and [4]")] {
            let (base, over) = stores();
            let error = Overlay::new(base, over, [name]).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(says), "{error}");
        }
    }
}
