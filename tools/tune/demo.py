"""The study of the recipe `demo`: digits of 28 pixels, and few minutes on two cores."""

from tools.tune.study import Axis, Study

START = {
    "size": 28,
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

# The recipe's changes to the start; its epochs give the share of its warm-up.
RECIPE = {"size": 16, "temperature": 0.4, "jitter": [0.8, 0.8, 0.0, 0.0], "batch_size": 64, "epochs": 45}

# A step at 28 pixels costs as much as 2.1 at 20 and 2.9 at 16.
STUDY = Study(
    recipe="demo",
    start=START,
    steps=150,
    final_steps=2790,
    axes=(
        Axis("size", ({"size": 20, "steps": 330}, {"size": 16, "steps": 330})),
        Axis("crop", ({"scale": [0.25, 1.0]},)),
        Axis("warp", ({"rotate": 35.0, "shear": 0.5},)),
        Axis("temperature", ({"temperature": 0.1}, {"temperature": 0.4}, {"temperature": 0.6})),
        Axis("learning rate", ({"lr": 4e-3},)),
        Axis("larger batch", ({"batch_size": 256, "steps": 165},)),
        Axis("jitter", ({"jitter": [0.8, 0.8, 0.0, 0.0]},)),
        Axis("smaller batch", ({"batch_size": 64, "steps": 660},)),
        Axis("blur", ({"blur_p": 0.5, "blur_kernel": 3},)),  # a tenth of 16 pixels would be a kernel of 1: no blur
        Axis("width of the head", ({"head_hidden": 512},)),
        Axis("depth of the head", ({"head_layers": 3},)),
        Axis("decoupled loss", ({"decoupled": True},)),
        Axis("schedule", ({"schedule": "linear"}, {"schedule": "constant"})),
        Axis("noise", ({"noise": 0.1},)),
        Axis("output of the head", ({"head_dim": 64},)),
        Axis("average", ({"model_ema_decay": 0.995},)),
    ),
    finalists=(RECIPE, RECIPE | {"schedule": "constant"}),
    final_seeds=(0, 1),
)
