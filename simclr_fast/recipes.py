"""The recipes of `simclr-fast pretrain`: the defaults of every option, by name."""

from pathlib import Path

from simclr_fast.config import AugmentOptions, Config, DataOptions, ModelOptions, OptimizationOptions, RunOptions

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of its training images

# What an option is where a recipe says nothing are ImageNet's constants of Chen et al. 2020 (arXiv:2002.05709), section
# 2.2 and appendix A. What was published for each recipe: expectations.py.
RECIPES: dict[str, Config] = {
    # One's own photos: ImageNet's views and network, at a batch that one GPU holds, for which the paper's square-root
    # scaling (its appendix B.1, 0.075 * sqrt(batch)) is better than the linear one.
    "photos": Config(
        recipe="photos",
        data=DataOptions(max_bad_images=0.1),  # a few damaged ones are a larger share of few photos
        optimization=OptimizationOptions(batch_size=256, lr_base=1.2, lr_base_scale="sqrt"),
        run=RunOptions(output=Path("runs/photos")),
    ),
    # Chosen on held-out training digits by `python -m tools.tune demo`: docs/tables/recipe_demo.md. Views of 16 pixels
    # take a third of the time of 28, and so many more steps are worth more than the detail.
    "demo": Config(
        recipe="demo",
        data=DataOptions(dataset="mnist5k", workers=0),
        augment=AugmentOptions(
            size=16,
            scale=(0.4, 1.0),
            hflip=0.0,
            jitter=(0.8, 0.8, 0.0, 0.0),
            gray_p=0.0,
            blur_p=0.0,
            rotate=25.0,
            shear=0.3,
            mean=(0.0,),  # black stays 0, what rotated corners are filled with
            std=(1.0,),
        ),
        model=ModelOptions(model="resnet_mini", head_hidden=256),
        optimization=OptimizationOptions(
            temperature=0.4,
            epochs=45,
            batch_size=64,
            opt="adamw",
            lr=2e-3,
            warmup_epochs=1.0,
            weight_decay=1e-4,
        ),
        run=RunOptions(output=Path("runs/demo"), knn_epochs=5),
    ),
    # Small images that are no digits, whose colours and brightness vary more than their shapes: chosen on held-out
    # training images of Fashion-MNIST (docs/tables/recipe_small_images.md). On grey images hue, saturation and grey do
    # nothing; for images in colour they are those of CIFAR-10.
    "small-images": Config(
        recipe="small-images",
        augment=AugmentOptions(
            size=28,
            scale=(0.4, 1.0),
            jitter=(0.8, 0.8, 0.4, 0.1),
            blur_p=0.5,
            mean=(0.5,),  # one number serves grey images and those in colour
            std=(0.25,),
        ),
        model=ModelOptions(model="resnet_mini", model_kwargs=("grid=4",), head_hidden=256),
        optimization=OptimizationOptions(
            temperature=0.4,
            epochs=4,
            batch_size=128,
            opt="adamw",
            lr=2e-3,
            warmup_epochs=0.2,
            weight_decay=1e-4,
        ),
        run=RunOptions(output=Path("runs/small-images"), knn_epochs=2),
    ),
    # The fast one: the constants of dkobak/simclr-cifar10, whose README says what each changes: grey with probability
    # 0.1, not 0.2, gains most, and a larger batch than its 512 changes nothing.
    "cifar10-r18": Config(
        recipe="cifar10-r18",
        data=DataOptions(dataset="cifar10", workers=0),
        augment=AugmentOptions(
            size=32,
            scale=(0.2, 1.0),
            jitter=(0.4, 0.4, 0.4, 0.1),
            gray_p=0.1,
            blur_p=0.0,
            mean=CIFAR10_MEAN,
            std=CIFAR10_STD,
        ),
        model=ModelOptions(model="resnet18", stem="cifar", head_hidden=1024),
        optimization=OptimizationOptions(
            temperature=0.5,
            epochs=500,
            batch_size=1024,
            opt="sgd",
            lr_base=0.03,
            warmup_epochs=0.0,
            weight_decay=5e-4,
        ),
        run=RunOptions(output=Path("runs/cifar10-r18")),
    ),
    # The paper's, of its appendix B.9: the best of its grid, to which a batch of 1024 and a temperature of 0.5 belong;
    # a learning rate of 1 is the middle one.
    "cifar10": Config(
        recipe="cifar10",
        data=DataOptions(dataset="cifar10", workers=0),
        augment=AugmentOptions(size=32, jitter=(0.4, 0.4, 0.4, 0.1), blur_p=0.0, mean=CIFAR10_MEAN, std=CIFAR10_STD),
        model=ModelOptions(model="resnet50", stem="cifar"),
        optimization=OptimizationOptions(temperature=0.5, epochs=1000, batch_size=1024, lr_base=1.0),
        run=RunOptions(output=Path("runs/cifar10")),
    ),
    # Views, head, loss and learning rate of htdt/self-supervised (arXiv:2007.06346), whose figure is the best that was
    # published for SimCLR on STL-10. Its network pools after a 3x3 stem, ours does not; its rate falls in steps.
    "stl10": Config(
        recipe="stl10",
        data=DataOptions(dataset="stl10", workers=0),
        augment=AugmentOptions(
            size=64,
            scale=(0.2, 1.0),
            jitter=(0.4, 0.4, 0.4, 0.1),
            gray_p=0.1,
            blur_p=0.0,
            mean=(0.43, 0.42, 0.39),
            std=(0.27, 0.26, 0.27),
        ),
        model=ModelOptions(model="resnet18", stem="cifar", head_hidden=1024),
        optimization=OptimizationOptions(
            temperature=0.5,
            epochs=500,
            batch_size=512,
            opt="adamw",
            lr=2e-3,
            warmup_epochs=5.0,
            weight_decay=1e-6,
        ),
        run=RunOptions(output=Path("runs/stl10")),
    ),
    # A hundred epochs at any batch from 256 to 8192: appendix B.1, 0.075 * sqrt(batch), whose square root gains
    # five points over linear scaling at 256.
    "imagenet-100ep": Config(
        recipe="imagenet-100ep",
        optimization=OptimizationOptions(batch_size=256, lr_base=1.2, lr_base_scale="sqrt"),
        run=RunOptions(output=Path("runs/imagenet-100ep")),
    ),
    # The paper's best ResNet-50 (its table 6).
    "imagenet": Config(
        recipe="imagenet",
        optimization=OptimizationOptions(epochs=1000),
        run=RunOptions(output=Path("runs/imagenet")),
    ),
}

DEFAULT_RECIPE = "photos"
