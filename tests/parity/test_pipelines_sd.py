"""Stable Diffusion's pipelines: built and saved by diffusers, read, walked and written here, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sd_recipes import SD, SIDE, pipeline  # noqa: E402

from sfumato.checkpoints import compvis, compvis_writing  # noqa: E402
from sfumato.checkpoints import diffusers as folders  # noqa: E402
from sfumato.checkpoints.load import format_of, load  # noqa: E402
from sfumato.core.condition import Condition  # noqa: E402
from sfumato.core.errors import CheckpointCorrupt, InvalidInput, KeyMismatch, NotFound  # noqa: E402
from sfumato.core.noise import Noise  # noqa: E402
from sfumato.generate import generate  # noqa: E402
from sfumato.model import Model  # noqa: E402

KINDS = ("sd1", "sd2", "xl")
PROMPTS, NEGATIVE = ["a red apple", "two cats on a sofa, 8k"], ["blurry", "dog"]
WALKS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "ddim": (
        {"name": "leading", "clean": False},
        "DDIM",
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    ),
    "euler": ("trailing", "EulerDiscrete", {"timestep_spacing": "trailing"}),
    "dpm_solver_pp": ("trailing", "DPMSolverMultistep", {"timestep_spacing": "trailing"}),
}


class Case:
    """A pipeline of diffusers, its folder, and the model read from it."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind, self.folder = kind, root / "folder"
        self.pipe = pipeline(kind, root / "tokenizers")
        self.pipe.save_pretrained(self.folder)
        self.pipe.set_progress_bar_config(disable=True)
        self.model = load(self.folder)


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case("sd1", tmp_path_factory.mktemp("first"))


def tensors(model: Model) -> dict[str, Tensor]:
    parts = model.modules().items()
    return {f"{part}.{name}": t for part, module in parts for name, t in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def error(mine: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest number."""
    return float((mine - other).abs().max() / other.abs().max())


def theirs(pipe: Any, kind: str, sampler: str, steps: int) -> Tensor:
    """diffusers' pictures in [-1, 1], from the noise of seeds 3 and 4."""
    _, name, options = WALKS[sampler]
    prediction = "v_prediction" if kind == "sd2" else "epsilon"
    pipe.scheduler = getattr(diffusers, f"{name}Scheduler")(**SD, prediction_type=prediction, **options)
    x = Noise([3, 4]).randn((2, 4, SIDE // 2, SIDE // 2), "prior")
    if sampler == "euler":
        # Its x is that of variance-exploding levels, and begins at sigma rather than at sqrt(1 + sigma²).
        pipe.scheduler.set_timesteps(steps)
        sigma = pipe.scheduler.sigmas[0]
        x = x * (sigma**2 + 1).sqrt() / pipe.scheduler.init_noise_sigma
    told = {"prompt": PROMPTS, "negative_prompt": NEGATIVE, "guidance_scale": 7.5, "latents": x}
    return 2 * pipe(**told, num_inference_steps=steps, height=SIDE, width=SIDE, output_type="pt").images - 1


def ours(model: Model, sampler: str, steps: int) -> Tensor:
    walk = {"sampler": sampler, "times": WALKS[sampler][0], "steps": steps, "guidance": 7.5, "size": SIDE}
    return generate(model, prompt=PROMPTS, negative={"prompt": NEGATIVE}, seeds=[3, 4], **walk).tensor


def test_the_network_and_the_autoencoder(case: Case) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    network, space = case.model.denoiser.network, case.model.space
    tokens = torch.randn(2, 7, network.tokens, generator=generator)
    vector = torch.randn(2, network.vector, generator=generator) if network.vector else None
    added = {}
    if vector is not None:
        sizes = torch.tensor([[32.0, 48, 0, 4, 64, 64]] * 2)
        frequencies = case.pipe.unet.add_time_proj(sizes.flatten()).view(2, -1)
        added = {"text_embeds": vector[:, :128], "time_ids": sizes}
        vector = torch.cat((vector[:, :128], frequencies), 1)
    time = torch.tensor([3.0, 801.0])
    with torch.no_grad():
        expected = case.pipe.unet(x, time, tokens, added_cond_kwargs=added).sample
        assert error(network(x, time, Condition(tokens=tokens, vector=vector)), expected) <= 1e-5
        picture = torch.rand(1, 3, SIDE, SIDE, generator=generator) * 2 - 1
        moments = case.pipe.vae.encode(picture).latent_dist
        assert error(space.autoencoder.encode(picture).mean, moments.mean) <= 1e-5
        assert error(space.autoencoder.decode(x), case.pipe.vae.decode(x).sample) <= 1e-5
    assert space.scale == case.pipe.vae.config.scaling_factor


def test_the_text(case: Case) -> None:
    with torch.no_grad():
        told = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        expected = case.pipe.encode_prompt(PROMPTS, **told)
        condition = case.model.conditioner(2, prompt=PROMPTS)
    assert error(condition.tokens, expected[0]) <= 1e-5
    if case.kind == "xl":
        assert error(condition.vector[:, :128], expected[2]) <= 1e-5


@pytest.mark.parametrize("sampler", sorted(WALKS))
def test_pictures(case: Case, sampler: str) -> None:
    expected = theirs(case.pipe, case.kind, sampler, 3)
    assert float(expected.std()) > 0.1
    assert float((ours(case.model, sampler, 3) - expected).abs().max()) <= 1e-4


def test_written_as_a_folder_diffusers_loads_the_same(case: Case, tmp_path: Path) -> None:
    folders.write(case.model, tmp_path)
    pipe = type(case.pipe).from_pretrained(tmp_path, local_files_only=True)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (mine := getattr(pipe, part, None)) is not None:
            assert same(mine.state_dict(), getattr(case.pipe, part).state_dict()), part
    pipe.set_progress_bar_config(disable=True)
    expected = theirs(case.pipe, case.kind, "ddim", 2)
    assert torch.equal(theirs(pipe, case.kind, "ddim", 2), expected)
    assert same(tensors(load(tmp_path)), tensors(case.model))


def test_one_file_there_and_back(case: Case, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    compvis_writing.write(case.model, file)
    assert format_of(file) == "compvis"
    again = load(file)
    walk = {"prompt": "a red apple", "sampler": "ddim", "times": "trailing", "steps": 2, "seed": 5}
    expected = generate(case.model, size=SIDE, **walk).tensor
    if case.kind == "xl":
        # A file does not tell the size a model was trained on.
        again.conditioner.parts[1].size = case.model.conditioner.parts[1].size
    assert torch.equal(generate(again, size=SIDE, **walk).tensor, expected)
    assert again.denoiser.prediction == case.model.denoiser.prediction
    mine, other = tensors(again), tensors(case.model)
    assert all(torch.equal(mine[name], other[name]) for name in other)
    # Of version 2 the layer that nobody reads stands there too.
    assert len(mine) - len(other) == (16 if case.kind == "sd2" else 0)


def test_what_a_file_does_not_tell_is_asked(first: Case, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    compvis_writing.write(first.model, file)
    held = load_file(file)
    extra = {"model_ema.decay": torch.tensor(0.9), "betas": torch.zeros(3)}
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


def test_second_versions_prediction_is_never_guessed() -> None:
    table = type("Table", (), {"form": "torch.save", "entries": {}})()
    network = {"classes": 0, "in_channels": 4, "out_channels": 4}
    with pytest.raises(InvalidInput, match="velocity"):
        compvis._prediction(Path("x"), table, "stable diffusion 2", network, None)
    told, _ = compvis._prediction(Path("x"), table, "stable diffusion 2", network, "velocity")
    assert told == "velocity"


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
