"""Curves while training: every measurement also as a TensorBoard scalar (extra `tensorboard`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from marl.results import Row


def check() -> None:
    """Raise ValueError, one sentence, where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise ValueError("TensorBoard is not installed; pip install 'credit-sandbox[tensorboard]'")


def logged(rows: Iterable[Row], folder: Path) -> Iterator[Row]:
    """Pass rows through; write each as the scalar `metric` of a run `seed_<k>` at its environment step."""
    check()
    from torch.utils.tensorboard import SummaryWriter

    writers: dict[int, SummaryWriter] = {}
    try:
        for row in rows:
            if row.seed not in writers:
                writers[row.seed] = SummaryWriter(str(folder / f"seed_{row.seed}"))
            writers[row.seed].add_scalar(row.metric, row.value, row.env_steps)
            yield row
    finally:
        for writer in writers.values():
            writer.close()
