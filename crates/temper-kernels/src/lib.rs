//! Which operations have a backward pass of their own? Each file is one kernel: its public function, the backend extension
//! behind it with a portable body of plain tensor operations, its backward pass, its CPU lane, its tests.
//!
//! burn's autodiff would keep every intermediate result of such an operation and walk over memory once for each of them; a
//! kernel keeps its inputs and walks once. On the CPU the lanes use all threads of rayon's pool and the widest vectors that
//! the processor has; on GPUs a lane is one kernel of CubeCL, compiled for whichever device it is.
//!
//! Legend of all shapes: B batch, S sequence, T = B·S tokens, D model, N heads, K key/value heads, H head dim, V vocabulary.

mod activation;
mod adamw;
mod attention;
mod checkpoint;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cuda")]
mod cuda;
mod dropout;
mod exponential;
mod feed_forward;
#[cfg(not(feature = "cuda"))]
mod no_cuda;
mod norm;
mod portable;
mod product;
mod quantized;
mod rotation;
mod scratch;
mod squares;
mod sum;
#[cfg(test)]
mod testing;

pub use activation::Activation;
pub use adamw::{AdamW, adamw, finish_updates};
pub use attention::{Sight, attention};
pub use checkpoint::{Activations, Checkpoints};
#[cfg(feature = "cuda")]
pub use cuda::{Nccl, has_cublaslt};
pub use dropout::{Drop, dropout};
pub use exponential::row_exponential;
pub use feed_forward::feed_forward;
#[cfg(not(feature = "cuda"))]
pub use no_cuda::{Nccl, has_cublaslt};
pub use norm::{layer_norm, rms_norm};
pub use product::{
    LinearMap, Precision, Reader, Weight, add_rows, has_bf16_products, in_f32, linear, lora_product, matmul, rounded,
    set_precision,
};
pub use quantized::{Format, Quantized};
pub use rotation::rotate;
pub use scratch::{DEFAULT_SCRATCH, scratch, set_scratch};
pub use squares::squares;
pub use sum::residual;
