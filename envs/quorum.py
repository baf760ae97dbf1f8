"""Something good happens once enough agents contribute: with k + 1 of them, none is to thank by difference (pivots)."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.base import Env, Episode, Step, real, whole

CONTRIBUTE = 1


class QuorumState(NamedTuple):
    """Nobody has chosen yet, or all have."""

    over: Tensor  # [B] bool
    chosen: Tensor  # [B,N] int64: 1 contributes, 0 does not, -1 before the choice
    paid: Tensor  # [B] return so far


@dataclass(frozen=True)
class Quorum(Env[QuorumState]):
    """N agents contribute (1) or not (0), once; with n contributors the team is paid r = 1[n >= k] - cost n/N.

    k = quorum. All act at once (T = 1) and see a constant 1. Default action 0. With default 0 a contributor has

        difference  D   = 1[n = k] - cost/N
        Shapley     phi = 1[n >= k]/n - cost/N

    and everyone else 0; `unit_differences` and `unit_shapley` know both for any baseline. `local_rewards` are those of
    the public good itself, (1[n >= k] - cost a_i)/N: everyone enjoys it, who contributes pays, and free riding is best
    for a single agent that is not pivotal.

    Isolates: joint causes, purely spatial credit. With n > k every single difference is -cost/N, although the
    contributors together brought it about; the Shapley value still thanks them.
    Grows harder as `pivotal`, the chance that a single agent decides, falls: .375 at (N, k) = (4, 2), 1.5e-5 at
    (32, 28). A cost above N/k makes it best that nobody contributes.

    Source: the threshold public good of Palfrey & Rosenthal, "Participation and the provision of discrete public goods:
    a strategic analysis" (1984), paid to a team.

    Raises:
        KnobError: a knob outside its range.
    """

    n_agents: int = 8  # N >= 1
    quorum: int = 4  # k, 1..N contributors
    cost: float = 0.5  # 0 or more, in units of the good: what it would cost if all contributed

    def __post_init__(self) -> None:
        whole(self, 1, None, "n_agents")
        whole(self, 1, self.n_agents, "quorum")
        real(self, 0, None, "cost")

    @property
    def n_actions(self) -> int:
        return 2

    @property
    def obs_size(self) -> int:
        return 1

    @property
    def critic_size(self) -> int:
        return 1

    @property
    def horizon(self) -> int:
        return 1

    @property
    def reset_noise_size(self) -> int:
        return 0

    @property
    def step_noise_size(self) -> int:
        return 0

    @property
    def default_action(self) -> int:
        return 0

    @property
    def bounds(self) -> tuple[float, float]:
        """Observations are the constant 1."""
        return 0.0, 1.0

    @property
    def optimal_return(self) -> float:
        """Exactly k contributors, or nobody: max(1 - cost k/N, 0)."""
        return max(1 - self.cost * self.quorum / self.n_agents, 0.0)

    @property
    def random_return(self) -> float:
        """P(Binomial(N, 1/2) >= k) - cost/2."""
        enough = sum(comb(self.n_agents, n) for n in range(self.quorum, self.n_agents + 1))
        return enough / 2**self.n_agents - self.cost / 2

    @property
    def pivotal(self) -> float:
        """The chance that one agent decides while the others choose at random: C(N-1, k-1) / 2^(N-1)."""
        return comb(self.n_agents - 1, self.quorum - 1) / 2 ** (self.n_agents - 1)

    def reset(self, noise: Tensor) -> QuorumState:
        over = torch.zeros(len(noise), dtype=torch.bool, device=noise.device)
        chosen = torch.full((len(noise), self.n_agents), -1, device=noise.device)
        return QuorumState(over, chosen, noise.new_zeros(len(noise)))

    def step(self, state: QuorumState, action: Tensor, noise: Tensor) -> Step[QuorumState]:
        reward = torch.where(state.over, 0, self._worth(action.sum(-1).to(state.paid.dtype)))
        chosen = torch.where(state.over[:, None], state.chosen, action)
        over = torch.ones_like(state.over)
        return Step(QuorumState(over, chosen, state.paid + reward), reward, over)

    def observe(self, state: QuorumState) -> Tensor:
        return state.paid.new_ones(len(state.over), self.n_agents, 1)

    def critic_view(self, state: QuorumState) -> Tensor:
        return state.paid.new_ones(len(state.over), 1)

    def local_rewards(self, state: QuorumState, action: Tensor, noise: Tensor) -> Tensor:
        """[B,N]: an equal share of the good less one's own cost; they sum to the team reward."""
        dtype = state.paid.dtype
        good = (action.sum(-1, keepdim=True) >= self.quorum).to(dtype)
        own = (good - self.cost * action.to(dtype)) / self.n_agents
        return torch.where(state.over[:, None], 0, own)

    def reward_with(self, state: QuorumState, action: Tensor, noise: Tensor, copies: Tensor) -> Tensor:
        """[B]: r with copies [B,N] of each contributor; k and cost/N stay."""
        total = (action * copies.to(state.paid.dtype)).sum(-1)
        return torch.where(state.over, 0, self._worth(total))

    def unit_differences(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[1,B,N]: r(n) - r(n - a_i + b_i); any baseline."""
        dtype = episode.state.paid.dtype
        total = episode.action.sum(-1, keepdim=True)
        changed = total - episode.action + baseline.to(total.device)
        return self._worth(total.to(dtype)) - self._worth(changed.to(dtype))

    def unit_shapley(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[1,B,N]; any baseline b, of which |b| contribute.

        The u agents that join (1 where b is 0) are alike, and so are the w that leave (0 where b is 1). One that joins
        decides if j others joined before it and |b| + j - (those that left) = k - 1; all orders being equally likely,

            phi_join  =  sum_j C(u-1, j) C(w, l) / ((u + w) C(u+w-1, j+l)) - cost/N,   l = j + |b| - k + 1
            phi_leave = -sum_j C(u, j) C(w-1, l) / ((u + w) C(u+w-1, j+l)) + cost/N,   l = j + |b| - k

        With nobody to leave (b = 0) the first is 1[n >= k]/n - cost/N.
        """
        action, dtype = episode.action, episode.state.paid.dtype
        base = baseline.to(action.device)
        joins, leaves = (action > base), (action < base)
        u, w = joins.sum(-1, keepdim=True), leaves.sum(-1, keepdim=True)
        standing = base.sum() - self.quorum
        share = self.cost / self.n_agents
        joining = self._decides(u - 1, w, standing + 1) - share
        leaving = share - self._decides(u, w - 1, standing)
        truth = joining * joins.to(joining) + leaving * leaves.to(leaving)
        return truth.to(dtype)

    def optimal_value(self, state: QuorumState) -> Tensor:
        """[B]: the optimum while the choice is still to come, then 0."""
        return torch.where(state.over, 0, torch.full_like(state.paid, self.optimal_return))

    def scripted_action(self, state: QuorumState) -> Tensor:
        """[B,N]: the first k agents contribute if that pays, else nobody."""
        wanted = self.quorum if self.optimal_return > 0 else 0
        plan = (torch.arange(self.n_agents, device=state.over.device) < wanted).long()
        return plan.expand(len(state.over), -1)

    def text(self, state: QuorumState) -> str:
        """Who contributed, whether that was enough, and the return."""
        if not bool(state.over[0]):
            return f"quorum: {self.n_agents} agents choose; {self.quorum} must contribute"
        n = int(state.chosen[0].sum())
        who = " ".join(str(i) for i, a in enumerate(state.chosen[0].tolist()) if a) or "nobody"
        met = "met" if n >= self.quorum else "missed"
        return f"quorum: contributors {who}; {n} of {self.quorum}: {met}, return {float(state.paid[0]):.4f}"

    def draw(self, state: QuorumState) -> NDArray[np.uint8]:
        """The agents, contributors coloured by what came of it, and their number against the quorum."""
        from envs.drawing import ALERT, BAD, CALM, FAINT, GOOD, HEADER, INK, QUIET, Canvas

        over = bool(state.over[0])
        choices = state.chosen[0].tolist()
        n = sum(a == CONTRIBUTE for a in choices)
        met = n >= self.quorum
        colour = FAINT if not over else GOOD if n == self.quorum else CALM if met else BAD
        canvas = Canvas(520, 240)
        price = self.cost / self.n_agents
        note = f"the good needs {self.quorum} of {self.n_agents} agents; each contribution costs {price:.3g}"
        canvas.header("quorum", int(over), 1, float(state.paid[0]), note)
        shown = choices[:120]
        fills = [colour if a == CONTRIBUTE else FAINT for a in shown]
        below = canvas.agents(HEADER + 8, fills, [a if over else "?" for a in shown])
        if len(shown) < self.n_agents:
            canvas.text(12, below + 4, f"the first {len(shown)} of {self.n_agents} agents", 11, QUIET)
        left, wide, top, tall = 24.0, canvas.width - 48.0, canvas.height - 76.0, 22.0
        line = left + wide * self.quorum / self.n_agents
        canvas.rectangle(left, top, wide, tall, FAINT)
        if n:
            canvas.rectangle(left, top, wide * n / self.n_agents, tall, colour)
        canvas.line([(line, top - 8), (line, top + tall + 8)], ALERT, 3)
        canvas.text(min(max(line, 60), canvas.width - 60), top - 12, f"quorum {self.quorum}", 12, ALERT, "ms")
        outcome = "exactly enough: each was pivotal" if n == self.quorum else "more than enough: nobody was pivotal"
        words = (outcome if met else "not enough") if over else "nobody has chosen yet"
        canvas.text(
            left, top + tall + 26, f"{n} contribute: {words}" if over else words, 13, INK if over else QUIET, "ls"
        )
        return canvas.array()

    def _worth(self, contributors: Tensor) -> Tensor:
        """r(n)."""
        met = (contributors >= self.quorum).to(contributors.dtype)
        return met - self.cost / self.n_agents * contributors

    def _decides(self, u: Tensor, w: Tensor, surplus: Tensor) -> Tensor:
        """[...,1] float64: sum_j C(u, j) C(w, j + surplus) / ((u + w + 1) C(u + w, j + l)), l = j + surplus.

        The chance that, of u agents that join and w that leave, those before me in a random order leave `surplus` more
        than they join; 0 where u or w is negative (there is no such me).
        """
        j = torch.arange(self.n_agents + 1, device=u.device)
        gone = j + surplus
        possible = (u >= 0) & (w >= 0) & (j <= u) & (gone >= 0) & (gone <= w)
        log = _log_choose(u, j) + _log_choose(w, gone) - _log_choose(u + w, j + gone)
        chance = torch.where(possible, log.exp(), 0).sum(-1, keepdim=True)
        return chance / (u + w + 1).clamp(min=1).to(chance.dtype)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """log C(n, k) in float64; any finite number where that is not defined."""
    n, k = n.clamp(min=0).double(), k.clamp(min=0).double()
    rest = (n - k).clamp(min=0)
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(rest + 1)
