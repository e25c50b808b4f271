"""`streamchar world`: ground-truth clips, contact sheets and training shards of the cartoon world."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from streamchar.errors import CheckpointError, InputError

logger = logging.getLogger(__name__)

SHEET_CHARACTERS = 24


def world(
    text: Annotated[str | None, typer.Option(help="Draw a clip of a character speaking this; needs -o.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="clip.mp4, clip.webm or clip.wav.")] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Write a sheet of characters.")] = None,
    shards: Annotated[Path | None, typer.Option(metavar="DIR", help="Write training shards; needs --hours.")] = None,
    speech_raw: Annotated[Path | None, typer.Option(metavar="DIR", help="Write an audio codec's data.")] = None,
    clips_raw: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a video codec's data.")] = None,
    hours: Annotated[float | None, typer.Option(help="Hours to write.")] = None,
    clips: Annotated[int | None, typer.Option(help="Clips of one chunk to write, of a character each.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that write data.")] = 1,
    shard_seconds: Annotated[float | None, typer.Option(help="Playing time of one shard.", hidden=True)] = None,
    size: Annotated[int, typer.Option(help="Pixels of the shards' pictures, as the preset has them.")] = 256,
    seed: Annotated[int, typer.Option(help="The character, or the first of the sheet or shards.")] = 0,
    prompt: Annotated[str | None, typer.Option(help="How the character behaves; else as the seed has it.")] = None,
    audio_codec: Annotated[Path | None, typer.Option(metavar="DIR", help="Codec of the shards; else toon's.")] = None,
    video_codec: Annotated[Path | None, typer.Option(metavar="DIR", help="Codec of the shards; else toon's.")] = None,
    speech_only: Annotated[bool, typer.Option("--speech-only", help="Shards without pictures, for stage 1.")] = False,
    short: Annotated[
        bool, typer.Option("--short", help="Shards of clips of one or two sentences: more characters an hour.")
    ] = False,
    held_out: Annotated[bool, typer.Option("--held-out", help="Shards of held-out characters and sentences.")] = False,
) -> None:
    """Draw the cartoon world: a clip (--text), a sheet (--sheet) or training data (the others)."""
    targets = {
        "--text": text, "--sheet": sheet, "--shards": shards, "--speech-raw": speech_raw, "--clips-raw": clips_raw,
    }
    asked = [name for name, value in targets.items() if value is not None]
    if len(asked) != 1:
        raise InputError(f"give one of {', '.join(targets)}; got {', '.join(asked) or 'none'}")
    if seed < 0:
        raise InputError(f"--seed must be 0 or more, got {seed}")
    if text is not None:
        draw_clip(seed, text, prompt, output)
    elif sheet is not None:
        draw_sheet(sheet, seed)
    elif shards is not None:
        check_amount("--shards", shards, "--hours", hours, workers)
        from streamchar.data.prepare import SHARD_SECONDS, Recipe, prepare

        prepare(
            Recipe(
                folder=shards,
                hours=hours or 0.0,
                audio_codec=codec_folder(audio_codec, "audio_codec"),
                video_codec=None if speech_only else codec_folder(video_codec, "video_codec"),
                seed=seed,
                held_out=held_out,
                workers=workers,
                shard_seconds=SHARD_SECONDS if shard_seconds is None else shard_seconds,
                size=size,
                short=short,
            )
        )
    elif speech_raw is not None:
        check_amount("--speech-raw", speech_raw, "--hours", hours, workers)
        if held_out:
            raise InputError("--speech-raw has no held-out half; leave out --held-out")
        from streamchar.train.raw import raw_speech

        raw_speech(speech_raw, hours or 0.0, seed=seed, workers=workers)
    elif clips_raw is not None:
        check_amount("--clips-raw", clips_raw, "--clips", clips, workers)
        from streamchar.train.raw import raw_clips

        raw_clips(clips_raw, clips or 0, held_out=held_out, seed=seed, workers=workers)


def draw_clip(seed: int, text: str, prompt: str | None, output: Path | None) -> None:
    """One clip of character `seed`, drawn and spoken by the world itself."""
    from streamchar.clock import CHUNK_SECONDS, frames, samples
    from streamchar.stream.inputs import read_text
    from streamchar.stream.mux import Muxer

    if output is None:
        raise InputError("missing -o: give the clip's file, such as -o clip.mp4")
    text = read_text(text, None)
    with Muxer(output) as muxer:
        from streamchar.world.character import character
        from streamchar.world.clips import make_clip
        from streamchar.world.prompt import parse

        direction = None
        if prompt is not None:
            direction, unknown = parse(prompt)
            if unknown:
                logger.warning("the world does not know these words of the prompt: %s", ", ".join(unknown))
        clip = make_clip(seed, text, who=character(seed), direction=direction)
        for chunk in range(clip.chunks):  # drawn piece by piece: a long text needs no more memory
            picture_T3HW = clip.frames(frames(chunk), frames(chunk + 1))
            muxer.add(picture_T3HW.permute(0, 2, 3, 1), clip.speech.samples[samples(chunk) : samples(chunk + 1)])
    print(f"{output}: {float(clip.chunks * CHUNK_SECONDS):.1f} s, character {seed}, {clip.prompt!r}")


def draw_sheet(target: Path, seed: int) -> None:
    """A contact sheet of characters from `seed` on."""
    from streamchar.stream.draft import Draft

    if target.suffix.lower() not in (".png", ".jpg", ".webp"):
        raise InputError(f"the sheet's name must end in .png, .jpg or .webp, got {str(target)!r}")
    with Draft(target) as draft:
        from streamchar.world.sheet import sheet

        sheet(draft.path, seeds=range(seed, seed + SHEET_CHARACTERS))
    print(target)


def check_amount(option: str, folder: Path, unit: str, amount: float | None, workers: int) -> None:
    """Raise `InputError` for what cannot be written."""
    if amount is None or not 0 < amount < float("inf"):
        raise InputError(f"{option} needs {unit} above 0, got {amount}")
    if workers < 1:
        raise InputError(f"--workers must be at least 1, got {workers}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option} must be a folder, {folder} is a file")


def codec_folder(given: Path | None, component: str) -> Path:
    """The codec to encode shards with: a folder that was given, or toon's own."""
    folder = given or Path(__file__).parents[1] / "assets" / "toon" / component
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"expected a codec in {folder} (config.json and safetensors), found none")
    return folder
