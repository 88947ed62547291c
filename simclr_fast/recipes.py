"""The recipes of `simclr-fast pretrain`: the defaults of every option, by name."""

from pathlib import Path

from simclr_fast.config import AugmentOptions, Config, DataOptions, ModelOptions, OptimizationOptions, RunOptions

# ImageNet and CIFAR-10 constants: Chen et al. 2020 (arXiv:2002.05709), section 2.2 and appendices B.6 to B.9.
RECIPES: dict[str, Config] = {
    # One's own photos: ImageNet's views and network, at a batch that one GPU holds, for which the paper's square-root
    # scaling (its appendix B.1, 0.075 * sqrt(batch)) is better than the linear one.
    "photos": Config(
        recipe="photos",
        data=DataOptions(max_bad_images=0.1),  # a few damaged ones are a larger share of few photos
        optimization=OptimizationOptions(batch_size=256, lr_base=1.2, lr_base_scale="sqrt"),
        run=RunOptions(output=Path("runs/photos")),
    ),
    "demo": Config(
        recipe="demo",
        data=DataOptions(dataset="mnist5k", workers=0),
        augment=AugmentOptions(
            size=28,
            scale=(0.4, 1.0),
            hflip=0.0,
            jitter=(0.4, 0.4, 0.0, 0.0),
            gray_p=0.0,
            blur_p=0.0,
            rotate=25.0,
            shear=0.3,
            mean=(0.0,),  # black stays 0, what rotated corners are filled with
            std=(1.0,),
        ),
        model=ModelOptions(model="resnet_mini", head_hidden=256),
        optimization=OptimizationOptions(
            temperature=0.2,
            epochs=20,
            batch_size=128,
            opt="adamw",
            lr=2e-3,
            warmup_epochs=1.0,
            weight_decay=1e-4,
        ),
        run=RunOptions(output=Path("runs/demo"), knn_epochs=5),
    ),
    "cifar10": Config(
        recipe="cifar10",
        data=DataOptions(dataset="cifar10", workers=0),
        augment=AugmentOptions(
            size=32,
            jitter=(0.4, 0.4, 0.4, 0.1),
            blur_p=0.0,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        model=ModelOptions(model="resnet50", stem="cifar"),
        optimization=OptimizationOptions(temperature=0.5, epochs=1000, batch_size=1024, lr_base=1.0),
        run=RunOptions(output=Path("runs/cifar10")),
    ),
    "imagenet": Config(recipe="imagenet", run=RunOptions(output=Path("runs/imagenet"))),
}

DEFAULT_RECIPE = "photos"
