"""The backbone as files that other programs read: torchvision keys, safetensors, torch.export, ONNX."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from simclr_fast.checkpoint import describe_differences, require_finite
from simclr_fast.config import ModelOptions
from simclr_fast.errors import CheckpointError, ConfigError
from simclr_fast.evaluation.run import Run
from simclr_fast.models import build_encoder

STATE_DICT_FILE = "backbone.pth"
WEIGHTS_FILE = "backbone.safetensors"
PROGRAM_FILE = "backbone.pt2"
ONNX_FILE = "backbone.onnx"
_KEY = "simclr_fast"  # entry of the safetensors header that describes the backbone


def describe(run: Run) -> dict[str, Any]:
    """What somebody who has only the weights must know to use them."""
    model, augment = run.config.model, run.config.augment
    return {
        "model": model.model,
        "stem": model.stem,
        "norm": model.norm,
        "channels": run.channels,
        "image_size": augment.img_size,
        "mean": list(augment.mean),
        "std": list(augment.std),
        "step": run.step,
    }


def export_weights(run: Run, folder: Path) -> None:
    """Write the weights under torchvision's own keys, as a torch state dict and as safetensors."""
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in run.weights.items()}
    torch.save(weights, folder / STATE_DICT_FILE)
    safetensors.torch.save_file(weights, folder / WEIGHTS_FILE, metadata={_KEY: json.dumps(describe(run))})


def export_program(run: Run, folder: Path) -> None:
    """Write a torch.export program: runs without this package and without torchvision, for any batch size."""
    torch.export.save(_program(run), folder / PROGRAM_FILE)


def export_onnx(run: Run, folder: Path) -> None:
    """Write an ONNX graph, input "images" [batch, C, S, S], output "features" [batch, D]. Raises ConfigError."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--onnx: {' and '.join(missing)} not installed; pip install 'simclr_fast[onnx]'")
    names = {"input_names": ["images"], "output_names": ["features"]}
    graph = torch.onnx.export(_program(run), dynamo=True, verbose=False, **names)
    graph.save(folder / ONNX_FILE, external_data=False)


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """What an exported ONNX graph computes, by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])


def sample_images(run: Run, count: int = 4) -> Tensor:
    """Inputs to compare implementations with, float32 [count, C, S, S]."""
    size = run.config.augment.img_size
    return torch.randn(count, run.channels, size, size, generator=torch.Generator().manual_seed(0))


def read_exported(path: Path) -> nn.Module:
    """The backbone of a safetensors file that `export_weights` wrote, in eval mode. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get(_KEY, "null"))
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 not a dict
        options = ModelOptions(model=described["model"], stem=described["stem"], norm=described["norm"])
        backbone = build_encoder(options, {1: 1, 3: 3}[described["channels"]]).eval()
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError, ConfigError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: damaged, or not exported by simclr_fast ({reason})") from error
    different = describe_differences(backbone.state_dict(), weights)
    if different:
        raise CheckpointError(f"{path}: its weights do not fit {described['model']}; first difference:{different[0]}")
    require_finite(weights, str(path))
    backbone.load_state_dict(weights)
    return backbone


def _program(run: Run) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(run.encoder(), (sample_images(run),), dynamic_shapes=({0: batch},))
