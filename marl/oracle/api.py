"""One call for every oracle: which agent's which action did it, as far as anyone can know?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from envs.base import Env, HasSafeAction, MayRefuseBranches, default_actions
from marl.oracle.closed import NoClosedForm
from marl.oracle.kinds import KINDS, Answer, Question
from marl.oracle.layers import TooLarge
from marl.oracle.sampled import Progress
from marl.rollout import MEMORY, Simulator, seeds_of, uniform_policy
from marl.types import Policy, Trajectory, Truth

HOWS = ("auto", "closed", "exact", "sampled")


def baseline_of(game: Env[Any], baseline: str | Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """[N]: "default", "safe" (privileged), or the actions themselves. Raises ValueError for anything else."""
    if baseline == "default":
        return default_actions(game, device)
    if baseline == "safe" and isinstance(game, HasSafeAction):
        return torch.tensor(game.safe_action, device=device)
    if isinstance(baseline, str) or len(baseline) != game.n_agents:
        safe = ", 'safe'" if isinstance(game, HasSafeAction) else ""
        raise ValueError(f"baseline={baseline!r} is not allowed; it must be 'default'{safe} or {game.n_agents} actions")
    return torch.tensor(list(baseline), device=device)


def natural_baseline(game: Env[Any]) -> str:
    """The baseline that the truth is told against: the safe actions where a game knows them, else the default."""
    return "safe" if isinstance(game, HasSafeAction) else "default"


def ways(game: Env[Any], kind: str) -> tuple[str, ...]:
    """How this kind of truth can be had of this game, best first, of "closed", "exact", "sampled"; () if not at all.

    "exact" may still turn out too large to enumerate.
    """
    asked = KINDS[kind]
    found = tuple(way for way in asked.ways if way != "closed" or (asked.closed and isinstance(game, asked.closed)))
    if isinstance(game, MayRefuseBranches):
        if game.counterfactuals is None:
            return ()
        if asked.fresh:
            return ("sampled",) if kind == "O4" else ()
    return found


def oracle(
    game: Env[Any],
    policy: Policy | None,
    trajectory: Trajectory,
    kind: str = "O8",
    baseline: str | Sequence[int] | None = None,
    *,
    how: str = "auto",
    replays: int = 32,
    memory: int = MEMORY,
    seed: int = 0,
    progress: Progress | None = None,
) -> Truth:
    """True credit of every (agent, step) of recorded episodes.

    Args:
        policy: the joint policy that played the episodes and reacts in O2 to O6 and "O7 reacting" (None: uniformly
            random).
        kind: one of KINDS.
        baseline: what "instead" means in O1, O7 and O8: "default", "safe", or N actions (None: `natural_baseline`).
        how: "closed" (the game's own formula), "exact" (enumeration, or replays that leave nothing to chance),
            "sampled" (replays), or "auto": the first of these that the game has (`ways`), that fits in memory and that
            takes a few seconds at most.
        replays: M, samples of each value where it is sampled: pairs of replays, or antithetic pairs of orders.
        memory: bytes that the replays in work at a time may take; longer questions are asked in pieces.
        seed: names the fresh noise.
        progress: called between pieces with (done, in all).
    Returns: Truth(values [T,B,N], error, cost in simulator steps, definition).
    Raises: ValueError, one sentence, for an unknown or impossible request; it says what is possible.
    """
    possible = _check(game, kind, how)
    whole = {"replays": (replays, 2), "memory": (memory, 1)}
    for name, (value, least) in whole.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} is not allowed; it must be a whole number, {least} or more")
    named = natural_baseline(game) if baseline is None else baseline
    acting = policy or uniform_policy(game.n_actions)
    simulator = Simulator(game, _seeds(policy, trajectory) if KINDS[kind].reacts else 1, memory=memory)
    if KINDS[kind].reacts:
        _check_policy(acting, trajectory)
    instead = baseline_of(game, named, trajectory.action.device)
    question = Question(kind, simulator, acting, trajectory, instead, replays, seed, how == "auto", progress)
    found = _first_answer(question, possible if how == "auto" else (how,))
    error = torch.zeros_like(found.values) if found.error is None else found.error
    return Truth(found.values, error, int(simulator.steps.sum()), _definition(question, found, named))


def _check(game: Env[Any], kind: str, how: str) -> tuple[str, ...]:
    """The ways there are. Raises ValueError for an unknown kind or how, or where there is no such way."""
    if kind not in KINDS:
        raise ValueError(f"there is no oracle {kind!r}; the oracles are: {', '.join(KINDS)}")
    if how not in HOWS:
        raise ValueError(f"how={how!r} is not allowed; it must be one of {', '.join(HOWS)}")
    possible = ways(game, kind)
    name = type(game).__name__
    if isinstance(game, MayRefuseBranches) and game.counterfactuals is None:
        raise ValueError(f"{kind} needs counterfactuals, which {name} cannot give: {game.why}")
    if not possible:
        there = ", ".join(other for other in KINDS if ways(game, other))
        raise ValueError(
            f"{kind} is a mean over luck drawn anew after t, and {name} keeps its luck to itself, so that only answers "
            f"given the noise are possible: {there}"
        )
    if how != "auto" and how not in possible:
        raise ValueError(f"{kind} of {name} cannot be had with how={how!r}; possible are: auto, {', '.join(possible)}")
    return possible


def _seeds(policy: Policy | None, trajectory: Trajectory) -> int:
    """S. Raises ValueError where the episodes cannot be equally many of each seed."""
    S, B = seeds_of(policy), trajectory.action.shape[1]
    if B % S:
        raise ValueError(f"the policy serves {S} seeds, and {B} episodes are no multiple of that")
    return S


def _check_policy(policy: Policy, trajectory: Trajectory) -> None:
    """Refuse a policy that did not play these episodes: its truth would be about other episodes."""
    with torch.inference_mode():
        gap = (policy(trajectory.obs, trajectory.mask) - trajectory.probs).abs() * trajectory.alive[..., None, None]
    if float(gap.max()) > 1e-3:
        raise ValueError(
            f"the policy did not play this trajectory: its action probabilities differ by up to {float(gap.max()):.3f} "
            "from the recorded ones; give the behaviour policy, exploration included (None is uniformly random)"
        )


def _first_answer(question: Question, hows: Sequence[str]) -> Answer:
    """By the first way that works. Raises the last one's reason."""
    *early, last = hows
    for how in early:
        try:
            return KINDS[question.kind].ways[how](question)
        except (NoClosedForm, TooLarge):
            continue
    return KINDS[question.kind].ways[last](question)


def _definition(question: Question, found: Answer, named: str | Sequence[int]) -> str:
    kind = KINDS[question.kind]
    words = f"{kind.words}; {found.how}"
    if question.outside and "given the noise" not in words:
        words += "; given the noise"
    return f"{words}; baseline {named}" if kind.baseline else words
