"""Which backend is chosen, and what is said where none can serve."""

import pytest
import torch

from simclr_fast import _extension, backends
from simclr_fast.ops.l2_normalize import l2_normalize

CPU = torch.device("cpu")


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_extension, "missing_because", "No module named 'simclr_fast._C'")
    backends._resolve.cache_clear()
    yield
    backends._resolve.cache_clear()


def test_auto_takes_the_compiled_extension_on_cpu() -> None:
    assert backends.resolve_backend("auto", "l2_normalize", CPU) == "cpp"


def test_auto_falls_back_to_the_reference_and_says_so_once(no_extension: None) -> None:
    with pytest.warns(
        RuntimeWarning, match="runs as plain PyTorch on cpu .*No module named 'simclr_fast._C'"
    ) as record:
        assert backends.resolve_backend("auto", "l2_normalize", CPU) == "reference"
        assert backends.resolve_backend("auto", "l2_normalize", CPU) == "reference"
    assert len(record) == 1


def test_an_explicit_backend_never_falls_back(no_extension: None) -> None:
    with pytest.raises(RuntimeError, match="backend='cpp' cannot serve l2_normalize on cpu: .*No module named"):
        l2_normalize(torch.ones(2, 2), backend="cpp")
    with pytest.raises(RuntimeError, match="Triton kernels run on CUDA tensors, these are on cpu"):
        l2_normalize(torch.ones(2, 2), backend="triton")
    with pytest.raises(ValueError, match="backend='cuda' is unknown; choose one of 'auto', 'cpp'"):
        l2_normalize(torch.ones(2, 2), backend="cuda")


@pytest.mark.parametrize(
    ("capability", "archs", "runs"),
    [
        ((8, 0), "8.0;9.0", True),
        ((8, 9), "8.0;9.0", True),  # binaries run on later minor versions
        ((8, 0), "8.6", False),
        ((10, 0), "8.0;9.0", False),
        ((10, 3), "8.0;9.0+PTX", True),
        ((7, 5), "8.0+PTX", False),
    ],
)
def test_compiled_architectures(capability: tuple[int, int], archs: str, runs: bool) -> None:
    assert backends._compiled_for(capability, archs) is runs


def test_triton_serves_what_it_has_kernels_for() -> None:
    cuda = torch.device("cuda")
    assert backends.why_not("triton", "l2_normalize", cuda) is None
    assert backends.why_not("triton", "ntxent_fwd", cuda) is None
    assert backends.why_not("triton", "augment", cuda) == "augment has no Triton kernel"
