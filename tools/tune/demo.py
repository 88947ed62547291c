"""The study of the recipe `demo`: digits of 28 pixels, and few minutes on two cores."""

from tools.tune.study import Axis, Study

START = {
    "scale": [0.4, 1.0],
    "ratio": [0.75, 4 / 3],
    "jitter": [0.4, 0.4, 0.0, 0.0],
    "jitter_p": 0.8,
    "blur_p": 0.0,
    "rotate": 25.0,
    "shear": 0.3,
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
}

STUDY = Study(
    recipe="demo",
    start=START,
    steps=250,
    final_steps=900,
    axes=(
        Axis("temperature", ({"temperature": 0.1}, {"temperature": 0.3}, {"temperature": 0.5})),
        Axis("scale", ({"scale": [0.2, 1.0]}, {"scale": [0.6, 1.0]})),
        Axis("warp", ({"rotate": 15.0, "shear": 0.2}, {"rotate": 35.0, "shear": 0.5})),
        Axis("blur", ({"blur_p": 0.5},)),
        Axis("jitter", ({"jitter_p": 0.0}, {"jitter": [0.8, 0.8, 0.0, 0.0]})),
        Axis("batch", ({"batch_size": 64, "steps": 500}, {"batch_size": 256, "steps": 125})),
        Axis("learning rate", ({"lr": 1e-3}, {"lr": 4e-3})),
        Axis("head", ({"head_hidden": 512}, {"head_hidden": 1024}, {"head_layers": 3})),
        Axis("loss", ({"decoupled": True},)),
    ),
    finalists=({},),
)
