"""TextCLIP beside the pipeline of Stable Diffusion XL in diffusers: small towers, the real vocabulary."""

from __future__ import annotations

from typing import Any

import torch

from sfumato.checkpoints.clip_keys import from_transformers
from sfumato.conditioners.text_clip import TextCLIP
from sfumato.encoders.bpe import _published_merges, _published_vocabulary
from sfumato.encoders.clip_text import ClipText
from sfumato.encoders.prompt_states import PromptStates


@torch.no_grad()
def test_xl_prompts_are_those_of_diffusers() -> None:
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    common: dict[str, Any] = {"intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
    first = CLIPTextModel(CLIPTextConfig(hidden_size=16, hidden_act="quick_gelu", **common, **ids)).eval()
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=24, hidden_act="gelu", projection_dim=12, **common, **ids)
    ).eval()
    merges = [tuple(pair.split(" ")) for pair in _published_merges()]
    tokenizers = [
        CLIPTokenizer(vocab=dict(_published_vocabulary()), merges=merges, model_max_length=77, pad_token=pad)
        for pad in ("<|endoftext|>", "!")
    ]
    pipe = StableDiffusionXLPipeline(
        vae=None, unet=None, scheduler=None, text_encoder=first, text_encoder_2=second,
        tokenizer=tokenizers[0], tokenizer_2=tokenizers[1],
    )  # fmt: skip
    # No exclamation mark: their second tokenizer takes it for padding, id 0, which the original's does not.
    said, unsaid = "a photo of a Naïve astronaut, 4k 🙂", "blurry"
    theirs = pipe.encode_prompt(prompt=said, negative_prompt=unsaid, device="cpu")

    towers = (ClipText(16, 3, 2, 40), ClipText(24, 3, 2, 40, activation="gelu", projection=12))
    for tower, model in zip(towers, (first, second), strict=True):
        tower.load_state_dict(from_transformers(model.state_dict()), strict=True)
    read = [PromptStates(t, layer=-2, norm=False, pad=p) for t, p in zip(towers, (None, 0), strict=True)]
    told = TextCLIP(tuple(read), pooled=True, zeros_for_empty=True)(2, prompt=[said, unsaid])
    ours = (told.tokens[:1], told.tokens[1:], told.vector[:1], told.vector[1:])
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).abs().max() / other.abs().max()) < 1e-5
