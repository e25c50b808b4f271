"""Who a character is: one seed -> kind, face, hair, clothes, backdrop and voice.

Nothing here draws. Everything categorical is a plain word, so that `attributes()` can supervise an
identity classifier; proportions are small continuous variations around the category.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from streamchar.errors import InputError
from streamchar.world.shapes import Colour, rgb
from streamchar.world.splits import HELD_OUT_VOICES, is_held_out_character

SKINS: dict[str, Colour] = {
    "porcelain": rgb(255, 226, 208), "fair": rgb(252, 212, 186), "beige": rgb(242, 196, 162),
    "tan": rgb(224, 170, 128), "honey": rgb(205, 147, 103), "brown": rgb(170, 114, 80),
    "umber": rgb(138, 90, 63), "deep": rgb(108, 70, 52),
    "sky": rgb(150, 203, 242), "mint": rgb(160, 222, 182), "lilac": rgb(204, 178, 238),
    "silver": rgb(202, 212, 224), "ivory": rgb(240, 236, 224), "teal": rgb(128, 200, 200),
    "ginger": rgb(242, 164, 92), "smoke": rgb(168, 170, 186), "cream": rgb(250, 228, 196),
    "cocoa": rgb(160, 112, 84), "snow": rgb(246, 242, 244),
}  # fmt: skip
HAIRS: dict[str, Colour] = {
    "black": rgb(48, 42, 54), "espresso": rgb(78, 52, 44), "brown": rgb(116, 76, 50),
    "chestnut": rgb(154, 84, 54), "copper": rgb(214, 110, 58), "blond": rgb(240, 200, 122),
    "platinum": rgb(246, 234, 208), "grey": rgb(172, 172, 182), "white": rgb(236, 236, 242),
    "pink": rgb(246, 150, 182), "teal": rgb(66, 172, 172), "purple": rgb(142, 104, 196), "blue": rgb(82, 122, 206),
}  # fmt: skip
IRISES: dict[str, Colour] = {
    "brown": rgb(122, 74, 42), "hazel": rgb(158, 118, 54), "green": rgb(70, 152, 92), "blue": rgb(62, 134, 214),
    "grey": rgb(112, 136, 158), "violet": rgb(138, 96, 206), "amber": rgb(222, 152, 46), "cyan": rgb(30, 182, 204),
}  # fmt: skip
CLOTH: dict[str, Colour] = {
    "coral": rgb(244, 114, 100), "navy": rgb(54, 74, 122), "teal": rgb(42, 152, 148), "mustard": rgb(242, 186, 72),
    "plum": rgb(134, 78, 142), "sage": rgb(132, 172, 132), "denim": rgb(86, 128, 186), "rose": rgb(238, 142, 162),
    "charcoal": rgb(74, 78, 92), "white": rgb(244, 242, 238), "mint": rgb(142, 212, 190), "red": rgb(214, 66, 72),
}  # fmt: skip
BACKDROPS: dict[str, tuple[Colour, Colour]] = {
    "peach": (rgb(255, 226, 204), rgb(252, 196, 176)), "sky": (rgb(206, 232, 252), rgb(160, 202, 242)),
    "mint": (rgb(218, 244, 230), rgb(164, 218, 200)), "lavender": (rgb(232, 224, 250), rgb(196, 182, 236)),
    "butter": (rgb(255, 244, 208), rgb(250, 218, 150)), "blush": (rgb(254, 226, 230), rgb(244, 184, 200)),
    "slate": (rgb(204, 216, 230), rgb(146, 166, 192)), "dusk": (rgb(252, 206, 176), rgb(184, 146, 202)),
}  # fmt: skip

VOICES: tuple[frozenset[str], ...] = (
    frozenset({"woman", "girl"}), frozenset({"woman", "elder woman"}), frozenset({"man"}), frozenset({"man", "creature"}),
    frozenset({"boy", "creature"}), frozenset({"girl"}), frozenset({"robot"}), frozenset({"elder man", "man"}),
    frozenset({"creature"}), frozenset({"woman", "elder woman"}), frozenset({"man", "elder man"}), frozenset({"girl", "boy", "creature"}),
)  # fmt: skip
"""Speakers that each variant of `voice.VOICES` fits, by its index; the last two are held out."""

KINDS = ("human", "fantasy", "robot", "cat", "fox", "bear", "bunny")
ANIMALS = ("cat", "fox", "bear", "bunny")
FEMININE_HAIR = ("bob", "long", "wavy", "ponytail", "bun", "pigtails", "curly", "fringe", "pixie")
MASCULINE_HAIR = ("short", "quiff", "spiky", "buzz", "curly", "swept", "bald", "shaggy")
FACE_SHAPES = ("round", "oval", "square", "heart", "long")
EYE_SHAPES = ("round", "almond", "soft", "wide")
SCENES = ("gradient", "room", "hills", "dots", "sunburst", "city")


@dataclass(frozen=True, kw_only=True)
class Character:
    """A character: categories by name, proportions as factors around 1 (or offsets around 0)."""

    seed: int
    kind: str
    age: str
    presentation: str
    face_shape: str
    skin: str
    hair_style: str
    hair_colour: str
    facial_hair: str
    eye_shape: str
    iris: str
    lashes: bool
    brows: str
    nose: str
    ears: str
    lips: str
    freckles: bool
    clothes: str
    cloth: str
    cloth_second: str
    accessory: str
    accent: str
    scene: str
    backdrop: str
    voice: int
    head_width: float = 1.0
    head_height: float = 1.0
    eye_size: float = 1.0
    eye_gap: float = 1.0
    mouth_width: float = 1.0
    shoulder: float = 1.0

    def attributes(self) -> dict[str, str]:
        """The categories by name, in a fixed order: what an identity classifier is trained on."""
        names = (
            "kind", "age", "presentation", "face_shape", "skin", "hair_style", "hair_colour", "facial_hair",
            "eye_shape", "iris", "brows", "nose", "ears", "lips", "clothes", "cloth", "accessory", "scene", "backdrop",
        )  # fmt: skip
        return {name: str(getattr(self, name)) for name in names}


def _voice(draw: random.Random, seed: int, kind: str, age: str, feminine: bool, n_voices: int) -> int:
    """A voice that fits; held-out voices only with held-out characters, so training never hears them."""
    if kind == "robot":
        speaker = "robot"
    elif kind in ANIMALS and draw.random() < 0.7:
        speaker = "creature"
    elif age == "child":
        speaker = "girl" if feminine else "boy"
    else:
        speaker = ("elder " if age == "elder" else "") + ("woman" if feminine else "man")
    allowed = [v for v in range(n_voices) if is_held_out_character(seed) or v not in HELD_OUT_VOICES]
    fitting = [v for v in allowed if speaker in VOICES[v % len(VOICES)]]
    return draw.choice(fitting or allowed or range(n_voices))


def _face(draw: random.Random, kind: str, age: str, feminine: bool) -> dict[str, object]:
    """Skin, hair and features that go together for a kind."""
    if kind == "human":
        skin = draw.choice(("porcelain", "fair", "beige", "tan", "honey", "brown", "umber", "deep"))
    else:
        skin = draw.choice({
            "fantasy": ("sky", "mint", "lilac"), "robot": ("silver", "ivory", "teal"),
            "cat": ("ginger", "smoke", "cream"), "fox": ("ginger",), "bear": ("cocoa", "cream"), "bunny": ("snow", "cream", "smoke"),
        }[kind])  # fmt: skip
    if kind == "robot":
        hair, colour = "none", "grey"
    elif kind in ANIMALS:
        hair, colour = draw.choice(("none", "tuft", "tuft")), draw.choice(("espresso", "copper", "white", "chestnut"))
    else:
        hair = draw.choice(FEMININE_HAIR if feminine else MASCULINE_HAIR)
        if age == "elder":
            colour = draw.choice(("grey", "white"))
        elif kind == "fantasy":
            colour = draw.choice(("white", "purple", "teal", "blue", "pink", "black"))
        elif skin in ("brown", "umber", "deep"):
            colour = draw.choice(("black", "black", "espresso", "chestnut", "purple", "copper"))
        else:
            colour = draw.choice(("black", "espresso", "brown", "chestnut", "copper", "blond", "platinum", "pink", "teal"))
        if age == "child" and hair in ("bald", "bun"):
            hair = "shaggy" if not feminine else "pigtails"
    beard = "none"
    if kind == "human" and not feminine and age != "child":
        beard = draw.choice(("none", "none", "none", "beard", "moustache", "stubble"))
    common = ("brown", "hazel", "green", "blue", "grey")
    return {
        "skin": skin, "hair_style": hair, "hair_colour": colour, "facial_hair": beard,
        "face_shape": draw.choice(FACE_SHAPES) if age != "child" else draw.choice(("round", "round", "heart", "oval")),
        "eye_shape": draw.choice(EYE_SHAPES),
        "iris": draw.choice(common if kind == "human" else ("violet", "amber", "cyan", "green", "blue")),
        "lashes": feminine and kind != "robot",
        "brows": draw.choice(("thin", "arched") if feminine else ("thick", "straight", "thin")),
        "nose": {"robot": "none"}.get(kind, "animal" if kind in ANIMALS else draw.choice(("button", "soft", "line", "round"))),
        "ears": {"robot": "bolts", "fantasy": "pointed"}.get(kind, kind if kind in ANIMALS else "round"),
        "lips": draw.choice(("rose", "coral", "berry", "natural")) if feminine and kind in ("human", "fantasy") and age != "child" else "natural",
        "freckles": kind == "human" and skin in ("porcelain", "fair", "beige") and draw.random() < 0.25,
    }  # fmt: skip


def character(seed: int, n_voices: int = len(VOICES)) -> Character:
    """The character of a seed. The same seed gives the same character on every machine.

    `n_voices`: number of voice variants to choose from. Raises InputError if it is below 1.
    """
    if n_voices < 1:
        raise InputError(f"a character needs at least 1 voice to choose from, got n_voices={n_voices}")
    draw = random.Random(f"streamchar/character/{int(seed)}")
    kind = draw.choices(KINDS, weights=(66, 9, 7, 6, 4, 4, 4))[0]
    age = draw.choices(("child", "adult", "elder"), weights=(24, 64, 12))[0] if kind == "human" else draw.choice(("child", "adult"))
    feminine = draw.random() < 0.5
    face = _face(draw, kind, age, feminine)
    pool = ("tshirt", "hoodie", "sweater", "shirt", "stripes", "dungarees")
    clothes = draw.choice((*pool, "dress", "dress")) if feminine else draw.choice((*pool, "suit", "suit"))
    if age == "child" and clothes == "suit":
        clothes = "dungarees"
    cloth, second = draw.sample(sorted(CLOTH), 2)
    if clothes == "suit":
        cloth, second = draw.choice(("navy", "charcoal", "plum", "denim")), draw.choice(("red", "teal", "mustard", "coral"))
    wearable = ["none", "none", "none", "glasses", "round glasses", "headphones", "scarf", "hat", "beanie"]
    if feminine:
        wearable += ["earrings", "earrings", "bow"]
    if kind not in ("human", "fantasy"):
        wearable = ["none", "none", "round glasses", "scarf", "bow"]
    accessory = draw.choice(wearable)
    if accessory in ("hat", "beanie", "headphones") and face["hair_style"] in ("bun", "spiky", "quiff"):
        accessory = "glasses"
    child = age == "child"
    return Character(
        seed=int(seed), kind=kind, age=age, presentation="feminine" if feminine else "masculine",
        clothes=clothes, cloth=cloth, cloth_second=second, accessory=accessory,
        accent=draw.choice(("coral", "teal", "mustard", "plum", "denim", "rose", "red")),
        scene=draw.choice(SCENES), backdrop=draw.choice(sorted(BACKDROPS)),
        voice=_voice(draw, int(seed), kind, age, feminine, n_voices),
        head_width=draw.uniform(0.96, 1.06) * (1.04 if child else 1.0), head_height=draw.uniform(0.97, 1.03),
        eye_size=draw.uniform(0.94, 1.08) * (1.1 if child else 1.0), eye_gap=draw.uniform(0.95, 1.06),
        mouth_width=draw.uniform(0.94, 1.1), shoulder=draw.uniform(0.94, 1.0) * (0.88 if child else 0.94 if feminine else 1.04),
        **face,  # type: ignore[arg-type]
    )  # fmt: skip
