"""Latent space: diffusion on what an autoencoder makes of pictures."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.autoencoder import Autoencoder
from sfumato.core.errors import InvalidInput, NotFinite
from sfumato.core.noise import Noise
from sfumato.core.posterior import Posterior
from sfumato.spaces.tiling import tiled

PREVIEWS: dict[tuple[int, float], tuple[tuple[float, ...], ...]] = {
    (4, 0.18215): (
        (0.3512, 0.2297, 0.3227),
        (0.3250, 0.4974, 0.2350),
        (-0.2829, 0.1762, 0.2721),
        (-0.2120, -0.2616, -0.7177),
        (0.0, 0.0, 0.0),
    ),
    (4, 0.13025): (
        (0.3651, 0.4232, 0.4341),
        (-0.2533, -0.0042, 0.1068),
        (0.1076, 0.1111, -0.0362),
        (-0.3165, -0.2492, -0.2188),
        (0.1084, -0.0175, -0.0011),
    ),
}
"""Preview maps of Stable Diffusion 1 and 2, and of XL, by channels and scale, as ComfyUI publishes them
(comfy/latent_formats.py): red, green and blue of each channel of x, and what is added."""


@dataclass(eq=False, repr=False)
class Latent(nn.Module):
    """Latents of an autoencoder, moved and scaled to about unit variance.

        x = scale · (z - shift),    z = x / scale + shift

    Encoding draws z from the autoencoder's posterior where noise is given, else takes its mean. Pictures and
    latents are computed in the numbers the autoencoder declares, or more where its weights are held in more;
    what overflows half precision is computed once more in float32, with a warning. The autoencoder's weights
    are not trained here (they ask for no gradients), and it stays as it is when the rest is put to training.
    Without an autoencoder latents can be walked, and not turned into pictures.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752,
    sections 3.1 and G.

    Args:
        autoencoder: between pictures and latents; none if it is not part of the model.
        channels: of the latents; those of the autoencoder where there is one.
        factor: how many pixels, along a side, make one place; that of the autoencoder where there is one.
        multiple: height and width of latents must divide by it, the network's patch or downsampling.
        scale: 1 / standard deviation of latents, as `measure_scale` finds it.
        shift: their mean.
        preview_map: rows of what each channel of x adds to red, green and blue, and last what is added to
            all, as `fit_preview` finds them; without, those of PREVIEWS by the scale, else fitted when first
            used.
        tile: side in pixels of the tiles that larger pictures are encoded and decoded in, which bounds
            memory; None for never. Neighbours share a quarter of it.

    Raises:
        InvalidInput: channels or factor of another autoencoder, a scale that is none, tiles that do not fit.
    """

    # A default of the class would hide the module of this name.
    autoencoder: Autoencoder | None = field(default_factory=lambda: None)
    channels: int = 4
    factor: int = 8
    multiple: int = 1
    scale: float = 0.18215
    shift: float = 0.0
    tile: int | None = None
    preview_map: tuple[tuple[float, ...], ...] = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Latent:
        """Ready for parts before the dataclass sets them as its fields."""
        space = super().__new__(cls)
        nn.Module.__init__(space)
        return space

    def __post_init__(self) -> None:
        if isinstance(self.autoencoder, nn.Module):
            for name in ("channels", "factor"):
                said, its = getattr(self, name), getattr(self.autoencoder, name)
                if said not in (its, getattr(Latent, name)):
                    raise InvalidInput(f"{said}, but {its} of the autoencoder", where=f"latent.{name}")
                setattr(self, name, its)
            self.autoencoder.requires_grad_(False).eval()
        if not math.isfinite(self.scale) or self.scale <= 0 or not math.isfinite(self.shift):
            raise InvalidInput("the scale is a number above 0, the shift a number", where="latent")
        if self.tile is not None and (self.tile % self.factor or self.tile < 8 * self.factor):
            raise InvalidInput(
                f"{self.tile} pixels are no side of a tile",
                where="latent.tile",
                do=f"give a multiple of {self.factor} from {8 * self.factor} on",
            )

        if self.preview_map and len(self.preview_map) != self.channels + 1:
            raise InvalidInput(
                f"{len(self.preview_map)} rows where {self.channels} channels and a last row are due",
                where="latent.preview_map",
            )

    @property
    def image_channels(self) -> int:
        """Of the pictures: the autoencoder's."""
        return int(getattr(self.autoencoder, "in_channels", 3))

    @property
    def step(self) -> int:
        """Height and width of pictures divide by it: factor · multiple."""
        return self.factor * self.multiple

    def train(self, mode: bool = True) -> Latent:
        """As nn.Module.train, the autoencoder left as it is used."""
        super().train(mode)
        if isinstance(self.autoencoder, nn.Module):
            self.autoencoder.eval()
        return self

    def encode(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to x (B, channels, H / factor, W / factor), of the same dtype.

        Args:
            image: sides divide by factor · multiple.
            noise: for a draw of the posterior, one seed a row; its mean if not given.

        Raises:
            InvalidInput: without an autoencoder; sizes or channels it does not take.
            NotFinite: latents of finite pictures that are not.
        """
        self._present()
        if image.ndim != 4:
            raise InvalidInput(f"pictures are (B, 3, H, W), got {tuple(image.shape)}", where="image")
        self.shape(*image.shape[2:])
        if noise is not None and len(noise) != len(image):
            raise InvalidInput(f"{len(noise)} seeds for {len(image)} pictures", where="noise")
        moments = self.moments(image)
        z = moments[:, : self.channels]
        if noise is not None and moments.shape[1] > self.channels:
            z = Posterior(z, moments[:, self.channels :]).sample(noise)
        return (self.scale * (z - self.shift)).to(image.dtype)

    def moments(self, image: Tensor) -> Tensor:
        """What the autoencoder says of pictures: the posterior's mean (B, channels, ..), and after it its
        log-variance where it has one. Training may keep it, as this is nearly all that encoding costs.
        """
        return self._run(
            self._present(), lambda part, pixels: _moments(part.encode(pixels)), image, inputs=self.factor
        )

    def decode(self, x: Tensor) -> Tensor:
        """x to pictures, clamped to [-1, 1]; x that is not finite comes out so.

        Raises:
            InvalidInput: without an autoencoder; x of other channels.
            NotFinite: pictures of finite x that are not, in float32 too.
        """
        autoencoder = self._present()
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise InvalidInput(f"latents are (B, {self.channels}, h, w), got {tuple(x.shape)}", where="space")
        z = x.to(torch.promote_types(x.dtype, torch.float32)) / self.scale + self.shift
        return self._run(autoencoder, lambda part, z: part.decode(z), z, outputs=self.factor).clamp(-1, 1)

    def preview(self, x: Tensor) -> Tensor:
        """Pictures of the latents' own size, (B, 3, h, w) in [-1, 1], by a linear map of the channels."""
        rows = self.preview_map or PREVIEWS.get((self.channels, self.scale), ())
        if not rows:
            x_ = Noise(range(4)).randn((4, self.channels, 8, 8), "preview").to(x.device)
            rows = self.preview_map = _fitted(x_, self.decode(x_))
        table = torch.tensor(rows, dtype=torch.float32, device=x.device)
        seen = torch.einsum("bc...,cd->bd...", x.float(), table[:-1]) + table[-1][:, None, None]
        return seen.clamp(-1, 1)

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height / factor, width / factor); refused without an autoencoder, before a walk is begun
        whose end nobody could see: `latent_shape` tells it then.
        """
        self._present()
        return self.latent_shape(height, width)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height / factor, width / factor) of a picture of this size in pixels."""
        step = self.step
        if height < 1 or width < 1 or height % step or width % step:
            near = [max(round(side / step), 1) * step for side in (width, height)]
            raise InvalidInput(
                f"{width} x {height} is not a multiple of {step} pixels",
                where="size",
                do=f"try {near[0]} x {near[1]}",
            )
        return self.channels, height // self.factor, width // self.factor

    def _present(self) -> Autoencoder:
        if self.autoencoder is None:
            raise InvalidInput(
                "this model makes latents, and the autoencoder that turns them into pictures is not part "
                "of it",
                where="space",
                do="walk the latents with sfumato.sample and decode them with the autoencoder its card names",
            )
        return self.autoencoder

    def _run(
        self,
        autoencoder: Autoencoder,
        work: Callable[[Autoencoder, Tensor], Tensor],
        value: Tensor,
        inputs: int = 1,
        outputs: int = 1,
    ) -> Tensor:
        """What the autoencoder does, in safe numbers and in tiles where the value is larger than one."""

        def at(dtype: torch.dtype) -> Tensor:
            part, wide = _held_in(autoencoder, dtype), value.to(dtype)
            side = (self.tile or 0) // self.factor
            # Autocast would take the numbers back that are chosen here.
            with torch.autocast("cpu" if value.is_meta else value.device.type, enabled=False):
                if not side or max(value.shape[-2:]) <= side * inputs:
                    return work(part, wide)
                overlap = side // 4
                return tiled(partial(work, part), wide, side, overlap, overlap // 4, inputs, outputs)

        declared: torch.dtype = getattr(torch, autoencoder.precision)
        dtype = declared
        for tensor in _tensors(autoencoder):
            dtype = torch.promote_types(dtype, tensor.dtype)
        made = at(dtype)
        if _finite(made) or not _finite(value):
            return made
        name = str(dtype).removeprefix("torch.")
        if dtype in (torch.float16, torch.bfloat16):
            warnings.warn(
                f"the autoencoder overflowed {name}; done once more in float32 (declare precision float32)",
                stacklevel=3,
            )
            made, name = at(torch.float32), "float32"
            if _finite(made):
                return made
        raise NotFinite(
            f"the autoencoder made NaN or infinity of finite numbers, in {name}",
            where="space",
            do="check its weights, and that scale and shift are its own",
        )


def measure_scale(autoencoder: Autoencoder, batches: Iterable[Tensor], seed: int = 0) -> float:
    """1 / standard deviation of latents drawn for pictures, over all numbers of all batches.

    Rombach et al. 2022, arXiv:2112.10752, appendix G, who take one batch.

    Args:
        autoencoder: trained.
        batches: of pictures (B, 3, H, W) in [-1, 1].
        seed: of the first draw; picture n of all is drawn by seed + n.

    Raises:
        InvalidInput: no pictures, or all latents alike.
    """
    count, total, squares = 0, 0.0, 0.0
    for batch in batches:
        with torch.no_grad():
            posterior = autoencoder.encode(batch)
            z = posterior.sample(Noise(range(seed, seed + len(batch)))).double()
        seed += len(batch)
        count, total, squares = count + z.numel(), total + float(z.sum()), squares + float((z * z).sum())
    variance = squares / count - (total / count) ** 2 if count else 0.0
    if not math.isfinite(variance) or variance <= 0:
        raise InvalidInput(f"the latents of {count} numbers have variance {variance:g}", where="scale")
    return variance**-0.5


def fit_preview(space: Latent, batches: Iterable[Tensor]) -> tuple[tuple[float, ...], ...]:
    """Rows of `preview_map` by least squares: the linear map of latents nearest to the pictures made small.

    Args:
        space: with a trained autoencoder, and its scale.
        batches: of pictures (B, 3, H, W) in [-1, 1].

    Raises:
        InvalidInput: no pictures.
    """
    pairs = [(space.encode(image), image) for image in batches]
    if not pairs:
        raise InvalidInput("there is nothing to fit it to", where="preview_map", do="give pictures")
    rows = [_pairs(x, image) for x, image in pairs]
    return _solved(torch.cat([a for a, _ in rows]), torch.cat([b for _, b in rows]))


def _fitted(x: Tensor, image: Tensor) -> tuple[tuple[float, ...], ...]:
    return _solved(*_pairs(x, image))


def _pairs(x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Channels of every place, with a one, and the colours there."""
    height, width = x.shape[-2:]
    small = F.adaptive_avg_pool2d(image.double(), (height, width)).movedim(1, -1).flatten(0, 2)
    given = x.double().movedim(1, -1).flatten(0, 2)
    return torch.cat((given, torch.ones_like(given[:, :1])), dim=1), small


def _solved(given: Tensor, seen: Tensor) -> tuple[tuple[float, ...], ...]:
    # Ridged a little, so that channels that never vary get nothing.
    square = given.T @ given
    ridge = 1e-6 * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype, device=square.device)
    table = torch.linalg.solve(square + ridge, given.T @ seen)
    return tuple(tuple(round(float(each), 6) for each in row) for row in table)


def _moments(posterior: Posterior) -> Tensor:
    """Mean, and log-variance where there is one, as one map."""
    mean, log_variance = posterior.mean, posterior.log_variance
    return mean if log_variance is None else torch.cat((mean, log_variance), dim=1)


def _tensors(autoencoder: Autoencoder) -> list[Tensor]:
    """The numbers it computes with."""
    if not isinstance(autoencoder, nn.Module):
        return []
    held = [*autoencoder.parameters(), *autoencoder.buffers()]
    return [tensor for tensor in held if tensor.is_floating_point()]


def _held_in(autoencoder: Autoencoder, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder with its numbers in a dtype: a copy if need be, as threads share the one."""
    tensors = _tensors(autoencoder)
    if all(tensor.dtype == dtype for tensor in tensors):
        return autoencoder
    memo: dict[int, Any] = {}
    for tensor in tensors:
        cast = tensor.detach().to(dtype)
        memo[id(tensor)] = nn.Parameter(cast, False) if isinstance(tensor, nn.Parameter) else cast
    return copy.deepcopy(autoencoder, memo)


def _finite(value: Tensor) -> bool:
    return value.is_meta or bool(torch.isfinite(value).all())
