"""What --profile measured, as numbers and as a table."""

import dataclasses
from typing import Literal, TypeAlias

from simclr_fast.config import SourceOptions
from simclr_fast.data.packed import MANIFEST, is_packed, read_checked

# Of a step, in their order; "copy" is the device's time for what comes from the host.
PHASES = ("copy", "augment", "forward", "loss", "backward", "optimizer")
# How the images of a data set are stored: not packed, or packed as what.
Form: TypeAlias = Literal["files", "jpeg", "raw"]


def form_of(options: SourceOptions) -> Form:
    """How the images of a data set that can be read are stored."""
    if options.dataset in ("auto", "packed") and is_packed(options.data):
        return read_checked(options.data / MANIFEST)["format"]
    return "files"


@dataclasses.dataclass(frozen=True)
class Loading:
    """The threads that read and decode images, while steps ran.

    threads: how many, 0 where the step itself does it; busy_share: the share of their time (fraction) with an image at
    hand; cpu_share: the share of that in which they had a core; image_ms: busy milliseconds of a thread per image;
    decodes: whether there is anything to decode.
    """

    threads: int
    busy_share: float
    cpu_share: float
    image_ms: float
    decodes: bool = True


@dataclasses.dataclass(frozen=True)
class Profile:
    """Milliseconds per step.

    step_ms, waiting_ms (of the host, for data) and idle_ms (of the device; None on the CPU) are of steps that run as
    always, as is `loading` (None where images lie in memory); phase_ms is of steps in which every phase waits for the
    device. The loss's backward pass is counted as loss.
    """

    step_ms: float
    waiting_ms: float
    phase_ms: dict[str, float]
    idle_ms: float | None = None
    loading: Loading | None = None

    @property
    def waiting_share(self) -> float:
        """Share of the step (fraction) in which the host waits for data."""
        return self.waiting_ms / self.step_ms

    @property
    def idle_share(self) -> float:
        """Share of the step (fraction) in which the device has nothing to do; 0 on the CPU."""
        return (self.idle_ms or 0.0) / self.step_ms

    def share(self, *phases: str) -> float:
        """Share (fraction) that these phases take together: of the step, or of all phases where they take longer.

        They are of other steps, which may have been slower ones.
        """
        return sum(self.phase_ms[name] for name in phases) / max(self.step_ms, self.phases_ms)

    @property
    def phases_ms(self) -> float:
        """What the phases take one after the other; the copy goes on beside them."""
        return sum(ms for name, ms in self.phase_ms.items() if name != "copy")

    def table(self) -> str:
        """A line for the waiting and for each phase, and one for the threads that decode."""
        idle = {} if self.idle_ms is None else {"idle": self.idle_ms}
        rows = {"waiting": self.waiting_ms, **idle, **self.phase_ms, "step": self.step_ms}
        shares = {name: ms / self.step_ms for name, ms in rows.items()} | {
            name: self.share(name) for name in self.phase_ms
        }
        lines = [f"{'':12s} {'ms/step':>9s} {'share':>7s}"]
        lines += [f"{name:12s} {ms:9.2f} {shares[name]:7.1%}" for name, ms in rows.items()]
        lines.append(f"loss + augmentation: {self.share('augment', 'loss'):.1%} of the step")
        if self.loading is not None:
            of = self.loading
            who = f"{of.threads} thread{'s' * (of.threads > 1)}" if of.threads else "the step itself"
            work = "reading and decoding" if of.decodes else "reading"
            lines.append(f"{work}: {of.image_ms:.2f} ms per image, {who} busy {of.busy_share:.0%} of the time")
        return "\n".join(lines)
