"""The parts that every page is made of: one file, no network, Plotly inlined once and packed."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["Box", "Page", "cell", "flat", "table"]


@cache
def _asset(name: str) -> str:
    return resources.files("shoal.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """Plotly's script, gzipped and in base64: 1.9 MB instead of 4.7; the browser unpacks it."""
    script = resources.files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(script, 9, mtime=0)).decode("ascii")


@dataclass(frozen=True)
class Box:
    """A plot with its title.

    Args:
        name: of the place, unique on the page.
        title: over it.
        figures: (option, figure); with more than one the reader chooses.
        hint: small print under the title.
    """

    name: str
    title: str
    figures: list[tuple[str, Any]]
    hint: str = ""


class Page:
    """An HTML page in the making.

    Args:
        title: plain text, like all other texts given here.
        lead: one sentence under the title.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self._body = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>']
        self._figures: dict[str, Any] = {}

    def cards(self, cards: Sequence[tuple[str, str, str]]) -> None:
        """Figures to see first: (label, value, small print)."""
        inside = "".join(
            f'<div class="card"><span>{html.escape(label)}</span><b>{html.escape(value)}</b>'
            f"<span>{html.escape(small)}</span></div>"
            for label, value, small in cards
        )
        self._body.append(f'<div class="cards">{inside}</div>')

    def notes(self, notes: Sequence[str]) -> None:
        """Lines that a reader must see."""
        self._body += [f'<div class="note">{html.escape(note)}</div>' for note in notes]

    def section(self, title: str, *inside: str, hint: str = "") -> None:
        """A box across the page."""
        self._body.append(self._box(title, hint, inside))

    def pairs(self, boxes: Sequence[Box]) -> None:
        """Plots in boxes, two a row and of one height; a lone one takes the whole row."""
        for at in range(0, len(boxes), 2):
            row = boxes[at : at + 2]
            height = max(figure["layout"]["height"] for box in row for _, figure in box.figures)
            inside = ""
            for box in row:
                for _, figure in box.figures:
                    figure["layout"]["height"] = height
                place = (
                    self.plot(box.name, box.figures[0][1], box.title)
                    if len(box.figures) == 1
                    else self._choice(box)
                )
                inside += self._box(box.title, box.hint, (place,))
            self._body.append(f'<div class="pair">{inside}</div>' if len(row) == 2 else inside)

    def fold(self, title: str, inside: str) -> None:
        """A box that opens on a click."""
        self._body.append(
            f"<section><details><summary>{html.escape(title)}</summary>{inside}</details></section>"
        )

    def plot(self, name: str, figure: Any, label: str) -> str:
        """The place of a figure; ``label`` says to a screen reader what it shows."""
        self._figures[name] = figure
        return (
            f'<div class="plot" id="plot-{name}" data-figure="{name}" role="img" '
            f'aria-label="{html.escape(label, quote=True)}" '
            f'style="min-height:{int(figure["layout"]["height"])}px"></div>'
        )

    def _choice(self, box: Box) -> str:
        """A plot and a list to choose which of several figures it shows."""
        name = box.name
        for at, (_, figure) in enumerate(box.figures):
            self._figures[f"{name}-{at}"] = figure
        listed = "".join(
            f'<option value="{name}-{at}">{html.escape(text)}</option>'
            for at, (text, _) in enumerate(box.figures)
        )
        plot = self.plot(f"{name}-0", box.figures[0][1], box.title)
        return f'<p><label>Run: <select data-plot="plot-{name}-0">{listed}</select></label></p>{plot}'

    def render(self) -> str:
        """The whole page."""
        # "</" would end the script element that holds the figures.
        figures = json.dumps(_finite(self._figures), separators=(",", ":")).replace("</", "<\\/")
        scripts = (
            f'<script id="figures" type="application/json">{figures}</script>'
            f'<script id="plotly" type="text/plain">{_plotly()}</script>'
            f"<script>{_asset('page.js')}</script>"
        )
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(self.title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n"
            "<body>\n<main>\n"
            + "\n".join(self._body)
            + "\n<footer>Made by Shoal. Drag over a plot to zoom, double-click to go back.</footer>\n"
            + "</main>\n"
            + (scripts if self._figures else "")
            + "\n</body>\n</html>\n"
        )

    @staticmethod
    def _box(title: str, hint: str, inside: Sequence[str]) -> str:
        small = f'<p class="hint">{html.escape(hint)}</p>' if hint else ""
        return f"<section><h2>{html.escape(title)}</h2>{small}{''.join(inside)}</section>"


def cell(text: str, kind: str = "", mark: str = "") -> str:
    """One table cell; ``mark``: a colour drawn before the text."""
    swatch = f'<i class="swatch" style="border-color:{mark}"></i>' if mark else ""
    return f'<td class="{kind}">{swatch}{html.escape(text)}</td>'


def table(head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """A table from (heading, class) pairs and rows of ready cells."""
    top = "".join(f'<th class="{kind}">{html.escape(text)}</th>' for text, kind in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested configuration as (dotted key, text) pairs; fields that are None are left out."""
    if isinstance(value, Mapping):
        return [pair for k, v in value.items() for pair in flat(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
        return [pair for i, v in enumerate(value) for pair in flat(v, f"{prefix}[{i}]")]
    if value is None:
        return []
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return [(prefix, text if len(text) <= 300 else text[:297] + "...")]


def _finite(value: Any) -> Any:
    """JSON has no NaN: a gap in the plot instead."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
