"""Where does the time go, how does it grow, and how near is it to what the machine's matrix product could do?

The parts of `benchmarks.throughput` that time what happens after a step of the rules: rollouts, the stages of an
update, growth with N, T, S and B, and the oracles with their memory.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from statistics import median
from typing import Any

import torch

import marl
from benchmarks.methods import METHODS
from envs.base import Env
from marl.credit.base import Context
from marl.credit.spatial.shapley import Shapley
from marl.learn.policy_gradient import Ppo, adam
from marl.networks import Population, tier
from marl.oracle import oracle
from marl.rollout import rollout

STAGES = ("rollout", "credit", "learner", "critic")
AXES: dict[str, tuple[int, ...]] = {
    "N": (3, 6, 12, 24),
    "T": (25, 50, 100, 200),
    "S": (1, 2, 4, 8),
    "B": (8, 16, 32, 64),
}
SIDE = 1024  # of the square matrices whose product is the yardstick


def product_rate() -> float:
    """FLOP/s of torch.mm in float32: the best of a few, 1024 x 1024."""
    a = torch.randn(SIDE, SIDE)
    best = min(timed(lambda: torch.mm(a, a)) for _ in range(5))
    return 2 * SIDE**3 / best


def timed(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass
class Stages:
    """One method on one game, whose updates are timed stage by stage."""

    game: Env[Any]
    method: str
    n_seeds: int = 1
    episodes: int | None = None  # a seed and update; None: what the method's learner plays

    def __post_init__(self) -> None:
        """Build what `marl.experiment.Run` builds."""
        self.how, self.seeds = METHODS[self.method], list(range(self.n_seeds))
        self.training = self.how.learner.begin(self.game, self.seeds)
        self.chain = self.how.credit(self.game, self.seeds, self.training.policy)
        self.optimizer = adam(self.chain.parameters(), self.how.fit.lr) if self.chain.learns else None
        self.done = 0

    @property
    def steps(self) -> int:
        """Environment steps of an update, all seeds together."""
        return self.game.horizon * (self.episodes or self.how.learner.episodes) * self.n_seeds

    def update(self) -> list[float]:
        """Seconds of each of STAGES in one update."""
        E, marks = self.episodes or self.how.learner.episodes, [time.perf_counter()]
        trajectory = rollout(self.game, self.training.policy, E, self.seeds, self.done * E)
        marks.append(time.perf_counter())
        signal, incoming = self.chain.trace(trajectory)
        marks.append(time.perf_counter())
        self.training.update(trajectory, signal, self.done, 0.0)
        marks.append(time.perf_counter())
        if self.optimizer is not None:
            self.chain.fit(self.optimizer, trajectory, incoming, self.done)
        self.done += 1
        return [b - a for a, b in pairwise((*marks, time.perf_counter()))]


def flops(stages: Stages) -> float | None:
    """Floating-point operations of the networks an environment step, for PPO with a critic on own views; else None.

    A multiplication and an addition for each weight; forward and backward three times that; once more in the rollout.
    """
    how = stages.how.learner
    if not isinstance(how, Ppo) or how.memory or not stages.chain.learns:
        return None
    actor = stages.training.policy
    assert isinstance(actor, torch.nn.Module)
    networks = [m for owner in (actor, stages.chain) for m in owner.modules() if isinstance(m, Population)]
    weights = sum(w[0].numel() for net in networks for w in net.weights)
    return 2.0 * weights * stages.game.n_agents * (3 * how.passes + 1)


def report_where(methods: Sequence[str], game: Env[Any], seeds: Sequence[int], updates: int, repeats: int) -> None:
    """A line a (method, number of seeds): steps per second, each stage's share, the fraction of torch.mm's rate."""
    print(
        f"where the time of an update goes on {type(game).__name__}, N={game.n_agents}, T={game.horizon}; tier {tier()}"
    )
    heads = "".join(f"{stage:>10s}" for stage in STAGES)
    print(f"{'method':24s} {'seeds':>6s} {'env-steps/s':>12s}{heads}{'GFLOP/s':>10s}{'of torch.mm':>13s}")
    for method in methods:
        for s in seeds:
            stages = Stages(game, method, s)
            stages.update()  # warm up
            times, rates = [], []
            for _ in range(repeats):
                times += [stages.update() for _ in range(updates)]
                rates.append(product_rate())
            middle = [median(column) for column in zip(*times, strict=True)]
            rate, work = stages.steps / median(map(sum, times)), flops(stages)
            shares = "".join(f"{m / sum(middle):10.0%}" for m in middle)
            part = f"{rate * work / 1e9:10.1f}{rate * work / median(rates):13.2f}" if work else f"{'-':>10s}{'-':>13s}"
            print(f"{method:24s} {s:6d} {rate:12,.0f}{shares}{part}", flush=True)
    print()


def report_rollout(game: Env[Any], batches: Sequence[int], repeats: int, peer: float) -> None:
    """Env-steps/s of whole rollouts with the policies of two methods, and of random play, beside a peer's rules."""
    print(f"rollouts of {type(game).__name__}: env-steps/s (times mpe2's stepping, which asks no policy, in brackets)")
    print(f"{'policy':24s}" + "".join(f"{f'B={b}':>22s}" for b in batches))
    policies: dict[str, Any] = {"uniform": None}
    policies |= {name: METHODS[name].learner.begin(game, [0]).policy for name in ("team + return", "IPPO")}
    for name, policy in policies.items():
        cells = ""
        for b in batches:
            rollout(game, policy, b)
            rate = b * game.horizon / median(timed(partial(rollout, game, policy, b)) for _ in range(repeats))
            cells += f"{f'{rate:,.0f} ({rate / peer:,.3g})':>22s}"
        print(f"{name:24s}{cells}", flush=True)
    print()


def jaxmarl_line() -> str:
    """A plain word about the peer that may be installed beside us."""
    if find_spec("jaxmarl") is None:
        return "JaxMARL is not installed here, so its stepping is not measured"
    return "JaxMARL is installed; its stepping of MPE_simple_spread_v3 follows"


def jaxmarl_timer(batch: int, steps: int = 100) -> Callable[[], float]:
    """JaxMARL's own simple_spread stepping, vmapped over `batch` episodes and scanned: env-steps per second."""
    import jax  # type: ignore[import-not-found]
    import jaxmarl  # type: ignore[import-not-found]

    env = jaxmarl.make("MPE_simple_spread_v3")
    keys = jax.random.split(jax.random.PRNGKey(0), batch)
    _, first = jax.vmap(env.reset)(keys)

    def one(carry: Any, _: Any) -> Any:
        state, key = carry
        key, draw, move = jax.random.split(key, 3)
        draws = jax.random.split(draw, batch)
        action = {a: jax.random.randint(jax.random.fold_in(move, i), (batch,), 0, 5) for i, a in enumerate(env.agents)}
        _, state, reward, _, _ = jax.vmap(env.step)(draws, state, action)
        return (state, key), reward

    play = jax.jit(lambda state, key: jax.lax.scan(one, (state, key), None, steps))
    jax.block_until_ready(play(first, jax.random.PRNGKey(1)))
    return lambda: steps * batch / timed(lambda: jax.block_until_ready(play(first, jax.random.PRNGKey(1))))


def growth(axis: str, sizes: Sequence[int], method: str, repeats: int) -> list[float]:
    """Median seconds of an update on walking_robot (N=3, T=50, S=1, B=32) with one of these changed."""
    stages = []
    for k in sizes:
        knobs = {"n_agents": k if axis == "N" else 3, "horizon": k if axis == "T" else 50}
        game = marl.load("credit/walking_robot-v0", **knobs, delay=5, window=10)
        stages.append(Stages(game, method, k if axis == "S" else 1, k if axis == "B" else 32))
    for stage in stages:
        stage.update()
    times = [[sum(stage.update()) for stage in stages] for _ in range(repeats)]
    return [median(column) for column in zip(*times, strict=True)]


def report_growth(
    method: str, repeats: int, exponent: Callable[[Sequence[int], Sequence[float]], float]
) -> dict[str, list[float]]:
    """A line an axis: milliseconds of an update at each size, and p in time ~ size^p."""
    print(f"growth of an update of {method!r} on walking_robot: milliseconds, and p in time ~ size^p")
    found = {}
    for axis, sizes in AXES.items():
        found[axis] = growth(axis, sizes, method, repeats)
        cells = "".join(f"{f'{axis}={k}: {1e3 * x:.1f}':>16s}" for k, x in zip(sizes, found[axis], strict=True))
        print(f"{cells}{exponent(sizes, found[axis]):8.2f}", flush=True)
    print()
    return found


def draw_growth(found: dict[str, list[float]], exponent: Callable[..., float], about: str, path: Any) -> None:
    """Four lines on log-log scales, each axis in units of its smallest size and time; the slope is the exponent."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from benchmarks.figures import style

    hues = [style.COLOURS[family][0] for family in ("spatial", "temporal", "joint", "reference")]
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(style.PAGE / 2, 3.2), layout="constrained")
        axes = figure.subplots()
        for (axis, times), hue, mark in zip(found.items(), hues, "os^D", strict=True):
            sizes = AXES[axis]
            label = f"{axis} = {sizes[0]} .. {sizes[-1]}: p = {exponent(sizes, times):.2f}"
            axes.plot([k / sizes[0] for k in sizes], [x / times[0] for x in times], mark + "-", color=hue, label=label)
        axes.plot([1, 8], [1, 8], ":", color="#999999", label="proportional")
        axes.set(
            xscale="log", yscale="log", xlabel="size / smallest size", ylabel="time of an update / at smallest size"
        )
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes.minorticks_off()
        axes.grid(linewidth=0.3, color="#dddddd")
        axes.legend(fontsize=6)
        figure.supxlabel(about, fontsize=5, color="#555555")
        figure.savefig(path, dpi=200)


def peak_mib() -> float:
    """Most memory that this process ever held, MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def unit_effects(episodes: int, n_agents: int) -> Callable[[], Any]:
    """O6 on walking_robot, T=100, under a fresh actor."""
    game = marl.load("credit/walking_robot-v0", n_agents=n_agents)
    actor = METHODS["team + return"].learner.begin(game, [0]).policy
    trajectory = rollout(game, actor, episodes)
    return lambda: oracle(game, actor, trajectory, "O6")


def exact_shapley(states: int, n_agents: int) -> Callable[[], Any]:
    """Shapley values of the reward over all coalitions of el_farol's patrons, one episode a state."""
    game = marl.load("credit/el_farol-v0", n_agents=n_agents)
    trajectory, credit = rollout(game, None, states), Shapley(Context(game))
    credit.orders = None  # all 2^N coalitions, also beyond the N up to which it does so unasked
    return lambda: credit(trajectory, trajectory.reward)


def report_oracles(repeats: int, few: bool = False) -> None:
    """A line an oracle: seconds, and by how much the peak memory of the process rose while it was asked."""
    asked = {
        "O6 on walking_robot": (unit_effects, (2, 3) if few else (32, 6), "episodes, N"),
        "exact Shapley on el_farol": (exact_shapley, (10, 4) if few else (1000, 10), "states, N"),
    }
    print("oracles: seconds (median), and growth of this process's peak memory; one question may hold 1,024 MiB")
    for name, (build, sizes, units) in asked.items():
        before, ask = peak_mib(), build(*sizes)
        with torch.inference_mode():
            seconds = median(timed(ask) for _ in range(repeats))
        label = f"{name} ({units} = {sizes[0]}, {sizes[1]})"
        print(f"{label:56s}{seconds:8.2f} s {peak_mib() - before:8.0f} MiB", flush=True)
    print(f"peak memory of the whole run: {peak_mib():.0f} MiB\n")
