//! Why there is no device, or why it failed.

use ashlar_backend::BackendError;

/// The backend's name in messages.
pub const NAME: &str = "cuda";

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no NVIDIA driver.
    #[error(
        "no NVIDIA driver on this machine (libcuda was not found); install the driver, at least version {least}, or use --device cpu"
    )]
    NoDriver {
        /// The least driver that loads the kernels.
        least: &'static str,
    },
    /// The driver is older than the kernels.
    #[error(
        "the driver speaks CUDA {got}, the kernels need {needed}; install driver {least} or newer, or use --device cpu"
    )]
    TooOld {
        /// What the driver speaks.
        got: String,
        /// What is needed.
        needed: String,
        /// The least driver that loads the kernels.
        least: &'static str,
    },
    /// There is no device of that number.
    #[error("there {}; use --device cpu or another number", if *count == 1 { "is 1 device, cuda:0".to_owned() } else { format!("are {count} devices") })]
    NoDevice {
        /// Asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The device lacks instructions that the kernels use.
    #[error("{name}: compute capability {got}, the kernels need {needed} or more; use --device cpu")]
    Capability {
        /// Which device.
        index: usize,
        /// Its name.
        name: String,
        /// What it has.
        got: String,
        /// What is needed.
        needed: &'static str,
    },
    /// Not enough memory.
    #[error(
        "{needed} bytes of device memory are needed, {free} are free; close what uses the device, or use --device cpu"
    )]
    Memory {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A call of the driver, or of the host shim, failed.
    #[error("{what}: {why}")]
    Driver {
        /// What was tried.
        what: String,
        /// What the driver says.
        why: String,
    },
    /// The host shim cannot be built.
    #[error("{why}; it needs a C++17 compiler (`c++`, or what CXX names)")]
    Compiler {
        /// What the compiler says.
        why: String,
    },
}

impl From<Error> for BackendError {
    fn from(error: Error) -> Self {
        Self::Device { backend: NAME, what: error.to_string() }
    }
}
