"""Diffusers' unconditional pipelines as folders: parts and pictures the same, there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from ldm_recipes import one_file, plain_unet, vq  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from sd_cases import apart, drawing, drawn, error, prior, same, tensors  # noqa: E402
from unconditional_recipes import UNETS, aged, kl, latents, network, pixels  # noqa: E402

from sfumato.checkpoints import diffusers as folders  # noqa: E402
from sfumato.checkpoints import hub, native, unet2d, unet2d_keys  # noqa: E402
from sfumato.checkpoints.load import format_of, load  # noqa: E402
from sfumato.conditioners.nothing import Nothing  # noqa: E402
from sfumato.core.condition import Condition  # noqa: E402
from sfumato.core.errors import InvalidInput, KeyMismatch  # noqa: E402
from sfumato.generation.generate import generate  # noqa: E402
from sfumato.interfaces.cli import main  # noqa: E402
from sfumato.model import Model  # noqa: E402
from sfumato.networks.adm import ADM  # noqa: E402
from sfumato.registry import build  # noqa: E402

SEEDS = [3, 4]


def theirs(pipe: Any, *draws: torch.Tensor, channels: int = 3, side: int = 16, **said: Any) -> torch.Tensor:
    """A pipeline's pictures in [-1, 1], from the noise of SEEDS."""
    with drawing(pipe, prior(channels, side), *draws):
        images = pipe(batch_size=2, output_type="np", **said).images
    return 2 * torch.from_numpy(images).permute(0, 3, 1, 2) - 1


def settings(part: Any) -> dict[str, Any]:
    """A part's configuration as plain data."""
    held = {key: value for key, value in part.config.items() if not key.startswith("_")}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in held.items()}


@pytest.mark.parametrize("kind", sorted(UNETS))
def test_networks_say_the_same(kind: str) -> None:
    other = network(kind)
    description = unet2d.from_config(other.config)
    mine = build("network", description).eval()
    mine.load_state_dict(unet2d_keys.from_diffusers(description, other.state_dict()))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, mine.in_channels, 16, 16, generator=generator)
    vector, labels = None, None
    if mine.classes:
        labels = torch.tensor([2, 0])
        vector = torch.nn.functional.one_hot(labels, 3).float()
    for time in (torch.tensor([0.0, 999.0]), torch.tensor([137.0, 731.0])):
        with torch.no_grad():
            assert error(mine(x, time, Condition(vector=vector)), other(x, time, labels).sample) <= 1e-5
    assert isinstance(mine, ADM)
    assert mine.original == (kind == "ddpm")


@pytest.mark.parametrize("steps", [2, 5, 20])
@pytest.mark.parametrize("clipped", [False, True])
def test_ddim(tmp_path: Path, clipped: bool, steps: int) -> None:
    pipe = pixels("DDIMPipeline", diffusers.DDIMScheduler(beta_end=0.012, clip_sample=clipped))
    pipe.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.card["steps"] == 50
    assert model.card["size"] == [16, 16]
    # The noise follows what is clipped, which diffusers has to be told.
    other = theirs(pipe, num_inference_steps=steps, use_clipped_model_output=clipped)
    assert apart(generate(model, steps=steps, seeds=SEEDS).tensor, other) <= 1e-4
    if clipped:
        free = generate(model, steps=steps, seeds=SEEDS, guidance=[]).tensor
        assert float((free - other).abs().max()) > 0.01


def test_ddim_of_whatever_scheduler(tmp_path: Path) -> None:
    """The pipeline makes DDIM of what it is given; of others the index says the class, not their settings."""
    pixels("DDPMPipeline", diffusers.DDPMScheduler(variance_type="fixed_large")).save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    told = index.read_text()
    index.write_text(told.replace("DDPMPipeline", "DDIMPipeline"))
    card = load(tmp_path).card
    assert (card["sampler"], card["steps"]) == ({"name": "ddim"}, 50)
    index.write_text(told.replace("DDPMScheduler", "DPMSolverMultistepScheduler"))
    card = load(tmp_path).card
    assert (card["sampler"]["name"], card["steps"], card["guidance"]) == ("dpm_solver_pp", 30, [])


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "fixed_small_log"])
def test_ddpm_step_by_step(tmp_path: Path, variance: str) -> None:
    """By the card alone: all the steps there are, on the noise that was drawn."""
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=12, beta_start=0.02, beta_end=0.4, variance_type=variance
    )
    pipe = pixels("DDPMPipeline", scheduler)
    pipe.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.card["steps"] == 12
    assert folders.report(tmp_path).what == "DDPM"
    with drawn() as draws:
        mine = generate(model, seeds=SEEDS).tensor
    assert len(draws) == 11
    assert apart(mine, theirs(pipe, *draws, num_inference_steps=12)) <= 1e-4
    with drawn() as draws:
        mine = generate(model, seeds=SEEDS, steps=4).tensor
    assert apart(mine, theirs(pipe, *draws, num_inference_steps=4)) <= 1e-4


def test_ddpm_takes_a_thousand_steps(tmp_path: Path) -> None:
    pixels("DDPMPipeline", diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    card = load(tmp_path).card
    assert (card["steps"], card["sampler"]["name"]) == (1000, "ancestral")
    assert card["guidance"] == [{"name": "threshold", "bound": 1.0}]


def test_a_learned_variance(tmp_path: Path) -> None:
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", thresholding=True, sample_max_value=2)
    pipe = pixels("DDPMPipeline", scheduler, network("two"))
    pipe.save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    assert model.denoiser.learned_range
    assert model.card["size"] == [16, 8]
    with drawn() as draws:
        mine = generate(model, steps=5, seeds=SEEDS, size=(16, 16)).tensor
    pipe.unet.register_to_config(sample_size=16)
    other = theirs(pipe, *draws, channels=4, num_inference_steps=5)
    assert apart(mine, other) <= 1e-4
    folders.write(model, tmp_path / "ours")
    again = type(pipe).from_pretrained(tmp_path / "ours", local_files_only=True)
    assert again.scheduler.config["variance_type"] == "learned_range"
    assert list(again.unet.config["sample_size"]) == [16, 8]
    assert load(tmp_path / "ours").describe() == model.describe()
    assert load(tmp_path / "ours").card["guidance"] == model.card["guidance"]


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_latents(tmp_path: Path, kind: str) -> None:
    pipe = latents(vq() if kind == "vq" else kl())
    pipe.save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    assert model.space.scale == pipe.vqvae.config["scaling_factor"]
    assert model.card["size"] == [32, 32]
    for steps in (2, 5):
        other = theirs(pipe, num_inference_steps=steps)
        assert apart(generate(model, steps=steps, seeds=SEEDS).tensor, other) <= 1e-4
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        found = pipe.vqvae.encode(image)
        z = found.latents if kind == "vq" else found.latent_dist.mode()
        assert error(model.space.autoencoder.encode(image).mean, z) <= 1e-5
        assert error(model.space.autoencoder.decode(z), pipe.vqvae.decode(z).sample) <= 1e-5
    folders.write(model, tmp_path / "ours")
    again = type(pipe).from_pretrained(tmp_path / "ours", local_files_only=True)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(theirs(again, num_inference_steps=5), theirs(pipe, num_inference_steps=5))
    for part in ("unet", "vqvae"):
        assert same(getattr(again, part).state_dict(), getattr(pipe, part).state_dict()), part
        told, held = settings(getattr(pipe, part)), settings(getattr(again, part))
        # Codes as wide as the latents, by either word; and a size that nobody heeds.
        other = {"vq_embed_dim": 3, "sample_size": held["sample_size"]} if part == "vqvae" else {}
        assert held == {**told, **{key: value for key, value in other.items() if key in told}}
    assert load(tmp_path / "ours").describe() == model.describe()
    assert same(tensors(load(tmp_path / "ours")), tensors(model))


def test_latents_of_an_untold_scale_are_not_scaled(tmp_path: Path) -> None:
    """As published: later versions of diffusers divide by 0.18215, which it was never trained with."""
    pipe = latents()
    pipe.save_pretrained(tmp_path)
    config = tmp_path / "vqvae" / "config.json"
    told = json.loads(config.read_text())
    del told["scaling_factor"]
    config.write_text(json.dumps(told))
    assert load(tmp_path).space.scale == 1.0
    assert "not scaled" in folders.report(tmp_path).notes[0]
    mine = generate(load(tmp_path), steps=2, seeds=SEEDS).tensor
    assert apart(mine, theirs(pipe, num_inference_steps=2)) <= 1e-4
    later = type(pipe).from_pretrained(tmp_path, local_files_only=True)
    assert later.vqvae.config["scaling_factor"] == 0.18215


@pytest.mark.parametrize("kind", ["classes", "ddpm", "later", "residual"])
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    scheduler = diffusers.DDPMScheduler(variance_type="fixed_large")
    pipe = pixels("DDPMPipeline", scheduler, network(kind))
    pipe.save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    folders.write(model, tmp_path / "ours")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours", local_files_only=True)
    assert type(again) is type(pipe)
    assert same(again.unet.state_dict(), pipe.unet.state_dict())
    told = settings(pipe.unet)
    if kind == "residual":
        # The last of a way resamples nothing, and is the same under both names.
        told["down_block_types"][-1] = "ResnetDownsampleBlock2D"
        told["up_block_types"][-1] = "ResnetUpsampleBlock2D"
    assert settings(again.unet) == told
    for key in ("variance_type", "clip_sample", "beta_start", "beta_end", "prediction_type"):
        assert again.scheduler.config[key] == scheduler.config[key]
    read = load(tmp_path / "ours")
    assert read.describe() == model.describe()
    assert same(tensors(read), tensors(model))
    walk = ("sampler", "times", "steps", "guidance", "size")
    assert [read.card[key] for key in walk] == [model.card[key] for key in walk]


def test_heads_in_either_order_are_written(tmp_path: Path) -> None:
    """What is trained here may order q, k and v otherwise; the pictures tell."""
    made = []
    for number, order in enumerate((False, True)):
        torch.manual_seed(0)
        described = {
            "network": {
                "name": "adm",
                "channels": 32,
                "multipliers": [1, 2],
                "head_channels": 16,
                "new_attention_order": order,
            },
            "process": {"name": "betas"},
            "prediction": "velocity",
            "space": {"name": "pixel", "multiple": 2},
            "conditioner": "nothing",
        }
        model = Model.from_description(described, {"size": 16, "sampler": "ddim", "times": "trailing"})
        generator = torch.Generator().manual_seed(5)
        for parameter in model.denoiser.network.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        folders.write(model, tmp_path / str(number))
        pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / str(number), local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        assert type(pipe).__name__ == "DDIMPipeline"
        other = theirs(pipe, num_inference_steps=4)
        assert apart(generate(model, steps=4, seeds=SEEDS).tensor, other) <= 1e-4
        made.append(other)
    assert not torch.allclose(*made)


def test_a_single_file_becomes_a_folder(tmp_path: Path) -> None:
    """As latent diffusion's training leaves it."""
    pipe, file = latents(), tmp_path / "faces.safetensors"
    save_file(one_file(plain_unet(pipe.unet.state_dict(), 8), pipe.vqvae, {}), file)
    folders.write(load(file, head_channels=8), tmp_path / "folder")
    again = type(pipe).from_pretrained(tmp_path / "folder", local_files_only=True)
    for part in ("unet", "vqvae"):
        assert same(getattr(again, part).state_dict(), getattr(pipe, part).state_dict()), part
    assert again.vqvae.config["scaling_factor"] == 1.0
    # The file's numbers of betas are those of the schedule to rounding.
    assert torch.allclose(again.scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod, rtol=1e-5)


def test_old_folders_of_one_network(tmp_path: Path) -> None:
    """As google/ddpm-cifar10-32 is published."""
    pipe = pixels("DDPMPipeline", diffusers.DDPMScheduler(variance_type="fixed_large"))
    aged(pipe, tmp_path)
    model = load(tmp_path / "old")
    assert same(tensors(model), tensors(load(tmp_path / "new")))
    assert model.describe() == load(tmp_path / "new").describe()
    assert model.card["sampler"] == {"name": "ancestral", "variance": "large"}
    again = type(pipe).from_pretrained(tmp_path / "old", local_files_only=True, use_safetensors=False)
    assert same(again.unet.state_dict(), pipe.unet.state_dict())
    names = ["scheduler/scheduler_config.json", *(each.name for each in (tmp_path / "old").iterdir())]
    assert hub.wanted([*names, "diffusion_pytorch_model.safetensors", "pipeline.ckpt"]) == [
        "config.json",
        "model_index.json",
        "scheduler_config.json",
        "scheduler/scheduler_config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_classes_by_their_numbers(tmp_path: Path) -> None:
    pixels("DDPMPipeline", diffusers.DDPMScheduler(), network("classes")).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.conditioner.labels == {"label": ["0", "1", "2"]}
    one, two = (generate(model, label=label, steps=2, seed=1).tensor for label in ("0", "2"))
    assert not torch.allclose(one, two)
    config = tmp_path / "unet" / "config.json"
    config.write_text(config.read_text().replace('"num_class_embeds": 3', '"num_class_embeds": 900000000'))
    with pytest.raises(InvalidInput, match="table of 3"):
        folders.report(tmp_path)


def test_inspected_and_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latents().save_pretrained(tmp_path / "a")
    assert format_of(tmp_path / "a") == "diffusers"
    assert main(["inspect", str(tmp_path / "a"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["what"] == "latent diffusion, nothing said"
    assert set(told["pieces"]) == {"unet", "vqvae"}
    model = load(tmp_path / "a")
    for source, target, form in (
        ("a", "b", "native"),
        ("b", "c", "diffusers"),
        ("c", "d.safetensors", "compvis"),
    ):
        assert main(["convert", str(tmp_path / source), str(tmp_path / target), "--format", form]) == 0
        said = {"head_channels": 8} if form == "compvis" else {}
        assert same(tensors(load(tmp_path / target, **said)), tensors(model)), form
    assert json.loads((tmp_path / "c" / "model_index.json").read_text())["_class_name"] == "LDMPipeline"


REFUSED: list[tuple[str, str, Any, str]] = [
    ("model_index.json", "unet", ["diffusers", "UNet1DModel"], "unet"),
    ("model_index.json", "safety_checker", ["a", "B"], "safety_checker"),
    ("unet/config.json", "num_layers", 3, "num_layers"),
    ("unet/config.json", "out_channels", 6, "out_channels"),
    ("unet/config.json", "sample_size", "16", "sample_size"),
    ("scheduler/scheduler_config.json", "variance_type", "learned", "variance_type"),
    ("scheduler/scheduler_config.json", "variance_type", "learned_range", "out_channels"),
    ("scheduler/scheduler_config.json", "beta_schedule", "laplace", "beta_schedule"),
]


@pytest.mark.parametrize("file, key, value, where", REFUSED, ids=[f"{c[1]} {c[2]}" for c in REFUSED])
def test_other_folders_are_refused_by_name(
    file: str, key: str, value: Any, where: str, tmp_path: Path
) -> None:
    pixels("DDPMPipeline", diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    told = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**told, key: value}))
    with pytest.raises(InvalidInput, match=where):
        folders.report(tmp_path)


def test_weights_of_another_network_are_told(tmp_path: Path) -> None:
    pipe = pixels("DDPMPipeline", diffusers.DDPMScheduler())
    pipe.save_pretrained(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    held = load_file(file)
    held["down_blocks.1.attentions.0.odd.weight"] = held.pop("down_blocks.1.attentions.0.to_k.weight")
    save_file(held, file)
    with pytest.raises(KeyMismatch, match=r"3\.1\.odd\.weight"):
        load(tmp_path)


def described(**more: Any) -> dict[str, Any]:
    network = {"name": "adm", "channels": 32, "multipliers": [1, 2], **more.pop("network", {})}
    space = {"name": "pixel", "multiple": 2}
    whole = {"process": {"name": "betas"}, "prediction": "noise", "space": space, "conditioner": "nothing"}
    return {"network": network, **whole, **more}


UNSAID: list[tuple[str, dict[str, Any], str]] = [
    ("multipliers", {"network": {"multipliers": [2, 2]}}, "network.multipliers"),
    ("channels", {"network": {"channels": 16}}, "network.channels"),
    ("tokens", {"network": {"tokens": 8}}, "network.tokens"),
    ("heads", {"network": {"heads": 4, "attention": [1, 2]}}, "network.heads"),
    (
        "patches",
        {"network": {"in_channels": 12, "out_channels": 12}, "space": {"name": "pixel", "patch": 2}},
        "model.space",
    ),
    ("latents", {"space": {"name": "latent", "channels": 3}}, "model.space"),
    ("process", {"process": {"name": "cosine"}, "time_input": "index"}, "model.process"),
    ("prediction", {"prediction": "score"}, "model.prediction"),
    ("time", {"time_input": "time"}, "model.time_input"),
    (
        "words",
        {
            "network": {"classes": 2},
            "conditioner": {"name": "class_label", "labels": {"label": ["cat", "dog"]}},
        },
        "model.conditioner",
    ),
]


@pytest.mark.parametrize("what, more, where", UNSAID, ids=[case[0] for case in UNSAID])
def test_what_no_folder_says_is_refused_before_it_is_written(
    what: str, more: dict[str, Any], where: str, tmp_path: Path
) -> None:
    with torch.device("meta"):
        model = Model.from_description(described(**more), {"size": 16})
    with pytest.raises(InvalidInput) as told:
        folders.write(model, tmp_path / "folder")
    assert told.value.where == where
    assert not (tmp_path / "folder").exists()


def test_a_model_trained_here_is_opened_there(tmp_path: Path) -> None:
    """Of velocity and betas of its own, through the native format."""
    torch.manual_seed(0)
    told = described(process={"name": "betas", "schedule": "cosine", "steps": 50}, prediction="velocity")
    native.save(
        Model.from_description(told, {"sampler": {"name": "ancestral"}, "size": 16}), tmp_path / "own"
    )
    model = load(tmp_path / "own")
    assert isinstance(model.conditioner, Nothing)
    folders.write(model, tmp_path / "out")
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert pipe.scheduler.config["prediction_type"] == "v_prediction"
    assert pipe.unet.config["sample_size"] == 16
    assert load(tmp_path / "out").describe() == model.describe()
