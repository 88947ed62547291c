"""The options of the suites: how large, and on which device."""

import pytest
import torch

from benchmarks.environment import environment

SCALES = ("smoke", "quick", "full")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("simclr_fast benchmarks")
    group.addoption("--scale", choices=SCALES, default="quick", help="smoke: seconds, quick: minutes, full: hours")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    group.addoption("--bench-threads", type=int, default=2, help="torch CPU threads")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `case` runs once for each case of its module's CASES[scale]; so for `memory_case`."""
    for argument in {"case", "memory_case"} & set(metafunc.fixturenames):
        cases = getattr(metafunc.module, f"{argument}s".upper())[metafunc.config.option.scale]
        metafunc.parametrize(argument, cases, ids=str)


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> str:
    return request.config.option.scale


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    torch.set_num_threads(request.config.option.bench_threads)
    return torch.device(request.config.option.device)


@pytest.fixture
def budget(scale: str) -> float:
    """Seconds of measuring for one case."""
    return {"smoke": 0.05, "quick": 6.0, "full": 20.0}[scale]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    option = config.option
    machine_info["simclr_fast"] = environment(option.device, option.bench_threads, option.scale)
