"""What to expect of a recipe: results that were published for its data set and network, and rates that were measured.

A figure stands here only with a source that says it; what its training did otherwise than the recipe is named.
"""

import dataclasses
import math
import shlex
from collections.abc import Sequence

from simclr_fast.config import OptimizationOptions

RUN = "{run}"  # stands in a command for the run's folder


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a figure stands. url: a page of this project where it was measured by it."""

    name: str
    url: str

    @property
    def is_ours(self) -> bool:
        return not self.url.startswith("https://")


@dataclasses.dataclass(frozen=True)
class Expectation:
    """A result for a recipe's data set and network.

    measure: what was measured, as a table's row names it; accuracy: fraction of the test images; batch_size: None where
    the source names none; command: what measures the same on a run's folder, RUN; result: the probe of results.json
    that measures nearly the same at a run's end, None where none does; differs: how that training or measuring was
    another than the recipe's and the command's.
    """

    measure: str
    accuracy: float
    epochs: int
    batch_size: int | None
    source: Source
    command: str
    result: str | None = None
    differs: str = ""

    def command_for(self, folder: object) -> str:
        """The command on a run's folder."""
        return self.command.replace(RUN, shlex.quote(str(folder)))


@dataclasses.dataclass(frozen=True)
class Images:
    """The images that a recipe's figures belong to, whatever files hold them.

    images: trained on; test_images: tested on; classes: their names, or where copies name them in several ways, their
    number.
    """

    name: str
    images: int
    test_images: int
    classes: tuple[str, ...] | int

    def are(self, images: int, test_images: int, classes: Sequence[str]) -> bool:
        """Whether so many images of these classes are them."""
        same = len(classes) == self.classes if isinstance(self.classes, int) else tuple(classes) == self.classes
        return same and (images, test_images) == (self.images, self.test_images)


@dataclasses.dataclass(frozen=True)
class Speed:
    """A rate that was measured. what: what it was measured on."""

    images_per_second: float
    hardware: str
    source: Source
    what: str

    def __str__(self) -> str:
        of = "measured" if self.source.is_ours else f"of {self.source.name}"
        return f"{self.images_per_second:,.0f} images/s {of} on {self.hardware} ({self.what})"


PAPER = Source("Chen et al. 2020", "https://arxiv.org/abs/2002.05709")
GOOGLE = Source("google-research/simclr", "https://github.com/google-research/simclr")
LIGHTLY = Source("lightly's benchmarks", "https://docs.lightly.ai/getting_started/benchmarks.html")
SOLO_LEARN = Source("solo-learn's model zoo", "https://github.com/vturrisi/solo-learn")
KOBAK = Source("dkobak/simclr-cifar10", "https://github.com/dkobak/simclr-cifar10")
# Its code says how it was trained (htdt/self-supervised), later papers repeat its figures.
ERMOLOV = Source("Ermolov et al. 2021, table 1", "https://arxiv.org/abs/2007.06346")
SPIJKERVET = Source("Spijkervet/SimCLR", "https://github.com/Spijkervet/SimCLR")
DEMO = Source("this project", "docs/evaluation.md")
FASHION = Source("this project, Fashion-MNIST", "docs/choose_augmentations.md")
GPU_CHECK = Source("this project", "docs/gpu.md")

CIFAR10 = Images(
    "CIFAR-10",
    50_000,
    10_000,
    ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IMAGENET = Images("ImageNet", 1_281_167, 50_000, 1000)
IMAGES: dict[str, Images] = {
    "demo": Images("the demo's digits", 4_000, 1_000, tuple("0123456789")),
    "small-images": Images("Fashion-MNIST", 60_000, 10_000, CLOTHES),
    "cifar10-r18": CIFAR10,
    "cifar10": CIFAR10,
    "stl10": Images(
        "STL-10",
        100_000,
        8_000,
        ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    ),
    "imagenet-100ep": IMAGENET,
    "imagenet": IMAGENET,
}


# As the sources measured, by commands that do the same; {run} is RUN.
VOTE_OF_10 = "simclr-fast knn {run} --knn-k 10 --knn-t 1000"  # at such a temperature all neighbours weigh alike
VOTE_OF_5 = "simclr-fast knn {run} --knn-k 5 --knn-t 1000"
OF_FEW_LABELS = "simclr-fast few-label {run}"
ON_FEATURES = "simclr-fast linear {run} --method lbfgs"
ON_VIEWS = "simclr-fast linear {run} --method sgd"
AS_PAPER = "simclr-fast linear {run} --protocol simclr --method sgd"
AS_GOOGLE = f"{AS_PAPER} --epochs 100 --batch-size 512"
AS_SOLO_LEARN = "simclr-fast linear {run} --protocol solo-learn"
AS_LIGHTLY = "simclr-fast linear {run} --protocol lightly"
ON_1_PERCENT = "simclr-fast finetune {run} --protocol simclr --init checkpoint --label-list 1percent.txt"
ON_10_PERCENT = ON_1_PERCENT.replace("1percent", "10percent")
KNN_AS_LIGHTLY = "simclr-fast knn {run} --protocol lightly"

FEATURES_BY_ADAM = "their classifier of stored features is trained by Adam"
RATE_OF_100 = "base learning rate 0.06"
BESIDE = "LARS, temperature 0.2; their classifier is trained beside the encoder"
BEST_EPOCH = "trained otherwise; the best epoch on the test images"
OTHER_STEM = "max-pooling behind the stem, a rate that falls in steps, labelled images trained on, too"
OF_GRID = "the best of a grid; the text names no epochs, its code 1000"

EXPECTATIONS: dict[str, tuple[Expectation, ...]] = {
    "demo": (
        Expectation("linear, 10 labels per class", 0.951, 45, 64, DEMO, OF_FEW_LABELS, "few_label_linear"),
        Expectation("1-NN, 10 labels per class", 0.941, 45, 64, DEMO, OF_FEW_LABELS, "few_label_1nn"),
    ),
    "small-images": (
        Expectation("linear, 10 labels per class", 0.781, 4, 128, FASHION, OF_FEW_LABELS, "few_label_linear"),
        Expectation("1-NN, 10 labels per class", 0.739, 4, 128, FASHION, OF_FEW_LABELS, "few_label_1nn"),
    ),
    "cifar10-r18": (
        Expectation("kNN (k = 10)", 0.903, 500, 512, KOBAK, VOTE_OF_10, "knn"),
        Expectation("kNN (k = 10)", 0.914, 1000, 512, KOBAK, VOTE_OF_10, "knn"),
        Expectation("kNN (k = 10)", 0.832, 100, 512, KOBAK, VOTE_OF_10, "knn", RATE_OF_100),
        Expectation("linear", 0.917, 1000, 512, KOBAK, ON_FEATURES, differs=FEATURES_BY_ADAM),
        Expectation("linear", 0.919, 1000, 512, KOBAK, ON_VIEWS, differs="their classifier is trained by Adam"),
        Expectation("linear", 0.9074, 1000, 256, SOLO_LEARN, AS_SOLO_LEARN, differs=BESIDE),
        Expectation("linear, top-5", 0.9975, 1000, 256, SOLO_LEARN, AS_SOLO_LEARN, differs=BESIDE),
        Expectation("linear", 0.91, 1000, 512, GOOGLE, AS_GOOGLE, differs='LARS; its README says "around 91%"'),
        Expectation("kNN (k = 200)", 0.848, 200, 512, LIGHTLY, KNN_AS_LIGHTLY, differs=BEST_EPOCH),
        Expectation("kNN (k = 200)", 0.879, 800, 512, LIGHTLY, KNN_AS_LIGHTLY, differs=BEST_EPOCH),
    ),
    "cifar10": (
        Expectation("linear", 0.940, 1000, 1024, PAPER, AS_PAPER, differs=OF_GRID),
        Expectation("kNN (k = 10)", 0.922, 1000, 512, KOBAK, VOTE_OF_10, "knn", "SGD, grey with probability 0.1"),
        Expectation("linear", 0.937, 1000, 512, KOBAK, ON_VIEWS, differs="SGD, grey with probability 0.1"),
    ),
    "stl10": (
        Expectation("5-NN", 0.8568, 2000, None, ERMOLOV, VOTE_OF_5, "knn", f"{OTHER_STEM}; Euclidean distances"),
        Expectation("linear", 0.9051, 2000, None, ERMOLOV, ON_FEATURES, differs=OTHER_STEM),
        Expectation("linear", 0.765, 100, 256, SPIJKERVET, ON_FEATURES, differs="trained otherwise, by Adam"),
    ),
    "imagenet-100ep": (
        Expectation("linear", 0.628, 100, 256, PAPER, AS_PAPER),
        Expectation("linear", 0.638, 100, 512, PAPER, AS_PAPER),
        Expectation("linear", 0.643, 100, 1024, PAPER, AS_PAPER),
        Expectation("linear", 0.647, 100, 2048, PAPER, AS_PAPER),
        Expectation("linear", 0.645, 100, 4096, PAPER, AS_PAPER),
        Expectation("linear", 0.648, 100, 8192, PAPER, AS_PAPER),
        Expectation("linear", 0.632, 100, 256, LIGHTLY, AS_LIGHTLY),
        Expectation("linear, top-5", 0.852, 100, 256, LIGHTLY, AS_LIGHTLY),
        Expectation("kNN (k = 200)", 0.448, 100, 256, LIGHTLY, KNN_AS_LIGHTLY),
        Expectation("kNN (k = 200), top-5", 0.739, 100, 256, LIGHTLY, KNN_AS_LIGHTLY),
    ),
    "imagenet": (
        Expectation("linear", 0.693, 1000, 4096, PAPER, AS_PAPER),
        Expectation("linear, top-5", 0.890, 1000, 4096, PAPER, AS_PAPER),
        Expectation("linear", 0.689, 800, 4096, PAPER, AS_PAPER),
        Expectation("linear", 0.682, 400, 4096, PAPER, AS_PAPER),
        Expectation("linear", 0.665, 200, 4096, PAPER, AS_PAPER),
        Expectation("linear", 0.646, 100, 4096, PAPER, AS_PAPER),
        Expectation("fine-tuned on 1% of the labels", 0.483, 1000, 4096, PAPER, ON_1_PERCENT),
        Expectation("fine-tuned on 1% of the labels, top-5", 0.755, 1000, 4096, PAPER, ON_1_PERCENT),
        Expectation("fine-tuned on 10% of the labels", 0.656, 1000, 4096, PAPER, ON_10_PERCENT),
        Expectation("fine-tuned on 10% of the labels, top-5", 0.878, 1000, 4096, PAPER, ON_10_PERCENT),
    ),
}

# Why nothing is expected of a recipe.
NOTHING_EXPECTED = {"photos": "every folder of photos is another data set; compare with raw pixels and random weights"}

# A run's rate depends on its machine: only what was measured, with where.
SPEEDS: dict[str, tuple[Speed, ...]] = {
    "demo": (Speed(1_930, "2 quiet cores of an Intel Xeon", DEMO, "training alone"),),
    "small-images": (Speed(593, "2 quiet cores of an Intel Xeon", FASHION, "training alone"),),
    "cifar10-r18": (
        Speed(44_769, "an NVIDIA H200", GPU_CHECK, "steps alone, batch 1024, compiled, bfloat16, LARS"),
        Speed(50_000 / 11.9, "an NVIDIA A100", KOBAK, "11.9 s per epoch"),
    ),
    "cifar10": (Speed(50_000 / 36.9, "an NVIDIA A100", KOBAK, "36.9 s per epoch"),),
    "imagenet-100ep": (
        Speed(1_281_167 / (35 * 60), "two NVIDIA RTX 4090", LIGHTLY, "35 minutes per epoch, evaluations with it"),
        Speed(100 * 1_281_167 / (6 * 3600), "32 TPU v3", GOOGLE, "100 epochs in around 6 hours, batch 4096"),
    ),
    "imagenet": (
        Speed(100 * 1_281_167 / (1.5 * 3600), "128 TPU v3 cores", PAPER, "100 epochs in 1.5 hours, batch 4096"),
    ),
}


def headline(recipe: str, epochs: int, batch_size: int) -> Expectation:
    """Of a recipe's results the first one of those that were trained most like it: in epochs, then in the batch."""
    far = lambda mine, theirs: abs(math.log(mine / theirs)) if theirs is not None else math.inf
    order = lambda one: (far(epochs, one.epochs), far(batch_size, one.batch_size))
    return min(EXPECTATIONS[recipe], key=order)


def described(recipe: str, options: OptimizationOptions) -> str:
    """One line on what to expect of a recipe, for its help: a result, and the time where somebody measured a rate."""
    if recipe not in EXPECTATIONS:
        return f"Nothing was published for it to be compared with: {NOTHING_EXPECTED[recipe]}."
    epochs = options.epochs
    one = headline(recipe, epochs, options.batch_size)
    batch = "" if one.batch_size is None else f" of batches of {one.batch_size}"
    said = f"Expected: {one.measure} {100 * one.accuracy:.1f}% after {one.epochs} epochs{batch} ({one.source.name})"
    for speed in SPEEDS.get(recipe, ())[:1]:
        said += (
            f"; {epochs} epochs take {duration(epochs * IMAGES[recipe].images / speed.images_per_second)} at {speed}"
        )
    return f"{said}."


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would take."""
    if seconds < 600:
        return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
