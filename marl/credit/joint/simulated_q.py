"""A simulator can be asked for the whole future, not only for this step: difference and aristocrat, applied to Q."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.noise import uniform
from marl.credit.base import ChainError, Context, Credit, Signal, check_choice
from marl.credit.counterfactual import baseline_actions, episode_names, legal_others
from marl.rollout import draw_noise, swapped
from marl.types import Noise, Trajectory


class SimulatedQ(Credit):
    """Difference or aristocrat of Q instead of r; both are unbiased, and blame the step that did it.

    kind="aristocrat":  Q(s_t, a_t) - sum_c pi_i(c|o_i) Q(s_t, a_t[i <- c])   (Foerster et al. 2018, simulated)
    kind="difference":  Q(s_t, a_t) - Q(s_t, a_t[i <- default_i])             (Wolpert & Tumer 2002, on Q)

    Q is the mean return of `replays` branches from (s_t, a) with fresh noise, everyone reacting; all actions of one
    replay share its noise. `at_most` steps of each batch are judged (drawn anew for every batch, the same for its
    episodes) and weighted by T / at_most, the others get credit 0: the gradient stays unbiased, and the price
    bearable beyond T of about 20. All seeds judge the same steps, drawn from the first episode's luck.
    """

    signals = {Signal.RAW: Signal.ADVANTAGE}
    aligned, efficient = True, False
    needs = ("simulator", "policy")
    cost = "M B (1 + N (A-1)) T(T+1)/2 (aristocrat), M B (1 + N) T(T+1)/2 (difference); times at_most/T if given"

    def __init__(
        self, context: Context, kind: str = "aristocrat", replays: int = 1, at_most: int | None = None
    ) -> None:
        super().__init__(context)
        check_choice(self, "kind", kind, ("aristocrat", "difference"))
        for knob, value in (("replays", replays), ("at_most", 1 if at_most is None else at_most)):
            if value < 1:
                raise ChainError(f"SimulatedQ: {knob}={value} is not allowed; it must be 1 or more")
        self.kind, self.replays, self.at_most = kind, replays, at_most
        self.default = baseline_actions(self, context, "default")

    def forward(self, trajectory: Trajectory, signal: Tensor) -> Tensor:
        """[T,B] -> [T,B,N]."""
        T, B, N = trajectory.action.shape
        steps = self._steps(trajectory)
        if self.kind == "difference":
            choice, weight = self.default[:, None].expand(T, B, N, 1), None
        else:
            choice, weight = legal_others(trajectory)
        joint = torch.cat((trajectory.action[:, :, None], swapped(trajectory.action, choice)), 2)[steps]
        returns = torch.stack([self._returns(trajectory, joint, steps, m) for m in range(self.replays)]).mean(0)
        fact, instead = returns.split((1, joint.shape[2] - 1), 2)
        gap = (fact - instead).unflatten(2, (N, -1))  # Q(a) - Q(a[i <- c]); the action taken itself adds nothing
        credit = gap[..., 0] if weight is None else (weight[steps] * gap).sum(-1)
        out = signal.new_zeros(T, B, N)
        out[steps] = credit * (T / len(steps))
        return out

    def _steps(self, trajectory: Trajectory) -> Tensor:
        """The steps judged in this batch, in order."""
        T = len(trajectory.reward)
        if self.at_most is None or self.at_most >= T:
            return torch.arange(T)
        order = uniform("simulated_q/steps", 0, episode_names(trajectory)[:1], (T,))[0].argsort()
        return order[: self.at_most].sort().values

    def _returns(self, trajectory: Trajectory, joint: Tensor, steps: Tensor, replay: int) -> Tensor:
        """One replay's returns [K,B,V]; its fresh noise is named by the episode, so that asking changes nothing."""
        names = episode_names(trajectory)
        noise: Noise = draw_noise(
            self.context.game, torch.full_like(names, replay), names, "simulated_q", trajectory.reward.dtype
        )
        return self.context.simulator.branches(trajectory, joint, self.context.policy, noise, steps.tolist())
