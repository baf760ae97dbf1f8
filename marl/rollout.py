"""An episode can be lived again: with the noise kept, a branch differs from the fact in one action and nothing else.

`rollout` plays whole episodes and stores all that chance decided. `Simulator` answers counterfactual questions about
them and counts every step it was asked for. Rows are seed-major everywhere (B = S * E), so that a population of
policies can act on any of these batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from envs.base import Env, HasActionMask, HasRewardWith, HasStepWith, flatten, map_state, repeat, stack, take
from envs.noise import uniform
from marl.types import Act, Noise, Policy, Trajectory

MEMORY = 1 << 30  # bytes that the branches of one question may take; larger questions are asked in pieces
MAX_ROWS = 1 << 18  # branches that advance together, however much memory there is: more gain no speed
COPIES = 4  # of a branch's row, alive at once: before and after a step, joined by the branches born at it, and scratch
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


class Remembers(Protocol):
    """A policy whose agents remember: m_t = remember(o_t, m_{t-1}), m_{-1} = 0, and pi(. | m_t).

    What is remembered is a function of the observations so far, so that no recording needs to hold it. Called with
    whole episodes [T,B,N,O] from their first step on, such a policy remembers its way through them.
    """

    @property
    def n_seeds(self) -> int: ...
    @property
    def memory(self) -> int:
        """Numbers that an agent remembers."""

    def __call__(self, obs: Tensor, mask: Tensor | None) -> Tensor:
        """[T,B,N,O] whole episodes -> [T,B,N,A]."""

    def remember(self, obs: Tensor, before: Tensor) -> Tensor:
        """[B,N,O] and [B,N,memory] -> [B,N,memory]; rows seed-major."""

    def act(self, memory: Tensor, mask: Tensor | None) -> Tensor:
        """[B,N,memory] -> probabilities [B,N,A]."""

    def alone(self, seed: int) -> Remembers:
        """A copy in float64 of the policy of one seed (by its place among them)."""


def remembers(policy: Policy | Remembers | None) -> TypeGuard[Remembers]:
    """Is there a memory to be carried from step to step?"""
    return bool(getattr(policy, "memory", 0))


def look(policy: Policy, obs: Tensor, mask: Tensor | None, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(probabilities [B,N,A], what is remembered now) of one step; before: from the last one, None at the first."""
    if not remembers(policy):
        return policy(obs, mask), None
    now = recall(policy, obs, before)
    return policy.act(now, mask), now


def recall(policy: Remembers, obs: Tensor, before: Tensor | None) -> Tensor:
    """[B,N,memory] on seeing obs [B,N,O]; before None: nothing is remembered yet."""
    return policy.remember(obs, obs.new_zeros(*obs.shape[:-1], policy.memory) if before is None else before)


@runtime_checkable
class ActsAtOnce(Protocol):
    """A policy that can look and choose in one call, as `look` and `sample` do, while its parameters stay as they are.

    None where it cannot (on this device, in this precision).
    """

    def acting(self, luck: Tensor) -> Act | None:
        """A function from views, masks and uniform numbers [B,N] (such as luck) to probabilities and actions."""


class Greedy:
    """All probability on the policy's most probable action (the first among equals)."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.n_seeds, self.memory = policy, seeds_of(policy), int(getattr(policy, "memory", 0))

    def __call__(self, obs: Tensor, mask: Tensor | None = None) -> Tensor:
        """[..., B, N, A]."""
        return _surely(self.policy(obs, mask))

    def remember(self, obs: Tensor, before: Tensor) -> Tensor:
        """As the policy does."""
        assert remembers(self.policy)
        return self.policy.remember(obs, before)

    def act(self, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B,N,A]."""
        assert remembers(self.policy)
        return _surely(self.policy.act(memory, mask))

    def alone(self, seed: int) -> Greedy:
        """That of one seed."""
        assert remembers(self.policy)
        return Greedy(self.policy.alone(seed))


def _surely(probs: Tensor) -> Tensor:
    return torch.zeros_like(probs).scatter(-1, probs.max(-1, keepdim=True).indices, 1.0)


def greedy(policy: Policy) -> Policy:
    """The policy that always does what is most probable; it remembers what the policy does."""
    return Greedy(policy)


def seeds_of(policy: Policy | None) -> int:
    """How many seeds a policy serves: the `n_seeds` that a population names, else 1."""
    return int(getattr(policy, "n_seeds", 1))


def legal(game: Env[Any], state: Any) -> Tensor | None:
    """[B,N,A] legal actions, or None where the game knows no illegal ones."""
    return game.action_mask(state) if isinstance(game, HasActionMask) else None


def row_bytes(game: Env[Any], trajectory: Trajectory) -> int:
    """Bytes of one row of a batch: its state, its noise, what agents see in it and what they do."""
    T, B, N = trajectory.action.shape
    number = trajectory.reward.element_size()
    state = sum(x.numel() * x.element_size() for x in trajectory.state) // (T * B)
    seen = N * (game.obs_size + 2 * game.n_actions) * number
    return state + seen + (game.step_noise_size + 2 * N) * number + 4 * N * trajectory.action.element_size()


def some(trajectory: Trajectory, rows: Tensor) -> Trajectory:
    """The episodes `rows` of a recording, in that order."""

    def pick(x: Tensor) -> Tensor:
        return x.index_select(1, rows)

    return Trajectory(
        state=map_state(pick, trajectory.state),
        final=take(trajectory.final, rows),
        obs=pick(trajectory.obs),
        mask=None if trajectory.mask is None else pick(trajectory.mask),
        action=pick(trajectory.action),
        probs=pick(trajectory.probs),
        noise=pick(trajectory.noise),
        policy_noise=pick(trajectory.policy_noise),
        reward=pick(trajectory.reward),
        done=pick(trajectory.done),
        alive=pick(trajectory.alive),
    )


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
    at_once = policy.acting(noise.policy) if isinstance(policy, ActsAtOnce) else None
    masks_of = game.action_mask if isinstance(game, HasActionMask) else None
    with torch.inference_mode():
        state = game.reset(noise.reset)
        alive = torch.ones(noise.reset.shape[0], dtype=torch.bool, device=noise.reset.device)
        memory: Tensor | None = None
        for t in range(game.horizon):
            obs, mask = game.observe(state), None if masks_of is None else masks_of(state)
            if at_once is None:
                probs, memory = look(policy, obs, mask, memory)
                action = sample(probs, noise.policy[t])
            else:
                probs, action = at_once(obs, mask, noise.policy[t])
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
    answer in closed form is charged the steps that it replaces. Questions are asked in pieces of at most
    `memory` / (COPIES x bytes of a row) rows, and of `max_rows`; answers do not depend on the pieces.
    """

    def __init__(self, game: Env[Any], n_seeds: int = 1, max_rows: int = MAX_ROWS, memory: int = MEMORY) -> None:
        self.game = game
        self.n_seeds = n_seeds
        self.max_rows = max_rows
        self.memory = memory
        self.steps = torch.zeros(n_seeds, dtype=torch.int64)

    def at_once(self, trajectory: Trajectory, extra: int = 0) -> int:
        """Rows that may advance together, `extra` bytes a row being held besides."""
        return max(1, min(self.max_rows, self.memory // (COPIES * row_bytes(self.game, trajectory) + extra)))

    def parts(self, trajectory: Trajectory, branches: int) -> list[Tensor]:
        """Numbers of recorded episodes, so many at a time as fit with `branches` rows each.

        Every part holds equally many episodes of each seed, seed-major, as populations of policies want it.
        """
        B = trajectory.action.shape[1]
        rows = torch.arange(B, device=trajectory.action.device).reshape(self.n_seeds, -1)
        few = max(1, self.at_once(trajectory) // (self.n_seeds * branches))
        return [part.flatten() for part in rows.split(few, 1)]

    def charge(self, rows: Tensor, lived: Tensor, B: int) -> None:
        """Count `lived` [R] steps for the seeds of the recorded episodes rows [R], of B."""
        seed = rows * self.n_seeds // B
        spent = torch.zeros(self.n_seeds, dtype=torch.int64, device=rows.device).index_add_(0, seed, lived)
        self.steps = self.steps + spent.cpu()

    def rewards(self, trajectory: Trajectory, choice: Tensor) -> Tensor:
        """Rewards of one step in which one agent acts otherwise, same state, same noise.

        Args: choice [T,B,N,K], K actions for each agent to do in place of its own.
        Returns: [T,B,N,K] rewards, 0 at dead steps. Costs N K steps for every live (t, b).
        """
        T, B, N, K = choice.shape
        action, choice = trajectory.action.flatten(0, 1), choice.flatten(0, 1)
        out = trajectory.reward.new_zeros(T * B, N * K)
        for few in self.live_cells(trajectory, N * K):
            out[few] = self.paid(trajectory, few, swapped(action[few], choice[few]))
        return out.reshape(T, B, N, K)

    def live_cells(self, trajectory: Trajectory, variants: int) -> tuple[Tensor, ...]:
        """Numbers t B + b of the live steps, so many at a time as fit with `variants` rows each."""
        cells = trajectory.alive.flatten().nonzero()[:, 0]
        return cells.split(max(1, min(CACHE_ROWS, self.at_once(trajectory)) // variants))

    def paid(self, trajectory: Trajectory, cells: Tensor, joint: Tensor) -> Tensor:
        """Rewards [C,V] of V joint actions [C,V,N] at the recorded steps cells [C] = t B + b, same state, same noise.

        Costs V steps a cell; the caller asks about live steps only (`live_cells`).
        """
        B, V = trajectory.action.shape[1], joint.shape[1]
        self.charge(cells % B, torch.full_like(cells, V), B)
        state, noise = take(flatten(trajectory.state), cells), trajectory.noise.flatten(0, 1)[cells]
        found = []
        with torch.inference_mode():
            for part in joint.split(max(1, self.at_once(trajectory) // max(1, len(cells))), 1):
                K = part.shape[1]
                step = self.game.step(repeat(state, K), part.flatten(0, 1), noise.repeat_interleave(K, 0))
                found.append(step.reward.reshape(-1, K))
        return torch.cat(found, 1)

    def paid_with(self, trajectory: Trajectory, cells: Tensor, copies: Tensor) -> Tensor:
        """Rewards [C,K] of the recorded steps cells [C] with copies [K,N] of each agent acting, as `reward_with`."""
        game, K = self.game, len(copies)
        assert isinstance(game, HasRewardWith)
        self.charge(cells % trajectory.action.shape[1], torch.full_like(cells, K), trajectory.action.shape[1])
        state, noise = repeat(take(flatten(trajectory.state), cells), K), trajectory.noise.flatten(0, 1)[cells]
        action = trajectory.action.flatten(0, 1)[cells].repeat_interleave(K, 0)
        with torch.inference_mode():
            paid = game.reward_with(state, action, noise.repeat_interleave(K, 0), copies.repeat(len(cells), 1))
        return paid.reshape(-1, K)

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
            policy: who acts after t. None: everyone as recorded (frozen). Else everyone reacts by `policy`; one that
                remembers has seen what was recorded up to t.
            noise: exogenous and policy noise of the branches; None: as recorded, so that a branch shares all luck.
        Returns:
            [K,B,V] undiscounted returns from t; 0 where the episode was dead at t.
        Cost: one step for each live (branch, step): at most V B T(T+1)/2 over all t. Branches of all t advance
        together, so there are T calls a piece; pieces hold the same episodes of every seed.
        """
        steps = list(range(self.game.horizon) if at is None else at)
        K, B, V, _ = joint.shape
        out = trajectory.reward.new_zeros(K, B, V)
        with torch.inference_mode():
            for b, k, v in self._pieces(trajectory, K, B, V, policy):
                part = joint[k, :, v][:, b]
                out[k, b, v] = self._sweep(trajectory, part, policy, noise, steps[k], b)
        return out

    def _pieces(
        self, trajectory: Trajectory, K: int, B: int, V: int, policy: Policy | None
    ) -> Iterator[tuple[Tensor, slice, slice]]:
        """(episodes, steps, variants) of each piece: whole episodes where they fit, else some of their branches."""
        held = COPIES * policy.memory * self.game.n_agents * trajectory.obs.element_size() if remembers(policy) else 0
        S, room = self.n_seeds, max(1, self.at_once(trajectory, held) // self.n_seeds)
        v = min(V, room)
        k = min(K, max(1, room // v))
        rows = torch.arange(B, device=trajectory.action.device).reshape(S, -1)
        for episodes in rows.split(max(1, room // (v * k)), 1):
            for first in range(0, K, k):
                for variant in range(0, V, v):
                    yield episodes.flatten(), slice(first, first + k), slice(variant, variant + v)

    def _sweep(
        self,
        trajectory: Trajectory,
        joint: Tensor,
        policy: Policy | None,
        noise: Noise | None,
        at: list[int],
        b: Tensor,
    ) -> Tensor:
        """[K,R,V]: advance all branches of episodes b [R] through time; those of step t, joint [K,R,V,N], join at t."""
        V, R = joint.shape[2], len(b)
        exogenous = trajectory.noise if noise is None else noise.step
        luck = trajectory.policy_noise if noise is None else noise.policy
        state: Any = None
        total = trajectory.reward.new_zeros(R, 0)
        alive = trajectory.alive.new_zeros(R, 0)
        lived = torch.zeros_like(b)
        seen, memory = self._memories(trajectory, policy, min(at), b), None
        for t in range(min(at), self.game.horizon):
            action, memory = self._react(trajectory, state, policy, luck, t, b, alive.shape[1], memory)
            if remembers(policy):
                seen = recall(policy, trajectory.obs[t, b], seen)
            if t in at:
                born = repeat(take(map_state(lambda x, t=t: x[t], trajectory.state), b), V)
                state = born if state is None else _widen(state, born, R)
                memory = _joined(memory, None if seen is None else seen.repeat_interleave(V, 0), R)
                chosen = joint[at.index(t)]
                action = chosen if action is None else torch.cat((action, chosen), 1)
                total = torch.cat((total, total.new_zeros(R, V)), 1)
                alive = torch.cat((alive, trajectory.alive[t, b][:, None].expand(R, V)), 1)
            assert action is not None
            width = alive.shape[1]
            lived = lived + alive.sum(1)
            step = self.game.step(state, action.flatten(0, 1), exogenous[t, b].repeat_interleave(width, 0))
            total = total + step.reward.reshape(R, width) * alive
            state, alive = step.state, alive & ~step.done.reshape(R, width)
        self.charge(b, lived, trajectory.action.shape[1])
        return total.reshape(R, len(at), V).transpose(0, 1)

    def _memories(self, trajectory: Trajectory, policy: Policy | None, t: int, b: Tensor) -> Tensor | None:
        """[R,N,memory] what agents remember of the steps before t of episodes b; None where they do not, and at 0."""
        memory: Tensor | None = None
        if remembers(policy):
            for obs in trajectory.obs[:t, b]:
                memory = recall(policy, obs, memory)
        return memory

    def _react(
        self,
        trajectory: Trajectory,
        state: Any,
        policy: Policy | None,
        luck: Tensor,
        t: int,
        b: Tensor,
        width: int,
        memory: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """What agents do at t in branches that began before, [R, width, N], as recorded or by `policy`; memories."""
        if width == 0:
            return None, None
        if policy is None:
            return trajectory.action[t, b][:, None].expand(-1, width, -1), None
        probs, memory = look(policy, self.game.observe(state), legal(self.game, state), memory)
        return sample(probs, luck[t, b].repeat_interleave(width, 0)).reshape(len(b), width, -1), memory

    def totals(self, trajectory: Trajectory, plans: Tensor, policy: Policy | None = None) -> Tensor:
        """Returns of whole action plans from the recorded first states, noise as recorded.

        Args:
            plans: [T,B,V,N]; where negative, the agent reacts by `policy` to what it then sees.
        Returns: [B,V]. Costs one step for each live (plan, step), at most B V T.
        """
        B, V = plans.shape[1:3]
        out = trajectory.reward.new_zeros(B, V)
        for b, _, v in self._pieces(trajectory, 1, B, V, policy):
            part = plans[:, :, v][:, b]
            rows = b.repeat_interleave(part.shape[2])
            out[b, v] = self.lives(trajectory, rows, part.flatten(1, 2), policy).reshape(len(b), -1)
        return out

    def lives(self, trajectory: Trajectory, rows: Tensor, plans: Tensor, policy: Policy | None = None) -> Tensor:
        """Returns [R] of the plans [T,R,N], each lived from the first state of recorded episode rows [R], all at once.

        As `totals`, for any number of plans an episode; under a `policy` of several seeds rows are seed-major.
        """
        with torch.inference_mode():
            state = take(map_state(lambda x: x[0], trajectory.state), rows)
            alive, lived = trajectory.alive[0, rows], torch.zeros_like(rows)
            total = trajectory.reward.new_zeros(len(rows))
            memory: Tensor | None = None
            for t, action in enumerate(plans):
                if policy is not None:
                    probs, memory = look(policy, self.game.observe(state), legal(self.game, state), memory)
                    action = torch.where(action < 0, sample(probs, trajectory.policy_noise[t, rows]), action)
                lived = lived + alive
                step = self.game.step(state, action, trajectory.noise[t, rows])
                total = total + step.reward * alive
                state, alive = step.state, alive & ~step.done
            self.charge(rows, lived, trajectory.action.shape[1])
        return total

    def totals_with(self, trajectory: Trajectory, copies: Tensor) -> Tensor:
        """Returns [B,K] of the recorded episodes with copies [K,N] of each agent acting, all actions as recorded.

        By `step_with`; where a game is over after one step, `reward_with` is enough. Costs up to K T steps an episode.
        """
        game, K, (T, B) = self.game, len(copies), trajectory.reward.shape
        found = []
        with torch.inference_mode():
            for rows in torch.arange(B, device=copies.device).split(max(1, self.at_once(trajectory) // K)):
                state = repeat(take(map_state(lambda x: x[0], trajectory.state), rows), K)
                many, alive = copies.repeat(len(rows), 1), trajectory.alive[0, rows].repeat_interleave(K)
                total, lived = trajectory.reward.new_zeros(len(many)), alive.new_zeros(len(many), dtype=torch.int64)
                for t in range(T):
                    action = trajectory.action[t, rows].repeat_interleave(K, 0)
                    noise = trajectory.noise[t, rows].repeat_interleave(K, 0)
                    lived = lived + alive
                    if isinstance(game, HasStepWith):
                        state, reward, done = game.step_with(state, action, noise, many)
                    else:
                        assert isinstance(game, HasRewardWith)
                        reward, done = game.reward_with(state, action, noise, many), ~alive
                    total, alive = total + reward * alive, alive & ~done
                self.charge(rows.repeat_interleave(K), lived, B)
                found.append(total.reshape(-1, K))
        return torch.cat(found)


def _widen(state: Any, born: Any, rows: int) -> Any:
    """Append newly born branches to each episode's branches: [R * w, ...] and [R * V, ...] -> [R * (w + V), ...]."""

    return map_state(lambda old, new: _join(old, new, rows), state, born)


def _join(old: Tensor, new: Tensor, rows: int) -> Tensor:
    return torch.cat((old.unflatten(0, (rows, -1)), new.unflatten(0, (rows, -1))), 1).flatten(0, 1)


def _joined(memory: Tensor | None, born: Tensor | None, rows: int) -> Tensor | None:
    """`_widen` for what is remembered; None where nobody remembers, and before the first branch."""
    return born if memory is None or born is None else _join(memory, born, rows)


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
