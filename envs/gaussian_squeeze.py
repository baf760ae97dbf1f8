"""Many small efforts must add up to one target: too little is worth little, too much spoils all (dilution)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.base import Env, Episode, Step, real, whole

MOST = 9  # the largest effort
CELLS = 1 << 20  # numbers that one piece of the Shapley sum holds at a time


class SqueezeState(NamedTuple):
    """Nobody has chosen yet, or all have."""

    over: Tensor  # [B] bool
    chosen: Tensor  # [B,N] int64: each agent's effort, -1 before the choice
    paid: Tensor  # [B] return so far


@lru_cache(maxsize=64)
def total_chances(n_agents: int) -> NDArray[np.float64]:
    """[9 N + 1]: the chance of each total of N efforts drawn evenly from 0..9, by convolution."""
    chances = np.ones(1)
    for _ in range(n_agents):
        chances = np.convolve(chances, np.full(MOST + 1, 1 / (MOST + 1)))
    return chances


@lru_cache(maxsize=64)
def _nodes(n_players: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gauss-Legendre nodes and weights on (0,1), exact for polynomials of degree n_players - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(max(1, (n_players + 1) // 2))
    return (nodes + 1) / 2, weights / 2


@dataclass(frozen=True)
class GaussianSqueeze(Env[SqueezeState]):
    """N agents each choose an effort 0..9, once; with total x = sum a_i the team is paid G = x exp(-((x-mu)/sigma)^2).

    All act at once (T = 1) and see a constant 1. Default action 0. The true credit is known for any baseline b:

        difference  D_i = G(x) - G(x - a_i + b_i)
        Shapley     phi_i = int_0^1 E_q[G(S_q + a_i) - G(S_q + b_i)] dq, S_q the sum of the other agents' efforts, each
                    one's a_j with chance q and b_j otherwise (the multilinear extension of Owen 1972). The integrand
                    is a polynomial of degree N - 1 in q, so N/2 Gauss-Legendre nodes give the integral exactly, and
                    agents with equal a_i - b_i are alike. Cost: about 20 N^2 complex exponentials an episode.

    Isolates: dilution, purely spatial credit. One agent moves x by 9 of 9 N at most, and whether more effort is good
    depends on everyone else.
    Grows harder with n_agents (each one's part drowns in the others' exploration), with a smaller sigma (G is flat 0
    away from the target) and with mu far from the random total 4.5 N.

    Source: HolmesParker, Taylor, Zhan & Tumer, "Exploiting structure and agent-centric rewards to promote coordination
    in large multiagent systems" (2014); Son et al. (2019) play several at once.

    Raises:
        KnobError: a knob outside its range.
    """

    n_agents: int = 10  # N >= 1
    mu: float | None = None  # the target total, 0 .. 9 N units of effort; None: 3 N
    sigma: float | None = None  # width of the peak, 0.1 or more units of effort; None: N

    def __post_init__(self) -> None:
        whole(self, 1, None, "n_agents")
        if self.mu is not None:
            real(self, 0, MOST * self.n_agents, "mu")
        if self.sigma is not None:
            real(self, 0.1, None, "sigma")

    @property
    def n_actions(self) -> int:
        return MOST + 1

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
    def target(self) -> float:
        """mu, 3 N where the knob is None."""
        return 3.0 * self.n_agents if self.mu is None else float(self.mu)

    @property
    def width(self) -> float:
        """sigma, N where the knob is None."""
        return float(self.n_agents) if self.sigma is None else float(self.sigma)

    @property
    def best_total(self) -> int:
        """The total that pays most, by enumeration of 0..9 N."""
        return int(self._every_worth().argmax())

    @property
    def optimal_return(self) -> float:
        """G of the best total, by enumeration of 0..9 N."""
        return float(self._every_worth().max())

    @property
    def random_return(self) -> float:
        """E[G(x)], x the sum of N even digits, by convolution."""
        return float(self._every_worth().numpy() @ total_chances(self.n_agents))

    def reset(self, noise: Tensor) -> SqueezeState:
        over = torch.zeros(len(noise), dtype=torch.bool, device=noise.device)
        chosen = torch.full((len(noise), self.n_agents), -1, device=noise.device)
        return SqueezeState(over, chosen, noise.new_zeros(len(noise)))

    def step(self, state: SqueezeState, action: Tensor, noise: Tensor) -> Step[SqueezeState]:
        reward = torch.where(state.over, 0, self._worth(action.sum(-1).to(state.paid.dtype)))
        chosen = torch.where(state.over[:, None], state.chosen, action)
        over = torch.ones_like(state.over)
        return Step(SqueezeState(over, chosen, state.paid + reward), reward, over)

    def observe(self, state: SqueezeState) -> Tensor:
        return state.paid.new_ones(len(state.over), self.n_agents, 1)

    def critic_view(self, state: SqueezeState) -> Tensor:
        return state.paid.new_ones(len(state.over), 1)

    def reward_with(self, state: SqueezeState, action: Tensor, noise: Tensor, copies: Tensor) -> Tensor:
        """[B]: G with copies [B,N] of each agent's effort; mu and sigma stay."""
        total = (action * copies.to(state.paid.dtype)).sum(-1)
        return torch.where(state.over, 0, self._worth(total))

    def unit_differences(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[1,B,N]: G(x) - G(x - a_i + b_i); any baseline."""
        dtype = episode.state.paid.dtype
        total = episode.action.sum(-1, keepdim=True)
        changed = total - episode.action + baseline.to(total.device)
        return self._worth(total.to(dtype)) - self._worth(changed.to(dtype))

    def unit_shapley(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[1,B,N]: the integral over q of the class's docstring, computed in float64; any baseline."""
        base = baseline.to(episode.action.device)
        delta = (episode.action - base).flatten(0, 1)  # [B,N] what each agent adds when it joins
        kinds = torch.arange(-MOST, MOST + 1, device=delta.device)
        if not bool((base > 0).any()):
            kinds = kinds[MOST:]  # nobody can join with less than nothing
        counts = (delta[:, :, None] == kinds).sum(1)  # [B,V] agents of each kind
        rows = max(1, CELLS // (len(kinds) * (MOST * self.n_agents // 2 + 1)))
        shares = torch.cat([self._kind_shares(piece, kinds, int(base.sum())) for piece in counts.split(rows)])
        mine = shares.gather(1, delta - kinds[0])
        return mine[None].to(episode.state.paid.dtype)

    def optimal_value(self, state: SqueezeState) -> Tensor:
        """[B]: the optimum while the choice is still to come, then 0."""
        return torch.where(state.over, 0, torch.full_like(state.paid, self.optimal_return))

    def scripted_action(self, state: SqueezeState) -> Tensor:
        """[B,N]: the best total spread evenly, the first agents one unit more where it does not divide."""
        each, more = divmod(self.best_total, self.n_agents)
        plan = torch.arange(self.n_agents, device=state.over.device) < more
        return (plan.long() + each).expand(len(state.over), -1)

    def text(self, state: SqueezeState) -> str:
        """Efforts, their total beside the best one, and the return."""
        if not bool(state.over[0]):
            return f"gaussian_squeeze: {self.n_agents} agents choose efforts; the best total is {self.best_total}"
        efforts = state.chosen[0].tolist()
        listed = " ".join(map(str, efforts[:40])) + (" ..." if len(efforts) > 40 else "")
        return (
            f"gaussian_squeeze: efforts {listed}, total {sum(efforts)} (best {self.best_total}), "
            f"return {float(state.paid[0]):.4f}"
        )

    def draw(self, state: SqueezeState) -> NDArray[np.uint8]:
        """Everyone's effort, and where their total lies under the curve G."""
        from envs.drawing import ALERT, BAD, CALM, FAINT, GOOD, HEADER, INK, QUIET, Canvas

        over, best = bool(state.over[0]), self.best_total
        canvas = Canvas(560, 340)
        note = f"{self.n_agents} agents choose 0..9 each; only the total counts"
        canvas.header("gaussian_squeeze", int(over), 1, float(state.paid[0]), note)
        efforts = [int(a) for a in state.chosen[0]]
        shown = efforts[:60]
        below = canvas.agents(HEADER + 8, [CALM if over else FAINT] * len(shown), shown if over else ["?"] * len(shown))
        if len(shown) < len(efforts):
            canvas.text(12, below + 4, f"the first {len(shown)} of {len(efforts)} agents", 11, QUIET)
        if over:
            total = sum(efforts)
            fill, words = (
                (GOOD, "right") if total == best else (ALERT, "too little") if total < best else (BAD, "too much")
            )
            canvas.disc(20, below + 28, 6, fill, INK)
            canvas.text(32, below + 28, f"total {total}: {words}", 13, INK, "lm")
        self._draw_curve(canvas, below + 48, (sum(efforts), fill) if over else None)
        return canvas.array()

    def _draw_curve(self, canvas: Any, top: float, reached: tuple[int, str] | None) -> None:
        """G over every total from 0 to 9 N, the best total, and the one reached in its colour."""
        from envs.drawing import FAINT, GOOD, INK, QUIET, TEAM

        worth, best = self._every_worth().tolist(), self.best_total
        left, wide, floor = 40.0, canvas.width - 80.0, canvas.height - 40.0
        peak = max(worth[best], 1e-300)

        def at(total: int) -> tuple[float, float]:
            return left + wide * total / len(worth), floor - (floor - top) * worth[total] / peak

        canvas.line([(left, floor), (left + wide, floor)], FAINT)
        canvas.line([at(total) for total in range(len(worth))], TEAM)
        x = at(best)[0]
        canvas.line([(x, floor), at(best)], GOOD)
        canvas.text(x, floor + 18, f"best {best}", 12, GOOD, "ms")
        if reached:
            canvas.line([(at(reached[0])[0], floor), at(reached[0])], INK)
            canvas.disc(*at(reached[0]), 7, reached[1], INK)
        if x - left > 50:
            canvas.text(left, floor + 18, "total 0", 12, QUIET, "ms")
        if left + wide - x > 80:
            canvas.text(left + wide, floor + 18, f"total {MOST * self.n_agents}", 12, QUIET, "ms")

    def _worth(self, total: Tensor) -> Tensor:
        """G(x)."""
        return total * torch.exp(-(((total - self.target) / self.width) ** 2))

    def _every_worth(self) -> Tensor:
        """[9 N + 1] float64: G(0), G(1), ..., G(9 N)."""
        return self._worth(torch.arange(MOST * self.n_agents + 1, dtype=torch.float64))

    def _kind_shares(self, counts: Tensor, kinds: Tensor, floor: int) -> Tensor:
        """[R,V] float64: the Shapley value of an agent of each kind that a row has (of any value where it has none).

        Sums of independent parts multiply as Fourier series of length L = 9 N + 1: every total lies in 0..9 N, so
        nothing wraps around. E[G(S)] = 1/L sum_w G^(w) E[e^{iwS}] with G^(w) = sum_x G(x) e^{-iwx}, and as all is real,
        half of the frequencies tell the rest.
        """
        length = MOST * self.n_agents + 1
        size = length // 2 + 1
        double, device = torch.float64, counts.device
        others = counts[:, None, :].to(double) - torch.eye(len(kinds), dtype=double, device=device)  # [R,V,V]
        others = others.clamp(min=0).flatten(0, 1)  # [R V, V] who else is there, for one agent of each kind
        angle = 2 * math.pi / length * torch.arange(size, device=device, dtype=double)
        turn = torch.polar(torch.ones_like(angle), angle)[None] ** kinds[:, None].to(double)  # [V,F] e^{iwv}
        mean = torch.zeros(len(others), size, dtype=torch.complex128, device=device)
        for node, weight in zip(*_nodes(self.n_agents), strict=True):
            part = 1 - node + node * turn
            size_of = others @ part.abs().clamp(min=1e-300).log()
            mean += weight * torch.polar(size_of.exp(), others @ part.angle())
        # What joining adds, as a function of the others' total (beyond `floor`, with my baseline inside it):
        worth = torch.fft.rfft(self._every_worth().to(device))  # [F]
        start = torch.polar(torch.ones_like(angle), angle * floor)
        gain = mean.unflatten(0, counts.shape) * (turn - 1) * start * worth
        twice = torch.full_like(angle, 2.0)
        twice[0] = 1.0
        if length % 2 == 0:
            twice[-1] = 1.0
        return (gain.real * twice).sum(-1) / length
