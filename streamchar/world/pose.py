"""What a character's pose is, as numbers: the part of a motion track that a picture shows.

Shape letters: T frames, N pictures, P pose values, K latent frames of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamchar import clock
from streamchar.errors import InputError
from streamchar.world.gesture import REST_Y
from streamchar.world.motion import MotionTrack

FACIAL = (
    "smile", "widen", "blink", "gaze_x", "gaze_y", "brow_raise", "brow_tilt", "blush", "yaw", "pitch", "zoom",
)  # fmt: skip
HEAD = ("roll", "x", "y", "opening", "round")
HANDS = tuple(f"{name}_{side}" for side in ("left", "right") for name in ("up", "x", "turn", "spread", "point"))
POSES = (*FACIAL, *HEAD, *HANDS)
MIRRORED = ("gaze_x", "yaw", "roll", "x", "x_left", "x_right", "turn_left", "turn_right")
"""These change their sign in a mirror."""


def poses(track: MotionTrack) -> Tensor:
    """What is to be read from each picture -> (T, P), in the world's units; a hand out of the picture has no pose."""
    found = [getattr(track, name) for name in FACIAL]
    found += [track.roll + track.body_roll, track.body_x + track.head_x, track.body_y + track.head_y]
    found += [track.mouth.opening, track.mouth.round]
    for side in (0, 1):
        up = ((REST_Y - track.arms.y[:, side]) / 100 - 0.24).clamp(min=0)  # the finger tips reach the picture
        seen = (4 * up).clamp(max=1)
        x = (track.arms.x[:, side] - 128) / 100
        own = (track.arms.turn, track.arms.spread, track.arms.point)
        found += [up, x * seen, *(value[:, side] * seen for value in own)]
    return torch.stack(found, 1)


def mirrored(poses_NP: Tensor) -> Tensor:
    """The poses that a mirror shows."""
    signs = torch.tensor([-1.0 if name in MIRRORED else 1.0 for name in POSES])
    swap = {"left": "right", "right": "left"}
    names = ["_".join([n.split("_")[0], swap[n.split("_")[1]]]) if n in HANDS else n for n in POSES]
    return (poses_NP * signs)[:, [POSES.index(n) for n in names]]


def poses_by_latent(poses_TP: Tensor) -> Tensor:
    """Means over the frames of each latent, T whole chunks: (T, P) -> (T / 33, K = 9, P). A chunk's first latent
    holds one frame, the others four (Wan's rule)."""
    n, p = poses_TP.shape
    if n % clock.FRAMES_PER_CHUNK:
        raise InputError(f"expected whole chunks of {clock.FRAMES_PER_CHUNK} frames, got {n} frames")
    chunks = poses_TP.view(-1, clock.FRAMES_PER_CHUNK, p)
    rest = chunks[:, 1:].reshape(len(chunks), clock.VIDEO_LATENTS_PER_CHUNK - 1, -1, p).mean(2)
    return torch.cat([chunks[:, :1], rest], 1)
