"""The command `finetune`: backbone and classifier trained on a part of the labels, pretrained and from scratch."""

import statistics
from typing import Any

from torch import Tensor

from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.classifier import Schedule, Speed, fine_tune
from simclr_fast.evaluation.features import REFERENCE_BATCH, Pixels, cut_batch, embed, fitting_batch, preprocess_of
from simclr_fast.evaluation.label_list import with_labels_of
from simclr_fast.evaluation.options import FinetuneOptions
from simclr_fast.evaluation.probes import fit_linear, standardize
from simclr_fast.evaluation.protocols import OWN, described, protocol_of
from simclr_fast.evaluation.results import LIST, fraction_key, share_of_labels
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.splits import balanced_fraction
from simclr_fast.evaluation.tables import TOP, ResultTable, accuracy, class_names, spread, top5_accuracy
from simclr_fast.process import autocast_dtype, compile_backend

COLUMNS = {"raw": "raw pixels, linear", "scratch": "from scratch", "checkpoint": "from the checkpoint"}
PUBLISHED_EPOCHS = {0.01: 60, 0.1: 30}  # Chen et al. 2020, B.5
DEMO_EPOCHS = {0.01: 60, 0.1: 30, 1.0: 5}
OTHER_EPOCHS = 30
DEMO_MIN_STEPS = 300  # with half of them, training from scratch is not done yet and would be beaten unfairly


def main(session: Session) -> dict[str, Any]:
    """Test accuracy by share of the labels and initialisation, mean over draws of the labelled images."""
    options, run, device = session.options, session.run, session.device
    data = session.labelled_data()
    all_labels, protocol = len(data.labelled), protocol_of(options)
    data = with_labels_of(data, options.label_list)
    fractions = options.fractions or (1.0,)  # of a list all labels are trained on
    demo = run.config.recipe == "demo" and options.protocol == OWN
    batch_size = options.batch_size or (64 if demo else 256)
    min_steps = options.min_steps if options.min_steps is not None else (DEMO_MIN_STEPS if demo else 0)
    if batch_size % session.process.world_size:
        raise ConfigError(f"--batch-size {batch_size}: it must divide by the {session.process.world_size} processes")
    published = tuple(
        (DEMO_EPOCHS if demo else PUBLISHED_EPOCHS).get(
            # Of a list's: the published ones have 1.00% and 10.00% of the labels.
            fraction if options.label_list is None else round(len(data.labelled) / all_labels, 2),
            OTHER_EPOCHS,
        )
        for fraction in fractions
    )
    epochs, protocol_text = options.epochs or published, described(options, epochs=published)
    speed = Speed(
        autocast_dtype(options.amp_dtype, device),
        options.channels_last,
        compile_backend(options.torchcompile, device),
    )
    preprocess, truth, classes = preprocess_of(run), data.test.labels, len(class_names(data))
    raw_train, raw_test = standardize(
        *(embed(Pixels(), part, preprocess, device) for part in (data.labelled, data.test))
    )
    inits = [name for name in ("scratch", "checkpoint") if options.init in ("both", name)]
    results: dict[str, dict[str, dict[str, object]]] = {}
    for fraction, epochs_of_it in zip(fractions, epochs):
        logits: dict[str, list[Tensor]] = {name: [] for name in ("raw", *inits)}
        draws = options.draws if fraction < 1 else 1
        for draw in range(draws):
            chosen = balanced_fraction(data.labelled.labels, fraction, options.seed * options.draws + draw)
            labels = data.labelled.labels[chosen]
            batch = fitting_batch(batch_size, len(chosen), session.process.world_size)
            if draw == 0 and 0 < batch < batch_size:
                session.say(f"{_part(options, fraction)} of the labels: {cut_batch(batch, batch_size)}")
            raw = fit_linear(raw_train[chosen], labels, classes=classes, device=device)
            logits["raw"].append(raw.logits(raw_test))
            for init in inits:
                seed = options.seed * options.draws + draw
                of_draw, steps = fine_tune(
                    *(run, init, data.labelled.subset(chosen), data.test),
                    Schedule(
                        epochs=epochs_of_it,
                        min_steps=min_steps,
                        batch_size=batch,
                        lr=options.lr_base * batch / REFERENCE_BATCH,
                        nesterov=protocol.nesterov,
                        crop=protocol.crop,
                    ),
                    classes=classes,
                    seed=seed,
                    process=session.process,
                    speed=speed,
                    title=f"{_part(options, fraction)} of the labels, {COLUMNS[init]}, draw {draw + 1} of {draws}",
                )
                logits[init].append(of_draw)
                results[LIST if options.label_list is not None else fraction_key(fraction)] = {
                    "images": len(chosen),
                    "batch_size": batch,
                    "epochs": epochs_of_it,
                    "steps": steps,
                    **{name: _scores(of_draws, truth) for name, of_draws in logits.items() if of_draws},
                }
                session.keep(results)
    columns = {name: title for name, title in COLUMNS.items() if name in ("raw", *inits)}
    rows = {}
    for fraction, result in zip(fractions, results.values()):
        row = f"{_part(options, fraction)} ({result['images']} images)"
        rows[row] = result
        if classes > TOP:
            rows[f"{row}, top-5"] = {name: result[name]["top5_mean"] for name in columns}
    listed = f" on the {len(data.labelled)} labels of {options.label_list.name}" if options.label_list else ""
    title = f"Fine-tuning{listed}: test accuracy (%), mean and standard deviation over draws{protocol_text}"
    return session.finish(results, ResultTable.of(title, "labels", columns, rows), protocol=protocol_text)


def _part(options: FinetuneOptions, fraction: float) -> str:
    """What the labels that are trained on are called."""
    return share_of_labels(fraction) if options.label_list is None else options.label_list.name


def _scores(logits: list[Tensor], truth: Tensor) -> dict[str, object]:
    """Accuracies over draws; logits [Q, classes] of each."""
    draws = [accuracy(of_draw, truth) for of_draw in logits]
    scores = {**spread(draws), "draws": draws}
    if logits[0].shape[1] > TOP:
        scores["top5_mean"] = statistics.mean(top5_accuracy(of_draw, truth) for of_draw in logits)
    return scores
