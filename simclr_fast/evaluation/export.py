"""The command `export`: the backbone as files for other programs, checked after writing, with a model card."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from simclr_fast.config import as_dict
from simclr_fast.errors import CheckpointError, ConfigError
from simclr_fast.evaluation.comparison import comparison_table
from simclr_fast.evaluation.run import EXPORT_KEY, WEIGHTS_FILE, Run, read_exported
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.tables import ResultTable
from simclr_fast.run_files import read_comparison

STATE_DICT_FILE = "backbone.pth"
PROGRAM_FILE = "backbone.pt2"
ONNX_FILE = "backbone.onnx"
CARD_FILE = "README.md"
TOLERANCE = 1e-5  # of the largest feature, between what was written and the model; ONNX runs other kernels


def main(session: Session) -> None:
    """Write every format, read each again, and compare its features with the model's."""
    run, folder = session.run, session.folder
    export_weights(run, folder)
    export_program(run, folder)
    if session.options.onnx:
        export_onnx(run, folder)
    differences = compare(session, folder)
    for name, difference in differences.items():
        if not difference <= TOLERANCE:  # which no NaN is
            raise CheckpointError(f"{folder / name}: its features differ from the model's by {difference:.1e}")
    card = write_model_card(run, folder)
    rows = [
        [name, f"{(folder / name).stat().st_size / 2**20:.2f}", f"{difference:.1e}"]
        for name, difference in differences.items()
    ]
    table = ResultTable("Exported backbone", ["file", "size (MiB)", "difference of features"], rows)
    session.finish({"files": differences, "card": CARD_FILE}, table, files=(card,))


@torch.no_grad()
def compare(session: Session, folder) -> dict[str, float]:
    """Largest difference of features from the model's, relative to the largest feature, by file."""
    run = session.run
    images = sample_images(run)
    encoder = run.encoder()
    truth = encoder(images)
    encoder.load_state_dict(torch.load(folder / STATE_DICT_FILE, weights_only=True))
    features = {STATE_DICT_FILE: encoder(images)}
    features[WEIGHTS_FILE] = read_exported(folder / WEIGHTS_FILE)(images)
    features[PROGRAM_FILE] = torch.export.load(folder / PROGRAM_FILE).module()(images)
    if session.options.onnx:
        features[ONNX_FILE] = run_onnx(folder / ONNX_FILE, images)
    return {name: ((value - truth).abs().max() / truth.abs().max()).item() for name, value in features.items()}


def describe(run: Run) -> dict[str, Any]:
    """What somebody who has only the weights must know to use them."""
    model, augment = run.config.model, run.config.augment
    return {
        "model": model.model,
        "stem": model.stem,
        "norm": model.norm,
        "channels": run.channels,
        "image_size": augment.size,
        "mean": list(augment.mean),
        "std": list(augment.std),
        "step": run.step,
    }


def export_weights(run: Run, folder: Path) -> None:
    """Write the weights under torchvision's own keys, as a torch state dict and as safetensors."""
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in run.weights.items()}
    torch.save(weights, folder / STATE_DICT_FILE)
    safetensors.torch.save_file(weights, folder / WEIGHTS_FILE, metadata={EXPORT_KEY: json.dumps(describe(run))})


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
    size = run.config.augment.size
    return torch.randn(count, run.channels, size, size, generator=torch.Generator().manual_seed(0))


def write_model_card(run: Run, folder: Path) -> Path:
    """Write README.md with the front matter that model hubs read; returns its path."""
    config = run.config
    described = describe(run)
    channels, size = described["channels"], described["image_size"]
    sections = [
        "---\nlibrary_name: simclr_fast\ntags: [simclr, self-supervised, image-feature-extraction]\n---",
        f"# {described['model']}, pretrained by SimCLR on {config.data.dataset}",
        f"A backbone without its projection head: images [B, {channels}, {size}, {size}], values in [0, 1] normalised "
        f"by mean {described['mean']} and standard deviation {described['std']}, to one feature vector each. It was "
        "trained without labels (Chen et al. 2020, arXiv:2002.05709).",
        "## Use",
        f"```python\n{loading_code(run)}```",
        f"- `{STATE_DICT_FILE}`, `{WEIGHTS_FILE}`: the weights. The second also loads with "
        "`simclr_fast.load_backbone`.\n"
        f"- `{PROGRAM_FILE}`: a graph for any batch size that needs only torch: "
        f'`torch.export.load("{PROGRAM_FILE}").module()(images)`.\n'
        f"- `{ONNX_FILE}`, where it was asked for: input `images`, output `features`.",
        "## Training",
        _options_table(run),
        "## Measured",
        _metrics(run),
        "## Limits",
        "The features carry what the training images and views carry, their biases included. They were evaluated only "
        "as the table above says; evaluate them on your own images before you rely on them.",
    ]
    path = folder / CARD_FILE
    path.write_text("\n\n".join(sections) + "\n")
    return path


def loading_code(run: Run) -> str:
    """Python that loads the exported weights without this package, where torchvision has the architecture."""
    model, channels = run.config.model, run.channels
    if model.model == "resnet_mini":
        return f"import torch\n\nbackbone = torch.export.load({PROGRAM_FILE!r}).module()\n"
    arguments = "norm_layer=group_norm" if model.norm == "group" else ""
    lines = ["import torch", "import torchvision", ""]
    if model.norm == "group":
        groups = {m.num_channels: m.num_groups for m in run.encoder().modules() if isinstance(m, torch.nn.GroupNorm)}
        lines += [f"groups = {groups}", "group_norm = lambda channels: torch.nn.GroupNorm(groups[channels], channels)"]
    lines.append(f"backbone = torchvision.models.{model.model}({arguments})")
    if model.stem == "cifar":
        lines.append(f"backbone.conv1 = torch.nn.Conv2d({channels}, 64, 3, 1, 1, bias=False)")
        lines.append("backbone.maxpool = torch.nn.Identity()")
    elif channels != 3:
        lines.append(f"backbone.conv1 = torch.nn.Conv2d({channels}, 64, 7, 2, 3, bias=False)")
    lines += [
        f"weights = torch.load({STATE_DICT_FILE!r}, weights_only=True)",
        "missing, unexpected = backbone.load_state_dict(weights, strict=False)",
        'assert set(missing) == {"fc.weight", "fc.bias"} and not unexpected',
        "backbone.fc = torch.nn.Identity()  # or a classifier of your own",
        "backbone.eval()",
    ]
    return "\n".join(lines) + "\n"


def _options_table(run: Run) -> str:
    options = as_dict(run.config)
    rows = [("steps done", run.step)]
    for group in ("data", "augment", "model", "optimization"):
        rows += [(name, value) for name, value in options[group].items() if name != "data_dir" and value is not None]
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows]
    return "\n".join([f"Recipe `{run.config.recipe}`.\n", "| option | value |", "|---|---|", *lines])


def _metrics(run: Run) -> str:
    results = read_comparison(run.folder)
    if results is None:
        return "Not evaluated yet."
    table = comparison_table(results)
    rows = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([f"{table.title}.\n", *lines])


def _cell(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _program(run: Run) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(run.encoder(), (sample_images(run),), dynamic_shapes=({0: batch},))
