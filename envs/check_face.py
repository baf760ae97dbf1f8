"""What a PettingZoo face promises, each promise a check that plays and yields what it finds broken.

PettingZoo's own tests compare one step, and accept observations outside their space; these play whole episodes.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from envs.base import Env
from envs.parallel import episode_noise

MAX_CYCLES = 2000  # an episode that has not ended by then is left


class Frame(NamedTuple):
    """What a face returned once: by `reset` (no rewards or flags) or by a `step`."""

    players: list[str]  # who acted, or who begins
    observations: dict[str, Any]
    rewards: dict[str, float]
    terminated: dict[str, bool]
    truncated: dict[str, bool]
    infos: dict[str, dict[str, Any]]
    agents: list[str]  # who goes on
    state: Any  # None where the face has no state()


@dataclass(frozen=True)
class FaceProbe:
    """A ParallelEnv under test; `make` gives a fresh one (or the same again, where it cannot be made)."""

    make: Callable[[], Any]
    rules: Env[Any] | None

    @cached_property
    def frames(self) -> list[Frame]:
        """Episode of seed 0 on a fresh face, copied as it went."""
        return [copied for _, copied in live(self.make(), 0)]


def live(face: Any, seed: int | None, meddle: bool = False) -> Iterator[tuple[Frame, Frame]]:
    """Play one episode with actions that depend on the seed only. Yields (as returned, a deep copy of it)."""
    observations, infos = face.reset(seed=seed)
    frame = Frame(face.agents[:], observations, {}, {}, {}, infos, face.agents[:], _state_of(face))
    infos = copy.deepcopy(infos)
    yield from _show(frame, meddle)
    yield from _continue(face, infos, 0 if seed is None else seed, 0, meddle)


def _continue(face: Any, infos: Any, seed: int, start: int, meddle: bool = False) -> Iterator[tuple[Frame, Frame]]:
    for t in range(start, MAX_CYCLES):
        players = face.agents[:]
        if not players:
            return
        actions = {agent: _action(face, agent, infos, (seed, t, i)) for i, agent in enumerate(players)}
        observations, rewards, terminated, truncated, infos = face.step(actions)
        parts = observations, rewards, terminated, truncated, infos
        infos = copy.deepcopy(infos)
        yield from _show(Frame(players, *parts, face.agents[:], _state_of(face)), meddle)


def _show(frame: Frame, meddle: bool) -> Iterator[tuple[Frame, Frame]]:
    copied = copy.deepcopy(frame)
    if meddle:
        for array in _arrays(frame):
            array[...] = 1 - array
    yield frame, copied


def _arrays(part: Any) -> Iterator[Any]:
    if isinstance(part, np.ndarray):
        if part.flags.writeable:
            yield part
    elif isinstance(part, dict | tuple | list):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from _arrays(inner)


def _action(face: Any, agent: str, infos: Any, key: tuple[int, int, int]) -> Any:
    space, rng = face.action_space(agent), np.random.default_rng(key)
    if not isinstance(space, Discrete):
        space.seed(int(rng.integers(2**31)))
        return space.sample()
    mask = infos.get(agent, {}).get("action_mask")
    legal = np.arange(space.n) if mask is None or not np.any(mask) else np.flatnonzero(mask)
    return int(space.start + rng.choice(legal))


def _state_of(face: Any) -> Any:
    try:
        return face.state()
    except (NotImplementedError, AttributeError):
        return None


def unlike(a: Any, b: Any, name: str = "") -> str:
    """Where two nested values first differ, in words; '' where they are equal, dtypes included."""
    if type(a) is not type(b):
        return f"{name}: {type(a).__name__} against {type(b).__name__}"
    if isinstance(a, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"{name}: {a.dtype}{list(a.shape)} against {b.dtype}{list(b.shape)}"
        return "" if np.array_equal(a, b, equal_nan=a.dtype.kind == "f") else f"{name}: {a} against {b}"
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{name}: {sorted(map(str, a))} against {sorted(map(str, b))}"
        return next((found for key in a if (found := unlike(a[key], b[key], f"{name}[{key}]"))), "")
    if isinstance(a, tuple | list):
        if len(a) != len(b):
            return f"{name}: {len(a)} against {len(b)} entries"
        names = [f"{name} {k}".strip() for k in getattr(a, "_fields", range(len(a)))]
        return next((found for k, x, y in zip(names, a, b, strict=True) if (found := unlike(x, y, k))), "")
    return "" if a == b or (a != a and b != b) else f"{name}: {a!r} against {b!r}"


def first_unlike(a: list[Frame], b: list[Frame]) -> str:
    """Where two episodes first differ ('' nowhere)."""
    for t, (x, y) in enumerate(zip(a, b, strict=False)):
        if found := unlike(x, y):
            return f"after step {t}, {found}" if t else f"after reset, {found}"
    return "" if len(a) == len(b) else f"length: {len(a) - 1} against {len(b) - 1} steps"


def protocol(probe: FaceProbe) -> Iterator[str]:
    """reset and step speak of the right agents, to the last step, on which everyone still gets reward and flags."""
    frames = probe.frames
    begin = frames[0]
    for part in ("observations", "infos"):
        if missing := [agent for agent in begin.agents if agent not in getattr(begin, part)]:
            yield f"reset returned no {part} for {', '.join(missing)}"
    for t, frame in enumerate(frames[1:]):
        for part in ("observations", "rewards", "terminated", "truncated", "infos"):
            if missing := [agent for agent in frame.players if agent not in getattr(frame, part)]:
                yield f"step {t} returned no {part} for {', '.join(missing)}, who acted in it"
                return
        for agent in frame.players:
            reward, flags = frame.rewards[agent], (frame.terminated[agent], frame.truncated[agent])
            if not np.isfinite(float(reward)):
                yield f"step {t}: the reward of {agent} is {reward}"
            if not all(isinstance(flag, bool | np.bool_) for flag in flags):
                yield f"step {t}: terminated and truncated of {agent} must be True or False, not {flags}"
        stay = [a for a in frame.players if not (frame.terminated[a] or frame.truncated[a])]
        if frame.agents != stay:
            yield f"after step {t} agents is {frame.agents}; those neither terminated nor truncated are {stay}"
    if probe.rules is not None and frames[-1].agents:
        yield f"the episode did not end within {len(frames) - 1} steps"


def inside_spaces(probe: FaceProbe) -> Iterator[str]:
    """Every observation (and state) lies in its declared space, at every step; spaces are cached."""
    face = probe.make()
    for agent in probe.frames[0].agents:
        for kind in ("observation_space", "action_space"):
            if getattr(face, kind)(agent) is not getattr(face, kind)(agent):
                yield f"{kind}({agent!r}) must return the same object each time"
    for t, frame in enumerate(probe.frames):
        when = f"after step {t - 1}" if t else "after reset"
        for agent, observation in frame.observations.items():
            space = face.observation_space(agent)
            if not space.contains(observation):
                yield f"{when}, the observation of {agent} is outside its space: {_outside(space, observation)}"
        if frame.state is not None and not getattr(face, "state_space", Box(-np.inf, np.inf)).contains(frame.state):
            yield f"{when}, state() is outside state_space: {_outside(face.state_space, frame.state)}"


def _outside(space: Any, value: Any) -> str:
    if not isinstance(space, Box) or not isinstance(value, np.ndarray):
        return f"{value!r} in {space}"
    if value.shape != space.shape or not np.can_cast(value.dtype, space.dtype):
        return f"it is {value.dtype}{list(value.shape)}, the space {space.dtype}{list(space.shape)}"
    wrong = np.argwhere(~((value >= space.low) & (value <= space.high)))
    k = tuple(int(x) for x in wrong[0])
    return f"feature {k} is {value[k]:g}, allowed {space.low[k]:g}..{space.high[k]:g}"


def same_again(probe: FaceProbe) -> Iterator[str]:
    """One seed, one episode: on another face, and on the same face after other episodes."""
    face = probe.make()
    for when in ("on another face", "on a face that has played before"):
        if found := first_unlike(probe.frames, [copied for _, copied in live(face, 0)]):
            yield f"seed 0 with the same actions {when} differs {found}"
        for _ in live(face, None):
            pass


def arrays_not_reused(probe: FaceProbe) -> Iterator[str]:
    """What was returned stays as it was, and writing to it does not reach the game."""
    for t, (frame, copied) in enumerate(list(live(probe.make(), 0))):
        if found := unlike(frame, copied):
            yield f"what call {t} returned (0 is reset) was overwritten later: {found}"
            break
    meddled = [copied for _, copied in live(probe.make(), 0, meddle=True)]
    if found := first_unlike(probe.frames, meddled):
        yield f"writing to returned arrays changed the game: {found}"


def seeds_differ(probe: FaceProbe) -> Iterator[str]:
    """Seeds and successive episodes differ where the rules read noise (nothing to say of a plain face)."""
    rules = probe.rules
    if rules is None or rules.reset_noise_size + rules.step_noise_size == 0:
        return
    face, seen = probe.make(), []
    for seed in (0, None, 1, None, 2, 3):
        observations, infos = face.reset(seed=seed)
        rest = [copied for _, copied in _continue(face, copy.deepcopy(infos), 0, 0)]  # the same actions every time
        seen.append((copy.deepcopy(observations), rest))
    if not any(unlike(seen[0], other) for other in seen[1:]):
        yield "six episodes (seeds 0..3 and resets without a seed) with the same actions are the same"


def copies_continue(probe: FaceProbe) -> Iterator[str]:
    """A deep copy and a pickle taken mid-episode continue as the original does (rules make this easy)."""
    if probe.rules is None:
        return
    middle = (len(probe.frames) - 1) // 2
    rest = probe.frames[middle + 1 :]
    for how, duplicate in (("deepcopy", copy.deepcopy), ("pickle", lambda x: pickle.loads(pickle.dumps(x)))):
        face = probe.make()
        for _ in islice(live(face, 0), middle + 1):
            pass
        other = duplicate(face)
        for _ in _continue(face, probe.frames[middle].infos, 0, middle):
            pass  # the original goes on first: a copy that shares memory would notice
        played = [copied for _, copied in _continue(other, probe.frames[middle].infos, 0, middle)]
        if found := first_unlike(rest, played):
            yield f"a copy by {how} after step {middle} does not continue identically: {found}"


def as_the_rules_say(probe: FaceProbe) -> Iterator[str]:
    """Observations, rewards and flags through the face are those of the rules, the last reward included."""
    rules = probe.rules
    if rules is None:
        return
    for seed in range(4):
        face = probe.make()
        state_noise, later = episode_noise(rules, seed, 0)
        state, told, true = rules.reset(state_noise), 0.0, 0.0
        infos: Any = {}
        for t, (frame, _) in enumerate(live(face, seed)):
            if t:
                actions = [_action(face, a, infos, (seed, t - 1, i)) for i, a in enumerate(frame.players)]
                step = rules.step(state, torch.tensor([actions]), later[:, t - 1])
                state, true = step.state, true + float(step.reward[0])
                told += float(frame.rewards[frame.players[0]])
                end = bool(step.done[0])
                flags = (end, not end and t == rules.horizon)
                if any((frame.terminated[a], frame.truncated[a]) != flags for a in frame.players):
                    yield f"seed {seed}, step {t - 1}: (terminated, truncated) must be {flags} for every agent"
                if len(set(frame.rewards.values())) > 1:
                    yield f"seed {seed}, step {t - 1}: agents got different rewards; each gets the team reward"
            infos = frame.infos
            seen = np.stack([np.asarray(o) for o in frame.observations.values()])
            if not np.array_equal(seen, rules.observe(state)[0].numpy()):
                yield f"seed {seed}, call {t} (0 is reset): the face's observations are not `rules.observe`"
                break
        if told != true:
            yield f"seed {seed}: the return through the face is {told:.9g}, the rules' is {true:.9g} (a reward is lost)"


FACE_CHECKS = (
    protocol,
    inside_spaces,
    same_again,
    arrays_not_reused,
    seeds_differ,
    copies_continue,
    as_the_rules_say,
)
