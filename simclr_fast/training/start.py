"""How a run begins: the weights or the state it starts from."""

import logging
from pathlib import Path

from simclr_fast.checkpoint import load, load_newest
from simclr_fast.config import Config
from simclr_fast.errors import ConfigError
from simclr_fast.training.initial import load_initial_weights
from simclr_fast.training.state import TrainState

log = logging.getLogger(__name__)


def start_from(state: TrainState, config: Config) -> Path | None:
    """Put the state where --resume or --initial-checkpoint says; returns the checkpoint that the run goes on from.

    Both together are the command line of a job that may be started again: --resume auto goes on from a checkpoint in
    the folder if there is one, and begins with the initial weights if there is none.
    """
    resume, initial = config.run.resume, config.model.initial_checkpoint
    if resume not in (None, "auto") and initial is not None:
        raise ConfigError("--initial-checkpoint and --resume: pass one of them")
    found = None
    if resume == "auto":
        found = load_newest(config.run.output)
    elif resume is not None:
        found = Path(resume), load(Path(resume))
    if found is not None:
        path, content = found
        state.restore(content, config, str(path))
        log.info("going on from %s", path)
        return path
    if initial is not None:
        load_initial_weights(state.model, initial)
        if state.ema is not None:
            state.ema.module.load_state_dict(state.model.state_dict())
    return None
