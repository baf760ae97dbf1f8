"""A game can be asked "what if?" only if it can be taken back; a self-test finds out how, and whether it is exact.

Three ways, the first that passes is used: the game's own `get_state`/`set_state`, a deep copy, a replay from the seed.
All of them bring back the game's random numbers too, so a counterfactual holds the luck fixed: results are "given the
noise".
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium.utils import EzPickle

from envs.external_face import Array, Face, Frame, Game, Maker, read_state

Mode = Literal["state", "copy", "replay"]

TEST_SEEDS = (11, 12)
RESET_SEEDS = range(20, 30)  # of which a used game must begin as a new one does
TEST_STARTS = (0, 3, 9)  # steps at which the self-test takes a snapshot
TEST_STEPS = 5
_DRAWING = {"Surface", "Font", "Clock", "Sound", "Window"}  # of pygame: never state, often large, never picklable


class Snapshot(NamedTuple):
    """A game put to sleep: 6 kB for mpe2's simple_spread, 30 kB for pursuit."""

    data: bytes
    shared: tuple[Any, ...]  # what all copies hold in common: functions, classes, drawing surfaces


def _blank(kind: type) -> Any:
    return object.__new__(kind)


def _fill(new: Any, attributes: dict[str, Any]) -> None:
    new.__dict__.update(attributes)


class _Writer(pickle.Pickler):
    """A deep copy to bytes that keeps the attributes of EzPickle games, whose own pickling forgets the episode."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.shared: list[Any] = []

    def persistent_id(self, obj: Any) -> int | None:
        kind = type(obj)
        drawing = kind.__name__ in _DRAWING and kind.__module__.startswith("pygame")
        if not (drawing or isinstance(obj, type | FunctionType | ModuleType)):
            return None
        self.shared.append(obj)
        return len(self.shared) - 1

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, EzPickle):
            return _blank, (type(obj),), obj.__dict__, None, None, _fill
        return NotImplemented


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: tuple[Any, ...]) -> None:
        super().__init__(file)
        self.shared = shared

    def persistent_load(self, pid: Any) -> Any:
        return self.shared[pid]


def save(thing: Any) -> Snapshot:
    """A deep copy as bytes. Raises whatever pickling raises where the thing holds what cannot be copied."""
    file = io.BytesIO()
    writer = _Writer(file)
    writer.dump(thing)
    return Snapshot(file.getvalue(), tuple(writer.shared))


def load(snapshot: Snapshot) -> Any:
    """A new copy, as often as wanted."""
    return _Reader(io.BytesIO(snapshot.data), snapshot.shared).load()


def put_to_sleep(game: Game, mode: Mode | None) -> Snapshot:
    """A snapshot of a game, by its own `get_state` or by a deep copy."""
    return save(_stateful(game).get_state() if mode == "state" else game)


def waken(snapshot: Snapshot, spare: Maker, mode: Mode | None) -> Game:
    """A game that goes on from a snapshot; `spare` gives one to be overwritten where the game has `set_state`."""
    if mode == "copy":
        return load(snapshot)
    game = spare()
    game.reset(seed=0)
    _stateful(game).set_state(load(snapshot))
    return game


def _stateful(game: Game) -> Any:
    """The layer of a game that has `get_state` and `set_state`; None if there is none."""
    layers = (game, game.unwrapped)
    return next(
        (g for g in layers if callable(getattr(g, "get_state", 0)) and callable(getattr(g, "set_state", 0))), None
    )


class Verdict(NamedTuple):
    """What the self-test found."""

    mode: Mode | None  # how this game is taken back; None: not at all
    why: str
    reuse: bool  # a used game that is reset is as good as a new one


Shown = tuple[Frame, Array]  # a frame and the game's own state()


def examine(make: Maker, face: Face, used: Game) -> Verdict:
    """Find out how this kind of game can be taken back: snapshot, five steps, restore, the same five steps, all equal.

    Another game of the kind plays in between, so that what games share behind each other's back (a global random
    generator, say) is noticed. Equal means exactly: observations, rewards, flags, masks and `state()`.

    Args:
        used: a game that has played episodes to their end. Some games let those leak into the next, whatever the seed:
            lbforaging and PettingZoo's knights_archers_zombies do. Then every episode is played on a new game.
    """
    meanwhile = _bystander(make, face)
    first = make()
    actions, shown = _improvise(first, face, meanwhile)
    difference = _compare(shown, _perform(make(), actions, face, meanwhile))
    if difference is not None:
        return Verdict(
            None,
            f"{first} cannot be taken back to an earlier step: two games with the same seed and the same actions "
            f"differed at {difference}; draw every random number from a generator of the game's own that "
            "reset(seed=...) seeds",
            True,
        )
    reuse = all(_compare(shown, _perform(old, actions, face, meanwhile)) is None for old in (first, used))
    reuse = reuse and all(_compare(_begin(make(), face, s), _begin(used, face, s)) is None for s in RESET_SEEDS)
    failed = "it has no get_state and set_state"
    modes: tuple[Mode, ...] = ("copy",) if _stateful(first) is None else ("state", "copy")
    for mode in modes:
        trouble = _trial(mode, make, face, actions, shown, meanwhile)
        if trouble is None:
            how = "its get_state and set_state" if mode == "state" else "deep copies of it"
            return Verdict(mode, f"{how} continue exactly as the original", reuse)
        failed = trouble
    return Verdict("replay", f"past steps are lived again from the seed, because a copy fails: {failed}", reuse)


def _bystander(make: Maker, face: Face) -> Iterator[None]:
    """Another game, one random step at a time, for ever."""
    game, draw = make(), np.random.default_rng(TEST_SEEDS[1])
    while True:
        frame = face.reset(game, TEST_SEEDS[1])
        yield
        while not frame.done:
            frame = face.step(game, random_action(frame, draw))
            yield


def random_action(frame: Frame, draw: np.random.Generator) -> Array:
    """[N]: uniformly random legal actions."""
    scores = np.where(frame.mask, draw.random(frame.mask.shape), -1.0)
    return scores.argmax(1).astype(np.int16)


def _improvise(game: Game, face: Face, meanwhile: Iterator[None]) -> tuple[list[Array], list[Shown]]:
    """Random play: the actions and all that was shown."""
    draw = np.random.default_rng(TEST_SEEDS[0])
    actions: list[Array] = []
    shown = _begin(game, face, TEST_SEEDS[0])
    while not shown[-1][0].done and len(actions) < max(TEST_STARTS) + TEST_STEPS:
        next(meanwhile)
        actions.append(random_action(shown[-1][0], draw))
        shown.append((face.step(game, actions[-1]), read_state(game)))
    return actions, shown


def _begin(game: Game, face: Face, seed: int) -> list[Shown]:
    """What a game shows when it begins."""
    return [(face.reset(game, seed), read_state(game))]


def _perform(game: Game, actions: list[Array], face: Face, meanwhile: Iterator[None]) -> list[Shown]:
    """The same actions from the same seed."""
    return [*_begin(game, face, TEST_SEEDS[0]), *_go_on(game, actions, face, meanwhile)]


def _go_on(game: Game, actions: list[Array], face: Face, meanwhile: Iterator[None]) -> Iterator[Shown]:
    for action in actions:
        next(meanwhile)
        frame = face.step(game, action)
        yield frame, read_state(game)
        if frame.done:
            return


def _trial(
    mode: Mode, make: Maker, face: Face, actions: list[Array], shown: list[Shown], meanwhile: Iterator[None]
) -> str | None:
    """None if snapshots of this mode continue exactly, else what went wrong."""
    try:
        game = make()
        face.reset(game, TEST_SEEDS[0])
        stands = 0
        for start in (s for s in TEST_STARTS if s < len(actions)):
            list(_go_on(game, actions[stands:start], face, meanwhile))
            snapshot = put_to_sleep(game, mode)
            stands = start + TEST_STEPS
            wanted, todo = shown[start + 1 : stands + 1], actions[start:stands]
            for one in (game, waken(snapshot, make, mode)):
                difference = _compare(wanted, list(_go_on(one, todo, face, meanwhile)), start + 1)
                if difference is not None:
                    return f"a restored game differed at {difference}"
            game, stands = waken(snapshot, make, mode), start  # go on from a copy: copies must bear copying
    except Exception as error:  # whatever a stranger's game raises, it means that this way is barred
        return f"{type(error).__name__}: {error}"
    return None


def _compare(wanted: list[Shown], found: list[Shown], first: int = 0) -> str | None:
    """None if exactly equal, else 'step 4 (rewards)'."""
    if len(wanted) != len(found):
        return f"step {min(len(wanted), len(found)) + first} (the length of the episode)"
    for t, ((frame, view), (other, other_view)) in enumerate(zip(wanted, found, strict=True), first):
        for name, a, b in zip((*Frame._fields, "state()"), (*frame, view), (*other, other_view), strict=True):
            if not np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True):
                return f"step {t} ({name})"
    return None
