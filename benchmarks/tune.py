"""Which hyperparameters suit each method? A search with equally many trials for all, on seeds that nobody reports.

A trial is one point of a method's grid: step size of the learner with its entropy bonus (of a Q-learner its gradient
steps an update), step size and passes of what its chain learns. Each method tries the values it has in METHODS and
random points of its grid (Bergstra and Bengio 2012, "Random search for hyper-parameter optimization"). Where the best
of some method lies on an edge of its grid, the grid grows there, and every method gets the same number of trials more,
near its best. Score: the interquartile mean over seeds of the final score, or of the return where a game has none. The
best of many trials looks better than it is; what it is worth, other seeds must show.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

import marl
from benchmarks.asking import Common, check_counts, chosen_game, chosen_methods, machines, run_main, work_through
from benchmarks.engine import Engine, answers
from benchmarks.forecast import BESIDE, seconds_of
from benchmarks.methods import METHODS, rank
from benchmarks.sweep import game_knobs, missing
from marl import results, statistics
from marl.experiment import Experiment, Method, run
from marl.learn.policy_gradient import PolicyGradient
from marl.learn.q_learning import QLearning

SEEDS = 2_000_000  # the first seed of a search: reported ones begin at 0, policies judged by `credit` at 1,000,000
EVALUATION = (1, 1, 128)  # points, episodes at each, episodes at the end: only the end counts
QUESTION = "tune"
PROGRAM = "python -m benchmarks.tune"
STORED = Path(__file__).with_name("tuned")  # searches that come with the package, NAME.json each
FORMAT = 1
GAME = ("credit/walking_robot-v0", {"n_agents": 6, "horizon": 60, "window": 12, "delay": 24})
ASKED = ("team + return", "difference + return", "COMA")
BUDGET = {"seeds": (10, 3), "steps": (200_000, 20_000), "trials": (15, 4), "rounds": (3, 1), "extra": (4, 2)}

Settings = dict[str, float]  # axis -> value


class TuneError(ValueError):
    """A stored search cannot be used; the message says which and why, in one sentence."""


@dataclass(frozen=True)
class Options(Common):
    """Search hyperparameters on seeds of their own."""

    seeds: int | None = None
    """how many seeds a trial has, from 2,000,000 on (default: 10; with --quick 3)"""
    steps: int | None = None
    """environment steps per seed and trial (default: 200,000; with --quick 20,000)"""
    trials: int | None = None
    """trials of each method before any grid is widened (default: 15; with --quick 4)"""
    rounds: int | None = None
    """how often grids may be widened at most (default: 3; with --quick 1)"""
    extra: int | None = None
    """trials more of each method every time (default: 4; with --quick 2)"""


@dataclass(frozen=True)
class Axis:
    """One hyperparameter and the values to try, from small to large."""

    name: str  # "learner.lr", "fit.passes" and the like
    values: tuple[float, ...]
    least: float | None = None  # nothing lies below: no edge there

    def edge(self, value: float) -> int:
        """-1 or 1 where the value is the first or the last and more could lie beyond, else 0."""
        if value == self.values[-1]:
            return 1
        return -1 if value == self.values[0] != self.least else 0

    def wider(self, side: int) -> Axis:
        """With one value more, as far from its neighbour (in ratio) as that from the next."""
        near, next_ = (self.values[-1], self.values[-2]) if side > 0 else self.values[:2]
        more = type(near)(float(f"{near * near / next_:.12g}"))  # no digits that are rounding alone
        return replace(self, values=(*self.values, more) if side > 0 else (more, *self.values))


class Grid(NamedTuple):
    """The axes of one method; a point is one value of each."""

    axes: tuple[Axis, ...]

    def points(self) -> Iterator[tuple[float, ...]]:
        """All of them, in a fixed order."""
        return product(*(axis.values for axis in self.axes))

    def named(self, point: Sequence[float]) -> Settings:
        """{axis: value}."""
        return dict(zip((axis.name for axis in self.axes), point, strict=True))

    def edges(self, point: Sequence[float]) -> dict[int, int]:
        """{axis: side} where the point lies on an edge."""
        found = {k: axis.edge(value) for k, (axis, value) in enumerate(zip(self.axes, point, strict=True))}
        return {k: side for k, side in found.items() if side}

    def wider(self, edges: dict[int, int]) -> Grid:
        """One value more on each of these edges."""
        return Grid(tuple(axis.wider(edges[k]) if k in edges else axis for k, axis in enumerate(self.axes)))

    def distance(self, a: Sequence[float], b: Sequence[float]) -> int:
        """Steps from value to value, over all axes."""
        places = zip(self.axes, a, b, strict=True)
        return sum(abs(axis.values.index(x) - axis.values.index(y)) for axis, x, y in places)


def grid(method: Method, learns: bool) -> Grid:
    """Where to search around the values that a method has; learns: does its chain fit anything?"""
    learner, fit = method.learner, method.fit
    axes = [Axis("learner.lr", tuple(learner.lr * 2.0**k for k in range(-2, 3)))]  # type: ignore[attr-defined]
    if isinstance(learner, PolicyGradient):
        axes.append(Axis("learner.entropy", _around(learner.entropy, 3, (0.0, 0.01, 0.03)), least=0.0))
    if isinstance(learner, QLearning):
        axes.append(Axis("learner.steps", _around(learner.steps, 2, (2, 4, 8)), least=1))
    if learns:
        axes.append(Axis("fit.lr", tuple(fit.lr * 4.0**k for k in range(-1, 2))))
        axes.append(Axis("fit.passes", _around(fit.passes, 2, (1, 2, 4)), least=1))
    return Grid(tuple(axes))


def _around(value: float, ratio: int, values: Iterable[float]) -> tuple[float, ...]:
    """The values to try, with that of the method and one above it."""
    return tuple(sorted({*values, value, value * ratio}))


def start(method: Method, where: Grid) -> tuple[float, ...]:
    """The point at which a method stands."""
    return tuple(getattr(getattr(method, part), knob) for part, knob in (a.name.split(".") for a in where.axes))


def apply(method: Method, settings: Settings) -> Method:
    """The method with other values: {"learner.lr": .02, "fit.passes": 4}. Raises TuneError for an unknown one."""
    for name, value in settings.items():
        part, _, knob = name.partition(".")
        if part not in ("learner", "fit") or not hasattr(getattr(method, part), knob):
            raise TuneError(f"there is no hyperparameter {name!r}; it must be a field of the learner or of the fit")
        method = replace(method, **{part: replace(getattr(method, part), **{knob: value})})
    return method


def first_points(where: Grid, centre: tuple[float, ...], count: int) -> tuple[Grid, list[tuple[float, ...]]]:
    """The centre and random others, `count` in all, and the grid, which grows where it has fewer."""
    where = _room(where, count)
    others = [point for point in where.points() if point != centre]
    return where, [centre, *random.Random(0).sample(others, count - 1)]


def more_points(
    where: Grid, best: tuple[float, ...], tried: Iterable[tuple[float, ...]], count: int
) -> tuple[Grid, list[tuple[float, ...]]]:
    """`count` new points: beyond each edge that the best lies on, then those nearest to it; and their grid."""
    tried, edges = set(tried), where.edges(best)
    where = _room(where.wider(edges), len(tried) + count)
    beyond = [
        tuple(where.axes[k].values[-1 if side > 0 else 0] if k == j else value for j, value in enumerate(best))
        for k, side in edges.items()
    ]
    rest = [point for point in where.points() if point not in tried and point not in beyond]
    return where, [*beyond, *sorted(rest, key=lambda point: where.distance(best, point))][:count]


def _room(where: Grid, count: int) -> Grid:
    """A grid of at least `count` points: the step size of the learner takes more values."""
    while math.prod(len(axis.values) for axis in where.axes) < count:
        where = where.wider({0: -1}).wider({0: 1})
    return where


@dataclass(frozen=True)
class Trial:
    """One method with one choice of hyperparameters on one game: a cell."""

    game: str
    knobs: dict[str, Any]
    method: str
    settings: Settings
    seeds: int
    steps: int
    threads: int = 1

    @cached_property
    def experiment(self) -> Experiment:
        """Raises ValueError, one sentence, for whatever in it cannot be."""
        method = apply(METHODS[self.method], self.settings)
        game, seeds = marl.load(self.game, **self.knobs), range(SEEDS, SEEDS + self.seeds)
        return Experiment(game, method, seeds, self.steps, *EVALUATION, judge=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        """All that its results depend on."""
        method = self.experiment.method
        about = {"name": self.method, "family": method.family, "rank": rank(self.method)}
        return {
            "question": QUESTION,
            "game": self.game,
            "knobs": game_knobs(self.experiment.game, self.knobs),
            "method": {**about, "privileged": method.privileged, **method.describe()},
            **self.experiment.describe(),
            "threads": self.threads,
            "device": "cpu",
        }

    @property
    def cell(self) -> str:
        """Its id."""
        return results.cell_id(self.config)

    @property
    def name(self) -> str:
        """For people: the method and what was chosen."""
        return f"{self.method} ({_words(self.settings)})"


def work(trial: Trial, folder: Path) -> Path:
    """Train, measure, and write the cell."""
    torch.set_num_threads(trial.threads)
    return results.write_cell(folder, trial.config, list(run(trial.experiment)))


class Result(NamedTuple):
    """What became of a trial."""

    point: tuple[float, ...]
    trial: Trial
    round: int  # 0: the first grid
    runs: list[float]  # final score of each seed

    @property
    def score(self) -> float:
        """Their interquartile mean; a run that diverged makes it the worst there is."""
        return -math.inf if any(map(math.isnan, self.runs)) else float(statistics.iqm(self.runs))


@dataclass
class Search:
    """One method's search as it goes on."""

    method: str
    first: Grid
    where: Grid
    centre: tuple[float, ...]
    points: list[tuple[float, ...]]  # to be tried next
    tried: list[Result]

    @property
    def best(self) -> Result:
        """The highest score; of equals the one nearest to the values that the method has."""
        return max(self.tried, key=lambda r: (r.score, -self.where.distance(self.centre, r.point)))

    def widen(self, count: int) -> None:
        """Choose what is tried next."""
        tried = [result.point for result in self.tried]
        self.where, self.points = more_points(self.where, self.best.point, tried, count)

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        best = self.best
        values = {"first_grid": self.first, "grid": self.where}
        return {
            "base": base(METHODS[self.method]),
            **{name: {axis.name: list(axis.values) for axis in g.axes} for name, g in values.items()},
            "trials": [_record(result) for result in self.tried],
            "default": _record(self.tried[0]),
            "best": _record(best),
            "on_edge": [self.where.axes[k].name for k in self.where.edges(best.point)],
        }


def _record(result: Result) -> dict[str, Any]:
    runs = [None if math.isnan(x) else x for x in result.runs]
    score = result.score if math.isfinite(result.score) else None
    return {
        "settings": result.trial.settings,
        "score": score,
        "runs": runs,
        "round": result.round,
        "cell": result.trial.cell,
    }


def base(method: Method) -> dict[str, Any]:
    """The METHODS entry that a search started from, as JSON values."""
    learner = {"name": type(method.learner).__name__, **asdict(method.learner)}  # type: ignore[call-overload]
    plain: dict[str, Any] = json.loads(results.canonical({**method.describe(), "learner": learner}))
    return plain


def answer(options: Options) -> None:
    """Plan, search, store, and say what was found."""
    check_counts(options, "seeds", "steps", "trials", "extra", "workers", "threads")
    if options.rounds is not None and options.rounds < 0:
        raise ValueError(f"--rounds {options.rounds} is not allowed; it must be 0 or more")
    budget = {
        k: getattr(options, k) if getattr(options, k) is not None else v[options.quick] for k, v in BUDGET.items()
    }
    names = chosen_methods(options) or list(ASKED)
    game, knobs = chosen_game(options) or GAME
    folder = options.out or Path("results") / (QUESTION + "-quick" * options.quick)
    make = partial(Trial, game, knobs, seeds=budget["seeds"], steps=budget["steps"], threads=options.threads)
    searches = [_begin(name, make(name, {}), budget["trials"]) for name in names]
    results.prepare(folder)
    most = budget["trials"] + budget["rounds"] * budget["extra"]
    print(f"tune: {game} {_words(knobs)}; {len(names)} methods x {budget['trials']} to {most} trials each")
    print(f"  seeds {SEEDS:,} to {SEEDS + budget['seeds'] - 1:,} x {budget['steps']:,} environment steps, in {folder}")
    seconds = _seconds(searches, make, folder, machines(options))
    for k in range(budget["rounds"] + 1):
        if k:
            for search in searches:  # all of them: equal budgets
                search.widen(budget["extra"])
        _try(searches, make, k, folder, options, seconds)
        if not any(search.where.edges(search.best.point) for search in searches):
            break
    path = _store(folder, searches, make, budget)
    print(table(searches))
    print(f"\ncells:   {folder}/*.parquet\nsearch:  {path}\nuse:     METHODS | benchmarks.tune.tuned({str(path)!r})")


def _begin(name: str, default: Trial, trials: int) -> Search:
    method = METHODS[name]
    where = grid(method, method.credit(default.experiment.game).learns)
    centre = start(method, where)
    where, points = first_points(where, centre, trials)
    return Search(name, where, where, centre, points, [])


def _seconds(searches: Sequence[Search], make: partial[Trial], folder: Path, engine: Engine) -> dict[str, float]:
    """What a trial of each method takes, about; methods with nothing left to do in the first round are not timed."""
    first = {s.method: [make(s.method, s.where.named(point)) for point in s.points] for s in searches}
    asked = [trials[0] for trials in first.values() if missing(trials, folder, False)]
    times = zip(asked, answers(asked, calibrate, engine), strict=True)
    return dict.fromkeys(first, 1.0) | {trial.method: found for trial, found in times if not math.isnan(found)}


def calibrate(trial: Trial) -> float:
    """Seconds that this trial takes on this machine now."""
    torch.set_num_threads(trial.threads)
    return BESIDE + seconds_of(trial.experiment)


def _try(
    searches: Sequence[Search],
    make: partial[Trial],
    round_: int,
    folder: Path,
    options: Options,
    seconds: dict[str, float],
) -> None:
    """Run the chosen points of every search, those that are not on disk, and take in the results."""
    chosen = [(s, point, make(s.method, s.where.named(point))) for s in searches for point in s.points]
    todo = missing([trial for *_, trial in chosen], folder, options.force)
    print(f"  {f'round {round_}, wider grids' if round_ else 'first grids'}: {len(chosen)} trials, {len(todo)} to run")
    if todo:
        times = {trial.cell: seconds[trial.method] for trial in todo}
        work_through(todo, partial(work, folder=folder.resolve()), times, machines(options), folder)
    found = final_runs(folder, {trial.cell for *_, trial in chosen})
    for search, point, trial in chosen:
        search.tried.append(Result(point, trial, round_, found[trial.cell]))


def final_runs(folder: Path, cells: set[str]) -> dict[str, list[float]]:
    """{cell: the final score of each seed}; the final return where there is no score."""
    rows = results.read(folder, cells)
    metric = "final_score" if (rows["metric"] == "final_score").any() else "final_return"
    final = rows[rows["metric"] == metric].sort_values("seed")
    return {str(cell): part["value"].tolist() for cell, part in final.groupby("cell")}


def _store(folder: Path, searches: Sequence[Search], make: partial[Trial], budget: dict[str, int]) -> Path:
    """The grids, every trial and the best as JSON, whole or not at all."""
    any_trial = searches[0].tried[0].trial
    about = {
        "question": QUESTION,
        "game": any_trial.game,
        "knobs": any_trial.config["knobs"],
        "seeds": [int(s) for s in any_trial.experiment.seeds],
        **{k: budget[k] for k in ("steps", "trials", "rounds", "extra")},
        "evaluation": list(EVALUATION),
        "threads": any_trial.threads,
        "score": "interquartile mean over seeds of final_score, or of final_return where the game has no score",
    }
    methods = {search.method: search.record() for search in searches}
    name = results.cell_id({**about, "methods": list(methods)})
    path = folder / results.FIGURES / f"tuned-{name}.json"  # the one folder that may lie beside cells
    path.parent.mkdir(exist_ok=True)
    stored = {"format": FORMAT, "search": name, **about, "methods": methods, "provenance": results.provenance()}
    results.write_file(path, (json.dumps(stored, indent=1, allow_nan=False) + "\n").encode())
    return path


def tuned(path: str | Path) -> dict[str, Method]:
    """{legend name: the METHODS entry with the best values of a stored search}: `METHODS | tuned(path)`.

    path: a file that a search stored, or the name of one that comes with the package (STORED).
    Raises TuneError: no such search, another format, or a METHODS entry that has changed since.
    """
    return tuned_by(path)[1]


def tuned_by(path: str | Path) -> tuple[str, dict[str, Method]]:
    """(what a search is called, its methods as of `tuned`)."""
    own = STORED / f"{path}.json"
    file = own if own.is_file() and not Path(path).exists() else Path(path)
    try:
        stored = json.loads(file.read_bytes())
        version, methods = stored["format"], stored["methods"]
        name = str(stored["search"]) if version == FORMAT else ""
    except (OSError, ValueError, KeyError, TypeError):
        raise TuneError(f"{path} is not a search that {PROGRAM} stored") from None
    if version != FORMAT:
        raise TuneError(f"{path} is of format {version!r}, this program reads format {FORMAT}; search again")
    out = {}
    for method, record in methods.items():
        if method not in METHODS or base(METHODS[method]) != record["base"]:
            raise TuneError(f"{method} has changed in METHODS since {path} was stored; search again")
        out[method] = apply(METHODS[method], record["best"]["settings"])
    return name, out


def table(searches: Sequence[Search]) -> str:
    """Default and best of each method, what the best is, and where a grid should still grow."""
    width = max(len(search.method) for search in searches) + 2
    lines = ["", f"{'method':{width}s}{'trials':>8s}{'default':>10s}{'best':>10s}   best values"]
    for search in searches:
        best, edges = search.best, [search.where.axes[k].name for k in search.where.edges(search.best.point)]
        note = f"   still on the edge of {', '.join(edges)}" if edges else ""
        scores = "".join(f"{result.score:>10.3f}" for result in (search.tried[0], best))
        lines.append(f"{search.method:{width}s}{len(search.tried):>8d}{scores}   {_words(best.trial.settings)}{note}")
    return "\n".join(lines)


def _words(values: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for input that cannot be."""
    return run_main(Options, answer, PROGRAM, arguments)


if __name__ == "__main__":
    from benchmarks import tune  # trials travel to other processes under their module's name, not as __main__'s

    sys.exit(tune.main())
