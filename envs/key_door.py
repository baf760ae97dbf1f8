"""A key taken at the first step pays at the last one, under the noise of a hundred apples in between: was it worth it?

Rules. N agents play T steps. Step 0: `take` gives the agent a key. Steps 1..T-2: each agent sees an apple with chance
`apple_probability`, and `eat` takes it for a value drawn evenly from the two of `apple_values` (elsewhere, or without
an apple, `eat` and `take` do nothing). Step T-1: the door opens by itself if `keys_needed` agents or more hold a key,
and the treasure is paid. The team reward of a step is

    r = (23/T) (mean over agents of the apples' values eaten + treasure 1[the door opens]),

so the apples' total stays as large on every length T, and the door pays R = 23 treasure / T.

Knobs (unit, allowed):
    n_agents      agents N, 1 or more               keys_needed        keys m, 1..N
    horizon       steps T, 2 or more                apple_probability  a chance, 0..1
    apple_values  two numbers, 0 or more            treasure           0 or more, in the apples' unit
    observe_key   agents and critic see the keys (False hides them from both: who could see a key would learn its
                  worth at step 1, and there would be no delay left). The door needs no action, so that nothing which
                  can be earned depends on seeing the key.

Isolates: temporal credit with noise in between; the action and its pay are T - 1 steps apart. At T = 103 and N = 1
the treasure is .049 standard deviations of the apples' return (`treasure_in_deviations`), and this falls like
1/sqrt(T). Harder with T and with a smaller treasure; with N and keys_needed it becomes a joint cause as well (more
keys than needed: none of them is pivotal; fewer: none is worth anything).

Truth, keys being the number taken, own apple value v: difference (23/(T N)) v at an eaten apple, R 1[keys = m] at a
key under the default `wait`; Shapley the same at apples, R/keys at each key if keys >= m. `unit_differences` holds for
any baseline, `unit_shapley` where all agents' baselines take the key or none does.

Source: the key-to-door task of Hung et al., "Optimizing agent behavior over long time scales by transporting value"
(2019), in the form of Meulemans et al., "Would I have gotten that reward? Long-term credit assignment by
counterfactual contribution analysis" (2023), here for N agents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import comb
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.base import Env, Episode, Step, real, refuse_knob, whole
from envs.noise import Atoms, atoms

WAIT, EAT, TAKE = 0, 1, 2
SCALE = 23.0  # r is SCALE / T times what is eaten and found
LANES = 10  # agents that a picture shows


class KeyDoorState(NamedTuple):
    """Where the team is on its way, who holds a key, and which apples hang in reach."""

    t: Tensor  # [B] int64, the step about to be taken
    key: Tensor  # [B,N] bool
    apple: Tensor  # [B,N] bool: in sight now; what it is worth shows when it is eaten
    eaten: Tensor  # [B,N] the values eaten so far; its dtype is the game's


@dataclass(frozen=True)
class KeyDoor(Env[KeyDoorState]):
    """N agents may take a key at step 0; apples distract for T - 2 steps; at the end enough keys open a treasure.

    Knobs, rules and the known truth stand in the module's text.
    """

    n_agents: int = 1
    keys_needed: int = 1
    horizon: int = 103
    apple_probability: float = 0.8
    apple_values: tuple[float, float] = (0.1, 0.9)
    treasure: float = 0.2
    observe_key: bool = False

    def __post_init__(self) -> None:
        """Raise KnobError, one sentence, for a knob outside its range."""
        whole(self, 1, None, "n_agents")
        whole(self, 1, self.n_agents, "keys_needed")
        whole(self, 2, None, "horizon")
        real(self, 0, 1, "apple_probability")
        real(self, 0, None, "treasure")
        values = self.apple_values
        if not isinstance(values, list | tuple) or len(values) != 2 or not all(_is_worth(v) for v in values):
            refuse_knob(self, "apple_values", "two numbers, 0 or more, such as (0.1, 0.9)")
        object.__setattr__(self, "apple_values", (values[0], values[1]))  # a list would make the game unhashable
        if not isinstance(self.observe_key, bool):
            refuse_knob(self, "observe_key", "True or False")

    # --- sizes -------------------------------------------------------------------------------------------------

    @property
    def n_actions(self) -> int:
        return 3

    @property
    def obs_size(self) -> int:
        return 5 + self.observe_key

    @property
    def critic_size(self) -> int:
        return 4 + self.n_agents * (1 + self.observe_key)

    @property
    def reset_noise_size(self) -> int:
        return 0

    @property
    def step_noise_size(self) -> int:
        return sum(self._luck)

    @property
    def _luck(self) -> tuple[int, int]:
        """How many numbers of a step's noise draw the values of the apples in sight, and the next apples."""
        first, second = self.apple_values
        apples = self.horizon > 2 and self.apple_probability > 0
        return self.n_agents * (apples and first != second), self.n_agents * (apples and self.apple_probability < 1)

    @property
    def default_action(self) -> int:
        return WAIT

    @property
    def bounds(self) -> tuple[float, float]:
        """Flags and t/T."""
        return 0.0, 1.0

    @property
    def exogenous(self) -> tuple[str, ...]:
        """The clock and the apples in sight."""
        return ("t", "apple")

    @property
    def bookkeeping(self) -> tuple[str, ...]:
        """What was eaten matters to pictures only."""
        return ("eaten",)

    # --- rules -------------------------------------------------------------------------------------------------

    def reset(self, noise: Tensor) -> KeyDoorState:
        """In the key room: no key yet, no apple, no luck."""
        shape = len(noise), self.n_agents
        nothing = torch.zeros(shape, dtype=torch.bool, device=noise.device)
        t = torch.zeros(len(noise), dtype=torch.int64, device=noise.device)
        return KeyDoorState(t, nothing, nothing.clone(), noise.new_zeros(shape))

    def step(self, state: KeyDoorState, action: Tensor, noise: Tensor) -> Step[KeyDoorState]:
        """Take a key, eat an apple, or see the door open; then the next apples come into sight."""
        own = self._eats(state, action, noise)
        reward = self._pay(own.sum(-1), self._opens(state, state.key.sum(-1)))
        key = state.key | ((action == TAKE) & (state.t == 0)[:, None])
        t = state.t + 1
        among_apples = t <= self.horizon - 2
        apple = self._comes_next(noise) & among_apples[:, None]
        done = torch.zeros_like(among_apples)
        return Step(KeyDoorState(t, key, apple, state.eaten + own), reward, done)

    def _worth(self, noise: Tensor) -> Tensor:
        """[...,N]: what each agent's apple turns out to be worth, from the noise of the step that eats it."""
        first, second = self.apple_values
        drawn, _ = self._luck
        if not drawn:
            return noise.new_full((*noise.shape[:-1], self.n_agents), first)
        return torch.where(noise[..., :drawn] < 0.5, noise.new_tensor(first), noise.new_tensor(second))

    def _comes_next(self, noise: Tensor) -> Tensor:
        """[B,N] bool: an apple, if there are any at the next step."""
        before, drawn = self._luck
        if not drawn:
            certain = noise.new_full((len(noise), self.n_agents), self.apple_probability)
            return certain > 0
        return noise[:, before:] < self.apple_probability

    def _eats(self, state: KeyDoorState, action: Tensor, noise: Tensor) -> Tensor:
        """[B,N]: value eaten by each agent."""
        return self._worth(noise) * (state.apple & (action == EAT))

    def _opens(self, state: KeyDoorState, keys: Tensor) -> Tensor:
        """[B] bool: the door opens at this step, `keys` [B] being held."""
        return (state.t == self.horizon - 1) & (keys >= self.keys_needed)

    def _pay(self, eaten: Tensor, opens: Tensor) -> Tensor:
        """[B]: r, given what all agents eat together and whether the door opens."""
        scale = SCALE / self.horizon
        return eaten * (scale / self.n_agents) + opens.to(eaten.dtype) * (scale * self.treasure)

    def observe(self, state: KeyDoorState) -> Tensor:
        """Phase (key room, apples, door; one-hot), t/T, apple in sight, own key if observe_key."""
        each = [state.apple, state.key] if self.observe_key else [state.apple]
        own = torch.stack(each, -1).to(state.eaten.dtype)
        return torch.cat((self._clock(state)[:, None, :].expand(-1, self.n_agents, -1), own), -1)

    def critic_view(self, state: KeyDoorState) -> Tensor:
        """Phase, t/T, everyone's apple in sight, everyone's key if observe_key."""
        everyone = [state.apple, state.key] if self.observe_key else [state.apple]
        return torch.cat((self._clock(state), *(x.to(state.eaten.dtype) for x in everyone)), -1)

    def _clock(self, state: KeyDoorState) -> Tensor:
        """[B,4]: phase and t/T."""
        t, last = state.t, self.horizon - 1
        phase = torch.stack((t == 0, (t > 0) & (t < last), t >= last), -1).to(state.eaten.dtype)
        return torch.cat((phase, (t.to(phase.dtype) / self.horizon)[:, None]), -1)

    def reward_with(self, state: KeyDoorState, action: Tensor, noise: Tensor, copies: Tensor) -> Tensor:
        """[B]: r with copies [B,N] of each agent, what they eat and the keys they hold; 1/N and keys_needed stay."""
        own, count = self._eats(state, action, noise), copies.to(state.eaten.dtype)
        return self._pay((own * count).sum(-1), self._opens(state, (state.key * count).sum(-1)))

    def local_rewards(self, state: KeyDoorState, action: Tensor, noise: Tensor) -> Tensor:
        """[B,N]: the own apple, (23/T) v/N, and an equal share of the treasure for each key; they sum to r."""
        own, keys = self._eats(state, action, noise), state.key.sum(-1)
        finders = (state.key & self._opens(state, keys)[:, None]).to(own.dtype)
        share = finders / keys.clamp(min=1)[:, None]
        return SCALE / self.horizon * (own / self.n_agents + share * self.treasure)

    # --- all the luck there is ---------------------------------------------------------------------------------

    def reset_atoms(self) -> Atoms:
        """A reset draws nothing."""
        return atoms()

    def step_atoms(self) -> Atoms:
        """For each agent: which value the apple in hand has, and whether another comes into sight, 4^N cases.

        Raises ValueError where these are too many to list.
        """
        worth, sight = self._luck
        return atoms(*[[0.5]] * worth, *[[self.apple_probability]] * sight)

    # --- what is known in closed form --------------------------------------------------------------------------

    @property
    def apple_mean(self) -> float:
        """Expected value eaten in one step by an agent that eats, p (v_1 + v_2) / 2."""
        return self.apple_probability * sum(self.apple_values) / 2

    @property
    def treasure_in_deviations(self) -> float:
        """R in standard deviations of the return from apples when all always eat: how loud the key's signal is.

        treasure / sqrt((T - 2) s^2 / N), s^2 = p (v_1^2 + v_2^2)/2 - (p (v_1 + v_2)/2)^2; infinite without noise.
        """
        second = self.apple_probability * sum(v * v for v in self.apple_values) / 2
        variance = (self.horizon - 2) * max(second - self.apple_mean**2, 0.0) / self.n_agents
        return self.treasure / math.sqrt(variance) if variance > 0 else math.inf

    @property
    def optimal_return(self) -> float:
        """(23/T) ((T - 2) p (v_1 + v_2)/2 + treasure): enough keys, and every apple. Closed form; agents can do it."""
        return SCALE / self.horizon * ((self.horizon - 2) * self.apple_mean + self.treasure)

    @property
    def random_return(self) -> float:
        """A third of the apples, and the treasure with chance P(Binomial(N, 1/3) >= m). Closed form."""
        N = self.n_agents
        enough = sum(comb(N, n) << (N - n) for n in range(self.keys_needed, N + 1)) / 3**N
        return SCALE / self.horizon * ((self.horizon - 2) * self.apple_mean / 3 + self.treasure * enough)

    def optimal_value(self, state: KeyDoorState) -> Tensor:
        """[B]: (23/T) (half of v_1 + v_2 for each apple in sight, p times it for those to come; the treasure).

        Before step 0 the keys can still be taken; after it they are what they are.
        """
        dtype, T = state.eaten.dtype, self.horizon
        worth = sum(self.apple_values) / 2
        to_come = (T - 2 - state.t).clamp(min=0).to(dtype) * self.apple_mean
        enough = (state.t == 0) | (state.key.sum(-1) >= self.keys_needed)
        treasure = (enough & (state.t < T)).to(dtype) * self.treasure
        return SCALE / T * (state.apple.sum(-1).to(dtype) / self.n_agents * worth + to_come + treasure)

    def scripted_action(self, state: KeyDoorState) -> Tensor:
        """[B,N]: the first m agents take a key, so that each is pivotal; everyone eats every apple."""
        asked = torch.arange(self.n_agents, device=state.t.device) < self.keys_needed
        fetch = (state.t == 0)[:, None] & asked
        return torch.where(fetch, TAKE, torch.where(state.apple, EAT, WAIT))

    def light_cone(self) -> Tensor:
        """[T,T,N]: step 0 reaches the door's pay alone, an apple's step its own, the door's step none.

        Where keys can be seen, what follows may be a reaction to one: then step 0 reaches everything later.
        """
        T = self.horizon
        t, k = torch.arange(T)[:, None], torch.arange(T)
        by_key = (t == 0) & ((k > 0) if self.observe_key else (k == T - 1))
        by_apple = (t == k) & (t > 0) & (t < T - 1)
        return (by_key | by_apple)[..., None].expand(-1, -1, self.n_agents)

    def unit_differences(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[T,B,N], any baseline b. With keys K taken at step 0:

        apples  (23/(T N)) v_it (1[a = eat] - 1[b = eat]);
        step 0  R (1[K >= m] - 1[K - 1[a = take] + 1[b = take] >= m]), which is R 1[K = m] at a key if b does not take.
        """
        values = self._apple_differences(episode, baseline)
        took = (episode.action[0] == TAKE).long()
        keys = took.sum(-1, keepdim=True)
        instead = (baseline.to(took.device) == TAKE).long()
        opens, would_open = keys >= self.keys_needed, keys - took + instead >= self.keys_needed
        prize = SCALE / self.horizon * self.treasure
        values[0] = prize * (opens.to(values.dtype) - would_open.to(values.dtype))
        return values

    def unit_shapley(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[T,B,N]: apples add up, so each has its difference; who changed the keys shares what this changed equally.

        With K keys taken, c by the baseline (none or all), the agents at step 0 whose action takes where the baseline
        does not, or the other way round, are alike, and each gets R (1[K >= m] - 1[c >= m]) / |K - c|: R/K if K >= m
        against `wait`, -R/(N - K) if K < m against `take`.

        Raises:
            ValueError: a baseline that takes the key for some agents only.
        """
        base = baseline.to(episode.action.device) == TAKE
        if bool(base.any()) and not bool(base.all()):
            raise ValueError(
                f"baseline={baseline.tolist()} has no closed Shapley value in key_door; take ({TAKE}) must be the "
                "baseline of every agent or of none"
            )
        values = self._apple_differences(episode, baseline)
        took = episode.action[0] == TAKE
        keys, before = took.sum(-1, keepdim=True), base.sum()
        changed = (keys - before).abs().clamp(min=1).to(values.dtype)
        gain = (keys >= self.keys_needed).to(values.dtype) - (before >= self.keys_needed).to(values.dtype)
        values[0] = SCALE / self.horizon * self.treasure * (took != base).to(values.dtype) * gain / changed
        return values

    def _apple_differences(self, episode: Episode, baseline: Tensor) -> Tensor:
        """[T,B,N]: what the own apple pays now less what the baseline would have taken of it (0 at step 0)."""
        state, action = episode.state, episode.action
        dtype = state.eaten.dtype
        now = (action == EAT).to(dtype) - (baseline.to(action.device) == EAT).to(dtype)
        return SCALE / (self.horizon * self.n_agents) * self._worth(episode.noise).to(dtype) * state.apple * now

    # --- for people --------------------------------------------------------------------------------------------

    def _return_so_far(self, state: KeyDoorState) -> float:
        """Of row 0, read off what was eaten and whether the door has paid."""
        found = self.treasure if self._door_words(state)[0] == "open" else 0.0
        return SCALE / self.horizon * (float(state.eaten[0].mean()) + found)

    def _door_words(self, state: KeyDoorState) -> tuple[str, str]:
        """("open", "shut" or "", what row 0's door does, in words)."""
        keys, m, left = int(state.key[0].sum()), self.keys_needed, self.horizon - 1 - int(state.t[0])
        held = f"keys held {keys}, needed {m}"
        pays = f"{SCALE / self.horizon * self.treasure:.3g}"
        if left < 0:
            return (
                ("open", f"{held}: the door opened and paid {pays}")
                if keys >= m
                else ("shut", f"{held}: it stayed shut")
            )
        when = f"in {left} steps" if left else "now"
        if int(state.t[0]) == 0:
            return "", f"take a key now; with {m} the door opens {when} and pays {pays}"
        seen = "" if self.observe_key else " (hidden from the agents)"
        return "", f"{held}{seen}: {when} the door {'opens' if keys >= m else 'stays shut'}"

    def text(self, state: KeyDoorState) -> str:
        """Row 0: the step, who holds a key and sees an apple, what was eaten, and the door."""
        keys, apples = state.key[0].tolist(), state.apple[0].tolist()
        rows = [
            f"agent {i}: {'key' if keys[i] else '   '} {'apple' if apples[i] else '     '} eaten {worth:.1f}"
            for i, worth in enumerate(state.eaten[0, :LANES].tolist())
        ]
        more = [f"... and {self.n_agents - LANES} more"] if self.n_agents > LANES else []
        head = f"step {int(state.t[0])} of {self.horizon}, return {self._return_so_far(state):.4f}"
        return "\n".join([head, *rows, *more, self._door_words(state)[1]])

    def draw(self, state: KeyDoorState) -> NDArray[np.uint8]:
        """Row 0 as corridors from the key room to the door, one an agent, with keys, apples and what was eaten."""
        from envs.drawing import ALERT, BAD, FAINT, GOOD, HEADER, INK, QUIET, Canvas

        lanes, room = min(self.n_agents, LANES), 84.0
        canvas = Canvas(560, HEADER + 54 + 46 * lanes + 36)
        shown = f", {LANES} of them drawn" if self.n_agents > LANES else ""
        note = f"agents: {self.n_agents}{shown}; keys needed: {self.keys_needed}; treasure: {self.treasure}"
        t = min(int(state.t[0]), self.horizon)
        canvas.header("key_door", t, self.horizon, self._return_so_far(state), note)
        outcome, words = self._door_words(state)
        top, left, right = HEADER + 34.0, 24 + room, canvas.width - 24 - room
        tall, inside = 46.0 * lanes, (12 + room / 2, canvas.width - 6 - room / 2)
        for x, name in ((inside[0], "key room"), ((left + right) / 2, "apples"), (inside[1], "door")):
            canvas.text(x, top - 10, name, 12, QUIET, "ms")
        canvas.rectangle(12, top, room, tall, outline=ALERT if t == 0 else FAINT)
        door = {"open": GOOD, "shut": BAD, "": ALERT if t == self.horizon - 1 else FAINT}[outcome]
        canvas.rectangle(right + 12, top, room, tall, outline=door)
        if outcome:
            canvas.rectangle(right + 12, top, 12, tall, door)
        walked = left + 36 + (right - left - 72) * (t - 0.5) / max(self.horizon - 2, 1)
        x = inside[0] if t == 0 else inside[1] if t >= self.horizon - 1 else walked
        for i in range(lanes):
            self._draw_lane(canvas, state, i, top + 46 * i + 23, x, (left, right))
        canvas.text(12, top + tall + 14, words, 12, INK if outcome else QUIET)
        return canvas.array()

    def _draw_lane(
        self, canvas: Any, state: KeyDoorState, i: int, y: float, x: float, ends: tuple[float, float]
    ) -> None:
        """One agent: its corridor, what it has eaten below it, itself with its key, and the apple it sees."""
        from envs.drawing import ALERT, CALM, FAINT, GOOD, INK, QUIET, on

        left, right = ends
        usual = max((self.horizon - 2) * self.apple_mean, 1e-9)  # a full bar: every apple eaten, at its mean value
        eaten = float(state.eaten[0, i])
        canvas.rectangle(left, y + 15, right - left, 4, FAINT)
        if eaten > 0:
            canvas.rectangle(left, y + 15, min(eaten / usual, 1.0) * (right - left), 4, GOOD)
        canvas.line([(left, y), (right, y)], FAINT)
        canvas.text(right - 2, y + 12, f"eaten {eaten:.1f}", 10, QUIET, "rs")
        if bool(state.apple[0, i]):
            canvas.disc(x + 25, y, 7, GOOD)
            canvas.line([(x + 25, y - 7), (x + 28, y - 12)], INK)
        canvas.disc(x, y, 12, CALM)
        canvas.text(x, y, i, 12, on(CALM), "mm")
        if bool(state.key[0, i]):
            canvas.disc(x - 25, y, 5, ALERT)
            canvas.line([(x - 25, y), (x - 11, y)], ALERT, 3)
            canvas.line([(x - 15, y), (x - 15, y + 6)], ALERT, 3)


def _is_worth(value: object) -> bool:
    """A finite number, 0 or more."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
