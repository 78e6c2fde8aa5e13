"""Latent diffusion's first models: parts and pictures of diffusers', read from single files, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from ldm_recipes import SIDE, bert, captions, ddim, faces, one_file, plain_unet, vq
from sd_cases import apart, drawing, error, prior, same, tensors
from sd_recipes import unet

from sfumato.checkpoints import compvis_writing, latent_diffusion, sd_unet_keys
from sfumato.checkpoints import diffusers as folders
from sfumato.checkpoints.load import format_of, load
from sfumato.conditioners.boxes import Boxes
from sfumato.conditioners.text_draft import TextDraft
from sfumato.conditioners.text_small import TextSmall
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, KeyMismatch
from sfumato.generation.generate import generate
from sfumato.model import Model

PROMPTS = ["a red apple", "two cats left of a sofa"]
LABELS = ["tench", "goldfish", "shark"]
WALK: dict[str, Any] = {"sampler": "ddim", "times": "trailing", "seeds": [3, 4]}


def there_and_back(model: Model, file: Path, **said: Any) -> None:
    """Written and read again it is the same to the bit."""
    compvis_writing.write(model, file)
    assert format_of(file) == "latent_diffusion"
    again = load(file, **said)
    assert same(tensors(again), tensors(model))
    assert again.process.betas.tolist() == pytest.approx(model.process.betas.tolist(), rel=1e-9)
    assert again.describe() == model.describe()


def test_captions(tmp_path: Path) -> None:
    pipe, file = captions(tmp_path / "words"), tmp_path / "captions.safetensors"
    pipe.set_progress_bar_config(disable=True)
    told = {f"transformer.{name}": each for name, each in bert(pipe.bert.state_dict()).items()}
    save_file(one_file(sd_unet_keys.from_diffusers(pipe.unet.state_dict()), pipe.vqvae, told), file)
    assert format_of(file) == "latent_diffusion"
    with pytest.raises(InvalidInput, match=r"vocab\.txt"):
        load(file)
    model = load(file, vocabulary=tmp_path / "words")
    ids = pipe.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(model.conditioner.encoder.lay(PROMPTS)[0], ids)
    with torch.no_grad():
        assert error(model.conditioner(2, prompt=PROMPTS).tokens, pipe.bert(ids)[0]) <= 1e-5
    assert model.space.scale == 0.18215
    for scale in (1.0, 3.0):
        x = prior(4, SIDE // 8)
        said = {"guidance_scale": scale, "height": SIDE, "width": SIDE, "output_type": "pt"}
        other = 2 * pipe(PROMPTS, num_inference_steps=2, latents=x, **said).images - 1
        mine = generate(model, prompt=PROMPTS, steps=2, guidance=scale, size=SIDE, **WALK).tensor
        assert apart(mine, other) <= 1e-4
    there_and_back(model, tmp_path / "again.safetensors", vocabulary=tmp_path / "words")


def test_captions_as_a_folder_there_and_back(tmp_path: Path) -> None:
    pipe = captions(tmp_path / "words")
    pipe.save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    folders.write(model, tmp_path / "ours")
    again = type(pipe).from_pretrained(tmp_path / "ours", local_files_only=True)
    for part in ("unet", "vqvae", "bert"):
        assert same(getattr(again, part).state_dict(), getattr(pipe, part).state_dict()), part
    ids = [p.tokenizer(PROMPTS, padding="max_length", max_length=77).input_ids for p in (pipe, again)]
    assert ids[0] == ids[1] == model.conditioner.encoder.lay(PROMPTS)[0].tolist()
    assert same(tensors(load(tmp_path / "ours")), tensors(model))
    x, made = prior(4, SIDE // 8), []
    for each in (pipe, again):
        each.set_progress_bar_config(disable=True)
        each.scheduler = ddim()
        said = {"guidance_scale": 2.0, "height": SIDE, "width": SIDE, "output_type": "pt"}
        made.append(2 * each(PROMPTS, num_inference_steps=2, latents=x, **said).images - 1)
    assert torch.equal(*made)
    mine = generate(model, prompt=PROMPTS, steps=2, guidance=2.0, size=SIDE, **WALK).tensor
    assert apart(mine, made[0]) <= 1e-4
    config = tmp_path / "ours" / "bert" / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    with pytest.raises(InvalidInput, match="activation_function"):
        folders.report(tmp_path / "ours")
    # What a folder cannot say is not left out in silence.
    encoder = model.conditioner.encoder
    for more in (TextDraft(encoder), TextSmall(encoder, pooled=True)):
        with pytest.raises(InvalidInput, match=r"no such text encoder.*save it natively"):
            folders.write(Model(model.denoiser, more, model.space), tmp_path / "more")


def test_classes(tmp_path: Path) -> None:
    network, stage, file = unet(in_channels=3, out_channels=3), vq(), tmp_path / "classes.safetensors"
    table = torch.randn(4, 64, generator=torch.Generator().manual_seed(9))
    ours = sd_unet_keys.from_diffusers(network.state_dict())
    save_file(one_file(ours, stage, {"embedding.weight": table}), file)
    model = load(file, labels=LABELS)
    assert model.conditioner.null_row
    assert model.space.scale == 1
    condition = model.conditioner(2, label=["shark", None])
    assert torch.equal(condition.tokens, table[[2, 3]][:, None])
    assert torch.equal(model.conditioner.null(condition).tokens, table[[3, 3]][:, None])
    x, scheduler = prior(3), ddim()
    scheduler.set_timesteps(4)
    states = torch.cat((table[[3, 3]], table[[1, 0]]))[:, None]
    with torch.no_grad():
        for t in scheduler.timesteps:
            none, eps = network(torch.cat((x, x)), t, states).sample.chunk(2)
            x = scheduler.step(none + 1.5 * (eps - none), t, x).prev_sample
        other = stage.decode(x).sample.clamp(-1, 1)
    told = {"label": ["goldfish", "tench"], "steps": 4, "guidance": 1.5, "size": 32}
    assert apart(generate(model, **told, **WALK).tensor, other) <= 1e-4
    there_and_back(model, tmp_path / "again.safetensors", labels=LABELS)
    with pytest.raises(InvalidInput, match="2 labels for 4 classes"):
        load(file, labels=["a", "b"])
    assert not load(file).conditioner.null_row
    with pytest.raises(InvalidInput, match="tench"):
        generate(model, **{**told, "label": "tensh"}, **WALK)


def test_nothing_said(tmp_path: Path) -> None:
    pipe, file = faces(), tmp_path / "faces.safetensors"
    pipe.set_progress_bar_config(disable=True)
    network = plain_unet(pipe.unet.state_dict(), 16)
    whole = one_file(network, pipe.vqvae, {})
    save_file(whole, file)
    with pytest.raises(InvalidInput, match="head_channels"):
        load(file)
    model = load(file, head_channels=16)
    x, time = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 801.0])
    with torch.no_grad():
        assert error(model.denoiser.network(x, time, Condition()), pipe.unet(x, time).sample) <= 1e-5
        image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
        coder = model.space.autoencoder
        assert error(coder.encode(image).mean, pipe.vqvae.encode(image).latents) <= 1e-5
        assert error(coder.decode(x), pipe.vqvae.decode(x).sample) <= 1e-5
    with drawing(pipe, prior(3)):
        images = pipe(batch_size=2, num_inference_steps=5, output_type="np").images
    other = 2 * torch.from_numpy(images).permute(0, 3, 1, 2) - 1
    assert apart(generate(model, steps=5, guidance=[], size=32, **WALK).tensor, other) <= 1e-4
    there_and_back(model, tmp_path / "again.safetensors", head_channels=16)
    # What was averaged while it learnt is what is read.
    averages: dict[str, Tensor] = {
        f"model_ema.diffusion_model{name.replace('.', '')}": tensor + 1 for name, tensor in network.items()
    }
    torch.save({"state_dict": {**whole, **averages}}, tmp_path / "averaged.ckpt")
    held = load(tmp_path / "averaged.ckpt", head_channels=16).denoiser.network.state_dict()
    assert same(held, {name: tensor + 1 for name, tensor in network.items()})
    assert "averaged" in latent_diffusion.report(tmp_path / "averaged.ckpt", head_channels=16).notes[0]


def test_a_hole_to_fill(tmp_path: Path) -> None:
    """Seven channels: the model is told the picture with its hole, and the mask."""
    network, stage = faces().unet, vq()
    ours = plain_unet(network.state_dict(), 16)
    wide = torch.randn(32, 7, 3, 3, generator=torch.Generator().manual_seed(0)) / 8
    whole = one_file({**ours, "input_blocks.0.0.weight": wide}, stage, {})
    save_file(whole, tmp_path / "hole.safetensors")
    model = load(tmp_path / "hole.safetensors", head_channels=16)
    assert model.conditioner.style == "ldm"
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:20, 4:30] = 1
    told = model.conditioner(1, image=image, mask=mask).channels
    with torch.no_grad():
        seen = stage.encode((((image + 1) / 2 * (1 - mask)) * 2 - 1)[None]).latents
    assert error(told[:, :3], seen) <= 1e-5
    assert torch.equal(told[:, 3:], 2 * mask[None, :, ::2, ::2] - 1)
    there_and_back(model, tmp_path / "again.safetensors", head_channels=16)
    save_file({**whole, "cond_stage_model.odd": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(KeyMismatch, match=r"cond_stage_model\.odd"):
        load(tmp_path / "odd.safetensors", head_channels=16)


def test_layouts(tmp_path: Path) -> None:
    """Made of our own parts, as no package draws from layouts: what is read says the same of every layout."""
    network, stage, file = (
        unet(in_channels=3, out_channels=3, cross_attention_dim=24),
        vq(),
        tmp_path / "l.safetensors",
    )
    torch.manual_seed(8)
    told = Boxes(
        LABELS, objects=30, vocabulary=1024, width=24, depth=2, heads=8, dim_head=4, logits=True
    ).eval()
    state = {f"transformer.{name.removeprefix('encoder.')}": each for name, each in told.state_dict().items()}
    save_file(one_file(sd_unet_keys.from_diffusers(network.state_dict()), stage, state), file)
    with pytest.raises(InvalidInput, match="say labels"):
        load(file)
    model = load(file, labels=LABELS)
    layouts = [
        [{"label": "shark", "box": [0.1, 0.2, 0.5, 0.5]}, {"label": "tench", "box": [0.5, 0.5, 0.4, 0.3]}],
        [],
    ]
    with torch.no_grad():
        assert torch.equal(model.conditioner(2, boxes=layouts).tokens, told(2, boxes=layouts).tokens)
        x, states = prior(3), told(2, boxes=layouts).tokens
        assert (
            error(
                model.denoiser.network(x, torch.tensor([3.0, 801.0]), Condition(tokens=states)),
                network(x, torch.tensor([3.0, 801.0]), states).sample,
            )
            <= 1e-5
        )
    drawn = generate(model, boxes=layouts, steps=2, size=32, **WALK).tensor
    assert not torch.equal(
        drawn[0], generate(model, boxes=[], steps=2, size=32, **{**WALK, "seeds": [3]}).tensor[0]
    )
    with pytest.raises(InvalidInput, match="tench"):
        generate(model, boxes=[{"label": "tensh", "box": [0, 0, 1, 1]}], size=32)
