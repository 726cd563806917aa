#!/usr/bin/env bash
# Runs a command on a machine whose processor is NVIDIA's GPU (`machine.cpp`), on Linux, with a C++ compiler:
#
#     cargo build --release --features cuda
#     bash crates/temper-kernels/tests/cuda/emulate.sh target/release/temper devices
#     TEMPER_TEST_DEVICE=cuda bash crates/temper-kernels/tests/cuda/emulate.sh \
#         cargo test --release --workspace --features temper/cuda,temper/flash --lib --test parity --test products
#
# It proves what kernels and the calls around them compute, not that a GPU takes them or how fast. Each kernel is compiled once, in
# about half a second, and kept under target/cuda; `nvrtc.py` asks NVIDIA's own compiler about them.
set -euo pipefail
here=$(realpath "$(dirname "$0")")
home=$(realpath -m "${CARGO_TARGET_DIR:-$here/../../../../target}")/cuda
mkdir -p "$home"/{include,kernels,lib64}
# What they declare is in language.h, which comes first.
for header in cuda_fp16.h cuda_bf16.h mma.h; do : > "$home/include/$header"; done
library=$home/lib64/libcuda.so.1
if [ ! -e "$library" ] || [ -n "$(find "$here" -name '*.[ch]*' -newer "$library")" ]; then
    rm -f "$home"/kernels/*
    cp "$here"/{language,instructions}.h "$home/include/"
    "${CXX:-c++}" -std=c++20 -O3 -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$library.new" "$here/machine.cpp" -ldl -lrt
    mv "$library.new" "$library"
    # Read once: a kernel compiles in half the time.
    "${CXX:-c++}" -std=c++20 -O2 -w -fPIC -x c++-header "$home/include/language.h"
fi
for name in libcuda.so libnvrtc.so libcublasLt.so libnccl.so.2; do ln -sf libcuda.so.1 "$home/lib64/$name"; done
export EMULATED_CUDA=$home CUDA_PATH=$home LD_LIBRARY_PATH=$home/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$@"
