"""The GSB user study (good, same, bad): a blind page of pairs, and what its answers say.

Source: paper section 5.4. People see two videos of the same clip, not knowing which system made which, and say for
each question which is better. Unit: (G - B) / (G + S + B) from -1 (the second system always better) to 1. It misses
what nobody asks, and a few raters on a few clips tell little: hence the intervals.

`OUT/page/` is what raters get, by any web server or as a folder; `OUT/key.json` says which video is whose and must
stay away from them.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamchar.errors import DataError, InputError
from streamchar.eval.entries import Kind, check
from streamchar.eval.pages.evaluation import read_evaluation
from streamchar.eval.pages.shell import asset, filled
from streamchar.eval.sample import videos_in

KEY_SCHEMA = "streamchar-study-key/1"
ANSWERS_SCHEMA = "streamchar-study-answers/1"
QUESTIONS: Mapping[str, tuple[str, str]] = {
    "naturalness": ("Motion naturalness", "Whose movement looks more natural?"),
    "lip_sync": ("Lip sync", "Whose lips fit the speech better?"),
    "richness": ("Motion richness", "Whose movement is richer: head, face, hands?"),
}
CHOICES = ("left", "same", "right")
PLAYABLE = (".mp4", ".webm", ".mov")
"""What browsers play."""
RESAMPLES = 10_000
SHOWN = 3
"""Names in a message."""


def make_study(a: Path, b: Path, out: Path, *, seed: int = 0) -> Path:
    """Write the page for the clips of two evaluation (or plain video) folders; returns page/index.html.

    The order of the pairs and who stands left are drawn by `seed`; each system is left in half of the pairs. Raises
    `DataError` if the clips do not match or a browser cannot play them, `InputError` if `out` has another study.
    """
    (name_a, clips_a), (name_b, clips_b) = _system(a), _system(b)
    clips = (clips_a, clips_b)
    lone = sorted(set(clips[0]) ^ set(clips[1]))
    if lone:
        only = [f"{n} (only in {a if n in clips[0] else b})" for n in lone[:SHOWN]]
        more = f" and {len(lone) - SHOWN} more" if len(lone) > SHOWN else ""
        raise DataError(f"expected the same clips in {a} and {b}; {', '.join(only)}{more}")
    study, pairs, files = _draw(clips, seed)
    key = {
        "schema": KEY_SCHEMA, "study": study, "seed": seed, "a": {"name": name_a, "folder": str(a)},
        "b": {"name": name_b, "folder": str(b)}, "questions": list(QUESTIONS), "pairs": pairs,
    }  # fmt: skip
    _check_free(out, study)
    page = out / "page"
    (page / "media").mkdir(parents=True, exist_ok=True)
    for blind, source in files.items():
        shutil.copyfile(source, page / "media" / blind)
    (out / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    (page / "index.html").write_text(_page(study, pairs), encoding="utf-8")
    return page / "index.html"


def _system(folder: Path) -> tuple[str, dict[str, Path]]:
    """Name and videos by clip of an evaluation folder, or of a folder of videos."""
    if (folder / "metrics.json").is_file():
        evaluation = read_evaluation(folder)
        name, clips = evaluation.name, {c.name: c.video for c in evaluation.clips}
    else:
        name = folder.resolve().name
        clips = videos_in(folder / "clips") or videos_in(folder)
    if not clips:
        raise DataError(f"{folder}: expected an evaluation or a folder of videos, found neither")
    gone = [str(v) for v in clips.values() if not v.is_file()]
    if gone:
        raise DataError(f"{folder}: {len(gone)} videos are missing: {', '.join(gone[:SHOWN])}")
    foreign = [str(v) for v in clips.values() if v.suffix.lower() not in PLAYABLE]
    if foreign:
        raise DataError(f"browsers play {', '.join(PLAYABLE)}, got {foreign[0]}; convert it first (ffmpeg -i)")
    return name, clips


def _draw(clips: tuple[dict[str, Path], dict[str, Path]], seed: int) -> tuple[str, dict[str, Any], dict[str, Path]]:
    """The study's name, its pairs in order, and the blind name of every file."""
    names = sorted(clips[0])
    hasher = hashlib.sha256(f"{seed}".encode())
    for name in names:
        for side in clips:
            hasher.update(name.encode() + hashlib.sha256(side[name].read_bytes()).digest())
    study = hasher.hexdigest()[:12]
    rng = random.Random(study)  # not the seed alone: blind names cannot be worked out from a guess
    rng.shuffle(names)
    left_is_a = [i % 2 == 0 for i in range(len(names))]
    rng.shuffle(left_is_a)
    if len(names) % 2 and rng.random() < 0.5:
        left_is_a = [not x for x in left_is_a]
    pairs: dict[str, Any] = {}
    files: dict[str, Path] = {}
    for name, first in zip(names, left_is_a, strict=True):
        sources = (clips[0][name], clips[1][name]) if first else (clips[1][name], clips[0][name])
        blind = [f"{rng.getrandbits(48):012x}{s.suffix.lower()}" for s in sources]
        files.update(zip(blind, sources, strict=True))
        pairs[f"{rng.getrandbits(32):08x}"] = {
            "clip": name, "left": "a" if first else "b", "left_file": blind[0], "right_file": blind[1]
        }  # fmt: skip
    return study, pairs, files


def _check_free(out: Path, study: str) -> None:
    key = out / "key.json"
    if key.is_file() and _read(key, KEY_SCHEMA)["study"] != study:
        raise InputError(f"{out} holds another study, whose answers need its key; give another --out")


def _page(study: str, pairs: Mapping[str, Any]) -> str:
    data = {
        "schema": ANSWERS_SCHEMA,
        "study": study,
        "questions": [{"id": k, "title": t, "text": q} for k, (t, q) in QUESTIONS.items()],
        "pairs": [{"id": k, "left": p["left_file"], "right": p["right_file"]} for k, p in pairs.items()],
    }
    plain = json.dumps(data).replace("<", "\\u003c")
    style = asset("style.css") + asset("study.css")
    values = {"title": "Which video is better?", "style": style, "data": plain, "script": asset("study.js")}
    return filled(asset("study.html"), values | {"count": html.escape(str(len(pairs)))})


def _read(path: Path, schema: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict) or value.get("schema") != schema:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise DataError(f"{path}: expected schema {schema!r}, got {found!r}")
    check(value, {"study": "text"}, str(path), needed=True)
    return value


def _read_key(path: Path) -> dict[str, Any]:
    """A study's key, with all that scores are worked out from."""
    known = _read(path, KEY_SCHEMA)
    kinds: dict[str, Kind] = {"a": "an object", "b": "an object", "pairs": "an object", "questions": "a list of texts"}
    check(known, kinds, str(path), needed=True)
    for side in ("a", "b"):
        check(known[side], {"name": "text"}, f"{path}, {side}", needed=True)
    check(known["pairs"], dict.fromkeys(known["pairs"], "an object"), f"{path}, pairs", needed=True)
    for pair, entry in known["pairs"].items():
        if entry.get("left") not in ("a", "b"):
            raise DataError(f"{path}, pair {pair}: left must be a or b, got {entry.get('left')!r}")
    return known


def score_study(answers: Sequence[Path], key: Path | None = None) -> dict[str, Any]:
    """What the raters say, question by question; good means that system a is better.

    For each question: counts `good`, `same`, `bad`; `score` (G - B) / (G + S + B) with a 95 % bootstrap `interval`
    over pairs (and over raters, if there are several); `p` of a two-sided sign test over pairs, each counted once by
    its raters' majority; `agreement` of the raters (share of equal votes, Krippendorff's alpha). What cannot be
    computed is None with a reason in `reasons`. `key` None: key.json beside the answers, or a folder above. Raises
    `DataError` for answers of another study, or twice of a rater.
    """
    if not answers:
        raise DataError("expected at least one file of answers, got none")
    key = _find_key(answers[0]) if key is None else key
    known = _read_key(key)
    raters: dict[str, dict[str, Any]] = {}
    for path in answers:
        value = _read(path, ANSWERS_SCHEMA)
        if value["study"] != known["study"]:
            raise DataError(f"{path}: answers of the study {value['study']}, but {key} is of {known['study']}")
        check(value, {"rater": "text"}, str(path))
        rater = value.get("rater") or ""
        if rater in raters:
            raise DataError(f"{path}: the rater {rater!r} has answered already; keep one of the files")
        raters[rater] = _checked(value.get("answers"), known, path)
    pairs, questions = list(known["pairs"]), list(known["questions"])
    open_answers = {
        rater: missing
        for rater, given in raters.items()
        if (missing := sum(q not in given.get(p, {}) for p in pairs for q in questions))
    }
    scored = {}
    for question in questions:
        votes_RP = np.full((len(raters), len(pairs)), np.nan)
        for r, given in enumerate(raters.values()):
            for p, pair in enumerate(pairs):
                choice = given.get(pair, {}).get(question)
                if choice is not None:
                    votes_RP[r, p] = _vote(choice, known["pairs"][pair]["left"])
        scored[question] = _scored(votes_RP)
    return {
        "schema": "streamchar-study-score/1", "study": known["study"], "a": known["a"]["name"],
        "b": known["b"]["name"], "raters": list(raters), "pairs": len(pairs), "unanswered": open_answers,
        "questions": scored,
    }  # fmt: skip


def _find_key(answers: Path) -> Path:
    here = answers.resolve().parent
    found = next((p for p in (here / "key.json", here.parent / "key.json") if p.is_file()), None)
    if found is None:
        raise DataError(f"found no key.json beside {answers}; give the study's own with --key")
    return found


def _checked(given: Any, known: dict[str, Any], path: Path) -> dict[str, Any]:
    check({"answers": given}, {"answers": "an object"}, str(path), needed=True)
    for pair, choices in given.items():
        if pair not in known["pairs"]:
            raise DataError(f"{path}: the pair {pair!r} is not of this study")
        check(given, {pair: "an object"}, f"{path}, answers", needed=True)
        for question, choice in choices.items():
            if question not in known["questions"] or choice not in CHOICES:
                raise DataError(
                    f"{path}: expected one of {', '.join(CHOICES)} to a known question, got {question}: {choice}"
                )
    return given


def _vote(choice: str, left: str) -> float:
    """1 if system a is better, -1 if b, 0 if the same."""
    if choice == "same":
        return 0.0
    return 1.0 if (choice == "left") == (left == "a") else -1.0


def _scored(votes_RP: np.ndarray) -> dict[str, Any]:
    """The figures of one question; NaN is a vote that was not given."""
    given = votes_RP[~np.isnan(votes_RP)]
    good, same, bad = (int((given == v).sum()) for v in (1.0, 0.0, -1.0))
    reasons: dict[str, str] = {}
    found: dict[str, Any] = {"good": good, "same": same, "bad": bad, "score": None, "interval": None, "p": None}
    if not given.size:
        reasons = dict.fromkeys(("score", "interval", "p"), "nobody answered")
    else:
        found["score"] = (good - bad) / given.size
        found["interval"] = _interval(votes_RP)
        if found["interval"] is None:
            reasons["interval"] = "expected at least two answered pairs"
        sides = np.sign(np.nansum(votes_RP, axis=0))
        wins, losses = int((sides > 0).sum()), int((sides < 0).sum())
        found |= {"pairs_good": wins, "pairs_bad": losses}
        if wins + losses:
            found["p"] = sign_test(wins, losses)
        else:
            reasons["p"] = "no pair has a majority for either side"
    agreement = _agreement(votes_RP)
    if agreement["alpha"] is None:
        few = votes_RP.shape[0] < 2 or agreement["share"] is None
        reasons["agreement"] = "expected two raters of the same pair" if few else "all votes are the same"
    return found | {"agreement": agreement, "reasons": reasons}


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact probability of a split as uneven as this, if either side were as likely."""
    n, least = wins + losses, min(wins, losses)
    tail = sum(math.comb(n, k) for k in range(least + 1))
    return min(1.0, 2 * tail / 2**n)


def _interval(votes_RP: np.ndarray) -> list[float] | None:
    """95 % of the score under resampling of pairs and, with several, of raters: both are samples of many."""
    raters, pairs = votes_RP.shape
    if (~np.isnan(votes_RP)).any(0).sum() < 2:
        return None
    rng = np.random.default_rng(0)
    by_pair_NP = rng.multinomial(pairs, np.full(pairs, 1 / pairs), RESAMPLES).astype(float)
    by_rater_NR = rng.multinomial(raters, np.full(raters, 1 / raters), RESAMPLES).astype(float)
    sums = np.einsum("nr,rp,np->n", by_rater_NR, np.nan_to_num(votes_RP), by_pair_NP, optimize=True)
    counts = np.einsum("nr,rp,np->n", by_rater_NR, (~np.isnan(votes_RP)).astype(float), by_pair_NP, optimize=True)
    low, high = np.quantile(sums[counts > 0] / counts[counts > 0], (0.025, 0.975))
    return [float(low), float(high)]


def _agreement(votes_RP: np.ndarray) -> dict[str, float | None]:
    """Share of equal votes among all pairs of votes on a pair, and Krippendorff's alpha (nominal)."""
    chance = dict.fromkeys((1.0, 0.0, -1.0), 0)
    equal = total = weighted = 0.0
    for votes_R in votes_RP.T:
        votes = votes_R[~np.isnan(votes_R)]
        if votes.size < 2:
            continue
        counts = {v: int((votes == v).sum()) for v in chance}
        same = sum(c * (c - 1) for c in counts.values())
        equal, total = equal + same, total + votes.size * (votes.size - 1)
        weighted += same / (votes.size - 1)
        for v, c in counts.items():
            chance[v] += c
    n = sum(chance.values())
    if not total:
        return {"share": None, "alpha": None}
    observed = 1 - weighted / n
    expected = 1 - sum(c * (c - 1) for c in chance.values()) / (n * (n - 1))
    return {"share": equal / total, "alpha": 1 - observed / expected if expected > 0 else None}
