//! What crosses between a device and the host while both work: memory that both see, copies beside the kernels, marks that order
//! them.

use crate::Error;
use std::sync::atomic::{AtomicU32, Ordering};

/// Pinned host memory that kernels read and write at an address of their own. It lives as long as the device.
#[derive(Clone, Copy, Debug)]
pub struct Mapped {
    host: *mut u8,
    device: u64,
    bytes: usize,
}

// SAFETY: the memory belongs to the device, which is `Send`; all access goes through `&mut` of whoever has the device.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Memory of so many bytes.
    ///
    /// # Safety
    /// `host` is `bytes` bytes long, aligned to 16, zeroed, and stays until the device is gone; kernels see it at `device`.
    pub(super) unsafe fn new(host: *mut u8, device: u64, bytes: usize) -> Self {
        Self { host, device, bytes }
    }

    /// Where kernels find the byte at `offset`.
    pub fn device(&self, offset: usize) -> u64 {
        self.device + offset as u64
    }

    /// How long it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes bytes. No kernel may be reading them.
    ///
    /// # Errors
    /// [`Error::Driver`] if they do not lie inside.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        // SAFETY: the range was checked; nobody else on the host has it, and the caller knows that no kernel does.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.host.add(offset), bytes.len()) };
        Ok(())
    }

    /// Copies bytes that a kernel wrote, and said so.
    ///
    /// # Errors
    /// As [`Mapped::write`].
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        // SAFETY: the range was checked; the kernel that wrote it has set a flag since, which the caller has seen.
        unsafe { std::ptr::copy_nonoverlapping(self.host.add(offset), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// The flag at `offset`, a multiple of 4; what a kernel wrote before it set the flag is there once it is seen.
    ///
    /// # Errors
    /// As [`Mapped::write`].
    pub fn flag(&self, offset: usize) -> Result<bool, Error> {
        self.check(offset.next_multiple_of(4), 4)?;
        // SAFETY: the range was checked, the memory is aligned; the device writes flags as whole words.
        let flag = unsafe { AtomicU32::from_ptr(self.host.add(offset / 4 * 4).cast()) };
        Ok(flag.load(Ordering::Acquire) != 0)
    }

    fn check(&self, offset: usize, bytes: usize) -> Result<(), Error> {
        if offset.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        let why = format!("{bytes} bytes at {offset} of {}", self.bytes);
        Err(Error::Driver { what: "pinned memory".into(), why })
    }
}

/// A point in the work of a device: of its kernels, or of its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u32);

/// What a device does beside its kernels.
pub trait Crossing {
    /// Memory that both see, all zero.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn mapped(&mut self, bytes: usize) -> Result<Mapped, Error>;

    /// Whether kernels still run; an error if one of them failed.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn busy(&mut self) -> Result<bool, Error>;

    /// Marks the end of all kernels that were started so far.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn mark(&mut self) -> Result<Mark, Error>;

    /// Copies parts to the device, each to its address, beside kernels that run, but not before `after`. The parts have been read when
    /// it returns. The mark is the end of the copies.
    ///
    /// # Safety
    /// All ranges lie inside what [`super::Device::reserve`] gave; kernels that use them were started before `after`, or will wait for
    /// the mark.
    ///
    /// # Errors
    /// [`Error::Driver`].
    unsafe fn fill(&mut self, after: Option<Mark>, parts: &[(u64, &[u8])]) -> Result<Mark, Error>;

    /// Kernels that are started from now on wait for a mark.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn wait_for(&mut self, mark: Mark) -> Result<(), Error>;

    /// Copies bytes from the device beside kernels that run, and waits for that only.
    ///
    /// # Safety
    /// The range lies inside what [`super::Device::reserve`] gave, and no kernel that was started writes it.
    ///
    /// # Errors
    /// [`Error::Driver`].
    unsafe fn read_beside(&mut self, from: u64, bytes: &mut [u8]) -> Result<(), Error>;
}
