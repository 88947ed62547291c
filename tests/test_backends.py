"""Which backend is chosen, and what is said where none can serve."""

import functools
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from simclr_fast import SimCLRAugment, _extension, backends, losses, ntxent_loss
from simclr_fast.ops.ntxent import limits
from tests.helpers import relative_error

GPU_CHECK = Path(__file__).parents[1] / "docs/tables/gpu_check.json"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_extension, "missing_because", "No module named 'simclr_fast._C'")
    backends.forget_choices()
    yield
    backends.forget_choices()


def test_auto_takes_the_compiled_extension_on_cpu() -> None:
    assert backends.resolve_backend("auto", "augment", CPU) == "cpp"


def test_auto_falls_back_to_the_reference_and_says_so_once(no_extension: None) -> None:
    with pytest.warns(
        RuntimeWarning, match="runs as plain PyTorch on cpu .*No module named 'simclr_fast._C'"
    ) as record:
        assert backends.resolve_backend("auto", "augment", CPU) == "reference"
        assert backends.resolve_backend("auto", "augment", CPU) == "reference"
    assert len(record) == 1


@pytest.mark.parametrize(
    ("called", "call"),
    [
        ("SimCLRAugment", lambda: SimCLRAugment(8)(torch.zeros(2, 3, 9, 9))),  # of two ops
        ("ntxent_loss", lambda: ntxent_loss(torch.ones(4, 3), torch.ones(4, 3))),
    ],
)
def test_a_call_warns_once_and_by_the_name_it_is_called_by(no_extension: None, called: str, call: Callable) -> None:
    with pytest.warns(RuntimeWarning) as record:
        call()
        call()
    assert [str(warning.message).split(" on cpu ")[0] for warning in record] == [f"{called} runs as plain PyTorch"]
    assert not re.search(r"ntxent_fwd|augment_sample|simclr_fast\.\w+ runs", str(record[0].message))


def test_an_explicit_backend_never_falls_back(no_extension: None) -> None:
    z = torch.ones(2, 2, 2)
    with pytest.raises(RuntimeError, match="backend='cpp' cannot serve ntxent_loss on cpu: .*No module named"):
        ntxent_loss(*z, backend="cpp")
    with pytest.raises(RuntimeError, match="Triton kernels run on CUDA tensors, these are on cpu"):
        ntxent_loss(*z, backend="triton")
    with pytest.raises(ValueError, match="backend='cuda' is unknown; choose one of 'auto', 'cpp'"):
        ntxent_loss(*z, backend="cuda")


@pytest.mark.parametrize(
    ("capability", "archs", "runs"),
    [
        ((8, 0), "8.0;9.0", True),
        ((8, 9), "8.0;9.0", True),  # binaries run on later minor versions
        ((8, 0), "8.6", False),
        ((10, 0), "8.0;9.0", False),
        ((10, 3), "8.0;9.0+PTX", True),
        ((7, 5), "8.0+PTX", False),
        ((9, 0), "8.0;9.0a", True),
        ((10, 0), "8.0;9.0a", False),
        ((9, 1), "9.0a", False),  # an architecture with a letter is that of one version
        ((10, 0), "9.0a+PTX", True),
        ((8, 9), "9.0a+PTX", False),
        ((10, 3), "10.0a", False),
        ((10, 3), "9.0a;10.0+PTX", True),
        ((12, 1), "12.0", True),
    ],
)
def test_compiled_architectures(capability: tuple[int, int], archs: str, runs: bool) -> None:
    assert backends._compiled_for(capability, archs) is runs


@pytest.mark.parametrize("archs", ["Hopper", "8.0 9.0", ""])
def test_unreadable_architectures_are_named(archs: str) -> None:
    with pytest.raises(RuntimeError, match=f"built for '{archs}', which is unreadable; rebuild it"):
        backends._compiled_for((9, 0), archs)


def test_triton_serves_what_it_has_kernels_for() -> None:
    assert backends.why_not("triton", "augment", CUDA, torch.float64) is None
    for op in ("ntxent_fwd", "augment", "augment_sample"):
        assert backends.why_not("triton", op, CUDA) is None


def test_auto_takes_triton_on_cuda_where_the_extension_is_missing(no_extension: None) -> None:
    for op in ("augment", "augment_sample"):
        assert backends.resolve_backend("auto", op, CUDA) == "triton"


def test_why_a_backend_cannot_serve(device_of, monkeypatch: pytest.MonkeyPatch) -> None:
    why = lambda backend, device=CUDA, dtype=torch.float16: backends.why_not(backend, "ntxent_fwd", device, dtype)
    device_of(8, 0)
    assert [why(backend) for backend in backends.BACKENDS] == [None] * 3
    device_of(7, 5)
    assert why("triton") == "the Triton kernels of ntxent_loss need compute capability 8.0, this device has less"
    assert why("cpp") == "the compiled extension was built for 8.0;9.0;10.0+PTX, this device is 7.5"
    assert why("cpp", CPU) is None
    monkeypatch.setattr(backends, "_has_kernel", lambda op, key: False)
    for device, built in (("cuda", "without CUDA kernels"), ("cpu", "for cpu and cuda"), ("xpu", "for cpu and cuda")):
        expected = f"the compiled extension has no ntxent_loss kernel for {device} (it was built {built})"
        assert why("cpp", torch.device(device)) == expected
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    assert why("triton") == "triton is not installed; pip install triton"
    assert why("triton", CPU) == "Triton kernels run on CUDA tensors, these are on cpu"


def test_an_op_without_a_triton_kernel_is_named() -> None:
    library = torch.library.Library("simclr_fast", "FRAGMENT")
    library.define("schema_only_triton(Tensor x) -> Tensor")
    assert backends.why_not("triton", "schema_only", CUDA) == "schema_only has no Triton kernel"


def test_float64_on_cuda_without_the_extension_is_served_by_the_reference(
    no_extension: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice is made as for CUDA tensors; what it chose then runs here."""
    on_cuda = lambda backend, op, device, dtype, *_: backends.resolve_backend(backend, op, CUDA, dtype)
    monkeypatch.setattr("simclr_fast.losses.ntxent.resolve_backend", on_cuda)
    z0, z1 = torch.randn(2, 6, 4, dtype=torch.float64)
    with pytest.warns(
        RuntimeWarning, match="triton: the Triton kernels of ntxent_loss take no torch.float64"
    ) as record:
        for _ in range(2):
            loss = losses.ntxent_loss(z0, z1, 0.2)
    assert len(record) == 1
    assert relative_error(loss, losses.ntxent_loss(z0, z1, 0.2, backend="reference")) == 0
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot serve .* take no torch.float64; or choose"):
        losses.ntxent_loss(z0, z1, 0.2, backend="triton")
    assert on_cuda("auto", "ntxent_fwd", None, torch.float32) == "triton"


@pytest.fixture
def device_of(monkeypatch: pytest.MonkeyPatch):
    """Makes the machine have a GPU of a compute capability, as far as the choice of a backend sees it."""

    def set_capability(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(_extension, "build_info", lambda: {"cuda_archs": "8.0;9.0;10.0+PTX"})
        monkeypatch.setattr(_extension, "missing_because", None)
        monkeypatch.setattr(backends, "_has_kernel", lambda op, key: True)
        forget()

    def forget() -> None:
        backends.forget_choices()
        limits._asked_major.cache_clear()

    yield set_capability
    forget()


@pytest.mark.parametrize(("capability", "large"), [((8, 0), "cpp"), ((9, 0), "triton"), ((10, 0), "cpp")])
def test_auto_takes_triton_where_it_is_faster(capability: tuple[int, int], large: str, device_of) -> None:
    device_of(*capability)
    assert backends.resolve_backend("auto", "ntxent_fwd", CUDA, torch.float16, large=True) == large
    assert backends.resolve_backend("auto", "ntxent_fwd", CUDA, torch.float16) == "cpp"
    assert backends.resolve_backend("auto", "augment", CUDA, large=True) == "cpp"
    assert backends.resolve_backend("auto", "similarity_fwd", CUDA, torch.float16, large=True) == "cpp"
    assert backends.resolve_backend("cpp", "ntxent_fwd", CUDA, torch.float16, large=True) == "cpp"
    assert backends.resolve_backend("auto", "ntxent_fwd", CUDA, torch.float64, large=True) == "cpp"


@pytest.mark.parametrize(
    ("n", "d", "dtype", "precision", "large"),
    [
        (4096, 128, torch.float16, "ieee", True),
        (4095, 128, torch.float16, "ieee", False),
        (2048, 512, torch.bfloat16, "ieee", True),
        (4096, 128, torch.float32, "tf32", True),
        (8192, 128, torch.float32, "ieee", False),
        (8192, 128, torch.float64, "ieee", False),
    ],
)
def test_which_views_are_large(
    n: int, d: int, dtype: torch.dtype, precision: str, large: bool, device_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeTensorMode():
        z = torch.empty(n, d, dtype=dtype, device="cuda")
    device_of(8, 0)
    assert not limits.is_large(z, precision, None)
    device_of(9, 0)
    assert limits.is_large(z, precision, None) is large
    assert limits.is_large(z, precision, None, (4 * n, n)) is large  # as many pairs of rows and columns
    assert not limits.is_large(z, precision, None, (n, n))
    monkeypatch.setattr(limits.distributed, "rank_and_size", lambda group: (0, 4))
    assert limits.is_large(z, precision, None, (n, n)) is large  # of four processes, whose columns are each one's
    assert not limits.is_large(torch.empty(n, d, dtype=dtype, device="meta"), precision, None)


@pytest.mark.parametrize("choice", limits.CHOICES, ids=lambda choice: f"{choice.operands} from {choice.least}")
def test_choices_agree_with_what_was_measured(choice: limits.Choice) -> None:
    """Every choice has a source, and the figure that it names is the better one in every measured case of its size."""
    assert choice.source.startswith(("measured: ", "modelled: "))
    assert "H200" in choice.source or choice.source.startswith("modelled: ")
    cases = json.loads(GPU_CHECK.read_text())["bench"]["ntxent"].values()
    compared = 0
    for case in cases:
        operands = "half" if case["kind"] in ("fp16", "bf16") else case["kind"]
        multiply_adds = (2 * case["n"]) ** 2 * case["d"]
        if limits.choice_for(9, operands, multiply_adds) is not choice or "triton" not in case["contestants"]:
            continue
        other = {"cpp": "triton", "triton": "cpp"}[choice.backend]
        ours, theirs = (case["contestants"][backend].get(choice.better_by) for backend in (choice.backend, other))
        if ours is not None:  # calls of more than 5 ms have no host time
            assert ours < theirs, case
            compared += 1
    assert compared >= 2


def test_choices_of_one_device_and_operand_are_apart() -> None:
    of_sizes = [(choice.major, choice.operands, choice.least) for choice in limits.CHOICES]
    assert len(set(of_sizes)) == len(of_sizes)
    assert limits.choice_for(9, "half", 2**33 - 1).backend == "cpp"
    assert limits.choice_for(9, "half", 2**33).backend == "triton"
    assert limits.choice_for(8, "half", 2**40) is None


def test_a_choice_holds_up_to_the_next_one(device_of, monkeypatch: pytest.MonkeyPatch) -> None:
    last = limits.Choice(9, "half", 2**36, "cpp", "both ms", "modelled: a table that this test made")
    monkeypatch.setattr(limits, "CHOICES", (last, *limits.CHOICES))
    device_of(9, 0)
    with FakeTensorMode():
        sizes = {n: torch.empty(n, 128, dtype=torch.float16, device="cuda") for n in (4095, 4096, 11585, 11586)}
    assert [limits.is_large(z, "ieee", None) for z in sizes.values()] == [False, True, True, False]


def test_a_graph_has_the_choice_as_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for each side of a choice's size, whatever the sizes, and no word from torch.compile."""
    monkeypatch.setattr(limits, "_asked_major", functools.cache(lambda device: 9))
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    def asked_first(x: torch.Tensor) -> torch.Tensor:
        choice = limits.choice_for(limits._major_of(CUDA), "half", (2 * x.shape[0]) ** 2 * x.shape[1])
        return x + {"cpp": 1, "triton": 2}[choice.backend]

    compiled = torch.compile(asked_first, backend=count, fullgraph=True, dynamic=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [compiled(torch.zeros(n, 128))[0, 0].item() for n in (3, 4, 4095, 4096, 5000)]
    assert found == [1, 1, 1, 2, 2]
    assert len(graphs) == 2


def test_devices_too_old_for_the_triton_loss_get_the_reference(
    no_extension: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.warns(RuntimeWarning, match="need compute capability 8.0"):
        assert backends.resolve_backend("auto", "ntxent_fwd", CUDA, torch.float32) == "reference"
