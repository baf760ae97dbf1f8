"""One episode, step by step, for people: what happened, what it paid, and each agent's credit for what it did.

    python -m envs play walking_robot --policy random --seed 2 --gif walk.gif n_agents=4 horizon=40 delay=12

The episode is the one that the game's PettingZoo face shows after `reset(seed=s)`. Random actions have noise of their
own, so both policies meet the same luck.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.base import (
    Env,
    HasActionMask,
    HasSafeAction,
    HasScriptedPolicy,
    HasUnitDifferences,
    default_actions,
    map_state,
    repeat,
    stack,
)
from envs.noise import uniform
from envs.parallel import episode_noise, snake_case

POLICIES = ("random", "optimal")
MOST_BRANCHES = 1 << 14  # units T * N up to which credit is simulated where no closed form is known


class Played(NamedTuple):
    """One recorded episode, time first; also the `Episode` that closed forms read."""

    state: Any  # [T, 1, ...] the state each step began in
    action: Tensor  # [T, 1, N] int64, those after an early end included: a plan is defined at all T steps
    noise: Tensor  # [T, 1, step_noise_size]
    reward: Tensor  # [T, 1] team reward, 0 after an early end
    alive: Tensor  # [T, 1] bool: the episode had not ended before this step
    end: Any  # [1, ...] the state in which the episode ended

    @property
    def steps(self) -> int:
        """How many steps were lived, 1..T."""
        return int(self.alive.sum())


class Credit(NamedTuple):
    """What each action was worth: G minus G with that one action replaced, every other action and the luck kept."""

    value: Tensor  # [T, N]
    instead: str  # in words: what replaces an action


class Caption(NamedTuple):
    """What stands under one frame."""

    words: str  # the step and its reward, or the end
    total: str  # the return
    actions: tuple[int, ...]  # one an agent; empty at the end, as nobody acts
    credit: tuple[float, ...]  # of these actions, at the end of each agent's most telling one; empty where unknown
    scale: float  # the largest |credit| of the episode, the same in all frames
    instead: str  # what credit compares an action with
    at: tuple[int, ...] = ()  # at the end: the step of each agent's action with the largest |credit|


# --- what happened -------------------------------------------------------------------------------------------------


def play(game: Env[Any], policy: str = "random", seed: int = 0) -> Played:
    """Episode 0 of a seed, as the PettingZoo face would show it.

    Args:
        policy: "random" (uniform over legal actions) or "optimal" (the game's `scripted_action`).
        seed: 0..2**63-1.
    Raises:
        ValueError: an unknown policy, a game without a scripted one, or a seed outside its range.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r} is not allowed; it must be a whole number in 0..2**63-1")
    act = _actor(game, policy, seed)
    first, later = episode_noise(game, seed, 0)
    state = end = game.reset(first)
    alive = torch.ones(1, dtype=torch.bool)
    records = []
    for t in range(game.horizon):
        action = act(state, t)
        outcome = game.step(state, action, later[:, t])
        records.append((state, action, outcome.reward, alive))
        state = outcome.state
        end = state if bool(alive) else end
        alive = alive & ~outcome.done
    states, actions, rewards, lived = zip(*records, strict=True)
    noise = later.transpose(0, 1)
    return Played(stack(states), torch.stack(actions), noise, torch.stack(rewards), torch.stack(lived), end)


def _actor(game: Env[Any], policy: str, seed: int) -> Callable[[Any, int], Tensor]:
    """(state, t) -> [1,N] actions."""
    if policy not in POLICIES:
        raise ValueError(f"there is no policy {policy!r}; the policies are {', '.join(POLICIES)}")
    if policy == "optimal":
        if not isinstance(game, HasScriptedPolicy):
            raise ValueError(f"{name_of(game)} has no scripted policy, so no optimal one; use --policy random")
        scripted = game.scripted_action
        return lambda state, t: scripted(state)
    luck = uniform("play/policy", seed, 0, (game.horizon, game.n_agents))[0]

    def randomly(state: Any, t: int) -> Tensor:
        legal = torch.ones(1, game.n_agents, game.n_actions, dtype=torch.bool)
        if isinstance(game, HasActionMask):
            legal = game.action_mask(state)
        rank = legal.cumsum(-1)  # the k-th legal action, k = floor(u * how many there are)
        return (rank <= (luck[t] * rank[..., -1]).long()[..., None]).sum(-1)

    return randomly


def name_of(game: Env[Any]) -> str:
    """'walking_robot'."""
    return snake_case(type(game).__name__)


# --- who did it ----------------------------------------------------------------------------------------------------


def credit_of(game: Env[Any], played: Played) -> Credit | None:
    """The frozen unit difference of every action, G - G[a_it <- b_i]: closed form where there is one, else simulated.

    b is the safe action where the game knows one (a default action may itself be wrong), else the default action.
    None where neither is possible: more than 2**14 units without a closed form, or actions that may be illegal.
    """
    baseline, instead = default_actions(game), "default action"
    if isinstance(game, HasSafeAction):
        baseline, instead = torch.tensor(game.safe_action), "safe action"
    if isinstance(game, HasUnitDifferences):
        try:
            return Credit(game.unit_differences(played, baseline)[:, 0], instead)
        except ValueError:  # no closed form for this baseline
            pass
    if isinstance(game, HasActionMask) or played.action.numel() > MOST_BRANCHES:
        return None
    return Credit(simulated_differences(game, played, baseline), instead)


def simulated_differences(game: Env[Any], played: Played, baseline: Tensor) -> Tensor:
    """[T,N]: the definition itself, one branch a unit: same luck, same plan but for one action; baseline [N]."""
    steps, _, n = played.action.shape
    unit = torch.arange(steps * n)
    plan = played.action.repeat(1, steps * n, 1)
    plan[unit // n, unit, unit % n] = baseline[unit % n]
    state = repeat(map_state(lambda field: field[0], played.state), steps * n)
    earned = torch.zeros(steps * n, dtype=torch.float64)
    for t in range(steps):
        outcome = game.step(state, plan[t], played.noise[t].expand(steps * n, -1))
        state, earned = outcome.state, earned + outcome.reward.double()
    return (played.reward.double().sum() - earned).reshape(steps, n)


# --- what stands under the frames ----------------------------------------------------------------------------------


def frames(game: Env[Any], played: Played) -> list[tuple[Any, Caption]]:
    """(state [1, ...], caption) of each step lived, the state before it acts, then of the end: steps + 1 of them."""
    credit, steps, total = credit_of(game, played), played.steps, 0.0
    lived = credit.value[:steps] if credit else torch.zeros(steps, 0)
    blank = Caption("", "", (), (), float(lived.abs().max()) if credit else 0.0, credit.instead if credit else "")
    shown = []
    for t in range(steps):
        reward = float(played.reward[t, 0])
        total += reward
        caption = blank._replace(
            words=f"step {t} pays {reward:+.4g}",
            total=f"return after it {total:.4g}",
            actions=tuple(played.action[t, 0].tolist()),
            credit=tuple(lived[t].tolist()),
        )
        shown.append((map_state(lambda field, t=t: field[t], played.state), caption))
    ended = "the end" if steps == game.horizon else f"ended early, after {steps} of {game.horizon} steps"
    last = blank._replace(words=ended, total=f"return {total:.4g}")
    if steps == 1:  # the only actions, still to be seen beside what they did
        last = last._replace(actions=shown[0][1].actions, credit=shown[0][1].credit)
    elif credit:  # unit differences do not add up over steps, so the most telling one stands for the episode
        at = lived.abs().argmax(0)
        last = last._replace(credit=tuple(lived.gather(0, at[None])[0].tolist()), at=tuple(at.tolist()))
    return [*shown, (played.end, last)]


def numbers(values: Sequence[float], scale: float) -> tuple[list[str], str]:
    """Signed numbers in few characters, and the power of ten they are in ('' for none): three digits at `scale`.

    What is 0 but for rounding (a millionth of the scale) is written '0': that action changed nothing.
    """
    power = 0 if scale <= 0 or 0.01 <= scale < 10000 else 3 * math.floor(math.log10(scale) / 3)
    unit = 10.0**power
    digits = 3 if scale < unit else max(0, 2 - math.floor(math.log10(scale / unit)))
    words = ["0" if abs(value) <= 1e-6 * scale else f"{value / unit:+.{digits}f}" for value in values]
    return [word.replace("0.", ".", 1) if word[1:3] == "0." else word for word in words], f"1e{power}" if power else ""


def describe(game: Any, state: Any, caption: Caption) -> str:
    """One frame as text: the game's own lines, then the caption's."""
    words, unit = numbers(caption.credit, caption.scale)
    rows = {"agent": [str(i) for i in range(game.n_agents)]}
    if caption.actions:
        rows["action"] = [str(action) for action in caption.actions]
    if caption.at:
        rows["at step"] = [str(t) for t in caption.at]
    if caption.credit:
        rows[f"{'largest' if caption.at else 'credit'} {unit}".rstrip()] = words
    width = max(len(word) for row in rows.values() for word in row)
    against = f" (credit: gain in return over its {caption.instead})" if caption.credit else ""
    lines = [game.text(state).rstrip(), f"{caption.words}; {caption.total}{against}"]
    per_line = max(1, 80 // (width + 1))
    for start in range(0, game.n_agents, per_line):
        for title, row in rows.items():
            lines.append(f"  {title:<12}" + " ".join(f"{word:>{width}}" for word in row[start : start + per_line]))
    return "\n".join(lines)
