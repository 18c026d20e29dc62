"""How every plot looks: colours that colour-blind readers can tell apart, thin grids, clear axes."""

from __future__ import annotations

from typing import Any

__all__ = ["BAD", "COLOURS", "GREY", "INK", "SCALE", "axis", "figure_of", "layout"]

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
    if more.get("type") == "log":
        base |= {"dtick": "D2" if more.pop("fine", False) else 1, "exponentformat": "power"}
    return base | more


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
    return {"data": traces, "layout": shape}
