"""ControlNet: a trainable copy of a U-Net's way down that reads a hint and adds to the U-Net's features."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, look_up
from sfumato.core.hooks import name_sites
from sfumato.networks.layers.encoder import Encoder
from sfumato.networks.layers.normalization import zeroed
from sfumato.networks.layers.sd_encoder import SDEncoder
from sfumato.networks.sd_unet import PUBLISHED as NETWORKS
from sfumato.networks.sd_unet import SDUNet

PUBLISHED: dict[str, dict[str, Any]] = {name: NETWORKS[name] for name in ("sd1", "sd2", "sdxl")}
"""Settings of published weights: those of the networks they control."""


@dataclass(eq=False, repr=False)
class ControlNet(SDEncoder):
    """The way down and the middle of a latent U-Net, with a hint, as residuals for that U-Net.

        residual_k = zero_conv_k(h_k),    h_0 = input_blocks_0(x) + hint_block(hint)

    one residual for each stage of the way down and one, the last, for the middle. As the last layer of the
    hint's block and all of `zero_convs` begin at zero, a fresh one changes nothing. State-dict names are
    those of the released files, without "control_model.": input_hint_block.0.weight, zero_convs.0.0.weight,
    .., middle_block_out.0.weight; the rest as the U-Net's.

    Zhang, Rao & Agrawala 2023, "Adding Conditional Control to Text-to-Image Diffusion Models",
    arXiv:2302.05543, section 3; the hint's block is that of the released weights, the paper tells another.

    Args:
        in_channels: of x.
        channels, multipliers, blocks, attention, depth, heads, head_channels, tokens, linear_projection,
            cross_only, vector, classes, dropout: as the U-Net's.
        hint_channels: of the hint, a picture in [0, 1] for released weights.
        hint_widths: channels of the hint's block at each size; each after the first halves the hint, so that
            the factor of the latents is 2^(len - 1).
        pooled: residuals are their means over the map, one number a channel, so that what the hint shows is
            told and not where (shuffle).

    Raises:
        InvalidInput: settings that fit no network; hints and conditions that do not fit this one.
    """

    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    pooled: bool = False

    @staticmethod
    def published(name: str) -> ControlNet:
        """One with the settings of published weights, by a name of PUBLISHED such as "sd1"."""
        return ControlNet(**look_up(PUBLISHED, name, "published control"))

    @staticmethod
    def of(network: SDUNet, hint_channels: int = 3, factor: int = 8) -> ControlNet:
        """A control of a U-Net: a copy of its way down and its middle, and fresh layers for hints.

        Args:
            network: the U-Net, whose weights are copied and not shared.
            hint_channels: of the hint.
            factor: how many pixels of the hint, along a side, make one place of x; a power of 2.
        """
        if not isinstance(network, SDUNet):
            raise InvalidInput(f"a {type(network).__name__} has no control of this kind", where="controlnet")
        known = {field.name for field in fields(ControlNet)}
        settings = {field.name: getattr(network, field.name) for field in fields(network)}
        widths = _widths(factor)
        made = ControlNet(
            **{name: value for name, value in settings.items() if name in known},
            hint_channels=hint_channels,
            hint_widths=widths,
        )
        like = next(network.parameters())
        made.to(device=like.device, dtype=like.dtype)
        own = made.state_dict()
        made.load_state_dict({**own, **{k: v for k, v in network.state_dict().items() if k in own}})
        return made

    def __post_init__(self) -> None:
        self.check()
        if self.hint_channels < 1 or not self.hint_widths or min(self.hint_widths) < 1:
            raise InvalidInput("hint_channels and hint_widths are whole numbers from 1", where="controlnet")
        Encoder.__init__(self, self.classes)
        self.tell()
        self.input_hint_block = nn.Sequential(
            *_hint_block(self.hint_channels, self.hint_widths, self.widths[0])
        )
        self.zero_convs = nn.ModuleList(nn.Sequential(zeroed(nn.Conv2d(w, w, 1))) for w in self.widths)
        last = self.widths[-1]
        self.middle_block_out = nn.Sequential(zeroed(nn.Conv2d(last, last, 1)))
        name_sites(self)

    @property
    def factor(self) -> int:
        """How many pixels of the hint, along a side, make one place of x."""
        return 2 ** (len(self.hint_widths) - 1)

    def check_fits(self, network: nn.Module) -> None:
        """InvalidInput where it is no copy of such a network's way down."""
        for name in ("channels", "multipliers", "blocks", "attention", "depth", "tokens", "vector"):
            mine, other = getattr(self, name), getattr(network, name, None)
            if mine != other:
                what = f"a control with {name} {mine} for a {type(network).__name__} with {other}"
                raise InvalidInput(what, where="controlnet", do="take one made for this kind of model")

    @property
    def growth(self) -> float:
        """Root mean square of the weights that began at zero: 0 in a fresh one, which changes nothing."""
        last: list[Any] = [*self.zero_convs, self.middle_block_out, self.input_hint_block[-1:]]
        zeros = torch.cat([part[0].weight.detach().flatten() for part in last])
        return float(zeros.float().square().mean().sqrt())

    def forward(self, x: Tensor, time: Tensor, condition: Condition, hint: Tensor) -> tuple[Tensor, ...]:
        """What is added to the U-Net's features, stage by stage, and last to those of its middle.

        Args:
            x: (B, in_channels, H, W).
            time: (B,).
            condition: what the U-Net is told.
            hint: (B, hint_channels, factor · H, factor · W).
        """
        wanted = (len(x), self.hint_channels, *(self.factor * side for side in x.shape[2:]))
        if tuple(hint.shape) != wanted:
            raise InvalidInput(f"expected a hint {wanted}, got {tuple(hint.shape)}", where="hint")
        weight = self.middle_block_out[0].weight
        read = self.input_hint_block(hint.to(device=weight.device, dtype=weight.dtype))  # type: ignore[arg-type]
        h, features, _ = self.encode(x, time, condition, added=read)
        sides = [zero(each) for zero, each in zip(self.zero_convs, features, strict=True)]
        made = (*sides, self.middle_block_out(h))
        return tuple(each.mean((2, 3), keepdim=True) for each in made) if self.pooled else made


def transferred(control: ControlNet, base: SDUNet, new: SDUNet) -> ControlNet:
    """A control of one network made one of another that was fine-tuned from it.

        weights = new + (control - base)

    for the weights that the control has in common with both; its own are kept. A control may serve such a
    network as it is, too; this carries over what the fine-tuning changed.

    Zhang, "Transfer Control to Other SD1.X Models", 2023, discussion 12 of the released code.

    Args:
        control: trained beside base; it is not changed.
        base: what the control was copied from.
        new: a network of the same shape.

    Raises:
        InvalidInput: networks of unlike shapes.
    """
    told, old, fresh = control.state_dict(), base.state_dict(), new.state_dict()
    shared = [name for name in told if name in old]
    odd = [
        name
        for name in shared
        if not told[name].shape == old[name].shape == getattr(fresh.get(name), "shape", 0)
    ]
    if odd or not shared:
        what = f"{odd[0]} has another shape in each" if odd else "the control and its base share no weights"
        raise InvalidInput(what, where="controlnet.transferred", do="give three of one kind of model")
    made = copy.deepcopy(control)
    wide = {name: (fresh[name].double() + (told[name].double() - old[name].double())) for name in shared}
    made.load_state_dict({**told, **{name: tensor.to(told[name]) for name, tensor in wide.items()}})
    return made


def _hint_block(channels: int, widths: Sequence[int], out: int) -> list[nn.Module]:
    """Convolutions of three by three with swish between, halving wherever the width changes; zero at last.

    The released code leaves PyTorch's initial weights, under which every layer halves what varies in the
    hint: of three halvings less than a hundredth arrives, and for thousands of steps nothing is heeded. Here
    they keep its variance: E[swish(z)²] = .3557 for a normal z.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.SiLU()]
    for here, there in pairwise(widths):
        layers += [nn.Conv2d(here, here, 3, padding=1), nn.SiLU()]
        layers += [nn.Conv2d(here, there, 3, padding=1, stride=2), nn.SiLU()]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=(0.3557 * layer.weight[0].numel()) ** -0.5)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return [*layers, zeroed(nn.Conv2d(widths[-1], out, 3, padding=1))]


def _widths(factor: int) -> tuple[int, ...]:
    if factor < 1 or factor & (factor - 1):
        raise InvalidInput(f"{factor} is no power of 2", where="controlnet.factor")
    usual = (16, 32, 96, 256)
    return tuple(usual[min(level, len(usual) - 1)] for level in range(factor.bit_length()))
