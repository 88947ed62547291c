"""`make compat`: its oldest pair is what pyproject.toml and the build promise, and one pair that fails fails it all."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import compat

ROOT = Path(__file__).parent.parent


def test_the_oldest_pair_is_what_the_package_promises() -> None:
    promises, oldest = (ROOT / "pyproject.toml").read_text(), compat.PAIRS[0]
    for name, version in (("torch", oldest.torch), ("torchvision", oldest.torchvision)):
        assert {f"{found}.0" for found in re.findall(rf'"{name}>=([\d.]+)', promises)} == {version}
    assert f'requires-python = ">={oldest.python}"' in promises
    major, minor = (int(number) for number in oldest.torch.split(".")[:2])
    assert f'TORCH_TARGET_VERSION = "0x{major:02x}{minor:02x}' in (ROOT / "setup.py").read_text()


def test_the_pinned_torch_is_among_the_pairs_and_every_fast_test_exists() -> None:
    assert f"torch=={compat.PAIRS[-1].torch}\n" in (ROOT / "requirements.txt").read_text()
    for test in (*compat.FAST_TESTS, *compat.FAST_TRITON_TESTS, *compat.OF_NO_TORCH):
        file, _, function = test.partition("::")
        assert f"def {function}" in (ROOT / file).read_text(), test


def test_an_interpreter_has_the_version_asked_for() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert compat.interpreter(version) == sys.executable
    with pytest.raises(SystemExit, match=r"no Python 2\.0 on PATH"):
        compat.interpreter("2.0")


def test_a_copy_follows_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkout, copy = tmp_path / "checkout", tmp_path / "copy"
    (checkout / "csrc").mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", checkout], check=True)
    (checkout / ".gitignore").write_text("*.o\n")
    for name in ("setup.py", "csrc/a.cpp", "csrc/a.o"):
        (checkout / name).write_text(name)
    monkeypatch.setattr(compat, "ROOT", checkout)
    compat.copy_checkout(copy)
    assert (copy / "csrc/a.cpp").read_text() == "csrc/a.cpp"
    assert (copy / "csrc/a.cpp").stat().st_mtime == (checkout / "csrc/a.cpp").stat().st_mtime
    assert not (copy / "csrc/a.o").exists()

    (copy / "csrc/a.o").write_text("built in the copy")
    (checkout / "csrc/a.cpp").rename(checkout / "csrc/b.cpp")
    compat.copy_checkout(copy)
    assert sorted(path.name for path in (copy / "csrc").iterdir()) == ["a.o", "b.cpp"]


def test_an_environment_is_made_once_and_may_be_all_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[tuple] = []

    def run(*command: object) -> None:
        ran.append(command)
        (pair.folder / "venv").mkdir(parents=True, exist_ok=True)

    pair = compat.Pair("9.1.0", "0.9.1", f"{sys.version_info.major}.{sys.version_info.minor}")
    monkeypatch.setattr(compat, "FOLDER", tmp_path)
    monkeypatch.setattr(compat, "PAIRS", (pair,))
    monkeypatch.setattr(compat, "run", run)
    monkeypatch.setattr(compat, "check", None)
    monkeypatch.setattr(sys, "argv", ["compat", "--oldest", "--install"])
    for _ in range(2):
        assert compat.main() == 0
    assert [command[1:3] for command in ran] == [("-m", "venv"), ("-m", "pip")]
    assert {"torch==9.1.0", "torchvision==0.9.1"} < set(ran[1])


@pytest.mark.parametrize(("arguments", "expected"), [([], 1), (["--oldest"], 0)])
def test_one_failing_pair_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: int
) -> None:
    def check(pair: compat.Pair) -> None:
        if pair == compat.PAIRS[1]:
            raise subprocess.CalledProcessError(9, ["pytest"])

    monkeypatch.setattr(compat, "check", check)
    monkeypatch.setattr(sys, "argv", ["compat", *arguments])
    assert compat.main() == expected
    lines = capsys.readouterr().out.splitlines()
    verdicts = ["passes", "FAILS: Command '['pytest']' returned non-zero exit status 9.", "passes"]
    assert len(lines) == (1 if arguments else len(compat.PAIRS))
    for line, pair, verdict in zip(lines, compat.PAIRS, verdicts):
        assert line.startswith(f"torch {pair.torch}, Python {pair.python}: {verdict}")


def test_a_pair_and_make_try_each_others_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = []

    def run(python: object, *command: object) -> None:
        ran.append((str(python), [str(word).partition("=")[2] for word in command if "=" in str(word)]))
        (pair.folder / "wheels").mkdir(parents=True, exist_ok=True)
        (pair.folder / "wheels/a.whl").touch()

    monkeypatch.setattr(compat, "FOLDER", tmp_path)
    monkeypatch.setattr(compat, "run", run)
    pair = compat.Pair("9.1.0", "0.9.1", "3.10")
    compat.exchange_wheels(pair)
    newest, oldest = str(ROOT / ".venv/bin/python"), str(pair.folder / "venv/bin/python")
    wheels = str(pair.folder / "wheels")
    assert ran == [
        (newest, [str(pair.folder / "source/simclr_fast/_C.abi3.so"), wheels]),
        (newest, [f"{wheels}/a.whl"]),
        (newest, [str(ROOT / "simclr_fast/_C.abi3.so"), wheels]),
        (oldest, [f"{wheels}/a.whl"]),
    ]
