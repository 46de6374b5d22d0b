"""Two plain charts with intervals, drawn with Pillow: lines over numbers, and groups of bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

# Told apart without color vision too (Okabe and Ito), black last.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#888888", "#000000")
_WIDTH, _HEIGHT = 900, 480
_LEFT, _RIGHT, _BOTTOM = 80, 30, 60
_INK, _FAINT = "#222222", "#dddddd"


@dataclass(frozen=True)
class Series:
    """Values that belong together.

    Attributes:
        name: in the legend.
        values: [value, low, high] by position, a number for lines and a group's index for bars; low and high
            may be None.
    """

    name: str
    values: dict[float, Sequence[float | None]]


def line_chart(title: str, x_name: str, series: Sequence[Series]) -> Image.Image:
    """Lines with error bars over numbers on the x axis."""
    xs = sorted({x for one in series for x in one.values})
    left, right = xs[0], xs[-1]
    span = (right - left) or 1
    chart = _Chart(title, series, _WIDTH)

    def place(x: float) -> float:
        return _LEFT + 20 + (x - left) / span * (chart.width - _LEFT - _RIGHT - 40)

    for x in xs:
        chart.text((place(x), _HEIGHT - _BOTTOM + 8), f"{x:g}", "ma")
    chart.text(((_LEFT + chart.width - _RIGHT) / 2, _HEIGHT - 22), x_name, "ma")
    for index, one in enumerate(series):
        color = _COLORS[index % len(_COLORS)]
        # Side by side, so that bars of equal k do not hide each other.
        shift = (index - (len(series) - 1) / 2) * 4
        points = [(place(x) + shift, chart.y(one.values[x][0])) for x in sorted(one.values)]
        if len(points) > 1:
            chart.draw.line(points, fill=color, width=3)
        for x, (left_of, y) in zip(sorted(one.values), points, strict=True):
            chart.interval(left_of, one.values[x], color)
            chart.draw.ellipse((left_of - 5, y - 5, left_of + 5, y + 5), fill=color)
    return chart.image


def bar_chart(title: str, groups: Sequence[str], series: Sequence[Series]) -> Image.Image:
    """A group of bars for each name, one of every series, with error bars."""
    chart = _Chart(title, series, max(_WIDTH, _LEFT + _RIGHT + max(110, 14 * len(series)) * len(groups)))
    room = (chart.width - _LEFT - _RIGHT) / len(groups)
    bar = room * 0.8 / len(series)
    for group, name in enumerate(groups):
        start = _LEFT + group * room
        chart.text((start + room / 2, _HEIGHT - _BOTTOM + 8), name, "ma")
        for index, one in enumerate(series):
            if group not in one.values:
                continue
            triple = one.values[group]
            x = start + room * 0.1 + index * bar
            ends = sorted((chart.y(triple[0]), chart.y(0.0)))
            chart.draw.rectangle((x, ends[0], x + bar - 2, ends[1]), fill=_COLORS[index % len(_COLORS)])
            chart.interval(x + bar / 2 - 1, triple, _INK)
    return chart.image


class _Chart:
    """A frame with a y axis that holds zero and every interval, a title and a legend."""

    def __init__(self, title: str, series: Sequence[Series], width: int) -> None:
        self.width = width
        self.image = Image.new("RGB", (width, _HEIGHT), "white")
        self.draw = ImageDraw.Draw(self.image)
        shown = [v for one in series for triple in one.values.values() for v in triple if v is not None]
        shown = [v for v in shown if math.isfinite(v)]
        step = _step(max([0.0, *shown]) - min([0.0, *shown]))
        self.low = math.floor(min([0.0, *shown]) / step) * step
        self.high = max(math.ceil(max([0.0, *shown]) / step), 1) * step
        self.text((_LEFT, 8), title, "la", 18)
        x, y = _LEFT, 42
        for index, one in enumerate(series):
            wide = 44 + int(self.draw.textlength(one.name, font=_font(14)))
            if x > _LEFT and x + wide > width:
                x, y = _LEFT, y + 20
            self.draw.rectangle((x, y, x + 14, y + 14), fill=_COLORS[index % len(_COLORS)])
            self.text((x + 20, y + 7), one.name, "lm")
            x += wide
        self.top = y + 30
        for index in range(round((self.high - self.low) / step) + 1):
            value = self.low + index * step
            y = self.y(value)
            self.draw.line((_LEFT, y, width - _RIGHT, y), fill=_INK if abs(value) < step / 1e6 else _FAINT)
            self.text((_LEFT - 8, y), f"{value:.10g}", "rm")

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if math.isfinite(value) else 0.0
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - self.top - _BOTTOM)

    def interval(self, x: float, triple: Sequence[float | None], color: str) -> None:
        if triple[1] is None or triple[2] is None:
            return
        low, high = self.y(triple[1]), self.y(triple[2])
        self.draw.line((x, low, x, high), fill=color, width=2)
        for y in (low, high):
            self.draw.line((x - 5, y, x + 5, y), fill=color, width=2)

    def text(self, place: tuple[float, float], text: str, anchor: str, size: int = 14) -> None:
        self.draw.text(place, text, fill=_INK, font=_font(size), anchor=anchor)


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _step(span: float) -> float:
    """A round number that divides a span into four to ten."""
    if span <= 0:
        return 0.25
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 8)
