"""Figures read stored results and nothing else: each file here is one figure, found by `python -m benchmarks.plot`.

A figure's file has `needs(data) -> str` (empty when it can be drawn, else what is missing) and
`FIGURES: dict[str, Callable[[Data], Figure]]`, file name -> function. One that only a single question can draw says so
with `QUESTION`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from marl import results

if TYPE_CHECKING:
    import pandas as pd


class Data(NamedTuple):
    """What a figure is drawn from: one protocol's cells."""

    rows: pd.DataFrame  # as `marl.results.read`
    credit: pd.DataFrame  # as `marl.results.read_credit`; may be empty
    configs: list[dict[str, Any]]  # of the same cells
    left_out: int = 0  # cells in the folder that belong to another protocol


def load(folder: str | os.PathLike[str], cells: Collection[str] | None = None) -> Data:
    """The cells with these ids, or those of the latest protocol.

    Runs of different length, seeds or evaluation must not share an axis. Where a folder holds several protocols, the
    one that was written to last is taken, and of one method on one game the newest cell. Raises ResultsError.
    """
    stored = results.configs(folder)
    chosen = _latest(stored) if cells is None else [c for c in stored if results.cell_id(c) in cells]
    ids = {results.cell_id(config) for config in chosen}
    if not ids:
        raise results.ResultsError(f"{folder} holds none of the cells asked for")
    return Data(results.read(folder, ids), results.read_credit(folder, ids), chosen, len(stored) - len(chosen))


def _latest(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest protocol's cells, one a (game, knobs, method)."""

    def text(config: dict[str, Any], *keys: str) -> str:
        return json.dumps([config.get(key) for key in keys], sort_keys=True)

    by_date = sorted(configs, key=lambda config: str(config["provenance"]["date"]))
    budgets = ["budget" if "budget" in config else "steps" for config in by_date]
    protocol = [
        text(config, "question", budget, "seeds", "evaluation") for config, budget in zip(by_date, budgets, strict=True)
    ]
    newest = {
        text(config, "game", "knobs") + config["method"]["name"]: config
        for config, its in zip(by_date, protocol, strict=True)
        if its == protocol[-1]
    }
    return list(newest.values())
