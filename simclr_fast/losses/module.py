"""`ContrastiveLoss`: what the modules of the losses share, their options and the temperature, fixed or learned."""

from torch import Tensor, nn

from simclr_fast import distributed
from simclr_fast.backends import check_backend
from simclr_fast.losses.arguments import Backend, Precision, Reduction, check_flags, check_options
from simclr_fast.temperature import check_temperature


class ContrastiveLoss(nn.Module):
    """A loss as a module. `options()` gives the keyword arguments of its function.

    `gather_distributed=True` compares with the rows of all processes (of the default group; alone without one). A
    tensor as `temperature` moves with the module; an nn.Parameter is learned with it; a module is called for it, as
    `LearnedTemperature` is meant to be. The options are checked here.
    """

    def __init__(
        self,
        temperature: float | Tensor | nn.Module,
        gather_distributed: bool = False,
        *,
        reduction: Reduction = "mean",
        eps: float = 1e-8,
        precision: Precision | None = None,
        backend: Backend = "auto",
    ):
        super().__init__()
        check_flags(gather_distributed=gather_distributed)
        if gather_distributed:
            distributed.default_group()  # raises where torch.distributed is missing
        check_options(reduction, eps, precision)
        check_backend(backend)
        if not isinstance(temperature, nn.Module):
            temperature = check_temperature(temperature)
        if isinstance(temperature, Tensor) and not isinstance(temperature, nn.Parameter):
            self.register_buffer("temperature", temperature)
        else:
            self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.reduction = reduction
        self.eps = eps
        self.precision = precision
        self.backend = backend

    def options(self) -> dict:
        """temperature, reduction, group, eps, precision and backend of one call."""
        return {
            "temperature": self.temperature() if isinstance(self.temperature, nn.Module) else self.temperature,
            "reduction": self.reduction,
            "group": distributed.default_group() if self.gather_distributed else None,
            "eps": self.eps,
            "precision": self.precision,
            "backend": self.backend,
        }

    def extra_repr(self) -> str:
        """The options, for print(module)."""
        return (
            f"temperature={self.temperature}, gather_distributed={self.gather_distributed}, "
            f"reduction={self.reduction!r}, backend={self.backend!r}"
        )
