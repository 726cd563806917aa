//! NVIDIA's GPUs. All of CUDA is opened at run time: what a kernel will need is looked for before the first one.

use std::path::Path;

use cubecl_cuda::install::cuda_path;
use cudarc::driver::result;

use crate::{Api, DeviceName, Error, Found};

/// The driver's devices, if kernels can be compiled for them too.
pub(crate) fn list() -> Result<Vec<Found>, Error> {
    let missing = missing();
    if !missing.is_empty() {
        return Err(Error::Missing { api: Api::Cuda, what: missing.join("; ") });
    }
    let refused = |error: result::DriverError| Error::Missing {
        api: Api::Cuda,
        what: format!("NVIDIA's driver answers {error:?}; is its kernel module loaded?"),
    };
    result::init().map_err(refused)?;
    let count = result::device::get_count().map_err(refused)?;
    if count == 0 {
        return Err(Error::Missing { api: Api::Cuda, what: "NVIDIA's driver sees no GPU".into() });
    }
    let found = |index: i32| -> Result<Found, result::DriverError> {
        let device = result::device::get(index)?;
        // SAFETY: the driver handed out the device just now.
        let memory = unsafe { result::device::total_mem(device) }?;
        Ok(Found {
            name: DeviceName::Gpu(Api::Cuda, index as usize),
            memory: Some(memory as u64),
            passed: Vec::new(),
            kind: None,
        })
    };
    (0..count).map(|index| found(index).map_err(refused)).collect()
}

/// Each library and header that is not there, with the package that has it.
fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    // SAFETY: these two try to open the library under its names, as the first kernel will, and close it again.
    let [driver, compiler] =
        unsafe { [cudarc::driver::sys::is_culib_present(), cudarc::nvrtc::sys::is_culib_present()] };
    if !driver {
        let library = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
        missing.push(format!(
            "{library} is missing: install NVIDIA's driver (Debian: `libcuda1`, Ubuntu: `libnvidia-compute-…`)"
        ));
    }
    if !compiler {
        let library = if cfg!(windows) { "nvrtc64_….dll" } else { "libnvrtc.so" };
        missing.push(format!(
            "{library}, the compiler of kernels, is missing: install `cuda-nvrtc-…` of NVIDIA's repository, or the CUDA \
             toolkit"
        ));
    }
    missing.extend(headers(cuda_path().as_deref()));
    missing
}

/// What is wrong with the toolkit's headers in `toolkit`, which is where kernels will look for them.
fn headers(toolkit: Option<&Path>) -> Option<String> {
    const HEADERS: [&str; 3] = ["cuda_fp16.h", "cuda_bf16.h", "mma.h"];
    let install = "install `cuda-toolkit-…` of NVIDIA's repository, or set CUDA_PATH to where a toolkit lies";
    let Some(toolkit) = toolkit else { return Some(format!("the headers of CUDA are missing: {install}")) };
    let include = toolkit.join("include");
    let lost = HEADERS.into_iter().find(|name| !include.join(name).is_file())?;
    Some(format!("{} is missing: {install}", include.join(lost).display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_header_is_named_with_its_place() {
        assert!(headers(None).unwrap().contains("CUDA_PATH"));
        let dir = std::env::temp_dir().join(format!("temper-headers-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("include")).unwrap();
        for name in ["cuda_fp16.h", "cuda_bf16.h", "mma.h"] {
            assert!(headers(Some(&dir)).unwrap().contains(&dir.join("include").join(name).display().to_string()));
            std::fs::write(dir.join("include").join(name), "").unwrap();
        }
        assert_eq!(headers(Some(&dir)), None);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
