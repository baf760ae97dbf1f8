"""What a claim is: a number that a source reports, how ours is measured, and when the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.methods import METHODS
from envs.base import Env
from marl.experiment import Experiment, Method, Stage, final_measure, learn

Found = dict[str, NDArray[np.float64]]  # name of a number -> one value a seed


# When is a number reproduced? Rules look at the interval, never at the middle alone.


class Rule(Protocol):
    """What the interval of a number must do."""

    def verdict(self, low: float, high: float) -> str:
        """yes, no, or unclear where the interval lies on both sides."""

    @property
    def text(self) -> str:
        """For the table."""


@dataclass(frozen=True)
class Near:
    """Within `tolerance` of a published value."""

    value: float
    tolerance: float

    def verdict(self, low: float, high: float) -> str:
        bottom, top = self.value - self.tolerance, self.value + self.tolerance
        return _verdict(bottom <= low and high <= top, high < bottom or low > top)

    @property
    def text(self) -> str:
        return f"{self.value:g} \N{PLUS-MINUS SIGN} {self.tolerance:g}"


@dataclass(frozen=True)
class Above:
    """More than a bound."""

    bound: float

    def verdict(self, low: float, high: float) -> str:
        return _verdict(low > self.bound, high <= self.bound)

    @property
    def text(self) -> str:
        return f"> {self.bound:g}"


@dataclass(frozen=True)
class Below:
    """Less than a bound."""

    bound: float

    def verdict(self, low: float, high: float) -> str:
        return _verdict(high < self.bound, low >= self.bound)

    @property
    def text(self) -> str:
        return f"< {self.bound:g}"


def _verdict(yes: bool, no: bool) -> str:
    return "yes" if yes else "no" if no else "unclear"


# How a number is measured: frozen values, so that a stored cell says what it holds.


class Measure(Protocol):
    """Numbers of one game, one value a seed, or the one value of what knows no luck."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    exact: ClassVar[bool]

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found: ...


def trained(game: Env[Any], method: Method, seeds: Sequence[int], updates: int) -> tuple[Experiment, Stage]:
    """All seeds after so many updates, nothing judged on the way."""
    steps = updates * game.horizon * method.learner.episodes
    experiment = Experiment(game, method, list(seeds), steps, points=1, judge=False)
    *_, last = learn(experiment)
    return experiment, last


def final(game: Env[Any], name: str, seeds: Sequence[int], updates: int, greedy: bool = False) -> NDArray[np.float64]:
    """[S] score after training, the return where no score is known; of the sampled or the greedy policy."""
    found = final_measure(*_ended(trained(game, METHODS[name], seeds, updates)))
    kind = "greedy_" * greedy
    value = found.get(f"final_{kind}score", found[f"final_{kind}return"])
    return np.asarray(value, dtype=np.float64)


def _ended(pair: tuple[Experiment, Stage]) -> tuple[Experiment, Any]:
    return pair[0], pair[1].actor


@dataclass(frozen=True)
class Compared:
    """Final scores (returns where a game has no score) of methods on equal budgets and seeds, and their differences.

    `pairs` are (better, worse); each gives the number "better - worse".
    """

    exact: ClassVar[bool] = False
    pairs: tuple[tuple[str, str], ...]
    updates: int

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        names = dict.fromkeys(name for pair in self.pairs for name in pair)
        score = {name: final(game, name, seeds, self.updates) for name in names}
        return score | {f"{a} - {b}": score[a] - score[b] for a, b in self.pairs}


# One row of the list.


class Number(NamedTuple):
    """One line of the table."""

    name: str  # as the measure calls it
    published: str  # what the source says
    rule: Rule  # when ours agrees


@dataclass(frozen=True)
class Entry:
    """A claim of a paper, and how we look whether it holds here."""

    claim: str
    source: str
    game: str  # a name of ours, or "module:callable"
    knobs: dict[str, Any]
    measure: Measure
    numbers: tuple[Number, ...]
    quick: Measure | None = None  # a cheaper measure of the same numbers, for --quick

    @property
    def id(self) -> str:
        """As `marl.load` takes it."""
        return self.game if ":" in self.game else f"credit/{self.game}-v0"


def near(name: str, value: float, tolerance: float, shown: str = "") -> Number:
    """A published number and how far ours may lie from it."""
    return Number(name, shown or f"{value:g}", Near(value, tolerance))


def ahead(better: str, worse: str, by: float = 0.0) -> Number:
    """One method above another, paired by seeds, by more than so much."""
    return Number(f"{better} - {worse}", f"{better} far above {worse}" if by else f"{better} above {worse}", Above(by))
