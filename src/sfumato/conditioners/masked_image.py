"""Masked image: a picture with a hole, for models that were trained to fill it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.conditioners.beside import Beside, fitted, refuse_unheard, rows_of, values_of
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.data.picture import masks


@dataclass(eq=False, repr=False)
class MaskedImage(Beside):
    """A picture without what is to be made anew, and the mask of that, beside x in the condition's channels.

    With m the mask, 1 where the picture is made anew, taken at x's places from the nearest pixel on the left
    and above, and E the space's encoding (a posterior's mean):

        sd       m, E(picture · (1 - m))            the hole is mid-grey, 0
        ldm      E(picture with -1 in the hole), 2m - 1
        pixel    m, picture · (1 - m)               every pixel of both, stacked as the space stacks patches

    Stable Diffusion's inpainting models are told `sd` (x of 4 channels and these are 9), latent diffusion's
    `ldm` (3, and 7 in all). The edit `inpaint` tells picture and mask by itself. Null keeps both: guidance
    steers what else is said.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752,
    section 4.5; Nichol et al. 2021 (GLIDE), arXiv:2112.10741, section 2.3.

    Args:
        style: what is told, and in which order.

    Raises:
        InvalidInput: when told, if no picture or mask is given, or sizes differ.
    """

    style: Literal["sd", "ldm", "pixel"] = "sd"

    inputs = kept = ("image", "mask", "size")
    pictures = ("image", "mask")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.style not in ("sd", "ldm", "pixel"):
            raise InvalidInput(f"{self.style!r} is not sd, ldm or pixel", where="masked_image.style")

    def forward(self, count: int, **inputs: Any) -> Condition:
        """A picture and a mask for all rows, or lists with one a row → channels (count, ·, h, w).

        Pictures and masks are paths, PIL images or tensors; a mask is grey, and what is lighter than half is
        made anew, or a tensor (1, H, W) of ones and zeros. Both are of the shape of the picture that is made,
        and where they are of another size, resized.
        """
        images, holes = (rows_of(count, inputs.get(name), name) for name in self.pictures)
        read = [self._both(image, hole) for image, hole in zip(images, holes, strict=True)]
        seen, (height, width) = self._fitted([image for image, _ in read], inputs, "bicubic")
        free, _ = self._fitted([hole for _, hole in read], {"size": (height, width)}, "nearest", "mask")
        pairs = [(image.clamp(-1, 1), hole) for image, hole in zip(seen, free, strict=True)]
        size = self._places(height, width)
        mask = torch.stack([hole for _, hole in pairs]).to(self.device_of.device)
        empty = -1.0 if self.style == "ldm" else 0.0
        shown = [image.masked_fill(hole > 0, empty) for image, hole in pairs]
        encoded = self._encoded(shown)
        if self.style == "pixel":
            return Condition(channels=torch.cat((F.pixel_unshuffle(mask, height // size[0]), encoded), dim=1))
        small = F.interpolate(mask, size, mode="nearest")
        told = (small, encoded) if self.style == "sd" else (encoded, 2 * small - 1)
        return Condition(channels=torch.cat(told, dim=1))

    def check(self, **inputs: Any) -> None:
        """Refuse what is no picture or mask, or of another shape, before any work."""
        refuse_unheard(inputs, self.inputs)
        images, holes = (values_of(inputs.get(name)) for name in self.pictures)
        if len(images) == len(holes):
            for image, hole in zip(images, holes, strict=True):
                self._both(image, hole)
        elif not images or not holes:
            self._both(images[0] if images else None, holes[0] if holes else None)

    def _both(self, image: Any, hole: Any) -> tuple[Tensor, Tensor]:
        """Picture (C, H, W) and mask (1, H, W)."""
        if image is None or hole is None:
            raise InvalidInput(
                "this model fills a hole in a picture and was given none",
                where="mask" if hole is None else "image",
                do="edit={'name': 'inpaint', 'image': PATH, 'mask': PATH}",
            )
        picture, mask = self._read(image), masks(hole, "mask")[0]
        return picture, fitted(mask, (picture.shape[1], picture.shape[2]), "nearest", "mask", what="mask")
