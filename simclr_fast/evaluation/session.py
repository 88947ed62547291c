"""What every command does around its own work: open the run and the data, choose the device, write the results."""

import dataclasses
import importlib
import json
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from simclr_fast.config import DataOptions, as_dict
from simclr_fast.data import Dataset, load_dataset
from simclr_fast.data.ignored import IGNORED_FILE
from simclr_fast.data.own_files import require_apart
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.options import CheckpointOptions, DataChoice, check
from simclr_fast.evaluation.results import other_options, stem_of
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.tables import ResultTable
from simclr_fast.process import Process, start_process
from simclr_fast.run_files import write_results

RESULTS_FOLDER = "evaluation"
FEATURES_FOLDER = "features"
FOLDERS = {"export": "export", "embed": FEATURES_FOLDER}  # of the commands that have one of their own


def chosen_data(of_run: DataOptions, options: Mapping[str, Any]) -> DataOptions:
    """The run's data options, with what the options of a command name in their place, as `DataChoice` says."""
    named = {name: options.get(name) for name in ("dataset", "data", "image_column", "label_column")}
    named = {name: value for name, value in named.items() if value is not None}
    found = {"dataset": "auto", "image_column": None, "label_column": None} if "data" in named else {}
    return dataclasses.replace(of_run, **(found | named))


@dataclasses.dataclass(frozen=True)
class Session:
    """One command on one run. folder: where its results go; console: quiet in all processes but the first."""

    command: str
    options: Any
    run: Run
    process: Process
    folder: Path
    console: Console
    begin: float = dataclasses.field(default_factory=time.perf_counter)

    @staticmethod
    def start(command: str, options: Any, run: Run, process: Process) -> "Session":
        """Make the results' folder. Raises ConfigError where nothing can be written."""
        folder = options.output or run.folder / FOLDERS.get(command, RESULTS_FOLDER)
        if isinstance(options, DataChoice) and options.data is not None:
            require_apart(folder, options.data, is_renamed=False)
        if process.is_main:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):  # before hours of work rather than after them
                    pass
            except OSError as error:
                raise ConfigError(
                    f"--output {folder}: nothing can be written there ({error.strerror}); pass another folder"
                ) from error
        session = Session(command, options, run, process, folder, Console(quiet=not process.is_main))
        measures = command not in (*FOLDERS, "report")
        if measures and (other := other_options(session.results_file, options)):
            text = f"{session.results_file} holds results of {other}; these will take their place: --output keeps both"
            session.say(text)
        return session

    def say(self, text: str) -> None:
        """A line on the console, from the first process alone."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    @property
    def results_file(self) -> Path:
        """Where the figures go: a file for every protocol and every list of labelled images."""
        return self.folder / f"{stem_of(self.command, self.options)}.json"

    @property
    def device(self) -> torch.device:
        return self.process.device

    @property
    def data_options(self) -> DataOptions:
        """The run's, with the data set that the options name; of another folder, whatever kind it holds."""
        wanted: DataChoice = self.options
        # What a checkpoint's author once downloaded is no reason to download it here.
        return dataclasses.replace(chosen_data(self.run.config.data, vars(wanted)), download=wanted.download)

    def data(self, list_ignored: bool = True) -> Dataset:
        """The run's data set, or the one that the options name.

        list_ignored: whether what it ignores is listed in the results' folder at once.
        """
        dataset = load_dataset(self.data_options)
        if list_ignored and self.process.is_main:
            dataset.list_ignored(self.folder)
        self.say_channels(choice(self.data_options), dataset.train.channels)
        return dataset

    def say_channels(self, images: str, channels: int) -> None:
        """Say where images, which are called so, are brought to the number of channels that the model takes."""
        if channels != self.run.channels:
            seen = (
                "in colour, and the model sees them in grey"
                if channels == 3
                else "grey, and the model sees them as RGB"
            )
            self.say(f"{images}: its images are {seen}")

    def labelled_data(self) -> Dataset:
        """As `data`. Raises ConfigError without labelled training and test images, too."""
        dataset = self.data()
        if not measurable(dataset):
            raise ConfigError(
                f"{choice(self.data_options)}: it has no labelled training and test images to evaluate with (of two "
                "classes at least); `report` shows what can be seen without labels"
            )
        return dataset

    def keep(self, results: dict[str, Any]) -> None:
        """Write what is measured so far to a file of its own, which `finish` takes away: no failure costs it.

        The results of an earlier run of the command stay where they are until this one has all of its own.
        """
        if self.process.is_main:
            if not self.unfinished_file.exists():
                self.say(f"Results so far, until there are all: {self.unfinished_file}")
            write_results(self.unfinished_file, self._content(results))

    @property
    def unfinished_file(self) -> Path:
        """Where figures lie while others are still measured."""
        return self.results_file.with_name(f"{self.results_file.name}.unfinished")

    def finish(
        self, results: dict[str, Any], *tables: ResultTable, files: tuple[Path, ...] = (), protocol: str = ""
    ) -> dict[str, Any]:
        """Print the tables, write the file of results, say where things are, and return what was written.

        protocol: what `protocols.described` says of it; nothing of this package's own.
        """
        content = self._content(results, *tables, protocol=protocol)
        if self.process.is_main:
            path = self.results_file
            write_results(path, content)
            self.unfinished_file.unlink(missing_ok=True)
            for table in tables:
                self.console.print(table.rich())
            ignored = [file] if (file := self.folder / IGNORED_FILE).exists() else []
            written = ", ".join(str(file) for file in (*files, path, *ignored))
            self.console.print(f"{content['seconds']:.0f} s. Written: {written}", soft_wrap=True, markup=False)
        return content

    def _content(self, results: dict[str, Any], *tables: ResultTable, protocol: str = "") -> dict[str, Any]:
        """What a file of results holds, in plain values, the same to a caller as to a reader of the file."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        content = {
            "command": self.command,
            "checkpoint": str(self.run.checkpoint),
            "step": self.run.step,
            "options": as_dict(self.options),
            "protocol": protocol.removeprefix("; "),
            "device": f"{self.device.type} ({device})",
            "torch": torch.__version__,
            "seconds": round(time.perf_counter() - self.begin, 1),
            "results": results,
            "tables": [dataclasses.asdict(table) for table in tables],
        }
        return json.loads(json.dumps(content))


def run_command(options: CheckpointOptions) -> dict[str, Any]:
    """Run the command whose options these are, and return what its file of results holds.

    Raises the errors of `errors.EXIT_STATUS`.
    """
    check(options)
    # Before the rest: nothing is started for a checkpoint that cannot be used.
    open_run = Run.open_any if options.takes_exports else Run.open
    run = open_run(options.checkpoint, options.model)
    process = start_process(options.device, options.threads)
    if process.world_size > 1 and options.command != "finetune":
        raise ConfigError(f"it runs in one process, not in {process.world_size}: start it without torchrun")
    command = importlib.import_module(f"simclr_fast.evaluation.{options.command.replace('-', '_')}")
    return command.main(Session.start(options.command, options, run, process))


def choice(options: DataOptions) -> str:
    """The option that decides which images these are, as it is written on the command line."""
    return f"--data {options.data}" if options.dataset in ("auto", "packed") else f"--dataset {options.dataset}"


def measurable(data: Dataset) -> bool:
    """Whether there are labelled training and labelled test images, so that accuracies can be measured.

    Of training images two classes at least: of one, everything is right.
    """
    parts = (data.labelled, data.test)
    labelled = all(part is not None and part.labels is not None and len(part) > 0 for part in parts)
    return labelled and len(data.labelled.labels.unique()) > 1
