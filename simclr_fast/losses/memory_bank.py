"""`MemoryBank`: a queue of unit rows of earlier batches, which NTXentLoss takes for its negatives, as MoCo does.

He et al. 2020, arXiv:1911.05722. Names, shapes, first rows and order of filling are those of lightly's MemoryBankModule
(1.6), whose state dict however lacks the bank: load such a checkpoint with strict=False, and the bank starts anew.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from simclr_fast import distributed
from simclr_fast.ops.ntxent.reference import normalize_rows


class MemoryBank(nn.Module):
    """The last rows that were put into it, `bank` [K, D]; `bank_ptr` [1] is where the next batch goes.

    It starts full of random unit rows. A batch that reaches the end fills the bank up, what is left of the batch is
    dropped, and the next one begins at row 0. Both buffers are in the state dict. The pointer stays on the device.

    size, width: K and D. Width None takes D from the first rows that it is asked for; until then `bank` is [K, 0], in a
        checkpoint as well, and a checkpoint with any D can be loaded.
    gather_distributed: the bank is filled with the rows of all processes, in rank order, and is the same on all of them
        from the first use on, when all take rank 0's. Else each process has a bank of its own rows (unless
        DistributedDataParallel wraps the loss, too, which by default gives all ranks the buffers of rank 0).
    """

    def __init__(self, size: int, width: int | None = None, *, gather_distributed: bool = False):
        super().__init__()
        self.size, self.width = size, width
        self.gather_distributed = gather_distributed
        self.agreed = False  # whether the ranks have one bank
        self.register_buffer("bank", torch.empty(size, width or 0))
        self.register_buffer("bank_ptr", torch.empty(1, dtype=torch.long))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fills the bank with random rows, as at first; what was built on the meta device needs it after `to_empty`."""
        self.bank.copy_(_random_rows(*self.bank.shape, device=self.bank.device))
        self.bank_ptr.zero_()
        self.agreed = False

    def forward(self, queries: Tensor) -> Tensor:
        """The bank [K, D], which the next `enqueue` changes, for rows [n, D] that it is to be compared with."""
        width = queries.shape[1]
        if self.bank.shape[1] != width:
            if self.bank.shape[1]:
                raise ValueError(f"out0 has D = {width}, and the memory bank D = {self.bank.shape[1]}: use one D")
            self._create(width)
        if self.bank.device != queries.device:
            with torch.inference_mode(False):
                self.bank, self.bank_ptr = self.bank.to(queries.device), self.bank_ptr.to(queries.device)
        if (
            self.gather_distributed
            and not self.agreed
            and distributed.rank_and_size(distributed.default_group())[1] > 1
        ):
            self._take_that_of_rank_0()
        return self.bank

    @torch.no_grad()
    def enqueue(self, keys: Tensor, eps: float = 1e-8) -> None:
        """Puts rows [n, D], normalised here, in the place of the oldest; with `gather_distributed` those of all ranks.

        The host reads nothing: rows beyond the end rewrite what stands at the bank's begin.
        """
        keys = normalize_rows(keys, eps)
        group = distributed.default_group() if self.gather_distributed else None
        if distributed.rank_and_size(group)[1] > 1:
            keys = distributed.all_gather_shards(keys, group)
        size = self.size
        end = self.bank_ptr + keys.shape[0]
        keys = keys[:size]
        places = self.bank_ptr + torch.arange(keys.shape[0], device=keys.device)
        fits, places = places < size, places % size
        self.bank.index_copy_(0, places, torch.where(fits[:, None], keys.to(self.bank.dtype), self.bank[places]))
        self.bank_ptr.copy_(torch.where(end >= size, 0, end))

    def _create(self, width: int) -> None:
        with torch.inference_mode(False):  # a tensor made under it could not be updated later
            self.bank = _random_rows(self.size, width).to(self.bank)

    @torch.compiler.disable(reason="collectives of a module's first call")
    def _take_that_of_rank_0(self) -> None:
        for buffer in (self.bank, self.bank_ptr):
            dist.broadcast(buffer, src=0)
        self.agreed = True

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        saved = state_dict.get(prefix + "bank")
        if self.width is None and saved is not None and saved.ndim == 2 and saved.shape[0] == self.size:
            with torch.inference_mode(False):
                self.bank = self.bank.new_empty(saved.shape)
        self.agreed = False
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Size and filling, for print(module)."""
        return f"size={self.size}, width={self.width}, gather_distributed={self.gather_distributed}"


def bank_size(size: int | Sequence[int]) -> tuple[int, ...]:
    """(K,) or (K, D) of a `memory_bank_size`, and () for no bank, 0 or (0, D); else TypeError or ValueError."""
    sizes = (size,) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else None
    if sizes is None or isinstance(size, str) or any(isinstance(x, bool) or not isinstance(x, int) for x in sizes):
        raise TypeError(f"memory_bank_size={size!r}: pass a number of rows K, or (K, D); 0 for no memory bank")
    if len(sizes) not in (1, 2) or any(x < 0 for x in sizes):
        raise ValueError(f"memory_bank_size={size!r}: pass a number of rows K >= 0, or (K, D) with D >= 1")
    if sizes[0] == 0:
        return ()
    if sizes[1:] == (0,):
        raise ValueError(f"memory_bank_size={size!r}: rows without columns; pass (K, D) with the D of the embeddings")
    return sizes


def _random_rows(rows: int, width: int, device: torch.device | None = None) -> Tensor:
    return nn.functional.normalize(torch.randn(rows, width, device=device), dim=1)
