"""Many overlapping delayed rewards, a delay of its own for every agent: which station spoilt the product that left?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.base import Env, Episode, Step, choice, refuse_knob, whole
from envs.noise import Atoms, atoms

LANES = 12  # stations that a picture shows


class LineState(NamedTuple):
    """The clock, what the stations see, and what is on the belt and still to be paid for."""

    t: Tensor  # [B] int64
    cue: Tensor  # [B,N] int64, drawn also where no product is; K values
    line: Tensor  # [B,N,W] quality that station i gave the product leaving in k = 0..W-1 steps; 0 before it worked


@dataclass(frozen=True)
class AssemblyLine(Env[LineState]):
    """N stations, L steps apart, work on products that leave after an inspection of E steps and are paid for then.

    Station i works at step t on product t - iL (if there is one among J = T - (N-1)L - E) and sees a cue in 0..K-1;
    the right action is (cue + i) mod K, quality 1, any other 0. Action K is `idle`, quality 0, the default. A station
    without a product sees a blank and does nothing. Product p leaves at step p + (N-1)L + E and pays,

        mode "sum":  mean_j q_j / J;       mode "and":  prod_j q_j / J.

    So station i's action is paid (N-1-i)L + E steps later, never by its neighbours' products. Truth: with q' the
    quality of the baseline's action at the same cue, the difference is (q_i - q'_i)/(NJ), or in mode "and"
    (q_i - q'_i) prod_{j != i} q_j / J; Shapley with `idle` is q_i/(NJ), or prod_j q_j / (NJ) (a unanimity game).

    Isolates: structured delays, many rewards on the way at once. Grows harder with n_agents, spacing and inspection
    (longer, more different delays), n_cues (random play hits 1/(K+1)) and mode "and" (dilution, all must be right).
    `local_rewards` are a station's own q_i/(NJ) as its product leaves ("and": equal shares of what is paid).

    Source: this project.

    Raises:
        KnobError: a knob outside its range, or a horizon in which no product leaves.
    """

    n_agents: int = 4  # N >= 1 stations
    spacing: int = 3  # L >= 0 steps between neighbouring stations
    inspection: int = 5  # E >= 0 steps after the last station
    horizon: int = 60  # T > (N-1)L + E steps
    n_cues: int = 3  # K >= 2
    mode: str = "sum"  # sum or and

    def __post_init__(self) -> None:
        whole(self, 1, None, "n_agents", "horizon")
        whole(self, 2, None, "n_cues")
        whole(self, 0, None, "spacing", "inspection")
        choice(self, ("sum", "and"), "mode")
        if self.horizon <= self._delay(0):
            refuse_knob(self, "horizon", f"more than (n_agents - 1) spacing + inspection = {self._delay(0)} steps")

    def _delay(self, station: int) -> int:
        """(N-1-i) L + E: steps from station i's action to its pay."""
        return (self.n_agents - 1 - station) * self.spacing + self.inspection

    @property
    def n_products(self) -> int:
        """J."""
        return self.horizon - self._delay(0)

    @property
    def delays(self) -> tuple[int, ...]:
        """Of each station."""
        return tuple(self._delay(i) for i in range(self.n_agents))

    @property
    def n_actions(self) -> int:
        return self.n_cues + 1

    @property
    def obs_size(self) -> int:
        return self.n_cues + 2

    @property
    def critic_size(self) -> int:
        return self.n_agents * (self.n_cues + 1) + 1

    @property
    def reset_noise_size(self) -> int:
        return self.n_agents

    @property
    def step_noise_size(self) -> int:
        return self.n_agents

    @property
    def default_action(self) -> int:
        return self.n_cues

    @property
    def bounds(self) -> tuple[float, float]:
        """All features are shares and marks."""
        return 0.0, 1.0

    @property
    def exogenous(self) -> tuple[str, ...]:
        """No action moves the clock or a cue."""
        return ("t", "cue")

    @property
    def optimal_return(self) -> float:
        """Every product right, closed form; stations see what they need for it."""
        return 1.0

    @property
    def random_return(self) -> float:
        """A quality is 1 with chance p = 1/(K+1), independently: p, or p^N in mode "and". Closed form."""
        return (1 / self.n_actions) ** (1 if self.mode == "sum" else self.n_agents)

    def reset_atoms(self) -> Atoms:
        """K^N cases of cues."""
        return atoms(*[[k / self.n_cues for k in range(1, self.n_cues)]] * self.n_agents)

    def step_atoms(self) -> Atoms:
        """K^N cases of the next cues."""
        return self.reset_atoms()

    def reset(self, noise: Tensor) -> LineState:
        t = torch.zeros(len(noise), dtype=torch.int64, device=noise.device)
        return LineState(t, self._cues(noise, t), noise.new_zeros(len(noise), self.n_agents, self._delay(0) + 1))

    def step(self, state: LineState, action: Tensor, noise: Tensor) -> Step[LineState]:
        line = self._worked(state, action)
        after = torch.cat((line[..., 1:], torch.zeros_like(line[..., :1])), -1)
        t = state.t + 1
        done = torch.zeros_like(t, dtype=torch.bool)  # reaching the horizon is not an end
        return Step(LineState(t, self._cues(noise, t), after), self._pay(line[..., 0], state.t), done)

    def observe(self, state: LineState) -> Tensor:
        return torch.cat((self._seen(state), self._time(state)[:, None].expand(-1, self.n_agents, -1)), -1)

    def critic_view(self, state: LineState) -> Tensor:
        """Everyone's cue and the time. The belt's qualities stay hidden: who saw them would have no delay to bridge."""
        return torch.cat((self._seen(state).flatten(1), self._time(state)), -1)

    def local_rewards(self, state: LineState, action: Tensor, noise: Tensor) -> Tensor:
        """[B,N]: own quality's share of the product that leaves now; mode "and": an equal share. They sum to r."""
        leaving = self._worked(state, action)[..., 0]
        if self.mode == "and":
            leaving = leaving.prod(-1, keepdim=True).expand_as(leaving)
        return leaving * self._leaves(state.t)[:, None] / (self.n_agents * self.n_products)

    def unit_differences(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[T,B,N]: (q - q')/(NJ), or (q - q') prod of the others' qualities / J; any baseline."""
        state = episode.state
        quality = self._quality(state, episode.action)
        gap = quality - self._quality(state, baseline.to(episode.action.device).expand_as(episode.action))
        if self.mode == "sum":
            return gap / (self.n_agents * self.n_products)
        product = self._by_product(quality)  # [J,B,N]
        others = torch.stack(
            [product[..., [j for j in range(self.n_agents) if j != i]].prod(-1) for i in range(self.n_agents)], -1
        )
        return self._by_unit(self._by_product(gap) * others / self.n_products)

    def unit_shapley(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[T,B,N]: with `idle` q/(NJ), or prod q / (NJ); mode "sum": the difference, whatever the baseline.

        Raises:
            ValueError: mode "and" with a baseline other than idle.
        """
        if self.mode == "sum":
            return self.unit_differences(episode, baseline)
        if bool((baseline != self.n_cues).any()):
            idle = f"it must be idle ({self.n_cues})"
            raise ValueError(f"baseline={baseline.tolist()} has no closed Shapley value in assembly_line 'and'; {idle}")
        product = self._by_product(self._quality(episode.state, episode.action))
        share = product.prod(-1, keepdim=True) / (self.n_agents * self.n_products)
        return self._by_unit(share.expand_as(product))

    def optimal_value(self, state: LineState) -> Tensor:
        """[B]: what is right so far on each product of the belt, all still to be done right, and those to come."""
        slots = torch.arange(self._delay(0) + 1, device=state.t.device)
        delays = torch.tensor(self.delays, device=state.t.device)
        final = torch.where(slots < delays[:, None], state.line, 1)  # station i has worked on slots below its delay
        worth = final.mean(1) if self.mode == "sum" else final.prod(1)
        belt = (worth * self._leaves(state.t[:, None] + slots)).sum(-1)
        coming = (self.n_products - 1 - state.t).clamp(min=0).to(belt.dtype)
        return (belt + coming) / self.n_products

    def scripted_action(self, state: LineState) -> Tensor:
        """[B,N]: (cue + i) mod K, idle without a product."""
        return torch.where(self._busy(state.t), self._right(state.cue), self.n_cues)

    def light_cone(self) -> Tensor:
        """[T,T,N]: station i reaches the reward (N-1-i)L + E steps later, if it has a product, and no other."""
        t = torch.arange(self.horizon)
        cone = t[None, :, None] == t[:, None, None] + torch.tensor(self.delays)
        return cone & self._busy(t)[:, None]

    def text(self, state: LineState) -> str:
        """Who sees what, and the qualities on the belt."""
        t, busy = int(state.t[0]), self._busy(state.t)[0]
        rows = [f"assembly_line  step {t} of {self.horizon}, {self.n_products} products"]
        for i in range(min(self.n_agents, LANES)):
            cue = int(state.cue[0, i])
            sees = f"cue {cue}, right action {int(self._right(state.cue)[0, i])}" if bool(busy[i]) else "no product"
            rows.append(f"station {i}: {sees}, pays {self._delay(i)} steps later")
        leaving = " ".join(f"{float(q):.0f}" for q in state.line[0, :, 0])
        return "\n".join([*rows, f"leaving next: qualities {leaving}"])

    def draw(self, state: LineState) -> NDArray[np.uint8]:
        """The belt: a column a product, a cell a station's work on it; products move to the right and leave there."""
        from envs.drawing import ALERT, BAD, CALM, FAINT, GOOD, HEADER, INK, PAPER, QUIET, Canvas

        shown, slots, t = min(self.n_agents, LANES), self._delay(0) + 1, int(state.t[0])
        row = 30.0
        canvas = Canvas(560, int(HEADER + 74 + row * shown))
        pays = "if all its stations were right" if self.mode == "and" else "its mean quality"
        note = f"{self.n_products} products; each pays as it leaves, {pays}"
        canvas.header("assembly_line", t, self.horizon, note=note)
        left, right, top = 96.0, canvas.width - 60.0, HEADER + 22.0
        pitch = (right - left) / slots
        canvas.text((left + right) / 2, top - 8, "products move this way", 11, QUIET, "ms")
        canvas.text(right + 6, top + row * shown / 2, "exit", 12, INK, "lm")
        if shown < self.n_agents:
            canvas.text(canvas.width - 12, 31, f"{self.n_agents - shown} more stations not shown", 11, QUIET, "ra")
        for i in range(shown):
            y, busy = top + i * row, bool(self._busy(state.t)[0, i])
            cue = str(int(state.cue[0, i])) if busy else "-"
            canvas.text(12, y + row / 2, f"station {i}", 12, INK, "lm")
            canvas.disc(left - 16, y + row / 2, 9, ALERT if busy else FAINT)
            canvas.text(left - 16, y + row / 2, cue, 11, INK, "mm")
            for k in range(slots):
                exits = t + k
                if not self._delay(0) <= exits < self.horizon or exits - self._delay(0) > t:
                    continue  # no product there, or not yet on the belt
                x, done = right - (k + 1) * pitch, k < self._delay(i)
                ink = (GOOD if float(state.line[0, i, k]) else BAD) if done else PAPER
                here = k == self._delay(i)
                canvas.rectangle(
                    x + 1, y + 4, max(2.0, pitch - 2), row - 8, CALM if here else ink, None if done or here else FAINT
                )
        canvas.legend(
            top + row * shown + 16,
            [(GOOD, "right"), (BAD, "wrong"), (CALM, "worked on now"), (ALERT, "cue"), (FAINT, "still to come")],
        )
        return canvas.array()

    def _cues(self, noise: Tensor, t: Tensor) -> Tensor:
        """[B,N] of the step t: drawn whether or not a product is there, so that all steps read alike; 0 if none."""
        return torch.where(self._busy(t), (noise * self.n_cues).long(), 0)

    def _busy(self, t: Tensor) -> Tensor:
        """[...,N] bool: has station i a product at step t?"""
        product = t[..., None] - self.spacing * torch.arange(self.n_agents, device=t.device)
        return (product >= 0) & (product < self.n_products)

    def _right(self, cue: Tensor) -> Tensor:
        return (cue + torch.arange(self.n_agents, device=cue.device)) % self.n_cues

    def _quality(self, state: Any, action: Tensor) -> Tensor:
        """[...,N] 1 where the action is right and there is a product."""
        return ((action == self._right(state.cue)) & self._busy(state.t)).to(state.line.dtype)

    def _worked(self, state: LineState, action: Tensor) -> Tensor:
        """[B,N,W] the belt after this step's work: station i stands where products leave in `_delay(i)` steps."""
        place = torch.tensor(self.delays, device=action.device)[:, None].expand(len(action), -1, 1)
        return state.line.scatter(-1, place, self._quality(state, action)[..., None])

    def _leaves(self, t: Tensor) -> Tensor:
        """Does a product leave at step t?"""
        return (t >= self._delay(0)) & (t < self.horizon)

    def _pay(self, quality: Tensor, t: Tensor) -> Tensor:
        """[B] for the product [B,N] that leaves."""
        worth = quality.mean(-1) if self.mode == "sum" else quality.prod(-1)
        return worth * self._leaves(t) / self.n_products

    def _seen(self, state: LineState) -> Tensor:
        """[B,N,K+1] one-hot cue, the last place a blank."""
        cue = torch.where(self._busy(state.t), state.cue, self.n_cues)
        return torch.nn.functional.one_hot(cue, self.n_cues + 1).to(state.line.dtype)

    def _time(self, state: LineState) -> Tensor:
        return (state.t.clamp(max=self.horizon) / self.horizon).to(state.line.dtype)[:, None]

    def _by_product(self, x: Tensor) -> Tensor:
        """[T,B,N] -> [J,B,N]: what each station did to product p."""
        first = [i * self.spacing for i in range(self.n_agents)]
        return torch.stack([x[f : f + self.n_products, :, i] for i, f in enumerate(first)], -1)

    def _by_unit(self, x: Tensor) -> Tensor:
        """The inverse of `_by_product`, 0 where a station had no product."""
        out = x.new_zeros(self.horizon, *x.shape[1:])
        for i in range(self.n_agents):
            out[i * self.spacing : i * self.spacing + self.n_products, :, i] = x[..., i]
        return out
