"""Apples grow only while the river is clean, and who cleans is never paid: credit flows through the state alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.base import Env, Step, real, whole
from envs.noise import Atoms, atoms

IDLE, CLEAN, HARVEST = 0, 1, 2
LARGEST = 200  # river and orchard, so that the optimum can be tabulated

Table = NDArray[np.float64]


class CleanupState(NamedTuple):
    """The river and the orchard, as everyone sees them."""

    t: Tensor  # [B] int64: steps taken
    waste: Tensor  # [B] whole numbers 0..W in the game's dtype
    apples: Tensor  # [B] whole numbers 0..Y in the game's dtype


class Plan(NamedTuple):
    """Solved by dynamic programming; V[T] = 0."""

    value: Table  # [T+1, W+1, Y+1] best expected return to go
    cleaners: NDArray[np.int64]  # [T, W+1, Y+1] how many clean in a best joint action; the others harvest
    chance: Table  # [T+1, W+1, Y+1] expected return to go of random play


def binomial(trials: int, chance: float) -> Table:
    """[trials + 1]: the chance of each number of successes."""
    k = np.arange(trials + 1)
    if chance in (0, 1):
        return (k == trials * chance).astype(np.float64)
    logs = np.log(np.maximum(k, 1)).cumsum()  # log k!
    odds = np.exp(logs[-1] - logs - logs[::-1] + k * np.log(chance) + k[::-1] * np.log1p(-chance))
    total: Table = odds / odds.sum()
    return total


def clipped_walk(steps: Table, size: int) -> Table:
    """[size + 1, size + 1]: from x to min(size, x + k), k with chance steps[k]."""
    matrix = np.zeros((size + 1, size + 1))
    for x in range(size + 1):
        np.add.at(matrix[x], np.minimum(x + np.arange(len(steps)), size), steps)
    return matrix


@lru_cache(maxsize=64)
def _odds(n_agents: int, waste: int, apples: int, dirt: float, growth: float) -> tuple[Table, Table]:
    """(dirt [N+1], growth [W+1, Y+1]): the odds of new waste, and of new apples at each waste."""
    chances = [growth * max(0.0, 1 - 2 * w / waste) for w in range(waste + 1)]
    return binomial(n_agents, dirt), np.stack([binomial(apples, p) for p in chances])


@lru_cache(maxsize=16)
def _solved(n_agents: int, waste: int, apples: int, horizon: int, dirt: float, growth: float) -> Plan:
    """Backwards over t: what c cleaners and N - c harvesters earn, c = 0..N, and the mean over random roles.

    With c cleaners all others harvest: an apple eaten now pays 1/N now, and the same apple left hanging can add at
    most 1/N to all that follows (the two futures, in the same luck, never differ by more than that one apple).
    """
    dirt_odds, growth_odds = _odds(n_agents, waste, apples, dirt, growth)
    soil = clipped_walk(dirt_odds, waste)  # [W+1 after cleaning, W+1]
    grow = np.stack([clipped_walk(odds, apples) for odds in growth_odds])  # [W+1, Y+1 after eating, Y+1]
    c = np.arange(n_agents + 1)[:, None, None]
    w, b = np.arange(waste + 1)[None, :, None], np.arange(apples + 1)[None, None, :]
    cleaned, eaten = np.maximum(w - c, 0), np.minimum(n_agents - c, b)
    roles = _random_roles(n_agents, apples)  # [N+1, Y+1 before, Y+1 after]
    meal = np.einsum("cba,ba->b", roles, np.maximum(b[0].T - b[0], 0)) / n_agents  # [Y+1] mean reward of random play
    value, chance = np.zeros((2, horizon + 1, waste + 1, apples + 1))
    cleaners = np.zeros((horizon, waste + 1, apples + 1), dtype=np.int64)

    def ahead(later: Table) -> Table:
        """[N+1, W+1, Y+1]: the expected value after c clean at waste w and a apples are left uneaten."""
        soiled: Table = (soil @ later)[cleaned[:, :, 0]]
        return np.einsum("wab,cwb->cwa", grow, soiled)

    for t in reversed(range(horizon)):
        options = eaten / n_agents + ahead(value[t + 1])[c, w, b - eaten]
        cleaners[t] = options.round(12).argmax(0)  # of equally good ones, the fewest cleaners
        value[t] = options.max(0)
        chance[t] = meal + np.einsum("cba,cwa->wb", roles, ahead(chance[t + 1]))
    return Plan(value, cleaners, chance)


def _random_roles(n_agents: int, apples: int) -> Table:
    """[N+1, Y+1, Y+1]: the chance that c agents clean and the others leave a of b apples, every role 1/3."""
    meals = (clipped_walk(binomial(n_agents - c, 1 / 2), apples)[::-1, ::-1] for c in range(n_agents + 1))
    return np.stack([odds * meal for odds, meal in zip(binomial(n_agents, 1 / 3), meals, strict=True)])


@dataclass(frozen=True)
class Cleanup(Env[CleanupState]):
    """N agents idle, clean or harvest for T steps; the river holds w <= W of waste, the orchard b <= Y apples.

        r  = min(n_harvest, b) / N
        b' = min(Y, b - r N + Binomial(Y, growth max(0, 1 - 2 w / W)))
        w' = min(W, max(0, w - n_clean) + Binomial(N, dirt_probability))

    from w = W, b = 0: nothing grows until half of the waste is gone. Each step reads two uniform numbers (apples,
    dirt), turned into counts by inverse CDF. Actions: 0 idle (the default), 1 clean, 2 harvest. Everyone observes
    w/W, b/Y and t/T, which is the whole state. Nobody ever leaves; an episode is T steps.

    `local_rewards` pays each harvester an equal share of what was eaten; a cleaner is never paid. No closed form of the
    unit differences is known: simulate them.

    Isolates: indirect credit in space and time. A cleaner's reward is earned later, by others, and only the change of
    the state tells.
    Grows harder with waste (the first apple is further away), with dirt_probability (upkeep takes more of the team),
    with n_agents (dilution; as each agent brings dirt, waste must grow along, or the river cannot be held clean) and
    with fewer apples an agent (harvesters crowd each other out).

    Source: the Cleanup game of Hughes et al., "Inequity aversion improves cooperation in intertemporal social dilemmas"
    (2018), without its grid and with a team reward.

    Raises:
        KnobError: a knob outside its range.
    """

    n_agents: int = 4  # N >= 1
    waste: int = 8  # W in 1..200: the most waste the river holds, and what it starts with
    apples: int = 4  # Y in 1..200: the most apples the orchard holds
    horizon: int = 40  # T >= 1 steps
    dirt_probability: float = 0.15  # 0..1: each of N sources adds one waste a step
    growth: float = 0.6  # 0..1: each of Y places grows an apple a step when the river is clean

    def __post_init__(self) -> None:
        whole(self, 1, None, "n_agents", "horizon")
        whole(self, 1, LARGEST, "waste", "apples")
        real(self, 0, 1, "dirt_probability", "growth")

    @property
    def n_actions(self) -> int:
        return 3

    @property
    def obs_size(self) -> int:
        return 3

    @property
    def critic_size(self) -> int:
        return 3

    @property
    def reset_noise_size(self) -> int:
        return 0

    @property
    def step_noise_size(self) -> int:
        return 2

    @property
    def default_action(self) -> int:
        return IDLE

    @property
    def bounds(self) -> tuple[float, float]:
        """Observations are shares."""
        return 0.0, 1.0

    @property
    def exogenous(self) -> tuple[str, ...]:
        """Fields of the state that no action moves."""
        return ("t",)

    @property
    def optimal_return(self) -> float:
        """The value of the start, by dynamic programming over (t, w, b): about T N W Y^2 operations, once."""
        return float(self._plan.value[0, self.waste, 0])

    @property
    def random_return(self) -> float:
        """The value of the start under random roles, by dynamic programming over (t, w, b)."""
        return float(self._plan.chance[0, self.waste, 0])

    def reset(self, noise: Tensor) -> CleanupState:
        start = torch.zeros(len(noise), dtype=torch.int64, device=noise.device)
        return CleanupState(start, noise.new_full((len(noise),), self.waste), noise.new_zeros(len(noise)))

    def step(self, state: CleanupState, action: Tensor, noise: Tensor) -> Step[CleanupState]:
        """Eat and clean, then let apples grow and dirt come; apples grow by the waste that was there before."""
        return self.step_with(state, action, noise, torch.ones_like(action))

    def step_with(self, state: CleanupState, action: Tensor, noise: Tensor, copies: Tensor) -> Step[CleanupState]:
        """A step with `copies` [B,N] of each agent; the unit 1/N of the reward stays."""
        dtype = state.waste.dtype
        dirt_steps, growth_steps = _on(self._knobs, state.waste.device)
        u = noise.double()  # so that a float32 game meets the same luck as a float64 one
        grown = (u[:, :1] >= growth_steps[state.waste.long()]).sum(-1).to(dtype)
        dirt = (u[:, 1:] >= dirt_steps).sum(-1).to(dtype)
        eaten = self._eaten(state, ((action == HARVEST) * copies).sum(-1).to(dtype))
        apples = (state.apples - eaten + grown).clamp(max=self.apples)
        cleaned = ((action == CLEAN) * copies).sum(-1)
        waste = ((state.waste - cleaned).clamp(min=0) + dirt).clamp(max=self.waste)
        done = torch.zeros_like(state.t, dtype=torch.bool)
        return Step(CleanupState(state.t + 1, waste, apples), eaten / self.n_agents, done)

    def observe(self, state: CleanupState) -> Tensor:
        return self.critic_view(state)[:, None, :].repeat(1, self.n_agents, 1)

    def critic_view(self, state: CleanupState) -> Tensor:
        clock = state.t.to(state.waste.dtype) / self.horizon
        return torch.stack((state.waste / self.waste, state.apples / self.apples, clock), -1)

    def local_rewards(self, state: CleanupState, action: Tensor, noise: Tensor) -> Tensor:
        """[B,N]: min(n_harvest, b) / (N n_harvest) to each harvester, 0 to the others; they sum to the team reward."""
        harvests = (action == HARVEST).to(state.waste.dtype)
        crowd = harvests.sum(-1)
        share = self._eaten(state, crowd) / (self.n_agents * crowd.clamp(min=1))
        return harvests * share[:, None]

    def reward_with(self, state: CleanupState, action: Tensor, noise: Tensor, copies: Tensor) -> Tensor:
        """[B]: this step's reward with copies [B,N] of each harvester; the unit 1/N stays."""
        return self.step_with(state, action, noise, copies).reward

    def reset_atoms(self) -> Atoms:
        """Nothing is drawn at the start."""
        return atoms()

    def step_atoms(self) -> Atoms:
        """Every cell between the steps of the two CDFs, those of apples at every waste."""
        dirt_steps, growth_steps = _on(self._knobs, torch.device("cpu"))
        cuts = (growth_steps.flatten().tolist(), dirt_steps.tolist())
        return atoms(*([cut for cut in each if 0 < cut < 1] for each in cuts))

    def optimal_value(self, state: CleanupState) -> Tensor:
        """[B]: the best expected return to go, by dynamic programming over (t, w, b)."""
        value = torch.as_tensor(self._plan.value, device=state.waste.device)
        return value[state.t.clamp(max=self.horizon), state.waste.long(), state.apples.long()].to(state.waste.dtype)

    def scripted_action(self, state: CleanupState) -> Tensor:
        """[B,N]: as many of the first agents clean as is best now, of the others as many as there are apples harvest.

        All of this is read from w, b and t, which everyone observes.
        """
        table = torch.as_tensor(self._plan.cleaners, device=state.waste.device)
        cleaners = table[state.t.clamp(max=self.horizon - 1), state.waste.long(), state.apples.long()][:, None]
        agent = torch.arange(self.n_agents, device=state.waste.device)
        busy = torch.where(agent < cleaners + state.apples.long()[:, None], HARVEST, IDLE)
        return torch.where(agent < cleaners, CLEAN, busy)

    def text(self, state: CleanupState) -> str:
        """The step, the river and the orchard."""
        w, b = int(state.waste[0]), int(state.apples[0])
        river, orchard = ("#" * w + "." * (self.waste - w), "o" * b + "." * (self.apples - b))
        return (
            f"step {int(state.t[0])} of {self.horizon}\n"
            f"waste   {w} of {self.waste}  {river[:80]}\n"
            f"apples  {b} of {self.apples}  {orchard[:80]}\n"
            f"growth  {self._growth_now(w):.2f} an apple's chance at each of {self.apples} places"
        )

    def draw(self, state: CleanupState) -> NDArray[np.uint8]:
        """The river with its waste and the mark at which growth stops, the chance of growth now, and the orchard."""
        from envs.drawing import BAD, CALM, FAINT, GOOD, HEADER, INK, PAPER, QUIET, TEAM, Canvas

        w, b = int(state.waste[0]), int(state.apples[0])
        canvas = Canvas(560, 280)
        note = f"{self.n_agents} agents; actions: {IDLE} idle, {CLEAN} clean, {HARVEST} harvest"
        canvas.header("cleanup", int(state.t[0]), self.horizon, note=note)
        left, wide, top = 90.0, canvas.width - 114.0, HEADER + 34.0
        canvas.text(12, top + 14, "river", 13, INK, "lm")
        canvas.text(left, top - 9, f"waste {w} of {self.waste}", 12, QUIET, "ls")
        canvas.rectangle(left, top, wide, 28, CALM)
        if w:
            canvas.rectangle(left, top, wide * w / self.waste, 28, BAD)
        if self.waste <= 60:
            for k in range(1, self.waste):
                canvas.line([(left + wide * k / self.waste, top), (left + wide * k / self.waste, top + 28)], PAPER, 1)
        half = left + wide / 2
        canvas.line([(half, top - 4), (half, top + 32)], INK, 3)
        canvas.text(half, top - 9, "nothing grows with this much waste or more", 12, INK, "ms")
        top += 68
        now = self._growth_now(w)
        canvas.text(12, top + 6, "growth", 13, INK, "lm")
        canvas.text(
            left, top - 8, f"each of {self.apples} places grows an apple with chance {now:.2f}", 12, QUIET, "ls"
        )
        canvas.rectangle(left, top, wide, 12, FAINT)
        if now:
            canvas.rectangle(left, top, wide * now, 12, TEAM)
        top += 52
        canvas.text(12, top + 24, "orchard", 13, INK, "lm")
        canvas.text(left, top - 2, f"apples {b} of {self.apples}", 12, QUIET, "ls")
        self._draw_orchard(canvas, (left, top + 8, wide), b, (GOOD, FAINT))
        return canvas.array()

    def _draw_orchard(self, canvas: Any, place: tuple[float, float, float], apples: int, inks: tuple[str, str]) -> None:
        """A disc a place, full or empty, as large as fits in two rows; more places as one bar."""
        left, top, wide = place
        full, empty = inks
        if self.apples > 60:
            canvas.rectangle(left, top, wide, 28, empty)
            if apples:
                canvas.rectangle(left, top, wide * apples / self.apples, 28, full)
            return
        columns = self.apples if self.apples <= 30 else -(-self.apples // 2)
        pitch = min(36.0, wide / columns)
        for k in range(self.apples):
            row, column = divmod(k, columns)
            x, y = left + (column + 0.5) * pitch, top + (row + 0.5) * pitch
            canvas.disc(x, y, 0.42 * pitch, full if k < apples else empty)

    @property
    def _knobs(self) -> tuple[int, int, int, float, float]:
        return self.n_agents, self.waste, self.apples, self.dirt_probability, self.growth

    @property
    def _plan(self) -> Plan:
        n, waste, apples, dirt, growth = self._knobs
        return _solved(n, waste, apples, self.horizon, dirt, growth)

    def _growth_now(self, waste: int) -> float:
        return self.growth * max(0.0, 1 - 2 * waste / self.waste)

    def _eaten(self, state: CleanupState, harvesters: Tensor) -> Tensor:
        return torch.minimum(harvesters, state.apples)


@lru_cache(maxsize=64)
def _on(knobs: tuple[int, int, int, float, float], device: torch.device) -> tuple[Tensor, Tensor]:
    """CDFs without their last step, in float64: dirt [N], apples at each waste [W+1, Y]. Count = #{k: u >= CDF(k)}."""
    dirt, growth = (torch.as_tensor(odds.cumsum(-1)[..., :-1], device=device) for odds in _odds(*knobs))
    return dirt, growth
