"""The study of the recipe `small-images`: grey clothes of 28 pixels, and few minutes on two cores.

It needs --dataset fashion-mnist and --data, or other labelled images: the recipe itself names none.
"""

from tools.tune.study import Axis, Study

START = {
    "size": 28,
    "scale": [0.2, 1.0],
    "ratio": [0.75, 4 / 3],
    "hflip": 0.5,
    "jitter": [0.4, 0.4, 0.4, 0.1],  # as the recipes for CIFAR-10 have it; grey images have no saturation and no hue
    "jitter_p": 0.8,
    "gray_p": 0.2,
    "blur_p": 0.0,
    "rotate": 0.0,
    "shear": 0.0,
    "model_kwargs": [],
    "head_hidden": 256,
    "head_dim": 128,
    "temperature": 0.2,
    "epochs": 20,
    "batch_size": 128,
    "opt": "adamw",
    "lr": 2e-3,
    "warmup_epochs": 1.0,
    "weight_decay": 1e-4,
    "model_ema_decay": 0.99,
    "amp_dtype": "bfloat16",  # half the time of float32 on a CPU with AMX, for the search alone
}

STUDY = Study(
    recipe="small-images",
    start=START,
    steps=200,
    final_steps=1872,
    axes=(
        Axis("jitter", ({"jitter": [0.8, 0.8, 0.4, 0.1]},)),
        Axis("grid of the features", ({"model_kwargs": ["grid=4"]},)),
        Axis("blur", ({"blur_p": 0.5},)),
        Axis("temperature", ({"temperature": 0.1},)),
        Axis("scale", ({"scale": [0.4, 1.0]},)),
        Axis("flip", ({"hflip": 0.0},)),
        Axis("smaller batch", ({"batch_size": 64, "steps": 400},)),
        Axis("higher temperature", ({"temperature": 0.4},)),
        Axis("warp", ({"rotate": 10.0, "shear": 0.1}, {"rotate": 25.0, "shear": 0.3})),
        Axis("learning rate", ({"lr": 1e-3}, {"lr": 4e-3})),
    ),
    finalists=(),
    final_seeds=(0,),
    held_out=0.2,
    images=10_000,
)
