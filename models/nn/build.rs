//! With the feature `cuda`, compiles the network's CUDA kernels; see nvcc.rs.

mod nvcc;

fn main() {
    println!("cargo:rerun-if-changed=nvcc.rs");
    if let Err(why) = nvcc::compile(&["src/cuda/kernels"]) {
        println!("cargo::error={why}");
    }
}
