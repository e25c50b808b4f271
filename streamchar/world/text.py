"""What characters say: example sentences of WordNet and templates of our own.

WordNet's examples ship as `assets/text/wordnet_examples.txt.gz` (free use with the notice in
`NOTICE`); names, numbers and questions, which they lack, come from templates.
"""

from __future__ import annotations

import functools
import gzip
import random
import re
from importlib import resources
from pathlib import Path

from streamchar.errors import DataError
from streamchar.world.splits import is_held_out_sentence

_NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Maria Noah Olivia Peter Quinn Rosa Sam Tina "
    "Victor Wendy Yara Zoe Lucas Nina Omar Priya Hugo Alice Martin Julia Robert Susan George Helen"
).split()
_PLACES = (
    "London Paris Boston Berlin Rome Tokyo Lisbon Oslo Madrid Chicago Vienna Dublin Cairo Athens "
    "Prague Geneva Denver Naples Sydney Toronto"
).split()
_THINGS = (
    "apples letters tickets books chairs bottles candles boxes lamps coins shirts stamps eggs cups clocks "
    "baskets horses bicycles windows pictures songs stories gardens bridges"
).split()
_TIMES = ("seven", "half past nine", "noon", "midnight", "a quarter to three", "eleven", "five in the morning")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "tomorrow", "tonight")
_NUMBERS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "fifteen",
    "twenty", "thirty", "forty two", "sixty", "ninety", "a hundred", "two hundred", "a thousand",
)
_TEMPLATES = (
    "My name is {name} and I come from {place}.",
    "Hello {name}, it is nice to see you again.",
    "Where did {name} put the {n} {things}?",
    "The train to {place} leaves at {time} on {day}.",
    "{name} bought {n} {things} in {place}.",
    "Could you bring {n} {things} to {name} on {day}?",
    "Good morning everyone, today we will talk about {things}.",
    "Did you know that {name} has {n} {things} at home?",
    "Why does {name} never come to {place}?",
    "I counted {n} {things} and {n2} {things2}.",
    "See you on {day} at {time}, {name}!",
    "How many {things} do we need for {n} people?",
    "Welcome to {place}, where the {things} are better than the {things2}.",
    "{name} and {name2} will meet in {place} at {time}.",
    "Thank you, {name}, that was very kind of you.",
    "What would you do with {n} {things}?",
    "No, {name}, the {things} are not for sale.",
    "On {day} it costs {n} dollars, but on {day2} only {n2}.",
)
_EXAMPLE = re.compile(r'"([^"]+)"')
_CLEAN = re.compile(r"^[A-Za-z][A-Za-z ,.;:!?'\-]+$")


def extract_wordnet(folder: Path) -> list[str]:
    """Example sentences from WordNet's own data files (`data.noun`, ...): clean ASCII, 3 to 24 words."""
    found: dict[str, None] = {}
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        path = folder / name
        if not path.exists():
            raise DataError(f"expected WordNet's {name} in {folder}, found none; install the package wordnet-base")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            gloss = line.partition("|")[2]
            for example in _EXAMPLE.findall(gloss):
                text = " ".join(example.split())
                if _CLEAN.match(text) and 3 <= len(text.split()) <= 24:
                    found[text] = None
    return list(found)


@functools.lru_cache(maxsize=1)
def wordnet_examples() -> tuple[str, ...]:
    """The shipped examples, in a fixed order."""
    path = resources.files("streamchar") / "assets" / "text" / "wordnet_examples.txt.gz"
    with path.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as lines:
        return tuple(line.rstrip("\n") for line in lines if line.strip())


def as_sentence(phrase: str) -> str:
    """Capital at the front, full stop at the end."""
    phrase = phrase.strip().rstrip(";:,")
    phrase = phrase[0].upper() + phrase[1:]
    return phrase if phrase[-1] in ".!?" else phrase + "."


def from_template(rng: random.Random) -> str:
    """A sentence with names, numbers, places or a question."""
    name, name2 = rng.sample(_NAMES, 2)
    things, things2 = rng.sample(_THINGS, 2)
    day, day2 = rng.sample(_DAYS, 2)
    n, n2 = rng.sample(_NUMBERS, 2)
    text = rng.choice(_TEMPLATES).format(
        name=name, name2=name2, things=things, things2=things2, day=day, day2=day2, n=n, n2=n2,
        place=rng.choice(_PLACES), time=rng.choice(_TIMES),
    )
    return as_sentence(text)


@functools.lru_cache(maxsize=2)
def _split(held_out: bool) -> tuple[str, ...]:
    """WordNet's sentences of one split: hashing all of them takes longer than speaking one."""
    return tuple(s for s in map(as_sentence, wordnet_examples()) if is_held_out_sentence(s) == held_out)


def sentences(seed: int, count: int, *, held_out: bool = False, template_rate: float = 0.15) -> list[str]:
    """`count` sentences of the chosen split, in an order fixed by `seed`; WordNet's come again only
    when all have been used."""
    rng = random.Random(f"text-{seed}-{held_out}")
    whole = _split(held_out)
    pool = rng.sample(whole, min(count, len(whole)))
    out: list[str] = []
    used = 0
    while len(out) < count:
        if rng.random() < template_rate:
            text = from_template(rng)
            if is_held_out_sentence(text) != held_out:
                continue
            out.append(text)
        else:
            out.append(pool[used % len(pool)])
            used += 1
    return out
