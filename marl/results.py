"""Rows to disk and back: a killed sweep leaves whole files or none, and every figure is redrawn from the files alone.

A cell is one game with its knobs x one method, all seeds. It is three files named by a hash of its configuration:
`<id>.credit.parquet` (credit maps, optional), `<id>.json` (configuration and provenance) and `<id>.parquet` (tidy
rows), put in place in this order. The rows come last, so their existence means "done". Until then `<id>.checkpoint.pt`
may lie there: a run that can go on.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
"""Version of the layout below; a folder of another version is refused."""

COLUMNS = ("question", "game", "knobs", "method", "seed", "env_steps", "simulator_steps", "seconds", "metric", "value")
CREDIT_COLUMNS = ("seed", "episode", "t", "agent", "value", "truth")
FIGURES = "figures"
"""The one folder that may lie beside the cells: what was drawn from them."""

_OURS = re.compile(r"([0-9a-f]{16})(\.json|\.parquet|\.credit\.parquet|\.checkpoint\.pt)(\.tmp\.\d+)?")
_MARK = re.compile(r"\.([0-9a-f]{16})\.running")
_STALE = 3600.0  # seconds; no cell takes this long to write, so an older temporary file belongs to a killed process
_REQUIRED = ("question", "game", "knobs", "method")
_REQUIRED_OF_METHOD = ("name", "family", "rank", "privileged")


class ResultsError(ValueError):
    """A results folder cannot be used; the message says which file or folder, and why, in one sentence."""


class Row(NamedTuple):
    """One measurement of one seed: what an experiment yields."""

    seed: int
    env_steps: int  # environment steps this seed had trained on
    simulator_steps: int  # counterfactual steps its method had asked for by then, beyond env_steps
    seconds: float  # wall-clock since the cell began, all of its seeds together
    metric: str  # snake case, e.g. "score"
    value: float  # NaN where the metric is undefined


def credit_columns(
    seed: ArrayLike, episode: ArrayLike, value: ArrayLike, truth: ArrayLike, alive: ArrayLike
) -> dict[str, np.ndarray]:
    """Credit maps as the tidy columns that `write_cell` takes.

    Args:
        seed, episode: [B] which episode of which seed each map is of.
        value, truth: [T,B,N] a method's credit and the truth. Dead steps become NaN in both.
        alive: [T,B].
    Returns:
        CREDIT_COLUMNS, each of length T*B*N.
    """
    living = np.asarray(alive, dtype=bool)[..., None]
    values = np.where(living, np.asarray(value, dtype=float), np.nan)
    truths = np.where(living, np.asarray(truth, dtype=float), np.nan)
    if values.ndim != 3 or values.shape != truths.shape:
        raise ValueError(f"value {values.shape} and truth {truths.shape} must both be [T,B,N]")
    t, b, agent = np.indices(values.shape).reshape(3, -1)
    seeds = np.broadcast_to(seed, values.shape[1:2])[b]
    episodes = np.broadcast_to(episode, values.shape[1:2])[b]
    return dict(zip(CREDIT_COLUMNS, (seeds, episodes, t, agent, values.ravel(), truths.ravel()), strict=True))


def cell_id(config: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of BLAKE2b over the canonical JSON of the configuration, provenance and format left out."""
    bare = {key: value for key, value in config.items() if key not in ("format", "provenance")}
    return hashlib.blake2b(canonical(bare).encode(), digest_size=8).hexdigest()


def canonical(value: object) -> str:
    """One text for equal JSON values; the column `knobs` holds it. Raises ResultsError for anything but JSON values."""
    try:  # through JSON once first: afterwards every key is a string and sorts as one
        plain = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ResultsError(f"a configuration must hold plain JSON values only: {error}") from error
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def provenance() -> dict[str, str | None]:
    """Versions, git commit (None outside a checkout) and date: what a result needs to be believed later."""
    return {**_versions(), "commit": _commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}


def prepare(folder: str | os.PathLike[str]) -> None:
    """Create the folder, see that it is writable and holds nothing but cells of this format.

    Raises ResultsError. Temporary files of processes killed more than an hour ago are removed.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        _replace(path / f"{'0' * 16}.json", b"{}", keep=False)
    except OSError as error:
        raise ResultsError(f"cannot write results to {path}: {error.strerror or error}") from error
    for entry in sorted(path.iterdir()):
        match = _OURS.fullmatch(entry.name)
        if match is None:
            mark = _MARK.fullmatch(entry.name)
            if mark is not None and (path / f"{mark[1]}.parquet").is_file():
                entry.unlink(missing_ok=True)  # a worker that was killed said that it was at this cell
            elif entry.name != FIGURES and not entry.name.startswith("."):
                raise ResultsError(f"{path} holds {entry.name}, which is not a result; choose a folder of its own")
        elif match[3]:
            _sweep_up(entry)
        elif match[2] == ".json":
            _configuration(entry)
        elif match[2] == ".checkpoint.pt" and (path / f"{match[1]}.parquet").is_file():
            entry.unlink(missing_ok=True)  # of a run that was killed between its last two lines


def done(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> bool:
    """Whether this cell's rows are on disk."""
    return (Path(folder) / f"{cell_id(config)}.parquet").is_file()


def write_cell(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    rows: Iterable[Row],
    credit: Mapping[str, ArrayLike] | None = None,
) -> Path:
    """Put one finished cell on disk and return the path of its rows; an older copy of the same cell is replaced.

    Every file is written to a temporary name (with the pid), flushed to the disk and renamed.

    Args:
        config: the full configuration, JSON values only. It holds "question", "game", "knobs" and "method" (with
            "name", "family", "rank", "privileged"); "format" and "provenance" are added.
        rows: every measurement of every seed.
        credit: CREDIT_COLUMNS as equally long columns (see `credit_columns`), or None.
    Raises:
        ResultsError: the configuration is incomplete, there are no rows, the disk is full or the folder not writable.
    """
    _check(config, "the configuration")
    path = Path(folder) / f"{cell_id(config)}.parquet"
    stored = {**config, "format": FORMAT, "provenance": provenance()}
    files = {
        path.with_suffix(".credit.parquet"): None if credit is None else _credit_bytes(credit),
        path.with_suffix(".json"): (json.dumps(stored, indent=1, allow_nan=False) + "\n").encode(),
        path: _row_bytes(config, list(rows)),
    }
    for file, content in files.items():
        if content is not None:
            write_file(file, content)
            continue
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise ResultsError(f"cannot write {file}: {error.strerror or error}") from error
    return path


def write_file(file: str | os.PathLike[str], content: bytes) -> None:
    """All of `content` at `file`, or what was there before. Raises ResultsError: the disk is full, no such folder."""
    try:
        _replace(Path(file), content)
    except OSError as error:
        raise ResultsError(f"cannot write {file}: {error.strerror or error}") from error


def configs(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Configurations (with "format" and "provenance") of the finished cells, in the order of their ids.

    Raises ResultsError: no such folder, nothing finished in it, another format, a broken or edited file.
    """
    return list(_finished(Path(folder)).values())


def read(folder: str | os.PathLike[str], cells: Collection[str] | None = None) -> pd.DataFrame:
    """All rows of a folder.

    COLUMNS, then `cell` (the id), `family`, `rank` and `privileged` of the method, and one column a knob (NaN where a
    cell has no such knob; a knob named like another column is found in `knobs` only).

    Args:
        cells: ids to read; None: every finished cell.
    Raises:
        ResultsError: as `configs`.
    """
    return _read(Path(folder), ".parquet", COLUMNS, cells)


def read_credit(folder: str | os.PathLike[str], cells: Collection[str] | None = None) -> pd.DataFrame:
    """All credit maps of a folder: CREDIT_COLUMNS with the identifying columns of `read`; empty where no cell has any.

    Raises ResultsError as `configs`.
    """
    return _read(Path(folder), ".credit.parquet", CREDIT_COLUMNS, cells)


def _read(folder: Path, suffix: str, columns: Sequence[str], cells: Collection[str] | None) -> pd.DataFrame:
    import pandas as pd

    frames = []
    for cell, config in _finished(folder).items():
        file = folder / f"{cell}{suffix}"
        if (cells is None or cell in cells) and file.is_file():
            frame = _parquet(file, columns)
            known = _identity(config)
            knobs = {k: v for k, v in config["knobs"].items() if k not in known and k not in columns and _scalar(v)}
            frames.append(frame.assign(**{k: v for k, v in (known | knobs).items() if k not in columns}))
    if frames:
        return pd.concat(frames, ignore_index=True)
    return pd.DataFrame(columns=[*columns, *(k for k in ("cell", *_IDENTITY) if k not in columns)])


_IDENTITY = ("question", "game", "knobs", "method", "family", "rank", "privileged")


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    method = config["method"]
    names = (config["question"], config["game"], canonical(config["knobs"]), method["name"])
    values = (*names, method["family"], method["rank"], method["privileged"])
    return {"cell": cell_id(config)} | dict(zip(_IDENTITY, values, strict=True))


def _scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _finished(folder: Path) -> dict[str, dict[str, Any]]:
    """{cell id: configuration} of every cell whose rows exist."""
    if not folder.is_dir():
        raise ResultsError(f"there are no results at {folder}: no such folder")
    matches = [match for match in map(_OURS.fullmatch, sorted(os.listdir(folder))) if match]
    found = {m[1]: _configuration(folder / f"{m[1]}.json") for m in matches if m[2] == ".parquet" and not m[3]}
    if not found:
        raise ResultsError(f"{folder} holds no finished cell")
    return found


def _configuration(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_bytes())
        version = config["format"]
    except FileNotFoundError:
        raise ResultsError(f"{file} is missing, so nobody can say what the rows beside it are") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ResultsError(f"{file} is not a configuration that this program wrote") from None
    if version != FORMAT:
        raise ResultsError(f"{file} is of format {version!r}, this program reads format {FORMAT}; use another folder")
    _check(config, str(file))
    if cell_id(config) != file.name[:16]:
        raise ResultsError(f"{file} was changed after it was written: its content does not hash to its name")
    return config


def _check(config: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration without the parts that name a cell."""
    missing = [key for key in _REQUIRED if key not in config]
    if not missing:
        missing = [f"method.{key}" for key in _REQUIRED_OF_METHOD if key not in config["method"]]
    if missing:
        raise ResultsError(f"{where} lacks {', '.join(missing)}")


def _parquet(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(file, page_checksum_verification=True)[list(columns)]
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are among these
        why = " ".join(str(error).split())[:120]
        raise ResultsError(f"{file} is broken or not ours (remove it to compute its cell again): {why}") from error


def _row_bytes(config: Mapping[str, Any], rows: list[Row]) -> bytes:
    import pandas as pd

    if not rows:
        raise ResultsError(f"the cell {cell_id(config)} has no rows to write")
    types = {
        "seed": "int64",
        "env_steps": "int64",
        "simulator_steps": "int64",
        "seconds": "float64",
        "value": "float64",
    }
    frame = pd.DataFrame(rows, columns=list(Row._fields)).astype(types)
    known = {key: value for key, value in _identity(config).items() if key in COLUMNS}
    return _parquet_bytes(frame.assign(**known)[list(COLUMNS)])


def _credit_bytes(credit: Mapping[str, ArrayLike]) -> bytes:
    import pandas as pd

    missing = [name for name in CREDIT_COLUMNS if name not in credit]
    if missing:
        raise ResultsError(f"the credit maps lack the columns {', '.join(missing)}")
    return _parquet_bytes(pd.DataFrame({name: np.asarray(credit[name]) for name in CREDIT_COLUMNS}))


def _parquet_bytes(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, write_page_checksum=True)
    return buffer.getvalue()


def _replace(file: Path, content: bytes, keep: bool = True) -> None:
    """All of `content` at `file`, or what was there before; `keep=False` only tries whether it could be written."""
    temporary = file.with_name(f"{file.name}.tmp.{os.getpid()}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if keep:
            os.replace(temporary, file)
            _sync_folder(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system lets a folder be flushed (Windows does not)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep_up(temporary: Path) -> None:
    """Remove a temporary file that nobody can still be writing (its process may run on another machine: go by age)."""
    try:
        if time.time() - temporary.stat().st_mtime > _STALE:
            temporary.unlink()
    except OSError:
        return  # somebody else removed or renamed it first, or it is not ours to remove: harmless either way


@lru_cache(maxsize=1)
def _versions() -> dict[str, str | None]:
    packages = ("credit-sandbox", "torch", "numpy", "pettingzoo")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _commit() -> str | None:
    """The checkout's commit, with -dirty after uncommitted changes; None where git does not know this file."""
    here = Path(__file__).resolve()
    ask = ["git", "-C", str(here.parent)]
    try:
        # An installed copy may lie inside somebody else's checkout: ask whether git knows this very file.
        subprocess.run([*ask, "ls-files", "--error-unmatch", here.name], check=True, capture_output=True, timeout=10)
        describe = [*ask, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
