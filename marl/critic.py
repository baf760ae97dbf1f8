"""A critic predicts what will come: V from one agent's view or the team's, Q with one agent's action left open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from envs.base import Env, HasTimeLimit, flatten
from marl.networks import (
    CACHE_ROWS,
    Population,
    from_per_agent,
    from_per_seed,
    in_pieces,
    multilayer,
    per_agent,
    per_seed,
)
from marl.types import Trajectory


class Value(nn.Module):
    """V for every agent's reward stream, S seeds at once.

    central=False: V_i(o_i), one network an agent (independent learners). central=True: one network a seed reads
    `critic_view` and has N outputs.
    """

    def __init__(self, game: Env[Any], seeds: tuple[int, ...], central: bool, hidden: tuple[int, ...] = (32,)) -> None:
        super().__init__()
        self.game, self.n_seeds, self.central = game, len(seeds), central
        if central:
            self.net = Population("value", seeds, 1, (game.critic_size, *hidden, game.n_agents))
        else:
            self.net = Population("value", seeds, game.n_agents, (game.obs_size, *hidden, 1))

    def forward(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N] values of the states in which each step began."""
        T, B, _ = trajectory.action.shape
        if self.central:
            view = self.game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))
            return from_per_seed(self.net(per_seed(view, self.n_seeds)), (T,), B)
        return from_per_agent(self.net(per_agent(trajectory.obs, self.n_seeds)), (T,), B)[..., 0]

    def final(self, state: object) -> Tensor:
        """[B,N] values of one batch of states."""
        if self.central:
            view = self.game.critic_view(state)
            return from_per_seed(self.net(per_seed(view, self.n_seeds)), (), view.shape[0])
        obs = self.game.observe(state)
        return from_per_agent(self.net(per_agent(obs, self.n_seeds)), (), obs.shape[0])[..., 0]


def next_values(value: Value, trajectory: Trajectory, now: Tensor) -> Tensor:
    """[T,B,N] value of the state after each step: 0 after a real end and at the horizon of a built-in game.

    Only a time limit that the game itself reports as a truncation bootstraps.
    """
    done = trajectory.done[..., None]
    after = torch.cat((now[1:], torch.zeros_like(now[:1])))
    out = torch.where(done, torch.zeros_like(after), after)
    game = value.game
    if not isinstance(game, HasTimeLimit):
        return out
    end = trajectory.done & trajectory.alive  # the step in which the episode closed; `final` keeps its last state
    cut = end & game.truncated(trajectory.final)
    return torch.where(cut[..., None], value.final(trajectory.final), out)


def lambda_returns(reward: Tensor, after: Tensor, done: Tensor, gamma: float, lam: float) -> Tensor:
    """y_t = r_t + gamma ((1 - lam) v_{t+1} + lam y_{t+1}), with y beyond an end replaced by v (Sutton & Barto 2018).

    reward, after [T,B,N] (after: value of the next state, 0 where there is none), done [T,B].
    """
    out = torch.empty_like(reward)
    follow = after[-1]
    for t in reversed(range(len(reward))):
        follow = torch.where(done[t, :, None], after[t], follow)
        follow = reward[t] + gamma * ((1 - lam) * after[t] + lam * follow)
        out[t] = follow
    return out


def squared_error(prediction: Tensor, target: Tensor, alive: Tensor, n_seeds: int) -> Tensor:
    """[S] mean over live steps and agents of (prediction - target)^2; [T,B,N]."""
    weight = alive[..., None].to(prediction.dtype)
    square = ((prediction - target).square() * weight).unflatten(1, (n_seeds, -1)).sum((0, 2, 3))
    count = weight.expand_as(prediction).unflatten(1, (n_seeds, -1)).sum((0, 2, 3))
    return square / count.clamp(min=1)


class ActionValue(nn.Module):
    """Q_i(s, (a_-i, c)) for every own action c: the critic of COMA (Foerster et al. 2018), S seeds at once.

    A network reads (critic_view, the others' actions, one-hot i). Its first layer is linear in these, so it is
    computed once for all agents, h = W_v view + sum_j W_a[j, a_j], and agent i's own action is subtracted again:
    h_i = relu(h - W_a[i, a_i] + b_i). The same function, N times cheaper.
    """

    def __init__(self, game: Env[Any], seeds: tuple[int, ...], hidden: tuple[int, ...] = (32,)) -> None:
        super().__init__()
        self.game, self.n_seeds = game, len(seeds)
        N, A, H = game.n_agents, game.n_actions, hidden[0]
        self.first = Population("q/first", seeds, 1, (game.critic_size + N * A, H))
        self.agent = Population("q/agent", seeds, 1, (N, H))
        self.rest = Population("q/rest", seeds, 1, (*hidden, A))

    def forward(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N,A]."""
        game, S = self.game, self.n_seeds
        T, B, N = trajectory.action.shape
        view = game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))
        taken = nn.functional.one_hot(trajectory.action, game.n_actions).to(view.dtype)
        rows = (per_seed(torch.cat((view, taken.flatten(2)), -1), S)[:, 0], per_agent(taken, S))
        who = self.agent(torch.eye(N, dtype=view.dtype, device=view.device).expand(S, 1, N, N))[:, 0]
        rest = [p.repeat_interleave(N, 0) for p in (*self.rest.weights, *self.rest.biases)]
        parameters = (self.first.weights[0], self.first.biases[0], who.transpose(1, 2)[..., None], *rest)
        return from_per_agent(in_pieces(self._answers, rows, parameters, CACHE_ROWS // (S * N)), (T,), B)

    def _answers(self, rows: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """rows: (view and joint action [S,F,R], own action [S,N,A,R]); returns [S,N,A,R]."""
        (x, taken), (weight, bias, who, *rest) = rows, parameters
        S, N, A, _ = taken.shape
        joint = torch.baddbmm(bias, weight, x)  # [S,H,R]
        table = weight[:, :, self.game.critic_size :].unflatten(2, (N, A)).transpose(1, 2)  # [S,N,H,A]
        hidden = torch.relu(joint[:, None] - table @ taken + who)
        return multilayer((hidden.flatten(0, 1),), rest, "relu").unflatten(0, (S, N))
