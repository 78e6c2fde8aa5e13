"""NCSNv2: the RefineNet of annealed Langevin dynamics, and with `levels` that of its first version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, look_up
from sfumato.core.hooks import Context, Site, name_sites
from sfumato.networks.layers.slots import joined

_DEEPER: dict[str, Any] = {"multipliers": (1, 2, 2, 4, 4), "dilations": (1, 1, 1, 2, 4)}
_DEEPEST: dict[str, Any] = {"multipliers": (1, 2, 2, 2, 4, 4), "dilations": (1, 1, 1, 1, 2, 4)}

PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar": {},
    "celeba_64": {},
    "lsun_church": _DEEPER,
    "lsun_bedroom": _DEEPER,
    "lsun_tower": _DEEPER,
    "ffhq_256": _DEEPEST,
    "ncsn_cifar": {"levels": 10},
}
"""Settings of the published networks: NCSNv2's, and of NCSN."""


class InstanceNormPlus(nn.Module):
    """Instance normalisation that keeps what it takes away, the means of the channels, standardised.

        gamma · (norm(h) + alpha · (m - mean(m)) / std(m)) + beta,   m the channels' means

    Song & Ermon 2019, "Generative Modeling by Estimating Gradients of the Data Distribution",
    arXiv:1907.05600, appendix A (with `levels`, a gamma, alpha and beta for each noise level).

    Args:
        channels: of the map (B, C, H, W), at least 2.
        levels: noise levels told apart; 0 for none.
    """

    def __init__(self, channels: int, levels: int = 0) -> None:
        super().__init__()
        self.embed: nn.Embedding | None = None
        if levels:
            self.embed = nn.Embedding(levels, 3 * channels)
            nn.init.normal_(self.embed.weight[:, : 2 * channels], 1, 0.02)
            nn.init.zeros_(self.embed.weight[:, 2 * channels :])
        else:
            self.alpha = nn.Parameter(1 + 0.02 * torch.randn(channels))
            self.gamma = nn.Parameter(1 + 0.02 * torch.randn(channels))
            self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, h: Tensor, context: Context) -> Tensor:
        means = h.mean((2, 3))
        spread = (means.var(1, keepdim=True) + 1e-5).sqrt()
        means = (means - means.mean(1, keepdim=True)) / spread
        if self.embed is not None:
            gamma, alpha, beta = self.embed(context.embedding[:, 0].long()).chunk(3, dim=1)
        else:
            gamma, alpha, beta = self.gamma, self.alpha, self.beta
        shift = (alpha * means)[..., None, None]
        gamma, beta = (each.view(-1, each.shape[-1], 1, 1) for each in (gamma, beta))
        return torch.addcmul(beta, gamma, F.instance_norm(h) + shift)


class _MeanPool(nn.Module):
    """A convolution, and the mean of 2 x 2."""

    def __init__(self, channels: int, out: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, size, padding=size // 2)

    def forward(self, h: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(h), 2)


class _Residual(nn.Module):
    """Norm, ELU, convolution, twice, beside a shortcut; `down` halves the map unless dilated."""

    def __init__(self, channels: int, out: int, dilation: int, down: bool, levels: int) -> None:
        super().__init__()
        self.site = Site("", "residual")

        def wide(channels: int, out: int) -> nn.Module:
            return nn.Conv2d(channels, out, 3, padding=dilation, dilation=dilation)

        halved = down and dilation == 1
        self.normalize1 = InstanceNormPlus(channels, levels)
        self.conv1 = wide(channels, channels if down else out)
        self.normalize2 = InstanceNormPlus(channels if down else out, levels)
        self.conv2 = _MeanPool(channels, out, 3) if halved else wide(channels if down else out, out)
        self.shortcut: nn.Module | None = None
        if down:
            self.shortcut = _MeanPool(channels, out, 1) if halved else wide(channels, out)

    def forward(self, h: Tensor, context: Context) -> Tensor:
        if context.hooks is None:
            return self._run(h, context)
        return context.hooks.block(self.site, context, lambda h: self._run(h, context), h)

    def _run(self, h: Tensor, context: Context) -> Tensor:
        inner = self.conv1(F.elu(self.normalize1(h, context)))
        inner = self.conv2(F.elu(self.normalize2(inner, context)))
        return (h if self.shortcut is None else self.shortcut(h)) + inner


class _Units(nn.Module):
    """Residual convolution units: ELU and convolution twice, added to what came in."""

    def __init__(self, channels: int, count: int, levels: int) -> None:
        super().__init__()
        self.count = count
        for unit in range(1, count + 1):
            for stage in (1, 2):
                if levels:
                    self.add_module(f"{unit}_{stage}_norm", InstanceNormPlus(channels, levels))
                self.add_module(f"{unit}_{stage}_conv", nn.Conv2d(channels, channels, 3, 1, 1, bias=False))

    def forward(self, h: Tensor, context: Context) -> Tensor:
        for unit in range(1, self.count + 1):
            inner = h
            for stage in (1, 2):
                if (norm := self._modules.get(f"{unit}_{stage}_norm")) is not None:
                    inner = norm(inner, context)
                inner = self._modules[f"{unit}_{stage}_conv"](F.elu(inner))  # type: ignore[misc]
            h = h + inner
        return h


class _Fusion(nn.Module):
    """Maps of several sizes and widths, each convolved and enlarged to the first one's size, and summed."""

    def __init__(self, channels: tuple[int, ...], out: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(each, out, 3, padding=1) for each in channels)
        self.norms = nn.ModuleList(InstanceNormPlus(each, levels) for each in channels if levels)

    def forward(self, maps: list[Tensor], context: Context) -> Tensor:
        if self.norms:
            maps = [norm(h, context) for norm, h in zip(self.norms, maps, strict=True)]
        size = maps[0].shape[2:]
        wide = (conv(h) for conv, h in zip(self.convs, maps, strict=True))
        return sum(F.interpolate(h, size, mode="bilinear", align_corners=True) for h in wide)  # type: ignore[return-value]


class _Pooling(nn.Module):
    """Chained residual pooling: windows of 5, 9, .. around every place, each convolved, summed."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(InstanceNormPlus(channels, levels) for _ in range(2) if levels)

    def forward(self, h: Tensor, context: Context) -> Tensor:
        h = path = F.elu(h)
        for number, conv in enumerate(self.convs):
            if self.norms:
                path = F.avg_pool2d(self.norms[number](path, context), 5, 1, 2)
            else:
                path = F.max_pool2d(path, 5, 1, 2)
            path = conv(path)
            h = h + path
        return h


class _Refine(nn.Module):
    """RefineNet block: adapts each map, fuses them, pools in a chain, and adapts what comes of it."""

    def __init__(self, channels: tuple[int, ...], out: int, last: bool, levels: int) -> None:
        super().__init__()
        self.adapt_convs = nn.ModuleList(_Units(each, 2, levels) for each in channels)
        self.msf = _Fusion(channels, out, levels) if len(channels) > 1 else None
        self.crp = _Pooling(out, levels)
        self.output_convs = _Units(out, 3 if last else 1, levels)

    def forward(self, maps: list[Tensor], context: Context) -> Tensor:
        maps = [adapt(h, context) for adapt, h in zip(self.adapt_convs, maps, strict=True)]
        h = maps[0] if self.msf is None else self.msf(maps, context)
        return self.output_convs(self.crp(h, context), context)


@dataclass(eq=False, repr=False)
class NCSNv2(nn.Module):
    """RefineNet that says the score and is not told the noise: its output is divided by sigma.

    forward(x (B, in_channels, H, W), time (B,), condition) → the same shape, a score: for a model with the
    prediction `score`, a process with alpha = 1 (`ncsn`) and the time input `log_sigma`. With `levels` it is
    NCSN, whose norms know the noise level: its time input is `index`, its output is not divided. No slot of
    the condition is heeded. H and W divide by 2 for every stage after the first whose dilation is 1.

    State-dict names are those of the published weights. Those were trained on data in [0, 1] and see 2x - 1;
    of data in [-1, 1] and noise twice as large NCSNv2 says the score as it is, NCSN twice the score. The
    published NCSN counts levels from the most noise: `reverse_index`.

    Song & Ermon 2020, "Improved Techniques for Training Score-Based Generative Models", arXiv:2006.09011
    (technique 3); Song & Ermon 2019, arXiv:1907.05600; Lin et al. 2017, "RefineNet", arXiv:1611.06612.

    Args:
        in_channels: of x and of what comes out.
        channels: of the first stage, at least 2.
        multipliers: channels of each stage, in units of `channels`.
        dilations: of each stage's convolutions; a stage after the first halves the map if it is 1.
        levels: noise levels told apart (NCSN); 0 for none (NCSNv2).
    """

    in_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    levels: int = 0

    @staticmethod
    def published(name: str) -> NCSNv2:
        """A network with the settings of published weights, by a name of PUBLISHED such as "cifar"."""
        return NCSNv2(**look_up(PUBLISHED, name, "published NCSNv2"))

    def __post_init__(self) -> None:
        super().__init__()
        if len(self.multipliers) != len(self.dilations) or len(self.multipliers) < 2:
            raise InvalidInput(
                f"{len(self.multipliers)} multipliers and {len(self.dilations)} dilations",
                where="ncsnv2.multipliers, dilations",
                do="give one of each a stage, for two stages at least",
            )
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        self.begin_conv = nn.Conv2d(self.in_channels, widths[0], 3, padding=1)
        self.stages, self.refines = _names(len(widths))
        for number, (name, width, dilation) in enumerate(
            zip(self.stages, widths, self.dilations, strict=True)
        ):
            first = _Residual(widths[max(number - 1, 0)], width, dilation, number > 0, self.levels)
            self.add_module(
                name, nn.ModuleList([first, _Residual(width, width, dilation, False, self.levels)])
            )
        before: tuple[int, ...] = ()
        for name, number in zip(self.refines, reversed(range(len(widths))), strict=True):
            out = widths[max(number - 1, 0)]
            self.add_module(name, _Refine((widths[number], *before), out, number == 0, self.levels))
            before = (out,)
        self.normalizer = InstanceNormPlus(widths[0], self.levels)
        self.end_conv = nn.Conv2d(widths[0], self.in_channels, 3, padding=1)
        name_sites(self)

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """x (B, C, H, W) at time (B,), log sigma or an index → the score (B, C, H, W)."""
        halvings = self.dilations[1:].count(1)
        x = joined(x, condition, in_channels=self.in_channels, multiple=2**halvings)
        # Between two of its levels NCSN takes the nearer.
        told = time.round().clamp(0, self.levels - 1) if self.levels else time
        context = Context(told[:, None], condition)
        h = self.begin_conv(x.to(self.begin_conv.weight.dtype))
        maps = []
        for name in self.stages:
            for block in self._modules[name]:  # type: ignore[union-attr]
                h = block(h, context)
            maps.append(h)
        below: list[Tensor] = []
        for name, side in zip(self.refines, reversed(maps), strict=True):
            below = [self._modules[name]([side, *below], context)]  # type: ignore[misc]
        h = self.end_conv(F.elu(self.normalizer(below[0], context)))
        return h if self.levels else h * torch.exp(-time).to(h).view(-1, 1, 1, 1)


def _names(count: int) -> tuple[list[str], list[str]]:
    """Published names of stages and of the blocks that refine them, last stage first; six have one put in."""
    order = ["1", "2", "3", "31", "4", "5"] if count == 6 else [str(i + 1) for i in range(count)]
    refined = ["1", "2", "31", "3", "4", "5"] if count == 6 else order
    return [f"res{name}" for name in order], [f"refine{name}" for name in refined]
