"""`streamchar world`: ground-truth clips, contact sheets and training shards of the cartoon world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamchar.errors import InputError


def world(
    text: Annotated[str | None, typer.Option(help="Draw a clip of a character speaking this; needs -o.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="clip.mp4, clip.webm or clip.wav.")] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Write a sheet of characters.")] = None,
    shards: Annotated[Path | None, typer.Option(metavar="DIR", help="Write training shards; needs --hours.")] = None,
    hours: Annotated[float | None, typer.Option(help="Hours of clips to write.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that write shards.")] = 1,
    seed: Annotated[int, typer.Option(help="The character, or the first of the sheet or shards.")] = 0,
    prompt: Annotated[str | None, typer.Option(help="How the character behaves; by default what the seed says.")] = None,
) -> None:
    """Draw the cartoon world: a clip (--text), a sheet (--sheet) or training data (--shards)."""
    asked = [name for name, value in (("--text", text), ("--sheet", sheet), ("--shards", shards)) if value is not None]
    if len(asked) != 1:
        raise InputError(f"give one of --text, --sheet and --shards, got {', '.join(asked) or 'none'}")
    if seed < 0:
        raise InputError(f"--seed must be 0 or more, got {seed}")
    if text is not None:
        draw_clip(seed, text, prompt, output)
    elif sheet is not None:
        draw_sheet(sheet, seed)
    elif shards is not None:
        write_shards(shards, hours, workers, seed)


def draw_clip(seed: int, text: str, prompt: str | None, output: Path | None) -> None:
    """One clip of character `seed`, drawn and spoken by the world itself."""
    from streamchar.stream.inputs import read_text
    from streamchar.stream.mux import Muxer

    if output is None:
        raise InputError("missing -o: give the clip's file, such as -o clip.mp4")
    text = read_text(text, None)
    with Muxer(output) as muxer:
        from streamchar.world.clips import make_clip

        clip = make_clip(seed, text, prompt=prompt) if prompt else make_clip(seed, text)
        muxer.add(clip.frames, clip.samples)
    print(f"{output}: {muxer.frames / 24:.1f} s, character {seed}")


def draw_sheet(target: Path, seed: int) -> None:
    """A contact sheet of characters from `seed` on."""
    from streamchar.stream.draft import Draft

    if target.suffix.lower() not in (".png", ".jpg", ".webp"):
        raise InputError(f"the sheet's name must end in .png, .jpg or .webp, got {str(target)!r}")
    with Draft(target) as draft:
        from streamchar.world.sheet import sheet

        sheet(draft.path, seed=seed)
    print(target)


def write_shards(folder: Path, hours: float | None, workers: int, seed: int) -> None:
    """Training data; what is already in `folder` is kept and counted."""
    if hours is None or not 0 < hours < float("inf"):
        raise InputError(f"--shards needs --hours above 0, got {hours}")
    if workers < 1:
        raise InputError(f"--workers must be at least 1, got {workers}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--shards must be a folder, {folder} is a file")
    from streamchar.data.prepare import prepare

    prepare(folder, hours=hours, workers=workers, seed=seed)
