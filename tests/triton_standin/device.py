"""A device that is not there: Triton's own binder, driver and launcher, on top of a libcuda that only takes notes.

Of Triton, only the compiler is left out, which takes seconds for a kernel: a launch goes through the binder,
specialisation and the launcher, up to the arguments in the form in which a GPU's driver gets them. All of this is for a
process of its own, in which the stand-in for libcuda stays loaded; tensors are the CPU's.
"""

import ctypes
import json
import os
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler import CompiledKernel, make_backend
from triton.runtime.driver import driver

_SOURCE = Path(__file__).with_name("libcuda.cpp")
_FORMATS = {"fp32": "f", "i32": "i", "i64": "q"}  # of struct; a pointer is "Q"


@dataclass(frozen=True)
class Launched:
    """One launch as it reached the driver; `variant` tells the kernel's compiled variants apart."""

    kernel: str
    variant: str
    grid: tuple[int, int, int]
    threads: int


class StandInDevice:
    """Once made, every Triton launch of this process comes here; `launched` lists them in order."""

    def __init__(self, arch: int) -> None:
        self.launched: list[Launched] = []
        self._target = GPUTarget("cuda", arch, 32)
        self._folder = Path(tempfile.mkdtemp())
        self._libcuda = _load_libcuda(self._folder)
        triton.compiler.compile = self._compile
        driver.set_active(self._driver())

    def _driver(self) -> nvidia.CudaDriver:
        device = self

        class Launcher(nvidia.CudaLauncher):
            def __init__(self, src, metadata) -> None:
                super().__init__(src, metadata)
                self.src, self.variant = src, metadata.hash

            def __call__(self, *arguments) -> None:
                values = dict(zip(self.src.signature, arguments[-len(self.src.signature) :]))
                form, given = device._expect(self.src, values)
                super().__call__(*arguments)
                device._take(self.src.name, self.variant, form, given)

        class Driver(nvidia.CudaDriver):
            # CudaDriver's own constructor asks torch for its device, of which it has none.
            def __init__(self) -> None:
                self.utils = nvidia.CudaUtils()
                self.launcher_cls = Launcher
                self.get_current_device = lambda: 0
                self.get_current_stream = lambda _: 0

            def get_current_target(self) -> GPUTarget:
                return device._target

        return Driver()

    def _compile(self, src, target, options, **_) -> CompiledKernel:
        """In place of triton.compile: what the launcher asks of the code is made up.

        Where Triton made a constant of an argument of 1, the front end has a look, for no other test compiles that.
        """
        backend = make_backend(target)
        options = backend.parse_options(dict(options) | src.parse_options())
        if any(value == 1 and not src.fn.params[path[0]].is_constexpr for path, value in src.constants.items()):
            context = ir.context()
            ir.load_dialects(context)
            backend.load_dialects(context)
            src.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
        metadata = options.__dict__ | {"name": src.name, "target": target, "shared": 0, "tmem_size": 0}
        metadata |= {"global_scratch_size": 0, "global_scratch_align": 1}
        metadata |= {"profile_scratch_size": 0, "profile_scratch_align": 1}
        metadata["hash"] = repr((src.name, src.signature, src.constants, src.attrs, options.hash()))
        files = {name: self._folder / name for name in ("kernel.json", "kernel.cubin")}
        files["kernel.json"].write_text(json.dumps(metadata, default=vars))
        files["kernel.cubin"].write_bytes(b"")
        return CompiledKernel(src, {name: str(path) for name, path in files.items()}, metadata["hash"])

    def _expect(self, src, values: dict[str, Any]) -> tuple[str, list[Any]]:
        """Has libcuda note as many bytes of the next launch as its arguments have; their form, and what they are."""
        form, given = "=", []
        for index, (name, kind) in enumerate(src.signature.items()):
            if kind == "constexpr":
                continue
            pointer = kind.startswith("*")
            form += "Q" if pointer else _FORMATS[kind]
            given.append(values[name].data_ptr() if pointer else values[name])
            if ["tt.divisibility", 16] in src.attrs.get((index,), []) and given[-1] % 16 != 0:
                raise RuntimeError(f"{src.name}: what was compiled for multiples of 16 got {name} = {given[-1]}")
        sizes = [struct.calcsize("=" + letter) for letter in form[1:]]
        self._libcuda.standin_expect((ctypes.c_size_t * len(sizes))(*sizes), len(sizes))
        return form, given

    def _take(self, kernel: str, variant: str, form: str, given: list[Any]) -> None:
        """Adds the launch that libcuda noted, after a look at its arguments."""
        shape = (ctypes.c_uint * 7)()
        received = ctypes.create_string_buffer(struct.calcsize(form))
        if self._libcuda.standin_take(shape, received) != len(received):
            raise RuntimeError(f"{kernel}: nothing was launched")
        if received.raw != struct.pack(form, *given):
            raise RuntimeError(f"{kernel}: the driver got {struct.unpack(form, received.raw)} for {given}")
        self.launched.append(Launched(kernel, variant, tuple(shape[:3]), shape[3]))


def _load_libcuda(folder: Path) -> ctypes.CDLL:
    """Builds the stand-in, and makes it this process's libcuda.so.1."""
    library = folder / "libcuda.so.1"
    include = Path(nvidia.__file__).parent / "include"
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, f"-I{include}", "-o", library, _SOURCE], check=True)
    triton.knobs.nvidia.libcuda_path = str(folder)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
