"""The command `simclr-fast`: finds a command by its name, reads its options, and runs it.

What a command needs is imported when it is named: the list of commands shows without torch.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import itertools
import logging
import os
import re
import select
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from simclr_fast.errors import EXIT_STATUS, ConfigError

PROGRAM = "simclr-fast"
SHELLS = ("bash", "zsh", "fish")  # for tcsh tyro needs another package
COMPLETION = "--tyro-write-completion"  # tyro's name

# tyro completes no word that stands by its place, only commands: a recipe becomes a command below `pretrain`. (Python,
# in the file that tyro writes.)
RECIPES_COMPLETED = (
    "PRETRAIN = COMPLETION_SPEC['subcommands']['pretrain']\n"
    "PRETRAIN['subcommands'] = dict.fromkeys({recipes}, PRETRAIN | {{'description': 'recipe', 'subcommands': {{}}}})"
)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command. Its options' class, and the function that works with them, are `module:name` and imported by need.

    The function returns an exit status, or anything else for success; log_level: from which on its log is shown.
    """

    summary: str
    options: str
    work: str
    log_level: int = logging.WARNING


ON_CHECKPOINT = "simclr_fast.evaluation.session:run_command"


def _on_checkpoint(summary: str, options: str) -> Command:
    return Command(summary, f"simclr_fast.evaluation.options:{options}", ON_CHECKPOINT)


COMMANDS = {
    "pretrain": Command(
        "train an encoder with SimCLR, on images without labels",
        "simclr_fast.config:Config",
        "simclr_fast.training.pretrain:pretrain",
        log_level=logging.INFO,
    ),
    "knn": _on_checkpoint("classify by nearest neighbours", "KnnOptions"),
    "linear": _on_checkpoint("linear classifier on frozen features, all labels", "LinearOptions"),
    "few-label": _on_checkpoint("linear classifier from a few labels per class", "FewLabelOptions"),
    "finetune": _on_checkpoint("train the whole network on 1%, 10% and 100% of the labels", "FinetuneOptions"),
    "detect": _on_checkpoint("train an object detector on the backbone", "DetectOptions"),
    "multi-label": _on_checkpoint(
        "linear classifiers where an image has several classes (VOC 2007)", "MultiLabelOptions"
    ),
    "export": _on_checkpoint("write the backbone: torchvision keys, safetensors, torch.export, ONNX", "ExportOptions"),
    "embed": _on_checkpoint("features of any images as files, nearest neighbours, near-duplicates", "EmbedOptions"),
    "report": _on_checkpoint("gather everything of a run on one HTML page", "ReportOptions"),
    "pack": Command(
        "write a data set once more, so that training reads it faster",
        "simclr_fast.data.pack:PackOptions",
        "simclr_fast.data.commands:pack_command",
    ),
    "check": Command(
        "read a packed set from end to end, and look at every checksum",
        "simclr_fast.data.commands:CheckOptions",
        "simclr_fast.data.commands:check_command",
    ),
    "info": Command(
        "say what was built, and which backend serves which device",
        "simclr_fast.info:InfoOptions",
        "simclr_fast.info:info",
    ),
}


def usage() -> str:
    """What `simclr-fast --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return f"""\
usage: {PROGRAM} COMMAND [OPTIONS]

Fast, exact SimCLR: pretrain an image encoder, and find out what it learned.

commands:
{commands}

  {PROGRAM} pretrain demo                        # 5,000 digits, minutes on a laptop
  {PROGRAM} linear --checkpoint runs/demo        # a run's folder, whose newest checkpoint is taken, or a checkpoint
  {PROGRAM} report runs/demo

`{PROGRAM} COMMAND --help` explains every option of a command. `python -m simclr_fast` is the same program; on several
processes: torchrun --nproc-per-node 8 -m simclr_fast pretrain imagenet ...
Completion of commands and options by the shell, here bash (also zsh, fish):
  {PROGRAM} {COMPLETION} bash ~/.local/share/bash-completion/completions/{PROGRAM}
"""


def imported(name: str) -> Any:
    """The object that `module:name` means."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def parse(arguments: Sequence[str]) -> tuple[str, Any]:
    """The command's name and its options.

    Raises ConfigError for a command, a recipe or an option that does not exist, with the nearest name, and where a
    value is missing or cannot be read.
    """
    import tyro

    from simclr_fast.expectations import described
    from simclr_fast.named_options import check_spelling, misread, unknown, unknown_recipe
    from simclr_fast.recipes import DEFAULT_RECIPE, RECIPES

    name, *rest = arguments
    if name not in COMMANDS:
        raise unknown("command", name, list(COMMANDS))
    kind, program = imported(COMMANDS[name].options), f"{PROGRAM} {name}"
    if COMMANDS[name].work == ON_CHECKPOINT:
        rest = _run_as_declared(name, rest)
    check_spelling(rest, kind, program)
    _join_lines_of_help(kind)
    read = functools.partial(tyro.cli, kind, args=rest, prog=program, config=(tyro.conf.OmitArgPrefixes,))
    wrong = functools.partial(misread, arguments=rest, kind=kind)
    if name != "pretrain":
        return name, _said_in_one_line(read, wrong)
    recipe = rest[0] if rest and not rest[0].startswith("-") else DEFAULT_RECIPE
    if recipe not in RECIPES:
        raise unknown_recipe(recipe)
    about = f"{kind.__doc__}\n\n{described(recipe, RECIPES[recipe].optimization)} docs/recipes.md has all figures."
    config = _said_in_one_line(functools.partial(read, default=RECIPES[recipe], description=about), wrong)
    if config.recipe != recipe:
        raise ConfigError(f"{config.recipe}: the recipe comes first, before any option")
    return name, config


def _run_as_declared(name: str, arguments: list[str]) -> list[str]:
    """The arguments with the run as the command declares it; it may be the first word or --checkpoint's in all."""
    if name != "report":
        return ["--checkpoint", *arguments] if arguments and not arguments[0].startswith("-") else arguments
    return [word.removeprefix("--checkpoint=") for word in arguments if word != "--checkpoint"]


def _said_in_one_line(read: Callable[[], Any], misread: Callable[[str], Exception]) -> Any:
    """What `read` returns, with what tyro says of an error, in a box of several lines, as one line of a ConfigError.

    misread: makes the error for an option whose value has another type; tyro's own words for it are Python's.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return read()
    except SystemExit as end:
        if not end.code:
            raise
        _, *lines = re.sub(r"\x1b\[[\d;]*m", "", box.getvalue()).splitlines()  # without the title, and without colors
        is_text = re.compile(r"\w").search  # and not a rule; behind the next rule stands where help is
        said = itertools.takewhile(is_text, itertools.dropwhile(lambda line: not is_text(line), lines))
        text = " ".join(" ".join(line.strip("│| ") for line in said).split())
        text = text.removeprefix("Error parsing ")
        if option := re.match(r"(--[\w-]+): ", text):
            raise misread(option[1]) from None
        raise ConfigError(re.sub(r"^Missing from [^:]+", "missing", text)) from None


@functools.cache
def _join_lines_of_help(kind: type) -> None:
    """Give tyro the explanations of a class of options without the ends of their lines in the source.

    It keeps these, and breaks lines of the terminal beside them.
    """
    import docstring_parser
    import tyro

    for part in kind.__mro__[:-1]:
        hints = typing.get_type_hints(part, include_extras=True)
        for explained in docstring_parser.parse_from_object(part).params:
            name, text = explained.arg_name, explained.description
            if text is not None and name in part.__annotations__:
                part.__annotations__[name] = Annotated[hints[name], tyro.conf.arg(help=" ".join(text.split()))]
        for name in part.__annotations__:
            if dataclasses.is_dataclass(hints[name]):
                _join_lines_of_help(hints[name])


def write_completion(arguments: Sequence[str]) -> None:
    """Write a shell's completion of every command and option: SHELL FILE, as tyro takes them."""
    import tyro

    from simclr_fast.recipes import DEFAULT_RECIPE, RECIPES

    if len(arguments) != 2 or arguments[0] not in SHELLS:
        raise ConfigError(f"{COMPLETION} {' '.join(arguments)}: pass a shell ({', '.join(SHELLS)}) and a file")
    app = tyro.extras.SubcommandApp()
    for name, command in COMMANDS.items():

        def with_options(options: Any) -> None:
            """Only its options are looked at."""

        kind = imported(command.options)
        with_options.__annotations__["options"] = tyro.conf.OmitArgPrefixes[kind]
        with_options.__defaults__ = (RECIPES[DEFAULT_RECIPE],) if name == "pretrain" else None
        app.command(name=name)(with_options)
    path = Path(arguments[1])
    # A line that ends inside an explanation would be taken for another answer.
    mended = lambda found: found[0].replace(r"\n", " ") + f"\n{RECIPES_COMPLETED.format(recipes=[*RECIPES])}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(SystemExit):  # with which tyro ends when it has written the file
            app.cli(args=[COMPLETION, *arguments], prog=PROGRAM)
        path.write_text(re.sub(r"^COMPLETION_SPEC = .*$", mended, path.read_text(), flags=re.MULTILINE))
    except OSError as error:
        raise ConfigError(f"{COMPLETION} {path}: {error.strerror}; pass a file that can be written") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status (see `errors.EXIT_STATUS`); 128 + the signal's number after a stop by one.

    That is how it ends, too, where nobody reads on what it prints, as with `| head`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding than UTF-8 ends no command
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to be written at the exit
        return 128 + signal.SIGPIPE


def _reader_has_gone() -> bool:
    """Whether stdout is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(arguments: Sequence[str]) -> int:
    """As `main`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print("simclr_fast", imported("simclr_fast:__version__"))
        return 0
    name = arguments[0]
    program = f"{PROGRAM} {name}" if name in COMMANDS else PROGRAM
    try:
        if name == COMPLETION:
            write_completion(arguments[1:])
            return 0
        _, options = parse(arguments)  # before anything of the command's work is imported
    except ConfigError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return EXIT_STATUS[ConfigError]

    from torch.distributed.elastic.multiprocessing.errors import record

    from simclr_fast.named_options import named_in
    from simclr_fast.process import exit_status

    logging.basicConfig(level=COMMANDS[name].log_level, format=f"{program}: %(message)s")
    try:
        work = record(imported(COMMANDS[name].work))  # lets torchrun show the error of the process that failed first
    except ModuleNotFoundError as error:
        if str(error.name).startswith("simclr_fast"):
            raise
        print(
            f"{program}: error: the package {error.name} is missing; pip install 'simclr_fast[train]'", file=sys.stderr
        )
        return EXIT_STATUS[ConfigError]

    def run() -> int:
        result = work(options, named_in(arguments)) if name == "pretrain" else work(options)
        return result if isinstance(result, int) else 0

    return exit_status(program, run)
