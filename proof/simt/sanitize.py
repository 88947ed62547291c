"""Runs Python under AddressSanitizer + UBSan or ThreadSanitizer, for kernels built in that flavour."""

import os
import subprocess
import sys

from proof.simt.build import CXX, ROOT

_LIBRARIES = {"asan": ("libasan.so", "libubsan.so"), "tsan": ("libtsan.so",)}


def run_python(flavour: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python *arguments` with the sanitizer's libraries loaded first and SIMT_FLAVOUR set.

    The process ends with a nonzero code, and the report on stderr, at the first thing the sanitizer finds. torch keeps
    to one thread: it is not instrumented, and its own locks would look like races.
    """
    found = [
        subprocess.run([CXX, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in _LIBRARIES[flavour]
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(found),
        "SIMT_FLAVOUR": flavour,
        "OMP_NUM_THREADS": "1",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself never frees all
        "TSAN_OPTIONS": "halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
