"""`StreamCharPipeline`: the Python front door."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from streamchar import clock, phonemes
from streamchar.config.model import ModelConfig
from streamchar.errors import ConfigError, InputError
from streamchar.stream import models as components
from streamchar.stream.models import Models
from streamchar.stream.session import Session
from streamchar.stream.sizes import resized
from streamchar.stream.state import StreamState
from streamchar.types import Chunk, Transcript

VOICE_SENTENCE = "The quick brown fox jumps over the lazy dog, and then it rests."


class StreamCharPipeline:
    """Text in, a talking character out.

    >>> pipe = StreamCharPipeline.from_pretrained("toon")
    >>> for chunk in pipe.stream("Hello there.", character=7):
    ...     chunk.frames, chunk.samples
    """

    def __init__(self, models: Models) -> None:
        self.models = models

    @classmethod
    def from_pretrained(
        cls, source: str | Path = "toon", *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
        size: tuple[int, int] | None = None,
    ) -> StreamCharPipeline:
        """A shipped model's name, a folder or a hub id; `dtype` as for `load`; `size` is (height, width) of the
        pictures, if not the model's own. Raises `CheckpointError`, and `ConfigError` for a size it cannot make."""
        models = components.load(source, device=device, dtype=dtype)
        return cls(models if size is None else resized(models, *size))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the diffusers-style model folder."""
        components.save(self.models, folder)

    @property
    def config(self) -> ModelConfig:
        return self.models.config

    def components(self) -> dict[str, nn.Module]:
        return self.models.components()

    def tokenizer(self, text: str) -> Transcript:
        return self.models.tokenizer(text)

    def unspeakable(self, text: str) -> list[str]:
        """Characters of `text` that this model cannot speak."""
        return phonemes.unspeakable(text) if self.models.tokenizer.reads_english_only else []

    def prompt_warnings(self, prompt: str) -> list[str]:
        """One line for words of the prompt that `toon` never saw in training."""
        if self.config.prompt.family != "t5" or not prompt.strip():
            return []
        from streamchar.world.prompt import ENERGIES, GESTURES, MOODS, parse

        _, unknown = parse(prompt)
        if not unknown:
            return []
        return [
            f"the prompt has words that this model does not know: {', '.join(unknown)}; it knows moods "
            f"({', '.join(MOODS)}), gestures ({', '.join(GESTURES)}) and energy ({', '.join(ENERGIES)})"
        ]

    def start(
        self, text: str, *, character: Tensor | int | str | Path = 7, prompt: str = "",
        voice: Tensor | str | Path | None = None, seed: int = 0, steps: int | None = None,
        guidance: float | None = None,
    ) -> StreamState:
        """The state of a stream that has not begun.

        `character`: a seed of the cartoon world, or a picture in [-1, 1]: (3, H, W), (1, 3, H, W), or
        (3, 1, H, W) as `inputs.read_image` gives it; or an image file;
        `voice`: (S,) samples at 49,152 Hz to take the speaker from, or a sound file; for a seed it defaults to the
        character's own voice.
        """
        character, voice = self.read(character, voice)
        steps = self.models.steps if steps is None else steps
        if steps < 1:
            raise ConfigError(f"sampling steps must be at least 1, got {steps}; 16 is a good value")
        if not self.tokenizer(text).words:
            raise InputError(f"expected a text with at least one word to speak, got {text!r}")
        if isinstance(character, int):
            picture, voice = self._cartoon(character, voice)
        else:
            picture = character if character.ndim == 4 else character[None]
            if tuple(picture.shape[:2]) == (3, 1):
                picture = picture.transpose(0, 1)
        expected = (1, 3, self.config.height, self.config.width)
        if tuple(picture.shape) != expected:
            got = tuple(picture.shape[1:])
            raise InputError(f"expected a picture {expected[1:]}, got {got}; make it RGB and resize it")
        device = self.models.device
        with torch.inference_mode():
            still = self.models.video_codec.encode(picture[:, :, None].to(device))
            latents = None if voice is None else self._encode_voice(voice)
        seen = picture.add(1).mul(127.5).round().clamp(0, 255).to(device, torch.uint8)
        return StreamState(
            model=self.models.name, text=text, prompt=prompt, seed=seed, steps=steps,
            guidance=self.models.guidance if guidance is None else guidance,
            picture_guidance=1.0 if guidance == 1.0 else self.models.picture_guidance,  # 1 asks for a single pass
            picture_guidance_above=self.models.picture_guidance_above,
            temperature=self.models.temperature, picture_temperature=self.models.picture_temperature,
            still=still.clone(), picture=seen if self.config.video.reference else None,
            voice=None if latents is None else latents.clone(),
        )

    def read(
        self, character: Tensor | int | str | Path, voice: Tensor | str | Path | None
    ) -> tuple[Tensor | int, Tensor | None]:
        """What `start` takes, with files read: by name, or the seed that a name is. Raises `InputError`."""
        from streamchar.stream.inputs import read_character, read_voice

        if isinstance(character, (str, Path)):
            character = read_character(str(character), self.config.height, self.config.width)
        if isinstance(voice, (str, Path)):
            longest = self.config.orchestrator.max_reference / clock.AUDIO_LATENT_RATE
            voice = read_voice(voice, max_seconds=float(longest))
        if not isinstance(character, (int, Tensor)) or not (voice is None or isinstance(voice, Tensor)):
            raise InputError(
                "expected a character as a seed, an image file or a tensor, and a voice as a sound file or a tensor, "
                f"got {type(character).__name__} and {type(voice).__name__}"
            )
        return character, voice

    def _cartoon(self, seed: int, voice: Tensor | None) -> tuple[Tensor, Tensor]:
        """Reference frame and voice of a character of the world."""
        from streamchar.world.character import character
        from streamchar.world.render import draw_frame
        from streamchar.world.splits import HELD_OUT_VOICES
        from streamchar.world.voice import VOICES, speak

        who = character(seed, n_voices=len(VOICES) - len(HELD_OUT_VOICES))
        frame = draw_frame(who, size=self.config.height).float().div(127.5).sub(1)
        if voice is None:
            voice = speak(VOICE_SENTENCE, who.voice).samples
        return frame.reshape(1, 3, *frame.shape[-2:]), voice

    def _encode_voice(self, voice: Tensor) -> Tensor:
        limit = self.config.orchestrator.max_reference * clock.AUDIO_STRIDE
        if voice.ndim != 1 or voice.shape[0] < clock.AUDIO_STRIDE:
            raise InputError(
                f"expected a voice (samples,) of at least {clock.AUDIO_STRIDE} samples, got {tuple(voice.shape)}"
            )
        usable = min(limit, voice.shape[0] // clock.AUDIO_STRIDE * clock.AUDIO_STRIDE)
        return self.models.audio_codec.encode(voice[None, :usable].to(self.models.device))

    def session(self, state: StreamState) -> Session:
        """Play a state; iterate the session for chunks."""
        return Session(self.models, state)

    def stream(self, text: str, **options) -> Iterator[Chunk]:
        """`start` and `session` in one."""
        return iter(self.session(self.start(text, **options)))

    def __call__(self, text: str, output: Path | str, **options) -> Path:
        """Write a whole video or sound file."""
        from streamchar.stream.mux import Muxer

        with Muxer(Path(output)) as muxer:
            for chunk in self.stream(text, **options):
                muxer.write(chunk)
        return Path(output)
