"""Tiny models that attend to prompts, for the tests of this folder."""

from __future__ import annotations

from typing import Any

from network_recipes import randomised
from torch import nn

from sfumato.conditioners.hints import Hints
from sfumato.conditioners.text_clip import TextCLIP
from sfumato.conditioners.text_small import TextSmall
from sfumato.conditioners.together import Together
from sfumato.control.controlnet import ControlNet
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.prediction import Velocity
from sfumato.encoders import text_small
from sfumato.encoders.bpe import BPE, END, START
from sfumato.encoders.clip_text import ClipText
from sfumato.encoders.prompt_states import PromptStates
from sfumato.encoders.word_piece import WordPiece
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.networks.controlled import Controlled
from sfumato.networks.dit import DiT
from sfumato.networks.sd_unet import SDUNet
from sfumato.processes.flow import Flow
from sfumato.spaces.pixel import Pixel

LETTERS = "abcdefghijklmnopqrstuvwxyz"
BY_LETTER = BPE({name: i for i, name in enumerate([*LETTERS, *(c + "</w>" for c in LETTERS), START, END])})
"""A vocabulary of CLIP's kind in which every letter is a token."""
PIECES = WordPiece.of(["a red green cat dog and lemon on the mat"])
"""A vocabulary of these words; others are spelled."""
_UNET: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "channels": 32,
    "multipliers": (1, 2),
    "blocks": 1,
}


def small(**settings: Any) -> TextSmall:
    encoder = text_small.TextSmall(PIECES, width=16, depth=1, heads=2, dim_head=8, length=16, **settings)
    return TextSmall(randomised(encoder, 1))


def clip(length: int = 8) -> TextCLIP:
    text = ClipText(16, 1, 2, vocabulary=60, length=length, end=BY_LETTER.end)
    return TextCLIP((PromptStates(randomised(text, 1), BY_LETTER),))


def network(name: str) -> nn.Module:
    if name == "dit":
        return randomised(DiT(in_channels=3, out_channels=3, width=32, depth=2, heads=2, tokens=16))
    if name == "adm":
        return randomised(ADM(**_UNET, attention=(1, 2), heads=2, tokens=16))
    return randomised(SDUNet(**_UNET, attention=(1, 2), heads=2, tokens=16))


def prompted(name: str = "sd_unet", words: str = "small", size: int = 8) -> Model:
    """Pictures of 8 pixels by a random network that attends to a random encoder's tokens."""
    conditioner: Any = small() if words == "small" else clip()
    net = network("sd_unet" if name == "controlled" else name)
    if name == "controlled":
        control = randomised(ControlNet.of(net, hint_channels=3, factor=1), 2)  # type: ignore[arg-type]
        net, conditioner = Controlled(net, (control,)), Together((conditioner, Hints(("edges",))))
    denoiser = NetworkDenoiser(net, Flow(), Velocity(), "thousand").eval()
    card = {"size": [size, size], "steps": 5, "sampler": "euler", "times": "uniform", "guidance": []}
    return Model(denoiser, conditioner.eval(), Pixel(multiple=2), card)
