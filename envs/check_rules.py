"""What the rules of a game promise, each promise a check that plays and yields what it finds broken.

A check's name is what the reader of a failure sees; its docstring is the promise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from envs.base import (
    Env,
    HasActionMask,
    HasFiniteNoise,
    HasLightCone,
    HasLocalRewards,
    HasOptimalValue,
    HasRewardWith,
    HasSafeAction,
    HasScriptedPolicy,
    HasStepWith,
    HasUnitDifferences,
    HasUnitShapley,
    default_actions,
    repeat,
    stack,
    take,
)
from envs.noise import Atoms, uniform
from envs.parallel import episode_noise

BATCH = 6  # episodes side by side
EPISODES = 2000  # episodes behind a mean
SIGMAS = 4.5  # half width of an interval in standard errors: a right game fails once in 10^5
UNITS = 120  # (agent, step) units whose closed form is simulated, in each of two plans
LISTED = 1 << 22  # numbers of noise that are worth listing for a check of luck
DRAWS = 500  # of real luck that each state meets
PLAYERS = 6  # units that deviate from the baseline in a Shapley check
EXACT = 1e-9  # float64 agreement, relative to max(1, |value|)

Policy = Callable[[Any, int], Tensor]  # (state, t) -> action [B,N]


@runtime_checkable
class DeclaresExogenous(Protocol):
    """The game names the fields of its state that no action may ever change (cues, schedules, the clock)."""

    @property
    def exogenous(self) -> tuple[str, ...]: ...


class Record(NamedTuple):
    """Episodes as played, time first; what a closed form reads (`envs.base.Episode`) and more."""

    state: Any  # [T,B,...] the state each step began in
    action: Tensor  # [T,B,N]
    noise: Tensor  # [T,B,k]
    alive: Tensor  # [T,B] not ended before this step
    reward: Tensor  # [T,B] as the game gave it, dead steps included
    done: Tensor  # [T,B]
    obs: Tensor  # [T,B,N,O]
    critic: Tensor  # [T,B,C]
    after: Any  # [T,B,...] the state each step led to


def luck(rules: Env[Any], episodes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Noise of episodes 0..episodes-1 of a seed: [B,R] and [B,T,k]."""
    return episode_noise(rules, seed, torch.arange(episodes), dtype)


def random_policy(rules: Env[Any], episodes: int, seed: int = 0) -> Policy:
    """Uniform over legal actions, the same whenever asked."""
    u = uniform("check/actions", seed, torch.arange(episodes), (rules.horizon, rules.n_agents), torch.float64)

    def choose(state: Any, t: int) -> Tensor:
        if not isinstance(rules, HasActionMask):
            return (u[:, t] * rules.n_actions).long()
        mask = rules.action_mask(state)
        nth = (u[:, t] * mask.sum(-1)).long()
        return (mask.cumsum(-1) > nth[..., None]).int().argmax(-1)

    return choose


def plan_policy(plan: Tensor) -> Policy:
    """The recorded joint actions [T,B,N], whatever happens."""
    return lambda state, t: plan[t]


def play(rules: Env[Any], noise: tuple[Tensor, Tensor], policy: Policy) -> Record:
    """Whole episodes, all `horizon` steps of them."""
    first, later = noise
    state = rules.reset(first)
    alive = torch.ones(len(first), dtype=torch.bool)
    rows = []
    for t in range(rules.horizon):
        action = policy(state, t)
        step = rules.step(state, action, later[:, t])
        view = rules.observe(state), rules.critic_view(state)
        rows.append((state, action, later[:, t], alive, step.reward, step.done, *view, step.state))
        state, alive = step.state, alive & ~step.done
    columns = list(zip(*rows, strict=True))
    return Record(*(torch.stack(c) if isinstance(c[0], Tensor) else stack(c) for c in columns))


def returns(rules: Env[Any], noise: tuple[Tensor, Tensor], policy: Policy) -> Tensor:
    """[B]: the sum of the rewards paid while alive."""
    first, later = noise
    state = rules.reset(first)
    alive, total = torch.ones(len(first), dtype=torch.bool), first.new_zeros(len(first))
    for t in range(rules.horizon):
        step = rules.step(state, policy(state, t), later[:, t])
        total = total + torch.where(alive, step.reward, 0)
        state, alive = step.state, alive & ~step.done
    return total


def replayed_returns(rules: Env[Any], record: Record, noise: tuple[Tensor, Tensor], plans: Tensor) -> Tensor:
    """[U,B]: returns of U other plans [U,T,B,N] in the recorded luck, everything else frozen."""
    count, horizon, batch, agents = plans.shape
    first, later = noise
    joint = plans.permute(1, 0, 2, 3).reshape(horizon, count * batch, agents)
    again = first.repeat(count, 1), later.repeat(count, 1, 1)
    return returns(rules, again, plan_policy(joint)).reshape(count, batch)


def changed_plans(plan: Tensor, units: list[tuple[int, int]], values: Tensor) -> Tensor:
    """[U,T,B,N]: the plan with one unit (t,i) replaced by values[t,:,i] in each copy."""
    plans = plan.repeat(len(units), 1, 1, 1)
    for u, (t, i) in enumerate(units):
        plans[u, t, :, i] = values[t, :, i]
    return plans


def difference(a: Any, b: Any, tolerance: float = 0.0, axes: tuple[str, ...] = ("step", "row"), name: str = "") -> str:
    """Where two tensors or tuples of tensors first differ, in words; '' where they do not."""
    if not isinstance(a, Tensor):
        names = getattr(a, "_fields", range(len(a)))
        parts = (
            difference(x, y, tolerance, axes, f"{name}.{k}" if name else str(k))
            for k, x, y in zip(names, a, b, strict=True)
        )
        return next((part for part in parts if part), "")
    if a.shape != b.shape:
        return f"{name} has shape {tuple(a.shape)} against {tuple(b.shape)}"
    x, y = a.double(), b.double()
    same = (x == y) | (x.isnan() & y.isnan()) | ((x - y).abs() <= tolerance * x.abs().clamp(min=1))
    if bool(same.all()):
        return ""
    index = (~same).nonzero()[0].tolist()
    place = ", ".join(f"{axis} {k}" for axis, k in zip(axes, index, strict=False))
    return f"{name} at {place}: {x[tuple(index)]:.12g} against {y[tuple(index)]:.12g}"


@dataclass(frozen=True)
class RulesProbe:
    """A game under test with the episodes that several checks share."""

    rules: Env[Any]

    @cached_property
    def noise(self) -> tuple[Tensor, Tensor]:
        return luck(self.rules, BATCH)

    @cached_property
    def random(self) -> Record:
        """Uniformly random play."""
        return play(self.rules, self.noise, random_policy(self.rules, BATCH))

    @cached_property
    def good(self) -> Record:
        """The scripted policy (the default action where there is none) with one action in ten random."""
        rules, noisy = self.rules, random_policy(self.rules, BATCH, seed=1)
        slip = uniform("check/slip", 0, torch.arange(BATCH), (rules.horizon, rules.n_agents)) < 0.1

        def policy(state: Any, t: int) -> Tensor:
            other = noisy(state, t)
            plain = default_actions(rules).expand_as(other)
            kept = rules.scripted_action(state) if isinstance(rules, HasScriptedPolicy) else plain
            return torch.where(slip[:, t], other, kept)

        return play(rules, self.noise, policy)


def shapes(probe: RulesProbe) -> Iterator[str]:
    """Everything has the declared shape, follows the state's dtype and is finite."""
    rules = probe.rules
    sizes = {name: getattr(rules, name) for name in ("n_agents", "n_actions", "obs_size", "critic_size", "horizon")}
    yield from (f"{name}={size!r} must be a whole number, 1 or more" for name, size in sizes.items() if size < 1)
    defaults = default_actions(rules)
    if len(defaults) != rules.n_agents or not bool(((defaults >= 0) & (defaults < rules.n_actions)).all()):
        yield f"default_action={rules.default_action!r} must be in 0..{rules.n_actions - 1}, one for each agent or one"
    state = rules.reset(probe.noise[0])
    if not hasattr(state, "_fields") or not all(isinstance(x, Tensor) and x.shape[:1] == (BATCH,) for x in state):
        yield f"reset must return a NamedTuple of tensors [B, ...], not {type(state).__name__} of {_shapes_of(state)}"
        return
    for dtype in (torch.float32, torch.float64):
        record = play(rules, luck(rules, BATCH, dtype=dtype), random_policy(rules, BATCH))
        steps, agents = rules.horizon, rules.n_agents
        floats = {
            "step's reward": (record.reward, (steps, BATCH)),
            "observe": (record.obs, (steps, BATCH, agents, rules.obs_size)),
            "critic_view": (record.critic, (steps, BATCH, rules.critic_size)),
        }
        for name, (value, shape) in floats.items():
            if value.shape != shape:
                yield f"{name} has shape {tuple(value.shape[1:])}; it must be {shape[1:]}"
            if value.dtype != dtype:
                yield f"{name} is {value.dtype} where the noise was {dtype}; it must follow"
            if not bool(value.isfinite().all()):
                yield f"{name} is not finite at step {int((~value.isfinite()).nonzero()[0][0])}"
        if record.done.dtype != torch.bool or record.done.shape != (steps, BATCH):
            yield f"step's done is {record.done.dtype} {tuple(record.done.shape[1:])}; it must be bool ({BATCH},)"


def _shapes_of(state: Any) -> str:
    return str([tuple(getattr(x, "shape", ())) for x in state]) if isinstance(state, Iterable) else repr(state)


def pure(probe: RulesProbe) -> Iterator[str]:
    """No function changes its inputs, and none hands out an array that it later writes to."""
    rules, (first, later) = probe.rules, probe.noise
    names = ("observe", "critic_view", "action_mask", "optimal_value", "scripted_action", "text", "draw")
    looks: dict[str, Callable[..., Any]] = {name: getattr(rules, name) for name in names if hasattr(rules, name)}
    acts: dict[str, Callable[..., Any]] = {"step": rules.step}  # last: the outcome goes on to the next step
    if isinstance(rules, HasLocalRewards):
        acts = {"local_rewards": rules.local_rewards} | acts
    kept: list[tuple[str, int, Tensor, Tensor]] = []
    broken: set[str] = set()
    state, plan = rules.reset(first), probe.random.action
    for t in range(rules.horizon):
        inputs = state, plan[t].clone(), later[:, t].clone()
        outcome: Any = None
        for name, call in (looks | acts).items():
            if name in ("text", "draw") and t not in (0, rules.horizon - 1):
                continue  # pictures are slow
            before = copy.deepcopy(inputs)
            result = call(inputs[0]) if name in looks else call(*inputs)
            changed = difference(before, inputs, axes=("row",), name="input")
            if changed and name not in broken:
                broken.add(name)
                yield f"{name} changes its input at step {t} (0 is the state, 1 the action, 2 the noise): {changed}"
            if isinstance(result, Tensor):
                kept.append((name, t, result, result.clone()))
            outcome = result
        kept.append(("step's reward", t, outcome.reward, outcome.reward.clone()))
        state = outcome.state
    for name, t, result, was in kept:
        if not torch.equal(result, was) and name not in broken:
            broken.add(name)
            yield f"what {name} returned at step {t} was overwritten later; it must return a new tensor every time"


def deterministic(probe: RulesProbe) -> Iterator[str]:
    """Equal inputs give bitwise equal outputs, also in a copy of the game and after other episodes."""
    rules, plan = probe.rules, plan_policy(probe.random.action)
    play(rules, luck(rules, BATCH, seed=1), random_policy(rules, BATCH, seed=1))
    for who, game in (("played again", rules), ("played in a copy of the game", copy.deepcopy(rules))):
        found = difference(probe.random, play(game, probe.noise, plan))
        if found:
            yield f"the same episode {who} differs in {found} (randomness must come from the noise argument)"


def rows_independent(probe: RulesProbe) -> Iterator[str]:
    """An episode does not depend on which others are in its batch, nor on its place there."""
    rules, (first, later), plan = probe.rules, probe.noise, probe.random.action
    order = torch.arange(BATCH - 1, -1, -1)
    groups = [("in reversed order", order), *((f"with row {b} alone", torch.tensor([b])) for b in (0, BATCH - 1))]
    for how, rows in groups:
        found = difference(
            _pick(probe.random, rows), play(rules, (first[rows], later[rows]), plan_policy(plan[:, rows])), EXACT
        )
        if found:
            yield f"the batch played {how} differs in {found} (row b must not read other rows)"


def _pick(record: Any, rows: Tensor) -> Any:
    return type(record)(*(x[:, rows] if isinstance(x, Tensor) else _pick(x, rows) for x in record))


def noise_matters(probe: RulesProbe) -> Iterator[str]:
    """A game that reads noise has different episodes for different seeds."""
    rules = probe.rules
    if rules.reset_noise_size + rules.step_noise_size == 0:
        return
    other = play(rules, luck(rules, BATCH, seed=1), plan_policy(probe.random.action))
    parts = ("state", "reward", "obs", "after")
    if not any(difference(getattr(probe.random, part), getattr(other, part)) for part in parts):
        sizes = f"reset_noise_size={rules.reset_noise_size}, step_noise_size={rules.step_noise_size}"
        yield f"{BATCH} episodes of seed 0 equal those of seed 1 although the game declares {sizes}"


def past_is_kept(probe: RulesProbe) -> Iterator[str]:
    """Actions and noise from step t on leave everything before as it was; actions never move exogenous fields."""
    rules, (first, later), fact = probe.rules, probe.noise, probe.random
    names = rules.exogenous if isinstance(rules, DeclaresExogenous) else ()
    if unknown := [name for name in names if name not in fact.state._fields]:
        yield f"exogenous names {', '.join(unknown)}, but the state has {', '.join(fact.state._fields)}"
        return
    for k, t in enumerate(sorted({0, rules.horizon // 3, rules.horizon // 2, rules.horizon - 1})):
        plan, i = fact.action.clone(), k % rules.n_agents
        plan[t, :, i] = (plan[t, :, i] + 1) % rules.n_actions
        acted = play(rules, (first, later), plan_policy(plan))
        for name in names:
            found = difference(getattr(fact.after, name), getattr(acted.after, name), name=name)
            if found:
                yield f"changing the action of agent {i} at step {t} moved what is declared exogenous: {found}"
        fresh = later.clone()
        fresh[:, t:] = luck(rules, BATCH, seed=1)[1][:, t:]
        for what, other in (("actions", acted), ("noise", play(rules, (first, fresh), plan_policy(fact.action)))):
            for part, end in (("state", t + 1), ("obs", t + 1), ("reward", t)):
                a, b = ((_until(getattr(record, part), end)) for record in (fact, other))
                if found := difference(a, b, name=part):
                    yield f"changing the {what} at step {t} changed the past: {found}"


def _until(part: Any, end: int) -> Any:
    return part[:end] if isinstance(part, Tensor) else type(part)(*(x[:end] for x in part))


def identity_intervention(probe: RulesProbe) -> Iterator[str]:
    """Putting the action that was taken in its own place changes nothing, exactly."""
    rules, fact = probe.rules, probe.random
    for t in range(rules.horizon):
        state = type(fact.state)(*(x[t] for x in fact.state))
        step = rules.step(state, fact.action[t], fact.noise[t])
        expected = type(fact.after)(*(x[t] for x in fact.after))
        for name, a, b in (("state", expected, step.state), ("reward", fact.reward[t], step.reward)):
            if found := difference(a, b, axes=("row",), name=name):
                yield f"step {t} taken again from its recorded state differs in {found}"
                return
    units = _units(rules, UNITS // 4)
    before = returns(rules, probe.noise, plan_policy(fact.action))
    after = replayed_returns(rules, fact, probe.noise, changed_plans(fact.action, units, fact.action))
    if found := difference(before.expand_as(after), after, axes=("branch", "row"), name="return"):
        yield f"replacing an action by itself changed the {found}"


def _units(rules: Env[Any], count: int, seed: int = 0) -> list[tuple[int, int]]:
    """`count` different units (t,i), or all if there are no more."""
    total = rules.horizon * rules.n_agents
    order = uniform("check/units", seed, 0, (total,), torch.float64)[0].argsort()[:count].tolist()
    return [divmod(k, rules.n_agents) for k in order]


def finished_stays_finished(probe: RulesProbe) -> Iterator[str]:
    """Once done, a step pays exactly 0 and reports done again."""
    for record in (probe.random, probe.good):
        paid = ~record.alive & (record.reward != 0)
        if bool(paid.any()):
            t, b = paid.nonzero()[0].tolist()
            yield f"row {b} had ended before step {t}, which still paid {float(record.reward[t, b]):g}; it must pay 0"
        revived = ~record.alive & ~record.done
        if bool(revived.any()):
            t, b = revived.nonzero()[0].tolist()
            yield f"row {b} had ended before step {t}, which reported done=False; it must stay done"
        last = type(record.after)(*(x[-1] for x in record.after))
        step = probe.rules.step(last, record.action[-1], record.noise[-1])
        again = record.done[-1] & ((step.reward != 0) | ~step.done)
        if bool(again.any()):
            b = int(again.nonzero()[0])
            yield f"one more step after the end (row {b}) paid {float(step.reward[b]):g}, done={bool(step.done[b])}"


def capabilities_hold(probe: RulesProbe) -> Iterator[str]:
    """Masks, local rewards, clones, values and safe actions have their shapes and obvious identities."""
    rules, agents, actions = probe.rules, probe.rules.n_agents, probe.rules.n_actions
    for record in (probe.random, probe.good):
        for t in sorted({0, rules.horizon // 2, rules.horizon - 1}):
            state = type(record.state)(*(x[t] for x in record.state))
            action, noise = record.action[t], record.noise[t]
            if isinstance(rules, HasActionMask):
                mask = rules.action_mask(state)
                if mask.dtype != torch.bool or mask.shape != (BATCH, agents, actions):
                    yield f"action_mask is {mask.dtype} {tuple(mask.shape)}; it must be bool [B,N,A]"
                elif not bool(mask.any(-1).all()):
                    yield f"action_mask leaves an agent without a legal action at step {t}"
                elif isinstance(rules, HasScriptedPolicy):
                    legal = mask.gather(-1, rules.scripted_action(state)[..., None])
                    if not bool(legal.all()):
                        yield f"scripted_action takes an illegal action at step {t}"
            if isinstance(rules, HasLocalRewards):
                local = rules.local_rewards(state, action, noise)
                if local.shape != (BATCH, agents):
                    yield f"local_rewards has shape {tuple(local.shape)}; it must be [B,N]"
            if isinstance(rules, HasRewardWith):
                same = rules.reward_with(state, action, noise, torch.ones_like(action))
                if found := difference(record.reward[t], same, EXACT, ("row",), "reward"):
                    yield f"reward_with one copy of everyone is not the reward of step {t}: {found}"
            if isinstance(rules, HasStepWith):
                after = type(record.after)(*(x[t] for x in record.after))
                step = rules.step_with(state, action, noise, torch.ones_like(action))
                if found := difference(record.reward[t], step.reward, EXACT, ("row",), "reward") or difference(
                    after, step.state, EXACT, ("row",)
                ):
                    yield f"step_with one copy of everyone is not step {t}: {found}"
    if isinstance(rules, HasOptimalValue):
        over = type(record.after)(*(x[-1] for x in record.after))
        if bool((rules.optimal_value(over)[record.done[-1]] != 0).any()):
            yield "optimal_value of an ended episode must be 0"
    if isinstance(rules, HasSafeAction) and not all(0 <= a < actions for a in rules.safe_action):
        yield f"safe_action={rules.safe_action} must be one action in 0..{actions - 1} an agent"


def closed_differences(probe: RulesProbe) -> Iterator[str]:
    """unit_differences equals replaying all T recorded actions with one replaced."""
    rules = probe.rules
    if not isinstance(rules, HasUnitDifferences):
        return
    agents, refused = rules.n_agents, []
    u = uniform("check/baseline", 0, 0, (agents,), torch.float64)[0]
    baselines = [default_actions(rules), (u * rules.n_actions).long()]
    baselines += [torch.tensor(rules.safe_action)] if isinstance(rules, HasSafeAction) else []
    for baseline in baselines:
        for record in (probe.random, probe.good):
            try:
                closed = rules.unit_differences(record, baseline)
            except ValueError as error:
                refused.append(str(error))
                continue
            if closed.shape != record.action.shape:
                yield f"unit_differences has shape {tuple(closed.shape)}; it must be [T,B,N]"
                return
            largest = closed.abs().amax(1).flatten().argsort(descending=True)[: UNITS // 2].tolist()
            units = sorted({*_units(rules, UNITS // 2), *(divmod(k, agents) for k in largest)})
            fact = returns(rules, probe.noise, plan_policy(record.action))
            plans = changed_plans(record.action, units, baseline.expand_as(record.action))
            simulated = fact - replayed_returns(rules, record, probe.noise, plans)
            claimed = torch.stack([closed[t, :, i] for t, i in units])
            yield from _compare("unit_differences", claimed, simulated, units, baseline)
    if len(refused) == 2 * len(baselines):
        yield f"unit_differences refuses every baseline tried, the default too: {refused[0]}"


def _compare(name: str, claimed: Tensor, found: Tensor, units: list[tuple[int, int]], base: Tensor) -> Iterator[str]:
    """At most one sentence on the worst of the units [U,B]."""
    gap = (claimed - found).abs() / found.abs().clamp(min=1)
    if not bool((gap <= EXACT).all()):
        k, b = divmod(int(torch.nan_to_num(gap, nan=float("inf")).argmax()), gap.shape[1])
        t, i = units[k]
        yield (
            f"{name} at step {t}, agent {i}, row {b} with baseline {base.tolist()} is {float(claimed[k, b]):.12g}; "
            f"simulation says {float(found[k, b]):.12g} ({int((gap > EXACT).sum())} of {gap.numel()} values differ)"
        )


def closed_shapley(probe: RulesProbe) -> Iterator[str]:
    """unit_shapley equals the sum over all coalitions of the few units that leave the baseline; the rest get 0."""
    rules = probe.rules
    if not isinstance(rules, HasUnitShapley):
        return
    baselines = [default_actions(rules)]
    baselines += [torch.tensor(rules.safe_action)] if isinstance(rules, HasSafeAction) else []
    for baseline in baselines:
        record, units = _few_deviations(probe, baseline)
        try:
            closed = rules.unit_shapley(record, baseline)
        except ValueError:
            continue
        values = torch.zeros(2 ** len(units), BATCH, dtype=torch.float64)
        members = (torch.arange(len(values))[:, None] >> torch.arange(len(units))) & 1 == 1
        plans = baseline.expand_as(record.action).repeat(len(values), 1, 1, 1)
        for u, (t, i) in enumerate(units):
            plans[members[:, u], t, :, i] = record.action[t, :, i]
        values = replayed_returns(rules, record, probe.noise, plans)
        brute = torch.zeros_like(closed)
        for u, (t, i) in enumerate(units):
            without = (~members[:, u]).nonzero()[:, 0]
            ways = [1 / (len(units) * math.comb(len(units) - 1, int(s))) for s in members[without].sum(-1)]
            brute[t, :, i] = torch.tensor(ways, dtype=torch.float64) @ (values[without + 2**u] - values[without])
        everyone = [divmod(k, rules.n_agents) for k in range(rules.horizon * rules.n_agents)]
        shape = len(everyone), BATCH
        claimed, found = (x.permute(0, 2, 1).reshape(shape) for x in (closed, brute))
        yield from _compare("unit_shapley", claimed, found, everyone, baseline)


def _few_deviations(probe: RulesProbe, baseline: Tensor) -> tuple[Record, list[tuple[int, int]]]:
    """Episodes on the baseline but for a few units: those that matter most alone, and some others."""
    rules = probe.rules
    base = baseline.expand_as(probe.random.action)
    shift = 1 + (probe.random.action % max(rules.n_actions - 1, 1))
    other = (base + shift) % rules.n_actions
    units = _units(rules, 4 * UNITS, seed=1)
    fact = returns(rules, probe.noise, plan_policy(base))
    effect = (replayed_returns(rules, probe.random, probe.noise, changed_plans(base, units, other)) - fact).abs()
    ranked = effect.max(1).values.argsort(descending=True).tolist()
    chosen = [units[k] for k in dict.fromkeys(ranked[: PLAYERS - 2] + ranked[-2:])]
    plan = base.clone()
    for t, i in chosen:
        plan[t, :, i] = other[t, :, i]
    return play(rules, probe.noise, plan_policy(plan)), chosen


def finite_noise(probe: RulesProbe) -> Iterator[str]:
    """What real luck brings is among the cases listed, and their odds are its own.

    A list that is too long, or that the game refuses to make with these knobs, is not checked.
    """
    rules = probe.rules
    if not isinstance(rules, HasFiniteNoise):
        return
    try:
        first, later = rules.reset_atoms(), rules.step_atoms()
    except ValueError:
        return
    for name, cases, size in (
        ("reset_atoms", first, rules.reset_noise_size),
        ("step_atoms", later, rules.step_noise_size),
    ):
        if bad := _list_of_cases(cases, size):
            yield f"{name} {bad}"
            return
    if first.noise.numel() <= LISTED:
        listed, real = (_seen(rules, rules.reset(noise)) for noise in (first.noise, luck(rules, DRAWS, seed=3)[0]))
        yield from _same_luck("reset", first, listed, real, "")
    if 4 * len(later.noise) * max(rules.step_noise_size, rules.n_agents) > LISTED:
        return
    for record in (probe.random, probe.good):
        for t in sorted({0, rules.horizon // 3, rules.horizon // 2, rules.horizon - 1}):
            draws = uniform("check/luck", t, torch.arange(DRAWS), (rules.step_noise_size,), torch.float64)
            listed, real = (_outcomes(rules, record, t, noise) for noise in (later.noise, draws))
            yield from _same_luck("step", later, listed, real, f" at step {t}")


def _outcomes(rules: Env[Any], record: Record, t: int, noise: Tensor) -> Tensor:
    """[R, ...]: what step t of row 0 brings with each noise [R,k], side by side: reward, done and all of the state."""
    state = take(type(record.state)(*(x[t] for x in record.state)), torch.tensor([0]))
    step = rules.step(repeat(state, len(noise)), record.action[t, :1].repeat(len(noise), 1), noise)
    return torch.cat((step.reward[:, None], step.done[:, None], _seen(rules, step.state)), 1)


def _list_of_cases(cases: Atoms, size: int) -> str:
    """What is wrong with the form of a list of cases; '' where nothing is."""
    noise, probability = cases
    if noise.dim() != 2 or noise.shape[1] != size or probability.shape != noise.shape[:1]:
        return f"has shapes {tuple(noise.shape)} and {tuple(probability.shape)}; they must be [K, {size}] and [K]"
    if noise.dtype != torch.float64 or probability.dtype != torch.float64:
        return f"is {noise.dtype} and {probability.dtype}; it must be torch.float64"
    if not bool(((noise >= 0) & (noise < 1)).all()) or not bool((probability >= 0).all()):
        return "holds noise outside [0,1) or a negative probability"
    if abs(float(probability.sum()) - 1) > EXACT:
        return f"has probabilities that sum to {float(probability.sum()):.12g}; they must sum to 1"
    return ""


def _seen(rules: Env[Any], state: Any) -> Tensor:
    """[R, ...] everything about a state, side by side."""
    fields = (*state, rules.observe(state), rules.critic_view(state))
    return torch.cat([x.reshape(len(x), x[:1].numel()).double() for x in fields], 1)


def _same_luck(what: str, cases: Atoms, listed: Tensor, real: Tensor, where: str) -> Iterator[str]:
    """Outcomes of the listed cases [K,F] against outcomes of real luck [R,F]: none is new, and the means agree.

    Bernstein's inequality: |mean of R - mean| > z sd/sqrt(R) + z^2 range/(6 R) with probability below 2 exp(-z^2/2).
    """
    together = torch.cat((listed, real)).float()  # rounding is no new case
    names, code = together.unique(dim=0, return_inverse=True)
    known = torch.zeros(len(names), dtype=torch.bool).index_fill_(0, code[: len(listed)], True)
    new = ~known[code[len(listed) :]]
    if bool(new.any()):
        yield f"{what}_atoms leaves out {float(new.double().mean()):.2g} of what a {what} with real luck brings{where}"
        return
    mean = cases.probability @ listed
    deviation = (cases.probability @ (listed - mean).square()).sqrt()
    spread = listed.amax(0) - listed.amin(0)
    width = SIGMAS * deviation / math.sqrt(len(real)) + SIGMAS**2 * spread / (6 * len(real)) + EXACT * (1 + mean.abs())
    gap = (real.mean(0) - mean).abs()
    if bool((gap > width).any()):
        k = int((gap - width).argmax())
        yield (
            f"{what}_atoms gives number {k} of what a {what} brings{where} the mean {float(mean[k]):.6g}, "
            f"but {len(real)} real ones give {float(real.mean(0)[k]):.6g} +- {float(width[k]):.2g}"
        )


def light_cone_holds(probe: RulesProbe) -> Iterator[str]:
    """Changing one action moves no reward outside its declared light cone, though all react to what they see."""
    rules = probe.rules
    if not isinstance(rules, HasLightCone):
        return
    cone, T = rules.light_cone(), rules.horizon
    if cone.shape != (T, T, rules.n_agents) or cone.dtype != torch.bool:
        yield f"light_cone is {cone.dtype} {tuple(cone.shape)}; it must be bool {(T, T, rules.n_agents)}"
        return
    weights = 1e3 * uniform("check/react", 0, 0, (rules.obs_size, rules.n_actions), torch.float64)[0]
    shift = torch.arange(rules.n_agents)

    def reacting(changed: tuple[int, int] | None) -> Policy:
        """Whoever sees something else does something else."""

        def choose(state: Any, t: int) -> Tensor:
            action = ((rules.observe(state).double() @ weights).frac().argmax(-1) + shift) % rules.n_actions
            if changed is not None and t == changed[0]:
                action[:, changed[1]] = (action[:, changed[1]] + 1) % rules.n_actions
            return action

        return choose

    fact = play(rules, probe.noise, reacting(None))
    for t, i in _units(rules, UNITS // 4):
        acted = play(rules, probe.noise, reacting((t, i)))
        moved = (fact.reward * fact.alive != acted.reward * acted.alive).any(1) & ~cone[t, :, i]
        if bool(moved.any()):
            k = int(moved.nonzero()[0])
            yield f"light_cone says that agent {i} at step {t} cannot reach the reward of step {k}, but it does"
            return


def declared_returns(probe: RulesProbe) -> Iterator[str]:
    """Random play and the scripted policy earn what is declared, within an interval; the bounds are in order."""
    rules = probe.rules
    noise = luck(rules, EPISODES, seed=2)
    best, reachable, chance = rules.optimal_return, rules.reachable_return, rules.random_return
    target = best if reachable is None else reachable
    if best is not None and reachable is not None and reachable > best + EXACT * max(1, abs(best)):
        yield f"reachable_return={reachable:g} is above optimal_return={best:g}"
    if target is not None and chance is not None and chance > target + EXACT * max(1, abs(target)):
        yield f"random_return={chance:g} is above the best return, {target:g}"
    if chance is not None:
        yield from _expect("random_return", chance, returns(rules, noise, random_policy(rules, EPISODES, seed=2)))
    if target is not None and isinstance(rules, HasScriptedPolicy):
        name = "optimal_return" if reachable is None else "reachable_return"
        earned = returns(rules, noise, lambda state, t: rules.scripted_action(state))
        yield from _expect(f"{name} (by scripted_action)", target, earned)
    if best is not None and isinstance(rules, HasOptimalValue):
        yield from _expect("optimal_return (by optimal_value)", best, rules.optimal_value(rules.reset(noise[0])))


def _expect(name: str, declared: float, sample: Tensor) -> Iterator[str]:
    mean, error = float(sample.mean()), float(sample.std()) / math.sqrt(len(sample))
    width = SIGMAS * error + EXACT * max(1.0, abs(declared))
    if not abs(mean - declared) <= width:
        yield f"{name} is declared {declared:.9g}, but {len(sample)} episodes give {mean:.9g} +- {width:.2g}"


RULES_CHECKS = (
    pure,
    deterministic,
    rows_independent,
    noise_matters,
    past_is_kept,
    identity_intervention,
    finished_stays_finished,
    capabilities_hold,
    closed_differences,
    closed_shapley,
    finite_noise,
    declared_returns,
    light_cone_holds,
)
