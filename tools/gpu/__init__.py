"""What `tools/gpu_check.py` is made of.

Run by the check itself, with nothing but the standard library: scratch (copy and build), jobs (processes side by side,
each with a limit), plan (which, in what order), results and page (what is written). Run by its processes, in the
scratch copy: machine, record_tests (a pytest plugin), sanitized, bench (with bench_* and device), tune.
"""

OURS = ("cpp", "triton")  # the backends of a device
TESTS_FILE = "GPU_CHECK_TESTS"  # the environment variable that names the file of record_tests


def share(error: float, bound: float) -> float:
    """How much of its bound an error takes."""
    return error / bound if bound > 0 else float("inf") if error > 0 else 0.0
