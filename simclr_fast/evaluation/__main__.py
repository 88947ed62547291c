"""Evaluate, fine-tune and export what train.py trained.

    python -m simclr_fast.evaluation knn       --checkpoint RUN     # nearest neighbours
    python -m simclr_fast.evaluation linear    --checkpoint RUN     # linear classifier, all labels
    python -m simclr_fast.evaluation few-label --checkpoint RUN     # linear classifier, a few labels per class
    python -m simclr_fast.evaluation finetune  --checkpoint RUN     # 1%, 10% and 100% of the labels
    python -m simclr_fast.evaluation detect    --checkpoint RUN     # object detection
    python -m simclr_fast.evaluation export    --checkpoint RUN     # torchvision keys, safetensors, torch.export, ONNX
    python -m simclr_fast.evaluation report RUN                     # everything on one HTML page
    torchrun --nproc-per-node 8 -m simclr_fast.evaluation finetune --checkpoint RUN

RUN is the folder of a run (its newest checkpoint is taken) or a checkpoint file. Each command compares with baselines,
prints a table, and writes <command>.json and pictures to RUN/evaluation. `COMMAND --help` explains every option.
"""

import importlib
import logging
import sys
from collections.abc import Sequence

import tyro

from simclr_fast.errors import ConfigError
from simclr_fast.evaluation import options
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import Session
from simclr_fast.process import exit_status, start_process

COMMANDS = {
    "knn": options.KnnOptions,
    "linear": options.LinearOptions,
    "few-label": options.FewLabelOptions,
    "finetune": options.FinetuneOptions,
    "detect": options.DetectOptions,
    "export": options.ExportOptions,
    "report": options.ReportOptions,
}
PROGRAM = "python -m simclr_fast.evaluation"


def parse(arguments: Sequence[str]) -> tuple[str, options.CheckpointOptions]:
    """The command's name and its options."""
    parser = tyro.extras.SubcommandApp()
    for name, kind in COMMANDS.items():
        parser.command(name=name)(_as_command(name, kind))
    return parser.cli(args=list(arguments), prog=PROGRAM, description=__doc__)


def _as_command(name: str, kind: type):
    def command(values: options.CheckpointOptions):
        return name, values

    command.__annotations__["values"] = tyro.conf.OmitArgPrefixes[kind]
    command.__doc__ = kind.__doc__
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status (see `errors.EXIT_STATUS`)."""
    logging.basicConfig(level=logging.WARNING, format=f"{PROGRAM}: %(message)s")
    name, chosen = parse(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        options.check(chosen)
        run = Run.open(chosen.checkpoint)  # before the rest: nothing is started for a checkpoint that cannot be used
        process = start_process(chosen.device, chosen.threads)
        if process.world_size > 1 and name != "finetune":
            raise ConfigError(f"it runs in one process, not in {process.world_size}: start it without torchrun")
        command = importlib.import_module(f"simclr_fast.evaluation.{name.replace('-', '_')}")
        command.main(Session.start(name, chosen, run, process))
        return 0

    return exit_status(f"{PROGRAM} {name}", work)


if __name__ == "__main__":
    sys.exit(main())
