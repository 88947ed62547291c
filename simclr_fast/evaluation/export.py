"""The command `export`: the backbone as files for other programs, checked after writing, with a model card."""

import functools
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from simclr_fast.errors import CheckpointError, ConfigError
from simclr_fast.evaluation.model_card import (
    CARD_FILE,
    ONNX_FILE,
    PROGRAM_FILE,
    STATE_DICT_FILE,
    describe,
    write_model_card,
)
from simclr_fast.evaluation.run import EXPORT_KEY, WEIGHTS_FILE, Run
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.tables import ResultTable
from simclr_fast.run_files import in_one_move

TOLERANCE = 1e-5  # of the largest feature, between what was written and the model; ONNX runs other kernels


def main(session: Session) -> dict[str, Any]:
    """Write every format, read each again, and compare its features with the model's."""
    run, folder = session.run, session.folder
    if session.options.onnx:
        require_onnx()  # before minutes of work
    export_weights(run, folder)
    export_program(run, folder)
    if session.options.onnx:
        export_onnx(run, folder)
    differences = compare(session, folder)
    for name, difference in differences.items():
        if not difference <= TOLERANCE:  # which no NaN is
            raise CheckpointError(f"{folder / name}: its features differ from the model's by {difference:.1e}")
    card = write_model_card(run, folder, session.options.license)
    rows = [
        [name, f"{(folder / name).stat().st_size / 2**20:.2f}", f"{difference:.1e}"]
        for name, difference in differences.items()
    ]
    table = ResultTable("Exported backbone", ["file", "size (MiB)", "difference of features"], rows)
    return session.finish(
        {"files": differences, "card": CARD_FILE}, table, files=(*(folder / name for name in differences), card)
    )


@torch.no_grad()
def compare(session: Session, folder) -> dict[str, float]:
    """Largest difference of features from the model's, relative to the largest feature, by file."""
    run = session.run
    images = sample_images(run)
    encoder = run.encoder()
    truth = encoder(images)
    encoder.load_state_dict(torch.load(folder / STATE_DICT_FILE, weights_only=True))
    features = {STATE_DICT_FILE: encoder(images)}
    features[WEIGHTS_FILE] = Run.open_any(folder / WEIGHTS_FILE, run.config.model.model).encoder()(images)
    features[PROGRAM_FILE] = torch.export.load(folder / PROGRAM_FILE).module()(images)
    if session.options.onnx:
        features[ONNX_FILE] = run_onnx(folder / ONNX_FILE, images)
    return {name: ((value - truth).abs().max() / truth.abs().max()).item() for name, value in features.items()}


def export_weights(run: Run, folder: Path) -> None:
    """Write the weights under torchvision's own keys, as a torch state dict and as safetensors."""
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in run.weights.items()}
    _write(folder / STATE_DICT_FILE, functools.partial(torch.save, weights))
    data = safetensors.torch.save(weights, metadata={EXPORT_KEY: json.dumps(describe(run))})
    _write(folder / WEIGHTS_FILE, lambda file: file.write(data))


def export_program(run: Run, folder: Path) -> None:
    """Write a torch.export program: runs without this package and without torchvision, for any batch size."""
    _write(folder / PROGRAM_FILE, functools.partial(torch.export.save, _program(run)))


def require_onnx() -> None:
    """Raise ConfigError where a package of the extra `onnx` is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--onnx: not installed: {', '.join(missing)}; pip install 'simclr_fast[onnx]'")


def export_onnx(run: Run, folder: Path) -> None:
    """Write an ONNX graph, input "images" [batch, C, S, S], output "features" [batch, D]."""
    names = {"input_names": ["images"], "output_names": ["features"]}
    graph = torch.onnx.export(_program(run), dynamo=True, verbose=False, **names)
    with in_one_move(folder / ONNX_FILE) as temporary:
        graph.save(temporary, external_data=False)


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """What an exported ONNX graph computes, by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])


def sample_images(run: Run, count: int = 4) -> Tensor:
    """Inputs to compare implementations with, float32 [count, C, S, S]."""
    size = run.config.augment.size
    return torch.randn(count, run.channels, size, size, generator=torch.Generator().manual_seed(0))


def _write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """In one move, by way of memory: of a full disk torch and safetensors raise errors of their own, without a name."""
    file = io.BytesIO()
    save(file)
    with in_one_move(path) as temporary:
        temporary.write_bytes(file.getbuffer())


def _program(run: Run) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(run.encoder(), (sample_images(run),), dynamic_shapes=({0: batch},))
