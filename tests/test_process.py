"""What processes tell each other, over gloo; signals as a request that the loop honours; how a program ends."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from simclr_fast import errors
from simclr_fast.errors import ConfigError
from simclr_fast.lock import LOCK_FILE, claim
from simclr_fast.process import (
    Process,
    StopSignals,
    autocast_dtype,
    compile_backend,
    exit_status,
    start_process,
    stop_process,
)
from simclr_fast.run_files import read_comparison, read_results, write_results
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


def test_the_device_is_the_one_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert start_process("auto") == start_process("cpu") == Process(0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match="^--device cuda: torch sees no CUDA device; pass --device cpu$"):
        start_process("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert start_process("auto").device == start_process("cuda").device == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert start_process("auto").device == torch.device("cuda", 1)
    assert chosen == [0, 0, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="^--nproc-per-node: this host has only 2 CUDA devices$"):
        start_process("auto")
    assert start_process("cpu").device == torch.device("cpu")


def test_threads_are_set_where_they_are_named() -> None:
    before = torch.get_num_threads()
    try:
        start_process("cpu", threads=before + 1)
        start_process("cpu")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_what_is_cast_to_and_compiled_by(has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bfloat16)
    assert autocast_dtype("auto", cuda) == (torch.bfloat16 if has_bfloat16 else None)
    assert [autocast_dtype(name, cpu) for name in ("auto", "float32", "bfloat16", "float16")] == [
        *(None, None, torch.bfloat16, torch.float16)
    ]
    assert [autocast_dtype(name, cuda) for name in ("float32", "float16")] == [None, torch.float16]
    if has_bfloat16:
        assert autocast_dtype("bfloat16", cuda) == torch.bfloat16
    else:
        with pytest.raises(ConfigError, match="^--amp-dtype bfloat16: this GPU has none; pass float16$"):
            autocast_dtype("bfloat16", cuda)
    assert [compile_backend(name, cpu) for name in ("auto", "off", "aot_eager")] == [None, None, "aot_eager"]
    assert [compile_backend(name, cuda) for name in ("auto", "off", "inductor")] == ["inductor", None, "inductor"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{", r"damaged \(Expecting"), (b'"\xff"', r"damaged \(.*can't decode"), (b"[]", r"damaged \(no JSON object\)")],
)
def test_results_that_are_damaged_are_told(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert read_results(path) is None
    assert read_comparison(tmp_path) is None
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{path}: {said}.*; delete it, or run again what writes it$"):
        read_results(path)
    write_results(path, {"knn": 1})
    assert read_results(path) == {"knn": 1}
    assert read_comparison(tmp_path) is None, "of another kind"
    write_results(path, {"labels_per_class": 10})
    assert read_comparison(tmp_path) == {"labels_per_class": 10}


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


STATUSES = {"ConfigError": 2, "CheckpointError": 2, "DataError": 1, "NonFiniteLossError": 1}
OWN_ERRORS = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, Exception)]


@pytest.mark.parametrize("kind", OWN_ERRORS)
def test_an_error_that_its_user_can_mend_is_one_line_and_a_status(kind: type[Exception], capsys) -> None:
    def work() -> int:
        raise kind("what went wrong")

    assert exit_status("simclr-fast pretrain", work) == STATUSES[kind.__name__]
    assert capsys.readouterr().err == "simclr-fast pretrain: error: what went wrong\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
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
    monkeypatch.setattr(os, "pwrite", full)
    results, picture, locked = (tmp_path / name for name in ("knn.json", "curves.png", LOCK_FILE))
    for path, work in (
        (results, lambda: write_results(results, {})),
        (picture, lambda: save(Figure(), picture)),
        (locked, lambda: claim(tmp_path, "others write")),
    ):
        assert exit_status("simclr-fast knn", work) == 1
        assert capsys.readouterr().err.startswith(f"simclr-fast knn: error: {path}: No space left on device; make room")
    assert exit_status("simclr-fast knn", full) == 1
    said = "error: No space left on device (of no file by name: perhaps where the program prints to); make room"
    assert said in capsys.readouterr().err


def test_errors_that_have_a_file_keep_it_and_those_without_words_have_their_type() -> None:
    for given, named in (
        (OSError(errno.EIO, "broken", "a"), "a"),
        (OSError(errno.EIO, "broken"), "b"),
        (OSError("no number, as of a library's own"), None),
    ):
        with pytest.raises(OSError, match="broken|no number") as caught, errors.naming(Path("b")):
            raise given
        assert caught.value.filename == named
    assert errors.first_line(ValueError("  one\ntwo")) == "one"
    assert errors.first_line(KeyError()) == "KeyError"
    assert errors.in_utf8("é\udcff.png") == "é\\xff.png"


def test_an_error_of_the_program_is_no_error_of_the_disk() -> None:
    def work() -> int:
        raise FileNotFoundError(errno.ENOENT, "missing", "x")

    with pytest.raises(FileNotFoundError):
        exit_status("simclr-fast pretrain", work)
