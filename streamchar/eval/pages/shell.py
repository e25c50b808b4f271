"""The page around a report: templates from the package's assets, one self-contained file as the result."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import resources

from streamchar.eval.pages.evaluation import Entry

STYLES = 6
"""Colours for systems in style.css; a seventh starts over."""


def asset(name: str) -> str:
    """A template of the package."""
    return (resources.files("streamchar") / "assets" / "eval" / name).read_text(encoding="utf-8")


def filled(template: str, values: Mapping[str, str]) -> str:
    """`{{name}}` replaced in one pass, so that what is put in is never taken for a place itself."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found.group(1)], template)


def page(title: str, body: str) -> str:
    """A whole HTML document; `body` is HTML, `title` text."""
    values = {"title": html.escape(title), "style": asset("style.css"), "body": body, "script": asset("report.js")}
    return filled(asset("page.html"), values)


def colour(index: int) -> str:
    """The class of the system number `index`."""
    return f"s{index % STYLES}"


def figure(title: str, caption: str, *drawings: str) -> str:
    """A plot with what to see in it; caption is HTML."""
    return f"<figure><h3>{html.escape(title)}</h3><figcaption>{caption}</figcaption>{''.join(drawings)}</figure>"


def key(labels: Sequence[str]) -> str:
    """Which colour is which system."""
    spans = "".join(f'<span class="{colour(i)}"><i></i>{html.escape(label)}</span>' for i, label in enumerate(labels))
    return f'<div class="key">{spans}</div>'


def bullets(items: Sequence[str]) -> str:
    """The warnings, if any."""
    if not items:
        return ""
    inner = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return f'<div class="warnings" role="note"><ul>{inner}</ul></div>'


def plain(value: object) -> str:
    """A value of the environment as one line of text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    return "none" if value is None else str(value)


def facts(values: Mapping[str, object]) -> str:
    """Names and values as a list; nested mappings are flattened into one line."""
    rows = (f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(plain(v))}</dd>" for k, v in values.items())
    return f"<dl>{''.join(rows)}</dl>"


def day(created: str) -> str:
    """An ISO time as a person writes it; anything else as it is."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{when.day} {when:%B %Y, %H:%M}"


def versions(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """What measured, and the titles of what it measured."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        if entry.mean is not None:
            found.setdefault(entry.version, []).append(entry.figure.title)
    return found


def cell(text: str) -> str:
    """Text that may stand in a Markdown table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
