"""Checks on the options of the evaluation commands, before anything is read or computed."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from simclr_fast.errors import ConfigError

Rule = tuple[Callable[[Any], bool], str]  # what a value must fulfil, and what to pass instead

COUNT: Rule = (lambda value: value >= 1, "an integer >= 1")
COUNT_OR_ZERO: Rule = (lambda value: value >= 0, "an integer >= 0")
POSITIVE: Rule = (lambda value: 0 < value < math.inf, "a number > 0")  # nan is no number > 0 either
SHARE: Rule = (lambda value: 0 < value <= 1, "a fraction in (0, 1]")
PROPER_SHARE: Rule = (lambda value: 0 < value < 1, "a fraction in (0, 1)")

# By the name of the option, in whichever command it is; of an option with several values each must fulfil its rule.
RULES: dict[str, Rule] = {
    "threads": COUNT_OR_ZERO,
    "seed": COUNT_OR_ZERO,
    "workers": COUNT_OR_ZERO,
    "min_steps": COUNT_OR_ZERO,
    "knn_k": COUNT,
    "epochs": COUNT,
    "batch_size": COUNT,
    "per_class": COUNT,
    "draws": COUNT,
    "seeds": COUNT,
    "steps": COUNT,
    "train_scenes": COUNT,
    "test_scenes": COUNT,
    "min_size": COUNT,
    "knn_t": POSITIVE,
    "lr": POSITIVE,
    "lr_base": POSITIVE,
    "penalty_c": POSITIVE,
    "fractions": SHARE,
    "held_out": PROPER_SHARE,
}


def check(options: Any) -> None:
    """Raise ConfigError, which names the option, its value and the remedy, for a value that cannot work."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in RULES or value is None:
            continue
        fulfils, remedy = RULES[field.name]
        several = isinstance(value, tuple)
        if several and not value:
            raise ConfigError(f"--{_flag(field.name)}: no value given; pass {remedy}, or several")
        for one in value if several else (value,):
            if not fulfils(one):
                raise ConfigError(f"--{_flag(field.name)} {one}: pass {remedy}")
        if several and len(set(value)) < len(value) and field.name != "epochs":
            raise ConfigError(f"--{_flag(field.name)} {' '.join(map(str, value))}: pass every value once")
    for name in ("train_set", "test_set"):
        value = getattr(options, name, "")
        if value and options.data == "voc" and not all(value.partition("-")):
            raise ConfigError(f"--{_flag(name)} {value}: pass the year and the image set of VOC, as in 2012-train")
    fractions, epochs = getattr(options, "fractions", None), getattr(options, "epochs", None)
    if fractions is not None and epochs is not None and len(epochs) != len(fractions):
        raise ConfigError(
            f"--epochs {' '.join(map(str, epochs))}: pass one number for each of the {len(fractions)} --fractions"
        )


def _flag(name: str) -> str:
    return name.replace("_", "-")
