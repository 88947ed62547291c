"""Entry point for torch.hub: a backbone that SimCLR trained.

torch.hub.load("simclr_fast", "backbone", source="local", path="runs/demo")
"""

dependencies = ["torch", "torchvision", "safetensors", "tyro"]

from simclr_fast import load_backbone as _load_backbone  # noqa: E402


def backbone(path: str, model: str | None = None):
    """The backbone in a run's folder, a checkpoint or an export; see simclr_fast.load_backbone."""
    return _load_backbone(path, model)
