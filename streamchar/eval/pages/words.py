"""What should have been said against what was heard, word by word."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["same", "changed", "missing", "added"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of an alignment; `wanted` is empty if added, `heard` if missing."""

    kind: Kind
    wanted: str = ""
    heard: str = ""


def plain(word: str) -> str:
    """A word without case and punctuation: what counts as the same."""
    return re.sub(r"[^\w]", "", word.lower().replace("_", ""))


def align(wanted: str, heard: str) -> list[Step]:
    """The fewest changes that turn one text into the other (Levenshtein over words)."""
    a = [w for w in wanted.split() if plain(w)]
    b = [w for w in heard.split() if plain(w)]
    pa, pb = [plain(w) for w in a], [plain(w) for w in b]
    cost = [list(range(len(b) + 1))]
    for i in range(1, len(a) + 1):
        above, row = cost[-1], [i]
        for j in range(1, len(b) + 1):
            swap = above[j - 1] + (pa[i - 1] != pb[j - 1])
            row.append(min(swap, above[j] + 1, row[j - 1] + 1))
        cost.append(row)
    steps: list[Step] = []
    i, j = len(a), len(b)
    while i or j:
        if i and j and cost[i][j] == cost[i - 1][j - 1] + (pa[i - 1] != pb[j - 1]):
            i, j = i - 1, j - 1
            steps.append(Step(kind="same" if pa[i] == pb[j] else "changed", wanted=a[i], heard=b[j]))
        elif i and cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
            steps.append(Step(kind="missing", wanted=a[i]))
        else:
            j -= 1
            steps.append(Step(kind="added", heard=b[j]))
    return steps[::-1]


def marked(wanted: str, heard: str) -> tuple[str, str]:
    """Both texts as HTML, the words that differ marked."""
    left, right = [], []
    for step in align(wanted, heard):
        w, h = html.escape(step.wanted), html.escape(step.heard)
        if step.kind == "same":
            left.append(w)
            right.append(h)
            continue
        if step.wanted:
            tip = f"heard: {h}" if h else "not heard"
            left.append(f'<mark class="{step.kind}" title="{tip}">{w}</mark>')
        if step.heard:
            tip = f"should be: {w}" if w else "added"
            right.append(f'<mark class="{step.kind}" title="{tip}">{h}</mark>')
    return " ".join(left), " ".join(right)


def marked_text(wanted: str, heard: str) -> str:
    """One line for Markdown: ~~missing~~, **added**, ~~said~~ **heard**."""
    parts = []
    for step in align(wanted, heard):
        if step.kind == "same":
            parts.append(step.wanted)
            continue
        parts.extend([f"~~{step.wanted}~~"] if step.wanted else [])
        parts.extend([f"**{step.heard}**"] if step.heard else [])
    return " ".join(parts)
