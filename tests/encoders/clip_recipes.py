"""Small towers of CLIP with random weights, and the same in transformers."""

from __future__ import annotations

from typing import Any

import torch

from sfumato.checkpoints.clip_keys import clip_from_transformers, from_transformers
from sfumato.encoders.clip import Clip
from sfumato.encoders.clip_image import ClipImage
from sfumato.encoders.clip_text import ClipText

TEXT = {"width": 32, "depth": 3, "heads": 4, "hidden": 40, "vocabulary": 99, "length": 12, "end": 98}
IMAGE = {"size": 16, "patch": 4, "width": 24, "depth": 3, "heads": 3, "hidden": 40, "projection": 16}


def _settings(activation: str) -> dict[str, Any]:
    return {"num_hidden_layers": 3, "intermediate_size": 40, "hidden_act": activation, "projection_dim": 16}


def text_settings(activation: str = "quick_gelu", end: int = 98) -> Any:
    """The settings of TEXT in transformers."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=32,
        num_attention_heads=4,
        vocab_size=99,
        max_position_embeddings=12,
        bos_token_id=97,
        eos_token_id=end,
        pad_token_id=1,
        **_settings(activation),
    )


def image_settings(activation: str = "quick_gelu") -> Any:
    """The settings of IMAGE in transformers."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=24, num_attention_heads=3, image_size=16, patch_size=4, **_settings(activation)
    )


def shaken(module: torch.nn.Module) -> Any:
    """The module with weights that are nowhere zero or one, so that nothing of it can be left out unseen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def text_pair(projected: bool, activation: str = "quick_gelu", end: int = 98) -> tuple[Any, ClipText]:
    """Their tower and ours with the same weights."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    cls = CLIPTextModelWithProjection if projected else CLIPTextModel
    theirs = shaken(cls(text_settings(activation, end)))
    settings = {**TEXT, "activation": activation, "projection": 16 if projected else 0}
    ours = ClipText(**{**settings, "end": -1 if end == 2 else end})
    ours.load_state_dict(from_transformers(theirs.state_dict()), strict=True)
    return theirs, ours


def image_pair(activation: str = "quick_gelu") -> tuple[Any, ClipImage]:
    """Their tower and ours with the same weights."""
    from transformers import CLIPVisionModelWithProjection

    theirs = shaken(CLIPVisionModelWithProjection(image_settings(activation)))
    ours = ClipImage(**{**IMAGE, "activation": activation})
    ours.load_state_dict(from_transformers(theirs.state_dict(), "image"), strict=True)
    return theirs, ours


def clip_pair() -> tuple[Any, Clip]:
    """Their CLIP and ours with the same weights."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config=text_settings().to_dict(), vision_config=image_settings().to_dict(), projection_dim=16
    )
    theirs = shaken(CLIPModel(config))
    ours = Clip(ClipText(**{**TEXT, "projection": 16}), ClipImage(**IMAGE))
    ours.load_state_dict(clip_from_transformers(theirs.state_dict()), strict=True)
    return theirs, ours


def ids(rows: int = 4) -> torch.Tensor:
    """Texts of several lengths, padded with the end of text."""
    generator = torch.Generator().manual_seed(2)
    found = torch.randint(3, 97, (rows, 12), generator=generator)
    for row in range(rows):
        found[row, 3 + 2 * row :] = 98
    found[:, 0] = 97
    return found


def error(mine: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the largest number."""
    return float((mine - other).abs().max() / other.abs().max())
