"""How every plot looks: colours that colour-blind readers can tell apart, thin grids, clear axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "BAD", "COLOURS", "GREY", "INK", "LINE", "SCALE",
    "axis", "figure_of", "layout", "log_axis", "stroke",
]  # fmt: skip

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B4B8A", "#7F7F7F")
"""Okabe and Ito's palette, without its yellow (too faint on white)."""
DASHES = ("solid", "dash", "dot", "dashdot")
INK, GREY, LINE, BAD = "#1f2933", "#7b8794", "#e4e7eb", "#D55E00"
SCALE = "Cividis"
"""Sequential colours, even in lightness and safe for colour-blind readers."""
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def stroke(index: int) -> dict[str, Any]:
    """The line of the index-th system: colours first, then dashes."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "dash": DASHES[index // len(COLOURS) % len(DASHES)],
        "width": 2,
    }


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """One axis."""
    base: dict[str, Any] = {
        "title": {"text": title, "font": {"size": 12}, "standoff": 8},
        "gridcolor": LINE,
        "linecolor": GREY,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": LINE,
        "ticklen": 4,
        "automargin": True,
        "fixedrange": False,
    }
    return base | more


def log_axis(
    title: str, values: Sequence[float], show: Callable[[float], str], **more: Any
) -> dict[str, Any]:
    """A logarithmic axis over positive values: the fewer powers of ten, the more ticks between them."""
    low, high = math.log10(min(values)), math.log10(max(values))
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps: tuple[float, ...] = (1, 2, 5) if high - low < 2 else (1,)
    if high - low < 0.7:
        steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    every = max(1, len(powers) // 6)
    ticks = [step * 10.0**power for power in powers[::every] for step in steps]
    return axis(
        title, type="log", tickmode="array", tickvals=ticks, ticktext=[show(t) for t in ticks], **more
    )


def layout(height: int = 320, **more: Any) -> dict[str, Any]:
    """The rest of a figure's layout."""
    return {
        "height": height,
        "margin": {"l": 60, "r": 16, "t": 36, "b": 48},
        "font": {"family": _FONT, "size": 12, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": LINE, "font": {"color": INK}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        "colorway": list(COLOURS),
        "bargap": 0.25,
    } | more


def figure_of(traces: list[dict[str, Any]], shape: dict[str, Any]) -> dict[str, Any]:
    """A Plotly figure as plain data (``plotly.graph_objects.Figure`` accepts it)."""
    if len(traces) < 2:
        shape.setdefault("showlegend", False)
    if shape.get("showlegend") is False:
        shape["margin"] = shape["margin"] | {"t": 10}
    return {"data": traces, "layout": shape}
