"""What processes tell each other, over gloo; signals as a request that the loop honours; how a program ends."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from simclr_fast import errors
from simclr_fast.process import StopSignals, exit_status, start_process, stop_process
from simclr_fast.run_files import write_results
from simclr_fast.visualize import save
from tests.forked import CONTEXT
from tests.training.processes import finish, free_port

WORLD = 3


def ask(rank: int, port: int, output: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    process = start_process("cpu", threads=1)
    answers = [process.any(rank == who) for who in range(WORLD)] + [process.any(False), process.any(True)]
    torch.save({"is main": process.is_main, "any": answers}, output / f"{rank}.pt")
    process.barrier()
    stop_process()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    output, port = tmp_path_factory.mktemp("answers"), free_port()
    processes = [CONTEXT.Process(target=ask, args=(rank, port, output), daemon=True) for rank in range(WORLD)]
    for process in processes:
        process.start()
    assert finish(processes) == [0] * WORLD
    return [torch.load(output / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_a_flag_of_one_process_reaches_all(answers: list[dict]) -> None:
    for answer in answers:
        assert answer["any"] == [True] * WORLD + [False, True]


def test_the_first_process_alone_is_the_main_one(answers: list[dict]) -> None:
    assert [answer["is main"] for answer in answers] == [True, False, False]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_acts(number: signal.Signals) -> None:
    acted: list[int] = []
    before = signal.signal(number, lambda received, _: acted.append(received))
    try:
        with StopSignals() as signals:
            assert signals.received is None
            os.kill(os.getpid(), number)
            assert (signals.received, acted) == (number, [])
            os.kill(os.getpid(), number)
            assert acted == [number]
        with StopSignals() as signals:
            assert signals.received is None
        os.kill(os.getpid(), number)
        assert acted == [number, number], "outside, signals act as before"
    finally:
        signal.signal(number, before)


OWN_ERRORS = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, Exception)]


@pytest.mark.parametrize("kind", OWN_ERRORS)
def test_an_error_that_its_user_can_mend_is_one_line_and_a_status(kind: type[Exception], capsys) -> None:
    def work() -> int:
        raise kind("what went wrong")

    assert exit_status("simclr-fast pretrain", work) == errors.EXIT_STATUS[kind]
    assert capsys.readouterr().err == "simclr-fast pretrain: error: what went wrong\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fails_is_one_clear_line_and_status_1(number: int, capsys) -> None:
    def work() -> int:
        raise OSError(number, os.strerror(number), "runs/x/checkpoint-000000001.pt")

    assert exit_status("simclr-fast pretrain", work) == 1
    said = f"simclr-fast pretrain: error: runs/x/checkpoint-000000001.pt: {os.strerror(number)}; make room, then go on"
    printed = capsys.readouterr().err
    assert printed.startswith(said)
    assert printed.count("\n") == 1


def test_a_full_disk_is_told_with_the_file_that_was_written(tmp_path: Path, monkeypatch, capsys) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # of a write, which knows no name

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(Figure, "savefig", full)
    results, picture = tmp_path / "knn.json", tmp_path / "curves.png"
    for path, work in ((results, lambda: write_results(results, {})), (picture, lambda: save(Figure(), picture))):
        assert exit_status("simclr-fast knn", work) == 1
        assert capsys.readouterr().err.startswith(f"simclr-fast knn: error: {path}: No space left on device; make room")
    assert exit_status("simclr-fast knn", full) == 1
    said = "error: No space left on device (of no file by name: perhaps where the program prints to); make room"
    assert said in capsys.readouterr().err


def test_an_error_of_the_program_is_no_error_of_the_disk() -> None:
    def work() -> int:
        raise FileNotFoundError(errno.ENOENT, "missing", "x")

    with pytest.raises(FileNotFoundError):
        exit_status("simclr-fast pretrain", work)
