"""What a backbone is built from, and what every family of backbones knows about its members."""

import abc
import dataclasses
from typing import ClassVar, Literal

from torch import Tensor, nn

from simclr_fast.backbones.model_kwargs import Value


@dataclasses.dataclass(frozen=True)
class Spec:
    """One backbone. name: as --model has it; channels: of the images, 1 or 3; size: their side (pixels), None where
    any will do; stem: as --stem has it; kwargs: what --model-kwargs says."""

    name: str
    channels: int = 3
    size: int | None = None
    stem: str = "imagenet"
    kwargs: dict[str, Value] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A module of a backbone, by its name in it, whose output is a map of features that detection builds on."""

    module: str
    layout: Literal["NCHW", "NHWC"] = "NCHW"


class Family(abc.ABC):
    """Backbones that are built alike. Every method raises ConfigError, in one line, for what cannot work.

    allocates_as_told: whether all memory that building takes is what a library allocates for the spec, so that a
    backbone can be built without it; code of the user's own does as it likes.
    """

    allocates_as_told: ClassVar[bool] = True

    @abc.abstractmethod
    def build(self, spec: Spec) -> nn.Module:
        """images [B, C, S, S] -> features [B, F], without a classifier, with randomly initialised weights."""

    @abc.abstractmethod
    def stages(self, spec: Spec, module: nn.Module) -> tuple[Stage, ...]:
        """The stages for detection of a module that `build` made, finest first; none where it has one scale."""

    def weights(self, spec: Spec, name: str) -> dict[str, Tensor] | None:
        """The state dict of published weights, its classifier included or not; None where the name is none of them."""
        return None

    def weight_names(self, spec: Spec) -> list[str]:
        """The names that `weights` knows."""
        return []

    def loading_code(self, spec: Spec) -> list[str] | None:
        """Lines of Python that make `backbone` without this package; None where only this package can."""
        return None
