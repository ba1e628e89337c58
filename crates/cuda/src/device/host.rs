//! The host shim: the kernels' own sources, compiled by the system's C++ compiler and run on the CPU. For tests.
//!
//! The library is built once into the directory of the running program, under the hash of everything that goes into it,
//! and loaded from there.

use super::{Crossing, Device, GraphId, KernelId, Launch, Mapped, Mark, Room};
use crate::Error;
use crate::modules::{FILES, MODULES, Module};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

/// What warnings and optimisations the sources are compiled with. Products and sums stay apart, as in the reference.
const FLAGS: &[&str] =
    &["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-DASHLAR_HOST", "-w"];

/// Where the pool starts: a multiple of this, as a GPU's allocations do.
const ALIGN: usize = 256;

type Run = unsafe extern "C" fn(*const c_char, *const c_void, *const c_void, *const u32, u32, u32, u32) -> i32;

/// The loaded library.
pub struct Library {
    library: libloading::Library,
    run: Run,
}

impl Library {
    /// Builds and loads the library, or loads it if it was built before.
    ///
    /// # Errors
    /// [`Error::Compiler`] if there is no compiler or it fails.
    pub fn open() -> Result<Arc<Self>, Error> {
        static OPEN: Mutex<Option<Arc<Library>>> = Mutex::new(None);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = &*open {
            return Ok(Arc::clone(library));
        }
        let library = Arc::new(Self::load(&build()?)?);
        *open = Some(Arc::clone(&library));
        Ok(library)
    }

    fn load(path: &Path) -> Result<Self, Error> {
        let failed = |e: libloading::Error| Error::Compiler { why: format!("{}: {e}", path.display()) };
        // SAFETY: the library is our own, built from embedded sources; it has no initialisers.
        let library = unsafe { libloading::Library::new(path) }.map_err(failed)?;
        // SAFETY: `host/shim.cpp` defines the function with this signature.
        let run = unsafe { *library.get::<Run>(b"ashlar_launch\0").map_err(failed)? };
        Ok(Self { library, run })
    }

    /// The address of a kernel.
    fn kernel(&self, name: &str) -> Option<*const c_void> {
        type Kernel = unsafe extern "C" fn(*const c_void);
        // SAFETY: the `KERNEL` macro declares every kernel with this signature.
        let kernel = unsafe { self.library.get::<Kernel>(name.as_bytes()) }.ok()?;
        Some(*kernel as *const c_void)
    }

    /// Bytes of a kernel's argument struct, as the sources declare it.
    #[must_use]
    pub fn argument_bytes(&self, name: &str) -> Option<u32> {
        type Size = unsafe extern "C" fn() -> u32;
        // SAFETY: the sources define it beside the kernel, with this signature.
        let size = unsafe { self.library.get::<Size>(format!("{name}_args").as_bytes()) }.ok()?;
        // SAFETY: it returns a constant.
        Some(unsafe { size() })
    }
}

/// The compiler: what `CXX` names, or `c++`.
fn compiler() -> String {
    std::env::var("CXX").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "c++".into())
}

/// FNV-1a over everything that decides what the library is.
fn fingerprint() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |text: &str| {
        for byte in text.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    FILES.iter().for_each(|f| [f.path, f.text].into_iter().for_each(&mut add));
    MODULES.iter().for_each(|m| m.definitions().iter().chain([&m.source.to_owned()]).for_each(|d| add(d)));
    FLAGS.iter().for_each(|f| add(f));
    add(&compiler());
    hash
}

/// The path of the library, which is built if it is not there.
fn build() -> Result<PathBuf, Error> {
    let failed = |why: String| Error::Compiler { why };
    let io = |what: &Path, e: std::io::Error| failed(format!("{}: {e}", what.display()));
    let program = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
    let directory = program.parent().unwrap_or(Path::new("."));
    // Tests and the program they test share one library.
    let directory = if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    let library = directory.join(format!("ashlar-cuda-host-{:016x}.so", fingerprint()));
    if library.is_file() {
        return Ok(library);
    }
    let work = directory.join(format!("ashlar-cuda-host-{:016x}.{}", fingerprint(), std::process::id()));
    let result = compile(&work).and_then(|built| {
        // Whoever comes second replaces the same by the same.
        std::fs::rename(&built, &library).map_err(|e| io(&library, e))
    });
    let cleaned = std::fs::remove_dir_all(&work).map_err(|e| io(&work, e));
    result.and(cleaned).map(|()| library)
}

/// Compiles all modules below `work`, as many at a time as there are cores, and links them.
fn compile(work: &Path) -> Result<PathBuf, Error> {
    let io = |e: std::io::Error| Error::Compiler { why: format!("{}: {e}", work.display()) };
    for file in FILES {
        let path = work.join(file.path);
        path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(io)?;
        std::fs::write(&path, file.text).map_err(io)?;
    }
    let mut units: Vec<(String, &str, Vec<String>)> =
        MODULES.iter().map(|m| (format!("{}.o", m.name), m.source, m.definitions())).collect();
    units.push(("shim.o".into(), "host/shim.cpp", Vec::new()));
    let next = std::sync::atomic::AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((object, source, definitions)) =
                    units.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    let mut command = Command::new(compiler());
                    command.current_dir(work).args(FLAGS).args(["-I", ".", "-c", "-x", "c++", source, "-o", object]);
                    command.args(definitions.iter().map(|d| format!("-D{d}")));
                    if let Err(error) = run(command) {
                        *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    }
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut command = Command::new(compiler());
    command.current_dir(work).args(["-shared", "-o", "host.so"]).args(units.iter().map(|(object, ..)| object));
    run(command)?;
    Ok(work.join("host.so"))
}

fn run(mut command: Command) -> Result<(), Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| Error::Compiler { why: format!("`{name}`: {e}") })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(Error::Compiler { why: text.lines().take(20).collect::<Vec<_>>().join("\n") })
}

struct Entry {
    name: CString,
    address: *const c_void,
}

/// A device that is none.
pub struct Host {
    library: Arc<Library>,
    /// Pages that were never touched take no memory; the first aligned address inside is the pool's.
    memory: Vec<u8>,
    kernels: Vec<Entry>,
    found: HashMap<String, KernelId>,
    reversed: bool,
    recording: Option<Vec<(Launch, Vec<u8>)>>,
    graphs: HashMap<u32, Vec<(Launch, Vec<u8>)>>,
    mapped: Vec<(*mut u8, Layout)>,
    marks: u32,
    /// Copies under way: they arrive when somebody waits for their mark, and till then there is nothing of use.
    filling: Vec<(Mark, u64, Vec<u8>)>,
}

// SAFETY: the addresses of kernels are code, which any thread may call; the shim's own state is thread-local.
unsafe impl Send for Host {}

impl Host {
    /// A shim. With `reversed`, blocks and threads take turns in the opposite order, so that a missing barrier shows.
    ///
    /// # Errors
    /// [`Error::Compiler`].
    pub fn new(reversed: bool) -> Result<Self, Error> {
        Ok(Self {
            library: Library::open()?,
            memory: Vec::new(),
            kernels: Vec::new(),
            found: HashMap::new(),
            reversed,
            recording: None,
            graphs: HashMap::new(),
            mapped: Vec::new(),
            marks: 0,
            filling: Vec::new(),
        })
    }

    fn range(&mut self, address: u64, bytes: usize) -> Result<&mut [u8], Error> {
        let memory = &mut self.memory;
        let start = (address as usize).wrapping_sub(memory.as_ptr() as usize);
        let outside =
            || Error::Driver { what: "copy".into(), why: format!("{bytes} bytes at {address:#x} are not ours") };
        start.checked_add(bytes).and_then(|end| memory.get_mut(start..end)).ok_or_else(outside)
    }

    fn start(&self, launch: Launch, args: &[u8]) -> Result<(), Error> {
        let Some(entry) = self.kernels.get(launch.kernel.0 as usize) else {
            return Err(Error::Driver { what: "launch".into(), why: "no such kernel".into() });
        };
        let Launch { grid, threads, shared, .. } = launch;
        // The struct holds addresses: it wants their alignment.
        let words: Vec<u64> = args.chunks(8).map(|c| c.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))).collect();
        // SAFETY: the caller of `launch` promises that the arguments are the kernel's; `words` outlives the call, which
        // returns when the kernel has ended.
        let code = unsafe {
            (self.library.run)(
                entry.name.as_ptr(),
                entry.address,
                words.as_ptr().cast(),
                grid.as_ptr(),
                threads,
                shared,
                u32::from(self.reversed),
            )
        };
        match code {
            0 => Ok(()),
            code => Err(Error::Driver { what: entry.name.to_string_lossy().into(), why: format!("host shim: {code}") }),
        }
    }
}

impl Device for Host {
    fn describe(&self) -> String {
        "cuda-host (CUDA kernels on the CPU, for tests)".into()
    }

    fn generation(&self) -> String {
        "host".into()
    }

    fn room(&self) -> Result<Room, Error> {
        Ok(Room { free: 1 << 32, total: 1 << 32 })
    }

    fn reserve(&mut self, bytes: u64) -> Result<u64, Error> {
        let length = usize::try_from(bytes).ok().and_then(|b| b.checked_add(ALIGN));
        self.memory = vec![0; length.ok_or(Error::Memory { needed: bytes, free: 0 })?];
        let address = (self.memory.as_ptr() as u64).next_multiple_of(ALIGN as u64);
        Ok(address)
    }

    fn kernel(&mut self, _module: &'static Module, name: &str, _shared: u32) -> Result<KernelId, Error> {
        if let Some(id) = self.found.get(name) {
            return Ok(*id);
        }
        let missing = || Error::Driver { what: format!("kernel {name}"), why: "the library lacks it".into() };
        let address = self.library.kernel(name).ok_or_else(missing)?;
        let id = KernelId(self.kernels.len() as u32);
        self.kernels.push(Entry { name: CString::new(name).map_err(|_| missing())?, address });
        self.found.insert(name.to_owned(), id);
        Ok(id)
    }

    unsafe fn launch(&mut self, launch: Launch, args: &[u8]) -> Result<(), Error> {
        match &mut self.recording {
            Some(recording) => {
                recording.push((launch, args.to_vec()));
                Ok(())
            }
            None => self.start(launch, args),
        }
    }

    unsafe fn upload(&mut self, to: u64, bytes: &[u8]) -> Result<(), Error> {
        if self.recording.is_some() {
            return Err(Error::Driver { what: "upload".into(), why: "not while launches are recorded".into() });
        }
        self.range(to, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    unsafe fn download(&mut self, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        bytes.copy_from_slice(self.range(from, bytes.len())?);
        Ok(())
    }

    unsafe fn copy(&mut self, to: u64, from: u64, bytes: u64) -> Result<(), Error> {
        let copy = self.range(from, bytes as usize)?.to_vec();
        self.range(to, copy.len())?.copy_from_slice(&copy);
        Ok(())
    }

    fn begin_recording(&mut self) -> Result<(), Error> {
        self.recording = Some(Vec::new());
        Ok(())
    }

    fn end_recording(&mut self) -> Result<GraphId, Error> {
        let id = (0..).find(|id| !self.graphs.contains_key(id)).unwrap_or(u32::MAX);
        self.graphs.insert(id, self.recording.take().unwrap_or_default());
        Ok(GraphId(id))
    }

    fn replay(&mut self, graph: GraphId) -> Result<(), Error> {
        let missing = || Error::Driver { what: "replay".into(), why: "no such recording".into() };
        let launches = self.graphs.get(&graph.0).ok_or_else(missing)?;
        launches.iter().try_for_each(|(launch, args)| self.start(*launch, args))
    }

    fn forget(&mut self, graph: GraphId) {
        self.graphs.remove(&graph.0);
    }
}

impl Crossing for Host {
    fn mapped(&mut self, bytes: usize) -> Result<Mapped, Error> {
        let wrong = |why: String| Error::Driver { what: format!("{bytes} bytes of pinned memory"), why };
        let layout = Layout::from_size_align(bytes.max(1), 64).map_err(|e| wrong(e.to_string()))?;
        // SAFETY: the layout is not empty.
        let host = unsafe { alloc_zeroed(layout) };
        if host.is_null() {
            return Err(wrong("there are not so many".into()));
        }
        self.mapped.push((host, layout));
        // SAFETY: it is that long, aligned, zeroed, and freed when `self` is dropped; kernels run on the CPU and see the same addresses.
        Ok(unsafe { Mapped::new(host, host as u64, bytes) })
    }

    fn busy(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    fn mark(&mut self) -> Result<Mark, Error> {
        self.marks += 1;
        Ok(Mark(self.marks))
    }

    unsafe fn fill(&mut self, _after: Option<Mark>, parts: &[(u64, &[u8])]) -> Result<Mark, Error> {
        let mark = self.mark()?;
        for (to, bytes) in parts {
            // Whoever reads before the mark finds this.
            self.range(*to, bytes.len())?.fill(0xff);
            self.filling.push((mark, *to, bytes.to_vec()));
        }
        Ok(mark)
    }

    fn wait_for(&mut self, mark: Mark) -> Result<(), Error> {
        let (arrived, others) = std::mem::take(&mut self.filling).into_iter().partition(|(of, ..)| of.0 <= mark.0);
        self.filling = others;
        let arrived: Vec<(Mark, u64, Vec<u8>)> = arrived;
        arrived.into_iter().try_for_each(|(_, to, bytes)| {
            self.range(to, bytes.len())?.copy_from_slice(&bytes);
            Ok(())
        })
    }

    unsafe fn read_beside(&mut self, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        bytes.copy_from_slice(self.range(from, bytes.len())?);
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for (host, layout) in self.mapped.drain(..) {
            // SAFETY: `mapped` allocated it with this layout, and nothing runs any more.
            unsafe { dealloc(host, layout) };
        }
    }
}
