"""A pytest plugin: writes down every test as it ends, with its errors and bounds, whatever ends the run afterwards.

    GPU_CHECK_TESTS=FILE python -m pytest -p tools.gpu.record_tests ...

One JSON object a line, some more than once: {"collected": [ids]}, {"not run": module, "reason": ...}, and for each test
{"test": id, "outcome": "passed" | "failed" | "skipped", "seconds": ..., "message": ..., "margins": {what: [error,
bound]}}. A package that is not installed makes no failure, whether a module or a test asks for it: those are not run,
and the reason names it. Under pytest-xdist a worker whose CUDA context is lost ends, so that one bad test does not fail
all after it.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.gpu import TESTS_FILE, share

OWN = ("simclr_fast", "tests", "proof", "benchmarks", "tools", "train")  # missing parts of the project are failures
MESSAGE_CHARACTERS = 2000
LOST_CONTEXT = 70  # exit status of a worker
ON_WORKER = "PYTEST_XDIST_WORKER" in os.environ


def absent_package(error: BaseException | None) -> str | None:
    """The package whose absence this exception, or what caused it, is about."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.split(".")[0]
            return None if package in OWN else package
        error = error.__cause__ or error.__context__
    return None


def _write(entry: dict) -> None:
    with Path(os.environ[TESTS_FILE]).open("a") as file:
        file.write(json.dumps(entry) + "\n")


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """A module that needs an absent package is skipped."""
    outcome = yield
    report = outcome.get_result()
    call = getattr(report, "call", None)
    if report.outcome == "failed" and call is not None and call.excinfo is not None:
        package = absent_package(call.excinfo.value)
        if package:
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 0, f"not run: needs {package}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What the test tells tests.helpers.within goes with its report."""
    from tests import helpers

    worst: dict[str, tuple[float, float]] = {}

    def note(what: str, error: float, bound: float) -> None:
        before = worst.get(what)
        if before is None or not share(error, bound) <= share(*before):
            worst[what] = (error, bound)

    helpers.on_margin = note
    yield
    helpers.on_margin = None
    item.user_properties.append(("margins", {what: list(pair) for what, pair in worst.items()}))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """A test that needs an absent package is skipped."""
    outcome = yield
    report = outcome.get_result()
    package = absent_package(call.excinfo.value) if report.failed and call.excinfo else None
    if package:
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"not run: needs {package}")


class Recorder:
    """Writes the file, in the process that sees all reports."""

    def __init__(self) -> None:
        self.running: dict[str, dict] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Without xdist."""
        if session.items:
            _write({"collected": [item.nodeid for item in session.items]})

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: list[str]) -> None:
        """With xdist, where every worker collects the same."""
        _write({"collected": list(ids)})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Modules that could not be imported."""
        if not report.passed:
            _write({"not run": report.nodeid, "failed": report.failed, "reason": _message(report)})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Setup, call and teardown of a test make one entry, written at its teardown."""
        entry = self.running.setdefault(
            report.nodeid, {"test": report.nodeid, "outcome": "passed", "seconds": 0.0, "margins": {}}
        )
        entry["seconds"] = round(entry["seconds"] + report.duration, 3)
        entry["margins"] |= dict(report.user_properties).get("margins", {})
        if report.failed or (report.skipped and entry["outcome"] == "passed"):
            entry |= {"outcome": report.outcome, "message": _message(report)}
        # A worker that died has no teardown; xdist reports its test as one failed report whose "when" is "???".
        if report.when not in ("setup", "call"):
            _write(self.running.pop(report.nodeid))


def _message(report: pytest.CollectReport | pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else report.longrepr)
    return text if len(text) <= MESSAGE_CHARACTERS else text[: MESSAGE_CHARACTERS // 2] + " ... " + text[-900:]


def pytest_configure(config: pytest.Config) -> None:
    """Only the process that the user started writes."""
    if not ON_WORKER:
        config.pluginmanager.register(Recorder(), "gpu_check_recorder")


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str, location: tuple) -> None:
    """After an illegal access every later call of the process fails: xdist puts a new worker in its place."""
    torch = sys.modules.get("torch")
    if not ON_WORKER or torch is None or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"gpu-check: the CUDA context is lost after {nodeid}: {error}", file=sys.stderr, flush=True)
        os._exit(LOST_CONTEXT)
