"""Host side of the Triton kernels of similarities: buffers and launches; nothing here waits for the device.

`fwd` and `bwd` take the arguments of the ops simclr_fast::similarity_{fwd,bwd}. Launches: 2 forward (tiles; finish),
one more where a rectangle's columns are finished, too; 3 backward (terms; tiles; finish). What does not change from
call to call is planned once (triton_similarity_plans.py).
"""

from __future__ import annotations

import torch

from simclr_fast.ops.ntxent import triton_host
from simclr_fast.ops.ntxent.triton_host import TritonBackend, needs_online_max, operand_of, readable_rows, types_of
from simclr_fast.ops.ntxent.triton_similarity_kernels import OWN_OF_NONE
from simclr_fast.ops.ntxent.triton_similarity_plans import backward_plan, forward_plan
from simclr_fast.triton_launch import aligned


class TritonSimilarity(TritonBackend):
    """The backend's two functions."""

    def fwd(
        self,
        rows: torch.Tensor,
        columns: torch.Tensor,
        row_offset: int,
        exclude: str,
        both: bool,
        need_max: bool,
        temperature: float,
        temperature_tensor: torch.Tensor | None,
        precision: str,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """rows [n, D], columns [m, D], or [.., 2, D] -> lse [n], max [n] or [0], column_lse [m] or [0], float32."""
        n, m, dim = rows.shape[0], columns.shape[0], rows.shape[-1]
        operand = operand_of(rows, precision)

        def new(size: int) -> torch.Tensor:
            return rows.new_empty(size, dtype=torch.float32)

        _check_sizes(n, m)
        if n == 0 or m == 0:
            return tuple(new(k).fill_(-torch.inf) for k in (n, n if need_max else 0, m if both else 0))
        same = rows.data_ptr() == columns.data_ptr() and rows.stride() == columns.stride() and n == m
        rows = aligned(rows.contiguous())
        columns = rows if same else aligned(columns.contiguous())
        online_max = need_max or needs_online_max(temperature, temperature_tensor)
        plan = self.plan(
            forward_plan,
            self.target(rows.device),
            types_of(rows, temperature_tensor),
            n,
            m,
            dim,
            same,
            row_offset,
            exclude,
            both,
            need_max,
            online_max,
            operand,
        )
        sums, maxima, of_columns, maxima_of_columns = triton_host.scratch(rows, plan.scratch)
        maxima = maxima if online_max else sums
        if plan.finish_columns is None:
            of_columns, maxima_of_columns = sums, maxima
        elif not online_max:
            maxima_of_columns = of_columns
        lse, row_max = new(n), new(n) if need_max else None
        given_t = (temperature, temperature_tensor)
        self.run(plan.tiles.on(rows, columns, sums, maxima, of_columns, maxima_of_columns, *given_t))
        self.run(plan.finish.on(sums, maxima, lse, row_max, *given_t))
        column_lse = new(0)
        if plan.finish_columns is not None:
            column_lse = new(m)
            self.run(plan.finish_columns.on(of_columns, maxima_of_columns, column_lse, None, *given_t))
        elif both:
            column_lse = lse.clone()
        return lse, new(0) if row_max is None else row_max, column_lse

    def bwd(
        self,
        drows: torch.Tensor,
        dcolumns: torch.Tensor,
        z: torch.Tensor,
        rows: torch.Tensor,
        inv_norm: torch.Tensor,
        columns: torch.Tensor,
        lse: torch.Tensor,
        column_lse: torch.Tensor,
        row_offset: int,
        exclude: str,
        eps: float,
        temperature: float,
        temperature_tensor: torch.Tensor | None,
        precision: str,
        need_dt: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """drows, lse, inv_norm [n], dcolumns, column_lse [m], z [n, D], rows, columns as of fwd -> dz [n, D], dt []."""
        n, m, dim = rows.shape[0], columns.shape[0], rows.shape[-1]
        operand = operand_of(rows, precision)
        dz, dt = z.new_empty(z.shape), inv_norm.new_empty(())
        _check_sizes(n, m)
        if n == 0 or m == 0:
            return dz.zero_(), dt.zero_()
        rows, columns, z = aligned(rows.contiguous()), aligned(columns.contiguous()), readable_rows(z)
        drows, dcolumns, lse, column_lse = (x.contiguous() for x in (drows, dcolumns, lse, column_lse))
        inv_norm = inv_norm.contiguous()
        triton_host.check_numbers(
            of_any_type=("drows", "dcolumns"),
            drows=(drows, n),
            dcolumns=(dcolumns, m),
            lse=(lse, n),
            column_lse=(column_lse, m),
            inv_norm=(inv_norm, n),
        )
        plan = self.plan(
            backward_plan,
            self.target(rows.device),
            types_of(drows, dcolumns, z, rows, temperature_tensor),
            n,
            m,
            dim,
            z.stride(0),
            row_offset,
            exclude,
            needs_online_max(temperature, temperature_tensor),
            operand,
            eps,
            need_dt,
        )
        *terms, w_max, part, dt_part = triton_host.scratch(rows, plan.scratch)
        given_t = (temperature, temperature_tensor)
        self.run(plan.terms.on(drows, dcolumns, lse, column_lse, *terms, w_max, *given_t))
        self.run(plan.tiles.on(rows, columns, *terms, part, dt_part, *given_t))
        self.run(plan.finish.on(part, dt_part, w_max, inv_norm, z, dz, dt, *given_t))
        return dz, dt


def _check_sizes(rows: int, columns: int) -> None:
    if max(rows, columns) >= -OWN_OF_NONE:
        raise ValueError(f"rows {rows}, columns {columns}: the Triton kernels take fewer than 2^30; use backend='cpp'")


_default = TritonSimilarity()
fwd, bwd = _default.fwd, _default.bwd
