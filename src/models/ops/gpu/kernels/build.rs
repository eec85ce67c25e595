//! Compiles the kernels to PTX with NVIDIA's compiler.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Environment variables that may name the folder of a CUDA toolkit.
const ROOTS: [&str; 4] = [
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_ROOT",
    "CUDA_TOOLKIT_ROOT_DIR",
];
/// The compute capability that the PTX is made for, unless CUDA_COMPUTE_CAP asks for a lower one. PTX runs on every
/// later GPU.
const ARCHITECTURE: u32 = 80;

fn main() {
    println!("cargo::rerun-if-changed=.");
    for variable in ROOTS.into_iter().chain(["NVCC", "CUDA_COMPUTE_CAP"]) {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let chosen = env::var("CUDA_COMPUTE_CAP").ok();
    let chosen = chosen.and_then(|capability| capability.parse().ok());
    let architecture = chosen.unwrap_or(ARCHITECTURE).min(ARCHITECTURE);
    let output = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("kernels.ptx");
    let status = Command::new(compiler())
        .args(["--ptx", "-O3", "-std=c++17"])
        .arg(format!("--gpu-architecture=compute_{architecture}"))
        .arg("-o")
        .arg(&output)
        .arg("kernels.cu")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("nvcc failed: {status}"),
        Err(error) => panic!("cannot run nvcc of the CUDA toolkit: {error}"),
    }
}

fn compiler() -> PathBuf {
    if let Some(named) = env::var_os("NVCC") {
        return named.into();
    }
    let in_roots = ROOTS.into_iter().filter_map(env::var_os);
    let mut in_roots = in_roots.map(|root| Path::new(&root).join("bin/nvcc"));
    let found = in_roots.find(|path| path.is_file());
    found.unwrap_or_else(|| "nvcc".into())
}
