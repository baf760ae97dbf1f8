"""Whole loops live on one device: a device that holds no numbers proves that nobody looks at them on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import envs
import marl
from benchmarks.methods import METHODS
from envs.el_farol import ElFarol
from marl.credit.base import ChainError
from marl.experiment import Experiment, learn
from marl.rollout import rollout

NUMBERLESS = "meta"  # shapes and types only: `if x.any()`, `.item()`, `.numpy()` and `nonzero` raise there
GAME = marl.load("credit/walking_robot-v0", n_agents=3, horizon=8, window=4, delay=2)
SIMULATED = {"simulator", "truth"}  # their steps are counted, and those of the dead are not taken: numbers are read


def fitting() -> list[str]:
    """Methods that GAME has what they need for."""
    found = []
    for name, method in METHODS.items():
        try:
            method.credit(GAME)
        except ChainError:
            continue
        found.append(name)
    return found


def asks(name: str) -> bool:
    """Does it ask a simulator?"""
    return bool(SIMULATED & set(METHODS[name].needs))


def train(name: str, device: str) -> None:
    """Two updates of two seeds, nothing judged."""
    method = METHODS[name]
    steps = 2 * GAME.horizon * method.learner.episodes
    for _ in learn(Experiment(GAME, method, [0, 1], steps, points=1, judge=False, device=device)):
        pass


@pytest.fixture
def numberless(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device. Adam's fused step knows real devices only; parameters keep their identity when they move there."""
    plain = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda groups, lr, fused: plain(groups, lr=lr, foreach=False))
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield NUMBERLESS
    torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.parametrize("name", envs.GAMES)
def test_rules_look_at_no_number(name: str) -> None:
    """First states, steps, views and masks of whole episodes."""
    trajectory = rollout(envs.rules(name), None, 3, [0, 1], device=NUMBERLESS)
    assert trajectory.reward.device.type == trajectory.obs.device.type == NUMBERLESS


@dataclass(frozen=True)
class Peeking(ElFarol):
    """The control: its rules look whether anybody acts."""

    def step(self, state: Any, action: Tensor, noise: Tensor) -> Any:
        assert not action.isnan().any()
        return super().step(state, action, noise)


def test_a_game_that_looks_is_caught() -> None:
    """One look at a number is enough."""
    rollout(ElFarol(), None, 3, device=NUMBERLESS)
    with pytest.raises(RuntimeError, match="meta"):
        rollout(Peeking(), None, 3, device=NUMBERLESS)


@pytest.mark.parametrize("name", [name for name in fitting() if not asks(name)])
def test_training_looks_at_no_number(name: str, numberless: str) -> None:
    """Rollouts, credit, the learner's steps and the fit of what is learned, for every method without a simulator."""
    train(name, numberless)


def test_a_simulator_looks() -> None:
    """The control: its questions are about live steps only, and they are counted."""
    assert sum(map(asks, fitting())) > 5 and sum(not asks(name) for name in fitting()) > 20
    trajectory = rollout(GAME, None, 4, [0, 1], device=NUMBERLESS)
    chain = METHODS["difference + return"].credit(GAME, [0, 1])
    with pytest.raises(NotImplementedError):
        chain.assign(trajectory)


class Transfers(TorchDispatchMode):
    """Counts operations that take numbers from one device to another, or to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, *(kwargs or {}).values(), out) if isinstance(x, Tensor) and x.dim()]
        if "_local_scalar_dense" in str(func) or len({x.device for x in tensors}) > 1:
            self.found.append(str(func))
        return out


def test_transfers_are_counted() -> None:
    """The control: a copy to another device, and a number that Python reads; sums stay where they are."""
    x = torch.ones(3)
    with Transfers() as seen:
        (x + x).sum()
        assert not seen.found
        x.to(NUMBERLESS)
        x.max().item()
    assert len(seen.found) == 2 and "_local_scalar_dense" in seen.found[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine")
@pytest.mark.parametrize("name", [name for name in fitting() if not asks(name)])
def test_no_transfer_on_cuda(name: str) -> None:
    """In a later update nothing crosses but the keys of noise (seeds, episode numbers) and a step size."""
    method = METHODS[name]
    steps = 3 * GAME.horizon * method.learner.episodes
    stages = learn(Experiment(GAME, method, [0, 1], steps, points=3, judge=False, device="cuda"))
    next(stages)
    next(stages)
    with Transfers() as seen:
        next(stages)
    assert len(seen.found) <= 40, seen.found
