"""Options of the evaluation commands: every number is checked before anything is read, by one clear line."""

import dataclasses
import types
import typing

import pytest

from simclr_fast.cli import main, parse
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.options import RULES, check
from tests.evaluation.conftest import COMMANDS

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
    assert {name for _, name, _ in NUMERIC} == set(RULES)


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


def test_zero_where_it_means_something() -> None:
    for command, flag in (
        ("knn", "--threads"),
        ("knn", "--seed"),
        ("detect", "--workers"),
        ("finetune", "--min-steps"),
    ):
        check(parse([command, "--checkpoint", "x", flag, "0"])[1])
    check(parse(["finetune", "--checkpoint", "x", "--fractions", "1", "--epochs", "2"])[1])
