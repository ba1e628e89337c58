//! A GPU behind its driver, which is loaded when it is asked for: the program starts without it.
//!
//! One stream of kernels and one of copies beside them (`crossing`), one pool allocated at the start, two pinned buffers that large
//! uploads go through in turns, graphs from captured launches. Modules are embedded PTX; the driver compiles them when their first kernel is wanted, and
//! keeps the result in its own cache.

mod crossing;

use super::{Device, GraphId, KernelId, Launch, Room};
use crate::Error;
use crate::modules::Module;
use cudarc::driver::result::{self, DriverError, ctx, device, event, function, graph, module, primary_ctx, stream};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::{CString, c_void};

/// What the PTX asks of the driver: CUDA 12.8, which drivers from 570 on speak.
const NEEDED: i32 = 12080;
const LEAST_DRIVER: &str = "570";
/// sm_80: integer and tf32 tensor cores.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);
/// Bytes of a pinned buffer.
const STAGE: usize = 16 << 20;
/// Dynamic shared memory that a kernel may have without asking.
const SHARED: u32 = 48 << 10;

fn failed(what: impl Into<String>) -> impl FnOnce(DriverError) -> Error {
    let what = what.into();
    move |e| {
        let text = e.error_string().map_or_else(|_| format!("{:?}", e.0), |s| s.to_string_lossy().into_owned());
        Error::Driver { what, why: text }
    }
}

/// Whether there is a driver that loads the kernels, and how many devices it has.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::TooOld`], [`Error::Driver`].
pub fn count() -> Result<usize, Error> {
    // SAFETY: it only tries to open the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver { least: LEAST_DRIVER });
    }
    let mut version = 0;
    // SAFETY: every driver has this function; it writes one integer and needs no initialisation.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(failed("driver version"))?;
    let text = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
    if version < NEEDED {
        return Err(Error::TooOld { got: text(version), needed: text(NEEDED), least: LEAST_DRIVER });
    }
    match result::init() {
        Ok(()) => {}
        // A driver without a device.
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(0),
        Err(e) => return Err(failed("driver initialisation")(e)),
    }
    Ok(device::get_count().map_err(failed("device count"))?.max(0) as usize)
}

/// What of the free memory the pool takes: all but what the driver, its modules and a desktop want.
#[must_use]
pub fn pool_bytes(room: Room) -> u64 {
    let kept = (room.total / 20).max(512 << 20);
    room.free.saturating_sub(kept) >> 21 << 21
}

/// A pinned buffer and the event behind its last copy.
struct Stage {
    memory: *mut c_void,
    copied: sys::CUevent,
    used: bool,
}

/// A pinned buffer; flag 4: write-combined, for what the CPU never reads.
fn stage(bytes: usize, flags: u32) -> Result<Stage, Error> {
    // SAFETY: freed by `Stage::free`.
    let memory = unsafe { result::malloc_host(bytes, flags) }.map_err(failed("pinned memory"))?;
    let copied = event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(failed("event"))?;
    Ok(Stage { memory, copied, used: false })
}

impl Stage {
    /// Waits until its last copy has ended.
    fn wait(&self) -> Result<(), Error> {
        if self.used {
            // SAFETY: the event lives as long as `self`.
            unsafe { event::synchronize(self.copied) }.map_err(failed("copy"))?;
        }
        Ok(())
    }

    /// Puts bytes into it.
    ///
    /// # Safety
    /// It has room for them, and nothing copies from it.
    unsafe fn fill(&mut self, bytes: &[u8]) -> &[u8] {
        // SAFETY: the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.cast::<u8>(), bytes.len());
            std::slice::from_raw_parts(self.memory.cast::<u8>(), bytes.len())
        }
    }

    /// It is in use until what was started on the stream has ended.
    fn used_on(&mut self, stream: sys::CUstream) -> Result<(), Error> {
        // SAFETY: event and stream live.
        unsafe { event::record(self.copied, stream) }.map_err(failed("copy"))?;
        self.used = true;
        Ok(())
    }

    /// Nothing uses it any more.
    fn free(self) {
        // SAFETY: nothing waits for the event.
        let _ = unsafe { event::destroy(self.copied) };
        // SAFETY: `malloc_host` gave it.
        let _ = unsafe { result::free_host(self.memory) };
    }
}

struct Function {
    handle: sys::CUfunction,
    name: String,
    /// Dynamic shared memory it may have.
    shared: u32,
}

/// One GPU.
pub struct Driver {
    index: usize,
    name: String,
    capability: (i32, i32),
    processors: i32,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: HashMap<&'static str, sys::CUmodule>,
    kernels: Vec<Function>,
    found: HashMap<String, KernelId>,
    stages: Vec<Stage>,
    next_stage: usize,
    pool: Option<sys::CUdeviceptr>,
    graphs: HashMap<u32, sys::CUgraphExec>,
    copies: Option<crossing::Copies>,
    mapped: Vec<*mut c_void>,
}

// SAFETY: all handles belong to the context, which every call makes current on the thread that calls.
unsafe impl Send for Driver {}

impl Driver {
    /// Opens device number `index`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(index: usize) -> Result<Self, Error> {
        let count = count()?;
        if index >= count {
            return Err(Error::NoDevice { index, count });
        }
        let device = device::get(index as i32).map_err(failed("device"))?;
        let name = device::get_name(device).map_err(failed("device name"))?;
        let attribute = |which| {
            // SAFETY: `device` is a device.
            unsafe { device::get_attribute(device, which) }.map_err(failed("device attribute"))
        };
        use sys::CUdevice_attribute_enum as Attribute;
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < LEAST_CAPABILITY {
            let got = format!("{}.{}", capability.0, capability.1);
            return Err(Error::Capability { index, name, got, needed: "8.0" });
        }
        let processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        // SAFETY: `device` is a device; the context is released when this value is dropped.
        let context = unsafe { primary_ctx::retain(device) }.map_err(failed("context"))?;
        let mut driver = Self {
            index,
            name,
            capability,
            processors,
            device,
            context,
            stream: std::ptr::null_mut(),
            modules: HashMap::new(),
            kernels: Vec::new(),
            found: HashMap::new(),
            stages: Vec::new(),
            next_stage: 0,
            pool: None,
            graphs: HashMap::new(),
            copies: None,
            mapped: Vec::new(),
        };
        driver.enter()?;
        driver.stream = stream::create(stream::StreamKind::NonBlocking).map_err(failed("stream"))?;
        Ok(driver)
    }

    fn enter(&self) -> Result<(), Error> {
        // SAFETY: the context lives as long as `self`.
        unsafe { ctx::set_current(self.context) }.map_err(failed("context"))
    }

    fn wait(&self) -> Result<(), Error> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { stream::synchronize(self.stream) }.map_err(failed("kernels"))
    }

    /// Copies through the pinned buffers, so that copying into one overlaps the transfer of the other.
    fn upload_large(&mut self, to: u64, bytes: &[u8]) -> Result<(), Error> {
        while self.stages.len() < 2 {
            self.stages.push(stage(STAGE, 4)?);
        }
        for (i, chunk) in bytes.chunks(STAGE).enumerate() {
            let (at, stream) = (self.next_stage, self.stream);
            self.next_stage = (at + 1) % self.stages.len();
            let stage = &mut self.stages[at];
            stage.wait()?;
            // SAFETY: the buffer has `STAGE` bytes, and the copy that last read it has ended.
            let pinned = unsafe { stage.fill(chunk) };
            let to = to + (i * STAGE) as u64;
            // SAFETY: the caller of `upload` promises that the range is ours; the buffer is not written before its event.
            unsafe { result::memcpy_htod_async(to, pinned, stream) }.map_err(failed("upload"))?;
            stage.used_on(stream)?;
        }
        Ok(())
    }
}

impl Device for Driver {
    fn describe(&self) -> String {
        let (major, minor) = self.capability;
        let Self { index, name, processors, .. } = self;
        format!("cuda:{index} ({name}, sm_{major}{minor}, {processors} multiprocessors)")
    }

    fn generation(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }

    fn room(&self) -> Result<Room, Error> {
        self.enter()?;
        let (free, total) = result::mem_get_info().map_err(failed("memory"))?;
        Ok(Room { free: free as u64, total: total as u64 })
    }

    fn reserve(&mut self, bytes: u64) -> Result<u64, Error> {
        let free = self.room()?.free;
        let needed = bytes.max(1 << 21);
        if needed > free {
            return Err(Error::Memory { needed, free });
        }
        // SAFETY: freed when `self` is dropped.
        let address = unsafe { result::malloc_sync(needed as usize) };
        let address = address.map_err(|_| Error::Memory { needed, free })?;
        self.pool = Some(address);
        Ok(address)
    }

    fn kernel(&mut self, of: &'static Module, name: &str, _shared: u32) -> Result<KernelId, Error> {
        if let Some(id) = self.found.get(name) {
            return Ok(*id);
        }
        self.enter()?;
        let nul = |_| Error::Driver { what: format!("kernel {name}"), why: "a name with a NUL".into() };
        let module = match self.modules.get(of.name) {
            Some(module) => *module,
            None => {
                let text = CString::new(of.ptx).map_err(nul)?;
                // SAFETY: the text ends with a NUL and is PTX, which the driver checks.
                let loaded = unsafe { module::load_data(text.as_ptr().cast()) };
                let loaded = loaded.map_err(failed(format!("module {}", of.name)))?;
                self.modules.insert(of.name, loaded);
                loaded
            }
        };
        let symbol = CString::new(name).map_err(nul)?;
        // SAFETY: the module is loaded and stays so.
        let handle = unsafe { module::get_function(module, symbol) }.map_err(failed(format!("kernel {name}")))?;
        let id = KernelId(self.kernels.len() as u32);
        self.kernels.push(Function { handle, name: name.to_owned(), shared: SHARED });
        self.found.insert(name.to_owned(), id);
        Ok(id)
    }

    unsafe fn launch(&mut self, launch: Launch, args: &[u8]) -> Result<(), Error> {
        self.enter()?;
        let Some(kernel) = self.kernels.get_mut(launch.kernel.0 as usize) else {
            return Err(Error::Driver { what: "launch".into(), why: "no such kernel".into() });
        };
        if launch.shared > kernel.shared {
            let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a loaded module.
            unsafe { function::set_function_attribute(kernel.handle, which, launch.shared as i32) }
                .map_err(failed(format!("{} bytes of shared memory for {}", launch.shared, kernel.name)))?;
            kernel.shared = launch.shared;
        }
        let [x, y, z] = launch.grid;
        let mut parameters = [args.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the caller promises that `args` is the kernel's one parameter, which the driver copies during the call.
        unsafe {
            result::launch_kernel(
                kernel.handle,
                (x, y, z),
                (launch.threads, 1, 1),
                launch.shared,
                self.stream,
                &mut parameters,
            )
        }
        .map_err(failed(format!("kernel {}", kernel.name)))
    }

    unsafe fn upload(&mut self, to: u64, bytes: &[u8]) -> Result<(), Error> {
        self.enter()?;
        if bytes.len() > 1 << 20 {
            return self.upload_large(to, bytes);
        }
        // SAFETY: the caller promises that the range is ours; pageable memory has been read when the call returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream) }.map_err(failed("upload"))
    }

    unsafe fn download(&mut self, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the caller promises that the range is ours; the wait below ends the copy before `bytes` is used.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream) }.map_err(failed("download"))?;
        self.wait()
    }

    unsafe fn copy(&mut self, to: u64, from: u64, bytes: u64) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the caller promises that both ranges are ours.
        unsafe { result::memcpy_dtod_async(to, from, bytes as usize, self.stream) }.map_err(failed("copy"))
    }

    fn begin_recording(&mut self) -> Result<(), Error> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        unsafe { stream::begin_capture(self.stream, mode) }.map_err(failed("begin of a recording"))
    }

    fn end_recording(&mut self) -> Result<GraphId, Error> {
        self.enter()?;
        // SAFETY: the stream is being captured.
        let recorded = unsafe { stream::end_capture(self.stream) }.map_err(failed("end of a recording"))?;
        // SAFETY: `recorded` is a graph.
        let runnable = unsafe { graph::instantiate(recorded, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: what was made of the graph does not need it any more.
        unsafe { graph::destroy(recorded) }.map_err(failed("recording"))?;
        let id = (0..).find(|id| !self.graphs.contains_key(id)).unwrap_or(u32::MAX);
        self.graphs.insert(id, runnable.map_err(failed("recording"))?);
        Ok(GraphId(id))
    }

    fn replay(&mut self, id: GraphId) -> Result<(), Error> {
        self.enter()?;
        let Some(runnable) = self.graphs.get(&id.0) else {
            return Err(Error::Driver { what: "replay".into(), why: "no such recording".into() });
        };
        // SAFETY: the recording and the stream live.
        unsafe { graph::launch(*runnable, self.stream) }.map_err(failed("replay"))
    }

    fn forget(&mut self, id: GraphId) {
        if let Some(runnable) = self.graphs.remove(&id.0) {
            // What runs still uses it.
            let ended = self.enter().and_then(|()| self.wait());
            if ended.is_ok() {
                // SAFETY: nothing runs, and the handle is gone from the map.
                let _ = unsafe { graph::exec_destroy(runnable) };
            }
        }
    }
}

impl Drop for Driver {
    /// Errors are of no use here: the context goes away with everything in it.
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        let _ = self.wait();
        for (_, runnable) in self.graphs.drain() {
            // SAFETY: nothing runs any more, and nobody else has the handle.
            let _ = unsafe { graph::exec_destroy(runnable) };
        }
        self.drop_copies();
        self.stages.drain(..).for_each(Stage::free);
        crossing::free(std::mem::take(&mut self.mapped));
        for (_, module) in self.modules.drain() {
            // SAFETY: as above.
            let _ = unsafe { module::unload(module) };
        }
        if let Some(pool) = self.pool.take() {
            // SAFETY: `malloc_sync` gave it.
            let _ = unsafe { result::free_sync(pool) };
        }
        if !self.stream.is_null() {
            // SAFETY: as above.
            let _ = unsafe { stream::destroy(self.stream) };
        }
        // SAFETY: retained once in `open`.
        let _ = unsafe { primary_ctx::release(self.device) };
    }
}
