"""The pages of the reference that are made of the code: every public name, and every command with its options."""

import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import griffe

import simclr_fast
from simclr_fast.cli import COMMANDS, PROGRAM, imported
from simclr_fast.config import Config, flag
from simclr_fast.expectations import described
from simclr_fast.recipes import RECIPES

# Heading of a group of public names, and the modules that define them; the last has what no other has.
GROUPS = {
    "Pretraining and its results": ("simclr_fast.api",),
    "Augmentation": ("simclr_fast.augmentation",),
    "Losses": ("simclr_fast.losses", "simclr_fast.temperature"),
    "Other": ("simclr_fast",),
}


def python_page() -> str:
    """Markdown that asks mkdocstrings for each public name, grouped by where it is defined."""
    parts = ["# Python", "Everything that `import simclr_fast` offers. Shapes are in brackets, units in parentheses."]
    left = [name for name in simclr_fast.__all__ if name != "__version__"]
    for title, modules in GROUPS.items():
        names = sorted((name for name in left if home(name).startswith(modules)), key=place)
        left = [name for name in left if name not in names]
        if names:
            parts.append(f"## {title}")
        for name in names:
            options = f"    options:\n      heading: {name}\n      toc_label: {name}"
            parts.append(f"::: {home(name)}.{getattr(simclr_fast, name).__name__}\n{options}")
    parts += [
        "## Version",
        f"`simclr_fast.__version__` is the version as text; of this page, {simclr_fast.__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def home(name: str) -> str:
    """The module that defines a public name."""
    return getattr(simclr_fast, name).__module__


def place(name: str) -> tuple[str, int]:
    """Where a public name is defined: its module and line, by which names are in the order of their source."""
    return home(name), inspect.getsourcelines(getattr(simclr_fast, name))[1]


def command_page() -> str:
    """Markdown of every command: what it does, its options, their values, defaults and meaning."""
    parts = [
        "# Command line",
        f"`{PROGRAM} COMMAND [OPTIONS]`; `{PROGRAM} COMMAND --help` says the same as this page, which is made of the "
        f"same source. `python -m simclr_fast` is `{PROGRAM}`, as for `torchrun -m simclr_fast`. An option that is on "
        "or off is written `--option` or `--no-option`; one with several values takes them one after the other.",
        "\n".join(["| command | what it does |", "|---|---|", *map(_summary, COMMANDS)]),
    ]
    for name, command in COMMANDS.items():
        kind = imported(command.options)
        parts.append(f"## {name}")
        parts += list(_pretrain_options(kind)) if kind is Config else [_description(kind), options_table(kind)]
    return "\n\n".join(parts) + "\n"


def _summary(name: str) -> str:
    return f"| [`{name}`](#{name}) | {cell(COMMANDS[name].summary)} |"


def _pretrain_options(kind: type) -> Iterator[str]:
    """The recipes, then a table for every group of options, with what the recipes change."""
    yield f"`{PROGRAM} pretrain RECIPE [OPTIONS]`. {_docstrings(kind)['recipe']}"
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    chosen = defaults.pop("recipe")
    names = ", ".join(f"`{name}`" for name in RECIPES)
    yield (
        f"Recipes: {names}. Without one it is `{chosen}`, whose defaults are shown; what others change stands behind. "
        "[Recipes](../recipes.md) has all figures."
    )
    yield "\n".join(f"- `{name}`: {cell(described(name, one.optimization))}" for name, one in RECIPES.items())
    for group in defaults:
        by_recipe = {name: vars(getattr(config, group)) for name, config in RECIPES.items()}
        owner = type(getattr(RECIPES[chosen], group))
        yield f"### {_description(owner).rstrip('.')}"
        yield options_table(owner, by_recipe, chosen)


def _description(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def options_table(kind: type, by_recipe: dict[str, dict[str, Any]] | None = None, chosen: str = "") -> str:
    """Markdown of a dataclass of options. by_recipe: defaults by recipe and name, chosen: the recipe shown first."""
    return "\n".join(["| option | values | default | meaning |", "|---|---|---|---|", *_rows(kind, by_recipe, chosen)])


def _rows(kind: type, by_recipe: dict[str, dict[str, Any]] | None = None, chosen: str = "") -> Iterator[str]:
    """A row per option; a field that is a dataclass itself holds options, too."""
    said, hints = _docstrings(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _rows(hints[field.name])
            continue
        usual = by_recipe[chosen][field.name] if by_recipe else field.default
        default = "required" if usual is dataclasses.MISSING else shown(usual)
        for name, values in (by_recipe or {}).items():
            if values[field.name] != usual:
                default += f"<br>{name}: {shown(values[field.name])}"
        option = f"`{flag(field.name)}`"
        yield f"| {option} | {cell(values_of(hints[field.name]))} | {cell(default)} | {cell(said[field.name])} |"


def shown(value: Any) -> str:
    """A default as it would be written on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return " ".join(map(shown, value)) or "none"
    return "none" if value is None or value == "" else f"{value:.4g}" if isinstance(value, float) else str(value)


def values_of(annotation: Any) -> str:
    """What an option takes, by its type, in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin is typing.Annotated:
        return values_of(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(values_of(one) for one in inner if one is not type(None))
    if origin in (tuple, list):
        kinds = [values_of(one) for one in inner if one is not Ellipsis]
        return f"{kinds[0]}, one or more" if Ellipsis in inner or origin is list else f"{len(kinds)} x {kinds[0]}"
    words = {bool: "on, off", int: "integer", float: "number", str: "text", Path: "path"}
    return words.get(annotation) or " ".join(str(annotation).split())


def _docstrings(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass and of those that it extends."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if dataclasses.is_dataclass(owner):
            members = _module(owner.__module__)[owner.__qualname__].attributes
            found |= {name: member.docstring.value for name, member in members.items() if member.docstring}
    return found


@cache
def _module(name: str) -> griffe.Module:
    """The source of a module, read without running it: only there is the text under a dataclass's fields."""
    path = Path(importlib.import_module(name).__file__)
    return griffe.visit(name, filepath=path, code=path.read_text())


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())
