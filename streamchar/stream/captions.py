"""Captions from word timings: WebVTT cues that a person can read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from streamchar.types import Word

LINE_CHARACTERS = 42  # the usual limit of subtitle guides
CUE_CHARACTERS = 2 * LINE_CHARACTERS
CUE_SECONDS = 6.0
PAUSE_SECONDS = 0.7  # silence that ends a cue
SHORTEST_SECONDS = 0.8  # a cue shows at least this long, unless the next one starts
_CLOSERS = "\"'”’)]"


@dataclass(frozen=True, kw_only=True)
class Cue:
    """One caption with the time in which it shows, in seconds from the start of the file."""

    start: float
    end: float
    lines: tuple[str, ...]


def cues(words: Iterable[Word], *, start: float | Fraction = 0) -> list[Cue]:
    """Group words into cues of at most two lines, broken at sentence ends and pauses.

    `start` is where the file begins in the stream's time (a resumed part); a word that was already
    being spoken there begins at 0.
    """
    groups: list[list[Word]] = []
    for word in words:
        if not groups or _begins_cue(groups[-1], word):
            groups.append([])
        groups[-1].append(word)
    begins = [max(0.0, group[0].start - float(start)) for group in groups]
    ends = [max(0.0, group[-1].end - float(start)) for group in groups]
    result = []
    for index, group in enumerate(groups):
        limit = begins[index + 1] if index + 1 < len(groups) else float("inf")
        end = min(max(ends[index], begins[index] + SHORTEST_SECONDS), limit)
        # WebVTT wants end > start; the pointer may give two words the same instant
        end = max(end, begins[index] + 0.001)
        result.append(Cue(start=begins[index], end=end, lines=_lines([word.text for word in group])))
    return result


def _begins_cue(cue: Sequence[Word], word: Word) -> bool:
    last = cue[-1]
    text = " ".join(part.text for part in cue)
    ended = last.text.rstrip(_CLOSERS).endswith((".", "!", "?", "…"))
    # an initial or a one-word sentence ("Hi.") stays with what follows
    sentence = ended and len(text) >= 12
    return (
        sentence
        or word.start - last.end > PAUSE_SECONDS
        or len(text) + 1 + len(word.text) > CUE_CHARACTERS
        or word.end - cue[0].start > CUE_SECONDS
    )


def _lines(words: Sequence[str]) -> tuple[str, ...]:
    """One line, or two of about the same length."""
    text = " ".join(words)
    if len(text) <= LINE_CHARACTERS or len(words) == 1:
        return (text,)
    halves = [(" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(1, len(words))]
    return min(halves, key=lambda pair: max(len(pair[0]), len(pair[1])))


def timestamp(seconds: float) -> str:
    """Seconds as WebVTT writes them: 01:02:03.456."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def vtt(words: Iterable[Word], *, start: float | Fraction = 0) -> str:
    """A whole WebVTT file."""
    blocks = ["WEBVTT"]
    for cue in cues(words, start=start):
        text = "\n".join(_escape(line) for line in cue.lines)
        blocks.append(f"{timestamp(cue.start)} --> {timestamp(cue.end)}\n{text}")
    return "\n\n".join(blocks) + "\n"
