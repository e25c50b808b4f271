"""`streamchar say`: a sentence, or a book, to a video of a character speaking it."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamchar.errors import InputError, StateError

if TYPE_CHECKING:
    from streamchar.types import Word

logger = logging.getLogger(__name__)

DEFAULT_CHARACTER = "7"
DEFAULT_PROMPT = ""
MAX_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that was asked for on the command line; None is "not given"."""

    text: str | None = None
    file: str | None = None
    output: Path
    character: str | None = None
    prompt: str | None = None
    voice: Path | None = None
    seed: int | None = None
    steps: int | None = None
    captions: Path | None = None
    model: str = "toon"
    save_state: Path | None = None
    resume: Path | None = None
    max_chunks: int | None = None

    def check(self) -> None:
        """What can be told without loading anything. Raises `InputError`."""
        from streamchar.stream.mux import check_suffix

        if self.steps is not None and not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"--steps must be from 1 to {MAX_STEPS}, got {self.steps}")
        if self.max_chunks is not None and self.max_chunks < 1:
            raise InputError(f"--max-chunks must be at least 1, got {self.max_chunks}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"--seed must be from 0 to 2**63 - 1, got {self.seed}")
        check_suffix(self.output)
        self._check_names()
        if self.resume is not None:
            fixed = ("text", "file", "character", "prompt", "voice", "seed", "steps")
            given = [name for name in fixed if getattr(self, name) is not None]
            if given:
                raise InputError(f"--resume goes on with what was saved; leave out: {', '.join(given)}")

    def _check_names(self) -> None:
        """No output may overwrite an input or another output (a state may be saved over the one resumed)."""
        outputs = [path.resolve() for path in (self.output, self.captions, self.save_state) if path]
        if len(set(outputs)) < len(outputs):
            raise InputError("--output, --captions and --save-state must be different files")
        inputs = {Path(name).resolve() for name in (self.file, self.voice, self.character) if name}
        inputs |= {self.resume.resolve()} if self.resume and self.resume != self.save_state else set()
        both = inputs.intersection(outputs)
        if both:
            raise InputError(f"{both.pop()} is both an input and an output; choose another name for the output")


def say(
    text: Annotated[str | None, typer.Argument(help="What to say.", show_default=False)] = None,
    file: Annotated[str | None, typer.Option("--file", help="Say this UTF-8 text file (- is standard input).")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="out.mp4, out.webm or out.wav.")] = None,
    character: Annotated[
        str | None, typer.Option(metavar="SEED|IMAGE", help=f"Who speaks.  [default: {DEFAULT_CHARACTER}]")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="How the character behaves: mood, gesture, energy.")] = None,
    voice: Annotated[Path | None, typer.Option(metavar="WAV", help="A few seconds of the voice to speak with.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise.  [default: 0]")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps a chunk.  [default: the model's]")] = None,
    captions: Annotated[Path | None, typer.Option(metavar="VTT", help="Also write WebVTT captions.")] = None,
    model: Annotated[str, typer.Option(metavar="toon|DIR|HUB_ID", help="Which model.")] = "toon",
    save_state: Annotated[Path | None, typer.Option(help="Save the stream's state at the end.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on from a saved state; writes only the new part.")] = None,
    max_chunks: Annotated[int | None, typer.Option(help="Stop after so many chunks of 1.375 s.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the figures at the end.")] = False,
) -> None:
    """Speak a text: writes a video (or sound) of a character saying it."""
    if output is None:
        raise InputError("missing -o: give the output file, such as -o out.mp4")
    request = Request(
        text=text, file=file, output=output, character=character, prompt=prompt, voice=voice, seed=seed, steps=steps,
        captions=captions, model=model, save_state=save_state, resume=resume, max_chunks=max_chunks,
    )  # fmt: skip
    request.check()
    report = speak(request)
    if as_json:
        print(json.dumps(report))
    else:
        print(
            f"{output}: {report['seconds']:.1f} s, {report['spoken_words']}/{report['total_words']} words, "
            f"real-time factor {report['rtf']:.2f}, first chunk after {report['first_chunk_s']:.1f} s"
        )


def speak(request: Request) -> dict[str, Any]:
    """Carry out a checked request; returns the figures of `--json`.

    Outputs get their names at the very end, all or none.
    """
    from rich.console import Console

    from streamchar.cli.meter import Meter
    from streamchar.clock import CHUNK_SECONDS
    from streamchar.stream.captions import vtt
    from streamchar.stream.draft import Draft, writing
    from streamchar.stream.mux import Muxer

    text = None
    if request.resume is None:
        from streamchar.stream.inputs import read_text

        text = read_text(request.text, request.file)
    with contextlib.ExitStack() as outputs:
        # entered first, committed last: nothing gets its name unless the muxer, closed first, succeeds
        state_file = outputs.enter_context(Draft(request.save_state)) if request.save_state else None
        caption_file = outputs.enter_context(Draft(request.captions)) if request.captions else None
        muxer = outputs.enter_context(Muxer(request.output))
        start = _prepare(request, text)
        words: list[Word] = []
        first = None
        with Meter(Console(stderr=True)) as meter:
            session = start()
            for chunk in meter.watch(session, request.max_chunks):
                first = chunk.index if first is None else first
                muxer.write(chunk)
                words += chunk.words
        if first is None:
            raise StateError("the saved stream has already spoken its whole text; start a new one with a text")
        if caption_file:
            with writing(caption_file.target):
                text = vtt(words, start=first * CHUNK_SECONDS)
                caption_file.path.write_text(text, encoding="utf-8", newline="\n")
        if state_file:
            with writing(state_file.target):
                session.state.save(state_file.path)
    return {
        "chunks": muxer.chunks,
        "frames": muxer.frames,
        "samples": muxer.samples,
        "sample_rate": muxer.rate,
        "seconds": float(muxer.chunks * CHUNK_SECONDS),
        "spoken_words": session.spoken_words,
        "total_words": session.total_words,
        "stalled": bool(session.stalled),
        **meter.report(),
    }


def _prepare(request: Request, text: str | None):
    """Load the model and check every input; returns what starts the session, so that only streaming
    is timed."""
    from streamchar.stream.inputs import check_speakable
    from streamchar.stream.pipeline import StreamCharPipeline

    for path in (request.voice, request.resume):
        if path is not None and not path.is_file():
            raise InputError(f"there is no file {path}")
    pipe = StreamCharPipeline.from_pretrained(request.model)
    if request.resume is not None:
        from streamchar.stream.state import StreamState

        state = StreamState.load(request.resume)
        return lambda: pipe.session(state)
    assert text is not None
    check_speakable(text, pipe.tokenizer, pipe.unspeakable)
    prompt = DEFAULT_PROMPT if request.prompt is None else request.prompt
    for warning in pipe.prompt_warnings(prompt):
        logger.warning("%s", warning)
    character = DEFAULT_CHARACTER if request.character is None else request.character
    who, voice = pipe.read(character, request.voice)
    return lambda: pipe.session(
        pipe.start(
            text,
            character=who,
            prompt=prompt,
            voice=voice,
            seed=request.seed or 0,
            steps=request.steps,
        )
    )
