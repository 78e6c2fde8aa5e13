"""Pose: how people in a picture stand, as a model of the user's tells it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sfumato.control.detectors.borrowed import DEVIATION, MEAN, opened, shown, tensor_of
from sfumato.control.detectors.keypoints import Keypoints
from sfumato.control.detectors.reading import colors
from sfumato.core.errors import InvalidInput


@dataclass(frozen=True)
class Pose:
    """Skeletons of the people in a picture by an estimator that the user has, drawn as `keypoints` are.

    Args:
        model: the estimator, of pictures (1, 3, h, w), telling either plain data as OpenPose and COCO write
            it, or a tensor (people, 17 or 18, 3) of x, y and confidence in pixels of what it was shown: a
            function, or the path of a TorchScript or torch.export file, which is a program: name one that you
            trust.
        side: the shorter side that pictures are scaled to for it, 0 for their own.
        multiple: what it wants sides to be a multiple of.
        mean, deviation: of pictures in [0, 1] as it takes them.
        drawing: how key points are drawn, and from which confidence on.

    Raises:
        InvalidInput: settings that are none; a model that tells something else.
        MissingExtra: no model is named.
        NotFound, CheckpointCorrupt: no such file, or no program in it.
    """

    model: Any = None
    side: int = 0
    multiple: int = 1
    mean: tuple[float, float, float] = MEAN
    deviation: tuple[float, float, float] = DEVIATION
    drawing: Keypoints = field(default_factory=Keypoints)

    def __post_init__(self) -> None:
        if self.side < 0 or self.multiple < 1 or min(self.deviation) <= 0:
            raise InvalidInput("sides or deviations that are none", where="pose")

    def __call__(self, given: Any, seed: str | None = None) -> Tensor:
        """A picture (3 or 4, H, W), a path or an image → (3, H, W) in [-1, 1]."""
        model, picture = opened(self.model, "pose"), colors(given, "pose")
        with torch.inference_mode():
            x = shown(picture, self.side, self.multiple, self.mean, self.deviation)
            told = model(x)
        size = [picture.shape[1], picture.shape[2]]
        if isinstance(told, dict) and not any(isinstance(value, Tensor) for value in told.values()):
            return self.drawing({"size": size, **told})
        people = tensor_of(told, "pose") if not _nobody(told) else torch.zeros(0, 18, 3)
        if people.ndim != 3 or people.shape[1] not in (17, 18) or people.shape[2] != 3:
            raise InvalidInput(
                f"the model told {tuple(people.shape)}", where="pose.model", do="tell (people, 17 or 18, 3)"
            )
        wide = people / torch.tensor([x.shape[3] / size[1], x.shape[2] / size[0], 1.0])
        rows = [{"keypoints": person.flatten().tolist()} for person in wide]
        return self.drawing({"annotations": rows, "size": size})


def _nobody(told: Any) -> bool:
    return isinstance(told, Tensor) and told.ndim == 3 and not len(told)
