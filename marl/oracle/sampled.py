"""The truth by living it again: replays that differ from the fact in one action, with all luck kept or all drawn anew.

O1, O6, O7 and O8 ask about this episode: they keep its noise, so that their answers have no error. O2 to O5 are means
over what luck may still bring: pairs of replays from (s_t, a_t) share fresh noise from step t on, the environment's
and the policies', and the spread over M pairs gives a standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from envs.noise import uniform
from marl.oracle.moments import moments_of
from marl.oracle.shapley import gains
from marl.rollout import Simulator, draw_noise, others, sample, some, swapped
from marl.types import Noise, Policy, Trajectory

Progress = Callable[[int, int], None]
"""Called between pieces of a long question with (pieces done, pieces in all)."""

Draw = Callable[[Trajectory, Tensor, Noise, Tensor], Tensor]
"""(episodes, pi [T,B,N,A] at their steps, fresh noise, random keys [T,B,N]) -> one replay's credit [T,B,N]."""


def returns_to_go(reward: Tensor) -> Tensor:
    """G_t = r_t + r_{t+1} + ..., added in the order in which a branch from t adds, so that equal lives differ by 0."""
    total = torch.zeros_like(reward)
    for t in range(len(reward)):
        total[: t + 1] += reward[t]
    return total


def alternatives(action: Tensor, probs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every agent's other actions and their probabilities, [...,N,A-1] each.

    An illegal action has probability 0; the action taken is lived again in its place, for nobody may ask for it.
    """
    choice = others(action, probs.shape[-1])
    weight = probs.gather(-1, choice)
    if mask is not None:
        choice = torch.where(mask.gather(-1, choice), choice, action[..., None])
    return choice, weight


# Given this episode's noise.


def unit_effect(
    simulator: Simulator, policy: Policy, trajectory: Trajectory, progress: Progress | None = None
) -> Tensor:
    """O6: G_t(tau) - sum_c pi_i(c|o_it) G_t(tau with do(a_it = c)), everyone reacting after t.

    The replays share the exogenous noise and every agent's policy noise, which inverse CDF in action order turns
    into actions; a value (not its mean) depends on that order. [T,B,N], 0 at dead steps. Exact given the noise.
    Cost: at most B N (A-1) T(T+1)/2 steps, dead ones not counted.
    """
    T, _, N = trajectory.action.shape

    def ask(part: Trajectory) -> Tensor:
        choice, weight = alternatives(part.action, part.probs, part.mask)
        lived = simulator.branches(part, swapped(part.action, choice), policy).unflatten(-1, (N, -1))
        return (weight * (returns_to_go(part.reward)[..., None, None] - lived)).sum(-1)

    return _in_parts(simulator, trajectory, T * N * (trajectory.probs.shape[-1] - 1), ask, progress)


def frozen_unit(
    simulator: Simulator, trajectory: Trajectory, baseline: Tensor, progress: Progress | None = None
) -> Tensor:
    """O8 by simulation: G_t(tau) - G_t(tau[a_it <- c_i]), all other actions as recorded; baseline c [N].

    [T,B,N], 0 at dead steps. Cost: at most B N T(T+1)/2 steps.
    """
    T, _, N = trajectory.action.shape

    def ask(part: Trajectory) -> Tensor:
        choice = baseline[:, None].expand(*part.action.shape, 1)
        return returns_to_go(part.reward)[..., None] - simulator.branches(part, swapped(part.action, choice))

    return _in_parts(simulator, trajectory, T * N, ask, progress)


def agent_total(
    simulator: Simulator,
    trajectory: Trajectory,
    baseline: Tensor,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """O7: G(tau) - G(tau with agent i on its baseline throughout), [T,B,N] the same at all of an agent's live steps.

    The others are frozen (policy None) or react by `policy` with their recorded policy noise.
    Cost: at most B N T steps.
    """
    N = trajectory.action.shape[-1]
    me = torch.eye(N, dtype=torch.bool, device=baseline.device)

    def ask(part: Trajectory) -> Tensor:
        rest = part.action if policy is None else torch.full_like(part.action, -1)
        plans = torch.where(me, baseline, rest[:, :, None])
        gap = part.reward.sum(0)[:, None] - simulator.totals(part, plans, policy)
        return gap.expand(part.action.shape)

    return _in_parts(simulator, trajectory, N, ask, progress)


def _in_parts(
    simulator: Simulator,
    trajectory: Trajectory,
    branches: int,
    ask: Callable[[Trajectory], Tensor],
    progress: Progress | None,
) -> Tensor:
    """Answers [T,B,N] about whole episodes, so many at a time as fit with `branches` branches each; 0 at dead steps."""
    out = torch.zeros(trajectory.action.shape, dtype=trajectory.reward.dtype, device=trajectory.reward.device)
    parts = simulator.parts(trajectory, branches)
    for done, b in enumerate(parts, 1):
        out[:, b] = ask(some(trajectory, b))
        tell(progress, done, len(parts))
    return out * trajectory.alive[..., None]


def numbered(rows: Tensor, replay: int | Tensor) -> Tensor:
    """One number for each (row, replay), which names its fresh luck."""
    return rows + replay * (1 << 32)


def order_keys(seed: int, names: Tensor, shape: Sequence[int]) -> Tensor:
    """[R, *shape] random numbers whose order is an order of players, named by (seed, row, replay)."""
    return uniform("oracle/order", seed, names, shape, torch.float64, names.device)


def tell(progress: Progress | None, done: int, total: int) -> None:
    """Call `progress`, if there is one."""
    if progress is not None:
        progress(done, total)


# The reward of one step.


def reward_difference(
    simulator: Simulator, trajectory: Trajectory, baseline: Tensor, progress: Progress | None = None
) -> Tensor:
    """O1 difference: r_t - rho(s_t, a_t[i <- c_i], xi_t), [T,B,N]. Cost: at most B T N steps."""
    T, _, N = trajectory.action.shape

    def ask(part: Trajectory) -> Tensor:
        instead = simulator.rewards(part, baseline[:, None].expand(*part.action.shape, 1))
        return part.reward[..., None] - instead[..., 0]

    return _in_parts(simulator, trajectory, T * N, ask, progress)


def reward_aristocrat(simulator: Simulator, trajectory: Trajectory, progress: Progress | None = None) -> Tensor:
    """O1 aristocrat: r_t - sum_c pi_i(c|o_it) rho(s_t, a_t[i <- c], xi_t), [T,B,N]. Cost: at most B T N (A-1) steps."""
    T, _, N = trajectory.action.shape

    def ask(part: Trajectory) -> Tensor:
        choice, weight = alternatives(part.action, part.probs, part.mask)
        gap = part.reward[..., None, None] - simulator.rewards(part, choice)
        return (weight * gap).sum(-1)

    return _in_parts(simulator, trajectory, T * N * (trajectory.probs.shape[-1] - 1), ask, progress)


# Means over fresh luck.


def advantage(simulator: Simulator, policy: Policy) -> Draw:
    """O2: G(s_t, a_t) - G(s_t, a'), a' ~ pi: one draw of Q(s,a) - V(s), the same for all agents.

    Cost of a replay: at most B T(T+1) steps.
    """

    def draw(part: Trajectory, probs: Tensor, noise: Noise, keys: Tensor) -> Tensor:
        joint = torch.stack((part.action, sample(probs, noise.policy)), 2)
        fact, instead = simulator.branches(part, joint, policy, noise).unbind(-1)
        return (fact - instead)[..., None].expand(part.action.shape)

    return draw


def given_own_action(simulator: Simulator, policy: Policy) -> Draw:
    """O3: sum_c pi_i(c) (G(s_t, a'[i <- a_it]) - G(s_t, a'[i <- c])), teammates' a' ~ pi: a draw of Q_i(s,a_i) - V(s).

    The agent's own actions are summed over, not drawn. Cost of a replay: at most B (1 + N (A-1)) T(T+1)/2 steps.
    """

    def draw(part: Trajectory, probs: Tensor, noise: Noise, keys: Tensor) -> Tensor:
        action = sample(probs, noise.policy)
        base, instead, _ = _one_agent_otherwise(simulator, policy, part, action, probs, noise)
        own = base[..., None, None].expand(*action.shape, 1)
        worth = torch.cat((own, instead), -1)  # of the actions a', a' + 1, a' + 2, ... (mod A)
        A = probs.shape[-1]
        worth = worth.gather(-1, (torch.arange(A, device=action.device) - action[..., None]) % A)
        mine = worth.gather(-1, part.action[..., None])
        return (probs * (mine - worth)).sum(-1)

    return draw


def given_all_actions(simulator: Simulator, policy: Policy) -> Draw:
    """O4: sum_c pi_i(c) (G(s_t, a_t) - G(s_t, a_t[i <- c])): a draw of Q(s,a) - sum_c pi_i(c) Q(s, a[i <- c]).

    Cost of a replay: at most B (1 + N (A-1)) T(T+1)/2 steps.
    """

    def draw(part: Trajectory, probs: Tensor, noise: Noise, keys: Tensor) -> Tensor:
        fact, instead, weight = _one_agent_otherwise(simulator, policy, part, part.action, probs, noise)
        return (weight * (fact[..., None, None] - instead)).sum(-1)

    return draw


def _one_agent_otherwise(
    simulator: Simulator, policy: Policy, part: Trajectory, action: Tensor, probs: Tensor, noise: Noise
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns of `action` [T,B], of each agent's other actions in it [T,B,N,A-1], and the probabilities of these."""
    choice, weight = alternatives(action, probs, part.mask)
    joint = torch.cat((action[:, :, None], swapped(action, choice)), 2)
    lived = simulator.branches(part, joint, policy, noise)
    return lived[..., 0], lived[..., 1:].unflatten(-1, (action.shape[-1], -1)), weight


def ledger(simulator: Simulator, policy: Policy) -> Draw:
    """O5: what each agent adds on joining in a random order, absent agents doing a' ~ pi: a draw of its Shapley share.

    The N + 1 branches share a' and the future's noise, so that shares sum to G(s_t, a_t) - G(s_t, a') in every draw.
    Cost of a replay: at most B (N + 1) T(T+1)/2 steps.
    """

    def draw(part: Trajectory, probs: Tensor, noise: Noise, keys: Tensor) -> Tensor:
        absent = sample(probs, noise.policy).flatten(0, 1)[:, None]
        present = part.action.flatten(0, 1)[:, None]

        def worth(joined: Tensor) -> Tensor:
            joint = torch.where(joined, present, absent).unflatten(0, part.reward.shape)
            return simulator.branches(part, joint, policy, noise).flatten(0, 1)

        return gains(worth, keys.flatten(0, 1).argsort(-1)).reshape(part.action.shape)

    return draw


def over_luck(
    simulator: Simulator,
    policy: Policy,
    trajectory: Trajectory,
    draw: Draw,
    branches: int,
    replays: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and standard error [T,B,N] of `replays` draws, 0 at dead steps; `branches` is how many a step each asks for.

    Fresh noise is named "oracle/..." and indexed by (seed, number of the episode in the recording, replay). As many
    replays as fit in memory advance together.
    """
    mean = torch.zeros(trajectory.action.shape, dtype=trajectory.reward.dtype, device=trajectory.reward.device)
    error, width = torch.zeros_like(mean), len(mean) * branches
    parts = simulator.parts(trajectory, width)
    several = max(1, simulator.at_once(trajectory) // (width * len(parts[0])))
    for k, b in enumerate(parts):
        part = some(trajectory, b)
        with torch.inference_mode():
            probs = policy(part.obs, part.mask)
        moments = moments_of(mean[:, b])
        for replay in torch.arange(replays, device=b.device).split(several):
            for found in _replayed(simulator, part, probs, b, replay, seed, draw):
                moments = moments.add(found)
            tell(progress, k * replays + moments.n, len(parts) * replays)
        mean[:, b], error[:, b] = moments.mean, moments.error
    alive = trajectory.alive[..., None]
    return mean * alive, error * alive


def _replayed(
    simulator: Simulator, part: Trajectory, probs: Tensor, b: Tensor, replay: Tensor, seed: int, draw: Draw
) -> Tensor:
    """[R,T,B,N]: the draws of R replays of the episodes numbered b, side by side, seed-major."""
    (T, B, N), S, R = part.action.shape, simulator.n_seeds, len(replay)
    rows = torch.arange(B, device=b.device).reshape(S, 1, -1).expand(-1, R, -1).flatten()
    names = numbered(b[rows], replay[:, None].expand(S, R, B // S).flatten())
    dtype, seeds = part.reward.dtype, torch.full_like(names, seed)
    noise = draw_noise(simulator.game, seeds, names, "oracle/replay", dtype)
    keys = order_keys(seed, names, (T, N)).transpose(0, 1)
    found = draw(some(part, rows), probs[:, rows], noise, keys)
    return found.reshape(T, S, R, -1, N).movedim(2, 0).flatten(2, 3)
