"""The CPU kernels with every instruction set that the processor has, each in a process of its own."""

import os
import subprocess
import sys

import pytest
import torch

from simclr_fast import SimCLRAugment
from simclr_fast._extension import build_info
from tests.helpers import INSTRUCTION_SETS
from tests.ops.augment.compare import TOLERANCE
from tests.ops.ntxent import test_accuracy, test_exp2, test_similarity

TEMPERATURES = (0.1, 0.01)


def check_augmentation() -> None:
    for shape, size in (((3, 61, 47), 33), ((1, 30, 200), 20), ((3, 20, 300), 40)):
        images = torch.randint(0, 256, (6, *shape), dtype=torch.uint8)
        options = {"mean": 0.0, "std": 1.0, "solarize_p": 0.3}
        cpp, reference = (SimCLRAugment(size, **options, backend=backend) for backend in ("cpp", "reference"))
        params = cpp.sample(images, seed=1)
        assert torch.equal(params.pack(), reference.sample(images, seed=1).pack())
        assert (cpp.apply(images, params) - reference.apply(images, params)).abs().max() <= TOLERANCE


def check_loss(dtype: torch.dtype, temperature: float) -> None:
    for shape in ((5, 3), (33, 123), (150, 70)):
        test_accuracy.check("cpp", "aligned", shape, dtype, temperature)


def check_similarity(dtype: torch.dtype, temperature: float) -> None:
    for shape, d in (((5, 3), 3), ((33, 150), 70)):
        for call in test_similarity.CALLS:
            for alone in {False, call == test_similarity.CALLS[1]}:
                test_similarity.check("random", shape, d, dtype, temperature, call, alone)


def check_all(isa: str) -> None:
    """In the process of an instruction set."""
    assert build_info()["cpu_isa"] == isa
    torch.manual_seed(0)
    check_augmentation()
    for dtype in (torch.float32, torch.float64):
        for temperature in TEMPERATURES:
            check_loss(dtype, temperature)
            check_similarity(dtype, temperature)
    test_exp2.check_float(test_exp2.probe())
    test_exp2.check_double(test_exp2.probe())


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_kernel_is_right(isa: str) -> None:
    program = f"from tests.ops.test_instruction_sets import check_all; check_all({isa!r})"
    environment = os.environ | {"SIMCLR_FAST_ISA": isa}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
