"""The public primitive: what it refuses, and what it calls that."""

import math

import pytest
import torch

from simclr_fast import similarity_logsumexp
from tests.helpers import relative_error

GOOD = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": [[1.0]]}, TypeError, "rows is a list: pass a torch.Tensor"),
        ({"rows": GOOD.long()}, TypeError, "rows has dtype torch.int64: pass float16"),
        ({"rows": GOOD[None]}, ValueError, r"rows has shape \(1, 4, 3\): pass \[N, D\]"),
        ({"rows": GOOD[:0]}, ValueError, r"rows has shape \(0, 3\): it is empty"),
        ({"columns": [[1.0]]}, TypeError, "columns is a list: pass a torch.Tensor"),
        ({"columns": GOOD[:, :0]}, ValueError, r"columns has shape \(4, 0\): it is empty"),
        ({"columns": GOOD.to_sparse()}, ValueError, "columns has layout torch.sparse_coo: pass a dense tensor"),
        ({"columns": GOOD.double()}, TypeError, "rows is torch.float32 and columns is torch.float64: convert one"),
        ({"columns": GOOD.to("meta")}, ValueError, "rows is on cpu and columns is on meta: move one of them"),
        ({"columns": GOOD[:, :2]}, ValueError, r"rows \(4, 3\) and columns \(4, 2\) differ in width D"),
        (
            {"columns": GOOD, "exclude": "pair"},
            ValueError,
            "exclude='pair': pairs are of the rows themselves; pass col",
        ),
        ({"rows": GOOD[:3], "exclude": "pair"}, ValueError, "exclude='pair' with 3 rows: pass an even number, view 0"),
        ({"both": True}, ValueError, "both=True: without columns the rows are the columns, and both results are one"),
        ({"exclude": "all"}, ValueError, "exclude='all': choose one of 'none', 'self', 'pair'"),
        ({"both": 1}, TypeError, "both is a int: pass True or False"),
        ({"normalize": 0}, TypeError, "normalize is a int: pass True or False"),
        ({"temperature": 0.0}, ValueError, "temperature=0.0: pass a positive, finite number"),
        ({"temperature": torch.ones((), device="meta")}, ValueError, "temperature is on meta and rows is on cpu: move"),
        ({"eps": math.nan}, ValueError, "eps=nan: pass a positive, finite number"),
        ({"precision": "fp16"}, ValueError, "precision='fp16': choose one of 'ieee', 'tf32'"),
        ({"backend": "cuda"}, ValueError, "backend='cuda' is unknown; choose one of"),
        ({"backend": "triton"}, RuntimeError, "backend='triton' cannot serve similarity_logsumexp on cpu"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        similarity_logsumexp(**{"rows": GOOD, **change})


def test_columns_may_be_fewer_or_more_where_each_row_leaves_one_out() -> None:
    """Alone: a row whose number no column has leaves none out."""
    rows, columns = torch.randn(5, 3), torch.randn(3, 3)
    s = torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(columns, dim=1).T / 0.2
    own = torch.eye(5, 3, dtype=torch.bool)
    found = similarity_logsumexp(rows, columns, 0.2, exclude="self")
    assert relative_error(found, s.masked_fill(own, -torch.inf).logsumexp(1)) <= 1e-6
    of_columns = similarity_logsumexp(columns, rows, 0.2, exclude="self")
    assert relative_error(of_columns, s.T.masked_fill(own.T, -torch.inf).logsumexp(1)) <= 1e-6


def test_towers_of_two_dtypes_under_autocast() -> None:
    rows, columns = torch.randn(6, 4, dtype=torch.bfloat16), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = similarity_logsumexp(rows, columns, 0.2)
    assert torch.equal(found, similarity_logsumexp(rows.float(), columns, 0.2))
