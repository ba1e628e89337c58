//! Where the bytes of experts come from, and how they lie in a slot: plane behind plane, each at a multiple of [`SLOT_ALIGN`].

use crate::nvme::ExpertStore;
use ashlar_backend::SLOT_ALIGN;
use ashlar_tensor::Bytes;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A plane and where it begins in a slot.
type Part = (usize, Bytes);

/// The bytes of one expert.
#[derive(Default)]
pub struct Record {
    /// What lies in the host's memory, or is mapped there.
    parts: Vec<Part>,
    /// What lies on disk: whose records, which of them, and of every plane its place in the slot and in the record.
    disk: Option<(Arc<ExpertStore>, u32)>,
    planes: Vec<(usize, Range<usize>)>,
    end: usize,
}

/// Experts that take turns in the slots of one accelerator, while they are loaded.
#[derive(Default)]
pub struct Slotting {
    records: Vec<Record>,
    /// By layer and expert.
    numbers: HashMap<(usize, usize), u32>,
}

impl Slotting {
    /// The record of an expert of a layer, with its number.
    pub fn record(&mut self, of: (usize, usize)) -> (u32, &mut Record) {
        let number = *self.numbers.entry(of).or_insert_with(|| {
            self.records.push(Record::default());
            self.records.len() as u32 - 1
        });
        (number, &mut self.records[number as usize])
    }

    /// Its number, if it is one.
    #[must_use]
    pub fn number(&self, of: (usize, usize)) -> Option<u32> {
        self.numbers.get(&of).copied()
    }

    /// All of them.
    #[must_use]
    pub fn into_records(self) -> Vec<Record> {
        self.records
    }
}

/// Where a matrix lies on disk.
pub struct OnDisk<'a> {
    /// Who reads.
    pub store: &'a Arc<ExpertStore>,
    /// In which record there.
    pub record: u32,
    /// Where its planes lie in that record.
    pub planes: &'a [Range<usize>],
}

/// Places of a weight's planes in a slot.
pub type Places = Vec<Range<usize>>;

impl Record {
    /// The planes of one more matrix, which are in memory.
    pub fn add(&mut self, planes: &[Bytes]) -> Places {
        let places = self.places(planes.iter().map(|plane| plane.len()));
        self.parts.extend(places.iter().map(|place| place.start).zip(planes.iter().cloned()));
        places
    }

    /// The planes of one more matrix, which are on disk.
    pub fn add_on_disk(&mut self, OnDisk { store, record, planes }: OnDisk<'_>) -> Places {
        let places = self.places(planes.iter().map(ExactSizeIterator::len));
        self.disk = Some((Arc::clone(store), record));
        self.planes.extend(places.iter().map(|place| place.start).zip(planes.iter().cloned()));
        places
    }

    fn places(&mut self, sizes: impl Iterator<Item = usize>) -> Places {
        let place = |size| {
            let start = self.end.next_multiple_of(SLOT_ALIGN);
            self.end = start + size;
            start..self.end
        };
        sizes.map(place).collect()
    }

    /// Bytes that a slot must have for it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.end
    }

    /// Whether it is always at hand.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.disk.is_none()
    }

    /// Its planes; `None` if they are on disk and not in the host's memory now.
    #[must_use]
    pub fn parts(&self) -> Option<Vec<Part>> {
        let Some((store, record)) = &self.disk else { return Some(self.parts.clone()) };
        let bytes = store.held(*record)?;
        let plane = |(at, range): &(usize, Range<usize>)| Some((*at, bytes.slice(range.start, range.len())?));
        self.planes.iter().map(plane).collect()
    }
}
