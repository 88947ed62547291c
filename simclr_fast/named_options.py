"""Options by their names: which a class of options has, the nearest to a misspelt one, values checked by their types.

A class of options is a dataclass whose fields are options, or such classes again; the names are those of the command
line, with underscores.
"""

import dataclasses
import difflib
import numbers
import os
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from simclr_fast.config import flag
from simclr_fast.errors import ConfigError
from simclr_fast.recipes import RECIPES

Options = TypeVar("Options")

NONE = type(None)
EXPECTED = {int: "an integer", float: "a number", bool: "True or False", str: "a string", Path: "a path", NONE: "None"}


def types_of(kind: type) -> dict[str, Any]:
    """By its name, the type of every option that a class of options has."""
    hints, found = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        found |= types_of(hints[field.name]) if _is_group(hints[field.name]) else {field.name: hints[field.name]}
    return found


def unknown(what: str, name: str, known: Collection[str], otherwise: str | None = None) -> ConfigError:
    """The error for a name that is none of those known, with the nearest of them.

    what: command, option ...; otherwise: the remedy where none is near, which else is the list of them.
    """
    near = nearest(name, known) or next((one for one in known if name in one.split("_")), None)
    remedy = f"did you mean {near}?" if near else otherwise or f"choose one of {', '.join(known)}"
    return ConfigError(f"{name}: there is no such {what}; {remedy}")


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that a misspelt one is most like; None where it is like none of them."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def unknown_recipe(name: str) -> ConfigError:
    """The error for a word that is no recipe; a folder or a file there is taken for the data."""
    if os.sep in name or os.path.exists(name):
        return ConfigError(f"{name}: no recipe but a path; pass it as --data {name} (in Python data={name!r})")
    return unknown("recipe", name, list(RECIPES))


def check_spelling(arguments: Sequence[str], kind: type, program: str) -> None:
    """Raise ConfigError, with the nearest, for an argument of the command line that names no option of this class."""
    known = types_of(kind)
    flags = ["--help", *map(flag, known), *(f"--no-{flag(name)[2:]}" for name, of in known.items() if of is bool)]
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in flags:
            raise unknown("option", name, flags, f"`{program} --help` lists them")


def misread(name: str, arguments: Sequence[str], kind: type) -> ConfigError:
    """The error for what the command line has behind --name, which the option cannot hold."""
    words = " ".join(arguments).replace(f"{name}=", f"{name} ").split(" ")
    begin = words.index(name) + 1
    end = next((place for place, word in enumerate(words) if place >= begin and word.startswith("--")), None)
    expected = _expected(types_of(kind)[name[2:].replace("-", "_")])
    return ConfigError(f"{' '.join([name, *words[begin:end]])}: pass {expected}")


def named_in(arguments: Sequence[str]) -> frozenset[str]:
    """The names of the options that arguments of the command line set."""
    flags = (argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    return frozenset(name[2:].replace("-", "_").removeprefix("no_") for name in flags)


def changed(options: Options, values: Mapping[str, Any]) -> Options:
    """The options with other values for those named.

    Raises ConfigError for a name that no option has, and for a value of a wrong type.
    """
    return dataclasses.replace(options, **_for_fields(type(options), options, checked(type(options), values)))


def made(kind: type[Options], values: Mapping[str, Any]) -> Options:
    """Options of a class, with the values named. Raises as `changed`, and where one without default is missing."""
    values = checked(kind, values)
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    for name in needed:
        if name not in values and not _is_group(typing.get_type_hints(kind)[name]):
            raise ConfigError(f"{name}: it has no default; pass it")
    return kind(**_for_fields(kind, None, values))


def checked(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by name, each as its option holds it: a string as a path, a list as a tuple, one value as one of it.

    Raises as `changed`.
    """
    known = types_of(kind)
    for name in values:
        if name not in known:
            raise unknown("option", name, list(known))
    return {name: _value(name, value, known[name]) for name, value in values.items()}


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _for_fields(kind: type, options: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by option as values by field, whose groups are made anew where they hold an option that is named."""
    hints, found = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        group = hints[field.name]
        if not _is_group(group):
            found |= {field.name: values[field.name]} if field.name in values else {}
            continue
        own = _for_fields(group, None if options is None else getattr(options, field.name), values)
        if own:
            found[field.name] = (
                group(**own) if options is None else dataclasses.replace(getattr(options, field.name), **own)
            )
    return found


def _value(name: str, value: Any, kind: Any) -> Any:
    """The value as an option of this type holds it. Raises ConfigError, which names what to pass."""
    fitting = _converted(value, kind)
    if not fitting:
        remedy = f"pass {_expected(kind)}"
        if name == "model" and not isinstance(value, str):
            value = type(value).__name__ if not isinstance(value, type) else value.__name__
            remedy = (
                "pass its name, since a checkpoint builds the network anew from it; one of your own: module:factory"
            )
        raise ConfigError(f"{flag(name)} {value!r}: {remedy}")
    return fitting[0]


def _converted(value: Any, kind: Any) -> list[Any]:
    """The value as one of this type, in a list; an empty list where it is none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return next((found for one in arguments if (found := _converted(value, one))), [])
    if origin is Literal:
        return [value] if isinstance(value, str | int) and value in arguments else []
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            value = [value] if arguments[-1] is Ellipsis else []  # one is as good as a list of one
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        parts = [_converted(one, of) for one, of in zip(value, kinds)]
        return [tuple(part[0] for part in parts)] if len(value) == len(kinds) and all(parts) else []
    if origin in (dict, Mapping):
        return [dict(value)] if isinstance(value, Mapping) else []
    if isinstance(value, bool):
        return [value] if kind is bool else []
    if kind is int and isinstance(value, numbers.Integral):
        return [int(value)]
    if kind is float and isinstance(value, numbers.Real):
        return [float(value)]
    if kind in (str, Path) and isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        return [kind(text)] if isinstance(text, str) and "\0" not in text else []
    return [None] if kind is NONE and value is None else []


def _expected(kind: Any) -> str:
    """What to pass for an option of this type, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_expected, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        several = arguments[-1] is Ellipsis
        return f"a list, each {_expected(arguments[0])}" if several else f"a list of {len(arguments)} numbers"
    return EXPECTED.get(kind, "a dict" if origin in (dict, Mapping) else str(kind))
