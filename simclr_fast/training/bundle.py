"""What a run leaves behind when its loss is not finite, to look into."""

from pathlib import Path

from simclr_fast.checkpoint import write_atomically
from simclr_fast.config import Config
from simclr_fast.training.state import TrainState
from simclr_fast.training.views import Draw, Images


def save_bundle(folder: Path, rank: int, state: TrainState, config: Config, images: Images, draw: Draw) -> Path:
    """Write what it takes to run the failed step again: the checkpoint before it, its images and what was drawn.

    Load it with torch.load(path, weights_only=True): a checkpoint's content plus "images", "indices", "seed", "warp".
    """
    path = folder / f"nonfinite-step{state.step}-rank{rank}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path,
        state.checkpoint(config) | {"images": images, "indices": draw.indices, "seed": draw.seed, "warp": draw.warp},
    )
    return path
