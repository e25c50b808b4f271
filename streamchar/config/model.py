"""Model configuration: frozen values, one dataclass a component (design section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from streamchar import clock
from streamchar.errors import ConfigError


def _multiple(name: str, value: int, of: int, why: str) -> None:
    if value <= 0 or value % of:
        low, high = max(of, value // of * of), (max(value, 0) // of + 1) * of
        raise ConfigError(f"{name} must be a multiple of {of} ({why}), got {value}; nearest: {low} or {high}")


@dataclass(frozen=True, kw_only=True)
class OrchestratorConfig:
    """The causal language model that plans speech (paper section 3.2) and its pointer (eq. 5)."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    rope_theta: float = 10_000.0
    audio_channels: int = 64
    pointer_width: int = 128
    pointer_readout: bool = True
    """Add the pointer's attention-weighted transcript states to c_a (our addition)."""
    cursor_prior: bool = True
    """Tell the tail and the pointer where the transcript cursor stands (our addition)."""
    max_reference: int = 72
    """Longest reference audio in latents (3 s)."""
    look_ahead: int = 64
    """Transcript tokens beyond the cursor that one chunk may see."""
    max_transcript: int = 288
    """Transcript tokens in one window (20 s of speech)."""
    tokens_per_latent: float = 0.6
    """Mean speaking rate in transcript tokens per audio latent: the cursor prior's slope at the start."""

    def __post_init__(self) -> None:
        _multiple("orchestrator width", self.width, self.heads, "attention heads")
        _multiple("orchestrator heads", self.heads, self.kv_heads, "grouped key-value heads")

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """The joint audio-video DiT: Wan2.2-5B's block with a second FFN expert (paper section 3.3)."""

    width: int
    layers: int
    heads: int
    ffn: int
    video_channels: int
    audio_channels: int = 64
    condition_width: int
    """Width of c_a, the orchestrator's hidden states."""
    text_width: int
    time_width: int = 256
    """Width of the sinusoidal timestep embedding."""
    patch: tuple[int, int, int] = (1, 2, 2)
    audio_layers: int = 2
    """Blocks of the audio encoder in front of the main blocks, and of the decoder behind them."""
    audio_width: int | None = None
    """Width of the audio encoder and decoder; `width` when None."""
    eps: float = 1e-6
    rope_theta: float = 10_000.0
    time_scale: float = 1.0
    """Factor on temporal positions. Wan's rotation is too slow to tell neighbouring audio tokens, a quarter of a
    latent apart, from each other; 4 turns them as far as neighbours in a sequence of audio alone."""
    ref_beside: bool = False
    """Every video token also gets the reference's patch at its own place, as Stable Video Diffusion has its picture in
    the channels: how far a face has moved is told from the two beside each other, without attention (decisions.md)."""
    places: tuple[int, int] | None = None
    """Rows and columns of a learned embedding of every video token's place in the picture; None: rotary positions tell
    places from each other, but none by itself. With it a model knows pictures of this one size (decisions.md)."""

    def __post_init__(self) -> None:
        _multiple("DiT width", self.width, self.heads, "attention heads")
        _multiple("DiT head width", self.width // self.heads, 2, "rotary pairs")

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class VideoCodecConfig:
    """Which video VAE, and its size. `family`: "toon" (ours) or "wan" (AutoencoderKLWan).

    For "wan", `widths` are the encoder's and the decoder's first width, `blocks` residual blocks a level."""

    family: str
    latent_channels: int
    spatial_stride: int
    widths: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    motion: bool = False
    """"toon": the decoder draws what moves within a latent's four frames once (`codecs/motion.py`)."""
    reference: bool = False
    """"toon": the decoder takes from the stream's still what it has in common with it (`codecs/reference.py`)."""
    parts: int = 0
    """"toon": of what is taken from the still, so many parts move as wholes each; 0: every place by itself."""


@dataclass(frozen=True, kw_only=True)
class AudioCodecConfig:
    """Which audio VAE, and its size. `family`: "toon" (ours) or "oobleck" (AutoencoderOobleck, `width` its
    decoder's first; `blocks` is toon's alone, as are `decoder_blocks`, by which its decoder is deeper, and `voice`)."""

    family: str
    latent_channels: int = 64
    width: int = 256
    blocks: int = 6
    decoder_blocks: int | None = None
    voice: int = 0
    """"toon": numbers by which the decoder knows whose voice a stream's reference is; 0: it is not told."""


@dataclass(frozen=True, kw_only=True)
class PromptEncoderConfig:
    """Frozen text encoder. `family`: "t5" (small) or "umt5" (UMT5EncoderModel)."""

    family: str
    width: int
    layers: int
    heads: int
    ffn: int
    vocab_size: int
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model."""

    name: str
    height: int
    width: int
    orchestrator: OrchestratorConfig
    dit: DiTConfig
    video: VideoCodecConfig
    audio: AudioCodecConfig
    prompt: PromptEncoderConfig
    tokenizer: str
    """Transcript tokens: "phonemes", "characters" or a Hugging Face tokenizer folder or id."""

    def __post_init__(self) -> None:
        step = self.video.spatial_stride * self.dit.patch[1]
        _multiple("video height", self.height, step, "VAE stride times patch")
        _multiple("video width", self.width, step, "VAE stride times patch")
        if self.dit.condition_width != self.orchestrator.width:
            raise ConfigError(
                f"dit.condition_width must equal orchestrator.width, got {self.dit.condition_width} "
                f"and {self.orchestrator.width}"
            )

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of a video latent."""
        return self.height // self.video.spatial_stride, self.width // self.video.spatial_stride

    @property
    def grid(self) -> tuple[int, int]:
        """Video tokens per latent frame, vertically and horizontally."""
        (h, w), (_, ph, pw) = self.latent_size, self.dit.patch
        return h // ph, w // pw

    @property
    def video_tokens_per_chunk(self) -> int:
        return clock.VIDEO_LATENTS_PER_CHUNK * self.grid[0] * self.grid[1]
