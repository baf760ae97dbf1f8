"""One small visual language for every game: a header with the facts, discs for agents, bars for quantities.

Colours are Okabe and Ito's (2008), told apart by colour-blind readers too, and mean the same in every game.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Color = str

PAPER: Color = "#FFFFFF"
INK: Color = "#222222"
QUIET: Color = "#8C8C8C"  # labels and axes
FAINT: Color = "#E4E4E4"  # what is there but idle
GOOD: Color = "#009E73"  # right, safe
BAD: Color = "#D55E00"  # wrong, fallen, crowded
ALERT: Color = "#E69F00"  # a danger, a decision
CALM: Color = "#56B4E9"  # the ordinary case
TEAM: Color = "#0072B2"  # rewards and totals
ODD: Color = "#CC79A7"  # what needs one more colour

HEADER = 44  # height of the header: draw below it
_SHARP = 2  # drawn this much larger, then shrunk: smooth edges


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size * _SHARP)


class Canvas:
    """A picture of width x height pixels to draw on; the origin is the upper left corner, y grows downwards."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.width, self.height = width, height
        self._image = Image.new("RGB", (width * _SHARP, height * _SHARP), PAPER)
        self._pen = ImageDraw.Draw(self._image)

    def rectangle(
        self, x: float, y: float, width: float, height: float, fill: Color | None = None, outline: Color | None = None
    ) -> None:
        """A box with its upper left corner at (x, y); an outline is 2 pixels wide."""
        box = (x * _SHARP, y * _SHARP, (x + width) * _SHARP, (y + height) * _SHARP)
        self._pen.rectangle(box, fill, outline, width=2 * _SHARP)

    def disc(self, x: float, y: float, radius: float, fill: Color, outline: Color | None = None) -> None:
        """A disc around (x, y)."""
        box = ((x - radius) * _SHARP, (y - radius) * _SHARP, (x + radius) * _SHARP, (y + radius) * _SHARP)
        self._pen.ellipse(box, fill, outline, width=2 * _SHARP)

    def line(self, points: Sequence[tuple[float, float]], color: Color = INK, width: float = 2) -> None:
        """A line through the points."""
        scaled = [(x * _SHARP, y * _SHARP) for x, y in points]
        self._pen.line(scaled, color, round(width * _SHARP), joint="curve")

    def text(self, x: float, y: float, words: object, size: int = 14, color: Color = INK, anchor: str = "la") -> None:
        """Words at (x, y). Anchor: l, m, r (left, middle, right) then a, m, s (top, middle, baseline)."""
        self._pen.text((x * _SHARP, y * _SHARP), str(words), color, _font(size), anchor)

    def header(self, title: str, step: int, horizon: int, reward: float | None = None, note: str = "") -> None:
        """The line that every picture opens with: the game, the step, the return if the state tells it, and a note."""
        self.text(12, 10, title, size=16)
        earned = "" if reward is None else f"   return {reward:.3f}"
        self.text(self.width - 12, 10, f"step {step}/{horizon}{earned}", size=14, color=TEAM, anchor="ra")
        if note:
            self.text(12, 31, note, size=11, color=QUIET)

    def agents(self, y: float, fills: Sequence[Color], labels: Sequence[object] = ()) -> float:
        """Rows of one disc an agent, centred, labels inside while they fit. Returns the y below the last row."""
        columns = min(len(fills), 30)
        pitch = min(48.0, (self.width - 24) / columns)
        radius = 0.4 * pitch
        left = (self.width - pitch * columns) / 2
        for i, fill in enumerate(fills):
            row, column = divmod(i, columns)
            x, level = left + (column + 0.5) * pitch, y + (row + 0.5) * pitch
            self.disc(x, level, radius, fill)
            if labels and radius >= 7:
                self.text(x, level, labels[i], size=max(9, int(radius)), color=on(fill), anchor="mm")
        return y + pitch * -(-len(fills) // columns)

    def array(self) -> NDArray[np.uint8]:
        """The picture, uint8 [height, width, 3]."""
        from PIL import Image

        small = self._image.resize((self.width, self.height), Image.Resampling.LANCZOS)
        return np.array(small, dtype=np.uint8)


def on(fill: Color) -> Color:
    """The ink that is readable on a fill: dark on light colours, white on dark ones."""
    red, green, blue = (int(fill[k : k + 2], 16) for k in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER
