"""An episode can be lived again: with the noise kept, a branch differs from the fact in one action and nothing else.

`rollout` plays whole episodes and stores all that chance decided. `Simulator` answers counterfactual questions about
them and counts every step it was asked for. Rows are seed-major everywhere (B = S * E), so that a population of
policies can act on any of these batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from envs.base import Env, HasActionMask, flatten, map_state, repeat, stack, take
from envs.noise import uniform
from marl.types import Noise, Policy, Trajectory

MAX_ROWS = 1 << 18  # branches that advance together; larger questions are asked in pieces, so that memory stays bounded
CACHE_ROWS = 1 << 15  # rows of a single-step question, few enough to stay in the cache of one core


def sample(probs: Tensor, u: Tensor) -> Tensor:
    """Inverse CDF in action order: the smallest a with sum_{c <= a} p(c) > u * sum_c p(c).

    Args: probs [..., A]; u [...] in [0,1). Returns [...] int64. An action of probability 0 is never chosen, because
    u times the total stays below the total also in floating point.
    """
    cdf = probs.cumsum(-1)
    return (cdf <= u[..., None] * cdf[..., -1:]).sum(-1)


def uniform_policy(n_actions: int) -> Policy:
    """Every legal action with equal probability."""

    def policy(obs: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return obs.new_full((*obs.shape[:-1], n_actions), 1.0 / n_actions)
        return mask.to(obs.dtype) / mask.sum(-1, keepdim=True)

    return policy


def greedy(policy: Policy) -> Policy:
    """All probability on the policy's most probable action (the first among equals)."""

    def chosen(obs: Tensor, mask: Tensor | None) -> Tensor:
        probs = policy(obs, mask)
        return torch.zeros_like(probs).scatter(-1, probs.argmax(-1, keepdim=True), 1.0)

    return chosen


def legal(game: Env[Any], state: Any) -> Tensor | None:
    """[B,N,A] legal actions, or None where the game knows no illegal ones."""
    return game.action_mask(state) if isinstance(game, HasActionMask) else None


def draw_noise(
    game: Env[Any],
    seed: Tensor,
    episode: Tensor,
    purpose: str = "rollout",
    dtype: torch.dtype = torch.float32,
) -> Noise:
    """The noise of B episodes named by (seed [B], episode [B]); no row's numbers depend on the other rows."""

    def table(kind: str, *shape: int) -> Tensor:
        return uniform(f"{purpose}/{kind}", seed, episode, shape, dtype, seed.device)

    return Noise(
        table("reset", game.reset_noise_size),
        table("step", game.horizon, game.step_noise_size).transpose(0, 1).contiguous(),
        table("policy", game.horizon, game.n_agents).transpose(0, 1).contiguous(),
    )


def play(game: Env[Any], policy: Policy, noise: Noise) -> Trajectory:
    """Play B whole episodes with given noise."""
    records = []
    masks_of = game.action_mask if isinstance(game, HasActionMask) else None
    with torch.inference_mode():
        state = game.reset(noise.reset)
        alive = torch.ones(noise.reset.shape[0], dtype=torch.bool, device=noise.reset.device)
        for t in range(game.horizon):
            obs, mask = game.observe(state), None if masks_of is None else masks_of(state)
            probs = policy(obs, mask)
            action = sample(probs, noise.policy[t])
            step = game.step(state, action, noise.step[t])
            records.append((state, obs, mask, action, probs, step.reward, step.done, alive))
            state, alive = step.state, alive & ~step.done
    # Stacked outside inference mode, so that learners may differentiate through functions of these tensors.
    states, views, masks, actions, probs_, rewards, dones, alives = zip(*records, strict=True)
    return Trajectory(
        state=stack(states),
        final=map_state(torch.clone, state),
        obs=torch.stack(views),
        mask=None if masks[0] is None else torch.stack(masks),
        action=torch.stack(actions),
        probs=torch.stack(probs_),
        noise=noise.step,
        policy_noise=noise.policy,
        reward=torch.stack(rewards),
        done=torch.stack(dones),
        alive=torch.stack(alives),
    )


def rollout(
    game: Env[Any],
    policy: Policy | None = None,
    episodes: int = 32,
    seed: int | Sequence[int] = 0,
    first_episode: int = 0,
    purpose: str = "rollout",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Trajectory:
    """Play `episodes` whole episodes of each seed (policy None: uniformly random).

    Returns a Trajectory with B = len(seed) * episodes rows, seed-major. Raises ValueError for a bad count.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes} is not allowed; it must be 1 or more")
    seeds = [seed] if isinstance(seed, int) else list(seed)
    row_seed = torch.tensor(seeds, device=device).repeat_interleave(episodes)
    row_episode = torch.arange(first_episode, first_episode + episodes, device=device).repeat(len(seeds))
    noise = draw_noise(game, row_seed, row_episode, purpose, dtype)
    return play(game, policy or uniform_policy(game.n_actions), noise)


class Simulator:
    """A game that answers "what if?" about recorded episodes and counts the steps it took, per seed.

    The count is the second budget of every comparison: steps of rows that are alive, nothing else. Whoever knows an
    answer in closed form is charged the steps that it replaces (`charge`).
    """

    def __init__(self, game: Env[Any], n_seeds: int = 1, max_rows: int = MAX_ROWS) -> None:
        self.game = game
        self.n_seeds = n_seeds
        self.max_rows = max_rows
        self.steps = torch.zeros(n_seeds, dtype=torch.int64)

    def charge(self, live: Tensor) -> None:
        """Count the True entries of live [B, ...], seed by seed."""
        self.steps = self.steps + live.reshape(self.n_seeds, -1).sum(1).cpu()

    def rewards(self, trajectory: Trajectory, choice: Tensor) -> Tensor:
        """Rewards of one step in which one agent acts otherwise, same state, same noise.

        Args: choice [T,B,N,K], K actions for each agent to do in place of its own.
        Returns: [T,B,N,K] rewards, 0 at dead steps. Costs N K steps for every live (t, b).
        """
        T, B, N, K = choice.shape
        self.charge(trajectory.alive.T[..., None].expand(B, T, N * K))
        cells = trajectory.alive.flatten().nonzero()[:, 0]
        state, noise = flatten(trajectory.state), trajectory.noise.flatten(0, 1)
        action, choice = trajectory.action.flatten(0, 1), choice.flatten(0, 1)
        out = trajectory.reward.new_zeros(T * B, N * K)
        with torch.inference_mode():
            for some in cells.split(max(1, CACHE_ROWS // (N * K))):
                joint = swapped(action[some], choice[some]).flatten(0, 1)
                step = self.game.step(repeat(take(state, some), N * K), joint, noise[some].repeat_interleave(N * K, 0))
                out[some] = step.reward.reshape(-1, N * K)
        return out.reshape(T, B, N, K)

    def branches(
        self,
        trajectory: Trajectory,
        joint: Tensor,
        policy: Policy | None = None,
        noise: Noise | None = None,
        at: Sequence[int] | None = None,
    ) -> Tensor:
        """Returns from t on, of episodes that do `joint` at t and then go on to the horizon.

        Args:
            joint: [K,B,V,N], V joint actions for each of the K steps in `at` (default: every step, K = T).
            policy: who acts after t. None: everyone as recorded (frozen). Else everyone reacts by `policy`.
            noise: exogenous and policy noise of the branches; None: as recorded, so that a branch shares all luck.
        Returns:
            [K,B,V] undiscounted returns from t; 0 where the episode was dead at t.
        Cost: one step for each live (branch, step): at most V B T(T+1)/2 over all t. Branches of all t advance
        together, so there are T calls a piece; pieces are whole episodes of every seed.
        """
        at = range(self.game.horizon) if at is None else at
        T, S = self.game.horizon, self.n_seeds
        K, B, V, _ = joint.shape
        E = B // S
        piece = max(1, self.max_rows // (S * V * max(1, K)))
        out = trajectory.reward.new_zeros(K, B, V)
        rows = torch.arange(B, device=out.device).reshape(S, E)
        with torch.inference_mode():
            for episodes in torch.arange(E, device=out.device).split(piece):
                b = rows[:, episodes].flatten()
                out[:, b] = self._sweep(trajectory, joint, policy, noise, list(at), b, T)
        return out

    def _sweep(
        self,
        trajectory: Trajectory,
        joint: Tensor,
        policy: Policy | None,
        noise: Noise | None,
        at: list[int],
        b: Tensor,
        T: int,
    ) -> Tensor:
        """Advance all branches of episodes `b` through time; the branches of step t join at t."""
        V, R = joint.shape[2], len(b)
        exogenous = trajectory.noise if noise is None else noise.step
        luck = trajectory.policy_noise if noise is None else noise.policy
        state: Any = None
        total = trajectory.reward.new_zeros(R, 0)
        alive = trajectory.alive.new_zeros(R, 0)
        for t in range(min(at), T):
            action = self._react(trajectory, state, policy, luck, t, b, alive.shape[1])
            if t in at:
                k = at.index(t)
                born = repeat(take(map_state(lambda x, t=t: x[t], trajectory.state), b), V)
                state = born if state is None else _widen(state, born, R)
                chosen = joint[k, b]
                action = chosen if action is None else torch.cat((action, chosen), 1)
                total = torch.cat((total, total.new_zeros(R, V)), 1)
                alive = torch.cat((alive, trajectory.alive[t, b][:, None].expand(R, V)), 1)
            assert action is not None
            width = alive.shape[1]
            self.charge(alive)
            step = self.game.step(state, action.flatten(0, 1), exogenous[t, b].repeat_interleave(width, 0))
            total = total + step.reward.reshape(R, width) * alive
            state, alive = step.state, alive & ~step.done.reshape(R, width)
        return total.reshape(R, len(at), V).transpose(0, 1)

    def _react(
        self, trajectory: Trajectory, state: Any, policy: Policy | None, luck: Tensor, t: int, b: Tensor, width: int
    ) -> Tensor | None:
        """[R, width, N]: what agents do at t in branches that began before: as recorded, or by `policy`."""
        if width == 0:
            return None
        if policy is None:
            return trajectory.action[t, b][:, None].expand(-1, width, -1)
        probs = policy(self.game.observe(state), legal(self.game, state))
        return sample(probs, luck[t, b].repeat_interleave(width, 0)).reshape(len(b), width, -1)

    def totals(self, trajectory: Trajectory, plans: Tensor) -> Tensor:
        """Returns of whole action plans from the recorded first states, noise as recorded.

        Args: plans [T,B,V,N]. Returns: [B,V]. Costs one step for each live (plan, step), at most B V T.
        """
        T, B, V, _ = plans.shape
        out = trajectory.reward.new_zeros(B, V)
        S, E = self.n_seeds, B // self.n_seeds
        rows = torch.arange(B, device=out.device).reshape(S, E)
        with torch.inference_mode():
            for episodes in torch.arange(E, device=out.device).split(max(1, self.max_rows // (S * V))):
                b = rows[:, episodes].flatten()
                state = repeat(take(map_state(lambda x: x[0], trajectory.state), b), V)
                alive = trajectory.alive[0, b][:, None].expand(-1, V)
                total = out.new_zeros(len(b), V)
                for t in range(T):
                    self.charge(alive)
                    step = self.game.step(
                        state, plans[t, b].flatten(0, 1), trajectory.noise[t, b].repeat_interleave(V, 0)
                    )
                    total = total + step.reward.reshape(-1, V) * alive
                    state, alive = step.state, alive & ~step.done.reshape(-1, V)
                out[b] = total
        return out


def _widen(state: Any, born: Any, rows: int) -> Any:
    """Append newly born branches to each episode's branches: [R * w, ...] and [R * V, ...] -> [R * (w + V), ...]."""

    def join(old: Tensor, new: Tensor) -> Tensor:
        return torch.cat((old.unflatten(0, (rows, -1)), new.unflatten(0, (rows, -1))), 1).flatten(0, 1)

    return map_state(join, state, born)


def swapped(action: Tensor, choice: Tensor) -> Tensor:
    """Joint actions with one agent's action replaced.

    Args: action [..., N]; choice [..., N, K], K replacements for each agent.
    Returns: [..., N * K, N]; variant i * K + k is action with agent i doing choice[i, k].
    """
    N, K = choice.shape[-2:]
    variants = action[..., None, None, :].expand(*action.shape[:-1], N, K, N).clone()
    index = torch.arange(N, device=action.device)
    variants[..., index, :, index] = choice.movedim(-2, 0)
    return variants.flatten(-3, -2)


def others(action: Tensor, n_actions: int) -> Tensor:
    """[..., N, A-1]: for each agent every action but the one taken, as (a + 1, a + 2, ...) mod A."""
    shift = torch.arange(1, n_actions, device=action.device)
    return (action[..., None] + shift) % n_actions
