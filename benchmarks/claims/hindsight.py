"""Hindsight on two of its toys: an effect that comes late under noise, and a bandit whose arms mix.

As published: the tasks with their n, sigma and epsilon, and the orderings. Simplified: the policy is a softmax of one
number an action and observation, but learns from batches of 8 episodes by Adam (step .01 for every method, the
default); h is a small network in place of a table; the state form takes the immediate reward as sampled, where the
authors learn a model of it; the policy gradient's baseline is the batch's mean. The third toy, the shortcut, is not
here.
"""

from __future__ import annotations

from typing import Any

from benchmarks.claims.base import Below, Entry, Number, ahead
from benchmarks.claims.decisions import LearningCurve
from benchmarks.claims.variants import HCA_RETURN, HCA_STATE, KNOWS_RETURN, KNOWS_STATE, PG, THREE_STEPS

HARUTYUNYAN = "Harutyunyan et al. 2019, HCA, section 5"
UPDATES = 150
BOTH = (HCA_RETURN, HCA_STATE)


def curves(claim: str, game: str, knobs: dict[str, Any], better: tuple[str, ...], *more: Number) -> Entry:
    """Hindsight above the policy gradient in the chance of the right action, mean over UPDATES updates."""
    pairs = tuple((name, PG) for name in better)
    numbers = (*(ahead(name, PG) for name in better), *more)
    where = f"benchmarks.claims.hindsight_toys:{game}"
    return Entry(claim, HARUTYUNYAN, where, knobs, LearningCurve(pairs, UPDATES), numbers)


ENTRIES: dict[str, Entry] = {
    "delayed-effect": curves(
        "delayed effect, n = 3, noise of deviation 2: hindsight learns faster than the Monte Carlo policy gradient",
        "DelayedEffect",
        {"way": 3, "sigma": 2.0},
        BOTH,
    ),
    "delayed-bootstrap": Entry(
        "delayed effect, n = 5, no noise: who bootstraps after 3 steps, where all looks alike, learns nothing",
        HARUTYUNYAN,
        "benchmarks.claims.hindsight_toys:DelayedEffect",
        {"way": 5, "sigma": 0.0},
        LearningCurve(((HCA_STATE, THREE_STEPS), (HCA_RETURN, THREE_STEPS)), UPDATES),
        (
            Number(f"{THREE_STEPS} at last", "no learning", Below(0.6)),
            ahead(HCA_RETURN, THREE_STEPS, 0.1),
            ahead(HCA_STATE, THREE_STEPS, 0.1),
        ),
    ),
    "ambiguous-bandit": curves(
        "ambiguous bandit, epsilon .1, states observed: both forms of hindsight beat the policy gradient",
        "AmbiguousBandit",
        {},
        BOTH,
    ),
    "ambiguous-exact": curves(
        "ambiguous bandit, states observed: the same with exact hindsight distributions in place of learned ones",
        "AmbiguousBandit",
        {},
        (KNOWS_RETURN, KNOWS_STATE),
    ),
    "ambiguous-hidden": curves(
        "ambiguous bandit, states hidden: hindsight from the return still beats the policy gradient",
        "AmbiguousBandit",
        {"hidden": True},
        (HCA_RETURN,),
    ),
}
