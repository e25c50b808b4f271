"""Windows of clips for training: what a stream would know at each of n consecutive chunks.

A window starts at any chunk of a clip, sometimes in mid-sentence, as a stream's window does once its
15 s of history have been full. Token positions are counted from the window's first token.

Shapes: B batch, n chunks, J = 33, N tokens, R reference latents, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from streamchar import clock
from streamchar.data.shards import REFERENCE_LATENTS, ClipRecord, Shard, shard_paths
from streamchar.errors import DataError

J = clock.AUDIO_LATENTS_PER_CHUNK
EXTRA_TOKENS = 40


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A batch of windows, clean."""

    audio: Tensor
    """(B, n, 33, C)."""
    reference: Tensor
    """(B, R, C), zero behind `reference_length`."""
    reference_length: Tensor
    text: Tensor
    """(B, N)."""
    text_length: Tensor
    cursor: Tensor
    """(B, n + 1) tokens spoken at each chunk border, fractions included."""
    frame_token: Tensor
    """(B, n, 33) token spoken at each latent's centre."""
    video: Tensor | None = None
    """(B, n, Cv, 9, h, w)."""
    previous: Tensor | None = None
    """(B, Cv, 9, h, w) the chunk before the window; zero where `has_previous` is false."""
    has_previous: Tensor | None = None
    sink: Tensor | None = None
    """(B, Cv, 9, h, w) the clip's first chunk."""
    first: Tensor | None = None
    """(B,) the window's first chunk index in its clip."""
    still: Tensor | None = None
    """(B, Cv, 1, h, w)."""
    pose: Tensor | None = None
    """(B, n, 9, P) poses at each video latent; None where a clip does not know its own."""
    previous_pose: Tensor | None = None
    """(B, 9, P) of the chunk before the window; zero where `has_previous` is false."""
    prompts: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return self.audio.shape[0]

    def to(self, device: torch.device | str) -> Windows:
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)})


def progress_at(token_start: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Tokens spoken at `times` (seconds), with the fraction of the one under way; the end token, the
    last, is never finished."""
    index = np.clip(np.searchsorted(token_start, times, side="right") - 1, 0, len(token_start) - 1)
    after = np.append(token_start[1:], np.inf)
    length = np.maximum(after[index] - token_start[index], 1e-6)
    part = np.where(np.isfinite(length), (times - token_start[index]) / length, 0.5)
    return index + np.clip(part, 0, 1)


def cut_window(clip: ClipRecord, first: int, chunks: int, ahead: int) -> dict[str, Tensor]:
    """Tokens (`ahead` more than the window speaks), cursors and frame targets of chunks first ..
    first + chunks of a clip."""
    starts = clip.token_start.numpy().astype(np.float64)
    seconds = float(clock.CHUNK_SECONDS)
    borders = progress_at(starts, (first + np.arange(chunks + 1)) * seconds)
    base = int(borders[0])
    stop = min(len(starts), int(borders[-1]) + ahead + 1)
    centre = (first * J + np.arange(chunks * J) + 0.5) / float(clock.AUDIO_LATENT_RATE)
    frame = np.clip(np.searchsorted(starts, centre, side="right") - 1, 0, None) - base
    return {
        "audio": clip.audio[first * J : (first + chunks) * J].float().reshape(chunks, J, -1),
        "text": clip.tokens[base:stop].long(),
        "cursor": torch.from_numpy(borders - base).float(),
        "frame_token": torch.from_numpy(frame).reshape(chunks, J),
    }


class WindowDataset:
    """Draws batches of windows of one length from the shards of a folder."""

    def __init__(self, folder: Path, *, look_ahead: int, max_reference: int = REFERENCE_LATENTS, seed: int = 0) -> None:
        self.folder, self.look_ahead, self.seed = Path(folder), look_ahead, seed
        self.max_reference = max_reference
        self.shards: dict[Path, Shard] = {}
        self.index: list[tuple[Path, int, int]] = []
        self.refresh()

    def refresh(self) -> None:
        """Take in shards that have been finished since."""
        for path in shard_paths(self.folder):
            if path not in self.shards:
                self._add(path)

    def _add(self, path: Path) -> None:
        shard = self.shards[path] if path in self.shards else Shard(path)
        self.shards[path] = shard
        offset = shard.tensors["audio_offset"]
        self.index += [(path, i, int(offset[i + 1] - offset[i]) // J) for i in range(len(shard))]

    @property
    def names(self) -> list[str]:
        """The shards that are known, in the order in which they were found: with (seed, step), what a batch is."""
        return list(dict.fromkeys(path.name for path, _, _ in self.index))

    def restrict(self, names: list[str]) -> None:
        """Know these shards alone, in this order: those of a run that is resumed, or of another process.

        Raises `DataError` where one is missing: batches would not be what they were."""
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise DataError(
                f"the run was trained on {len(names)} shards, {len(missing)} of them are not in {self.folder} "
                f"(such as {missing[0]}); bring them back for the same batches"
            )
        self.index = []
        for name in names:
            self._add(self.folder / name)
        self.shards = {path: shard for path, shard in self.shards.items() if path.name in set(names)}

    @property
    def hours(self) -> float:
        return sum(chunks for _, _, chunks in self.index) * float(clock.CHUNK_SECONDS) / 3600

    def batch(self, step: int, size: int, chunks: int, *, first: str = "any") -> Windows:
        """Batch number `step`: a function of (seed, step), so that a resumed run sees what it would have.

        `first`: windows begin where the clip does ("start"), later ("later"), or as it comes ("any")."""
        rng = np.random.default_rng([self.seed, step])
        least = 1 if first == "later" else 0
        fitting = [i for i, (_, _, n) in enumerate(self.index) if n >= chunks + least]
        if not fitting:
            raise DataError(f"expected clips of at least {chunks} chunks in {self.folder}, the longest is shorter")
        picks = []
        for i in rng.choice(fitting, size):
            path, clip, n = self.index[i]
            # a third of the windows begin where the clip does: a stream's start must be learned too
            at_start = first == "start" or (first == "any" and rng.random() < 0.34)
            begin = 0 if at_start else int(rng.integers(least, n - chunks + 1))
            # a stream's window holds more text than the look-ahead shows: history sees it, the tail does not
            ahead = self.look_ahead + int(rng.integers(0, EXTRA_TOKENS))
            picks.append((self.shards[path][clip], begin, ahead))
        items = [(clip, begin, cut_window(clip, begin, chunks, ahead)) for clip, begin, ahead in picks]
        return collate(items, self.max_reference)


def collate(items: list[tuple[ClipRecord, int, dict[str, Tensor]]], max_reference: int = REFERENCE_LATENTS) -> Windows:
    """Pad texts and references and stack."""
    b = len(items)
    length = max(len(cut["text"]) for _, _, cut in items)
    text = torch.zeros(b, length, dtype=torch.long)
    channels = items[0][0].audio.shape[-1]
    reference = torch.zeros(b, max_reference, channels)
    for i, (clip, _, cut) in enumerate(items):
        text[i, : len(cut["text"])] = cut["text"]
        reference[i, : clip.reference.shape[0]] = clip.reference[:max_reference].float()
    video = {} if all(clip.video is None for clip, _, _ in items) else _collate_video(items)
    return Windows(
        audio=torch.stack([cut["audio"] for _, _, cut in items]),
        reference=reference,
        reference_length=torch.tensor([min(max_reference, clip.reference.shape[0]) for clip, _, _ in items]),
        text=text,
        text_length=torch.tensor([len(cut["text"]) for _, _, cut in items]),
        cursor=torch.stack([cut["cursor"] for _, _, cut in items]),
        frame_token=torch.stack([cut["frame_token"] for _, _, cut in items]),
        prompts=tuple(clip.prompt for clip, _, _ in items),
        **video,
    )


def _collate_video(items: list[tuple[ClipRecord, int, dict[str, Tensor]]]) -> dict[str, Tensor]:
    n = items[0][2]["audio"].shape[0]
    records = [(clip, first, clip.video) for clip, first, _ in items if clip.video is not None]
    if len(records) < len(items):
        raise DataError(
            f"expected clips with video, {len(items) - len(records)} of {len(items)} have speech alone; keep the two "
            "kinds of shards in two folders"
        )
    posed = [(c.pose.float(), f) for c, f, _ in records if c.pose is not None]
    poses = {}
    if len(posed) == len(items):
        poses["pose"] = torch.stack([p[f : f + n] for p, f in posed])
        poses["previous_pose"] = torch.stack([p[max(0, f - 1)] * (f > 0) for p, f in posed])
    return {
        "video": torch.stack([v[f : f + n].float() for _, f, v in records]),
        "previous": torch.stack([v[max(0, f - 1)].float() * (f > 0) for _, f, v in records]),
        "has_previous": torch.tensor([f > 0 for _, f, _ in records]),
        "sink": torch.stack([v[0].float() for _, _, v in records]),
        "first": torch.tensor([f for _, f, _ in records]),
        "still": torch.stack([c.still.float() for c, _, _ in records if c.still is not None]),
        **poses,
    }


def steps(dataset: WindowDataset, start: int, size: int, chunks: tuple[int, ...]) -> Iterator[tuple[int, Windows]]:
    """(step, batch) from `start` on. Window lengths take turns; longer windows make smaller batches."""
    step = start
    while True:
        n = chunks[step % len(chunks)]
        yield step, dataset.batch(step, max(1, round(size * chunks[0] / n)), n)
        step += 1
