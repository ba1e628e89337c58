//! Copies beside the kernels: a second stream, pinned buffers that what is copied passes through in turns, events as marks, memory
//! that both sides see.

use super::{Driver, Stage, failed, stage};
use crate::Error;
use crate::device::{Crossing, Mapped, Mark};
use cudarc::driver::result::{self, event, stream};
use cudarc::driver::sys;
use std::ffi::c_void;

/// Bytes of a pinned buffer, and how many there are: a few experts are under way at a time.
const STAGE: usize = 4 << 20;
const STAGES: usize = 8;
/// Marks that can be told apart. Whoever waits for an older one waits for a later point.
const MARKS: usize = 256;

/// What copying beside kernels needs; made when it is first wanted.
pub(super) struct Copies {
    stream: sys::CUstream,
    stages: Vec<Stage>,
    next: usize,
    marks: Vec<sys::CUevent>,
    count: u32,
}

impl Driver {
    fn copies(&mut self) -> Result<&mut Copies, Error> {
        if self.copies.is_none() {
            let stream = stream::create(stream::StreamKind::NonBlocking).map_err(failed("stream of copies"))?;
            self.copies = Some(Copies { stream, stages: Vec::new(), next: 0, marks: Vec::new(), count: 0 });
        }
        self.copies.as_mut().ok_or_else(|| Error::Driver { what: "copies".into(), why: "no stream".into() })
    }

    /// Frees what copies use; nothing runs any more.
    pub(super) fn drop_copies(&mut self) {
        let Some(copies) = self.copies.take() else { return };
        // SAFETY: the stream lives.
        let _ = unsafe { stream::synchronize(copies.stream) };
        for stage in copies.stages {
            stage.free();
        }
        for mark in copies.marks {
            // SAFETY: nobody else has the event.
            let _ = unsafe { event::destroy(mark) };
        }
        // SAFETY: nobody else has the stream, and nothing runs on it.
        let _ = unsafe { stream::destroy(copies.stream) };
    }
}

impl Copies {
    /// Marks the present end of a stream.
    fn mark(&mut self, of: sys::CUstream) -> Result<Mark, Error> {
        let at = self.count as usize % MARKS;
        if at == self.marks.len() {
            self.marks.push(event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(failed("event"))?);
        }
        let mark = Mark(self.count);
        self.count = self.count.wrapping_add(1);
        // SAFETY: event and stream live.
        unsafe { event::record(self.marks[at], of) }.map_err(failed("mark"))?;
        Ok(mark)
    }

    /// What starts on a stream from now on waits for a mark.
    fn wait(&self, on: sys::CUstream, mark: Mark) -> Result<(), Error> {
        let Some(event) = self.marks.get(mark.0 as usize % MARKS) else { return Ok(()) };
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream live.
        unsafe { stream::wait_event(on, *event, flags) }.map_err(failed("wait for a mark"))
    }

    /// The next pinned buffer, once what it was last used for has ended.
    fn stage(&mut self) -> Result<&mut Stage, Error> {
        if self.stages.len() < STAGES {
            // Cacheable: what comes from the device is read from it.
            self.stages.push(stage(STAGE, 0)?);
            self.next = self.stages.len() - 1;
        }
        let at = self.next;
        self.next = (at + 1) % STAGES;
        let stage = &mut self.stages[at];
        stage.wait()?;
        Ok(stage)
    }

    fn copy_in(&mut self, to: u64, bytes: &[u8]) -> Result<(), Error> {
        for (i, chunk) in bytes.chunks(STAGE).enumerate() {
            let stream = self.stream;
            let stage = self.stage()?;
            // SAFETY: the buffer has `STAGE` bytes, and nothing copies from it any more.
            let pinned = unsafe { stage.fill(chunk) };
            // SAFETY: the caller of `fill` promises the range; the buffer is not written before its event.
            unsafe { result::memcpy_htod_async(to + (i * STAGE) as u64, pinned, stream) }.map_err(failed("fill"))?;
            stage.used_on(stream)?;
        }
        Ok(())
    }

    fn copy_out(&mut self, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        for (i, chunk) in bytes.chunks_mut(STAGE).enumerate() {
            let stream = self.stream;
            let stage = self.stage()?;
            // SAFETY: the buffer has `STAGE` bytes, and nothing copies to or from it any more.
            let pinned = unsafe { std::slice::from_raw_parts_mut(stage.memory.cast::<u8>(), chunk.len()) };
            // SAFETY: the caller of `read_beside` promises the range; the wait below comes before the bytes are used.
            unsafe { result::memcpy_dtoh_async(pinned, from + (i * STAGE) as u64, stream) }.map_err(failed("read"))?;
            stage.used_on(stream)?;
            stage.wait()?;
            chunk.copy_from_slice(pinned);
        }
        Ok(())
    }
}

impl Crossing for Driver {
    fn mapped(&mut self, bytes: usize) -> Result<Mapped, Error> {
        self.enter()?;
        let what = || format!("{bytes} bytes of pinned memory");
        // SAFETY: freed when `self` is dropped.
        let host = unsafe { result::malloc_host(bytes.max(16), sys::CU_MEMHOSTALLOC_DEVICEMAP) };
        let host = host.map_err(failed(what()))?;
        self.mapped.push(host);
        // SAFETY: it has so many bytes, and nobody uses it yet.
        unsafe { std::ptr::write_bytes(host.cast::<u8>(), 0, bytes) };
        let mut device: sys::CUdeviceptr = 0;
        // SAFETY: `host` was allocated as mapped; the call writes one address.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut device, host, 0) }.result().map_err(failed(what()))?;
        // SAFETY: pinned memory is aligned to pages; it was zeroed, and lives until `self` is dropped.
        Ok(unsafe { Mapped::new(host.cast(), device, bytes) })
    }

    fn busy(&mut self) -> Result<bool, Error> {
        self.enter()?;
        // SAFETY: the stream lives.
        match unsafe { sys::cuStreamQuery(self.stream) } {
            sys::CUresult::CUDA_SUCCESS => Ok(false),
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(true),
            other => Err(failed("kernels")(result::DriverError(other))),
        }
    }

    fn mark(&mut self) -> Result<Mark, Error> {
        self.enter()?;
        let stream = self.stream;
        self.copies()?.mark(stream)
    }

    unsafe fn fill(&mut self, after: Option<Mark>, parts: &[(u64, &[u8])]) -> Result<Mark, Error> {
        self.enter()?;
        let copies = self.copies()?;
        if let Some(after) = after {
            copies.wait(copies.stream, after)?;
        }
        parts.iter().try_for_each(|(to, bytes)| copies.copy_in(*to, bytes))?;
        copies.mark(copies.stream)
    }

    fn wait_for(&mut self, mark: Mark) -> Result<(), Error> {
        self.enter()?;
        let stream = self.stream;
        self.copies()?.wait(stream, mark)
    }

    unsafe fn read_beside(&mut self, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.enter()?;
        self.copies()?.copy_out(from, bytes)
    }
}

/// Frees pinned memory that [`Crossing::mapped`] gave.
pub(super) fn free(mapped: Vec<*mut c_void>) {
    for host in mapped {
        // SAFETY: `malloc_host` gave it, and nothing runs any more.
        let _ = unsafe { result::free_host(host) };
    }
}
