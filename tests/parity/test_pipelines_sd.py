"""Stable Diffusion's pipelines: built and saved by diffusers, read, walked and written here, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sd_cases import PROMPTS, Case, apart, asked, error, ours, picture, same, tensors, theirs
from sd_recipes import KINDS, SIDE

from sfumato.checkpoints import compvis, compvis_writing
from sfumato.checkpoints import diffusers as folders
from sfumato.checkpoints.load import format_of, load
from sfumato.core.condition import Condition
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, KeyMismatch, NotFound
from sfumato.core.prediction import Noise, Velocity
from sfumato.processes.betas import Betas
from sfumato.registry import build


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return cases(request.param)


@pytest.fixture(scope="module")
def first(cases: Callable[[str], Case]) -> Case:
    return cases("sd1")


def test_the_network_and_the_autoencoder(case: Case) -> None:
    generator = torch.Generator().manual_seed(0)
    network, space = case.model.denoiser.network, case.model.space
    x = torch.randn(2, network.in_channels, 8, 8, generator=generator)
    tokens = torch.randn(2, 7, network.tokens, generator=generator)
    vector, told = None, {}
    if network.vector:
        sizes = torch.tensor([[32.0, 48, 0, 4, 64, 64][: (network.vector - 128) // 256]] * 2)
        pooled = torch.randn(2, 128, generator=generator)
        vector = torch.cat((pooled, case.pipe.unet.add_time_proj(sizes.flatten()).view(2, -1)), 1)
        told = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    elif network.classes:
        levels = torch.tensor([20, 349])
        vector, told = torch.nn.functional.one_hot(levels, network.classes).float(), {"class_labels": levels}
    time = torch.tensor([3.0, 801.0])
    with torch.no_grad():
        expected = case.pipe.unet(x, time, tokens, **told).sample
        assert error(network(x, time, Condition(tokens=tokens, vector=vector)), expected) <= 1e-5
        image = torch.rand(1, 3, SIDE, SIDE, generator=generator) * 2 - 1
        moments = case.pipe.vae.encode(image).latent_dist
        assert error(space.autoencoder.encode(image).mean, moments.mean) <= 1e-5
        assert error(space.autoencoder.encode(image).log_variance, moments.logvar) <= 1e-5
        assert error(space.autoencoder.decode(x[:, :4]), case.pipe.vae.decode(x[:, :4]).sample) <= 1e-5
    assert space.scale == case.pipe.vae.config.scaling_factor


def test_the_text(case: Case) -> None:
    with torch.no_grad():
        told = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        expected = case.pipe.encode_prompt(PROMPTS, **told)
        sides = asked(case.kind)[1]
        other = {name: sides[name] for name in ("depth", "low_res") if name in sides}
        if "inpaint" in case.kind:
            other = {"image": picture()[0], "mask": torch.ones(1, SIDE, SIDE)}
        condition = case.model.conditioner(2, prompt=PROMPTS, **other)
    assert error(condition.tokens, expected[0]) <= 1e-5
    if case.model.denoiser.network.vector:
        assert error(condition.vector[:, :128], expected[2]) <= 1e-5


def test_pictures(case: Case) -> None:
    sampler = "ddim" if case.kind in ("sd1", "inpaint", "upscaler", "refiner") else "euler"
    mine, other = ours(case, sampler, 3), theirs(case, sampler, 3)
    if "inpaint" in case.kind:
        # What is not to change comes out of theirs as the autoencoder makes it, and of ours as it was.
        edit = asked(case.kind)[1]["edit"]
        hole = torch.stack(edit.mask) > 0
        assert torch.equal(mine.where(~hole, 0), torch.stack(edit.image).where(~hole, 0))
        mine = mine.where(hole, other)
    assert apart(mine, other) <= 1e-4


def test_written_as_a_folder_diffusers_loads_the_same(case: Case, tmp_path: Path) -> None:
    folders.write(case.model, tmp_path)
    # No estimator of depth is written, and theirs asks for one to be passed.
    estimators = dict.fromkeys(("depth_estimator", "feature_extractor")) if case.kind == "depth" else {}
    pipe = type(case.pipe).from_pretrained(tmp_path, local_files_only=True, **estimators)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        mine, other = getattr(pipe, part, None), getattr(case.pipe, part, None)
        assert (mine is None) == (other is None), part
        if other is not None:
            assert same(mine.state_dict(), other.state_dict()), part
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(theirs(case, "ddim", 2, pipe=pipe), theirs(case, "ddim", 2))
    again = load(tmp_path)
    assert same(tensors(again), tensors(case.model))
    assert again.describe() == case.model.describe()


def test_one_file_there_and_back(case: Case, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    compvis_writing.write(case.model, file)
    assert format_of(file) == "compvis"
    again = load(file)
    expected = ours(case, "ddim", 2)
    for part in getattr(again.conditioner, "parts", ()):
        if hasattr(part, "scored"):
            # A file does not tell the size a model was trained on.
            part.size = (SIDE, SIDE)
    assert torch.equal(ours(case, "ddim", 2, model=again), expected)
    assert again.denoiser.prediction == case.model.denoiser.prediction
    assert again.process.alphas_cumprod.tolist() == case.model.process.alphas_cumprod.tolist()
    mine, other = tensors(again), tensors(case.model)
    assert all(torch.equal(mine[name], other[name]) for name in other)
    # Of version 2 the layer that nobody reads stands there too.
    assert len(mine) - len(other) == (16 if case.kind in ("sd2", "depth", "upscaler") else 0)


def test_what_a_file_does_not_tell_is_asked(first: Case, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    compvis_writing.write(first.model, file)
    held = load_file(file)
    extra = {"model_ema.decay": torch.tensor(0.9), "betas": first.model.process.betas.float()}
    save_file({**held, **extra}, file)
    assert "noise" in compvis.report(file).notes[0]
    assert same(tensors(compvis.read(file)), tensors(first.model))
    save_file({**held, "model.diffusion_model.input_blocks.1.0.in_layers.2.weigth": torch.zeros(1)}, file)
    with pytest.raises(KeyMismatch, match="weigth"):
        load(file)
    save_file({name: each for name, each in held.items() if "out.2.bias" not in name}, file)
    with pytest.raises(KeyMismatch, match=r"network\.out\.2\.bias"):
        load(file)
    torch.save({"state_dict": held}, tmp_path / "old.ckpt")
    assert same(tensors(load(tmp_path / "old.ckpt")), tensors(first.model))


def test_second_versions_prediction_is_never_guessed(cases: Callable[[str], Case], tmp_path: Path) -> None:
    file = tmp_path / "second.safetensors"
    compvis_writing.write(cases("sd2").model, file)
    held = load_file(file)
    save_file(held, file)
    with pytest.raises(InvalidInput, match="velocity"):
        load(file)
    assert type(load(file, prediction="noise").denoiser.prediction) is Noise
    save_file({**held, "v_pred": torch.zeros(0)}, file)
    assert type(load(file).denoiser.prediction) is Velocity


def test_betas_are_those_of_the_file(first: Case, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    compvis_writing.write(first.model, file)
    held = load_file(file)
    for other in (Betas("scaled_linear", 1000, 0.0015, 0.0195), Betas("linear", 400, 1e-4, 0.03)):
        save_file({**held, "betas": other.betas.float()}, file)
        assert build("process", compvis.report(file).description["process"]) == other
    odd = torch.linspace(0.01, 0.02, 50) ** 1.5
    save_file({**held, "betas": odd}, file)
    assert compvis.report(file).description["process"]["values"] == odd.double().tolist()
    save_file({**held, "ztsnr": torch.zeros(0)}, file)
    assert load(file).process == Betas("scaled_linear", 1000, 0.00085, 0.012, zero_terminal_snr=True)
    save_file({**held, "betas": torch.zeros(3)}, file)
    with pytest.raises(CheckpointCorrupt, match="betas"):
        load(file)


def test_an_autoencoder_alone(first: Case, tmp_path: Path) -> None:
    save_file(first.pipe.vae.state_dict(), tmp_path / "theirs.safetensors")
    held = {f"first_stage_model.{n}": t for n, t in first.model.space.autoencoder.state_dict().items()}
    save_file(held, tmp_path / "ours.safetensors")
    expected = first.model.space.autoencoder.state_dict()
    for name in ("theirs", "ours"):
        model = load(tmp_path / f"{name}.safetensors")
        assert same(dict(model.denoiser.network.state_dict()), dict(expected))


def test_shards_variants_and_old_files(first: Case, tmp_path: Path) -> None:
    first.pipe.save_pretrained(tmp_path, max_shard_size="300KB")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert same(tensors(load(tmp_path)), tensors(first.model))
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    said = json.loads(index.read_text())
    name = next(iter(said["weight_map"]))
    said["weight_map"][name] = "../vae/diffusion_pytorch_model.safetensors"
    index.write_text(json.dumps(said))
    with pytest.raises(CheckpointCorrupt, match="plain file name"):
        load(tmp_path)
    index.unlink()
    half = {n: t.half() for n, t in first.pipe.unet.state_dict().items()}
    save_file(half, tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert next(load(tmp_path).denoiser.network.parameters()).dtype == torch.float16
    torch.save(first.pipe.unet.state_dict(), tmp_path / "unet" / "diffusion_pytorch_model.bin")
    assert same(tensors(load(tmp_path)), tensors(first.model))
    assert next(load(tmp_path, variant="fp16").denoiser.network.parameters()).dtype == torch.float16


def test_settings_that_are_not_done_are_named(first: Case, tmp_path: Path) -> None:
    folders.write(first.model, tmp_path)
    for file, key, value in (
        ("unet/config.json", "resnet_time_scale_shift", "scale_shift"),
        ("vae/config.json", "latents_mean", [0.0]),
        ("vae/config.json", "new_setting", 3),
        ("scheduler/scheduler_config.json", "beta_schedule", "sigmoid"),
        ("text_encoder/config.json", "hidden_act", "relu"),
        ("model_index.json", "_class_name", "FluxPipeline"),
    ):
        path = tmp_path / file
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), key: value}))
        with pytest.raises(InvalidInput, match=str(value) if key == "_class_name" else key):
            folders.report(tmp_path)
        path.write_text(before)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(NotFound, match="vae"):
        load(tmp_path)
