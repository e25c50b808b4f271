"""Prompts: how a character behaves, as a value and as English.

`phrase` writes a `Direction` in many ways, `parse` reads free text back by keyword and says which
content words it does not know.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from streamchar.errors import InputError

MOODS: dict[str, tuple[str, ...]] = {
    "calm": ("calm", "relaxed", "peaceful", "neutral", "gentle", "serene", "easygoing", "composed"),
    "happy": ("happy", "cheerful", "joyful", "smiling", "friendly", "glad", "delighted", "merry", "warm"),
    "sad": ("sad", "unhappy", "sorrowful", "gloomy", "downcast", "melancholy", "disappointed"),
    "angry": ("angry", "furious", "annoyed", "cross", "irritated", "mad", "grumpy"),
    "surprised": ("surprised", "astonished", "amazed", "startled", "shocked"),
    "excited": ("excited", "thrilled", "enthusiastic", "eager", "ecstatic", "overjoyed"),
    "shy": ("shy", "timid", "bashful", "embarrassed", "nervous", "hesitant"),
    "serious": ("serious", "stern", "solemn", "focused", "earnest", "formal", "businesslike"),
}
GESTURES: dict[str, tuple[str, ...]] = {
    "still": ("keeps still", "stays still", "does not gesture", "keeps the hands down"),
    "waving": ("waves", "waves a hand", "gives a wave", "waves hello"),
    "pointing up": ("points up", "raises a finger", "points upwards", "holds up a finger"),
    "open hands": ("opens both hands", "gestures with open hands", "spreads the hands", "talks with both hands"),
    "nodding": ("nods", "keeps nodding", "nods along", "gives nods"),
    "shaking head": ("shakes the head", "keeps shaking the head", "turns the head from side to side"),
    "hand on chest": ("puts a hand on the chest", "lays a hand on the heart", "keeps a hand on the chest"),
    "leaning": ("leans in", "leans forward", "leans towards the camera", "sways and leans"),
}
ENERGIES: dict[str, tuple[str, ...]] = {
    "low": ("quiet", "subdued", "soft", "sleepy", "slow", "tired", "low energy"),
    "medium": ("moderate", "steady", "natural", "even", "normal energy", "medium energy"),
    "high": ("lively", "energetic", "animated", "vigorous", "dynamic", "intense", "high energy"),
}

MOOD_WORDS: dict[str, tuple[str, ...]] = {
    "calm": ("calmly", "peacefully", "gently", "relax", "neutrally", "serenely"),
    "happy": ("happily", "smile", "smiles", "cheerfully", "joy", "joyfully", "laughing", "laughs", "pleased", "happiness", "kind"),
    "sad": ("sadly", "sadness", "crying", "depressed", "grief", "upset", "sorrow"),
    "angry": ("angrily", "anger", "rage", "enraged", "frown", "frowning", "frowns", "irate"),
    "surprised": ("surprise", "astonishment", "surprisedly", "stunned", "wide-eyed", "shock"),
    "excited": ("excitedly", "excitement", "enthusiasm", "enthusiastically", "eagerly", "hyped"),
    "shy": ("shyly", "shyness", "timidly", "nervously", "bashfully", "blushing", "anxious"),
    "serious": ("seriously", "sternly", "solemnly", "earnestly", "formally", "professional", "grave"),
}  # fmt: skip
GESTURE_WORDS: dict[str, tuple[str, ...]] = {
    "still": ("still", "motionless", "no gestures", "without gestures", "hands down", "not move", "standing still"),
    "waving": ("wave", "waves", "waving", "greets", "greeting", "hello hand"),
    "pointing up": ("point", "points", "pointing", "finger", "pointing up", "raised finger", "index finger"),
    "open hands": ("open hands", "opens hands", "hands", "gestures", "gesturing", "spreads", "gesticulates", "gesticulating", "shrug", "shrugs", "shrugging", "open palms", "arms"),
    "nodding": ("nod", "nods", "nodding", "agrees", "agreeing"),
    "shaking head": ("shaking head", "shakes head", "shake head", "shaking the head", "shakes the head", "shakes his head", "shakes her head", "shaking his head", "shaking her head", "disagrees", "disagreeing", "side to side"),
    "hand on chest": ("chest", "heart", "hand on chest", "hand on heart"),
    "leaning": ("lean", "leans", "leaning", "sway", "sways", "swaying", "leans in"),
}  # fmt: skip
ENERGY_WORDS: dict[str, tuple[str, ...]] = {
    "low": ("quietly", "softly", "slowly", "calm down", "lazy", "lazily", "weak", "tiredly", "little energy", "low"),
    "medium": ("moderately", "steadily", "naturally", "normal", "medium"),
    "high": ("energetically", "vividly", "intensely", "vigorously", "energy", "fast", "quickly", "wild", "wildly", "loud", "loudly", "strong", "strongly", "very", "high"),
}  # fmt: skip
FILLERS = frozenset(
    "a an the is are be who that which while and or with in on of to for by as at his her their its he she they it this person "
    "character speaker someone man woman girl boy child kid robot cat fox bear bunny people talking talks talk speaking speaks "
    "speak says saying tells telling looks look looking seems feels feeling sounds voice mood way manner style expression "
    "face eyes camera video portrait shot cartoon animation animated-style quite rather somewhat a bit little lot keeps keep "
    "gives give puts put stays stay hand head up upwards both from side now then during speech words straight towards "
    "forward into us you viewer me please make makes making being acting behaves behaving does do having has have hold holds raises".split()
)
NEGATIONS = frozenset("not no without never isn't doesn't don't".split())

_OPENINGS = (
    "a {mood} {who} {gesture_ing}, {energy}", "a {mood}, {energy} {who} who {gesture} while talking",
    "{energy} and {mood}, {gesture_and}", "a {who} who is {mood} and {gesture}, in {an} {energy} way",
    "{mood} {who}, {energy}, {gesture}", "the {who} looks {mood} and {gesture} while speaking, {energy}",
    "talking in {a_mood} manner, {energy}; the {who} {gesture}", "someone {mood} and {energy} who {gesture}",
)  # fmt: skip
_WHO = ("person", "character", "speaker")


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What a prompt asks for."""

    mood: str = "calm"
    gesture: str = "still"
    energy: str = "medium"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("mood", self.mood, MOODS), ("gesture", self.gesture, GESTURES), ("energy", self.energy, ENERGIES),
        ):  # fmt: skip
            if value not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def sample_direction(seed: int) -> Direction:
    """The direction of a seed, uniform over all moods, gestures and energies."""
    draw = random.Random(f"streamchar/direction/{int(seed)}")
    return Direction(mood=draw.choice(list(MOODS)), gesture=draw.choice(list(GESTURES)), energy=draw.choice(list(ENERGIES)))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def phrase(direction: Direction, seed: int) -> str:
    """English for a direction: one of many templates and synonyms, chosen by `seed`."""
    draw = random.Random(f"streamchar/phrase/{int(seed)}")
    mood, gesture = draw.choice(MOODS[direction.mood]), draw.choice(GESTURES[direction.gesture])
    energy = draw.choice(ENERGIES[direction.energy])
    who = draw.choice(_WHO)
    text = draw.choice(_OPENINGS).format(
        mood=mood, who=who, gesture=gesture, energy=energy, gesture_ing=f"who {gesture}",
        gesture_and=f"the {who} {gesture}", an=_article(energy), a_mood=f"{_article(mood)} {mood}",
    )  # fmt: skip
    if mood[0] in "aeiou":
        text = text.replace(f"a {mood}", f"an {mood}", 1) if text.startswith(f"a {mood}") else text
    return text


def _table() -> dict[tuple[str, ...], tuple[str, str]]:
    """Every phrase as a tuple of words -> (field, value)."""
    table: dict[tuple[str, ...], tuple[str, str]] = {}
    groups = (("energy", ENERGIES, ENERGY_WORDS), ("mood", MOODS, MOOD_WORDS), ("gesture", GESTURES, GESTURE_WORDS))
    for name, spoken, further in groups:
        for value in spoken:
            for text in (*spoken[value], *further[value], value):
                table[tuple(text.split())] = (name, value)
    return table


_TABLE = _table()
_LONGEST = max(len(key) for key in _TABLE)


def known_words() -> frozenset[str]:
    """Every word that `parse` understands or knows to ignore."""
    return frozenset(word for key in _TABLE for word in key) | FILLERS | NEGATIONS


def parse(text: str) -> tuple[Direction, list[str]]:
    """Free English -> the direction it asks for, and the content words that were not understood.

    Longest phrases first; the first mention of a field wins; what follows a negation within two
    words is skipped ("not sad", "without waving"). What is not mentioned keeps `Direction`'s default.
    """
    words = re.findall(r"[a-z]+(?:['-][a-z]+)*", text.lower().replace("’", "'"))
    found: dict[str, str] = {}
    unknown: list[str] = []
    negated = -3
    i = 0
    while i < len(words):
        for n in range(min(_LONGEST, len(words) - i), 0, -1):
            match = _TABLE.get(tuple(words[i : i + n]))
            if match is not None:
                field, value = match
                if i - negated > 2:
                    found.setdefault(field, value)
                i += n
                break
        else:
            if words[i] in NEGATIONS:
                negated = i
            elif words[i] not in FILLERS:
                unknown.append(words[i])
            i += 1
    return Direction(**found), list(dict.fromkeys(unknown))
