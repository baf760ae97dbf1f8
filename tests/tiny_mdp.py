"""A random game so small that every future can be listed: exact Q, V and gradients with no code under test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from envs.base import Env, Step, map_state
from marl.types import Noise, Policy, Trajectory

ENDS, CUT = 1, 2


class TinyState(NamedTuple):
    """Where the team is; it stays where its episode ended."""

    t: Tensor  # [B] int64
    place: Tensor  # [B] int64 in 0..S-1
    over: Tensor  # [B] bool
    cut: Tensor  # [B] bool, ended by a time limit and not by an end
    paid: Tensor  # [B] return so far; its dtype is the game's


@dataclass(frozen=True)
class TinyMdp(Env[TinyState]):
    """N agents, S places, A actions, T steps, two equally likely atoms of noise a step; tables drawn by `seed`.

    A share `ends` of the cells (place, joint action, atom) ends the episode after its reward. The reward is the sum of
    `local_rewards`, each any function of the whole joint action. Everyone sees the place and the time.
    """

    n_agents: int = 2
    horizon: int = 3
    n_actions: int = 2
    n_places: int = 3
    ends: float = 0.15
    seed: int = 0

    reset_noise_size: ClassVar[int] = 1
    step_noise_size: ClassVar[int] = 1
    atoms: ClassVar[int] = 2
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    exogenous: ClassVar[tuple[str, ...]] = ("t",)
    obs_size = property(lambda self: self.n_places + 1)
    critic_size = property(lambda self: self.n_places + 1)
    default_action = property(lambda self: tuple(i % self.n_actions for i in range(self.n_agents)))

    @property
    def joints(self) -> list[tuple[int, ...]]:
        """Every joint action, the last agent's varying fastest: joint j is joints[j]."""
        return list(product(range(self.n_actions), repeat=self.n_agents))

    @cached_property
    @torch.inference_mode(False)  # `solve` differentiates through them, whoever asks first
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """(next place, agents' shares of the reward, what ends), [S,J,K], [S,J,K,N] and [S,J,K]."""
        g = torch.Generator().manual_seed(self.seed)
        shape = (self.n_places, self.n_actions**self.n_agents, self.atoms)
        follow = torch.randint(self.n_places, shape, generator=g)
        shares = torch.randint(-4, 5, (*shape, self.n_agents), generator=g).double() / 4
        u = torch.rand(shape, generator=g)
        return follow, shares, ENDS * (u < self.ends) + (CUT - ENDS) * (u < self.ends / 2)

    def _cell(self, state: TinyState, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        j = torch.zeros_like(state.place)
        for a in action.unbind(-1):
            j = j * self.n_actions + a
        return state.place, j, (noise[:, 0] * self.atoms).long()

    def reset(self, noise: Tensor) -> TinyState:
        place = (noise[:, 0] * self.n_places).long()
        no = torch.zeros_like(place, dtype=torch.bool)
        return TinyState(torch.zeros_like(place), place, no, no, noise.new_zeros(len(noise)))

    def step(self, state: TinyState, action: Tensor, noise: Tensor) -> Step[TinyState]:
        cell = self._cell(state, action, noise)
        follow, shares, ends = (table[cell] for table in self.tables)
        reward = torch.where(state.over, 0, shares.sum(-1).to(state.paid.dtype))
        over = state.over | (ends > 0)
        cut = torch.where(state.over, state.cut, ends == CUT)
        place = torch.where(state.over, state.place, follow)
        return Step(TinyState(state.t + 1, place, over, cut, state.paid + reward), reward, over)

    def observe(self, state: TinyState) -> Tensor:
        return self.critic_view(state)[:, None].expand(-1, self.n_agents, -1)

    def critic_view(self, state: TinyState) -> Tensor:
        place = torch.nn.functional.one_hot(state.place, self.n_places).to(state.paid.dtype)
        return torch.cat((place, (state.t.to(state.paid.dtype) / self.horizon)[:, None]), -1)

    def local_rewards(self, state: TinyState, action: Tensor, noise: Tensor) -> Tensor:
        shares = self.tables[1][self._cell(state, action, noise)].to(state.paid.dtype)
        return torch.where(state.over[:, None], 0, shares)


@dataclass(frozen=True)
class MaskedTiny(TinyMdp):
    """Some actions are forbidden at some places (never action 0); `strict`: a live agent that takes one is an error."""

    n_actions: int = 3
    strict: bool = False
    default_action: ClassVar[int] = 0

    @cached_property
    def allowed(self) -> Tensor:
        """[S,N,A] bool."""
        g = torch.Generator().manual_seed(self.seed + 1)
        allowed = torch.rand(self.n_places, self.n_agents, self.n_actions, generator=g) < 0.5
        allowed[..., 0] = True
        return allowed

    def action_mask(self, state: TinyState) -> Tensor:
        return self.allowed[state.place]

    def step(self, state: TinyState, action: Tensor, noise: Tensor) -> Step[TinyState]:
        legal = self.action_mask(state).gather(-1, action[..., None])[..., 0].all(-1)
        if self.strict and not bool((legal | state.over).all()):
            raise ValueError("a live agent took a forbidden action")
        return super().step(state, action, noise)


class LimitedTiny(TinyMdp):
    """Half of its early ends are only a time limit, behind which value goes on."""

    def truncated(self, state: TinyState) -> Tensor:
        return state.cut


# Every future, and what it is worth.


def lopsided(game: TinyMdp, seed: int = 0) -> Tensor:
    """[T,S,N,A] a policy in parts of A + 1: one random action has two parts, the others one each."""
    shape = (game.horizon, game.n_places, game.n_agents)
    liked = torch.randint(game.n_actions, shape, generator=torch.Generator().manual_seed(seed))
    return (1.0 + torch.nn.functional.one_hot(liked, game.n_actions).double()) / (game.n_actions + 1)


def acting(game: TinyMdp, table: Tensor) -> Policy:
    """The policy [T,S,N,A] as a function of what agents see."""

    def policy(obs: Tensor, mask: Tensor | None) -> Tensor:
        place = obs[..., : game.n_places].argmax(-1)
        t = (obs[..., -1] * game.horizon).round().long().clamp(max=game.horizon - 1)
        me = torch.arange(game.n_agents).expand(place.shape)
        return table[t, place, me].to(obs.dtype)

    return policy


def every_noise(game: TinyMdp, times: int = 1) -> Noise:
    """All that chance can bring, each row equally likely (and there `times` times): a mean over rows is an expectation.

    Policy noise falls, at random places that make every row distinct, in each of the A + 1 equal parts of [0,1) that
    `lopsided` policies are made of.
    """
    T, N = game.horizon, game.n_agents
    sizes = [game.n_places, *([game.atoms] * T), *([game.n_actions + 1] * (T * N))]
    rows = torch.cartesian_prod(*((torch.arange(k).double() + 0.5) / k for k in sizes)).repeat(times, 1)
    jitter = torch.rand(len(rows), T * N, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    rows[:, T + 1 :] += 0.99 * jitter / (game.n_actions + 1)
    return Noise(rows[:, :1], rows[:, 1 : T + 1].T[..., None], rows[:, T + 1 :].T.reshape(T, N, -1).transpose(1, 2))


class Exact(NamedTuple):
    """What a policy is worth, by backward induction over tables."""

    q: Tensor  # [T,S,J]
    v: Tensor  # [T,S]
    start: Tensor  # [] the mean return


def solve(game: TinyMdp, table: Tensor, gamma: float = 1.0) -> Exact:
    """Q, V and the mean return of the policy [T,S,N,A]; differentiable in the table."""
    follow, shares, ends = game.tables
    joints = torch.tensor(game.joints)
    later = torch.zeros(game.n_places, dtype=torch.float64)
    qs, vs = [], []
    for t in reversed(range(game.horizon)):
        q = (shares.sum(-1) + gamma * (ends == 0).double() * later[follow]).mean(-1)
        chance = torch.stack([table[t, :, i, joints[:, i]] for i in range(game.n_agents)]).prod(0)  # [S,J]
        later = (chance * q).sum(-1)
        qs, vs = [q, *qs], [later, *vs]
    return Exact(torch.stack(qs), torch.stack(vs), vs[0].mean())


def true_gradient(game: TinyMdp, table: Tensor) -> Tensor:
    """[T,S,N,A] gradient of the mean return in the logits of the policy, by differentiating the induction itself."""
    logits = table.log().requires_grad_()
    (gradient,) = torch.autograd.grad(solve(game, logits.softmax(-1)).start, logits)
    return gradient


def expected_gradient(game: TinyMdp, table: Tensor, lived: Trajectory, credit: Tensor) -> Tensor:
    """[T,S,N,A] mean over the rows of sum_t c_it grad log pi_i(a_it | s_t); credit [T,B,N] or [T,B,N,A]."""
    A = game.n_actions
    if credit.dim() == 3:
        taken = torch.nn.functional.one_hot(lived.action, A).double()
        score = credit.double()[..., None] * (taken - lived.probs.double())
    else:  # sum_c pi(c) w_c grad log pi(c)
        weighted = lived.probs.double() * credit.double()
        score = weighted - lived.probs.double() * weighted.sum(-1, keepdim=True)
    return by_place(game, lived, score) / lived.action.shape[1]


def by_place(game: TinyMdp, lived: Trajectory, x: Tensor) -> Tensor:
    """[T,S,...] sums over the rows that were alive in each (t, place), x [T,B,...]."""
    out = torch.zeros(game.horizon, game.n_places, *x.shape[2:], dtype=torch.float64)
    for t, s in product(range(game.horizon), range(game.n_places)):
        here = lived.alive[t] & (lived.state.place[t] == s)
        out[t, s] = x[t, here].double().sum(0)
    return out


def joint_index(game: TinyMdp, action: Tensor) -> Tensor:
    """[...] the number of a joint action [..., N]."""
    j = torch.zeros_like(action[..., 0])
    for a in action.unbind(-1):
        j = j * game.n_actions + a
    return j


def given_joint(game: TinyMdp, table: Tensor, q: Tensor) -> Tensor:
    """O4 [T,S,J,N]: Q(s,a) - sum_c pi_i(c) Q(s, a[i <- c])."""
    out = torch.empty(*q.shape, game.n_agents, dtype=torch.float64)
    for (j, joint), i in product(enumerate(game.joints), range(game.n_agents)):
        swaps = [game.joints.index((*joint[:i], c, *joint[i + 1 :])) for c in range(game.n_actions)]
        out[:, :, j, i] = q[:, :, j] - sum(table[:, :, i, c] * q[:, :, swaps[c]] for c in range(game.n_actions))
    return out


def given_own(game: TinyMdp, table: Tensor, exact: Exact) -> Tensor:
    """O3 [T,S,N,A]: E over the teammates' actions of Q(s, a), minus V(s)."""
    out = torch.empty_like(table)
    for i, c in product(range(game.n_agents), range(game.n_actions)):
        chance = torch.zeros_like(exact.q)
        for j, joint in enumerate(game.joints):
            if joint[i] == c:
                rest = [table[:, :, k, a] for k, a in enumerate(joint) if k != i]
                chance[:, :, j] = torch.stack(rest).prod(0) if rest else 1.0
        out[:, :, i, c] = (chance * exact.q).sum(-1) - exact.v
    return out


# Slices of a recording.


def rows_of(trajectory: Trajectory, rows: Tensor | Sequence[int]) -> Trajectory:
    """The episodes `rows` of a recording, in that order."""
    index = torch.as_tensor(rows)

    def pick(field: Any, axis: int) -> Any:
        if isinstance(field, tuple):
            return map_state(lambda x: x.index_select(axis, index), field)
        return None if field is None else field.index_select(axis, index)

    return Trajectory(**{k: pick(v, 0 if k == "final" else 1) for k, v in trajectory._asdict().items()})
