"""The code blocks of the documentation, and how a test runs them.

```python title="name.py"      a program: saved, and run by the command that the page shows
```python                      runs in the page's own namespace, after the blocks above it
```bash                        commands, one a line
four spaces                    commands and formulas, of which commands are only parsed
"""

import dataclasses
import os
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import tomllib
import torch
from torch.multiprocessing import start_processes

from simclr_fast.cli import PROGRAM, main, parse
from tests.forked import CONTEXT
from tests.training.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
FORKED = {"start_method": CONTEXT.get_start_method()}
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PLACEHOLDERS = re.compile(r"\b[A-Z]{3,}\b|\.\.\.")  # RECIPE, COMMAND, PATH/TO
# What a command gets on top, to take seconds: of options that are given twice the last one counts.
SMALL = {
    ("pretrain", "demo"): "--size 8 --batch-size 100 --epochs 1 --head-hidden 32 --no-eval",
    ("pretrain",): "--size 32 --batch-size 4 --epochs 1 --head-hidden 32 --workers 1 --no-eval",
    ("few-label",): "--draws 2 --per-class 1",
    ("finetune",): "--min-steps 2 --epochs 1",
}


@dataclasses.dataclass(frozen=True)
class Block:
    """A block between fences. title: the file that it is to be saved as."""

    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    return [Block(*match.groups()) for match in FENCE.finditer(page.read_text())]


def commands(page: Path) -> list[list[str]]:
    """Arguments of every command of ours that a page shows, anywhere, in full: without the program's name."""
    text = page.read_text()
    shown = [line for block in FENCE.finditer(text) for line in joined(block[3])]
    shown += [line for part in re.findall(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE) for line in joined(part)]
    shown += INLINE.findall(FENCE.sub("", text))
    return [found for line in shown if (found := arguments_of(line)) is not None]


def joined(text: str) -> list[str]:
    """The lines of a block of commands, those that end in a backslash with what follows."""
    return [line.strip() for line in text.replace("\\\n", " ").splitlines()]


def arguments_of(line: str) -> list[str] | None:
    """The arguments of `simclr-fast`, in any of its spellings; None for another command, and for a pattern of one."""
    match = re.search(rf"(?:^|\s)(?:{PROGRAM}|-m simclr_fast|train\.py)\s+(.*)", line)
    if match is None or PLACEHOLDERS.search(line):
        return None
    arguments = shlex.split(match[1], comments=True)
    if "train.py" in line.split(match[1])[0]:
        arguments.insert(0, "pretrain")
    return arguments if len(arguments) > 1 else None


def program_environment(world: str) -> dict[str, str]:
    """What torchrun tells all processes."""
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": world}


def _rank(rank: int, environment: dict[str, str], program: str) -> None:
    """One process of a program: as torchrun, which tests/training/test_torchrun.py runs, but for its imports."""
    os.environ.update(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)
    runpy.run_path(program, run_name="__main__")


def run_command(line: str) -> None:
    """Run one line of a `bash` block in the working directory, small."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["pip", "install"]:
        extras = re.search(r"\[([\w,]+)\]", line)
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert extras is None or set(extras[1].split(",")) <= known.keys(), line
    elif words[0] == PROGRAM:
        assert main([*words[1:], *small(words[1:])]) == 0, line
    elif words[0] == "torchrun" and "simclr_fast" in words:  # tests/training/test_torchrun.py runs it
        check_command(words[words.index("simclr_fast") + 1 :])
    elif words[:2] == ["torchrun", "--nproc-per-node"]:
        _, _, world, program = words
        start_processes(_rank, (program_environment(world), str(Path(program).resolve())), nprocs=int(world), **FORKED)
    elif words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
    else:
        pytest.fail(f"no test knows how to run: {line}")


def small(arguments: list[str]) -> list[str]:
    """What to append to a command of ours."""
    found = next((more for start, more in SMALL.items() if tuple(arguments[: len(start)]) == start), "")
    return found.split()


def run_page(page: Path, given: dict[str, Any], replaced: dict[str, str]) -> None:
    """Run all fenced blocks of a page, in order, in the working directory."""
    names = dict(given)
    for block in blocks(page):
        text = block.text
        for old, new in replaced.items():
            text = text.replace(old, new)
        if block.title is not None:
            Path(block.title).write_text(text)
        elif block.language == "python":
            exec(compile(text, f"{page.name}: {text.splitlines()[0]}", "exec"), names)
        elif block.language == "bash":
            for line in joined(text):
                run_command(line)


def check_command(arguments: list[str]) -> None:
    """Raise what `simclr-fast` raises for arguments that it does not know."""
    parse([argument for argument in arguments if argument != "--help"])
