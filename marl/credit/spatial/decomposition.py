"""A mixed value says what each agent's own value adds to the team's: aristocrat credit, asked of Q_tot."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import flatten
from marl.credit.base import Context, Credit, Signal, check_choice, check_fraction
from marl.critic import lambda_returns
from marl.mixing import MIXERS
from marl.networks import Population, from_per_agent, per_agent
from marl.types import Trajectory


class Decomposition(Credit):
    """A_i = Q_tot(s, a) - sum_c pi_i(c|o_i) Q_tot(s, a[i <- c]), Q_tot = f(Q_1(o_1, a_1), ..., Q_N(o_N, a_N); s).

    mixer: "vdn" (Sunehag et al. 2018), "qmix" (Rashid et al. 2018), "qplex" (Wang et al. 2021). Q_tot belongs to the
    behaviour policy and is fitted to its TD(lambda) returns of the incoming team signal, after each update of the
    actor. With "vdn" this is Q_i(a_i) - E_pi Q_i. It is right as far as the mixer can say what the team's value is.
    """

    signals = {Signal.RAW: Signal.ADVANTAGE, Signal.TEAM: Signal.ADVANTAGE}
    aligned, efficient = False, False
    needs = ("critic", "policy")

    def __init__(self, context: Context, mixer: str = "qmix", lam: float = 0.8, gamma: float = 1.0) -> None:
        super().__init__(context)
        check_choice(self, "mixer", mixer, tuple(MIXERS))
        check_fraction(self, "lam", lam)
        check_fraction(self, "gamma", gamma)
        game, how = context.game, context.fit
        self.lam, self.gamma = lam, gamma
        sizes = (game.obs_size, *how.hidden, game.n_actions)
        self.own = Population("decomposition", context.seeds, game.n_agents, sizes, how.activation)
        self.mixer = MIXERS[mixer](game, context.seeds)

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        q, (T, B, N) = self._own(trajectory), trajectory.action.shape
        fact = self._total(q, trajectory, trajectory.action)[..., None]
        expected = torch.zeros_like(fact.expand(T, B, N))
        me = torch.eye(N, dtype=torch.bool, device=q.device)
        for c in range(q.shape[-1]):
            joint = torch.where(me, c, trajectory.action[:, :, None])  # [T,B,N,N]: agent i alone chooses c
            told = torch.stack([self._total(q, trajectory, joint[:, :, i]) for i in range(N)], -1)
            expected = expected + trajectory.probs[..., c] * told
        return fact - expected

    def target(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B,N]: TD(lambda) returns of Q_tot at the actions taken, the same for all agents."""
        now = self.predict(trajectory)
        after = torch.cat((now[1:], torch.zeros_like(now[:1])))
        after = torch.where(trajectory.done[..., None], torch.zeros_like(after), after)
        return lambda_returns(signal[..., None].expand_as(now), after, trajectory.done, self.gamma, self.lam)

    def predict(self, trajectory: Trajectory) -> Tensor:
        """[T,B,N]: Q_tot at the actions taken, the same for all agents."""
        q = self._own(trajectory)
        return self._total(q, trajectory, trajectory.action)[..., None].expand(trajectory.action.shape)

    def _own(self, trajectory: Trajectory) -> Tensor:
        """Q_i(o_i, .) [T,B,N,A]."""
        T, B, _ = trajectory.action.shape
        return from_per_agent(self.own(per_agent(trajectory.obs, self.context.n_seeds)), (T,), B)

    def _total(self, q: Tensor, trajectory: Trajectory, joint: Tensor) -> Tensor:
        """Q_tot of joint actions [T,B,N] -> [T,B]."""
        T, B, _ = joint.shape
        view = self.context.game.critic_view(flatten(trajectory.state)).unflatten(0, (T, B))
        taken = q.gather(-1, joint[..., None])[..., 0]
        total: Tensor = self.mixer(taken, q.amax(-1), view, joint)
        return total
