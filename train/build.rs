//! With the feature `cuda`: training's kernels, see nvcc.rs; they include the network's common part.

#[path = "../models/nn/nvcc.rs"]
mod nvcc;

fn main() {
    println!("cargo:rerun-if-changed=../models/nn/nvcc.rs");
    if let Err(why) = nvcc::compile(&["src/cuda/kernels", "../models/nn/src/cuda/kernels"]) {
        println!("cargo::error={why}");
    }
}
