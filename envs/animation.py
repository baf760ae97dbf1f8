"""A game's pictures with their captions, as one small GIF."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from envs.drawing import FAINT, INK, PAPER, QUIET, TEAM, Canvas, on, signed, text_width
from envs.play import Caption, numbers

Picture = NDArray[np.uint8]

NUMBERED = 12  # up to so many agents, credit is written out; beyond, colours alone
NARROWEST = 440  # pixels that a caption needs
MARGIN = 12
TITLES = 46  # width of the column that names a caption's rows
CELL = 38  # width of a number
FASTEST = 50  # frames a second; viewers slow down what is faster
HELD_MS = 3000  # how long the last frame stays
COLOURS, EXACT = 200, 64  # in the palette; the most common ones are kept exactly


def picture(game: Any, state: Any, caption: Caption) -> Picture:
    """The game's own picture of a state above the caption, uint8 [height, width, 3]."""
    drawn: Picture = game.draw(state)
    if drawn.shape[1] < NARROWEST:
        left = (NARROWEST - drawn.shape[1]) // 2
        right = NARROWEST - drawn.shape[1] - left
        drawn = np.pad(drawn, ((0, 0), (left, right), (0, 0)), constant_values=255)
    return np.vstack([drawn, strip(game.n_agents, drawn.shape[1], caption)])


def strip(n: int, width: int, caption: Caption) -> Picture:
    """The caption of n agents: what the step paid, then who did what and what it was worth."""
    known = bool(caption.credit)
    columns = max(1, min(n, (width - 2 * MARGIN - TITLES) // CELL))
    block = 62 if known else 36
    side = _side(n, width)
    per_row = int((width - 2 * MARGIN) // side)
    body = block * -(-n // columns) if n <= NUMBERED else side * -(-n // per_row) + 26
    canvas = Canvas(width, round(34 + body + (26 if known else 4)))
    canvas.line([(0, 1), (width, 1)], FAINT)
    canvas.text(MARGIN, 10, caption.words, 14, INK)
    canvas.text(width - MARGIN, 10, caption.total, 14, TEAM, "ra")
    if n <= NUMBERED:
        _numbers(canvas, n, columns, block, caption)
    else:
        _cells(canvas, n, per_row, side, caption)
    if known:
        _scale(canvas, caption)
    return canvas.array()


def _numbers(canvas: Canvas, n: int, columns: int, block: int, caption: Caption) -> None:
    """Blocks of three rows: agent, its action, its credit as a number on the colour of its size."""
    words, _ = numbers(caption.credit, caption.scale)
    for i in range(n):
        top = 34.0 + block * (i // columns)
        x = MARGIN + TITLES + (i % columns + 0.5) * CELL
        if i % columns == 0:
            rows = ("at step", "largest") if caption.at else ("action", "credit")
            for title, level in (("agent", 8), (rows[0], 24), (rows[1], 44))[: 3 if caption.credit else 2]:
                canvas.text(MARGIN, top + level, title, 11, QUIET, "lm")
        canvas.text(x, top + 8, i, 11, QUIET, "mm")
        second = caption.actions or caption.at
        canvas.text(x, top + 24, second[i] if second else "·", 12, INK, "mm")
        if caption.credit:
            fill = signed(caption.credit[i], caption.scale)
            canvas.rectangle(x - CELL / 2 + 1, top + 34, CELL - 2, 20, fill, FAINT)
            canvas.text(x, top + 44, words[i], 11, on(fill), "mm")


def _side(n: int, width: int) -> float:
    """Of one agent's cell: as large as six rows of them allow, 6 to 18 pixels."""
    side = 18
    while side > 6 and -(-n // ((width - 2 * MARGIN) // side)) > 6:
        side -= 1
    return side


def _cells(canvas: Canvas, n: int, per_row: int, side: float, caption: Caption) -> None:
    """One cell an agent, row by row: its colour is the credit, the digit in it the action."""
    words = f"agents 0 to {n - 1}, row by row"
    if caption.credit:
        words += "; colour: largest credit of all steps" if caption.at else "; colour: credit"
    if caption.actions and side >= 14:
        words += "; digit: action"
    canvas.text(MARGIN, 42, words, 11, QUIET, "lm")
    for i in range(n):
        x, y = MARGIN + side * (i % per_row), 54 + side * (i // per_row)
        fill = signed(caption.credit[i], caption.scale) if caption.credit else PAPER
        canvas.rectangle(x, y, side - 1, side - 1, fill, FAINT if side >= 10 else None)
        if caption.actions and side >= 14:
            canvas.text(x + side / 2 - 0.5, y + side / 2 - 0.5, caption.actions[i], 9, on(fill), "mm")


def _scale(canvas: Canvas, caption: Caption) -> None:
    """What credit is, and which colour is how much."""
    y = canvas.height - 14
    ends, unit = numbers([-caption.scale, caption.scale], caption.scale)
    if caption.scale == 0:
        canvas.text(MARGIN, y, f"credit: no action changed the return against its {caption.instead}", 11, QUIET, "lm")
        return
    title = f"credit in {unit}" if unit else "credit"
    canvas.text(MARGIN, y, f"{title}: gain in return over its {caption.instead}", 11, QUIET, "lm")
    x = float(canvas.width - MARGIN)
    for word in (ends[1], None, ends[0]):
        if word is None:
            x -= 66
            for k in range(60):
                canvas.rectangle(x + k, y - 5, 1, 10, signed(k - 29.5, 29.5))
            x -= 6
        else:
            canvas.text(x, y, word, 11, QUIET, "rm")
            x -= text_width(word, 11)


# --- the file ------------------------------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete, or not at all.

    Raises:
        OSError: at once, before any work, where nothing can be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    part = path.absolute().with_name(f".{path.name}.{os.getpid()}.part")
    try:
        file = part.open("wb")
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    try:
        with file:
            yield file
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def save(file: BinaryIO, pictures: Sequence[Picture], fps: float) -> None:
    """Pictures of one size as a GIF that loops, all in one palette; the last one is held.

    Only what changes from frame to frame is stored.
    """
    from PIL import Image

    palette, index = _palette(pictures)
    images = []
    for shown in pictures:
        image = Image.fromarray(index[_keys(shown)], "P")
        image.putpalette(palette)
        images.append(image)
    step = max(20, 10 * round(100 / fps))  # GIFs count in hundredths of a second
    held = [step] * (len(images) - 1) + [max(step, HELD_MS)]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=held, loop=0, optimize=True)


def _keys(pixels: NDArray[Any]) -> NDArray[np.int32]:
    """[..., 3] channels as one number a pixel."""
    red, green, blue = (pixels[..., k].astype(np.int32) for k in range(3))
    return (red << 16) | (green << 8) | blue


def _palette(pictures: Sequence[Picture]) -> tuple[list[int], NDArray[np.uint8]]:
    """Colours that serve all pictures, and for each of 2**24 keys the place of its nearest one (where it occurs).

    The most common colours stay exact, the rest are merged by median cut. There each colour counts once, so that a
    mark that only one frame has keeps its colour.
    """
    from PIL import Image

    count = np.zeros(1 << 24, np.int64)
    for shown in pictures:
        keys, times = np.unique(_keys(shown), return_counts=True)
        count[keys] += times
    seen = np.flatnonzero(count)
    seen = seen[np.argsort(-count[seen], kind="stable")]
    colors = np.stack([seen >> 16, (seen >> 8) & 255, seen & 255], -1)
    palette = colors[:EXACT]
    if len(colors) > EXACT:
        rest = Image.fromarray(colors[None, EXACT:].astype(np.uint8))
        cut = rest.quantize(COLOURS - EXACT).getpalette()
        palette = np.concatenate([palette, np.array(cut).reshape(-1, 3)])
    far = (colors**2).sum(-1)[:, None] - 2 * colors @ palette.T + (palette**2).sum(-1)
    index = np.zeros(1 << 24, np.uint8)
    index[seen] = far.argmin(-1)
    return palette.reshape(-1).tolist(), index
