"""Evaluation protocols by name: what a command does by default under this package's own one and under published ones.

docs/protocols.md says which published table belongs to which, and what remains different.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from simclr_fast.config import flag

ProtocolName = Literal["own", "simclr", "lightly", "solo-learn"]
OWN = "own"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How one command evaluates. values: by option, what it is where it is not given; None where none was published.

    The rest is about training on labels: nesterov: whether SGD's momentum, always 0.9, is Nesterov's; drops: when the
    learning rate falls to a tenth (percent of the steps), without any it follows a cosine to 0; standardize: whether a
    linear classifier sees features of mean 0 and variance 1, or as they are; crop: the random views, as options of the
    augmentation, None for those of the run's recipe.
    """

    values: Mapping[str, Any]
    nesterov: bool = True
    drops: tuple[int, ...] = ()
    standardize: bool = True
    crop: Mapping[str, Any] | None = None


# torchvision's RandomResizedCrop and RandomHorizontalFlip as they are without arguments. Chen et al. 2020, B.5 and B.6:
# random crops with resizing, and flips, are all of the augmentation.
CROP_AND_FLIP = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "hflip": 0.5}

# Penalties of Chen et al. 2020, B.8: 45 logarithmically spaced values from 1e-6 to 1e5. They multiply |weight|^2 / 2
# beside the sum of the cross-entropies (Kornblith et al. 2019, arXiv:1805.08974), so that each is the inverse of
# scikit-learn's C, which penalty_c is; from the strongest to the weakest.
SIMCLR_PENALTY_C = tuple(10.0 ** (k / 4 - 5) for k in range(45))

HELD_OUT = 0.1  # share of the training images that chooses, where there is something to choose

PROTOCOLS: dict[str, dict[str, Protocol]] = {
    "knn": {
        OWN: Protocol({"knn_k": (1, 5, 10, 20, 50, 100, 200), "knn_t": 0.1}),
        # lightly-ai/lightly: benchmarks/imagenet/resnet50/knn_eval.py, lightly/utils/benchmarking/knn.py.
        "lightly": Protocol({"knn_k": (200,), "knn_t": 0.1}),
        # vturrisi/solo-learn: solo/utils/knn.py, the defaults of WeightedKNNClassifier.
        "solo-learn": Protocol({"knn_k": (20,), "knn_t": 0.07}),
    },
    "linear": {
        OWN: Protocol(
            {
                "method": "both",
                "batch_size": 256,
                "lr_base": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
                "penalty_c": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
            }
        ),
        # Chen et al. 2020 (arXiv:2002.05709): SGD B.5 and B.6, L-BFGS B.8; google-research/simclr: README.md.
        "simclr": Protocol(
            {
                "method": "both",
                "epochs": 90,
                "batch_size": 4096,
                "lr_base": (0.1,),
                "penalty_c": SIMCLR_PENALTY_C,
                "held_out": HELD_OUT,
            },
            standardize=False,
            crop=CROP_AND_FLIP,
        ),
        # lightly-ai/lightly: benchmarks/imagenet/resnet50/linear_eval.py (epochs, views),
        # lightly/utils/benchmarking/linear_classifier.py (optimizer).
        "lightly": Protocol(
            {
                "method": "sgd",
                "epochs": 90,
                "batch_size": 256,
                "lr_base": (0.1,),
                "penalty_c": None,
                "held_out": HELD_OUT,
            },
            nesterov=False,
            standardize=False,
            crop=CROP_AND_FLIP,
        ),
        # vturrisi/solo-learn: scripts/linear/imagenet-100/simclr.yaml; in solo/args/linear.py the rate is that of 256
        # images and the momentum 0.9, in solo/methods/linear.py the rate falls to a tenth; the views are those of
        # solo/data/classification_dataloader.py.
        "solo-learn": Protocol(
            {
                "method": "sgd",
                "epochs": 100,
                "batch_size": 256,
                "lr_base": (1.0,),
                "penalty_c": None,
                "held_out": HELD_OUT,
            },
            nesterov=False,
            drops=(60, 80),
            standardize=False,
            crop=CROP_AND_FLIP,
        ),
    },
    "finetune": {
        OWN: Protocol({"fractions": (0.01, 0.1, 1.0), "lr_base": 0.05}),
        # Epochs follow from the share of the labels, in finetune.py: 60 of 1% and 30 of 10%, as Chen et al. 2020, B.5,
        # have them, and 30 of all, as lightly has them; `described` is told.
        "simclr": Protocol(
            {"fractions": (0.01, 0.1), "min_steps": 0, "batch_size": 4096, "lr_base": 0.05}, crop=CROP_AND_FLIP
        ),
        # lightly-ai/lightly: benchmarks/imagenet/resnet50/finetune_eval.py.
        "lightly": Protocol(
            {"fractions": (1.0,), "min_steps": 0, "batch_size": 256, "lr_base": 0.05},
            nesterov=False,
            crop=CROP_AND_FLIP,
        ),
    },
}


def protocol_of(options: Any) -> Protocol:
    """The protocol that a command's options name."""
    return PROTOCOLS[options.command][options.protocol]


def described(options: Any, **theirs: Any) -> str:
    """What a table's title says of the protocol: nothing of this package's own, else its name.

    Options that are other than the protocol's are named, too, as figures are then none of that protocol. options: those
    of a command that has protocols; theirs: what the protocol has for options whose value follows from the data.
    """
    if options.protocol == OWN:
        return ""
    theirs = {**protocol_of(options).values, **theirs}
    ours = {name: getattr(options, name) for name in theirs}
    other = [f"{flag(name)} {_words(one)}" for name, one in ours.items() if not _follows(name, one, theirs[name])]
    return f"; protocol {options.protocol}" + (f", but {', '.join(other)}" if other else "")


def _follows(name: str, ours: Any, theirs: Any) -> bool:
    """Whether an option's value is the protocol's; one of its methods or a part of its fractions is."""
    if name == "fractions" and ours is not None:
        return set(ours) <= set(theirs)
    return ours in (None, theirs) or (name == "method" and theirs == "both")


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
