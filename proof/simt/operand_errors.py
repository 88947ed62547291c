"""Prints the table of operands in docs/ntxent.md: python -m proof.simt.operand_errors

What rounding 512 random unit rows to operands of tensor cores does to S = U U^T: products and sums are exact (float64),
so that the operands' error alone is left.
"""

import torch
from torch import Tensor

from simclr_fast.ops.ntxent.ops import SPLIT_SCALE, split_rows

DEPTHS = (128, 512, 1024)


def to_tf32(x: Tensor) -> Tensor:
    """The nearest float32 numbers of 11 bits."""
    bits = x.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


def tf32_parts(x: Tensor) -> Tensor:
    """[2, ...]: big and small, as float32 is split for tf32 products."""
    big = to_tf32(x)
    return torch.stack([big, to_tf32(x - big)])


def fp16_parts(x: Tensor) -> Tensor:
    """[2, ...]: hi and lo, as the kernels split it."""
    return split_rows(x.float()).double().transpose(0, 1) / SPLIT_SCALE


def product(a: Tensor, b: Tensor, products: int) -> Tensor:
    """a b^T of parts [2, n, D], by hi hi alone or by all three products."""
    (a_hi, a_lo), (b_hi, b_lo) = a, b
    first = a_hi @ b_hi.mT
    return first if products == 1 else a_lo @ b_hi.mT + a_hi @ b_lo.mT + first


def errors(depth: int) -> dict[tuple[str, int], tuple[float, float]]:
    """By operand and number of products: the error of S over S, in norms, and the largest error of an entry of S."""
    rows = torch.randn(512, depth, dtype=torch.float64)
    rows /= rows.norm(dim=1, keepdim=True)
    truth, found = rows @ rows.T, {}
    for name, parts in (("tf32", tf32_parts(rows)), ("fp16", fp16_parts(rows))):
        for products in (1, 3):
            error = product(parts, parts, products) - truth
            found[name, products] = ((error.norm() / truth.norm()).item(), error.abs().max().item())
    return found


def main() -> None:
    torch.manual_seed(0)
    print("| operands | products |" + "".join(f" D = {d} |" for d in DEPTHS))
    print("|---|---|" + "---|" * len(DEPTHS))
    tables = [errors(depth) for depth in DEPTHS]
    for name, products in tables[0]:
        cells = ("{:.1e} / {:.1e}".format(*table[name, products]) for table in tables)
        print(f"| {name} | {products} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
