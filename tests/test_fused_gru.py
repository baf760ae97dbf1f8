"""A memory in compiled code is the readable one in torch: what is kept, a single step, and all gradients."""

from __future__ import annotations

import pytest
import torch
from test_fused import distance, random, threads

from marl import networks
from marl.recurrent import Gru

__all__ = ["threads"]  # a fixture

pytest.importorskip("marl.fused.gru", reason="the fused tier needs numba: pip install 'credit-sandbox[fast]'")


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("wanted", [True, False], ids=["inputs too", "weights alone"])
@pytest.mark.parametrize("sizes", [(5, 7), (4, 33, 20), (21, 64, 64, 64)], ids=str)
def test_compiled_gru_is_the_torch_tiers(
    sizes: tuple[int, ...], wanted: bool, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-6, for a block of episodes and a rest; the control: shifted by one number nothing agrees."""
    T, M, said = 6, 70, []
    gru = Gru("test", (3, 8), 3, sizes, "tanh")
    x, weight = random(2, 3, sizes[0], T * M).requires_grad_(wanted), random(2, 3, sizes[-1], T * M, seed=1)
    asked = [*gru.parameters(), *([x] if wanted else [])]
    for tier in ("fused", "torch"):
        monkeypatch.setattr(networks, "tier", lambda tier=tier: tier)
        slopes = torch.autograd.grad((gru(x, T) * weight).sum(), asked)
        with torch.no_grad():
            said.append([gru(x, T), gru.step(x[..., :M], weight[..., :M]), *slopes])
    assert all(a.shape == b.shape and distance(a, b) < 1e-6 for a, b in zip(*said, strict=True))
    assert all(distance(a, b.roll(1, -2)) > 1e-2 for a, b in zip(*said, strict=True))


def test_seeds_do_not_meet() -> None:
    """A seed's memory and gradients are bitwise the same whatever trains beside it."""

    def of(seeds: list[int]) -> list[torch.Tensor]:
        gru, x = Gru("test", seeds, 2, (4, 9, 6)), random(1, 2, 4, 5 * 30).expand(len(seeds), -1, -1, -1)
        out = gru(x, 5)
        return [out[:1].detach(), *(g[:2] for g in torch.autograd.grad(out.square().sum(), list(gru.parameters())))]

    assert all(torch.equal(a, b) for a, b in zip(of([4]), of([4, 0, 9]), strict=True))
