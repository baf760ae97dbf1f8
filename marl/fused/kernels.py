"""From blocks to machine code: compiled on first use, kept on disk, run by as many threads as torch may use."""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from marl.fused.blocks import BLOCK, CONSTANTS, LANES, layout

SIGNATURES: dict[Callable[..., None], Any] = {}  # of every kernel, so that it is compiled before it is called


@cache
def _compiled(kernel: Callable[..., None], parallel: bool) -> Any:
    """A kernel for one thread or for as many as torch uses; machine code is kept beside this file."""
    # Numba looks for changes in the kernel's own file only, and knows code for many threads by no other name.
    kernel.__qualname__ = f"{kernel.__name__}_{_sources()}_{'many' if parallel else 'one'}"
    compiler = numba.njit(SIGNATURES[kernel], fastmath=True, error_model="numpy", cache=True, parallel=parallel)
    return compiler(kernel)


@cache
def _sources() -> str:
    """A digest of all files that hold compiled code."""
    texts = (file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    return sha256(b"".join(text for text in texts if b"import numba" in text)).hexdigest()[:12]


def ready(kernel: Callable[..., None], tasks: int) -> tuple[Any, int]:
    """A kernel's machine code for so many tasks, and how many workers will share them."""
    workers = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, tasks)  # type: ignore[attr-defined]
    if workers > 1:
        numba.set_num_threads(workers)
    return _compiled(kernel, workers > 1), workers


def run(kernel: Callable[..., None], tasks: int, x: Tensor, parameters: Tensor, plan: Any, *arguments: Any) -> None:
    """A kernel on a workspace for each worker; its other arguments are tensors and numbers."""
    compiled, workers = ready(kernel, tasks)
    sizes, at, space = plan
    seen = (x.detach().numpy() if isinstance(x, Tensor) else x for x in arguments)
    compiled(x.detach().numpy(), parameters.numpy(), sizes, at, space[:workers], *seen)


def parts_of(rows: int) -> int:
    """Tasks that the rows of one network are shared out to: whole blocks, and the same whatever trains beside it."""
    threads = torch.get_num_threads()
    return 1 if threads == 1 else max(1, min(-(-rows // BLOCK), threads))


@lru_cache(maxsize=64)
def _plan(sizes: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """(sizes, where things lie, a workspace for each thread): what lies between the parts of one stays 0."""
    widths = np.array(sizes, np.int64)
    at, end = layout(widths)
    space = np.zeros((numba.config.NUMBA_NUM_THREADS, end + LANES), np.float32)  # type: ignore[attr-defined]
    space[:, at[CONSTANTS, 1]] = 1
    return widths, at, space


def flat(layers: Sequence[Tensor]) -> tuple[Tensor, tuple[Any, Any, Any]]:
    """(parameters [P, .], plan) of all W [P,out,in] and then all b [P,out,1]."""
    return pack(layers), plan_of(layers)


def pack(layers: Sequence[Tensor]) -> Tensor:
    """[P, .] all numbers of a network, one layer after the other."""
    return torch.cat([p.detach().flatten(1) for p in layers], 1)


def plan_of(layers: Sequence[Tensor]) -> tuple[Any, Any, Any]:
    """What `_plan` has for networks of these layers."""
    return _plan((layers[0].shape[2], *(w.shape[1] for w in layers[: len(layers) // 2])))


def unflat(total: Tensor, layers: Sequence[Tensor]) -> list[Tensor]:
    """[P, .] as the gradient of each layer."""
    parts = total.split([p[0].numel() for p in layers], 1)
    return [part.reshape(p.shape) for part, p in zip(parts, layers, strict=True)]
