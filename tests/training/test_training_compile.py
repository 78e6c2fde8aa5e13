"""Compiled training: the same losses to rounding, by the compiled network, and all else eager."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import Blobs, toy_model

from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, MissingExtra
from sfumato.core.hooks import Context
from sfumato.model import Model
from sfumato.networks.layers.attention import SpatialAttention
from sfumato.networks.layers.transformer import FeedForward
from sfumato.registry import build
from sfumato.training import parts
from sfumato.training.ema import Average
from sfumato.training.objectives.autoencoding import Autoencoding
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW
from sfumato.training.parts import LossModule
from sfumato.training.settings import Settings, Validating
from sfumato.training.trainer import Trainer


def run(directory: Path, compiled: bool) -> tuple[list[Any], Model]:
    settings = Settings(
        batch=8,
        steps=6,
        optimizer=AdamW(rate=1e-2),
        ema=(Average(0.9),),
        validation=Validating(every=3, items=6, bands=2),
        compile=compiled,
    )
    model = Trainer(toy_model(), Blobs(), Denoising(), settings, directory).train()
    lines = map(json.loads, (directory / "losses.jsonl").read_text().splitlines())
    return [line.get("loss", line.get("bands")) for line in lines], model


def test_losses_are_the_same_to_rounding_and_the_model_comes_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, compile_ = [], torch.compile

    def counted(forward: Any, **options: Any) -> Any:
        made = compile_(forward, **options)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return made(*args, **kwargs)

        return call

    plain, _ = run(tmp_path / "plain", False)
    monkeypatch.setattr(torch, "compile", counted)
    found, model = run(tmp_path / "compiled", True)
    # One call a step: validation, at its own shapes, is not compiled.
    assert len(calls) == 6
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)
    assert "forward" not in vars(model.denoiser.network)


def test_compiled_attention_in_bf16_learns_what_the_other_does() -> None:
    """Torch 2.13 compiles copies of rows of bf16 that hold numbers nobody computed; none may be made."""
    torch.manual_seed(1)
    attention, context = SpatialAttention(32, 1), Context(torch.zeros(2, 4), Condition())
    torch.nn.init.normal_(attention.proj_out.weight, std=0.1)
    h = torch.randn(2, 32, 8, 8)

    def gradients(forward: Any) -> list[torch.Tensor]:
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            made = forward(h.bfloat16(), context)
        made.float().square().mean().backward()
        return [made.detach(), *(each.grad for each in attention.parameters() if each.grad is not None)]

    plain = [each.clone() for each in gradients(attention)]
    for mine, theirs in zip(gradients(torch.compile(attention)), plain, strict=True):
        assert float((mine - theirs).float().norm()) < 0.02 * float(theirs.float().norm())


def test_compiled_gelu_is_gelu() -> None:
    """By a sigmoid in place of tanh, forth and back."""
    torch.manual_seed(1)
    layer, h = FeedForward(16), 4 * torch.randn(8, 16)
    made, told = torch.compile(layer)(h), layer(h)
    torch.testing.assert_close(made, told, rtol=1e-5, atol=1e-5)
    found, known = (
        torch.autograd.grad(each.square().sum(), tuple(layer.parameters())) for each in (made, told)
    )
    torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-4)


def test_a_compiled_transformer_says_and_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Biases apart, and kernels called from C++, which a U-Net's are not."""
    told, compile_ = list[Any](), torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **more: (told.append(more["options"]), compile_(f, **more))[1]
    )
    dit = {"name": "dit", "in_channels": 3, "out_channels": 3, "width": 32, "depth": 2, "heads": 2}
    model = Model.from_description({"network": dit, "process": "vp", "prediction": "noise"})
    network: Any = model.denoiser.network
    torch.manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    forward: Any = LossModule(model, Denoising(), Settings(compile=True))._forward
    given = torch.randn(2, 3, 8, 8), torch.tensor([100.0, 700.0]), Condition()
    made, plain = forward(*given), network(*given)
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5)
    weights = [each for each in network.parameters() if each.requires_grad]
    found, known = (
        torch.autograd.grad(each.square().sum(), weights, allow_unused=True) for each in (made, plain)
    )
    torch.testing.assert_close(found, known, rtol=1e-3, atol=1e-3)
    unet = Model.from_description(
        {
            "network": {"name": "adm", "channels": 32, "multipliers": [1]},
            "process": "vp",
            "prediction": "noise",
        }
    )
    LossModule(unet, Denoising(), Settings(compile=True))
    assert [options["cpp_wrapper"] for options in told] == [True, False]


def test_what_cannot_be_compiled_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    coder = Model.from_description({"autoencoder": {"name": "tiny", "width": 8}})
    objective = Autoencoding(perceptual=0, adversarial=0)
    with pytest.raises(InvalidInput, match="an autoencoder is not compiled"):
        LossModule(coder, objective, Settings(compile=True))
    monkeypatch.setattr(parts.shutil, "which", lambda name: None)
    with pytest.raises(MissingExtra, match=r"needs a compiler of C\+\+"):
        LossModule(toy_model(), Denoising(), Settings(compile=True))


@torch.no_grad()
def test_masked_tokens_come_at_one_length_and_say_the_same() -> None:
    torch.manual_seed(0)
    network = build(
        "network",
        {"name": "sd_unet", "channels": 32, "multipliers": [1], "attention": [1], "blocks": 1, "tokens": 8},
    ).eval()
    for part in network.parameters():
        part.normal_(0, 0.1)
    x, time = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 700.0])
    for length in (5, 20, 32):
        real = torch.arange(length) < torch.tensor([[3], [length]])
        told = Condition(tokens=torch.randn(2, length, 8), mask=real)
        padded = parts._of_one_length(told)
        assert padded.tokens is not None
        assert padded.tokens.shape == (2, 32, 8)
        torch.testing.assert_close(network(x, time, padded), network(x, time, told), rtol=1e-4, atol=1e-5)
    assert parts._of_one_length(Condition()) == Condition()
    # All tokens of CLIP are attended to: there is nothing to hide the padding from.
    whole = Condition(tokens=torch.randn(2, 77, 8))
    assert parts._of_one_length(whole) is whole
