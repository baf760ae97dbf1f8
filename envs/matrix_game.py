"""A payoff table: the smallest game in which what is best for me depends on what the others do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.base import Env, Episode, Step, real, refuse_knob

CLIMBING = ((11, -30, 0), (-30, 7, 6), (0, 0, 5))
QTRAN = ((8, -12, -12), (-12, 0, 0), (-12, 0, 0))
TWO_STEP = (((7, 7), (7, 7)), ((0, 1), (1, 8)))  # table 2A, table 2B
NAMES = ("climbing", "penalty", "qtran", "two_step")


class MatrixGameState(NamedTuple):
    """How far the game is and what was chosen."""

    stage: Tensor  # [B] int64: steps taken, 0..T
    chosen: Tensor  # [B,T,N] int64: the actions taken, -1 where still to come
    paid: Tensor  # [B] return so far


@lru_cache(maxsize=64)
def _table(payoffs: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[branches, A, ..., A]: shared and never written to."""
    return torch.tensor(payoffs, dtype=torch.float64).to(dtype=dtype, device=device)


def _freeze(table: Any) -> Any:
    """Nested lists as nested tuples of floats."""
    return tuple(_freeze(part) for part in table) if isinstance(table, list) else float(table)


@dataclass(frozen=True)
class MatrixGame(Env[MatrixGameState]):
    """All agents choose at once; the team is paid payoff[a_0][a_1]...

    payoff:
        "climbing"  [[11,-30,0],[-30,7,6],[0,0,5]]; optimum 11 at (0,0)
        "penalty"   [[10,0,k],[0,2,0],[k,0,10]], k = `penalty`; two optima, 10, that must not be mixed
        "qtran"     [[8,-12,-12],[-12,0,0],[-12,0,0]]; optimum 8: additive values cannot represent it
        "two_step"  T = 2: agent 0 first picks table 2A (action 0) or 2B, both then play it: 2A pays 7 whatever they do,
                    2B [[0,1],[1,8]]; optimum 8 through 2B, but 2A looks better to a random partner (7 against 2.5)
        any table   lists or tuples of numbers, nested once an agent (any N), equally many actions (2 or more) each
    penalty: k, -1e6..0; read by "penalty" only.

    Action 0 is the default. Observation: a constant 1; in "two_step" one-hot over (first step, in 2A, in 2B). T is 1,
    or 2 in "two_step". The truth is a look-up: D_it = G(plan) - G(plan with unit (i,t) on the baseline), and the
    Shapley value sums over all coalitions of the N*T units, for any baseline.

    Isolates: relative over-generalisation and coordination; in "two_step" also credit for a choice that pays a step
    later. Grows harder as the penalty for missing the optimum grows: a partner who explores makes the best action look
    worst.

    Sources: Claus & Boutilier (1998), climbing and penalty; Son et al. (2019), QTRAN; Rashid et al. (2018), two-step.

    Raises:
        KnobError: a payoff that is no name and no such table, or a penalty outside its range.
    """

    payoff: Any = "climbing"  # climbing, penalty, qtran, two_step, or any table
    penalty: float = -100.0  # k, -1e6..0; read by "penalty" only

    def __post_init__(self) -> None:
        real(self, -1e6, 0.0, "penalty")
        if isinstance(self.payoff, str):
            if self.payoff not in NAMES:
                self._refuse_payoff()
            return
        try:
            table = np.array(self.payoff, dtype=np.float64)
        except (TypeError, ValueError):
            self._refuse_payoff()
        if table.ndim == 0 or table.shape[0] < 2 or len(set(table.shape)) > 1 or not np.isfinite(table).all():
            self._refuse_payoff()
        object.__setattr__(self, "payoff", _freeze(table.tolist()))  # lists would make the game unhashable

    def _refuse_payoff(self) -> NoReturn:
        allowed = f"one of {', '.join(NAMES)}, or numbers nested once an agent, equally many actions (2 or more) each"
        refuse_knob(self, "payoff", allowed)

    @property
    def payoffs(self) -> tuple[Any, ...]:
        """The tables, one a branch: two in "two_step", else one."""
        if not isinstance(self.payoff, str):
            return (self.payoff,)
        k = self.penalty
        penalty = ((10, 0, k), (0, 2, 0), (k, 0, 10))
        return {"climbing": (CLIMBING,), "penalty": (penalty,), "qtran": (QTRAN,), "two_step": TWO_STEP}[self.payoff]

    @property
    def n_agents(self) -> int:
        return self._double().dim() - 1

    @property
    def n_actions(self) -> int:
        return self._double().shape[-1]

    @property
    def obs_size(self) -> int:
        return 1 if self.horizon == 1 else 3

    @property
    def critic_size(self) -> int:
        return self.obs_size

    @property
    def horizon(self) -> int:
        return len(self.payoffs)

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
        """Observations are one-hot."""
        return 0.0, 1.0

    @property
    def optimal_return(self) -> float:
        """The largest entry."""
        return float(self._double().max())

    @property
    def random_return(self) -> float:
        """The mean entry: in "two_step" both branches are equally likely."""
        return float(self._double().mean())

    def reset(self, noise: Tensor) -> MatrixGameState:
        batch = len(noise)
        stage = torch.zeros(batch, dtype=torch.int64, device=noise.device)
        chosen = torch.full((batch, self.horizon, self.n_agents), -1, device=noise.device)
        return MatrixGameState(stage, chosen, noise.new_zeros(batch))

    def step(self, state: MatrixGameState, action: Tensor, noise: Tensor) -> Step[MatrixGameState]:
        now = torch.arange(self.horizon, device=action.device) == state.stage[:, None]  # [B,T]; no step once over
        chosen = torch.where(now[..., None], action[:, None, :], state.chosen)
        reward = torch.where(now[:, -1], self._payoff(chosen.movedim(1, 0), state.paid), 0)
        stage = torch.clamp(state.stage + 1, max=self.horizon)
        return Step(MatrixGameState(stage, chosen, state.paid + reward), reward, stage == self.horizon)

    def observe(self, state: MatrixGameState) -> Tensor:
        return self.critic_view(state)[:, None, :].expand(-1, self.n_agents, -1)

    def critic_view(self, state: MatrixGameState) -> Tensor:
        if self.horizon == 1:
            return torch.ones_like(state.paid)[:, None]
        where = torch.where(state.stage == 0, 0, 1 + self._branch(state.chosen[:, 0]))
        return torch.nn.functional.one_hot(where, 3).to(state.paid.dtype)

    def unit_differences(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[T,B,N]: G(plan) - G(plan[a_it <- baseline_i]), both looked up; any baseline."""
        plan = episode.action
        fact = self._payoff(plan, episode.state.paid)
        truth = torch.empty_like(plan, dtype=fact.dtype)
        for t, i in product(range(self.horizon), range(self.n_agents)):
            changed = plan.clone()
            changed[t, :, i] = baseline[i]
            truth[t, :, i] = fact - self._payoff(changed, fact)
        return truth

    def unit_shapley(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[T,B,N]: phi_u = sum over coalitions C without u of |C|! (n-|C|-1)! / n! (v(C+u) - v(C)); any baseline.

        The n = N*T units form 2^n coalitions, looked up: no more than the table has cells (A^N), two_step's 16 apart.
        """
        plan = episode.action
        batch, n = plan.shape[1], self.horizon * self.n_agents
        coalitions = torch.arange(2**n, device=plan.device)
        member = (coalitions[:, None] >> torch.arange(n, device=plan.device)) & 1 == 1  # [2^n, n], unit u = t*N + i
        inside = member.reshape(-1, self.horizon, 1, self.n_agents)
        plans = torch.where(inside, plan, baseline.to(plan.device))  # [2^n,T,B,N]
        value = self._payoff(plans.movedim(1, 0), episode.state.paid)  # [2^n,B]
        size = member.sum(-1)
        truth = torch.empty_like(plan, dtype=value.dtype)
        for u in range(n):
            without = coalitions[~member[:, u]]
            weight = torch.tensor([1 / (n * math.comb(n - 1, int(s))) for s in size[without]], dtype=value.dtype)
            gain = value[without + 2**u] - value[without]
            truth[u // self.n_agents, :, u % self.n_agents] = weight.to(value.device) @ gain.reshape(-1, batch)
        return truth

    def optimal_value(self, state: MatrixGameState) -> Tensor:
        """[B]: the largest entry still within reach, 0 once paid."""
        best = self._tables(state.paid).flatten(1).amax(1)  # [branches]
        reached = best[self._branch(state.chosen[:, 0])]
        value = torch.where(state.stage == self.horizon - 1, reached, best.max())
        return torch.where(state.stage == self.horizon, 0, value)

    def scripted_action(self, state: MatrixGameState) -> Tensor:
        """[B,N]: the branch with the largest entry, then the first cell that pays most in the branch reached."""
        tables = self._double()
        cells = [np.unravel_index(int(table.argmax()), tuple(table.shape)) for table in tables]
        best = torch.tensor(np.array(cells), device=state.stage.device)  # [branches,N]
        action = best[self._branch(state.chosen[:, 0])]
        choosing = (state.stage == 0) & (self.horizon == 2)
        return torch.where(choosing[:, None], int(tables.flatten(1).amax(1).argmax()), action)

    def text(self, state: MatrixGameState) -> str:
        """The actions taken at each step and the return."""
        taken = [" ".join(str(int(a)) for a in row) for row in state.chosen[0, : int(state.stage[0])]]
        steps = ", then ".join(taken) or "nothing yet"
        return f"matrix_game {self._title}: chosen {steps}; return {float(state.paid[0]):g}"

    def draw(self, state: MatrixGameState) -> NDArray[np.uint8]:
        """Two agents: the tables, the chosen cell framed. One, or three and more: a disc an agent with its action."""
        from envs.drawing import CALM, FAINT, HEADER, Canvas

        stage = int(state.stage[0])
        paid = float(state.paid[0]) if stage == self.horizon else None
        if self.n_agents == 2:
            canvas = Canvas(480, 340 if self.horizon == 1 else 276)
            note = "agent 0 chooses the row, agent 1 the column"
            if self.horizon == 2:
                note = "step 0: agent 0 chooses the table; step 1: agent 0 the row, agent 1 the column"
            canvas.header(f"matrix_game {self._title}", stage, self.horizon, paid, note)
            branch = int(self._branch(state.chosen[:, 0])[0])
            for b, table in enumerate(self._double()):
                reached = stage > 0 and b == branch
                cell = tuple(int(a) for a in state.chosen[0, -1]) if reached and stage == self.horizon else None
                title = f"table 2{'AB'[b]}{': chosen' * reached}" if self.horizon == 2 else ""
                width = canvas.width / self.horizon
                self._draw_table(canvas, b * width, width, table, cell, title)
            return canvas.array()
        canvas = Canvas(480, 150)
        note = f"{self.n_agents} agents choose one of {self.n_actions} actions each; the digit is the action chosen"
        canvas.header(f"matrix_game {self._title}", stage, self.horizon, paid, note)
        chosen = [int(a) for a in state.chosen[0, -1]]
        canvas.agents(HEADER + 30, [FAINT if a < 0 else CALM for a in chosen], ["?" if a < 0 else a for a in chosen])
        return canvas.array()

    def _draw_table(
        self, canvas: Any, x: float, width: float, table: Tensor, cell: tuple[int, ...] | None, title: str
    ) -> None:
        """One table at column x: rows are agent 0's actions; blue pays, orange costs; the chosen cell is framed."""
        from envs.drawing import HEADER, INK, QUIET, on, signed

        size = min(width - 100, canvas.height - HEADER - 82) / self.n_actions
        left, top = x + (width - size * self.n_actions) / 2 + 24, HEADER + 66.0
        largest, smallest = float(self._double().max()), -float(self._double().min())
        middle = left + size * self.n_actions / 2
        for a, b in product(range(self.n_actions), repeat=2):
            value = float(table[a, b])
            fill = signed(value, 1.6 * (largest if value > 0 else smallest))  # pale enough to read on
            canvas.rectangle(left + b * size, top + a * size, size - 3, size - 3, fill, "#BBBBBB")
            spot = (left + (b + 0.5) * size - 1.5, top + (a + 0.5) * size - 1.5)
            canvas.text(*spot, f"{value:g}", max(10, min(18, int(size / 3))), on(fill), "mm")
        if cell is not None:
            edge = (left + cell[1] * size - 2, top + cell[0] * size - 2)
            canvas.rectangle(*edge, size + 1, size + 1, outline=INK)
            canvas.rectangle(edge[0] - 2, edge[1] - 2, size + 5, size + 5, outline=INK)
        for a in range(self.n_actions):
            canvas.text(left - 8, top + (a + 0.5) * size, a, 12, QUIET, "rm")
            canvas.text(left + (a + 0.5) * size, top - 8, a, 12, QUIET, "ms")
        canvas.text(middle, top - 46, title, 14, INK, "ms")
        canvas.text(middle, top - 26, "agent 1", 12, INK, "ms")
        canvas.text(left - 22, top + size * self.n_actions / 2, "agent 0", 12, INK, "rm")

    @property
    def _title(self) -> str:
        return self.payoff if isinstance(self.payoff, str) else "given table"

    def _tables(self, like: Tensor) -> Tensor:
        """[branches, A, ..., A] in the dtype and on the device of `like`."""
        return _table(self.payoffs, like.dtype, like.device)

    def _double(self) -> Tensor:
        return _table(self.payoffs, torch.float64, torch.device("cpu"))

    def _branch(self, first: Tensor) -> Tensor:
        """[...]: the table that agent 0's first action (first [...,N]) leads to; 0 where there is one table."""
        return first[..., 0].clamp(min=0) * (self.horizon == 2)

    def _payoff(self, plan: Tensor, like: Tensor) -> Tensor:
        """[...]: what plan [T,...,N] pays at its last step, in the dtype of `like`; -1 (not yet chosen) reads as 0."""
        cell = self._branch(plan[0])
        for a in plan[-1].clamp(min=0).unbind(-1):
            cell = cell * self.n_actions + a
        return self._tables(like).flatten()[cell]
