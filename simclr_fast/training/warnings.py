"""Early warnings: what the metrics of a run show to be wrong with it, in one line with the likely cause and a remedy.

Each rule looks at the lines of metrics.jsonl alone, which are there anyway. A loss at chance, or above it, is how every
run begins, so most rules wait; and one line is chance, so they ask for several.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable

from simclr_fast.config import Config
from simclr_fast.optim import peak_lr

# Lines that must agree. The losses of a batch of 8 go from 4.1 to 7.0 and back to 3.6 within three lines of our tests;
# with 10 lines, a run of 200 steps at an interval of 10 would hear of nothing in its first half.
WINDOW = 5
# Views (two of each image of a batch) whose losses make an average. Five single losses of a batch of 2 may all lie
# above chance in a run that learns; from 16 images on, a line is an average of its own.
VIEWS = 32
# Lines that are kept: WINDOW averages of batches of one image take 80. Norms are compared with the median of so many.
REMEMBERED = 100
# Steps, and those of the warm-up, before a loss must have left its chance level. The demo has after 20 steps; LARS
# with batches of thousands may take hundreds. A long warm-up is not waited for beyond LATEST.
EARLIEST, LATEST = 100, 2000
# Of positives, in cosines: (chance - loss) * temperature is about what they are more alike than others. The demo passes
# 0.05 at step 15; 0 would miss a run whose loss hovers just below chance.
LEARNT = 0.02
# Times chance. At temperatures of 0.01 and 0.05 the demo's loss begins at ten and two times its chance level and falls
# for hundreds of steps before it is below, with 4 to 10 times as many pairs found as by chance. Whatever finds this
# many is not at chance until LATEST. Then it must have got better, since an untrained encoder may find as many.
FOUND = 2.0
# The demo's views lie in 44 at the start, in 8 at step 48 and in 16 later, Fashion-MNIST's by the cifar10 recipe in no
# fewer than 3.9; on a line it is 1, in a plane 2.
FEWEST_DIMENSIONS = 2.0
# What have had this many dimensions cannot have fewest because nothing has been learnt yet; an untrained network with
# group norm begins with 1.7 to 2.3, one with batch norm with 20 to 40.
WIDE = 4.0
# Times chance: embeddings in k points find pairs k times as often as chance. At low temperatures embeddings that lie
# close together, and so count as few dimensions, may tell all images apart.
FOUND_COLLAPSED = 4.0
# Cosine of two views. Equal views have 1 but for rounding, the demo's come to 0.85.
SAME = 0.999
# Contrastive accuracy on the first lines. An untrained encoder finds 1 to 5 % of the demo's pairs, and 10 % at step 30;
# what a trained one finds, at a later step than EASY_STEPS, is no symptom. Of fewer images than FEWEST_IMAGES, which
# may all be very different, it may find all.
EASY, EASY_LINES, EASY_STEPS, FEWEST_IMAGES = 0.95, 3, 10, 64
# Nats. The demo in micro-batches of 8 images has 0.44 to 0.69: at step 119 it finds 28 % of the pairs, but 11 % where
# the second views are normalised together with others. In those of 32 it has 0.10 to 0.18, and finds as many then.
LARGEST_GAP = 0.3
# Times the median of the norms before. Within a good run norms change tenfold, but slowly, and they fall.
EXPLODED = 10.0
# Nats that a loss has risen by: that of the two-process test rises by 0.1 in its warm-up. Losses of a small batch vary
# more: by 0.3 / (temperature * sqrt(2N)) in the demo's first steps, for N = 32 and 128; NOISE is three times that.
RISEN, NOISE = 0.3, 0.9

Line = dict[str, float]


@dataclasses.dataclass(frozen=True)
class EarlyWarning:
    """What is wrong, by one of the names of docs/scale.md, and the line that says so."""

    kind: str
    text: str


class EarlyWarnings:
    """Finds what is wrong from line to line; each kind once. A run that goes on knows only the lines since.

    step: steps done before the first line; warmup_steps: of the learning rate.
    """

    def __init__(self, config: Config, *, step: int, warmup_steps: int):
        self.options, self.augment = config.optimization, config.augment
        self.settled = max(EARLIEST, min(warmup_steps, LATEST))
        self.untrained = step == 0 and config.model.pretrained is None
        self.lines: collections.deque[Line] = collections.deque(maxlen=REMEMBERED)
        self.first: Line | None = None  # averages of the first lines
        self.lowest: float | None = None  # loss of the first line, or the lowest median of a window since
        self.best = 0.0  # accuracy of the first line, or the highest mean of a window since
        self.widest = 0.0  # dimensions of the embeddings so far
        self.found: set[str] = set()

    def look(self, step: int, values: Line) -> EarlyWarning | None:
        """What the metrics of one more step show, if anything new: the first that applies, as causes come first."""
        self.lines.append({"step": step, **values})
        rules: dict[str, Callable[[], str | None]] = {
            "identical views": self._identical_views,
            "batch norm": self._batch_norm,
            "learning rate": self._learning_rate,
            "collapse": self._collapse,
            "chance": self._chance,
        }
        found = None
        for kind, rule in rules.items():
            # A rule is asked in any case, since it may keep something of the line.
            text = rule()
            if text is not None and found is None and kind not in self.found and not self._follows(kind):
                found = EarlyWarning(kind, text)
        if found is not None:
            self.found.add(found.kind)
        return found

    def _follows(self, kind: str) -> bool:
        """Whether a kind is only the consequence of one that was told."""
        causes = {"collapse": {"learning rate"}, "chance": {"learning rate", "collapse", "batch norm"}}
        return bool(causes.get(kind, set()) & self.found)

    def _last(self, name: str, count: int = WINDOW) -> list[float]:
        """The values of the last lines, fewer than `count` where there are not so many."""
        return [line[name] for line in list(self.lines)[-count:] if name in line]

    def _averages(self, name: str) -> list[float]:
        """Averages of the last lines, of VIEWS views or more each; fewer than WINDOW where there are not so many."""
        lines = -(-VIEWS // (2 * self.options.batch_size))
        values = self._last(name, WINDOW * lines)
        return [statistics.fmean(values[i : i + lines]) for i in range(0, len(values) - lines + 1, lines)]

    def _finds_more_than(self, times: float) -> bool:
        """Whether the pairs are found more than so many times as often as by chance; of few images, half-way to all."""
        by_chance = math.exp(-self.lines[-1]["chance"])
        found = statistics.fmean(self._averages("contrastive_accuracy") or self._last("contrastive_accuracy"))
        return found > min(times * by_chance, (1 + by_chance) / 2)

    def _identical_views(self) -> str | None:
        last, accuracies = self.lines[-1], self._last("contrastive_accuracy", EASY_LINES)
        cosine = last["positive_logit"] * last["temperature"]
        first = self.untrained and len(self.lines) == EASY_LINES and last["step"] <= EASY_STEPS
        first &= self.options.batch_size >= FEWEST_IMAGES
        # Augmentation is off from the start, or not at all: a few images that are learnt by heart come as far later.
        if len(self.lines) == 1 and cosine > SAME and last["contrastive_accuracy"] > EASY:
            seen = f"the two views of an image are the same (the mean cosine of their embeddings is {cosine:.4f})"
        elif first and min(accuracies) > EASY:
            seen = f"the two views of an image are too much alike (an untrained encoder finds {min(accuracies):.0%})"
        else:
            return None
        return (
            f"{seen}, so there is nothing to learn. The augmentation is off or too weak; look at views.png, and pass "
            f"a lower first number of --scale (now {self.augment.scale[0]:g}) and higher ones of --jitter"
        )

    def _batch_norm(self) -> str | None:
        gaps = self._last("batch_norm_gap")
        if len(gaps) < WINDOW or abs(statistics.fmean(gaps)) < LARGEST_GAP:
            return None
        micro = self.options.micro_batch_size
        remedy = f"a larger --micro-batch-size (now {micro})" if micro else "--sync-bn, or a larger --batch-size"
        return (
            f"embeddings tell which images were normalised together, by {statistics.fmean(gaps):+.2f} nats: batch norm "
            f"leaks, and the loss compares its statistics instead of images. Pass {remedy}, or --norm group"
        )

    def _learning_rate(self) -> str | None:
        losses, lowest, chance = self._last("loss"), self.lowest, self.lines[-1]["chance"]
        norms = [norm for norm in self._last("grad_norm", REMEMBERED) if math.isfinite(norm)]
        now, accuracy = statistics.median(losses), statistics.fmean(self._last("contrastive_accuracy"))
        usual = norms[:-WINDOW]
        if len(losses) == WINDOW or lowest is None:
            self.lowest = now if lowest is None else min(now, lowest)
            self.best = max(self.best, accuracy)
        if len(losses) < WINDOW or lowest is None:
            return None
        o = self.options
        risen = lowest + max(RISEN, NOISE / (o.temperature * math.sqrt(2 * o.batch_size)))
        learnt = chance - LEARNT / o.temperature
        # Where the temperature is low, a loss above chance may go with pairs that are found better and better.
        worse = accuracy < self.best / 2 or not self._finds_more_than(FOUND)
        # What never was below chance has not lost anything, wherever above it goes.
        if lowest < learnt < min(losses) and worse and min(losses) > risen:
            seen = f"the loss has risen from {lowest:.3f} to {now:.3f} (its chance level is {chance:.3f})"
        elif now > risen and len(usual) >= WINDOW and min(norms[-WINDOW:]) > EXPLODED * statistics.median(usual):
            seen = f"the loss has risen from {lowest:.3f} to {now:.3f}, and the norm of its gradient from "
            seen += f"{statistics.median(usual):.3g} to {statistics.median(norms[-WINDOW:]):.3g}"
        else:
            return None
        return (
            f"{seen}: the learning rate is too high. Pass a lower --lr (its peak is {peak_lr(o):.3g}), a longer "
            "--warmup-epochs, or --clip-grad"
        )

    def _collapse(self) -> str | None:
        last, dimensions = self.lines[-1], self._last("effective_dimension")
        self.widest = max([self.widest, *dimensions[-1:]])
        if len(dimensions) < WINDOW or max(dimensions) > FEWEST_DIMENSIONS:
            return None
        if last["step"] < self.settled and self.widest < WIDE:  # without batch norm they may begin in one
            return None
        if self._finds_more_than(FOUND_COLLAPSED):
            return None
        # Two distinct points would be worth ln 2.
        if statistics.median(self._last("loss")) < last["chance"] - math.log(2):
            return None
        return (
            f"the embeddings have collapsed to {statistics.median(dimensions):.1f} dimensions: images look alike. "
            f"--lr (its peak is {peak_lr(self.options):.3g}) or --weight-decay (now {self.options.weight_decay:g}) is "
            "too high, or the images are all the same: look at views.png"
        )

    def _chance(self) -> str | None:
        last, losses, accuracies = self.lines[-1], self._averages("loss"), self._averages("contrastive_accuracy")
        if len(losses) < WINDOW:
            return None
        now, accuracy = statistics.median(losses), statistics.fmean(accuracies)
        if self.first is None:
            self.first = {"loss": now, "accuracy": accuracy}
        if last["step"] < self.settled:
            return None
        # Half the chance level is learnt at any temperature, few images have no more.
        if last["chance"] - min(losses) > min(LEARNT / last["temperature"], last["chance"] / 2):
            return None
        better = not self.untrained or now < self.first["loss"] or accuracy > FOUND * self.first["accuracy"]
        if self._finds_more_than(FOUND) and (better or last["step"] < LATEST):
            return None
        return (
            f"after {last['step']} steps the loss, {now:.3f}, is not below its chance level of "
            f"{last['chance']:.3f}: nothing is learnt. The two views of an image have nothing in common (pass a higher "
            f"first number of --scale, now {self.augment.scale[0]:g}), or --lr is too low or too high (its peak is "
            f"{peak_lr(self.options):.3g})"
        )
