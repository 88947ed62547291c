"""Where the metrics of a run go: a file of JSON lines and TensorBoard always, Weights & Biases and MLflow when asked.

To add another: a class with the methods of `Sink`, its line in `open_sinks`, its option in `RunOptions`, and its
packages in `config.LOGGERS`.
"""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any, Literal, Protocol

from torch.utils.tensorboard import SummaryWriter

from simclr_fast.config import Config, as_dict
from simclr_fast.errors import ConfigError, first_line, naming
from simclr_fast.run_files import METRICS_FILE, in_one_move, read_metrics
from simclr_fast.training.warnings import EarlyWarning

Ending = Literal["finished", "stopped", "failed"]
PROJECT = "simclr_fast"
# The file of a run's folder that keeps a service's name for the run, so that a resumed run goes on there.
REMEMBERED = "{service}-run.txt"
MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
MLFLOW_BATCH = 100  # parameters that MLflow takes at a time
PATIENCE = 60.0  # seconds until a server that did not answer is asked again

log = logging.getLogger(__name__)


class Sink(Protocol):
    """What takes the metrics of the main process, and its early warnings. files: what it writes in the run's folder."""

    files: tuple[str, ...]

    def write(self, step: int, values: dict[str, float]) -> None:
        """Take the values, by name, after so many steps; a step may come twice, with other names."""

    def warn(self, step: int, warning: EarlyWarning) -> None:
        """Take what was found wrong after so many steps."""

    def close(self, ending: Ending) -> None:
        """Write what is left."""


def open_sinks(config: Config, step: int) -> list[Sink]:
    """Those that the options ask for, of a run that goes on behind `step` (0: that begins).

    Raises ConfigError where a service cannot be had.
    """
    folder = config.run.output
    services: list[Sink] = []  # first, since they may be refused: then nothing has been touched
    if config.run.log_wandb:
        services.append(WeightsAndBiases(folder, as_dict(config)))
    if config.run.log_mlflow:
        services.append(MLflow(folder, as_dict(config)))
    return [JsonLines(folder, step), TensorBoard(folder, step), *services]


class JsonLines:
    """`metrics.jsonl`. A resumed run does the steps after `step` again: their lines in an earlier file are dropped."""

    files = (METRICS_FILE,)

    def __init__(self, folder: Path, step: int):
        self.path = folder / METRICS_FILE
        _drop_lines_after(self.path, step)
        self.file = self.path.open("a")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._append({"step": step, **values})

    def warn(self, step: int, warning: EarlyWarning) -> None:
        self._append({"step": step, "warning": warning.kind, "message": warning.text})

    def _append(self, line: dict[str, Any]) -> None:
        with naming(self.path):
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()

    def close(self, ending: Ending) -> None:
        self.file.close()


class TensorBoard:
    """Event files; those of steps that a resumed run does again are purged by TensorBoard when it reads them."""

    files = ("events.out.tfevents.*",)

    def __init__(self, folder: Path, step: int):
        self.writer = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def warn(self, step: int, warning: EarlyWarning) -> None:
        self.writer.add_text(f"warning/{warning.kind}", warning.text, step)

    def close(self, ending: Ending) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, as its environment variables say (WANDB_MODE=offline keeps it in the folder)."""

    files = (REMEMBERED.format(service="wandb"), "wandb/")

    def __init__(self, folder: Path, options: dict[str, Any]):
        import wandb  # an optional package; `check` has seen that it is there

        note = folder / REMEMBERED.format(service="wandb")
        known = note.read_text().strip() if note.exists() else None
        try:
            self.run = wandb.init(project=PROJECT, dir=folder, config=options, id=known, resume="allow")
        except wandb.Error as error:
            raise ConfigError(
                f"--log-wandb True: {first_line(error)}; mend it, or set WANDB_MODE=offline and sync later"
            ) from error
        note.write_text(f"{self.run.id}\n")

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def warn(self, step: int, warning: EarlyWarning) -> None:
        self.run.alert(title=f"{warning.kind}, step {step}", text=warning.text, level="WARN")

    def close(self, ending: Ending) -> None:
        self.run.finish(exit_code=0 if ending == "finished" else 1)


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI, or in `mlflow.db` of the run's folder where that is not set.

    A resumed run goes on in the same one; what is there already of steps that are done again is not logged twice. A
    server that cannot be reached stops no training: its values are kept, and sent with later ones.
    """

    def __init__(self, folder: Path, options: dict[str, Any]):
        # By itself MLflow asks seven times, over minutes, before it says that a server does not answer.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        import mlflow  # an optional package; `check` has seen that it is there
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self.make, self.error = (Metric, Param), MlflowException
        self.pending: list[Any] = []
        self.next_try = 0.0
        home = folder.resolve()
        own = None if mlflow.is_tracking_uri_set() else f"sqlite:///{home / 'mlflow.db'}"
        self.client = mlflow.MlflowClient(own or mlflow.get_tracking_uri())
        note = folder / REMEMBERED.format(service="mlflow")
        self.files = (note.name, *(("mlflow.db",) if own else ()))
        try:
            run = self._known(note.read_text().strip()) if note.exists() else None
            if run is None:
                artifacts = (home / "mlartifacts").as_uri() if own else None
                run = self.client.create_run(self._experiment(artifacts), run_name=home.name)
                note.write_text(f"{run.info.run_id}\n")
            self.run_id = run.info.run_id
            self.logged = {
                name: max(metric.step for metric in self.client.get_metric_history(self.run_id, name))
                for name in run.data.metrics
            }
            self._describe(flat(options), run.data.params)
            self.client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            where = f"MLFLOW_TRACKING_URI {mlflow.get_tracking_uri()}" if own is None else own
            raise ConfigError(f"--log-mlflow True: {where}: {first_line(error)}") from error

    def _known(self, run_id: str) -> Any | None:
        """The run of an earlier process; None where this store does not have it."""
        try:
            return self.client.get_run(run_id)
        except self.error as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.warning("--log-mlflow: %s holds no run %s; beginning another", self.client.tracking_uri, run_id)
            return None

    def _experiment(self, artifacts: str | None) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found else self.client.create_experiment(name, artifact_location=artifacts)

    def _describe(self, options: dict[str, str], known: dict[str, str]) -> None:
        """Log the options as parameters. MLflow changes none: those that a resumed run changes become tags."""
        new = [self.make[1](name, value) for name, value in options.items() if name not in known]
        for begin in range(0, len(new), MLFLOW_BATCH):
            self.client.log_batch(self.run_id, params=new[begin : begin + MLFLOW_BATCH])
        for name, value in options.items():
            if known.get(name, value) != value:
                self.client.set_tag(self.run_id, f"resumed.{name}", value)

    def write(self, step: int, values: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        new = {name: value for name, value in values.items() if step > self.logged.get(name, -1)}
        self.pending += [self.make[0](name, value, now, step) for name, value in new.items()]
        self._send()

    def warn(self, step: int, warning: EarlyWarning) -> None:
        try:
            self.client.set_tag(self.run_id, f"warning.{warning.kind}", f"step {step}: {warning.text}")
        except self.error as error:
            log.warning("--log-mlflow: %s; a warning was not sent; %s has it", first_line(error), METRICS_FILE)

    def _send(self) -> None:
        if time.monotonic() < self.next_try:
            return
        try:
            while self.pending:
                self.client.log_batch(self.run_id, metrics=self.pending[:MLFLOW_BATCH])
                del self.pending[:MLFLOW_BATCH]
        except self.error as error:
            self.next_try = time.monotonic() + PATIENCE
            log.warning("--log-mlflow: %s; %d values wait to be sent", first_line(error), len(self.pending))

    def close(self, ending: Ending) -> None:
        self.next_try = 0.0
        self._send()
        if self.pending:
            log.warning("--log-mlflow: %d values were not sent; %s has them", len(self.pending), METRICS_FILE)
            return
        try:
            self.client.set_terminated(self.run_id, MLFLOW_STATUS[ending])
        except self.error as error:
            log.warning("--log-mlflow: %s; the run's end was not sent", first_line(error))


def flat(options: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Groups of options as one dict of text, by names like `optimization.temperature`."""
    found: dict[str, str] = {}
    for name, value in options.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
    return found


def _drop_lines_after(path: Path, step: int) -> None:
    """Keep the whole lines up to a step, in one move: a crash in between loses none."""
    kept = [line for line in read_metrics(path) if line["step"] <= step] if path.exists() else []
    with in_one_move(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
