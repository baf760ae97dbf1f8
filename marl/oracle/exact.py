"""Credit without sampling: every advantage of a joint action is a difference between two coalitions of agents.

    v(C) = E_{a'_-C ~ pi} Q(s, a_C, a'_-C):   those in C do what they did, the others whatever their policies would do

O2 = v(all) - v(none), O3 = v({i}) - v(none), O4 = v(all) - v(all but i), and O5 is the Shapley value of v, so that
sum_i O5 = O2 and, for two agents, O5 = (O3 + O4) / 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from envs.base import Env
from marl.oracle import shapley
from marl.oracle.induction import Optimum, Solution, expected_return, one_seed, optimal, outer, solve, true_gradient
from marl.oracle.layers import TooLarge, World, reach
from marl.oracle.remembered import Remembering
from marl.oracle.states import Columns, merge
from marl.rollout import MEMORY, Remembers, remembers, seeds_of, some
from marl.types import Policy, Trajectory, Truth

__all__ = [
    "DEFINITIONS",
    "Optimum",
    "Remembering",
    "Solution",
    "TooLarge",
    "World",
    "expected_return",
    "ledger",
    "one_seed",
]
__all__ += ["observed_advantages", "optimal", "own_advantages", "reach", "solve", "true_gradient", "truth"]

DEFINITIONS: dict[str, str] = {
    "O2": "O2 temporal: Q(s,a) - V(s), the same for every agent",
    "O3": "O3 space-time: E[Q(s,a) | a_i] - V(s), teammates' actions averaged under their policies",
    "O4": "O4: Q(s,a) - sum_c pi_i(c) Q(s, a[i <- c]), teammates' actions as taken",
    "O5": "O5 ledger: Shapley value of v(C) = E[Q(s,a)], absent agents' actions drawn from their policies",
    "O3 observed": "O3 observed: E[O3 | o_i, a_i], the mean of O3 over all (step, state) that look the same to agent i",
}


def truth(
    game: Env[Any],
    policy: Policy | None,
    trajectory: Trajectory,
    kind: str = "O3",
    *,
    gamma: float = 1.0,
    memory: int = MEMORY,
    solution: Solution | None = None,
) -> Truth:
    """O2, O3, O4, O5 or E[O3 | o_i, a_i] of every recorded action, exactly.

    Args:
        policy: whose Q and V (None: uniformly random); it need not be the one that was recorded. One of several seeds
            judges the rows of each seed by that seed's policy. Of one that remembers, s includes the memory, and each
            seed has states of its own.
        kind: one of DEFINITIONS.
        solution: of this game and policy, where it is there already.
    Returns: Truth(values [T,B,N] in the dtype of the recorded rewards, error 0, cost in simulator steps, definition).
        Under "O3 observed" an action that the policy never takes on such an observation is NaN: no mean exists.
    Raises: TooLarge (a ValueError) where the states cannot be listed; ValueError, one sentence, for an unknown kind, or
        a trajectory that this game cannot bring about.
    """
    if kind not in DEFINITIONS:
        raise ValueError(f"there is no exact oracle {kind!r}; the exact oracles are: {', '.join(DEFINITIONS)}")
    if solution is None and remembers(policy):
        return _remembering(game, policy, trajectory, kind, gamma, memory)
    world = solution.world if solution else reach(game, memory=memory, device=trajectory.action.device)
    seeds = 1 if solution else seeds_of(policy)
    place, action = world.places(trajectory), trajectory.action
    values = trajectory.reward.new_zeros(action.shape)
    for s, rows in enumerate(torch.arange(place.shape[1], device=place.device).chunk(seeds)):
        one = solution or solve(game, one_seed(policy, s), gamma=gamma, world=world)
        values[:, rows] = _credit(one, place[:, rows], action[:, rows], kind, memory).to(values.dtype)
    discount = "" if one.gamma == 1 else f", gamma {one.gamma:g}"
    return Truth(values, torch.zeros_like(values), world.cost, f"{DEFINITIONS[kind]}, exact{discount}")


def _remembering(
    game: Env[Any], policy: Remembers, trajectory: Trajectory, kind: str, gamma: float, memory: int
) -> Truth:
    """`truth` of a policy that remembers, seed by seed."""
    found = []
    for s, rows in enumerate(
        torch.arange(trajectory.action.shape[1], device=trajectory.action.device).chunk(policy.n_seeds)
    ):
        own = Remembering(game, policy, s)
        part = own.recorded(some(trajectory, rows))
        found.append(truth(own, own.policy, part, kind, gamma=gamma, memory=memory))
    values = torch.cat([one.values for one in found], 1)
    return Truth(values, torch.zeros_like(values), sum(one.cost for one in found), found[0].definition)


def ledger(solution: Solution, trajectory: Trajectory, memory: int = MEMORY) -> tuple[Tensor, Tensor, Tensor]:
    """(phi [T,B,N], luck [T,B], gap [B]) in float64: what every agent and chance added to each episode.

        G_0 - V(s_0) = sum_t gamma^t (sum_i phi_it + luck_t),   luck_t = r_t + gamma V(s_{t+1}) - Q(s_t, a_t)

    phi is O5, luck has mean 0, and gap is the left side minus the right: 0 up to rounding.
    Raises ValueError for a trajectory that the solved game cannot bring about.
    """
    gamma, (place, action) = solution.gamma, (solution.world.places(trajectory), trajectory.action)
    reward = trajectory.reward.double()
    phi = _credit(solution, place, action, "O5", memory)
    luck, v = torch.zeros_like(reward), torch.zeros_like(reward)
    for t, rows, k in reversed(list(_live(place))):
        after = v[t + 1, rows] if t + 1 < len(v) else 0.0
        luck[t, rows] = (
            reward[t, rows] + gamma * after - solution.q[t][k, _joint_index(solution, t, k, action[t, rows])]
        )
        v[t, rows] = solution.v[t][k]
    discount = gamma ** torch.arange(len(v), device=v.device, dtype=v.dtype)[:, None]
    return phi, luck, (discount * (reward - phi.sum(-1) - luck)).sum(0) - v[0]


def own_advantages(solution: Solution, t: int) -> Tensor:
    """[K,N,A]: O3 of every action in every state of layer t, E[Q(s,a) | a_i] - V(s); no meaning where illegal."""
    q, probs, V = solution.q[t], solution.probs[t], solution.v[t]
    K, N, A = probs.shape
    found = []
    for i in range(N):
        before, after = outer(probs[:, :i]), outer(probs[:, i + 1 :])
        found.append(torch.einsum("kxay,kx,ky->ka", q.reshape(K, A**i, A, -1), before, after))
    return torch.stack(found, 1) - V[:, None, None]


def observed_advantages(solution: Solution) -> list[Tensor]:
    """E[O3 | o_i, a_i], a [K,N,A] table a layer; NaN where the policy never does a_i on seeing o_i.

    The mean is over every (t, s) in which agent i sees o_i, each weighted by P(s_t = s, alive) pi_i(a_i | o_i).
    """
    game, layers = solution.world.game, solution.world.layers
    o3 = torch.cat([own_advantages(solution, t) for t in range(len(layers))])
    chance = torch.cat([here[:, None, None] * p for here, p in zip(solution.occupancy, solution.probs, strict=True)])
    obs = torch.cat([game.observe(layer.state) for layer in layers]).double()
    for i in range(obs.shape[1]):
        first, code = merge(Columns(obs.new_zeros(len(obs), 0).long(), obs[:, i]))
        total = o3.new_zeros(2, len(first), o3.shape[-1])
        total.index_add_(1, code, torch.stack((chance[:, i] * o3[:, i], chance[:, i])))
        o3[:, i] = (total[0] / total[1])[code]
    return list(o3.split([len(layer.legal) for layer in layers]))


def coalitions(q: Tensor, probs: Tensor, action: Tensor) -> Tensor:
    """[R, 2^N]: v(C) = E_{a'_-C ~ pi} Q(s, a_C, a'_-C); agent i is in C where bit N - 1 - i of its number is set.

    q [R, A^N], probs [R,N,A], action [R,N]. One agent's axis at a time is parted into "averaged under pi_i" and "as
    taken", so that 2^N coalitions cost little more than reading Q once.
    """
    R, N, A = probs.shape
    table = q[None]  # [coalitions of the agents so far, R, joint actions of the rest]
    for i in range(N):
        table = table.unflatten(-1, (A, -1))
        kept = table[:, torch.arange(R, device=q.device), action[:, i]]
        mean = torch.einsum("crak,ra->crk", table, probs[:, i])
        table = torch.stack((mean, kept), 1).flatten(0, 1)
    return table[..., 0].T


def of_coalitions(v: Tensor, kind: str) -> Tensor:
    """[R,N]: O2, O3, O4 or O5 from the worth v [R, 2^N] of all coalitions."""
    R, N = len(v), v.shape[1].bit_length() - 1
    one = 1 << torch.arange(N - 1, -1, -1, device=v.device)  # {i}
    if kind == "O5":
        return shapley.exact(lambda present: v.gather(1, (present * one).sum(-1)), R, N, 1 << N, v.device).values
    if kind == "O4":
        return v[:, -1:] - v[:, (1 << N) - 1 - one]
    return (v[:, one] if kind == "O3" else v[:, -1:].expand(-1, N)) - v[:, :1]


def _credit(solution: Solution, place: Tensor, action: Tensor, kind: str, memory: int) -> Tensor:
    """[T,B,N] float64: what recorded actions deserve in the states `place` [T,B], 0 where it is -1."""
    values = solution.value.new_zeros(action.shape)
    seen = observed_advantages(solution) if kind == "O3 observed" else []
    for t, rows, k in _live(place):
        taken = action[t, rows]
        _joint_index(solution, t, k, taken)
        if seen:
            values[t, rows] = seen[t][k].gather(-1, taken[..., None])[..., 0]
        else:
            values[t, rows] = _at(solution, t, k, taken, kind, memory)
    return values


def _live(place: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, rows alive then, their places in its layer)."""
    for t, k in enumerate(place):
        rows = (k >= 0).nonzero()[:, 0]
        if len(rows):
            yield t, rows, k[rows]


def _at(solution: Solution, t: int, k: Tensor, action: Tensor, kind: str, memory: int) -> Tensor:
    """[R,N]: O2 to O5 of joint actions [R,N] in the states k [R] of layer t; equal rows are computed once."""
    q, probs = solution.q[t], solution.probs[t]
    cells, code = torch.cat((k[:, None], action), 1).unique(dim=0, return_inverse=True)
    pieces = cells.split(max(1, memory // (64 * q.shape[1])))
    return torch.cat([of_coalitions(coalitions(q[c[:, 0]], probs[c[:, 0]], c[:, 1:]), kind) for c in pieces])[code]


def _joint_index(solution: Solution, t: int, k: Tensor, action: Tensor) -> Tensor:
    """[R]: the numbers of joint actions [R,N]. Raises ValueError where one is illegal in its state k of layer t."""
    j = torch.zeros_like(k)
    for a in action.unbind(-1):
        j = j * solution.world.game.n_actions + a
    legal = solution.world.layers[t].legal[k, j]
    if not bool(legal.all()):
        taken = action[~legal][0].tolist()
        raise ValueError(f"at step {t} a live episode of the trajectory takes {taken}, which is illegal there")
    return j
