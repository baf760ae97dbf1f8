"""A hundred movements, then the fall: which joint's which movement did it?

Rules. N joints walk T steps. At M decisive moments early in the walk, `joints_per_moment` joints each see their own
danger cue and must choose their safe action; if one does not, a fuse is lit and the robot falls exactly `delay` steps
later. Everything between looks fine. A step pays 1/T, plus temptation/(N T) for each joint that swings (the last
action); the fall pays -fall_penalty and ends the walk. A swing is harmless except at a decisive moment.

Knobs (unit, allowed):
    n_agents           joints N, 1 or more
    horizon            steps T, 1 or more
    delay              steps D from the error to the fall, 0..T-1
    window             steps W at the start in which moments lie, 1..T-D (hold it fixed when sweeping the delay)
    n_decisive         moments M, 1..W              joints_per_moment   joints m at each moment, 1..N
    n_cues             cues K a joint can see, 2 or more    n_actions   A, 2 or more
    temptation         kappa, 0 or more             fall_penalty        P, 0 or more (returns; a full walk pays 1)
    stagger            steps before the fall in which every cue shows panic, 0 or below D (damage becomes visible)
    decoys             harmless danger cues inside the window, M m + decoys <= W N
    wobble             scale of the body's wobble in the observations, 0 or more (0 hides it and leaves it out)
    observe_damage     who sees the fuse: none, critic, all
    safe               balanced (g_i = i mod (A-1)) or hold (every g_i = 0, the default action)
    layout_seed        permutes which joint has which danger cue and which safe action

Isolates: space-time credit of one sparse, delayed event with everything else held still. Harder with N (dilution),
D and T (delay), M (masking), decoys (ambiguity), joints_per_moment (shared blame) and safe="balanced" (the default
action is itself wrong at half the joints).

Truth, for a plan frozen at all T steps, errors at steps t_1 <= t_2 <= ...: the return is
    G = sum_{u < F} (1/T + kappa/(N T) swings_u) - P 1[F < T],   F = t_1 + D, or T without an error,
so the frozen unit difference needs only the first two error steps (`unit_differences`), and the Shapley value over
units is the airport game (Littlechild & Owen 1973) plus, for each swing, a game of "present and not blocked"
(`unit_shapley`). Source: this project; the culprit, the delay and the innocents are known by construction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import comb
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.base import Env, Episode, Step, choice, real, refuse_knob, whole
from envs.noise import Atoms, atoms

HOLD = 0
NO_FUSE = -1
ATOMS = 1 << 20  # cases of luck that are listed at most


def _marked(size: int, chosen: Iterable[int]) -> list[float]:
    """Uniform numbers among which the chosen ones come first."""
    places = set(chosen)
    return [0.25 if k in places else 0.75 for k in range(size)]


class RobotState(NamedTuple):
    """What a walk remembers. Scheduled units are hidden from everyone; future cues are not drawn yet."""

    t: Tensor  # [B] int64, the step about to be taken
    alive: Tensor  # [B] bool, has not fallen
    fuse: Tensor  # [B] int64, steps left before the fall, -1 while no error was made
    danger: Tensor  # [B, M m] int64, the decisive units as t * N + i, ascending
    decoy: Tensor  # [B, decoys] int64, units that show danger harmlessly, ascending
    decisive: Tensor  # [B, N] bool, the units of `danger` at t
    cue: Tensor  # [B, N] int64, what each joint sees at t (before any panic)
    wobble: Tensor  # [B] the body's wobble; its dtype is the game's


@dataclass(frozen=True)
class WalkingRobot(Env[RobotState]):
    """N joints walk T steps; one wrong action at a decisive moment lights a fuse, and the fall comes D steps later.

    Knobs, rules and the known truth stand in the module's text.
    """

    n_agents: int = 6
    horizon: int = 100
    delay: int = 40
    window: int = 20
    n_decisive: int = 1
    joints_per_moment: int = 1
    n_cues: int = 4
    n_actions: int = 3
    temptation: float = 0.1
    fall_penalty: float = 1.0
    stagger: int = 0
    decoys: int = 0
    wobble: float = 0.0
    observe_damage: str = "none"
    safe: str = "balanced"
    layout_seed: int = 0

    def __post_init__(self) -> None:
        """Raise KnobError, one sentence, for a knob outside its range."""
        whole(self, 1, None, "n_agents", "horizon")
        whole(self, 0, self.horizon - 1, "delay")
        whole(self, 1, None, "window", "n_decisive")
        if self.window > self.horizon - self.delay:
            refuse_knob(self, "window", f"at most horizon - delay = {self.horizon - self.delay}, so that a fall fits")
        if self.n_decisive > self.window:
            refuse_knob(self, "n_decisive", f"at most window = {self.window}, one moment a step")
        whole(self, 1, self.n_agents, "joints_per_moment")
        whole(self, 2, None, "n_cues", "n_actions")
        real(self, 0, None, "temptation", "fall_penalty", "wobble")
        whole(self, 0, None, "stagger", "decoys", "layout_seed")
        if self.stagger and self.stagger >= self.delay:
            refuse_knob(self, "stagger", f"0, or below delay = {self.delay}")
        room = self.window * self.n_agents - self.n_decisive * self.joints_per_moment
        if self.decoys > room:
            refuse_knob(self, "decoys", f"at most window * n_agents - n_decisive * joints_per_moment = {room}")
        choice(self, ("none", "critic", "all"), "observe_damage")
        choice(self, ("balanced", "hold"), "safe")

    # --- sizes -------------------------------------------------------------------------------------------------

    @property
    def obs_size(self) -> int:
        return self._cue_slots + 1 + (self.wobble > 0) + 2 * (self.observe_damage == "all")

    @property
    def critic_size(self) -> int:
        return self.n_agents * self._cue_slots + 1 + (self.wobble > 0) + 2 * (self.observe_damage != "none")

    @property
    def reset_noise_size(self) -> int:
        units = self.window * self.n_agents if self.decoys else 0
        return self.window + self.n_decisive * self.n_agents + units + self.n_agents

    @property
    def step_noise_size(self) -> int:
        return self.n_agents + (self.wobble > 0)

    @property
    def default_action(self) -> int:
        return HOLD

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which numbers every feature lies; the wobble w' = .8 w + swings/N + .3 eps stays in -.75 .. 5.75."""
        return min(0.0, -0.75 * self.wobble), max(1.0, 5.75 * self.wobble)

    @property
    def exogenous(self) -> tuple[str, ...]:
        """Fields of the state that no action moves."""
        return ("t", "danger", "decoy", "decisive", "cue")

    @property
    def _cue_slots(self) -> int:
        return self.n_cues + (self.stagger > 0)

    # --- layout: who fears what, and what saves them -----------------------------------------------------------

    @cached_property
    def _layout(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(danger cue d_i, safe action g_i): each value equally often, then dealt to the joints by `layout_seed`."""
        order = np.random.default_rng(self.layout_seed).permutation(self.n_agents)
        safe = order % (self.n_actions - 1) if self.safe == "balanced" else np.zeros_like(order)
        return tuple(int(i) for i in order % self.n_cues), tuple(int(g) for g in safe)

    @property
    def danger_cue(self) -> tuple[int, ...]:
        """d_i, one a joint."""
        return self._layout[0]

    @property
    def safe_action(self) -> tuple[int, ...]:
        """g_i, one a joint: right at a decisive moment, never the swing. Knowing it is a privilege."""
        return self._layout[1]

    @cached_property
    def _constants(self) -> dict[torch.device, tuple[Tensor, Tensor, Tensor, Tensor]]:
        return {}

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(danger cues, safe actions, joint numbers, cue numbers) as tensors on `device`, made once."""
        if device not in self._constants:
            rows = (self.danger_cue, self.safe_action, range(self.n_agents), range(self._cue_slots))
            d, g, joints, cues = (torch.tensor(list(row), dtype=torch.int64, device=device) for row in rows)
            self._constants[device] = (d, g, joints, cues)
        return self._constants[device]

    # --- rules -------------------------------------------------------------------------------------------------

    def reset(self, noise: Tensor) -> RobotState:
        """Draw M distinct moments, m distinct joints at each, the decoys, and the first cues."""
        B, N, M = noise.shape[0], self.n_agents, self.n_decisive
        steps_u, joints_u, rest = noise.tensor_split((self.window, self.window + M * N), dim=1)
        steps = steps_u.argsort(dim=1, stable=True)[:, :M]
        joints = joints_u.reshape(B, M, N).argsort(dim=2, stable=True)[:, :, : self.joints_per_moment]
        danger = (steps[:, :, None] * N + joints).reshape(B, -1).sort(dim=1).values  # a set: one order for all draws
        decoy = danger[:, :0]
        if self.decoys:
            taken = rest[:, : self.window * N].scatter(1, danger, 2.0)  # 2 sorts behind every number in [0,1)
            decoy = taken.argsort(dim=1, stable=True)[:, : self.decoys].sort(dim=1).values
        t = torch.zeros(B, dtype=torch.int64, device=noise.device)
        decisive = self._marks(danger, t)
        cue = self._draw_cues(t, decisive, decoy, rest[:, -N:])
        alive = torch.ones(B, dtype=torch.bool, device=noise.device)
        return RobotState(t, alive, torch.full_like(t, NO_FUSE), danger, decoy, decisive, cue, noise.new_zeros(B))

    def step(self, state: RobotState, action: Tensor, noise: Tensor) -> Step[RobotState]:
        """Light the fuse, fall, or be paid and burn one step of it."""
        N, T = self.n_agents, self.horizon
        _, safe, _, _ = self._on(action.device)
        error = (state.decisive & (action != safe)).any(-1)
        lit = torch.where(error & (state.fuse < 0), self.delay, state.fuse)
        falls = state.alive & (lit == 0)
        swings = (action == self.n_actions - 1).sum(-1).to(state.wobble.dtype)
        pay = swings * (self.temptation / (N * T)) + 1.0 / T
        reward = torch.where(falls, -self.fall_penalty, pay) * state.alive
        alive = state.alive & ~falls
        wobble = state.wobble
        if self.wobble > 0:
            wobble = 0.8 * wobble + swings / N + 0.3 * (noise[:, N] - 0.5)
        t = state.t + 1
        decisive = self._marks(state.danger, t)
        cue = self._draw_cues(t, decisive, state.decoy, noise[:, :N])
        fuse = lit - (lit > 0).to(lit.dtype)
        return Step(RobotState(t, alive, fuse, state.danger, state.decoy, decisive, cue, wobble), reward, ~alive)

    def _marks(self, units: Tensor, t: Tensor) -> Tensor:
        """[B,N] bool: is (t, i) among `units` [B, any]?"""
        _, _, joints, _ = self._on(t.device)
        here = (t * self.n_agents)[:, None] + joints
        return (units[:, :, None] == here[:, None, :]).any(1)

    def _draw_cues(self, t: Tensor, decisive: Tensor, decoy: Tensor, u: Tensor) -> Tensor:
        """d_i at scheduled and decoy units, elsewhere uniform over the other K - 1 cues."""
        d, _, _, _ = self._on(t.device)
        other = (u * (self.n_cues - 1)).long()
        other = other + (other >= d)
        shown = decisive | self._marks(decoy, t) if self.decoys else decisive
        return torch.where(shown, d, other)

    def _visible_cue(self, state: RobotState) -> Tensor:
        """[B,N]: the cue, or panic (slot K) during the last `stagger` steps before the fall step."""
        if not self.stagger:
            return state.cue
        panic = (state.fuse >= 1) & (state.fuse <= self.stagger)
        return torch.where(panic[:, None], self.n_cues, state.cue)

    def _body(self, state: RobotState, damage: bool) -> list[Tensor]:
        """Features that are the same for every joint: t/T, the wobble if on, the fuse (lit, steps left / D) if seen."""
        dtype = state.wobble.dtype
        features = [state.t.to(dtype) / self.horizon]
        if self.wobble > 0:
            features.append(state.wobble * self.wobble)
        if damage:
            features.append((state.fuse >= 0).to(dtype))
            features.append(state.fuse.clamp(min=0).to(dtype) / max(self.delay, 1))
        return features

    def observe(self, state: RobotState) -> Tensor:
        """One-hot cue, t/T, the wobble if on, the fuse if observe_damage is "all"."""
        _, _, _, cues = self._on(state.t.device)
        one_hot = (self._visible_cue(state)[:, :, None] == cues).to(state.wobble.dtype)
        body = torch.stack(self._body(state, self.observe_damage == "all"), -1)
        return torch.cat((one_hot, body[:, None, :].expand(-1, self.n_agents, -1)), -1)

    def critic_view(self, state: RobotState) -> Tensor:
        """Every joint's cue, t/T, the wobble if on, the fuse if observe_damage is "critic" or "all"."""
        _, _, _, cues = self._on(state.t.device)
        one_hot = (self._visible_cue(state)[:, :, None] == cues).to(state.wobble.dtype).flatten(1)
        return torch.cat((one_hot, torch.stack(self._body(state, self.observe_damage != "none"), -1)), -1)

    # --- all the luck there is ------------------------------------------------------------------------------------

    def reset_atoms(self) -> Atoms:
        """Every choice of moments, of joints at each, of decoys, and every joint's first cue, all equally likely.

        Raises ValueError: more than a million cases, or a wobble, which is a real number.
        """
        W, N, M, m, d = self.window, self.n_agents, self.n_decisive, self.joints_per_moment, self.decoys
        cases = comb(W, M) * comb(N, m) ** M * comb(W * N - M * m, d) * (self.n_cues - 1) ** N
        if cases > ATOMS:
            raise ValueError(f"walking_robot can begin in {cases:,} ways; only up to {ATOMS:,} are listed")
        rows = []
        for steps in combinations(range(W), M):
            for joints in product(combinations(range(N), m), repeat=M):
                head = [*_marked(W, steps), *(u for chosen in joints for u in _marked(N, chosen))]
                danger = {t * N + i for t, chosen in zip(steps, joints, strict=True) for i in chosen}
                free = [unit for unit in range(W * N) if unit not in danger]
                rows += [head + (_marked(W * N, units) if d else []) for units in combinations(free, d)]
        table, cues = torch.tensor(rows, dtype=torch.float64), self.step_atoms().noise
        noise = torch.cat((table.repeat_interleave(len(cues), 0), cues.repeat(len(table), 1)), 1)
        return Atoms(noise, torch.full((len(noise),), 1 / len(noise), dtype=torch.float64))

    def step_atoms(self) -> Atoms:
        """Every joint's next cue, (K - 1)^N cases. Raises ValueError as `reset_atoms`."""
        others = self.n_cues - 1
        if self.wobble > 0:
            raise ValueError(f"wobble={self.wobble} is a real number that moves at every step; only wobble=0 is listed")
        if others**self.n_agents > ATOMS:
            raise ValueError(f"walking_robot has {others**self.n_agents:,} cases of cues; up to {ATOMS:,} are listed")
        return atoms(*[[k / others for k in range(1, others)]] * self.n_agents)

    # --- what is known in closed form --------------------------------------------------------------------------

    @property
    def optimal_return(self) -> float:
        """1 + kappa (1 - M m / (N T)): every joint swings except at its decisive moments."""
        return self._return_with_holds(self.n_decisive * self.joints_per_moment)

    @property
    def reachable_return(self) -> float | None:
        """With decoys, every danger cue must be obeyed: 1 + kappa (1 - (M m + decoys) / (N T)).

        None when temptation is so high, or danger among the decoys so rare, that gambling on a cue would pay.
        """
        real_units = self.n_decisive * self.joints_per_moment
        stake = self.fall_penalty + (1 + self.temptation) / self.horizon
        gain = self.temptation / (self.n_agents * self.horizon)
        if not self.decoys or gain > stake * real_units / (real_units + self.decoys):
            return None
        return self._return_with_holds(real_units + self.decoys)

    def _return_with_holds(self, units: int) -> float:
        return 1 + self.temptation * (1 - units / (self.n_agents * self.horizon))

    @property
    def random_return(self) -> float:
        """Exact expectation under uniformly random actions.

        With q = A^-m the chance that a moment passes, P(no error by step s) = sum_j hyper(j; W, M, s+1) q^j; step t
        is paid when no error happened by t - D. At D = 0 the paid swings exclude the joints that had to be safe at t.
        """
        T, W, N, A = self.horizon, self.window, self.n_agents, self.n_actions
        M, m = self.n_decisive, self.joints_per_moment
        q = float(A) ** -m

        def passes(steps: int, window: int, moments: int) -> float:
            """E[q^(moments among the first `steps` of the window)]."""
            steps = max(0, min(steps, window))
            ways = (comb(steps, j) * comb(window - steps, moments - j) * q**j for j in range(moments + 1))
            return sum(ways) / comb(window, moments)

        alive = [passes(t - self.delay + 1, W, M) for t in range(T)]
        swings = [N / A * p for p in alive]
        if self.delay == 0:
            for t in range(W):
                swings[t] -= m / A * (M / W) * q * passes(t, W - 1, M - 1)
        fall = self.fall_penalty * (1 - q**M)
        return sum(alive) / T + self.temptation / (N * T) * sum(swings) - fall

    def scripted_action(self, state: RobotState) -> Tensor:
        """Obey every visible danger cue, swing otherwise."""
        d, g, _, _ = self._on(state.t.device)
        return torch.where(self._visible_cue(state) == d, g, self.n_actions - 1)

    def light_cone(self) -> Tensor:
        """[T,T,N]: a swing reaches its own step's reward; an action inside the window also those from t + D on.

        Where damage or wobble can be seen, others may react at once: everything later is reached.
        """
        t, k = torch.arange(self.horizon)[:, None], torch.arange(self.horizon)
        if self.wobble > 0 or self.stagger > 0 or self.observe_damage == "all":
            reached = k >= t
        else:
            reached = (k == t) | ((t < self.window) & (k >= t + self.delay))
        return reached[..., None].expand(-1, -1, self.n_agents)

    def optimal_value(self, state: RobotState) -> Tensor:
        """V*(t, no fuse) = (1+kappa)(T-t)/T - kappa/(N T) scheduled units left; V*(t, fuse f) = (1+kappa) f/T - P.

        With kappa = 0 the TD error under V* is -((T-t-D)/T + P) at the culprit and 0 everywhere else: value as
        potential energy.
        """
        dtype, N, T = state.wobble.dtype, self.n_agents, self.horizon
        left = (state.danger >= (state.t * N)[:, None]).sum(-1).to(dtype)
        sound = (1 + self.temptation) * (T - state.t).to(dtype) / T - self.temptation / (N * T) * left
        doomed = (1 + self.temptation) * state.fuse.to(dtype) / T - self.fall_penalty
        value = torch.where(state.fuse < 0, sound, doomed)
        return torch.where(state.alive & (state.t < T), value, torch.zeros_like(value))

    def _scheduled(self, episode: Episode) -> Tensor:
        """[T,B,N] bool: the decisive units of recorded episodes."""
        decisive: Tensor = episode.state.decisive
        return decisive

    def unit_differences(self, episode: Episode, baseline: Tensor) -> Tensor:
        """O8 for any baseline: G - G[a_it <- baseline_i], all other actions frozen at all T steps.

        Only the first error step matters, so the change matters through F' = D + min(first error among the others,
        t if the baseline itself errs at (t,i)), and through the unit's own swing while t < F'.
        """
        T, N, D = self.horizon, self.n_agents, self.delay
        action, dtype = episode.action, episode.state.wobble.dtype
        _, safe, _, _ = self._on(action.device)
        scheduled = self._scheduled(episode)
        errors = scheduled & (action != safe)
        never = T  # an error "at T" never falls
        steps = torch.arange(T, device=action.device)[:, None]
        at = torch.where(errors.any(-1), steps, never)
        first = at.amin(0)
        second = torch.where(at > first, at, never).amin(0)
        alone = errors.sum(-1).gather(0, first.clamp(max=T - 1)[None])[0] == 1
        lone = errors & (alone & (steps == first))[:, :, None]
        without = torch.where(lone, second[None, :, None], first[None, :, None])
        errs_anyway = scheduled & (baseline != safe)
        changed = torch.where(errs_anyway, torch.minimum(without, steps[:, :, None]), without)

        swing = action == self.n_actions - 1
        bonus = self.temptation / (N * T)
        pay = 1.0 / T + bonus * swing.sum(-1).to(dtype)
        paid = torch.cat((torch.zeros_like(pay[:1]), pay.cumsum(0)))  # paid[s] = sum_{u < s} pay_u
        rows = torch.arange(action.shape[1], device=action.device)

        def fall(step: Tensor) -> Tensor:
            return torch.where(step < never, step + D, T)

        def value(fallen: Tensor, row: Tensor) -> Tensor:
            return paid[fallen, row] - self.fall_penalty * (fallen < T).to(dtype)

        fell, falls = fall(first), fall(changed)
        own = bonus * ((baseline == self.n_actions - 1).to(dtype) - swing.to(dtype)) * (steps[:, :, None] < falls)
        return value(fell, rows)[None, :, None] - value(falls, rows[None, :, None]) - own

    def unit_shapley(self, episode: Episode, baseline: Tensor) -> Tensor:
        """Shapley value over (t,i) units, absent units on the safe action.

        With k_u errors by step u, and swing units (t,j) blocked by k_{t-D} errors:
            error at s:  -(1/T) sum_{u >= s+D} 1/k_{u-D} - P/k_T - kappa/(N T) sum_{u >= s+D} swings_u / (k (k+1))
            swing at t:  kappa/(N T) / (k_{t-D} + 1)
        The first two terms are the airport game over errors sorted by falling loss; the rest is the game "the swing
        is present and no blocker is". Raises ValueError for a baseline other than the safe actions, under which
        absent units would err themselves.
        """
        T, N, D = self.horizon, self.n_agents, self.delay
        action, dtype = episode.action, episode.state.wobble.dtype
        _, safe, _, _ = self._on(action.device)
        if not torch.equal(baseline.to(safe), safe):
            raise ValueError(
                f"walking_robot has no closed-form Shapley value for the baseline {baseline.tolist()}; "
                f"it has one for the safe actions {safe.tolist()} (simulate the other)"
            )
        errors = self._scheduled(episode) & (action != safe)
        swing = action == self.n_actions - 1
        if D == 0:
            swing = swing & ~errors  # an error that falls at once blocks its own swing
        k = errors.sum(-1).cumsum(0).to(dtype)
        before = torch.cat((torch.zeros_like(k[:D]), k[: T - D]))  # k_{u-D}
        blocked = before.clamp(min=1)
        bonus = self.temptation / (N * T)
        toll = (1.0 / T + bonus * swing.sum(-1).to(dtype) / (blocked + 1)) / blocked * (before > 0)
        tail = toll.flip(0).cumsum(0).flip(0)
        from_fall = torch.cat((tail[D:], torch.zeros_like(tail[:D])))
        blame = from_fall + self.fall_penalty / k[-1].clamp(min=1)
        return bonus * swing.to(dtype) / (before + 1)[:, :, None] - errors.to(dtype) * blame[:, :, None]

    # --- for people --------------------------------------------------------------------------------------------

    def text(self, state: RobotState) -> str:
        """Row 0 in a few lines: the step, each joint's cue (a danger cue in brackets), its safe action, the fuse."""
        cues = self._visible_cue(state)[0].tolist()
        shown = [f"[{c}]" if c == d else f" {c} " for c, d in zip(cues, self.danger_cue, strict=True)]
        body = "walking" if bool(state.alive[0]) else "fallen"
        return (
            f"step {int(state.t[0])} of {self.horizon}: {body}\n"
            f"joint           {' '.join(f'{i:^3d}' for i in range(self.n_agents))}\n"
            f"its cue         {' '.join(shown)}  ([ ]: its danger cue)\n"
            f"its safe action {' '.join(f'{g:^3d}' for g in self.safe_action)}\n"
            f"{self._fuse_words(state)} (who sees it: {self.observe_damage})"
        )

    def draw(self, state: RobotState) -> NDArray[np.uint8]:
        """Row 0 as a picture: what each joint sees, and the walk with its hidden moments and its hidden fuse."""
        from envs.drawing import ALERT, BAD, CALM, FAINT, HEADER, INK, ODD, QUIET, Canvas, agent_places, agents_height

        width, N = 560, self.n_agents
        alive = bool(state.alive[0])
        real = state.decisive[0].tolist()
        decoy = self._marks(state.decoy[:1], state.t[:1])[0].tolist()
        fills = [ALERT if r else ODD if d else CALM if alive else FAINT for r, d in zip(real, decoy, strict=True)]
        labelled = 2 * 16 if N <= 12 else 0
        track = HEADER + 28 + agents_height(width, N) + labelled + 92
        canvas = Canvas(width, round(track + 76))
        title = "an error at a decisive moment lights the fuse; the fall comes exactly "
        note = f"{N} joints walk {self.horizon} steps; {title}{self.delay} steps later"
        canvas.header("walking_robot", min(int(state.t[0]), self.horizon), self.horizon, note=note)
        top = HEADER + 28
        panic = " (!: panic, as the fall is near)" if self.stagger else ""
        canvas.text(12, top - 14, f"the cue that each joint sees{panic}", 12, INK)
        cues = self._visible_cue(state)[0].tolist()
        below = canvas.agents(top, fills, ["!" if c == self.n_cues else c for c in cues])
        for i, (x, _) in enumerate(agent_places(width, N, below) if labelled else ()):
            canvas.text(x, below + 8, f"joint {i}", 11, QUIET, "mm")
            canvas.text(x, below + 22, f"safe: {self.safe_action[i]}", 10, INK if real[i] else QUIET, "mm")
        legend = [(CALM, "an ordinary cue"), (ALERT, "danger: only the safe action is right")]
        canvas.legend(
            below + labelled + 16, legend + [(ODD, "decoy: looks like danger, is harmless")] * bool(self.decoys)
        )
        self._draw_walk(canvas, state, track)
        canvas.text(12, track + 36, self._fuse_words(state), 13, BAD if int(state.fuse[0]) >= 0 else QUIET)
        marks = [(ALERT, "decisive moment"), (BAD, "fuse"), (QUIET, "the steps that may hold decisive moments")]
        canvas.legend(track + 64, marks)
        return canvas.array()

    def _draw_walk(self, canvas: Any, state: RobotState, y: float) -> None:
        """The walk from step 0 to T at height y: the robot on it, the moments above, the window and the fuse below."""
        from envs.drawing import ALERT, BAD, FAINT, INK, QUIET, blend

        t, fuse, alive = int(state.t[0]), int(state.fuse[0]), bool(state.alive[0])
        left, width = 30.0, canvas.width - 60.0

        def at(step: float) -> float:
            return left + width * min(step, self.horizon) / self.horizon

        canvas.rectangle(left, y, width, 8, fill=FAINT)
        canvas.rectangle(left, y, at(t) - left, 8, fill=blend(FAINT, QUIET, 0.6))
        canvas.line([(at(0), y + 12), (at(self.window), y + 12)], QUIET, 2)
        canvas.text(at(0), y + 24, "0", 11, QUIET, "mm")
        canvas.text(at(self.horizon), y + 24, f"T = {self.horizon}", 11, QUIET, "mm")
        for step in {unit // self.n_agents for unit in state.danger[0].tolist()}:
            canvas.disc(at(step), y + 4, 6, ALERT)
        if fuse >= 0 and alive:
            begin, fall = at(t + fuse - self.delay), at(t + fuse)
            canvas.line([(begin, y + 4), (at(t), y + 4)], blend(FAINT, BAD, 0.45), 4)
            canvas.line([(at(t), y + 4), (fall, y + 4)], BAD, 4)
            canvas.line([(fall, y - 10), (fall, y + 14)], BAD, 3)
            canvas.text(fall, y + 24, f"fall at {t + fuse}", 11, BAD, "mm")
        self._draw_robot(canvas, at(t), y, t, INK if alive else BAD, alive)

    def _draw_robot(self, canvas: Any, x: float, ground: float, t: int, ink: str, upright: bool) -> None:
        """A figure that stands at (x, ground) and swings its legs step by step, or lies there."""
        if not upright:
            canvas.line([(x - 20, ground - 4), (x + 2, ground - 4)], ink, 4)
            canvas.line([(x - 20, ground - 4), (x - 32, ground - 9)], ink, 3)
            canvas.disc(x + 10, ground - 6, 6, ink)
            return
        stride = 8 if t % 2 else 3
        hip, neck = (x, ground - 16.0), (x, ground - 32.0)
        for side in (-1, 1):
            canvas.line([hip, (x + side * stride, ground)], ink, 3)
            canvas.line([(x, ground - 29.0), (x - side * stride, ground - 18)], ink, 3)
        canvas.line([hip, neck], ink, 4)
        canvas.disc(x, ground - 38, 6, ink)

    def _fuse_words(self, state: RobotState) -> str:
        """What only the reader knows."""
        fuse = int(state.fuse[0])
        if not bool(state.alive[0]):
            return "fallen; what follows is not paid"
        if fuse < 0:
            return "the fuse is not lit: no error so far"
        return f"the fuse is lit: the robot falls in {fuse} steps" if fuse else "the fuse is burnt: the robot falls now"
