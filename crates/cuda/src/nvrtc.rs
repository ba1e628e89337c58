//! NVRTC, for `cargo xtask kernels`: CUDA C++ to PTX without a GPU, a driver or a toolkit.

use crate::Error;
use crate::modules::{FILES, Module};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

type Program = *mut c_void;

/// A loaded NVRTC.
pub struct Nvrtc(libloading::Library);

fn failed(what: &str, why: impl Into<String>) -> Error {
    Error::Driver { what: format!("nvrtc: {what}"), why: why.into() }
}

impl Nvrtc {
    /// Loads the library at that path.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn open(library: &Path) -> Result<Self, Error> {
        // SAFETY: NVIDIA's library; it has no initialisers that depend on our state.
        let loaded = unsafe { libloading::Library::new(library) };
        loaded.map(Self).map_err(|e| failed("load", format!("{}: {e}", library.display())))
    }

    /// The PTX of a module for an architecture such as `compute_80`.
    ///
    /// # Errors
    /// [`Error::Driver`] with the compiler's messages.
    pub fn compile(&self, module: &Module, architecture: &str) -> Result<String, Error> {
        let text = |name: &str| FILES.iter().find(|f| f.path == name).map(|f| f.text).unwrap_or_default();
        let c = |s: &str| CString::new(s).map_err(|e| failed("source", e.to_string()));
        let headers = || FILES.iter().filter(|f| f.path.ends_with(".cuh"));
        let names = headers().map(|f| c(f.path)).collect::<Result<Vec<_>, _>>()?;
        let texts = headers().map(|f| c(f.text)).collect::<Result<Vec<_>, _>>()?;
        let mut options = vec![c(&format!("--gpu-architecture={architecture}"))?, c("--std=c++17")?];
        for definition in module.definitions() {
            options.push(c(&format!("-D{definition}"))?);
        }
        let program = self.create(&c(text(module.source))?, &c(module.source)?, &texts, &names)?;
        let compiled = self.build(program, &options);
        let ptx = compiled.and_then(|()| self.text(program, c"nvrtcGetPTXSize", c"nvrtcGetPTX"));
        let destroyed = self.destroy(program);
        ptx.and_then(|ptx| destroyed.map(|()| ptx)).map_err(|e| match e {
            Error::Driver { what, why } => Error::Driver { what: format!("{what} of {}", module.name), why },
            other => other,
        })
    }

    fn create(&self, source: &CStr, name: &CStr, texts: &[CString], names: &[CString]) -> Result<Program, Error> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        let pointers = |all: &[CString]| all.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (texts, names) = (pointers(texts), pointers(names));
        let mut program: Program = std::ptr::null_mut();
        let create = self.function::<Create>(c"nvrtcCreateProgram")?;
        // SAFETY: all strings end with a NUL and outlive the call, which copies them; both lists have `len` entries.
        let code = unsafe {
            create(
                &raw mut program,
                source.as_ptr(),
                name.as_ptr(),
                texts.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        if code == 0 { Ok(program) } else { Err(failed("create", format!("error {code}"))) }
    }

    fn build(&self, program: Program, options: &[CString]) -> Result<(), Error> {
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        let pointers: Vec<_> = options.iter().map(|s| s.as_ptr()).collect();
        let compile = self.function::<Compile>(c"nvrtcCompileProgram")?;
        // SAFETY: the program was created and not destroyed; the options outlive the call.
        let code = unsafe { compile(program, pointers.len() as c_int, pointers.as_ptr()) };
        if code == 0 {
            return Ok(());
        }
        let log = self.text(program, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")?;
        Err(failed("compilation", log.lines().take(30).collect::<Vec<_>>().join("\n")))
    }

    /// A text that the library gives out by a pair of functions.
    fn text(&self, program: Program, size: &CStr, get: &CStr) -> Result<String, Error> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        let mut bytes = 0usize;
        let size_of = self.function::<Size>(size)?;
        // SAFETY: the program was created and not destroyed.
        let code = unsafe { size_of(program, &raw mut bytes) };
        if code != 0 {
            return Err(failed(&size.to_string_lossy(), format!("error {code}")));
        }
        let mut text = vec![0u8; bytes.max(1)];
        let fill = self.function::<Get>(get)?;
        // SAFETY: as above; the buffer has as many bytes as the library asked for.
        let code = unsafe { fill(program, text.as_mut_ptr().cast()) };
        if code != 0 {
            return Err(failed(&get.to_string_lossy(), format!("error {code}")));
        }
        text.retain(|b| *b != 0);
        String::from_utf8(text).map_err(|e| failed("text", e.to_string()))
    }

    fn destroy(&self, mut program: Program) -> Result<(), Error> {
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        let destroy = self.function::<Destroy>(c"nvrtcDestroyProgram")?;
        // SAFETY: the program was created, and nobody uses it any more.
        match unsafe { destroy(&raw mut program) } {
            0 => Ok(()),
            code => Err(failed("destroy", format!("error {code}"))),
        }
    }

    fn function<F: Copy>(&self, name: &CStr) -> Result<F, Error> {
        // SAFETY: callers name the function that has the type in NVIDIA's documentation.
        let symbol = unsafe { self.0.get::<F>(name.to_bytes_with_nul()) };
        symbol.map(|s| *s).map_err(|e| failed(&name.to_string_lossy(), e.to_string()))
    }
}
