"""The command `simclr-fast` by itself: what it lists, what it loads, what it says to a name that it does not know."""

import collections
import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

import simclr_fast
from simclr_fast import cli
from simclr_fast.cli import COMMANDS, imported, main
from simclr_fast.named_options import types_of
from simclr_fast.recipes import RECIPES

HEAVY = ("torch", "torchvision", "sklearn", "numpy", "matplotlib", "tensorboard", "tyro", "rich")


def loaded_by(*arguments: str) -> set[str]:
    """The packages, of those that take long, that the command has loaded when it ends."""
    program = (
        "import sys; from simclr_fast.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print('\\nloaded', *sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return set(HEAVY) & set(run.stdout.rpartition("\nloaded")[2].split())


def test_the_list_of_commands_loads_nothing_that_takes_long(capsys) -> None:
    assert loaded_by("--help") == set()
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in COMMANDS if not re.search(rf"^  {name} +\w", text, re.MULTILINE)] == []
    assert main([]) == 2
    assert capsys.readouterr().out == text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"simclr_fast {simclr_fast.__version__}\n"


def test_help_of_a_command_loads_no_torch() -> None:
    for command in ("pretrain", "knn"):
        assert not loaded_by(command, "--help") & {"torch", "torchvision", "sklearn", "matplotlib"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_explains_its_options(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: simclr-fast {command} " in text
    names = types_of(imported(COMMANDS[command].options))
    positional = {"pretrain": "recipe", "report": "checkpoint"}.get(command)
    assert [n for n in names if n != positional and f"--{n.replace('_', '-')}" not in text] == []


@dataclasses.dataclass
class Explained:
    """Explained in two lines of source, which the help has room for in one."""

    value: int = 1
    """Side of a view,
    in pixels."""


def test_explanations_are_wrapped_for_the_terminal_alone(capsys, monkeypatch) -> None:
    monkeypatch.setattr(cli, "COMMANDS", {"check": cli.Command("summary", f"{__name__}:Explained", "none:none")})
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert "Side of a view, in pixels. (default: 1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["knm"], "simclr-fast: error: knm: there is no such command; did you mean knn?"),
        (["few_label"], "simclr-fast: error: few_label: there is no such command; did you mean few-label?"),
        (["zzz"], f"simclr-fast: error: zzz: there is no such command; choose one of {', '.join(COMMANDS)}"),
        (["pretrain", "deno"], "simclr-fast pretrain: error: deno: there is no such recipe; did you mean demo?"),
        (
            ["pretrain", "zzz"],
            f"simclr-fast pretrain: error: zzz: there is no such recipe; choose one of {', '.join(RECIPES)}",
        ),
        (
            ["pretrain", "photos/"],
            "simclr-fast pretrain: error: photos/: no recipe but a path; pass it as --data photos/ (in Python "
            "data='photos/')",
        ),
        (
            ["export"],
            "simclr-fast export: error: missing: --checkpoint PATH Folder of a run (its newest checkpoint is taken), "
            "or a checkpoint file. (required)",
        ),
        (
            ["pretrain", "demo", "--epochs", "x"],
            "simclr-fast pretrain: error: --epochs x: pass an integer",
        ),
        (
            ["pretrain", "--opt", "adam"],
            "simclr-fast pretrain: error: invalid choice 'adam' for argument '--opt'. Expected one of ('lars', 'sgd', "
            "'adamw').",
        ),
        (
            ["pretrain", "demo", "--tempreature=1"],
            "simclr-fast pretrain: error: --tempreature: there is no such option; did you mean --temperature?",
        ),
        (
            ["pretrain", "--no-evla"],
            "simclr-fast pretrain: error: --no-evla: there is no such option; did you mean --no-eval?",
        ),
        (
            ["knn", "--checkpiont", "x"],
            "simclr-fast knn: error: --checkpiont: there is no such option; did you mean --checkpoint?",
        ),
        (
            ["knn", "--zzz"],
            "simclr-fast knn: error: --zzz: there is no such option; `simclr-fast knn --help` lists them",
        ),
        (
            ["pack", "--formt", "raw"],
            "simclr-fast pack: error: --formt: there is no such option; did you mean --format?",
        ),
        (
            ["info", "--verbose"],
            "simclr-fast info: error: --verbose: there is no such option; `simclr-fast info --help` lists them",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_one_line_with_the_nearest(arguments: list[str], said: str, capsys) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"{said}\n")


@pytest.mark.parametrize("name", ["knn", "report", "export"])
def test_a_run_is_the_first_word_or_that_of_the_option(name: str) -> None:
    for words in (["runs/x"], ["--checkpoint", "runs/x"], ["--checkpoint=runs/x"]):
        _, options = cli.parse([name, *words, "--output", "y"])
        assert (options.checkpoint, options.output) == (Path("runs/x"), Path("y"))


def test_underscores_are_as_good_as_hyphens(tmp_path, capsys) -> None:
    assert main(["knn", "--checkpoint", str(tmp_path), "--knn_k", "0"]) == 2
    assert "--knn-k 0: pass an integer >= 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("f", {"few-label", "finetune"}),
        ("pretrain --temp", {"--temperature"}),
        ("pretrain demo --opt ", {"lars", "sgd", "adamw"}),
        ("pretrain imagenet-", {"imagenet-100ep"}),
        ("pretrain d", {"demo"}),
        ("knn d", set()),
        ("knn --knn", {"--knn-k", "--knn-t"}),
        ("pack --form", {"--format"}),
    ],
)
def test_bash_completes(line: str, answers: set[str], completion: Path) -> None:
    program = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}\n'
        'function_of=$(complete -p simclr-fast | sed "s/.*-F \\([^ ]*\\).*/\\1/")\n'
        '$function_of simclr-fast "${@: -1}" "${@: -2:1}"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    words = ["simclr-fast", *line.split(" ")]
    run = subprocess.run(
        ["bash", "-c", program, "bash", completion, *words], capture_output=True, text=True, check=True
    )
    assert set(run.stdout.split("\n")) - {""} == answers, run.stderr


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "new" / "simclr-fast"
    assert main(["--tyro-write-completion", "bash", str(path)]) == 0
    return path


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_know_the_recipes(shell: str, tmp_path: Path) -> None:
    assert main(["--tyro-write-completion", shell, str(tmp_path / "file")]) == 0
    text = (tmp_path / "file").read_text()
    assert "PRETRAIN = " in text
    assert [name for name in RECIPES if name not in text] == []


@pytest.mark.parametrize("words", ["--help", "knn --help", "--version"])
def test_it_ends_quietly_where_nobody_reads_on(words: str) -> None:
    """As any tool does before `head`: as if by the signal for it, which Python ignores."""
    command = [sys.executable, "-m", "simclr_fast", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.close()
        assert (program.stderr.read(), program.wait()) == (b"", 128 + signal.SIGPIPE)


def test_a_terminal_without_a_letter_shows_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables shorten names by an ellipsis, which Latin-1 has not."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(cli, "usage", lambda: "kla\xdfe\u2026\n")
    assert main(["--help"]) == 0
    assert terminal.buffer.getvalue() == b"kla\xdfe?\n"


def test_another_broken_pipe_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thread that reads images, or of a service that metrics go to."""

    def fail(_: list[str]) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_run", fail)
    read, write = os.pipe()
    with os.fdopen(read), os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(BrokenPipeError):
            main(["knn"])


def test_a_completion_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, capsys) -> None:
    assert main(["--tyro-write-completion", "bash", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"simclr-fast: error: --tyro-write-completion {tmp_path}: Is a directory; pass a file that can be written\n"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--batch-size=4.5", "--batch-size 4.5: pass an integer"),
        ("--scale a 1 --lr 3", "--scale a 1: pass a list of 2 numbers"),
        ("--lr 1,5", "--lr 1,5: pass a number or None"),
    ],
)
def test_a_value_of_another_type_is_told_with_what_to_pass(given: str, said: str, capsys) -> None:
    assert main(["pretrain", "demo", *given.split()]) == 2
    assert capsys.readouterr().err == f"simclr-fast pretrain: error: {said}\n"


def test_a_shell_without_completion_is_named(capsys) -> None:
    assert main(["--tyro-write-completion", "cmd", "x"]) == 2
    assert "--tyro-write-completion cmd x: pass a shell (bash, zsh, fish) and a file" in capsys.readouterr().err


# Whose values are other things in other commands, each said by its explanation.
OF_ITS_OWN = {"model", "format", "size", "output"}


def test_an_option_of_several_commands_is_the_same_in_all() -> None:
    """By one name: one type, but for None and several values, and an explanation that begins alike."""
    kinds, words = collections.defaultdict(set), collections.defaultdict(set)
    for command in COMMANDS.values():
        for name, kind, explanation in explained(imported(command.options)):
            kinds[name].add(frozenset(plain(kind)))
            words[name].add(" ".join(re.split(r"[\s;:.,]+", explanation)[:3]))
    checked = kinds.keys() - OF_ITS_OWN
    assert {name: found for name, found in words.items() if name in checked and len(found) > 1} == {
        "data": {"Folder (or file)", "Folder that holds"},  # detection and `check` read no file
        "workers": {"Threads that read", "Processes that read"},  # detection's loader is torch's own
    }
    assert {name for name in checked if len(kinds[name]) > 1} == {"dataset"}, "detect has data sets of its own"


def explained(kind: type) -> Iterator[tuple[str, Any, str]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from explained(hints[field.name])
        else:
            yield field.name, hints[field.name], tyro._docstrings.get_field_docstring(kind, field.name, ())


def plain(kind: Any) -> set[Any]:
    """The values' types in an option's: of `tuple[float, ...] | None`, float; of a choice, its values."""
    parts = typing.get_args(kind)
    return set().union(*map(plain, parts)) - {type(None), ...} if parts else {kind}


def test_the_package_gives_its_names_when_they_are_asked_for() -> None:
    program = (
        "import sys, simclr_fast\n"
        "assert 'torch' not in sys.modules\n"
        "assert simclr_fast.__all__ == dir(simclr_fast)\n"
        "assert all(hasattr(simclr_fast, name) for name in simclr_fast.__all__)\n"
        "from simclr_fast import *\n"
        "assert pretrain is simclr_fast.pretrain\n"
        "assert not hasattr(simclr_fast, 'NTXnetLoss')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_installation_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(COMMANDS, "info", dataclasses.replace(COMMANDS["info"], work="absent_package.module:work"))
    assert main(["info"]) == 2
    said = "simclr-fast info: error: the package absent_package is missing; pip install 'simclr_fast[train]'\n"
    assert capsys.readouterr().err == said
