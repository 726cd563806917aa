"""Whether NVIDIA's own compiler takes the kernels that `emulate.sh` has kept.

    pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl
    python crates/temper-kernels/tests/cuda/nvrtc.py target/cuda/kernels

A driver and a GPU are not needed. Exits with 1 if one is refused.
"""

import ctypes
import pathlib
import sys
import sysconfig

packages = pathlib.Path(sysconfig.get_paths()["purelib"]) / "nvidia"
[library] = packages.glob("cu*/lib/libnvrtc.so.*")
include = library.parents[1] / "include"
nvrtc = ctypes.CDLL(str(library))


def refusal(source: bytes, options: list[bytes]) -> str:
    """What the compiler says of a kernel, if it refuses it."""
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernel.cu", 0, None, None) == 0
    refused = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode() if refused else ""


kernels = sorted(pathlib.Path(sys.argv[1]).glob("*.cu"))
refused = 0
for path in kernels:
    source = path.read_bytes()
    first = source.split(b"\n", 1)[0].removeprefix(b"// options:")
    options = [option for option in first.split() if not option.startswith(b"--include-path")]
    if said := refusal(source, [*options, b"--include-path=" + str(include).encode()]):
        refused += 1
        print(f"{path}: {said}")
print(f"{len(kernels)} kernels, {refused} refused")
sys.exit(refused > 0 or not kernels)
