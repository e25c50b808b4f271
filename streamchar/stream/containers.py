"""What is inside a file: one encoder for each track and one clock, for the whole stream (design section 8).

`MovieSink` writes H.264 + AAC (mp4) or VP9 + Opus (webm) at 24 fps and 48,000 Hz; `WavSink` writes
16-bit PCM at 49,152 Hz. Every timestamp is computed from an index. Encoders run on one thread each, so
the same frames give the same bytes on any machine.

Shape letters: T frames, H height, W width, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import soundfile
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from torch import Tensor

from streamchar.clock import AUDIO_RATE, FRAMES_PER_CHUNK, MUX_RATE, VIDEO_FPS
from streamchar.errors import ConfigError
from streamchar.stream.resample import Resampler

_BT709 = 1  # code point of BT.709 for matrix, primaries and transfer (ITU-T H.273)
_LIMITED_RANGE = 1


@dataclass(frozen=True, kw_only=True)
class MovieFormat:
    """A container with its two encoders."""

    container: str
    video: str
    audio: str
    sample_format: str
    video_options: dict[str, str]
    audio_bit_rate: int
    file_options: dict[str, str] = field(default_factory=dict)
    live_options: dict[str, str] = field(default_factory=dict)
    """For a target that cannot seek: what is written can be played at once."""


MP4 = MovieFormat(
    container="mp4",
    video="libx264",
    audio="aac",
    sample_format="fltp",
    # no B frames: presentation starts at 0 without an edit list; scenecut off: key frames at chunk starts only
    video_options={"preset": "veryfast", "crf": "18", "bf": "0", "sc_threshold": "0"},
    audio_bit_rate=128_000,
    file_options={"movflags": "+faststart"},
    # delay_moov: the header waits for the first packets, so that AAC's 1,024 priming samples get their edit list
    live_options={"movflags": "+frag_keyframe+empty_moov+delay_moov+default_base_moof", "frag_duration": "250000"},
)
WEBM = MovieFormat(
    container="webm",
    video="libvpx-vp9",
    audio="libopus",
    sample_format="flt",
    video_options={"deadline": "realtime", "cpu-used": "8", "crf": "24", "b": "0"},
    audio_bit_rate=96_000,
    live_options={"live": "1", "cluster_time_limit": "250"},
)


class MovieSink:
    """Encodes frames and samples of one stream into `target`, a file or a writable object."""

    rate = MUX_RATE

    def __init__(self, target: Path | IO[bytes], form: MovieFormat) -> None:
        self._form = form
        self._live = not isinstance(target, Path)
        options = form.live_options if self._live else form.file_options
        self._container: Any = av.open(
            str(target) if isinstance(target, Path) else target,
            "w",
            format=form.container,
            options={"fflags": "+bitexact", **options},  # bitexact: no clock time and no version in the file
        )
        self._video: Any = None
        self._audio: Any = None
        self._converter = VideoReformatter()
        self._resampler = Resampler()
        self._pending = torch.zeros(0)
        self.frames = 0
        self.samples = 0

    def add(self, frames_THWC: Tensor, samples_S: Tensor) -> None:
        """(T, H, W, 3) uint8 and (S,) float32 at 49,152 Hz, the next in time."""
        if self._video is None:
            self._open(frames_THWC.shape[1], frames_THWC.shape[2])
        for frame_HWC in frames_THWC.cpu().numpy():
            self._add_frame(frame_HWC)
        self._add_samples(self._resampler.push(samples_S))

    def close(self) -> None:
        """Write what is left and the index."""
        if self._video is not None:
            self._add_samples(self._resampler.flush(), last=True)
            self._container.mux(self._video.encode(None))
            self._container.mux(self._audio.encode(None))
        self._container.close()

    def abort(self) -> None:
        """Let go of the target without caring for its content."""
        self._container.close()

    def _open(self, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise ConfigError(f"picture height and width must be even (yuv420p), got {height}x{width}")
        options = dict(self._form.video_options)
        if self._live and self._form.video == "libx264":
            options["tune"] = "zerolatency"
        video = self._container.add_stream(self._form.video, rate=VIDEO_FPS, options=options)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        coder = video.codec_context
        coder.time_base, coder.gop_size, coder.thread_count = Fraction(1, VIDEO_FPS), FRAMES_PER_CHUNK, 1
        coder.colorspace = coder.color_primaries = coder.color_trc = _BT709
        coder.color_range = _LIMITED_RANGE
        audio = self._container.add_stream(self._form.audio, rate=MUX_RATE, layout="mono")
        audio.codec_context.bit_rate = self._form.audio_bit_rate
        audio.codec_context.time_base = Fraction(1, MUX_RATE)
        self._container.start_encoding()
        self._video, self._audio = video, audio

    def _add_frame(self, frame_HWC: np.ndarray) -> None:
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
        # one converter for all frames: `rgb.reformat` builds a new one each time, which costs more than converting
        frame = self._converter.reformat(
            rgb, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = self.frames, Fraction(1, VIDEO_FPS)
        self.frames += 1
        self._container.mux(self._video.encode(frame))

    def _add_samples(self, samples_S: Tensor, *, last: bool = False) -> None:
        pending = torch.cat([self._pending, samples_S.clamp(-1, 1)])
        size = self._audio.codec_context.frame_size
        whole = pending.shape[0] if last else pending.shape[0] // size * size
        for piece in pending[:whole].split(size) if whole else ():
            frame = av.AudioFrame.from_ndarray(piece.numpy()[None], format=self._form.sample_format, layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = MUX_RATE, self.samples, Fraction(1, MUX_RATE)
            self.samples += piece.shape[0]
            self._container.mux(self._audio.encode(frame))
        self._pending = pending[whole:].clone()


class WavSink:
    """16-bit PCM at the model's own 49,152 Hz; the picture is left out."""

    rate = AUDIO_RATE

    def __init__(self, target: Path) -> None:
        self._file = soundfile.SoundFile(str(target), "w", AUDIO_RATE, 1, format="WAV", subtype="PCM_16")
        self.frames = 0
        self.samples = 0

    def add(self, frames_THWC: Tensor, samples_S: Tensor) -> None:
        """(T, H, W, 3), counted only, and (S,) float32 at 49,152 Hz."""
        self.frames += frames_THWC.shape[0]
        self.samples += samples_S.shape[0]
        self._file.write((samples_S.detach().cpu().clamp(-1, 1) * 32_767).round().to(torch.int16).numpy())

    def close(self) -> None:
        self._file.close()

    abort = close
