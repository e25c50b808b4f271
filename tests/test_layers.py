"""Imports point down (design section 5) and a file answers one question, read off the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "streamchar"
MAX_LINES = 400

LEAVES = ("errors", "clock", "types", "phonemes")
LEVELS = (
    LEAVES,
    ("config",),
    ("nn",),
    ("codecs", "flow", "orchestrator", "dit", "world"),
    ("stream", "data", "eval"),
    ("train", "serve", "convert"),
    ("bench",),
    ("cli", "client"),
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    """The package or leaf module that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and part of every import of ours in a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "streamchar" and rest:
                yield node.lineno, rest.split(".")[0]


def allowed(user: str, used: str) -> bool:
    return user == used or LEVEL[used] < LEVEL[user] or (user in LEAVES and used in LEAVES)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    user = part_of(path)
    assert user in LEVEL, f"{user} has no layer: add it to design section 5 and to LEVELS"
    wrong = [f"line {line}: {user} imports {used}" for line, used in imported(path) if not allowed(user, used)]
    assert not wrong, "; ".join(wrong)


def test_the_rule_itself() -> None:
    assert allowed("cli", "stream") and allowed("stream", "dit") and allowed("dit", "dit")
    assert not allowed("dit", "stream") and not allowed("codecs", "world") and not allowed("nn", "dit")


def test_files_are_short() -> None:
    folders = [PACKAGE, ROOT / "tests", ROOT / "scripts", ROOT / "benchmarks"]
    files = [path for top in folders for path in top.rglob("*.py")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    slack = {path: 80 if path.is_relative_to(ROOT / "tests") else 0 for path in lengths}  # one question, many cases
    long = [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lengths.items() if n > MAX_LINES + slack[path]]
    assert not long, f"at most {MAX_LINES} lines a file: " + "; ".join(long)


def test_shipped_weights_stay_small() -> None:
    sizes = [path.stat().st_size for path in (PACKAGE / "assets").rglob("*.safetensors")]
    assert sizes and sum(sizes) < 40e6


def test_only_the_command_line_prints() -> None:
    printing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        if part_of(path) not in ("cli", "bench")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing, "use logging: " + "; ".join(printing)
