"""NCSN++ and DDPM++: the U-Nets of score-based models and of EDM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, look_up, nearest
from sfumato.core.hooks import Context, name_sites
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.embedding import Fourier, sinusoid
from sfumato.networks.layers.fir import Double, Halve, HalvingConv
from sfumato.networks.layers.normalization import zeroed
from sfumato.networks.layers.resample import Downsample
from sfumato.networks.layers.scaled_residual import RESCALE, ScaledResidualBlock, grouped
from sfumato.networks.layers.slots import joined

HALF_SIGMA = (math.log(2), 1.0)
"""`scale_by_sigma` of networks that are told log(sigma / 2), those of pictures in [-1, 1] (EDM's VE)."""

_DDPMPP: dict[str, Any] = {"taps": (1, 1), "input": "none", "dropout": 0.1}
_NCSNPP: dict[str, Any] = {"embedding": "fourier", "dropout": 0.1}
_VE = {**_NCSNPP, "scale_by_sigma": HALF_SIGMA}
_256 = {
    **_VE,
    "multipliers": (1, 1, 2, 2, 2, 2, 2),
    "blocks": 2,
    "attention": (16,),
    "dropout": 0.0,
    "input": "skip",
    "output": "skip",
}
_1024 = {**_256, "channels": 16, "multipliers": (1, 2, 4, 8, 16, 32, 32, 32), "blocks": 1, "attention": (64,)}
_EDM = {"multipliers": (2, 2, 2), "augment": 9, "dropout": 0.13}
_EDM_64 = {"attention": (4,), "augment": 9}

_CHOICES = {
    "embedding": ("positional", "fourier"),
    "input": ("none", "skip", "residual"),
    "combine": ("sum", "cat"),
    "output": ("none", "skip"),
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar_ddpmpp": _DDPMPP,
    "cifar_ddpmpp_deep": {**_DDPMPP, "blocks": 8},
    "cifar_ncsnpp": _VE,
    "cifar_ncsnpp_deep": {**_VE, "blocks": 8},
    "cifar_ncsnpp_vp": {"dropout": 0.1},
    "celebahq_256": _256,
    "ffhq_256": _256,
    "lsun_256": _256,
    "ffhq_1024": _1024,
    "edm_cifar_vp": {**_DDPMPP, **_EDM},
    "edm_cifar_vp_classes": {**_DDPMPP, **_EDM, "classes": 10},
    "edm_cifar_ve": {**_NCSNPP, **_EDM},
    "edm_cifar_ve_classes": {**_NCSNPP, **_EDM, "classes": 10},
    "edm_ffhq_64_vp": {**_DDPMPP, **_EDM_64, "dropout": 0.05},
    "edm_ffhq_64_ve": {**_NCSNPP, **_EDM_64, "dropout": 0.05},
    "edm_afhqv2_64_vp": {**_DDPMPP, **_EDM_64, "dropout": 0.25},
    "edm_afhqv2_64_ve": {**_NCSNPP, **_EDM_64, "dropout": 0.25},
}
"""Settings of the published networks: of score-based models on SDEs and of EDM ("vp" and "ve" are their two
architectures there, DDPM++ and NCSN++)."""


@dataclass(eq=False, repr=False)
class NCSNpp(nn.Module):
    """U-Net of score-based models: DDPM's, with smooth resampling and pictures of every size on its way.

    forward(x (B, in_channels, H, W), time (B,), condition) → (B, out_channels, H, W); H and W divide by
    2^(levels - 1). Condition slots: `vector` (B, classes + augment), one-hot classes or zeros for none, then
    labels of how the data were augmented (either alone too); `channels`, concatenated to x.

    With taps (1, 1) and input "none" it is DDPM++; with the defaults NCSN++ for variance-preserving
    processes (time inputs `continuous_index` or `index`); with embedding "fourier" NCSN++ proper, told a
    logarithm of sigma. State-dict names are EDM's, with the number of a level in place of its resolution, and
    attention a module of its own.

    Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole 2021, "Score-Based Generative Modeling through
    Stochastic Differential Equations", arXiv:2011.13456, appendix H; Karras, Aittala, Aila & Laine 2022,
    "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv:2206.00364, appendix F.

    The authors' "residual" way of drawing the output is left out: their own code cannot run it, and no
    published network has it.

    Args:
        in_channels: of x, with the condition's channels.
        out_channels: of what comes out.
        channels: of the first convolution; all widths need an even number of four channels a group.
        multipliers: channels of each level, in units of `channels`; each level after the first halves the
            map.
        blocks: residual blocks a level; the way up has one more.
        attention: downsampling factors at which attention follows blocks: on the way down each, on the way
            up the last.
        dropout: in the residual blocks.
        classes: number of classes in the condition's vector; 0 for none.
        augment: number of augmentation labels there, after the classes; 0 for none (EDM has 9).
        embedding: of the time: sinusoids, or random Fourier features for a logarithm of sigma.
        taps: the filter of resampling along one dimension; (1, 1) is plain, (1, 3, 3, 1) smooth.
        input: the picture itself enters every level, halved: "skip" by a 1 x 1 convolution of it,
            "residual" by 3 x 3 convolutions of what entered the level before, or not ("none").
        combine: with input "skip", it is added or concatenated.
        output: every level adds to the picture that comes out ("skip"), or the last one alone ("none").
        resblock_updown: resample inside residual blocks (BigGAN) rather than by a convolution (DDPM).
        scale_by_sigma: (a, b): the output is divided by sigma = exp(a + b · time), so that it is a score
            (Song & Ermon 2020, arXiv:2006.09011, technique 3); None for not. (0, 1) for the time input
            `log_sigma`, (log 2, 1) for `log_half_sigma`.

    Raises:
        InvalidInput: an unknown choice, channels that do not fall into groups, attention where no level is.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (2,)
    dropout: float = 0.0
    classes: int = 0
    augment: int = 0
    embedding: Literal["positional", "fourier"] = "positional"
    taps: tuple[int, ...] = (1, 3, 3, 1)
    input: Literal["none", "skip", "residual"] = "residual"
    combine: Literal["sum", "cat"] = "sum"
    output: Literal["none", "skip"] = "none"
    resblock_updown: bool = True
    scale_by_sigma: tuple[float, float] | None = None

    @staticmethod
    def published(name: str) -> NCSNpp:
        """A network with the settings of published weights, by a name of PUBLISHED such as "cifar_ncsnpp"."""
        return NCSNpp(**look_up(PUBLISHED, name, "published NCSN++"))

    @staticmethod
    def shaped(found: Mapping[str, Any]) -> str:
        """Names of the published networks that have these settings, "" if none has."""
        usual = {each.name: each.default for each in fields(NCSNpp)}
        whole = {name: {**usual, **its} for name, its in PUBLISHED.items()}
        named = [name for name, its in whole.items() if all(its[key] == found[key] for key in found)]
        return " or ".join(named)

    def __post_init__(self) -> None:
        super().__init__()
        self._check()
        noise, width = self.channels * (2 if self.embedding == "fourier" else 1), 4 * self.channels
        self.map_noise = Fourier(self.channels) if self.embedding == "fourier" else None
        self.map_label = nn.Linear(self.classes, noise) if self.classes else None
        self.map_augment = nn.Linear(self.augment, noise, bias=False) if self.augment else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, width), nn.Linear(width, width)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self._way_up(*self._way_down())
        self._initialise()
        name_sites(self)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x (B, C, H, W) at time (B,) under a condition → (B, out_channels, H, W)."""
        told = self._told(condition)
        multiple = 2 ** (len(self.multipliers) - 1)
        x = joined(x, condition, in_channels=self.in_channels, multiple=multiple, classes=told)
        context = Context(self._embedded(time, condition), condition)
        h = picture = x.to(self.map_layer0.weight.dtype)
        skips: list[Tensor] = []
        for name, module in self.enc.items():
            kind = name.partition("_")[2]
            if kind == "aux_down":
                picture = module(picture)
            elif kind == "aux_skip":
                h = torch.cat((module(picture), h), 1) if self.combine == "cat" else module(picture) + h
                skips[-1] = h
            elif kind == "aux_residual":
                h = picture = skips[-1] = (h + module(picture)) * RESCALE
            else:
                h = module(h, context) if isinstance(module, ScaledResidualBlock) else module(h)
                skips.append(h)
        drawn: Tensor | None = None
        for name, module in self.dec.items():
            kind = name.partition("_")[2]
            if kind == "aux_up":
                drawn = module(drawn)
            elif kind == "aux_norm":
                normed = nn.functional.silu(module(h))
            elif kind == "aux_conv":
                drawn = module(normed) if drawn is None else module(normed) + drawn
            elif kind.startswith("block"):
                h = module(torch.cat((h, skips.pop()), dim=1), context)
            else:
                h = module(h, context) if isinstance(module, ScaledResidualBlock) else module(h)
        assert drawn is not None
        if self.scale_by_sigma is None:
            return drawn
        # In float32 at least: 1 / sigma is beyond half precision where it matters.
        log_sigma = self.scale_by_sigma[0] + self.scale_by_sigma[1] * time.double()
        wide = drawn if drawn.dtype == torch.float64 else drawn.float()
        return wide * torch.exp(-log_sigma).to(wide).view(-1, 1, 1, 1)

    def _check(self) -> None:
        for name, known in _CHOICES.items():
            if (given := getattr(self, name)) not in known:
                raise InvalidInput(
                    f"unknown {name} {given!r}", where=f"ncsnpp.{name}", do=nearest(str(given), known)
                )
        if not self.multipliers or self.blocks < 1:
            raise InvalidInput(
                "there is no level, or no block on one",
                where="ncsnpp.multipliers, blocks",
                do="give one of each at least",
            )
        factors = [2**level for level in range(len(self.multipliers))]
        if not set(self.attention) <= set(factors):
            raise InvalidInput(
                f"attention at {list(self.attention)}, but the levels are smaller by {factors}",
                where="ncsnpp.attention",
                do="name downsampling factors, not sizes",
            )

    def _told(self, condition: Condition) -> int:
        """Length of a vector this network takes; the one given, if it may be."""
        both = self.classes + self.augment
        if condition.vector is not None and condition.vector.shape[1] == (self.classes or self.augment):
            return condition.vector.shape[1]
        return both

    def _embedded(self, time: Tensor, condition: Condition) -> Tensor:
        """(B, 4 · channels), activated: blocks take it as it is."""
        if self.map_noise is None:
            noise = sinusoid(time, self.channels, original=True)
        else:
            noise = self.map_noise(time)
        dtype = self.map_layer0.weight.dtype
        noise, vector = noise.to(dtype), condition.vector
        if self.map_label is not None:
            none = noise.new_zeros(1, self.classes)
            given = none if vector is None else vector[:, : self.classes].to(dtype)
            noise = noise + self.map_label(given * math.sqrt(self.classes))
        if self.map_augment is not None and vector is not None and vector.shape[1] > self.classes:
            noise = noise + self.map_augment(vector[:, self.classes :].to(dtype))
        silu = nn.functional.silu
        return silu(self.map_layer1(silu(self.map_layer0(noise))))

    def _way_down(self) -> tuple[int, list[int]]:
        """Builds it; its last width, and those of its skip connections."""
        here, picture = self.channels, self.in_channels
        self.enc["0_conv"] = nn.Conv2d(picture, here, 3, padding=1)
        skips = [here]
        for level, multiplier in enumerate(self.multipliers):
            if level:
                self.enc[f"{level}_down"] = self._halving(here)
                if self.input == "skip":
                    self.enc[f"{level}_aux_down"] = Halve(self.taps)
                    self.enc[f"{level}_aux_skip"] = nn.Conv2d(picture, here, 1)
                    here *= 2 if self.combine == "cat" else 1
                elif self.input == "residual":
                    self.enc[f"{level}_aux_residual"] = HalvingConv(picture, here, self.taps)
                    picture = here
                skips.append(here)
            for number in range(self.blocks):
                there = multiplier * self.channels
                self.enc[f"{level}_block{number}"] = self._block(here, there, 2**level in self.attention)
                here = there
                skips.append(here)
        return here, skips

    def _way_up(self, here: int, skips: list[int]) -> None:
        last = len(self.multipliers) - 1
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            if level == last:
                self.dec[f"{level}_in0"] = self._block(here, here, True)
                self.dec[f"{level}_in1"] = self._block(here, here, False)
            else:
                self.dec[f"{level}_up"] = self._doubling(here)
            for number in range(self.blocks + 1):
                there = multiplier * self.channels
                attends = number == self.blocks and 2**level in self.attention
                self.dec[f"{level}_block{number}"] = self._block(here + skips.pop(), there, attends)
                here = there
            if self.output == "skip" or level == 0:
                if level != last and self.output == "skip":
                    self.dec[f"{level}_aux_up"] = Double(self.taps)
                self.dec[f"{level}_aux_norm"] = grouped(here)
                self.dec[f"{level}_aux_conv"] = nn.Conv2d(here, self.out_channels, 3, padding=1)

    def _block(
        self, here: int, there: int, attention: bool = False, resample: nn.Module | None = None
    ) -> ScaledResidualBlock:
        return ScaledResidualBlock(here, there, 4 * self.channels, self.dropout, attention, resample)

    def _halving(self, channels: int) -> nn.Module:
        if self.resblock_updown:
            return self._block(channels, channels, resample=Halve(self.taps))
        if len(self.taps) == 2:
            return Downsample(channels, lopsided=True)
        return HalvingConv(channels, channels, self.taps)

    def _doubling(self, channels: int) -> nn.Module:
        if self.resblock_updown:
            return self._block(channels, channels, resample=Double(self.taps))
        return nn.Sequential(Double(self.taps), nn.Conv2d(channels, channels, 3, padding=1))

    def _initialise(self) -> None:
        """Variance 1 / mean of fans, zero biases, last convolutions of blocks and of the network zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ScaledResidualBlock):
                zeroed(module.conv1)
            elif isinstance(module, SpatialAttention):
                # A tenth of the variance, of three projections C → C in one.
                nn.init.uniform_(module.qkv.weight, -(bound := (0.3 / module.qkv.in_channels) ** 0.5), bound)
                zeroed(module.proj_out)
        for name, module in self.dec.items():
            if name.endswith("aux_conv"):
                zeroed(module)
