"""When a run writes its checkpoints, and the time it has trained."""

import time

from simclr_fast.checkpoint import save
from simclr_fast.config import Config
from simclr_fast.training.state import TrainState


class CheckpointSaver:
    """Saves the state to the run's folder, in the main process only; every process keeps the state's time."""

    def __init__(self, config: Config, state: TrainState, *, enabled: bool):
        self.config = config
        self.state = state
        self.enabled = enabled
        self.begun = time.monotonic() - state.seconds
        self.saved = time.monotonic()

    def save(self) -> None:
        """Save now."""
        self.state.seconds = time.monotonic() - self.begun
        if self.enabled:
            run = self.config.run
            save(run.output, self.state.step, self.state.checkpoint(self.config), run.checkpoint_hist)
        self.saved = time.monotonic()

    def save_if_due(self) -> None:
        """Save if the last checkpoint is older than --checkpoint-minutes."""
        if time.monotonic() - self.saved > 60 * self.config.run.checkpoint_minutes:
            self.save()
