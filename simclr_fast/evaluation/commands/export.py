"""The command `export`: the backbone as files for other programs, checked after writing, with a model card."""

import torch

from simclr_fast.errors import CheckpointError
from simclr_fast.evaluation import exported
from simclr_fast.evaluation.model_card import CARD_FILE, write_model_card
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.tables import ResultTable

TOLERANCE = 1e-5  # of the largest feature, between what was written and the model; ONNX runs other kernels


def main(session: Session) -> None:
    """Write every format, read each again, and compare its features with the model's."""
    run, folder = session.run, session.folder
    exported.export_weights(run, folder)
    exported.export_program(run, folder)
    if session.options.onnx:
        exported.export_onnx(run, folder)
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
    images = exported.sample_images(run)
    encoder = run.encoder()
    truth = encoder(images)
    encoder.load_state_dict(torch.load(folder / exported.STATE_DICT_FILE, weights_only=True))
    features = {exported.STATE_DICT_FILE: encoder(images)}
    features[exported.WEIGHTS_FILE] = exported.read_exported(folder / exported.WEIGHTS_FILE)(images)
    features[exported.PROGRAM_FILE] = torch.export.load(folder / exported.PROGRAM_FILE).module()(images)
    if session.options.onnx:
        features[exported.ONNX_FILE] = exported.run_onnx(folder / exported.ONNX_FILE, images)
    return {name: ((value - truth).abs().max() / truth.abs().max()).item() for name, value in features.items()}
