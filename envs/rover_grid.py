"""Rovers visit points of interest, but a point pays only when several watch it at once: who comes alone earns nothing.

Rules. N rovers all start on the cell (size // 2, size // 2) of a square grid. Each step every rover stays or moves one
cell; a move off the grid stays, and rovers may share a cell. After the moves, every point that is not paid yet and has
at least `coupling` rovers within Chebyshev distance `radius` pays its value V_p, once and for all:

    r = sum_p V_p 1[p unpaid] 1[n_p >= coupling],   n_p = #{i : max(|x_i - x_p|, |y_i - y_p|) <= radius}.

The points lie on distinct cells drawn evenly from those farther than `radius` from the start, so nothing is due before
anyone moves; a point at distance radius + 1 can be paid in the first step. V_p is drawn evenly from {1, 2, 3}. There is
no other luck, and no end before the horizon.

Knobs (unit, allowed):
    n_agents   rovers N, 1 or more          size      cells along an edge, 2 or more
    n_points   points P, 1 or more, at most the cells farther than `radius` from the start
    coupling   rovers that must be near a point at once, 1 or more (with more than N nothing is ever paid)
    radius     cells, 0..size // 2 - 1      horizon   steps T, 1 or more

Isolates: tightly coupled spatial credit with travel in between. With fewer than coupling - 1 others near a point, no
single rover's action changes the reward, and the difference reward is 0 for everyone; D++ asks what clones of the rover
would have earned, and pays V / (clones needed). With more than `coupling` rovers near a point the difference is 0
again, since each one could be spared. `reward_with` answers both (copies 0 removes, 1 + n adds n clones) for one step:
who was where, and which points were already paid, stay as recorded. `step_with` goes on from there, so that clones who
walk along for a whole episode find paid what they got paid.
Grows harder with coupling (towards N), size / radius and n_points / horizon; N beyond what is needed dilutes.

Source: the rover domain of Agogino & Tumer (2004, 2008) on a grid; Rahmattalabi, Chung, Colby & Tumer, "D++: Structural
credit assignment in tightly coupled multiagent domains" (2016). A unit difference over whole episodes has no simple
form here, because one move shifts every later position: it is simulated.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, combinations, islice, permutations, product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.base import Env, Step, refuse_knob, take, whole
from envs.noise import Atoms, atoms, uniform

STAY = 0
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # stay, left, right, down, up
VALUES = (1, 2, 3)
MEAN_VALUE = sum(VALUES) / len(VALUES)

PLANNED = 6  # so many points are planned by trying every order; beyond, rovers sweep the grid
WORK = 200_000_000  # layouts * groups * 4^P that an optimum may enumerate
ATOMS = 1_000_000  # cases of a reset that are worth listing
CELLS = 300_000_000  # numbers that an exact random return may touch
EPISODES = 20_000  # episodes behind an estimated random return
_SECOND = 1 << 20  # plans compare by (first, second) packed as first * _SECOND + second
_NEVER = _SECOND << 20

BOARD, LEFT, TOP = 432, 12, 54  # the map in a picture, pixels
CROWD = 8  # more rovers than this on one cell are drawn as one disc


class RoverState(NamedTuple):
    """Where everything is and what is paid."""

    t: Tensor  # [B] int64
    rover: Tensor  # [B,N,2] int64 cells (x, y)
    point: Tensor  # [B,P,2] int64 cells
    value: Tensor  # [B,P] V_p; its dtype is the game's
    paid: Tensor  # [B,P] bool


# Where points can lie, and how long walks are.


@lru_cache(maxsize=64)
def far_cells(size: int, radius: int) -> tuple[tuple[int, int], ...]:
    """The cells farther than `radius` (Chebyshev) from the start, in order of (x, y)."""
    s = size // 2
    return tuple((x, y) for x, y in product(range(size), repeat=2) if max(abs(x - s), abs(y - s)) > radius)


@lru_cache(maxsize=16)
def _cells_on(size: int, radius: int, device: torch.device) -> Tensor:
    return torch.tensor(far_cells(size, radius), device=device)


@lru_cache(maxsize=16)
def _moves_on(device: torch.device) -> Tensor:
    return torch.tensor(MOVES, device=device)


class _Orders(NamedTuple):
    """Every order in which d of P points can be visited, those of one set of points side by side."""

    parent: Tensor  # [A] which order of d - 1 points it extends
    last: Tensor  # [A] the point it adds
    first: Tensor  # [M, d!] the point it begins with
    members: Tensor  # [M] the set as bits


@lru_cache(maxsize=16)
def _orders(n_points: int, device: torch.device) -> tuple[_Orders, ...]:
    """The orders of d = 1..P points."""
    number: dict[tuple[int, ...], int] = {(): 0}
    tables = []
    for d in range(1, n_points + 1):
        sets = list(combinations(range(n_points), d))
        orders = [order for members in sets for order in permutations(members)]
        rows = ([number[order[:-1]] for order in orders], [o[-1] for o in orders], [o[0] for o in orders])
        parent, last, first = (torch.tensor(row, device=device) for row in rows)
        members = torch.tensor([sum(1 << p for p in chosen) for chosen in sets], device=device)
        tables.append(_Orders(parent, last, first.reshape(len(sets), -1), members))
        number = {order: k for k, order in enumerate(orders)}
    return tuple(tables)


def walks(place: Tensor, point: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """The shortest walk of each group through each set of points, and the point that it visits first.

    For a given order it is best to step into each point's square only as far as needed: moves along x and y add up,
    and on a line the lazy walk lags behind another by at most what the other has walked more. All orders are tried.

    Args:
        place: [B,g,2] where the groups stand. point: [B,P,2], P <= PLANNED.
    Returns:
        length [B,g,2^P] in steps, first [B,g,2^P] (0 for the empty set); sets of points as bits.
    """
    batch, groups, _ = place.shape
    n_points = point.shape[1]
    length = place.new_zeros(batch, groups, 1 << n_points)
    first = torch.zeros_like(length)
    stand, walked = place[:, :, None], length[:, :, :1]
    for table in _orders(n_points, place.device):
        before, goal = stand[:, :, table.parent], point[:, None, table.last]
        stand = before.clamp(goal - radius, goal + radius)
        walked = walked[:, :, table.parent] + (stand - before).abs().sum(-1)
        best = walked.unflatten(-1, table.first.shape).min(-1)
        length[..., table.members] = best.values
        first[..., table.members] = table.first.gather(1, best.indices.flatten(0, 1).t()).t().view_as(best.indices)
    return length, first


def split(length: Tensor) -> tuple[Tensor, Tensor]:
    """The best way to share each set of points among g groups: the last one done soonest, then the least walking.

    Args:
        length: [B,g,2^P] of each group for each set (_SECOND or more: not allowed).
    Returns:
        cost [B,2^P] = time * 2^20 + steps of all groups; share [B,g,2^P]: what k takes of a set left to groups 0..k.
    """
    bits = torch.arange(length.shape[-1], device=length.device)
    part, rest = bits[None, :], bits[:, None] & ~bits[None, :]
    forbidden = (part & ~bits[:, None]) != 0
    cost = length[:, 0] * (_SECOND + 1)
    shares = [bits.expand_as(cost)]
    for own in length.unbind(1)[1:]:
        left, mine = cost[:, rest], own[:, None, :]
        time = torch.maximum(left // _SECOND, mine)
        both = (time * _SECOND + left % _SECOND + mine).masked_fill(forbidden, _NEVER)
        best = both.min(-1)
        cost = best.values
        shares.append(best.indices)
    return cost, torch.stack(shares, 1)


# What is known of the returns.


def sweep_bound(size: int, radius: int, points: int) -> int:
    """Steps in which a group surely visits `points` points in the order of their x, wherever they lie.

    side to the first x, width across, and for y: side to the first and width between any two, where no x or y needs to
    be nearer to the edge than `radius`.
    """
    low, high = radius, size - 1 - radius
    width, side = high - low, max(size // 2 - low, high - size // 2)
    return side + width + side + (points - 1) * width


@lru_cache(maxsize=64)
def best_return(n_agents: int, size: int, n_points: int, coupling: int, radius: int, horizon: int) -> float | None:
    """Expected return of the best play, or None where it is not known; see `RoverGrid.optimal_return`."""
    groups = min(n_agents // coupling, n_points)
    if groups == 0:
        return 0.0
    if horizon >= sweep_bound(size, radius, -(-n_points // groups)):
        return MEAN_VALUE * n_points
    if groups == n_points:
        s = size // 2
        near = [
            max(0, abs(x - s) - radius) + max(0, abs(y - s) - radius) <= horizon for x, y in far_cells(size, radius)
        ]
        return MEAN_VALUE * n_points * sum(near) / len(near)
    if n_points > PLANNED or math.comb(len(far_cells(size, radius)), n_points) * groups * 4**n_points > WORK:
        return None
    kinds, counts = _feasible(size, n_points, radius, groups, horizon)
    if bool(kinds[:, -1].all()):
        return MEAN_VALUE * n_points
    if not (coupling in (1, n_agents) or (radius == 0 and n_agents < 2 * coupling)):
        return None  # rovers that swap groups on the way can be faster
    values = torch.tensor(list(product(VALUES, repeat=n_points)), dtype=torch.float64)
    bits = torch.arange(1 << n_points)
    worth = values @ ((bits[None] >> torch.arange(n_points)[:, None]) & 1).double()
    best = torch.stack([worth[:, kind].max(-1).values.mean() for kind in kinds])
    return float((best * counts).sum() / counts.sum())


def _feasible(size: int, n_points: int, radius: int, groups: int, horizon: int) -> tuple[Tensor, Tensor]:
    """Over all layouts: the distinct rows [K, 2^P] of "this set of points can be paid in time", and how often each."""
    cells, bits = torch.tensor(far_cells(size, radius)), torch.arange(1 << n_points)
    start = torch.full((1, groups, 2), size // 2)
    found: Counter[int] = Counter()
    layouts = combinations(range(len(cells)), n_points)
    while chunk := list(islice(layouts, 1024)):
        point = cells[np.fromiter(chain.from_iterable(chunk), np.int64).reshape(-1, n_points)]
        length, _ = walks(start.expand(len(point), -1, -1), point, radius)
        in_time = split(length)[0] // _SECOND <= horizon
        kinds, counts = (in_time.long() << bits).sum(-1).unique(return_counts=True)
        found.update(dict(zip(kinds.tolist(), counts.tolist(), strict=True)))
    kinds, counts = torch.tensor(list(found)), torch.tensor(list(found.values()), dtype=torch.float64)
    return (kinds[:, None] >> bits & 1).bool(), counts


@lru_cache(maxsize=64)
def random_coverage(n_agents: int, size: int, coupling: int, radius: int, horizon: int) -> tuple[float, float]:
    """The chance that a point is ever paid under uniformly random moves, and its standard error (0 where exact).

    Exact by carrying the chances of all joint cells of the rovers with the point still unpaid: N independent walks for
    coupling = 1, all rovers together where the joint grid is small. Otherwise the mean over 20,000 episodes (fewer on
    huge grids) of the share of cells on which a point would have been paid: no luck of layout or value remains in it.
    """
    if coupling > n_agents:
        return 0.0, 0.0
    together = 1 if coupling == 1 else n_agents
    if _is_small(together, size, radius, horizon):
        unpaid = _unpaid_chance(together, size, coupling, radius, horizon)
        return float((1 - unpaid ** (n_agents // together)).mean()), 0.0
    episodes = max(500, min(EPISODES, CELLS // (size * size * horizon)))
    share = torch.cat(
        [
            _covered_share(n_agents, size, coupling, radius, horizon, torch.arange(k, min(k + 1000, episodes)))
            for k in range(0, episodes, 1000)
        ]
    )
    return float(share.mean()), float(share.std()) / episodes**0.5


def _is_small(rovers: int, size: int, radius: int, horizon: int) -> bool:
    """May the joint grid of so many rovers be walked, once for each far cell?"""
    return size ** (2 * rovers) * len(far_cells(size, radius)) * rovers * horizon <= CELLS


def _unpaid_chance(rovers: int, size: int, coupling: int, radius: int, horizon: int) -> NDArray[np.float64]:
    """[cells]: for a point on each far cell, the chance that `rovers` random walkers never pay it."""
    cells = np.array(far_cells(size, radius))
    gap = np.abs(cells[:, :, None] - np.arange(size)) <= radius
    near = (gap[:, 0, :, None] & gap[:, 1, None, :]).astype(np.int64)
    present = np.zeros((len(cells), *[1] * (2 * rovers)), dtype=np.int64)
    for i in range(rovers):
        shape = [len(cells)] + [1] * (2 * rovers)
        shape[1 + 2 * i] = shape[2 + 2 * i] = size
        present = present + near.reshape(shape)
    unpaid = (present < coupling).astype(np.float64)
    chance = np.zeros_like(unpaid)
    chance.reshape(len(cells), -1)[:, np.ravel_multi_index([size // 2] * (2 * rovers), [size] * (2 * rovers))] = 1.0
    for _ in range(horizon):
        for i in range(rovers):
            x, y = 1 + 2 * i, 2 + 2 * i
            pushed = [_shifted(chance, axis, by) for axis in (x, y) for by in (-1, 1)]
            chance = (chance + sum(pushed)) / len(MOVES)
        chance *= unpaid
    return np.asarray(chance.reshape(len(cells), -1).sum(1))


def _shifted(chance: NDArray[np.float64], axis: int, by: int) -> NDArray[np.float64]:
    """The chances after a step along one axis; what would leave the grid stays on its edge."""
    moved = np.roll(chance, by, axis)
    edge, across = (0, -1) if by == 1 else (-1, 0)
    view, source = np.moveaxis(moved, axis, 0), np.moveaxis(chance, axis, 0)
    view[edge] = 0.0
    view[across] += source[across]
    return moved


def _covered_share(n_agents: int, size: int, coupling: int, radius: int, horizon: int, episodes: Tensor) -> Tensor:
    """[B]: of the cells on which a point can lie, the share that random rovers would have been paid for."""
    u = uniform("rover_grid/random return", 0, episodes, (horizon, n_agents), torch.float64)
    action = (u * len(MOVES)).long()
    cells, line = _cells_on(size, radius, action.device), torch.arange(size)
    rover = torch.full((len(episodes), n_agents, 2), size // 2)
    paid = torch.zeros(len(episodes), size, size, dtype=torch.bool)
    for t in range(horizon):
        rover = (rover + _moves_on(action.device)[action[:, t]]).clamp(0, size - 1)
        near = ((rover[..., None] - line).abs() <= radius).float()
        paid |= near[:, :, 0].transpose(1, 2) @ near[:, :, 1] >= coupling
    return paid[:, cells[:, 0], cells[:, 1]].double().mean(1)


@dataclass(frozen=True)
class RoverGrid(Env[RoverState]):
    """N rovers on a grid; a point pays its value once, when at least `coupling` rovers are within `radius` at a time.

    Rules, knobs and source stand in the module's text. Actions: stay (the default), left, right, down, up.

    Observation of rover i, 2 + 4P + 2(N-1) features: its own cell; of every point the offset, the value / 3 and whether
    it is paid; the offsets of the other rovers. Cells and offsets are divided by size - 1.
    """

    n_agents: int = 4
    size: int = 8
    n_points: int = 4
    coupling: int = 2
    radius: int = 1
    horizon: int = 30

    def __post_init__(self) -> None:
        """Raise KnobError, one sentence, for a knob outside its range."""
        whole(self, 1, None, "n_agents", "n_points", "coupling", "horizon")
        whole(self, 2, None, "size")
        whole(self, 0, None, "radius")
        if self.radius > self.size // 2 - 1:
            refuse_knob(self, "radius", f"in 0..{self.size // 2 - 1}, so that points fit beyond the start's radius")
        if self.n_points > self._far:
            refuse_knob(self, "n_points", f"at most {self._far}, the cells farther than radius from the start")

    @property
    def n_actions(self) -> int:
        return len(MOVES)

    @property
    def obs_size(self) -> int:
        return 4 * self.n_points + 2 * self.n_agents

    @property
    def critic_size(self) -> int:
        return 4 * self.n_points + 2 * self.n_agents + 1

    @property
    def reset_noise_size(self) -> int:
        return 2 * self.n_points

    @property
    def step_noise_size(self) -> int:
        return 0

    @property
    def default_action(self) -> int:
        return STAY

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which numbers every feature lies."""
        return -1.0, 1.0

    @property
    def exogenous(self) -> tuple[str, ...]:
        """Fields of the state that no action moves."""
        return ("t", "point", "value")

    @property
    def _far(self) -> int:
        """K: on how many cells a point can lie."""
        return len(far_cells(self.size, self.radius))

    @property
    def optimal_return(self) -> float | None:
        """2P, every point paid at its mean value, where floor(N / coupling) groups always find the time.

        In this order:
        - N < coupling: 0.
        - T >= `sweep_bound` for the points of one group: 2P (closed form).
        - a group for every point: 2P times the share of cells whose square is at most T steps away (closed form).
        - up to 6 points with few enough layouts (4 points at size 8 are; it takes seconds, once): by enumeration. 2P if
          groups can pay each layout in full. If not, and groups are no restriction: the mean over layouts and values
          of the best set of points in reach. They are none for coupling = 1 (every rover alone), for coupling = N (all
          together), and for N < 2 coupling at radius 0, where some rover walks from each paid point to the next.
        - otherwise None: unknown, as rovers that swap groups on the way can be faster.

        Rovers see all but the clock, and a best walk never comes back to what it saw, so this is reachable too.
        """
        return best_return(self.n_agents, self.size, self.n_points, self.coupling, self.radius, self.horizon)

    @property
    def random_return(self) -> float:
        """2P times the chance that a point is ever paid (`random_coverage`).

        Exact for coupling = 1, for coupling > N (0) and for small joint grids (N = 2 at size 8). Otherwise an estimate
        over 20,000 episodes of its own noise, always the same ones; its standard error is 2P times the second number of
        `random_coverage`: about .004 with the default knobs.
        """
        chance, _ = random_coverage(self.n_agents, self.size, self.coupling, self.radius, self.horizon)
        return MEAN_VALUE * self.n_points * chance

    # The rules.

    def reset(self, noise: Tensor) -> RoverState:
        """noise [B,2P]: point p takes the floor(u_p (K - p))-th of the far cells still free; then the values."""
        batch, n = noise.shape[0], self.n_points
        free = torch.arange(self._far, self._far - n, -1, device=noise.device)
        taken: list[Tensor] = []
        nths, values = (noise[:, :n].double() * free).long(), (noise[:, n:].double() * len(VALUES)).long()
        for nth in nths.unbind(1):
            for other in torch.stack(taken).sort(0).values if taken else ():
                nth = nth + (nth >= other)
            taken.append(nth)
        point = _cells_on(self.size, self.radius, noise.device)[torch.stack(taken, 1)]
        value = (values + VALUES[0]).to(noise.dtype)
        t = torch.zeros(batch, dtype=torch.int64, device=noise.device)
        rover = torch.full((batch, self.n_agents, 2), self.size // 2, device=noise.device)
        return RoverState(t, rover, point, value, torch.zeros_like(value, dtype=torch.bool))

    def reset_atoms(self) -> Atoms:
        """All layouts and values, K (K-1) ... (K-P+1) 3^P of them, K the cells farther than radius from the start.

        Raises:
            ValueError: more than a million cases.
        """
        choices = [self._far - p for p in range(self.n_points)] + [len(VALUES)] * self.n_points
        if (cases := math.prod(choices)) > ATOMS:
            raise ValueError(
                f"rover_grid with size={self.size}, radius={self.radius}, n_points={self.n_points} has {cases:,} "
                f"beginnings; only up to {ATOMS:,} are listed (take a smaller size or fewer points)"
            )
        return atoms(*([k / n for k in range(1, n)] for n in choices))

    def step_atoms(self) -> Atoms:
        """A step draws nothing."""
        return atoms()

    def step(self, state: RoverState, action: Tensor, noise: Tensor) -> Step[RoverState]:
        """Move, then pay the points that have rovers enough. noise [B,0]."""
        rover = self._moved(state, action)
        return self._settled(state, rover, self._near(rover, state).sum(1))

    def step_with(self, state: RoverState, action: Tensor, noise: Tensor, copies: Tensor) -> Step[RoverState]:
        """A step with `copies` [B,N] of each rover where it is; what they get paid stays paid."""
        rover = self._moved(state, action)
        return self._settled(state, rover, (self._near(rover, state) * copies[:, :, None]).sum(1))

    def local_rewards(self, state: RoverState, action: Tensor, noise: Tensor) -> Tensor:
        """[B,N]: of every point paid in this step an equal share V_p / n_p for each rover near it; they sum to r."""
        near = self._near(self._moved(state, action), state)
        present = near.sum(1)
        share = torch.where(self._due(state, present), state.value, 0) / present.clamp(min=1)
        return (near * share[:, None]).sum(2)

    def reward_with(self, state: RoverState, action: Tensor, noise: Tensor, copies: Tensor) -> Tensor:
        """[B]: this step's reward with `copies` [B,N] of each rover where it is; points paid before stay paid."""
        return self.step_with(state, action, noise, copies).reward

    def observe(self, state: RoverState) -> Tensor:
        """[B,N,4P+2N]: own cell, then (dx, dy, value / 3, paid) of each point, then the others' offsets."""
        n, dtype = self.n_agents, state.value.dtype
        scale = 1 / (self.size - 1)
        rover, point = state.rover.to(dtype) * scale, state.point.to(dtype) * scale
        marks = torch.stack((state.value / VALUES[-1], state.paid.to(dtype)), -1)
        points = torch.cat((point[:, None] - rover[:, :, None], marks[:, None].expand(-1, n, -1, -1)), -1)
        others = rover[:, self._others(rover.device)] - rover[:, :, None]
        return torch.cat((rover, points.flatten(2), others.flatten(2)), -1)

    def critic_view(self, state: RoverState) -> Tensor:
        """[B,2N+4P+1]: the rovers' cells, every point's cell, value / 3 and whether it is paid, and t/T."""
        dtype, scale = state.value.dtype, 1 / (self.size - 1)
        marks = torch.stack((state.value / VALUES[-1], state.paid.to(dtype)), -1)
        clock = state.t.to(dtype)[:, None] / self.horizon
        places = (state.rover.to(dtype) * scale).flatten(1), (state.point.to(dtype) * scale).flatten(1)
        return torch.cat((*places, marks.flatten(1), clock), 1)

    def _others(self, device: torch.device) -> Tensor:
        return _others(self.n_agents, device)

    def _settled(self, state: RoverState, rover: Tensor, present: Tensor) -> Step[RoverState]:
        """The step that ends with rovers at `rover` [B,N,2] and `present` [B,P] of them near each point."""
        due = self._due(state, present)
        reward = torch.where(due, state.value, 0).sum(1)
        after = RoverState(state.t + 1, rover, state.point, state.value, state.paid | due)
        return Step(after, reward, torch.zeros_like(state.t, dtype=torch.bool))

    def _moved(self, state: RoverState, action: Tensor) -> Tensor:
        """[B,N,2]: the cells after the moves."""
        return (state.rover + _moves_on(action.device)[action]).clamp(0, self.size - 1)

    def _near(self, rover: Tensor, state: RoverState) -> Tensor:
        """[B,N,P] bool: is the rover within `radius` of the point?"""
        return ((rover[:, :, None] - state.point[:, None]).abs() <= self.radius).all(-1)

    def _due(self, state: RoverState, present: Tensor) -> Tensor:
        """[B,P] bool: the points that pay when `present` [B,P] rovers are near them."""
        return ~state.paid & (present >= self.coupling)

    # The script.

    def scripted_action(self, state: RoverState) -> Tensor:
        """[B,N]: groups of `coupling` rovers share the unpaid points so that the most value is paid in the steps left.

        Rovers 0..c-1 are group 0, the next c group 1, ...; surplus rovers go along. Up to 6 points, all ways to share
        them and all orders are tried at every step: most value first, then the earliest end, then the least walking.
        More points are dealt to the groups in turn and each group visits its own by rising x. Every rover walks by
        itself towards its group's next point and waits there. It attains `optimal_return` wherever that is known.
        It reads what rovers see, and the clock.
        """
        groups = min(self.n_agents // self.coupling, self.n_points)
        if groups == 0:
            return torch.full(state.rover.shape[:2], STAY, device=state.t.device)
        goal = self._planned_goals(state, groups) if self.n_points <= PLANNED else self._swept_goals(state, groups)
        group = torch.tensor(
            [i // self.coupling if i < groups * self.coupling else i % groups for i in range(self.n_agents)],
            device=state.t.device,
        )
        mine = goal[:, group]
        aim = state.point.gather(1, mine.clamp(min=0)[..., None].expand(-1, -1, 2))
        gap = state.rover.clamp(aim - self.radius, aim + self.radius) - state.rover
        gap = torch.where(mine[..., None] < 0, 0, gap)
        x, y = gap.unbind(-1)
        sideways, upright = torch.where(x < 0, 1, 2), torch.where(y < 0, 3, 4)
        move = torch.where(x.abs() >= y.abs(), sideways, upright)
        return torch.where((gap == 0).all(-1), STAY, move)

    def _planned_goals(self, state: RoverState, groups: int) -> Tensor:
        """[B,g]: the point that each group visits next in a best plan from here, -1 for none."""
        bits = torch.arange(1 << self.n_points, device=state.t.device)
        member = (bits[:, None] >> torch.arange(self.n_points, device=bits.device)) & 1
        lead = state.rover[:, : groups * self.coupling : self.coupling]
        length, first = walks(lead, state.point, self.radius)
        stale = (state.paid.long() @ member.t() > 0)[:, None]
        cost, shares = split(length.masked_fill(stale, _SECOND))
        value = state.value.round().long() @ member.t()
        late = cost // _SECOND > (self.horizon - state.t).clamp(min=0)[:, None]
        left = torch.where(late, -1, value * 2 * _NEVER - cost).argmax(1, keepdim=True)
        goals: list[Tensor] = []
        for k in reversed(range(groups)):
            own = shares[:, k].gather(1, left)
            goals.insert(0, torch.where(own == 0, -1, first[:, k].gather(1, own)))
            left = left & ~own
        return torch.cat(goals, 1)

    def _swept_goals(self, state: RoverState, groups: int) -> Tensor:
        """[B,g]: the unpaid point of least (x, y) among those p with p mod g = k, -1 for none."""
        place = state.point[..., 0] * self.size + state.point[..., 1]
        number = torch.arange(self.n_points, device=state.t.device)
        theirs = number % groups == torch.arange(groups, device=state.t.device)[:, None]
        rank = torch.where(theirs & ~state.paid[:, None], place[:, None], self.size * self.size)
        best = rank.min(-1)
        return torch.where(best.values < self.size * self.size, best.indices, -1)

    # For people.

    def text(self, state: RoverState) -> str:
        """Row 0 as a map: a point's value (in brackets once paid), @ a rover, @3 three of them."""
        rovers = [tuple(cell) for cell in state.rover[0].tolist()]
        rows = [[" . "] * self.size for _ in range(self.size)]
        for (x, y), value, paid in zip(*(part[0].tolist() for part in state[2:]), strict=True):
            rows[y][x] = f"({value:.0f})" if paid else f" {value:.0f} "
        for x, y in set(rovers):
            count = rovers.count((x, y))
            rows[y][x] = f"@{count if count > 1 else '':<2}"
        earned = float((state.value * state.paid)[0].sum())
        head = f"step {int(state.t[0])} of {self.horizon}, return {earned:g} of {float(state.value[0].sum()):g}"
        head += f"; a point needs {self.coupling} of {self.n_agents} rovers within {self.radius}"
        return "\n".join([head, *("".join(row).rstrip() for row in reversed(rows))])

    def draw(self, state: RoverState) -> NDArray[np.uint8]:
        """Row 0 as a map: every unpaid point with its square, its value, and a pip for each rover that it needs."""
        from envs.drawing import ALERT, CALM, FAINT, GOOD, Canvas

        row = take(state, torch.tensor([0], device=state.t.device))
        cell, canvas = BOARD / self.size, Canvas(BOARD + 24, TOP + BOARD + 34)
        square = f"in its {2 * self.radius + 1}x{2 * self.radius + 1} square" if self.radius else "on its cell"
        who = "a rover is" if self.coupling == 1 else f"{self.coupling} of {self.n_agents} rovers are together"
        note = f"a point pays its value once, when {who} {square}"
        canvas.header("rover_grid", int(row.t), self.horizon, float((row.value * row.paid).sum()), note)
        present = self._near(row.rover, row)[0].sum(0).tolist()
        self._draw_squares(canvas, row, cell, present)
        for k in range(self.size + 1):
            canvas.line([(LEFT, TOP + k * cell), (LEFT + BOARD, TOP + k * cell)], FAINT, 1)
            canvas.line([(LEFT + k * cell, TOP), (LEFT + k * cell, TOP + BOARD)], FAINT, 1)
        for p in range(self.n_points):
            self._draw_point(canvas, row, p, cell, present[p])
        self._draw_rovers(canvas, row, cell)
        point = "point: its value, the rovers it needs"
        canvas.legend(canvas.height - 17, [(CALM, "rover"), (ALERT, point), (GOOD, "paid (shaded: watched)")])
        return canvas.array()

    def _spot(self, x: float, y: float, cell: float) -> tuple[float, float]:
        """The middle of a cell in pixels; y grows upwards on the grid."""
        return LEFT + (x + 0.5) * cell, TOP + (self.size - y - 0.5) * cell

    def _draw_squares(self, canvas: Any, row: RoverState, cell: float, present: list[int]) -> None:
        """Where rovers count: the square of every unpaid point, and of a paid one while enough still watch it."""
        from envs.drawing import ALERT, GOOD, PAPER, blend

        squares = []
        for (x, y), paid, n in zip(row.point[0].tolist(), row.paid[0].tolist(), present, strict=True):
            low, high = (max(c - self.radius, 0) for c in (x, y)), (min(c + self.radius + 1, self.size) for c in (x, y))
            (left, down), (right, up) = low, high
            box = LEFT + left * cell, TOP + (self.size - up) * cell, (right - left) * cell, (up - down) * cell
            if not paid or n >= self.coupling:
                squares.append((box, GOOD if paid else ALERT))
        for box, color in squares:
            canvas.rectangle(*box, fill=blend(PAPER, color, 0.2))
        for box, color in squares:
            if color == ALERT:
                canvas.rectangle(*box, outline=color)

    def _draw_point(self, canvas: Any, row: RoverState, p: int, cell: float, present: int) -> None:
        """A disc with the value; below it, while unpaid, one pip a rover needed, filled for those that are there."""
        from envs.drawing import ALERT, GOOD, INK, PAPER, QUIET

        column, line = row.point[0, p].tolist()
        x, y = self._spot(column, line, cell)
        paid, radius = bool(row.paid[0, p]), 0.27 * cell
        canvas.disc(x, y, radius, GOOD if paid else ALERT)
        if radius >= 6:
            canvas.text(x, y, f"{float(row.value[0, p]):.0f}", int(1.1 * radius), PAPER if paid else INK, "mm")
        pip = min(0.09 * cell, 0.36 * cell / self.coupling)
        for k in range(0 if paid else self.coupling):
            middle = x + (k - (self.coupling - 1) / 2) * 2.6 * pip
            canvas.disc(middle, y + 0.385 * cell, pip, INK if k < present else PAPER, QUIET if pip > 3 else None)

    def _draw_rovers(self, canvas: Any, row: RoverState, cell: float) -> None:
        """Numbered discs, in a ring where a cell has several or a point; a crowd is one disc with its size."""
        places = [tuple(place) for place in row.rover[0].tolist()]
        points = {tuple(place) for place in row.point[0].tolist()}
        for place in dict.fromkeys(places):
            here = [i for i, other in enumerate(places) if other == place]
            x, y = self._spot(place[0], place[1], cell)
            if len(here) > CROWD:
                self._draw_disc(canvas, x, y, 0.36 * cell, f"x{len(here)}")
                continue
            shared = place in points
            ring = 0.38 * cell if shared else 0.0 if len(here) == 1 else 0.31 * cell
            radius = cell * (0.14 if len(here) > 4 else 0.16 if shared else 0.19)
            for k, i in enumerate(here):
                angle = 2 * math.pi * (k / len(here) + 0.125)
                self._draw_disc(canvas, x - ring * math.cos(angle), y - ring * math.sin(angle), radius, str(i))

    def _draw_disc(self, canvas: Any, x: float, y: float, radius: float, label: str) -> None:
        """A rover (or a crowd of them) with a white rim; the label where it is legible."""
        from envs.drawing import CALM, INK, PAPER

        canvas.disc(x, y, radius + 1, PAPER)
        canvas.disc(x, y, radius, CALM)
        if radius >= 6:
            canvas.text(x, y, label, int(1.2 * radius), INK, "mm")


@lru_cache(maxsize=64)
def _others(n: int, device: torch.device) -> Tensor:
    """[N,N-1]: the other rovers of each."""
    rows = [[j for j in range(n) if j != i] for i in range(n)]
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(n, n - 1)
