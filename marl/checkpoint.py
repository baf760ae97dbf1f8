"""A run under way, kept every few minutes: whoever kills it loses minutes, and no number of it changes."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from marl.results import Row, cell_id, provenance

EVERY = 120.0  # seconds between two checkpoints
SHARE = 20.0  # at most one part in so many of the time is spent on writing them
SUFFIX = ".checkpoint.pt"
_DIGEST = 32  # bytes


def warn(sentence: str) -> None:
    """One line on stderr."""
    print(f"warning: {sentence}", file=sys.stderr, flush=True)


class Checkpoint:
    """One file beside a cell: JSON (where the run is, its rows so far) and tensors, read with `weights_only` alone.

    The file is a BLAKE2b digest of 32 bytes and, behind it, what `torch.save` wrote; it is written to a temporary
    name and renamed. A file that is torn, of another configuration or of other versions of the code is refused with
    one sentence and the run starts over. The clock is monotonic: it does not matter if the time of day is set back.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Mapping[str, Any],
        every: float = EVERY,
        say: Callable[[str], None] = warn,
    ) -> None:
        self.file = Path(folder) / f"{cell_id(config)}{SUFFIX}"
        self.every, self.say = every, say
        self.rows: list[Row] = []  # told so far
        self._next, self._refused = time.monotonic() + every, False
        stored = provenance()
        self._about = {"cell": cell_id(config), "made by": {k: v for k, v in stored.items() if k != "date"}}

    def restore(self, load: Callable[[dict[str, Any]], None]) -> tuple[int, float]:
        """(updates behind, seconds spent) of the kept run, whose state goes into `load`; (0, 0.0) where there is none.

        A file that cannot be used is named in one sentence and removed: `load` may then have been called in vain.
        Raises Unusable in that case alone, so that the caller can begin with fresh networks.
        """
        if not self.file.is_file():
            return 0, 0.0
        try:
            about, state = _read(self.file)
            for what, ours in self._about.items():
                if about[what] != ours:
                    raise ValueError("it was made by another configuration or version of this program")
            update, seconds, rows = about["update"], about["seconds"], [Row(*row) for row in about["rows"]]
            load(state)
        except Exception as error:  # whatever torch makes of a broken file
            self.say(f"{self.file} is of no use, its run starts over: {' '.join(str(error).split())[:160]}")
            self.remove()
            raise Unusable(str(self.file)) from error
        self.rows = rows
        return update, seconds

    @property
    def due(self) -> bool:
        """Is it time to write again?"""
        return time.monotonic() >= self._next

    def write(self, update: int, seconds: float, state: dict[str, Any]) -> None:
        """Keep the run: `update` batches are behind. A disk that takes nothing is named; the older file stays."""
        started = time.monotonic()
        about = {**self._about, "update": update, "seconds": seconds, "rows": self.rows}
        temporary = self.file.with_name(f"{self.file.name}.tmp.{os.getpid()}")
        try:
            with open(temporary, "w+b") as stream:
                _write(stream, json.dumps(about), state)
            os.replace(temporary, self.file)
        except OSError as error:
            if not self._refused:  # once is enough
                self.say(f"cannot write {self.file}, the run goes on: {error.strerror or error}")
            self._refused = True
        finally:
            _unlink(temporary)
        now = time.monotonic()
        self._next = now + max(self.every, SHARE * (now - started))

    def remove(self) -> None:
        """The run is over, or starts over."""
        _unlink(self.file)
        self.rows = []


def forget(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
    """Remove what a killed run of this cell has kept: it starts over."""
    _unlink(Path(folder) / f"{cell_id(config)}{SUFFIX}")


class Unusable(Exception):
    """A checkpoint that could not be used; it has been named and removed."""


class _Hashing:
    """A stream that hashes what goes through. It keeps the first refusal of the disk until torch has finished."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest = stream, hashlib.blake2b(digest_size=_DIGEST)
        self.refused: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        if self.refused is None:
            try:
                self.stream.write(data)
            except OSError as error:
                self.refused = error
        return len(data)

    def flush(self) -> None:
        """Nothing: the caller flushes."""


def _write(stream: IO[bytes], about: str, state: dict[str, Any]) -> None:
    stream.write(bytes(_DIGEST))
    through: Any = _Hashing(stream)
    torch.save({"about": about, "state": state}, through)
    if through.refused is not None:
        raise through.refused
    stream.seek(0)
    stream.write(through.digest.digest())
    stream.flush()
    os.fsync(stream.fileno())


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with open(file, "rb") as stream:
        said, found = stream.read(_DIGEST), hashlib.blake2b(digest_size=_DIGEST)
        while block := stream.read(1 << 20):
            found.update(block)
        if found.digest() != said:
            raise ValueError("it is torn or was changed after it was written")
        stream.seek(_DIGEST)
        kept = torch.load(stream, weights_only=True)
    return json.loads(kept["about"]), kept["state"]


def _unlink(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError:
        return  # a path below a file, or a folder that became read-only: whoever writes the cell says so
