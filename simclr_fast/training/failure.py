"""What a failed step leaves behind: a file with the state before it and all that it was made of."""

from pathlib import Path

from simclr_fast.config import Config
from simclr_fast.data import Batch, ResidentBatch
from simclr_fast.errors import NonFiniteLossError
from simclr_fast.tensor_file import write_atomically
from simclr_fast.training.state import TrainState
from simclr_fast.training.views import Draw, Images


class FailureBundle:
    """Context that writes what it takes to run a failed step again, and says in the error which step and where.

    A failure is heard of one step late: it is of the step noted last, and the state is still that of before that step,
    except for torch's generators, which dropout has drawn from.
    """

    def __init__(self, config: Config, state: TrainState, rank: int):
        self.config, self.state, self.rank = config, state, rank
        self.last: tuple[int, Batch | ResidentBatch, Draw] | None = None

    def note(self, epoch: int, batch: Batch | ResidentBatch, draw: Draw) -> None:
        """A step was queued; what it was made of is kept until the next one."""
        self.last = epoch, batch, draw

    def __enter__(self) -> "FailureBundle":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, NonFiniteLossError) and self.last is not None:
            epoch, batch, draw = self.last
            self.state.step -= 1
            path = save_bundle(self.config.run.output, self.rank, self.state, self.config, batch.images, draw)
            message = f"{error} at step {self.state.step} (epoch {epoch}); look into {path}"
            raise NonFiniteLossError(message) from None


def save_bundle(folder: Path, rank: int, state: TrainState, config: Config, images: Images, draw: Draw) -> Path:
    """Write a checkpoint's content, of before the step `state.step`, with its images and what was drawn for them.

    Load it with torch.load(path, weights_only=True): a checkpoint's content plus "images", "indices", "seed", "warp".
    """
    path = folder / f"nonfinite-step{state.step}-rank{rank}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path,
        state.checkpoint(config) | {"images": images, "indices": draw.indices, "seed": draw.seed, "warp": draw.warp},
    )
    return path
