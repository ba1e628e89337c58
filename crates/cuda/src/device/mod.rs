//! The seam between the backend and what runs its kernels: a GPU behind its driver, or the host shim.
//!
//! Everything above it, which kernels run in which order on which addresses, is the same for both; so the shim's tests
//! are tests of that too.

pub mod crossing;
pub mod driver;
pub mod host;

use crate::Error;
use crate::modules::Module;
pub use crossing::{Crossing, Mapped, Mark};

/// A kernel that a device has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelId(pub u32);

/// A recorded sequence of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphId(pub u32);

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Which.
    pub kernel: KernelId,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// Device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that nothing uses.
    pub free: u64,
    /// All bytes.
    pub total: u64,
}

/// Something that runs kernels, one after the other, on memory of its own. All calls but [`Device::download`] may return
/// before their work is done; work is done in the order of the calls.
pub trait Device: Crossing + Send {
    /// Name and abilities, for messages.
    fn describe(&self) -> String;

    /// What computes the same bits as this: of GPUs, the generation.
    fn generation(&self) -> String;

    /// Its memory.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn room(&self) -> Result<Room, Error>;

    /// Takes so many bytes and returns their address. Called once.
    ///
    /// # Errors
    /// [`Error::Memory`] if there are not so many.
    fn reserve(&mut self, bytes: u64) -> Result<u64, Error>;

    /// Finds a kernel of a module, which is loaded if it is not yet. `shared`: the most dynamic shared memory it will get.
    ///
    /// # Errors
    /// [`Error::Driver`] if the module does not load or lacks the kernel.
    fn kernel(&mut self, module: &'static Module, name: &str, shared: u32) -> Result<KernelId, Error>;

    /// Starts a kernel with the bytes of its one argument.
    ///
    /// # Safety
    /// `args` are the bytes of the kernel's argument struct, whose addresses are inside what [`Device::reserve`] gave, and
    /// the kernel stays within the allocations they point into.
    ///
    /// # Errors
    /// [`Error::Driver`].
    unsafe fn launch(&mut self, launch: Launch, args: &[u8]) -> Result<(), Error>;

    /// Copies bytes to the device.
    ///
    /// # Safety
    /// The range lies inside what [`Device::reserve`] gave.
    ///
    /// # Errors
    /// [`Error::Driver`].
    unsafe fn upload(&mut self, to: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Waits for all work and copies bytes from the device.
    ///
    /// # Safety
    /// The range lies inside what [`Device::reserve`] gave.
    ///
    /// # Errors
    /// [`Error::Driver`], also for work that failed earlier.
    unsafe fn download(&mut self, from: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// From now on launches are recorded instead of run, until [`Device::end_recording`]. Uploads must not happen.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn begin_recording(&mut self) -> Result<(), Error>;

    /// Ends a recording.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn end_recording(&mut self) -> Result<GraphId, Error>;

    /// Copies bytes within the device.
    ///
    /// # Safety
    /// Both ranges lie inside what [`Device::reserve`] gave, and apart.
    ///
    /// # Errors
    /// [`Error::Driver`].
    unsafe fn copy(&mut self, to: u64, from: u64, bytes: u64) -> Result<(), Error>;

    /// Runs a recording.
    ///
    /// # Errors
    /// [`Error::Driver`].
    fn replay(&mut self, graph: GraphId) -> Result<(), Error>;

    /// Forgets a recording.
    fn forget(&mut self, graph: GraphId);
}
