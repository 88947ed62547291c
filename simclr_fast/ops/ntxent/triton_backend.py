"""Host side of the Triton NT-Xent backend: buffers and launches; nothing here waits for the device.

Its functions take the arguments of the ops simclr_fast::ntxent_{normalize,fwd,normalize_fwd,bwd,fwd_bwd}. Launches: 1
to normalise, 2 forward (tiles; finish), 3 backward (coefficients; tiles; finish). What does not change from call to
call is planned once (triton_plans.py): a call looks up its plan, allocates, and launches.
"""

from __future__ import annotations

import torch

from simclr_fast.ops.ntxent import triton_host
from simclr_fast.ops.ntxent.triton_host import (
    TritonBackend,
    needs_online_max,
    new_unit_rows,
    operand_of,
    readable_rows,
    types_of,
)
from simclr_fast.ops.ntxent.triton_plans import (
    Backward,
    Forward,
    backward_plan,
    forward_backward_plan,
    forward_plan,
    normalize_plan,
)
from simclr_fast.triton_launch import aligned


class TritonNtxent(TritonBackend):
    """The backend's functions."""

    def normalize(self, z0: torch.Tensor, z1: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        """z0 [n0, D], z1 [n1, D] of one float type -> u fp16 [n0 + n1, D], of float32 [n0 + n1, 2, D], inv_norm."""
        z0, z1 = readable_rows(z0), readable_rows(z1)
        n, dim = z0.shape
        rows = n + z1.shape[0]
        plan = self.plan(normalize_plan, (z0.dtype, z1.dtype), n, rows, dim, z0.stride(0), z1.stride(0), eps)
        u = new_unit_rows(z0, rows)
        inv_norm = z0.new_empty(rows, dtype=torch.float32)
        self.run(plan.on(z0, z1, u, inv_norm))
        return u, inv_norm

    def fwd(
        self,
        u: torch.Tensor,
        n: int,
        row_offset: int,
        temperature: float,
        temperature_tensor: torch.Tensor | None,
        reduction: str,
        precision: str,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """u [M, (2,) D] -> loss ([] = row_scale * sum of the local L_i, or [2n] of "none"), lse_neg, s_pos [2n]."""
        u = aligned(u.contiguous())
        columns, dim = u.shape[0], u.shape[-1]
        plan = self.plan(
            forward_plan,
            self.target(u.device),
            types_of(u, temperature_tensor),
            n,
            columns,
            dim,
            row_offset,
            needs_online_max(temperature, temperature_tensor),
            reduction,
            operand_of(u, precision),
        )
        loss = u.new_empty(2 * n if reduction == "none" else (), dtype=torch.float32)
        lse_neg, s_pos = (u.new_empty(2 * n, dtype=torch.float32) for _ in range(2))
        results = (loss, lse_neg, s_pos)
        self._run_forward(plan, triton_host.scratch(u, plan.scratch), u, *results, temperature, temperature_tensor)
        return results

    def _run_forward(self, plan: Forward, scratch, u, loss, lse_neg, s_pos, *temperature) -> None:
        sums, maxima, part = scratch
        if not plan.online_max:
            maxima = sums
        done = u.new_empty(1, dtype=torch.int32)
        self.run(plan.tiles.on(u, sums, maxima, done, *temperature))
        self.run(plan.finish.on(sums, maxima, u, lse_neg, s_pos, loss, part, done, *temperature))

    def normalize_fwd(
        self,
        z0: torch.Tensor,
        z1: torch.Tensor,
        eps: float,
        temperature: float,
        temperature_tensor: torch.Tensor | None,
        reduction: str,
        precision: str,
    ) -> tuple[torch.Tensor, ...]:
        """z0, z1 [n, D] of a process that is alone -> loss, u, inv_norm, lse_neg, s_pos as of the two steps."""
        u, inv_norm = self.normalize(z0, z1, eps)
        loss, lse_neg, s_pos = self.fwd(u, z0.shape[0], 0, temperature, temperature_tensor, reduction, precision)
        return loss, u, inv_norm, lse_neg, s_pos

    def bwd(
        self,
        dloss: torch.Tensor,
        z0: torch.Tensor,
        z1: torch.Tensor,
        u: torch.Tensor,
        inv_norm: torch.Tensor,
        lse_neg: torch.Tensor,
        s_pos: torch.Tensor,
        row_offset: int,
        reduction: str,
        eps: float,
        temperature: float,
        temperature_tensor: torch.Tensor | None,
        precision: str,
        need_dt: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """dloss [], or [M] with reduction "none", u as fwd takes it, lse_neg, s_pos [M] -> dz0, dz1 [n, D], dt []."""
        dloss = dloss.contiguous()
        u, inv_norm, lse_neg, s_pos = (aligned(x.contiguous()) for x in (u, inv_norm, lse_neg, s_pos))
        z0, z1 = readable_rows(z0), readable_rows(z1)
        (n, dim), columns = z0.shape, u.shape[0]
        triton_host.check_numbers(
            of_any_type=("dloss",),
            dloss=(dloss, columns if reduction == "none" else 1),
            inv_norm=(inv_norm, 2 * n),
            lse_neg=(lse_neg, columns),
            s_pos=(s_pos, columns),
        )
        plan = self.plan(
            backward_plan,
            self.target(u.device),
            types_of(dloss, z0, z1, u, temperature_tensor),
            n,
            columns,
            dim,
            z0.stride(0),
            z1.stride(0),
            row_offset,
            needs_online_max(temperature, temperature_tensor),
            reduction,
            operand_of(u, precision),
            eps,
            need_dt,
        )
        gradients = (*(z0.new_empty((n, dim)) for _ in range(2)), u.new_empty((), dtype=torch.float32))
        saved = (u, inv_norm, lse_neg, s_pos)
        buffers = triton_host.scratch(u, plan.scratch)
        self._run_backward(plan, buffers, dloss, z0, z1, *saved, *gradients, temperature, temperature_tensor)
        return gradients

    def _run_backward(
        self, plan: Backward, scratch, dloss, z0, z1, u, inv_norm, lse_neg, s_pos, dz0, dz1, dt, *temperature
    ) -> None:
        term, weight, positive, part, dt_part = scratch
        self.run(plan.coefficients.on(lse_neg, s_pos, dloss, term, weight, positive, *temperature))
        self.run(plan.tiles.on(u, term, weight, lse_neg, s_pos, part, dt_part, *temperature))
        gradients = (dz0, dz1, dt)
        self.run(plan.finish.on(part, dt_part, weight, positive, inv_norm, z0, z1, *gradients, *temperature))

    def fwd_bwd(
        self,
        z0: torch.Tensor,
        z1: torch.Tensor,
        eps: float,
        temperature: float,
        temperature_tensor: torch.Tensor | None,
        reduction: str,
        precision: str,
        need_dt: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """z0, z1 [n, D] of a process that is alone -> loss [], dz [2, n, D], dt [] for dloss = 1, all float32."""
        if reduction == "none":
            raise ValueError("ntxent: reduction must be 'mean' or 'sum' where forward makes the gradient")
        z0, z1 = readable_rows(z0), readable_rows(z1)
        n, dim = z0.shape
        u = new_unit_rows(z0, 2 * n)
        plan = self.plan(
            forward_backward_plan,
            self.target(z0.device),
            types_of(z0, z1, temperature_tensor),
            n,
            dim,
            z0.stride(0),
            z1.stride(0),
            needs_online_max(temperature, temperature_tensor),
            reduction,
            operand_of(u, precision),
            eps,
            need_dt,
        )
        inv_norm, lse_neg, s_pos, *buffers = triton_host.scratch(z0, plan.scratch)
        loss, dz, dt = (z0.new_empty(size, dtype=torch.float32) for size in ((), (2, n, dim), ()))
        by_temperature = (temperature, temperature_tensor)
        self.run(plan.normalize.on(z0, z1, u, inv_norm))
        self._run_forward(plan.forward, buffers[:3], u, loss, lse_neg, s_pos, *by_temperature)
        saved = (u, inv_norm, lse_neg, s_pos)
        self._run_backward(plan.backward, buffers[3:], None, z0, z1, *saved, dz, None, dt, *by_temperature)
        return loss, dz, dt


_default = TritonNtxent()
normalize, fwd, normalize_fwd = _default.normalize, _default.fwd, _default.normalize_fwd
bwd, fwd_bwd = _default.bwd, _default.fwd_bwd
