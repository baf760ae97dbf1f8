"""The states that an episode can reach, a time layer at a time: everything that an exact oracle sums over.

All legal joint actions of a layer meet all cases of luck in one batch, a chunk at a time; equal states are merged, and
ended episodes leave. Nothing here depends on a policy, so one `World` serves many.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.base import Env, HasActionMask, HasFiniteNoise, concatenate, map_state, take
from envs.noise import Atoms, atoms
from marl.oracle.states import ROUNDED, columns, find, merge
from marl.rollout import MEMORY
from marl.types import Trajectory

STEPS = 1 << 30  # simulator steps
CHUNK = 1 << 17  # rows that step together, where memory allows as many
COPIES = 16  # states that one row of a chunk is charged for: before, after, what a step computes, what merging sorts


class TooLarge(ValueError):
    """The states cannot be listed; one sentence: what is too large, its size, what is allowed, what to do instead."""


class Layer(NamedTuple):
    """The K states in which an episode can be alive at one step, and where each of the J joint actions leads."""

    state: Any  # [K, ...] in float64
    mask: Tensor | None  # [K,N,A] bool legal actions, None where all are
    legal: Tensor  # [K,J] bool
    reward: Tensor  # [K,J] mean over luck, 0 where illegal
    pair: Tensor  # [E] int64: k * J + j, one entry for each way to go on living
    next: Tensor  # [E] int64: the state of the next layer that it leads to
    chance: Tensor  # [E] its probability

    def ahead(self, value: Tensor) -> Tensor:
        """[K,J]: the mean of value [K'] over next states, an ended episode counting 0."""
        out = value.new_zeros(self.legal.numel())
        return out.index_add(0, self.pair, self.chance * value[self.next]).reshape(self.legal.shape)


class World(NamedTuple):
    """All that can happen in a game."""

    game: Env[Any]
    joint: Tensor  # [J,N] every joint action, the last agent's varying fastest
    start: Tensor  # [K] probability of each state of layer 0
    layers: tuple[Layer, ...]  # at most T; fewer where every episode ends before
    cost: int  # simulator steps: states x legal joint actions x cases of luck

    def __repr__(self) -> str:
        """Sizes, not numbers."""
        return f"World({self.game!r}, states a layer {[len(x.legal) for x in self.layers]}, {self.cost:,} steps)"

    def places(self, trajectory: Trajectory) -> Tensor:
        """[T,B] int64: the number of each recorded state in its layer, -1 at dead steps.

        Raises ValueError for a live state that no play of this game reaches, or that rounding confuses with another.
        """
        place = torch.full_like(trajectory.alive, -1, dtype=torch.int64)
        rounding = ROUNDED.get(trajectory.reward.dtype, max(ROUNDED.values()))
        for t, alive in enumerate(trajectory.alive):
            rows = alive.nonzero()[:, 0]
            if not len(rows):
                break
            asked = columns(self.game, map_state(lambda x, t=t, rows=rows: x[t, rows], trajectory.state))
            known = self.layers[t].state if t < len(self.layers) else take(self.layers[-1].state, rows[:0])
            listed = columns(self.game, known)
            found, clear = rows.new_full((len(rows),), -1), alive[rows]  # a record of another form is of another game
            if asked.whole.shape[1] == listed.whole.shape[1] and asked.real.shape[1] == listed.real.shape[1]:
                found, clear = find(listed, asked, rounding)
            if not bool(clear.all()):
                b = int(rows[~clear][0])
                raise ValueError(
                    f"episode {b} is at step {t} in a state that {trajectory.reward.dtype} does not tell from another; "
                    "roll out in float64"
                )
            if bool((found < 0).any()):
                b = int(rows[found < 0][0])
                raise ValueError(
                    f"episode {b} is at step {t} in a state that {self.game!r} cannot reach; "
                    "the trajectory must come from this game with these knobs"
                )
            place[t, rows] = found
        return place


def reach(game: Env[Any], *, memory: int = MEMORY, steps: int = STEPS, device: torch.device | str = "cpu") -> World:
    """List every state that some legal play can reach, and every step between them.

    Args:
        memory: bytes that the result and the work on it may take (an estimate from the sizes of the tensors).
        steps: simulator steps that may be spent.
    Raises: TooLarge, if it would take more, or if the game's luck has no finite list of cases.
    """
    first, luck = _luck(game, device)
    budget = _Budget(game, len(luck.noise), memory, steps)
    joint = torch.tensor(list(product(range(game.n_actions), repeat=game.n_agents)), device=device)
    state = game.reset(first.noise)
    kept, code = merge(columns(game, state))
    start = first.probability.new_zeros(len(kept)).index_add(0, code, first.probability)
    state, layers = take(state, kept), []
    for t in range(game.horizon):
        budget.open(t, state)
        layer, state = _expand(game, state, joint, luck, budget, last=t == game.horizon - 1)
        layers.append(layer)
        if state is None:
            break
    return World(game, joint, start, tuple(layers), budget.cost)


def _luck(game: Env[Any], device: torch.device | str) -> tuple[Atoms, Atoms]:
    """(cases of a reset, cases of a step) in float64 on `device`."""
    name = type(game).__name__
    if isinstance(game, HasFiniteNoise):
        try:
            both = game.reset_atoms(), game.step_atoms()
        except ValueError as error:
            raise TooLarge(f"{name} cannot be listed state by state: {error}; ask a sampled oracle") from error
    elif game.reset_noise_size or game.step_noise_size:
        raise TooLarge(
            f"{name} cannot be listed state by state: it reads {game.reset_noise_size} random numbers a reset and "
            f"{game.step_noise_size} a step, and declares no finite list of their cases (reset_atoms, step_atoms); "
            "ask a sampled oracle"
        )
    else:
        both = atoms(), atoms()
    first, later = (Atoms(x.noise.to(device), x.probability.to(device)) for x in both)
    return first, later


class _Budget:
    """What has been spent of the memory and the steps allowed."""

    def __init__(self, game: Env[Any], cases: int, memory: int, steps: int) -> None:
        self.name, self.cases, self.memory, self.steps = type(game).__name__, cases, memory, steps
        self.joints, self.agents = game.n_actions**game.n_agents, game.n_agents
        self.kept, self.cost, self.rows = 8 * self.joints * self.agents, 0, 1
        self.where = f"{game.n_actions}^{game.n_agents} = {_big(self.joints)} joint actions"
        self.need(56 * self.joints * self.agents)  # a Python list of them, for a moment

    def open(self, t: int, state: Any) -> None:
        """Is there room for the tables of the states of step t, and time to take all steps from them?"""
        K, pairs = len(state[0]), len(state[0]) * self.joints
        self.where = f"step {t} has {K:,} states x {self.joints:,} joint actions x {self.cases:,} cases of luck"
        width = _width(state) + 8 * (self.agents + 2)
        self.need(K * width + 48 * pairs + COPIES * width * self.cases)
        self.kept += K * width + 48 * pairs  # legal, reward, Q, joint policy and what is computed from them
        self.rows = max(1, min(CHUNK, (self.memory - self.kept) // (2 * COPIES * width)) // self.cases)
        if self.cost + pairs * self.cases > self.steps:
            self._refuse(f"{_big(self.cost + pairs * self.cases)} simulator steps", _big(self.steps))

    def need(self, more: int) -> None:
        """Raise TooLarge if `more` bytes beside what is kept are too many."""
        if self.kept + more > self.memory:
            self._refuse(f"{_big(1 + (self.kept + more >> 20))} MiB of memory", f"{_big(self.memory >> 20)} MiB")

    def _refuse(self, needed: str, allowed: str) -> None:
        raise TooLarge(
            f"{self.name} is too large to be listed state by state: {self.where}, which takes {needed} or more where "
            f"{allowed} are allowed; make the game smaller, allow more, or ask a sampled oracle"
        )


def _big(number: int) -> str:
    """1,234,567 in full, larger ones by their size."""
    return f"{number:,}" if number < 10**12 else f"about 10^{len(str(number)) - 1}"


def _width(state: Any) -> int:
    """Bytes of one row."""
    return sum(x[:1].numel() * x.element_size() for x in state)


def _expand(game: Env[Any], state: Any, joint: Tensor, luck: Atoms, budget: _Budget, last: bool) -> tuple[Layer, Any]:
    """The layer of these states, and the states of the next one (None where there is none)."""
    J, Z = len(joint), len(luck.noise)
    mask = game.action_mask(state) if isinstance(game, HasActionMask) else None
    legal = _legal(mask, joint, len(state[0]))
    reward = luck.probability.new_zeros(legal.numel())
    ways = _Ways(game, luck.probability, budget)
    for some in legal.flatten().nonzero()[:, 0].split(budget.rows):
        rows = some.repeat_interleave(Z)
        step = game.step(take(state, rows // J), joint[rows % J], luck.noise.repeat(len(some), 1))
        budget.cost += len(rows)
        reward[some] = step.reward.reshape(-1, Z) @ luck.probability
        if not last and not bool(step.done.all()):
            ways.add(rows[~step.done], take(step.state, ~step.done), luck.probability.repeat(len(some))[~step.done])
    after, pair, code, chance = ways.all()
    return Layer(state, mask, legal, reward.reshape(legal.shape), pair, code, chance), after


def _legal(mask: Tensor | None, joint: Tensor, K: int) -> Tensor:
    """[K,J] bool: every agent's action is legal."""
    legal = torch.ones(K, len(joint), dtype=torch.bool, device=joint.device)
    if mask is not None:
        for i, action in enumerate(joint.T):
            legal &= mask[:, i, action]
    return legal


class _Ways:
    """Where the (state, joint action) pairs of a layer lead, collected chunk by chunk."""

    def __init__(self, game: Env[Any], like: Tensor, budget: _Budget) -> None:
        none = like.new_zeros(0, dtype=torch.int64)
        self.game, self.budget, self.limit = game, budget, CHUNK
        self.states: list[Any] = []
        self.size, self.entries = 0, 0
        self.pair, self.code, self.chance = [none], [none], [like[:0]]

    def add(self, pair: Tensor, state: Any, chance: Tensor) -> None:
        """Each row is one way from a pair to a state; ways to the same state add up."""
        first, code = merge(columns(self.game, state))
        both, where = (pair * len(first) + code).unique(return_inverse=True)
        self.pair.append(both // len(first))
        self.code.append(both % len(first) + self.size)
        self.chance.append(chance.new_zeros(len(both)).index_add(0, where, chance))
        self.states.append(take(state, first))
        self.size, self.entries = self.size + len(first), self.entries + len(both)
        if self.size > self.limit:
            self._merge()
            self.limit = 2 * self.size + CHUNK
        self.budget.need(4 * _width(state) * self.size + 48 * self.entries)

    def _merge(self) -> None:
        """One of each state that different chunks have found."""
        together = concatenate(self.states)
        first, code = merge(columns(self.game, together))
        self.states, self.size = [take(together, first)], len(first)
        self.code = [code[torch.cat(self.code)]]

    def all(self) -> tuple[Any, Tensor, Tensor, Tensor]:
        """(states or None, pair, code, chance)."""
        if self.states:
            self._merge()
        pair, chance = torch.cat(self.pair), torch.cat(self.chance)
        self.budget.kept += 24 * len(pair)
        return (self.states[0] if self.states else None), pair, self.code[0] if self.states else pair, chance
