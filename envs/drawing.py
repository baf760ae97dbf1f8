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
_COLUMNS = 30  # agents in a row, at most


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
        pitch = _pitch(self.width, len(fills))
        for i, (x, level) in enumerate(agent_places(self.width, len(fills), y)):
            self.disc(x, level, 0.4 * pitch, fills[i])
            if labels and 0.4 * pitch >= 7:
                self.text(x, level, labels[i], size=max(9, int(0.4 * pitch)), color=on(fills[i]), anchor="mm")
        return y + agents_height(self.width, len(fills))

    def legend(self, y: float, entries: Sequence[tuple[Color, str]], x: float = 12) -> None:
        """What the colours mean: a dot and its words, one entry after the other, the dots at height y."""
        for color, words in entries:
            self.disc(x + 5, y, 5, color, QUIET if color == PAPER else None)
            self.text(x + 14, y, words, 11, QUIET, "lm")
            x += 14 + text_width(words, 11) + 16

    def array(self) -> NDArray[np.uint8]:
        """The picture, uint8 [height, width, 3]."""
        from PIL import Image

        small = self._image.resize((self.width, self.height), Image.Resampling.LANCZOS)
        return np.array(small, dtype=np.uint8)


def _pitch(width: float, n: int) -> float:
    """Between the centres of neighbouring agents."""
    return min(48.0, (width - 24) / min(n, _COLUMNS))


def agents_height(width: float, n: int) -> float:
    """What `Canvas.agents` needs: know it before you make the canvas."""
    return _pitch(width, n) * -(-n // _COLUMNS)


def agent_places(width: float, n: int, y: float) -> list[tuple[float, float]]:
    """The centres of the n discs that `Canvas.agents` draws below y, to label them."""
    columns, pitch = min(n, _COLUMNS), _pitch(width, n)
    left = (width - pitch * columns) / 2
    return [(left + (i % columns + 0.5) * pitch, y + (i // columns + 0.5) * pitch) for i in range(n)]


def text_width(words: object, size: int = 14) -> float:
    """Pixels that words take."""
    length: float = _font(size).getlength(str(words))
    return length / _SHARP


def blend(start: Color, end: Color, share: float) -> Color:
    """`start` at share 0, `end` at share 1."""
    pairs = zip(_channels(start), _channels(end), strict=True)
    return "#{:02X}{:02X}{:02X}".format(*(round(a + share * (b - a)) for a, b in pairs))


def signed(value: float, scale: float) -> Color:
    """The colour of a signed number: orange at -scale, white at 0, blue at +scale, and no darker beyond."""
    share = max(-1.0, min(1.0, value / scale)) if scale > 0 else 0.0
    return blend(PAPER, TEAM if share > 0 else BAD, abs(share))


def _channels(color: Color) -> tuple[int, ...]:
    return tuple(int(color[k : k + 2], 16) for k in (1, 3, 5))


def on(fill: Color) -> Color:
    """The ink that is readable on a fill: dark on light colours, white on dark ones."""
    red, green, blue = _channels(fill)
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER
