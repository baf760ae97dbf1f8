"""N agents must spread over N landmarks without bumping into each other: mpe2's simple_spread_v3 as batched rules.

The bridge to the field: the same physics, rewards and observations as `mpe2.simple_spread_v3` (version 1.1.1), equal to
it step by step in float64, and thousands of times faster because all episodes and all agents move in the same few
tensor operations. The game goes back to Lowe et al. 2017 (multi-agent particle environments).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.base import Env, Step, real, take, whole

DT = 0.1
DAMPING = 0.25  # the share of its speed that an agent loses in one step
PUSH = 5.0  # force of a move; the mass is 1
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 1e-3  # how soft a contact is
REACH = 0.3  # two agents of radius .15 touch within this distance
FAR = 80.0  # this many margins deep, log(1 + exp(z)) is z

MOVES = ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))  # nothing, left, right, down, up


class SpreadState(NamedTuple):
    """Where everything is. Inside, axes run (xy, agent, batch): long rows of numbers are what vector units like."""

    position: Tensor  # [B,N,2]
    velocity: Tensor  # [B,N,2]
    landmark: Tensor  # [B,N,2]
    time: Tensor  # [B] int64


@lru_cache(maxsize=64)
def _others(n: int, device: torch.device) -> Tensor:
    """[(n-1) * n] indices of agents: the k-th other agent of each, over (k, agent)."""
    return torch.tensor([[j for j in range(n) if j != i][k] for k in range(n - 1) for i in range(n)], device=device)


@lru_cache(maxsize=64)
def _pairs(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in `_others` each pair of agents stands first, and which pair each entry there is of."""
    pairs = [frozenset((int(j), k % n)) for k, j in enumerate(_others(n, torch.device("cpu")))]
    unique = list(dict.fromkeys(pairs))
    tables = ([pairs.index(pair) for pair in unique], [unique.index(pair) for pair in pairs])
    return torch.tensor(tables[0], device=device), torch.tensor(tables[1], device=device)


@lru_cache(maxsize=64)
def _moves(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(MOVES, dtype=dtype, device=device).t().contiguous()


def _total(parts: Sequence[Tensor]) -> Tensor:
    """The sum in the given order: bitwise the same for every batch size, which `sum` does not promise."""
    return reduce(torch.add, parts)


def _inside(x: Tensor) -> Tensor:
    """[B,N,2] -> [2,N,B]; free of charge for states that came out of `step`."""
    return x.permute(2, 1, 0).contiguous()


def _outside(x: Tensor) -> Tensor:
    """[2,N,B] -> [B,N,2]."""
    return x.permute(2, 1, 0)


def contact_force(position: Tensor) -> Tensor:
    """Soft repulsion between agents that overlap: F = 100 delta/|delta| k log(1 + exp((.3 - |delta|) / k)).

    position [2,N,B] -> force on each agent [2,N,B].
    """
    (_, n, B), (first, pair) = position.shape, _pairs(position.shape[1], position.device)
    others = position.index_select(1, _others(n, position.device)).view(2, n - 1, n, B)
    delta = (position[:, None] - others).view(2, (n - 1) * n, B)
    distance = torch.hypot(*delta.index_select(1, first).unbind(0))
    depth = nn.functional.softplus(torch.rsub(distance, REACH), 1 / CONTACT_MARGIN, FAR)
    # Two agents at exactly one point push nowhere (mpe2 divides 0 by 0 there).
    push = depth / distance.clamp_min(1e-30) * CONTACT_FORCE
    return _total((delta * push.index_select(0, pair)).view(2, n - 1, n, B).unbind(1))


def integrate(position: Tensor, velocity: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """Positions move with the old velocity; only then does the force act on the velocity."""
    return torch.add(position, velocity, alpha=DT), torch.add(velocity * (1.0 - DAMPING), force, alpha=DT)


@dataclass(frozen=True)
class Spread(Env[SpreadState]):
    """simple_spread_v3: r_i = (1 - local_ratio) G + local_ratio c_i; the team reward is the mean over agents.

    G = -sum over landmarks of the distance to the nearest agent; c_i = -(number of other agents within .3 of i), both
    after the step. Actions: nothing, left, right, down, up. Agents and landmarks start uniformly in the square
    [-1,1]^2, at rest. Observation of agent i [6N]: own velocity and position, landmarks relative to i, other agents
    relative to i, and 2(N-1) zeros (mpe2's silent communication). No episode ends before the horizon.

    No optimum is known in closed form, so `optimal_return` and `random_return` are None.
    """

    n_agents: int = 3  # N >= 2: agents, and as many landmarks
    horizon: int = 25  # T >= 1 steps
    local_ratio: float = 0.0  # 0..1: how much of an agent's own reward is its own collisions (mpe2's default is .5)

    def __post_init__(self) -> None:
        whole(self, 2, None, "n_agents")
        whole(self, 1, None, "horizon")
        real(self, 0.0, 1.0, "local_ratio")

    @property
    def n_actions(self) -> int:
        return len(MOVES)

    @property
    def obs_size(self) -> int:
        return 6 * self.n_agents

    @property
    def critic_size(self) -> int:
        return 6 * self.n_agents + 1

    @property
    def reset_noise_size(self) -> int:
        return 4 * self.n_agents

    @property
    def step_noise_size(self) -> int:
        return 0

    @property
    def default_action(self) -> int:
        return 0

    def reset(self, noise: Tensor) -> SpreadState:
        """noise [B,4N]: positions of agents, then of landmarks, each agent's or landmark's x before its y."""
        place = _inside((noise * 2.0 - 1.0).unflatten(1, (2 * self.n_agents, 2)))
        position, landmark = place[:, : self.n_agents], place[:, self.n_agents :]
        time = torch.zeros(noise.shape[0], dtype=torch.int64, device=noise.device)
        return SpreadState(_outside(position), torch.zeros_like(_outside(position)), _outside(landmark), time)

    def step(self, state: SpreadState, action: Tensor, noise: Tensor) -> Step[SpreadState]:
        """action [B,N] in 0..4; noise [B,0]: the game draws nothing after the start."""
        after = self._move(state, action)
        if self.local_ratio == 0.0:
            reward = self._cover(after)
        else:
            reward = _total(self._rewards(after).unbind(1)) / self.n_agents
        return Step(after, reward, torch.zeros_like(reward, dtype=torch.bool))

    def local_rewards(self, state: SpreadState, action: Tensor, noise: Tensor) -> Tensor:
        """[B,N]: r_i, whose mean is the team reward."""
        return self._rewards(self._move(state, action))

    def scripted_action(self, state: SpreadState) -> Tensor:
        """[B,N]: fly to the landmarks that all together are nearest, and brake in time. Good, not proven best.

        Reads what every agent observes. Left alone an agent still drifts by DT v / DAMPING; a push moves it .2 in
        all, so it is given where the drift would miss by more than half of that, along the worse axis.
        """
        goal = state.landmark.gather(1, self._nearest(state)[..., None].expand_as(state.position))
        miss = goal - state.position - state.velocity * (DT / DAMPING)
        axis = miss.abs().argmax(-1, keepdim=True)
        far = miss.gather(-1, axis)[..., 0]
        toward = 1 + 2 * axis[..., 0] + (far > 0)
        return torch.where(far.abs() > 0.5 * PUSH * DT * DT / DAMPING, toward, 0)

    def _nearest(self, state: SpreadState) -> Tensor:
        """[B,N] a landmark for each agent, none twice: the least total distance to where they drift.

        From seven agents on the nearest pair is matched first, then the next.
        """
        drifted = state.position + state.velocity * (DT / DAMPING)
        apart = (drifted[:, :, None] - state.landmark[:, None]).norm(dim=-1)  # [B,N,N]
        agents = torch.arange(self.n_agents, device=drifted.device)
        if self.n_agents <= 6:
            orders = torch.tensor(list(permutations(range(self.n_agents))), device=drifted.device)
            return orders[apart[:, agents, orders].sum(-1).argmin(-1)]
        chosen = torch.zeros(apart.shape[:2], dtype=torch.int64, device=apart.device)
        for _ in agents:
            pair = apart.flatten(1).argmin(1)
            agent, landmark = pair // self.n_agents, pair % self.n_agents
            chosen = chosen.scatter(1, agent[:, None], landmark[:, None])
            taken = (agents == agent[:, None])[..., None] | (agents == landmark[:, None])[:, None]
            apart = apart.masked_fill(taken, torch.inf)
        return chosen

    def observe(self, state: SpreadState) -> Tensor:
        """[B,N,6N]: velocity, position, landmarks, others, silence."""
        n = self.n_agents
        position, landmark = _inside(state.position), state.landmark.permute(1, 2, 0)
        neighbour = (
            position.index_select(1, _others(n, position.device)).view(2, n - 1, n, len(state.time)).transpose(0, 1)
        )
        seen = (
            _inside(state.velocity),
            position,
            (landmark[:, :, None] - position).flatten(0, 1),
            (neighbour - position[None]).flatten(0, 1),
            position.new_zeros(2 * n - 2, *position.shape[1:]),
        )
        return torch.cat(seen).permute(2, 1, 0)

    def critic_view(self, state: SpreadState) -> Tensor:
        """[B,6N+1]: positions, velocities, landmarks, and the share of time gone."""
        clock = (state.time / self.horizon).to(state.position)[:, None]
        parts = (state.position.flatten(1), state.velocity.flatten(1), state.landmark.flatten(1), clock)
        return torch.cat(parts, 1)

    def text(self, state: SpreadState) -> str:
        """Where everyone is in row 0."""
        cover = self._cover(take(state, torch.tensor([0]))).item()
        lines = [f"step {int(state.time[0])} of {self.horizon}; landmarks are {-cover:.2f} away in all"]
        for name, places in (("agent", state.position[0]), ("landmark", state.landmark[0])):
            lines += [f"{name} {i} at ({x:+.2f}, {y:+.2f})" for i, (x, y) in enumerate(places.tolist())]
        return "\n".join(lines)

    def draw(self, state: SpreadState) -> NDArray[np.uint8]:
        """Agents at their true size, landmarks, and what G adds up: a line from each landmark to its nearest agent."""
        from envs.drawing import ALERT, CALM, FAINT, HEADER, INK, PAPER, TEAM, Canvas, on

        row = take(state, torch.tensor([0]))
        agents, landmarks = row.position[0], row.landmark[0]
        side, span = 400, 1.2
        while span < float(agents.abs().max()) + REACH / 2:  # who strays stays in sight
            span *= 1.25
        canvas = Canvas(side + 40, side + HEADER + 40)
        note = "G = minus the sum of the lines, each from a landmark to its nearest agent"
        canvas.header("spread", int(row.time), self.horizon, note=note)
        left, top = (canvas.width - side) / 2, HEADER + 8

        def spot(place: Tensor) -> tuple[float, float]:
            x, y = place.tolist()
            return left + (x + span) / (2 * span) * side, top + (span - y) / (2 * span) * side

        corner, home = spot(torch.tensor([-1.0, 1.0])), side / span
        canvas.rectangle(*corner, home, home, outline=FAINT)
        nearest = torch.hypot(*(landmarks[:, None] - agents).unbind(-1)).argmin(1)
        for place, i in zip(landmarks, nearest, strict=True):
            canvas.line([spot(place), spot(agents[i])], TEAM, 2)
        radius = REACH / 2 / (2 * span) * side
        touching = self._touching(row)[0].tolist()
        for i, place in enumerate(agents):
            fill = ALERT if touching[i] else CALM
            canvas.disc(*spot(place), radius, fill, PAPER)
            canvas.text(*spot(place), i, max(9, round(radius * 0.7)), on(fill), "mm")
        for place in landmarks:
            canvas.disc(*spot(place), max(4.0, radius / 3), INK)
        legend = [(CALM, "agent"), (ALERT, "agents that touch"), (INK, "landmark"), (FAINT, "where all start")]
        canvas.legend(canvas.height - 14, legend)
        canvas.text(canvas.width - 12, canvas.height - 14, f"G {self._cover(row).item():.2f}", 14, TEAM, "rm")
        return canvas.array()

    def _move(self, state: SpreadState, action: Tensor) -> SpreadState:
        """The state after one step of physics; forces act from the old positions."""
        position, velocity = _inside(state.position), _inside(state.velocity)
        move = _moves(position.dtype, position.device).index_select(1, action.t().reshape(-1)).view_as(position)
        force = torch.add(contact_force(position), move, alpha=PUSH)
        position, velocity = integrate(position, velocity, force)
        return SpreadState(_outside(position), _outside(velocity), state.landmark, state.time + 1)

    def _cover(self, state: SpreadState) -> Tensor:
        """[B] G: minus the summed distance from each landmark to its nearest agent."""
        gap = _inside(state.position)[:, :, None] - _inside(state.landmark)[:, None]
        nearest = torch.hypot(*gap.unbind(0)).amin(0)
        return -_total(nearest.unbind(0))

    def _touching(self, state: SpreadState) -> Tensor:
        """[B,N] int64: how many others each agent touches."""
        position = _inside(state.position)
        gap = position[:, :, None] - position[:, None]
        return ((torch.hypot(gap[0], gap[1]) < REACH).sum(0) - 1).t()  # everyone is within reach of themselves

    def _rewards(self, state: SpreadState) -> Tensor:
        """[B,N] r_i."""
        own = -self._touching(state).to(state.position.dtype)
        return (1.0 - self.local_ratio) * self._cover(state)[:, None] + self.local_ratio * own
