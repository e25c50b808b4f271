"""The user study: a blind page, and scores that follow from the answers."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamchar.errors import DataError, InputError
from streamchar.eval.study import QUESTIONS, make_study, score_study, sign_test


def systems(folder: Path, names: list[str]) -> tuple[Path, Path]:
    """Two folders of files that only differ in what they hold: the study copies and never decodes."""
    for system in ("alpha", "beta"):
        (folder / system).mkdir()
        for name in names:
            (folder / system / f"{name}.mp4").write_bytes(f"{system} {name}".encode())
    return folder / "alpha", folder / "beta"


def made(tmp_path: Path, count: int = 8, seed: int = 0) -> tuple[Path, dict[str, Any]]:
    a, b = systems(tmp_path, [f"clip-{i}" for i in range(count)])
    page = make_study(a, b, tmp_path / "study", seed=seed)
    return page, json.loads((tmp_path / "study" / "key.json").read_text())


def answered(path: Path, key: dict[str, Any], rater: str, choose) -> Path:
    """Answers of a rater; `choose(clip, question)` gives a, b or same."""
    answers: dict[str, dict[str, str]] = {}
    for pair, entry in key["pairs"].items():
        for question in QUESTIONS:
            wanted = choose(entry["clip"], question)
            if wanted is not None:
                side = "same" if wanted == "same" else "left" if entry["left"] == wanted else "right"
                answers.setdefault(pair, {})[question] = side
    value = {"schema": "streamchar-study-answers/1", "study": key["study"], "rater": rater, "answers": answers}
    path.write_text(json.dumps(value))
    return path


def test_page_is_blind_and_whole(tmp_path: Path) -> None:
    page, key = made(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "study" / "page" / "index.html"
    assert not re.search(r"alpha|beta|clip-\d|key\.json|https?://|\{\{", text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert [q["id"] for q in data["questions"]] == ["naturalness", "lip_sync", "richness"]
    media = tmp_path / "study" / "page" / "media"
    for pair in data["pairs"]:
        entry = key["pairs"][pair["id"]]
        for side in ("left", "right"):
            system = entry["left"] if side == "left" else {"a": "b", "b": "a"}[entry["left"]]
            expected = f"{ {'a': 'alpha', 'b': 'beta'}[system] } {entry['clip']}"
            assert (media / pair[side]).read_text() == expected
            assert "alpha" not in pair[side] and entry["clip"] not in pair[side]
    assert len(list(media.iterdir())) == 16


def test_sides_are_balanced_and_drawn_by_the_seed(tmp_path: Path) -> None:
    a, b = systems(tmp_path, [f"clip-{i}" for i in range(20)])
    keys = []
    for seed in range(3):
        make_study(a, b, tmp_path / f"s{seed}", seed=seed)
        key = json.loads((tmp_path / f"s{seed}" / "key.json").read_text())
        assert sum(p["left"] == "a" for p in key["pairs"].values()) == 10
        keys.append([(p["clip"], p["left"]) for p in key["pairs"].values()])
    assert keys[0] != keys[1] != keys[2] and keys[0] != sorted(keys[0])
    make_study(a, b, tmp_path / "again", seed=0)
    again = json.loads((tmp_path / "again" / "key.json").read_text())
    assert [(p["clip"], p["left"]) for p in again["pairs"].values()] == keys[0]


def test_clips_must_match(tmp_path: Path) -> None:
    a, b = systems(tmp_path, ["one", "two"])
    (b / "two.mp4").rename(b / "three.mp4")
    with pytest.raises(DataError, match=r"three \(only in .*beta\), two \(only in .*alpha\)"):
        make_study(a, b, tmp_path / "study")
    assert not (tmp_path / "study").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found neither"):
        make_study(a, tmp_path / "empty", tmp_path / "study")
    (a / "one.mp4").rename(a / "one.avi")
    with pytest.raises(DataError, match="browsers play"):
        make_study(a, a, tmp_path / "study")


def test_a_study_is_not_overwritten(tmp_path: Path) -> None:
    page, key = made(tmp_path)
    make_study(tmp_path / "alpha", tmp_path / "beta", tmp_path / "study")  # the same one again
    with pytest.raises(InputError, match="another study"):
        make_study(tmp_path / "alpha", tmp_path / "beta", tmp_path / "study", seed=1)
    assert json.loads((tmp_path / "study" / "key.json").read_text()) == key and page.is_file()


def test_counts_and_direction(tmp_path: Path) -> None:
    _, key = made(tmp_path)

    def choose(clip: str, question: str) -> str | None:
        number = int(clip[-1])
        if question == "naturalness":
            return "a"
        if question == "lip_sync":
            return "b" if number < 6 else "same"
        return None if number == 0 else "same"

    found = score_study([answered(tmp_path / "study" / "x.json", key, "x", choose)])  # the key lies beside
    assert (found["a"], found["b"], found["raters"], found["pairs"]) == ("alpha", "beta", ["x"], 8)
    assert found["unanswered"] == {"x": 1}
    natural, lips, rich = (found["questions"][q] for q in QUESTIONS)
    assert (natural["good"], natural["same"], natural["bad"], natural["score"]) == (8, 0, 0, 1.0)
    assert natural["interval"] == [1.0, 1.0] and natural["p"] == pytest.approx(2 / 256)
    assert (lips["good"], lips["same"], lips["bad"], lips["score"]) == (0, 2, 6, -0.75)
    low, high = lips["interval"]
    assert -1.0 <= low < -0.75 < high < 0 and lips["p"] == pytest.approx(2 / 64)
    assert (rich["same"], rich["score"], rich["p"]) == (7, 0.0, None) and "majority" in rich["reasons"]["p"]
    assert natural["agreement"]["alpha"] is None and "two raters" in natural["reasons"]["agreement"]


def test_raters_that_agree_and_raters_that_guess(tmp_path: Path) -> None:
    _, key = made(tmp_path, count=40)
    rng = random.Random(3)
    truth = {p["clip"]: rng.choice(["a", "b", "same"]) for p in key["pairs"].values()}
    same = [answered(tmp_path / f"s{i}.json", key, f"s{i}", lambda clip, _: truth[clip]) for i in range(3)]
    found = score_study(same, tmp_path / "study" / "key.json")["questions"]["lip_sync"]
    assert found["agreement"] == {"share": 1.0, "alpha": pytest.approx(1.0)}
    guesses = [
        answered(tmp_path / f"g{i}.json", key, f"g{i}", lambda *_: rng.choice(["a", "b", "same"])) for i in range(3)
    ]
    found = score_study(guesses, tmp_path / "study" / "key.json")["questions"]["lip_sync"]
    assert abs(found["agreement"]["alpha"]) < 0.2 and 0.2 < found["agreement"]["share"] < 0.47
    assert found["interval"][0] < found["score"] < found["interval"][1]


def test_alpha_of_a_worked_example(tmp_path: Path) -> None:
    """Krippendorff's alpha by its definition: 1 - observed / expected disagreement."""
    _, key = made(tmp_path, count=4)
    first = dict(zip([f"clip-{i}" for i in range(4)], ["a", "a", "b", "same"], strict=True))
    second = dict(zip(first, ["a", "b", "b", "same"], strict=True))
    files = [
        answered(tmp_path / f"{n}.json", key, n, lambda clip, _, v=v: v[clip]) for n, v in (("x", first), ("y", second))
    ]
    found = score_study(files, tmp_path / "study" / "key.json")["questions"]["richness"]["agreement"]
    expected_disagreement = 1 - (3 * 2 + 3 * 2 + 2 * 1) / (8 * 7)
    assert found["share"] == 0.75
    assert found["alpha"] == pytest.approx(1 - 0.25 / expected_disagreement)


def test_interval_covers_the_truth(tmp_path: Path) -> None:
    """Of a system preferred in 60 % of the pairs, 95 % intervals hold 0.2 about that often."""
    from streamchar.eval import study

    rng = np.random.default_rng(1)
    votes = np.where(rng.random((30, 1, 50)) < 0.6, 1.0, -1.0)
    inside = [low <= 0.2 <= high for low, high in (study._interval(v) for v in votes)]  # type: ignore[misc]
    assert sum(inside) >= 25


def test_sign_test() -> None:
    assert sign_test(5, 5) == 1.0 and sign_test(10, 0) == 2 / 1024 == sign_test(0, 10)
    assert sign_test(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)


def test_answers_that_do_not_belong(tmp_path: Path) -> None:
    _, key = made(tmp_path)
    path = tmp_path / "study" / "key.json"
    good = answered(tmp_path / "a.json", key, "x", lambda *_: "a")
    with pytest.raises(DataError, match="answered already"):
        score_study([good, good], path)
    with pytest.raises(DataError, match="at least one"):
        score_study([], path)
    with pytest.raises(DataError, match="expected schema"):
        score_study([path], path)
    foreign = answered(tmp_path / "b.json", key | {"study": "other"}, "y", lambda *_: "a")
    with pytest.raises(DataError, match="answers of the study other"):
        score_study([foreign], path)
    value = json.loads(good.read_text())
    value["answers"][next(iter(key["pairs"]))]["lip_sync"] = "both"
    good.write_text(json.dumps(value))
    with pytest.raises(DataError, match="left, same, right"):
        score_study([good], path)
    whole = json.loads(path.read_text())
    pair = next(iter(whole["pairs"]))
    for change, fault in (
        ({"answers": [1]}, "answers must be an object"), ({"answers": {pair: 3}}, f"answers: {pair} must be an object"),
        ({"rater": 3}, "rater must be text"), ({"study": 4}, "study must be text"),
    ):  # fmt: skip
        good.write_text(json.dumps(value | change))
        with pytest.raises(DataError, match=rf"a.json.*{fault}, got"):
            score_study([good], path)
    answered(good, key, "x", lambda *_: "a")
    for change, fault in (
        ({"a": "alpha"}, "a must be an object"), ({"b": {}}, "b: name must be text"),
        ({"pairs": []}, "pairs must be an object"), ({"pairs": {pair: 1}}, f"pairs: {pair} must be an object"),
        ({"pairs": {pair: {"left": 1}}}, f"pair {pair}: left must be a or b"), ({"study": None}, "study must be text"),
        ({"questions": 3}, "questions must be a list of texts"),
    ):  # fmt: skip
        path.write_text(json.dumps(whole | change))
        with pytest.raises(DataError, match=rf"key.json.*{fault}, got"):
            score_study([good], path)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "c.json").write_text("{}")
    path.unlink()
    with pytest.raises(DataError, match="--key"):
        score_study([tmp_path / "far" / "c.json"])
