"""When are two states the same? Whole numbers must agree; other numbers may differ by rounding, and by nothing else.

A sum taken in another order, or in float32, ends in other last bits. So the numbers of a column are grouped along the
line, neighbours closer than `SAME` being one number, and the groups are compared as whole numbers: exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from envs.base import Env

SAME = 1e-9  # relative above 1: two sums of the same numbers in float64
ROUNDED = {torch.float64: SAME, torch.float32: 1e-4}  # how far rounding may carry a number within one episode
ROOM = 1 << 62  # codes below it fit an int64


@runtime_checkable
class DeclaresBookkeeping(Protocol):
    """The game names fields of its state that nothing depends on (the return so far): states may differ there."""

    @property
    def bookkeeping(self) -> tuple[str, ...]: ...


class Columns(NamedTuple):
    """All that tells rows apart."""

    whole: Tensor  # [R,C] int64
    real: Tensor  # [R,F] float64


def columns(game: Env[Any], state: Any) -> Columns:
    """The fields of a state that count, side by side."""
    ignored = game.bookkeeping if isinstance(game, DeclaresBookkeeping) else ()
    fields = zip(state._fields, state, strict=True)
    kept = [x.reshape(len(x), x[:1].numel()) for name, x in fields if name not in ignored]
    empty = state[0].new_zeros(len(state[0]), 0)
    whole = torch.cat([empty.long(), *(x.long() for x in kept if not x.is_floating_point())], 1)
    return Columns(whole, torch.cat([empty.double(), *(x.double() for x in kept if x.is_floating_point())], 1))


def merge(rows: Columns) -> tuple[Tensor, Tensor]:
    """(first [U]: where each different row first stands, code [R] in 0..U-1: which of them each row is)."""
    values, code = _codes(torch.cat((rows.whole, _groups(rows.real)), 1)).unique(return_inverse=True)
    place = torch.arange(len(code), device=code.device)
    return torch.full_like(values, len(code)).scatter_reduce(0, code, place, "amin"), code


def find(known: Columns, asked: Columns, rounding: float) -> tuple[Tensor, Tensor]:
    """(place [R]: the row of `known` that each asked row is, -1 if none; clear [R] bool: rounding leaves no doubt).

    known: rows that all differ. rounding: how far (relative above 1) an asked number may be from the known one.
    """
    snapped, near, clear = _nearest(known.real, asked.real, rounding)
    K = len(known.whole)
    whole, real = torch.cat((known.whole, asked.whole)), torch.cat((known.real, snapped))
    first, code = merge(Columns(whole, real))
    place = first[code[K:]]
    return torch.where(near & (place < K), place, -1), clear


def _groups(real: Tensor) -> Tensor:
    """[R,F] int64: per column, the number of gaps below each value that are wider than rounding."""
    low, order = real.sort(0)
    wide = low.diff(dim=0) > SAME * low[1:].abs().clamp(min=1)
    group = torch.zeros_like(order)
    group[1:] = wide.long().cumsum(0)
    return torch.empty_like(group).scatter_(0, order, group)


def _nearest(known: Tensor, asked: Tensor, rounding: float) -> tuple[Tensor, Tensor, Tensor]:
    """(asked [R,F] with each number replaced by the nearest in its column of known, all near [R], all clear [R])."""
    snapped, near = asked.clone(), torch.ones(len(asked), dtype=torch.bool, device=asked.device)
    clear = near.clone()
    for k in range(asked.shape[1] if len(known) else 0):
        line = known[:, k].sort().values
        line = line[torch.cat((line.new_ones(1, dtype=torch.bool), _groups(line[:, None])[:, 0].diff() > 0))]
        x = asked[:, k].contiguous()
        above = torch.searchsorted(line, x).clamp(max=len(line) - 1)
        around = torch.stack((above - 1, above, above + 1)).clamp(0, len(line) - 1)
        gap = (line[around] - x).abs()
        best = gap.argmin(0, keepdim=True)
        snapped[:, k] = line[around.gather(0, best)[0]]
        own = gap.gather(0, best)[0]
        close = own <= rounding * x.abs().clamp(min=1)
        other = torch.where(around == around.gather(0, best), torch.inf, gap).amin(0)
        near, clear = near & close, clear & (~close | (8 * own <= other))
    return snapped, near, clear


def _codes(whole: Tensor) -> Tensor:
    """[R] int64: equal for equal rows and for no others; columns are digits, renumbered where they would overflow."""
    code = whole.new_zeros(len(whole))
    if not whole.numel():
        return code
    low, high = whole.amin(0), whole.amax(0)
    size = 1
    for k, (least, most) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        digit, span = whole[:, k] - least, most - least + 1
        if size * span > ROOM:
            code, size = _renumbered(code)
            digit, span = (digit, span) if size * span <= ROOM else _renumbered(whole[:, k])
        code, size = code * span + digit, size * span
    return code


def _renumbered(code: Tensor) -> tuple[Tensor, int]:
    """The same distinctions in the smallest whole numbers, and how many there are."""
    values, small = code.unique(return_inverse=True)
    return small, len(values)
