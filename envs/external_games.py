"""To branch a game that only knows `step`, its past must be kept or lived again; this does both, as little as it can.

A position is (seed, moves so far): in a game whose chance comes from its seed, that decides everything that follows.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.external_face import Array, Face, Frame, Game, GameError, Maker
from envs.snapshots import Snapshot, Verdict, put_to_sleep, waken

Position = tuple[int, bytes]  # the seed of the episode, and the joint actions since

MOVE = np.dtype(np.int16)  # one agent's action in a position


class CounterfactualError(GameError):
    """This game cannot be taken back to an earlier position; the message says why."""


class Games:
    """Live games by position; a position that nobody stands on is rebuilt.

    Plain play moves each game in place and pays for no snapshot. Only a position that is asked for again, because a
    branch starts there, is rebuilt (from its nearest snapshot, else from the seed) and then keeps a snapshot. Memory
    is bounded by `max_games` live games and `max_bytes` of snapshots; what is dropped is rebuilt when needed.
    """

    _bytes: int  # of snapshots
    _standing: int  # live games
    _parallel: int  # the most games that began together

    def __init__(self, make: Maker, face: Face, verdict: Verdict, max_games: int) -> None:
        self.make, self.face = make, face
        self.mode, self.why, self.reuse = verdict
        self.max_games, self.max_bytes = max_games, 1 << 30
        self._forget()

    def start(self, seeds: Sequence[int]) -> list[Frame]:
        """Begin an episode of each seed."""
        frames, fresh = [], defaultdict(list)
        for seed in seeds:
            game = self._spare_game()
            frames.append(self.face.reset(game, seed))
            fresh[seed, b""].append(game)
        for position, games in fresh.items():
            for old in self._leave(position):  # of an earlier reset, never played: not to be mixed with these
                self._put_away(old)
            for game in games:
                self._stand(position, game)
        self._parallel = max(self._parallel, len(seeds))
        return frames

    def play(self, positions: Sequence[Position], actions: Array, last: Sequence[bool]) -> list[Frame]:
        """One step from each position. actions [R,N]; last: nobody will go on from there.

        Raises:
            CounterfactualError: a position is no longer held and the game cannot be taken back to it.
        """
        wanted = Counter(positions)
        frames: list[Any] = [None] * len(positions)
        ready: dict[Position, list[Game]] = {}
        # In this order a position comes before those that follow from it, so one rebuilt game serves the next.
        for row in sorted(range(len(positions)), key=positions.__getitem__):
            position = positions[row]
            if position not in ready:
                ready[position] = self._move_from(position, wanted[position])
            game = ready[position].pop(0) if ready[position] else self._rebuild(position)
            frame = frames[row] = self.face.step(game, actions[row])
            if frame.done or last[row]:
                self._put_away(game)
            else:
                self._stand((position[0], position[1] + actions[row].tobytes()), game)
        return frames

    def _move_from(self, position: Position, wanted: int) -> list[Game]:
        """Games at a position if there are enough for all who go on from it; else they stay, and copies go on."""
        standing = self._live.get(position, [])
        if len(standing) < wanted:
            if standing:
                self._keep(position, standing[0])
            return []
        self._leave(position)
        for spare in standing[wanted:]:
            self._stand(position, spare)
        return standing[:wanted]

    def _rebuild(self, position: Position) -> Game:
        """A game of its own at a position."""
        if self.mode is None:
            raise CounterfactualError(self.why)
        if position in self._saved:
            return self._wake(position)
        seed, moves = position
        stride = self.face.n_agents * MOVE.itemsize
        earlier = range(len(moves) - stride, 0, -stride) if self._saved else ()
        played = next((k for k in earlier if (seed, moves[:k]) in self._saved), 0)
        if played:
            game = self._wake((seed, moves[:played]))
        else:
            game = self._spare_game()
            self.face.reset(game, seed)
        for action in np.frombuffer(moves[played:], MOVE).reshape(-1, self.face.n_agents):
            self.face.step(game, action)
        self._keep(position, game)
        return game

    def _wake(self, position: Position) -> Game:
        self._saved.move_to_end(position)
        return waken(self._saved[position], self._spare_game, self.mode)

    def _keep(self, position: Position, game: Game) -> None:
        """Remember a position by a snapshot, where this game bears one."""
        if self.mode not in ("state", "copy") or position in self._saved:
            return
        snapshot = self._saved[position] = put_to_sleep(game, self.mode)
        self._bytes += len(snapshot.data)
        while self._bytes > self.max_bytes:
            self._bytes -= len(self._saved.popitem(last=False)[1].data)

    def _stand(self, position: Position, game: Game) -> None:
        """Let a live game stand at a position; those that stood still longest make room."""
        self._live.setdefault(position, []).append(game)
        self._live.move_to_end(position)
        self._standing += 1
        while self._standing > self.max_games:
            place = next(iter(self._live))
            self._keep(place, self._leave(place)[0])

    def _leave(self, position: Position) -> list[Game]:
        games = self._live.pop(position, [])
        self._standing -= len(games)
        return games

    def _spare_game(self) -> Game:
        return self._spares.pop() if self._spares else self.make()

    def _put_away(self, game: Game) -> None:
        """Keep a game for later: as many as begin together, or as may be lived again where games cannot be copied."""
        enough = self._parallel if self.mode == "copy" else self.max_games
        if self.reuse and len(self._spares) < enough:
            self._spares.append(game)

    def _forget(self) -> None:
        self._live: OrderedDict[Position, list[Game]] = OrderedDict()
        self._saved: OrderedDict[Position, Snapshot] = OrderedDict()
        self._spares: list[Game] = []
        self._bytes = self._standing = self._parallel = 0

    def __getstate__(self) -> dict[str, Any]:
        """Without the games: a copy in another process rebuilds what it needs."""
        kept = ("make", "face", "mode", "why", "reuse", "max_games", "max_bytes")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()
