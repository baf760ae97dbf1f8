"""Do we reproduce what papers report? A fixed list: published value, ours with its interval over seeds, verdict."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

import marl
from benchmarks.cli import Progress
from benchmarks.methods import METHODS
from benchmarks.plot import UsageError, parse
from benchmarks.sweep import game_knobs, missing, side_by_side
from envs.base import Env
from envs.el_farol import ElFarol, best_attendance
from envs.matrix_game import MatrixGame
from marl.experiment import Experiment, Method, Stage, final_measure, learn
from marl.learn.q_learning import QLearning, QTraining, values
from marl.results import FIGURES, Row, cell_id, prepare, read, write_cell
from marl.statistics import Estimate, interval

SEEDS = (10, 4)  # full, quick
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
class Payoffs:
    """Exact numbers of a payoff table: what each action of agent 0 pays under a uniform partner."""

    exact: ClassVar[bool] = True

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        assert isinstance(game, MatrixGame)
        means = np.asarray(game.payoffs[0], dtype=np.float64).mean(1)
        return {f"row_{k}": np.array([mean]) for k, mean in enumerate(means)}


@dataclass(frozen=True)
class BestWeek:
    """Exact best returns of the bar problem, by dynamic programming over nights."""

    exact: ClassVar[bool] = True

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        assert isinstance(game, ElFarol)
        attend = best_attendance(game.n_agents, game.n_nights, game.capacity)[-1]
        return {"all_attend": np.array([attend]), "home_allowed": np.array([game.optimal_return])}


@dataclass(frozen=True)
class TwoStep:
    """Greedy return and Q_tot of a value decomposition on the two-step game, learned from uniformly random play."""

    exact: ClassVar[bool] = False
    mixer: str
    updates: int = 300
    gamma: float = 0.99

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        how = QLearning(mixer=self.mixer, gamma=self.gamma, start=1.0, end=1.0)
        experiment, last = trained(game, Method((), "spatial", how), seeds, self.updates)
        table = q_total(last.training, game).numpy().astype(np.float64)
        first, b = table[:, 0].mean(2), table[:, 2]  # agent 1's first action does nothing
        found = {"greedy_return": np.asarray(final_measure(experiment, last.actor)["final_return"], dtype=np.float64)}
        found |= {f"first_{a}": first[:, k] for k, a in enumerate("AB")}
        return found | {f"state_2B_{i}{j}": b[:, i, j] for i in range(2) for j in range(2)}


def q_total(training: Any, game: Env[Any]) -> Tensor:
    """[S, 3, A, A] Q_tot of two agents' actions in the first step, in state 2A and in 2B, of the two-step game."""
    assert isinstance(training, QTraining) and training.mixer is not None
    A, S = game.n_actions, len(training.seeds)
    action = torch.cartesian_prod(torch.arange(A), torch.arange(A)).repeat(3 * S, 1)
    view = torch.eye(3).repeat_interleave(A * A, 0).repeat(S, 1)
    with torch.no_grad():
        q = values(training.net, view[:, None].expand(-1, game.n_agents, -1))
        taken = q.gather(-1, action[..., None])[..., 0]
        return training.mixer(taken, q.amax(-1), view, action).reshape(S, 3, A, A)


@dataclass(frozen=True)
class FindsOptimum:
    """1 for a seed whose greedy play after training is the best there is, else 0; `share` of seeds in the table."""

    exact: ClassVar[bool] = False
    method: str
    updates: int = 200

    def __call__(self, game: Env[Any], seeds: Sequence[int]) -> Found:
        score = final(game, self.method, seeds, self.updates, greedy=True)
        return {"share": (score > 1 - 1e-6).astype(np.float64)}


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


# The list.


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
    game: str
    knobs: dict[str, Any]
    measure: Measure
    numbers: tuple[Number, ...]


def two_step(mixer: str, numbers: tuple[Number, ...]) -> Entry:
    """VDN or QMIX on the two-step game."""
    claim = f"{mixer.upper()} on the two-step game, gamma .99"
    return Entry(claim, RASHID, "matrix_game", {"payoff": "two_step"}, TwoStep(mixer), numbers)


def near(name: str, value: float, tolerance: float, shown: str = "") -> Number:
    """A published number and how far ours may lie from it."""
    return Number(name, shown or f"{value:g}", Near(value, tolerance))


def ahead(better: str, worse: str, by: float = 0.0) -> Number:
    """One method above another, paired by seeds, by more than so much."""
    return Number(f"{better} - {worse}", f"{better} far above {worse}" if by else f"{better} above {worse}", Above(by))


RASHID = "Rashid et al. 2018, QMIX, table 2"
CLAUS = "Claus & Boutilier 1998"
WOLPERT = "Wolpert & Tumer 2001; HolmesParker et al. 2014"
RAHMATTALABI = "Rahmattalabi, Agogino & Tumer 2016, D++"
FOERSTER = "Foerster et al. 2018, COMA"
TEAM, D, U, PLUS = "team + return", "difference + return", "aristocrat + return", "D++ + return"
FAR = 0.1  # of the way from random play to the best: what "by far" is taken to mean
CENTRAL = "team + central GAE"


def beats_team(game: str, knobs: dict[str, Any], updates: int, by: float) -> Entry:
    """Difference and aristocrat rewards against the team's, on equal budgets."""
    claim = f"{game}, {knobs['n_agents']} agents, {32 * updates} episodes: difference and aristocrat beat team"
    numbers = (ahead(D, TEAM, by), ahead(U, TEAM, by))
    return Entry(claim, WOLPERT, game, knobs, Compared(((D, TEAM), (U, TEAM)), updates), numbers)


def rovers(claim: str, n_points: int, size: int, updates: int) -> Entry:
    """D++ over D over team with 6 rovers, 4 of whom must watch a point together."""
    knobs = {"n_agents": 6, "coupling": 4, "n_points": n_points, "size": size, "horizon": 15}
    numbers = (ahead(PLUS, D, FAR), ahead(D, TEAM))
    return Entry(claim, RAHMATTALABI, "rover_grid", knobs, Compared(((PLUS, D), (D, TEAM)), updates), numbers)


ENTRIES: dict[str, Entry] = {
    "two-step-vdn": two_step(
        "vdn",
        (
            near("greedy_return", 7, 0.05),
            near("state_2B_00", -1.87, 0.5),
            near("state_2B_01", 2.31, 0.5),
            near("state_2B_10", 2.33, 0.5),
            near("state_2B_11", 6.51, 0.5),
        ),
    ),
    "two-step-qmix": two_step(
        "qmix", (near("greedy_return", 8, 0.05), near("first_A", 6.93, 0.1), near("first_B", 7.92, 0.1))
    ),
    "climbing-rows": Entry(
        "climbing: what each action is worth beside a uniform partner",
        CLAUS,
        "matrix_game",
        {"payoff": "climbing"},
        Payoffs(),
        (
            near("row_0", -19 / 3, 1e-6, "-6.33"),
            near("row_1", -17 / 3, 1e-6, "-5.67"),
            near("row_2", 5 / 3, 1e-6, "1.67"),
        ),
    ),
    "climbing": Entry(
        "climbing: independent learners over-generalise, few find the optimum",
        CLAUS,
        "matrix_game",
        {"payoff": "climbing"},
        FindsOptimum("IQL"),
        (Number("share", "rarely", Below(0.5)),),
    ),
    "penalty": Entry(
        "penalty -100: independent learners settle on the safe action",
        CLAUS,
        "matrix_game",
        {"payoff": "penalty", "penalty": -100.0},
        FindsOptimum("IQL"),
        (Number("share", "rarely", Below(0.5)),),
    ),
    "no-penalty": Entry(
        "penalty 0: the same learners find an optimum",
        CLAUS,
        "matrix_game",
        {"payoff": "penalty", "penalty": 0.0},
        FindsOptimum("IQL"),
        (Number("share", "nearly always", Above(0.5)),),
    ),
    "bar-attendance": Entry(
        "el_farol, 168 agents, c = 6: the best week if all must attend, and if home is allowed",
        WOLPERT,
        "el_farol",
        {"n_agents": 168},
        BestWeek(),
        (near("all_attend", 13.2437, 1e-4), near("home_allowed", 15.4509, 1e-4)),
    ),
    "bar-20": beats_team("el_farol", {"n_agents": 20, "capacity": 2.0}, 40, 0.0),
    "bar-200": beats_team("el_farol", {"n_agents": 200, "capacity": 20.0}, 75, FAR),
    "squeeze-20": beats_team("gaussian_squeeze", {"n_agents": 20}, 10, 0.0),
    "squeeze-200": beats_team("gaussian_squeeze", {"n_agents": 200}, 10, FAR),
    "rovers-one-point": rovers("tight coupling: one point that 4 of 6 rovers must watch at once", 1, 8, 75),
    "rovers-two-points": rovers("tight coupling, two points: waiting at an unpaid point pays D++ too", 2, 6, 75),
    "coma-one-shot": Entry(
        "COMA beats team credit where nothing is delayed: T = 1, equal budgets",
        FOERSTER,
        "gaussian_squeeze",
        {"n_agents": 10},
        Compared((("COMA", TEAM),), 25),
        (ahead("COMA", TEAM),),
    ),
    "coma-no-delay": Entry(
        "COMA beats team credit, with a central critic (the paper's central-V) and without one, at delay 0",
        FOERSTER,
        "walking_robot",
        {"n_agents": 3, "delay": 0, "horizon": 40, "window": 8},
        Compared((("COMA", CENTRAL), ("COMA", TEAM)), 40),
        (ahead("COMA", CENTRAL), ahead("COMA", TEAM)),
    ),
    "coma-long-delay": Entry(
        "COMA with lambda .8 cannot see 24 steps ahead (.8^24 = .005): it must fail there, and team credit not",
        "follows from TD(lambda)",
        "walking_robot",
        {"n_agents": 3, "delay": 24, "horizon": 40, "window": 8},
        Compared(((TEAM, "COMA"),), 40),
        (Number("COMA", "no learning", Below(0.2)), ahead(TEAM, "COMA", FAR)),
    ),
}


# Running and reporting.


@dataclass(frozen=True)
class Options:
    """Do we reproduce what papers report? Rows of a fixed list, each stored as soon as it is known."""

    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ROW ...")] = ()
    """rows by name, separated by commas or given one by one (default: all; see --list)"""
    list: bool = False
    """list the rows and stop"""
    quick: bool = False
    """4 seeds in place of 10: minutes on two cores"""
    seeds: int | None = None
    """how many seeds, 0, 1, ... (default: 10; with --quick 4)"""
    out: Path | None = None
    """folder for the rows; the table goes to its subfolder figures (default: results/published)"""
    workers: int = os.cpu_count() or 1
    """rows that run side by side"""
    threads: int = 1
    """torch threads per row"""
    force: bool = False
    """compute rows again that are already on disk"""


@dataclass(frozen=True)
class Cell:
    """One row of the list, all seeds."""

    entry: str
    seeds: int
    threads: int = 1

    @property
    def game(self) -> Env[Any]:
        """The entry's game."""
        entry = ENTRIES[self.entry]
        return marl.load(f"credit/{entry.game}-v0", **entry.knobs)

    @property
    def config(self) -> dict[str, Any]:
        """All that its numbers depend on; what is claimed of them may change."""
        entry = ENTRIES[self.entry]
        named = [v for v in _strings(asdict(entry.measure)) if v in METHODS]
        return {
            "question": "published",
            "game": f"credit/{entry.game}-v0",
            "knobs": game_knobs(self.game, entry.knobs),
            "method": {"name": self.entry, "family": "baseline", "rank": 0, "privileged": False},
            "measure": [type(entry.measure).__name__, asdict(entry.measure)],
            "methods": {name: METHODS[name].describe() | {"learner": str(METHODS[name].learner)} for name in named},
            "seeds": list(range(self.seeds)),
            "threads": self.threads,
            "device": "cpu",
        }


def _strings(value: Any) -> list[str]:
    """Every text within nested lists and dictionaries, each once."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return list(dict.fromkeys(text for part in parts for text in _strings(part)))


def run_cell(cell: Cell, folder: Path) -> None:
    """Measure one row of the list and write it; a number without luck is one value, of seed 0."""
    torch.set_num_threads(cell.threads)
    found = ENTRIES[cell.entry].measure(cell.game, range(cell.seeds))
    rows = [Row(s, 0, 0, 0.0, name, float(v)) for name, vs in found.items() for s, v in enumerate(vs)]
    write_cell(folder, cell.config, rows)


def estimate(values: NDArray[np.float64], exact: bool = False) -> Estimate:
    """Mean over seeds with its 95% interval: bootstrap; Wilson's where all values are 0 or 1; a point where exact."""
    n = len(values)
    if exact:
        return Estimate(values[0], values[0], values[0], np.asarray(1))
    if np.isin(values, (0.0, 1.0)).all():  # a bootstrap of ten times 0 would be sure
        p, z2 = values.mean(), 1.959964**2
        middle, half = p + z2 / (2 * n), np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
        return Estimate(p, (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n), np.asarray(n))
    return interval(values, np.mean)


def table(cells: Sequence[Cell], folder: Path) -> list[tuple[str, ...]]:
    """One line a number: row, claim, source, number, published, agrees if, ours, 95% interval, seeds, verdict."""
    rows = read(folder, {cell_id(cell.config) for cell in cells})
    out: list[tuple[str, ...]] = []
    for cell in cells:
        entry = ENTRIES[cell.entry]
        mine = rows[rows["method"] == cell.entry]
        for number in entry.numbers:
            values = mine[mine["metric"] == number.name].sort_values("seed")["value"].to_numpy(dtype=float)
            ours = estimate(values, entry.measure.exact)
            low, high = float(ours.low), float(ours.high)
            shown = "exact" if entry.measure.exact else f"{low:.3f} .. {high:.3f}"
            head = (cell.entry, entry.claim, entry.source, number.name, number.published, number.rule.text)
            out.append((*head, f"{float(ours.value):.4g}", shown, str(ours.runs), number.rule.verdict(low, high)))
    return out


HEADS = ("row", "claim", "source", "number", "published", "agrees if", "ours", "95% interval", "seeds", "reproduced")
PRINTED = ("row", "number", "published", "agrees if", "ours", "95% interval", "seeds", "reproduced")


def text_table(lines: Sequence[tuple[str, ...]]) -> str:
    """For a terminal: without the sentences."""
    shown = [[line[HEADS.index(head)] for head in PRINTED] for line in [HEADS, *lines]]
    widths = [max(len(line[k]) for line in shown) for k in range(len(PRINTED))]
    return "\n".join("  ".join(f"{word:{w}s}" for word, w in zip(line, widths, strict=True)).rstrip() for line in shown)


def markdown(lines: Sequence[tuple[str, ...]]) -> str:
    """For a page: everything."""
    body = [HEADS, ("---",) * len(HEADS), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in body)


def plan(options: Options) -> list[Cell]:
    """The rows that are asked for. Raises UsageError for what cannot be."""
    for knob in ("seeds", "workers", "threads"):
        value = getattr(options, knob)
        if value is not None and value < 1:
            raise UsageError(f"--{knob} {value} is not allowed; it must be 1 or more")
    names = [name.strip() for text in options.only for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ENTRIES]
    if unknown or (options.only and not names):
        said = repr(unknown[0]) if unknown else "nothing"
        raise UsageError(f"--only names {said}; the rows are: {', '.join(ENTRIES)}")
    seeds = options.seeds or SEEDS[options.quick]
    return [Cell(name, seeds, options.threads) for name in dict.fromkeys(names or ENTRIES)]


def answer(options: Options) -> None:
    """Measure what is missing, print the table and store it."""
    cells = plan(options)
    folder = options.out or Path("results") / ("published" + "-quick" * options.quick)
    prepare(folder)
    todo = missing(cells, folder, options.force)
    print(f"published: {len(cells)} rows, {cells[0].seeds} seeds; {len(todo)} to measure, in {folder}\n", flush=True)
    if todo:
        progress = Progress(len(todo), len(todo))
        each = partial(_finished, progress)
        try:
            side_by_side(todo, partial(run_cell, folder=folder), min(options.workers, len(todo)), each)
        finally:
            progress.close()
    lines = table(cells, folder)
    print(text_table(lines))
    kept = folder / FIGURES / "published.md"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(markdown(lines))
    counts = ", ".join(f"{sum(line[-1] == word for line in lines)} {word}" for word in ("yes", "no", "unclear"))
    print(f"\nreproduced: {counts}\ncells:   {folder}/*.parquet\ntable:   {kept}")


def _finished(progress: Progress, cell: Cell) -> None:
    progress.finished(1.0, cell.entry)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for input that cannot be."""
    try:
        options = parse(Options, arguments, "python -m benchmarks.published")
        if options.list:
            for name, entry in ENTRIES.items():
                print(f"{name:24s} {entry.claim} ({entry.source})")
            return 0
        answer(options)
    except ValueError as error:  # every refusal of ours is a ValueError with one sentence
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; rows that are stored are kept: run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    from benchmarks import published  # cells travel to other processes under their module's name, not as __main__'s

    sys.exit(published.main())
