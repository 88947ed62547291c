"""Options of the evaluation commands: every number is checked before anything is read, by one clear line."""

import dataclasses
import re
import types
import typing
from pathlib import Path

import pytest

from simclr_fast.cli import main, parse
from simclr_fast.config import Config
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.options import RULES, check
from tests.evaluation.conftest import COMMANDS

ROOT = Path(__file__).parents[2]
ZERO_MEANS_SOMETHING = {"threads", "seed", "workers", "min_steps"}


def numbers(kind: object) -> set[type]:
    """The number types in an option's type: of `tuple[float, ...] | None`, float."""
    if typing.get_origin(kind) in (tuple, types.UnionType, typing.Union):
        return set().union(*(numbers(part) for part in typing.get_args(kind)))
    return {kind} & {int, float}


NUMERIC = sorted(
    (command, field.name, numbers(field.type).pop())
    for command, options in COMMANDS.items()
    for field in dataclasses.fields(options)
    if numbers(field.type)
)


def refusal(command: str, *arguments: str, capsys) -> str:
    """The one line of a command that starts with a checkpoint that does not exist, too."""
    where = ["no/such/run"] if command == "report" else ["--checkpoint", "no/such/run"]
    assert main([command, *where, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_every_number_has_a_rule() -> None:
    assert {name for _, name, _ in NUMERIC} == RULES.keys() - {"output"}


@pytest.mark.parametrize(("command", "name", "kind"), NUMERIC)
def test_impossible_numbers_are_refused(command: str, name: str, kind: type, capsys) -> None:
    flag = f"--{name.replace('_', '-')}"
    wrong = ["-1"] + ["0"] * (name not in ZERO_MEANS_SOMETHING)
    wrong += ["nan", "inf", "0.0", "-0.5"] if kind is float else []
    wrong += ["1.5"] if name in ("fractions", "held_out") else []
    for value in wrong:
        said = refusal(command, flag, value, capsys=capsys)
        assert f"error: {flag} {kind(value)}: pass a" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["knn", "--knn-k", "5", "0"], "--knn-k 0: pass an integer >= 1"),
        (["knn", "--knn-k", "5", "5"], "--knn-k 5 5: pass every value once"),
        (["linear", "--held-out", "1"], "--held-out 1.0: pass a fraction in (0, 1)"),
        (["finetune", "--fractions", "0.1", "1.01"], "--fractions 1.01: pass a fraction in (0, 1]"),
        (["detect", "--dataset", "voc", "--train-set", "train"], "--train-set train: pass the year and the image set"),
        (["detect", "--dataset", "voc", "--test-set", "2012-"], "--test-set 2012-: pass the year and the image set"),
        (["embed", "--output", "a\udcfc"], "--output a\\xfc: pass a folder whose path is UTF-8"),
        (["finetune", "--epochs", "1", "1"], "--epochs 1 1: pass one number for each of the 3 --fractions"),
    ],
)
def test_the_line_names_option_value_and_remedy(arguments: list[str], said: str, capsys) -> None:
    assert said in refusal(*arguments, capsys=capsys)


def test_no_values_are_refused() -> None:
    _, options = parse(["knn", "--checkpoint", "x"])
    with pytest.raises(ConfigError, match="--knn-k: no value given"):
        check(dataclasses.replace(options, knn_k=()))


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_pass(command: str) -> None:
    _, options = parse([command, *([] if command == "report" else ["--checkpoint"]), "x"])
    check(options)


def test_defaults_are_those_that_the_help_names() -> None:
    """Options that are numbers in the code, not None; what protocols say is in test_protocols.py."""
    expected = {
        "few-label": {"per_class": (1, 5, 10, 20, 50), "draws": 5},
        "finetune": {"draws": 3, "init": "both", "channels_last": True, "amp_dtype": "auto"},
        "detect": {"architecture": "faster-rcnn", "dataset": "scenes", "init": "both", "seeds": 3, "workers": 8},
        "multi-label": {"train_set": ("2007-train",), "val_set": ("2007-val",), "test_set": ("2007-test",)},
        "embed": {"split": "all", "format": "parquet", "dtype": "float32", "shard_size": 4096, "neighbours": 10},
    }
    expected["embed"] |= {"duplicates": 0.999, "batch_size": 128, "workers": 8, "amp_dtype": "float32"}
    for command, values in expected.items():
        _, options = parse([command, "--checkpoint", "x"])
        assert {name: getattr(options, name) for name in values} == values
    for command in set(COMMANDS) - {"report"}:
        _, options = parse([command, "--checkpoint", "x"])
        shared = {"output": None, "model": None, "seed": 0, "download": False, "device": "auto", "threads": 0}
        shared |= {"device": "cpu"} if command == "export" else {}
        assert {name: getattr(options, name, value) for name, value in shared.items()} == shared


def test_zero_where_it_means_something() -> None:
    for command, flag in (
        ("knn", "--threads"),
        ("knn", "--seed"),
        ("detect", "--workers"),
        ("finetune", "--min-steps"),
    ):
        check(parse([command, "--checkpoint", "x", flag, "0"])[1])
    check(parse(["finetune", "--checkpoint", "x", "--fractions", "1", "--epochs", "2"])[1])


VALUES = {
    "data": "x",
    "dataset": "coco",
    "device": "cpu",
    "amp_dtype": "bfloat16",
    "torchcompile": "off",
    "output": "x",
}
FLAGS = ("download", "channels_last")


def documented() -> set[tuple[str, str]]:
    """(command, option) of the docs' table of options that training has, too."""
    section = (ROOT / "docs" / "evaluation.md").read_text().partition("## Options that training has, too")[2]
    rows = [line.split("|")[1:3] for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `--")]
    named = lambda cell: re.findall(r"`([a-z-]+)`", cell)
    return {
        (command, option[2:].replace("-", "_"))
        for options, of in rows
        for option in named(options)
        for command in named(of)
    }


def test_the_options_that_training_has_too_are_documented() -> None:
    training = {
        field.name
        for group in dataclasses.fields(Config)
        if dataclasses.is_dataclass(group.type)
        for field in dataclasses.fields(group.type)
    }
    shared = {
        (command, field.name)
        for command, options in COMMANDS.items()
        for field in dataclasses.fields(options)
        if field.name in training
    }
    assert documented() == shared


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_documented_options_are_taken(command: str) -> None:
    options = sorted(option for of, option in documented() if of == command)
    where = ["x"] if command == "report" else ["--checkpoint", "x"]
    given = {option: VALUES.get(option, "1") for option in options if option not in FLAGS}
    if command not in ("detect",) and "dataset" in given:
        given["dataset"] = "imagefolder"
    arguments = [part for option, value in given.items() for part in (f"--{option.replace('_', '-')}", value)]
    arguments += [f"--{option.replace('_', '-')}" for option in options if option in FLAGS]
    _, found = parse([command, *where, *arguments])
    for option, value in given.items():
        taken = getattr(found, option)
        assert str(taken[0] if isinstance(taken, tuple) else taken) in (value, "1.0"), option
    assert all(getattr(found, option) for option in options if option in FLAGS)
