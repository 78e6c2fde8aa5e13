"""A pipeline of diffusers beside the model that is read from its folder, and how their pictures are made."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from sd_recipes import LOW_RES, SD, SIDE, VELOCITY, pipeline
from torch import Tensor

from sfumato.checkpoints.load import load
from sfumato.core.noise import Noise
from sfumato.editing.image_to_image import ImageToImage
from sfumato.editing.inpaint import Inpaint
from sfumato.generation.generate import generate
from sfumato.model import Model

PROMPTS, NEGATIVE = ["a red apple", "two cats on a sofa, 8k"], ["blurry", "dog"]
SEEDS = [3, 4]
_LEADING = {"name": "leading", "clean": False}
_TRAILING = {"timestep_spacing": "trailing"}
_SHIPPED = {"set_alpha_to_one": False, "steps_offset": 1}
WALKS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "ddim": (_LEADING, "DDIM", {"clip_sample": False, **_SHIPPED}),
    "plms": (_LEADING, "PNDM", {"skip_prk_steps": True, **_SHIPPED}),
    "euler": ("trailing", "EulerDiscrete", _TRAILING),
    "euler_ancestral": ("trailing", "EulerAncestralDiscrete", _TRAILING),
    "dpm_solver_pp": ("trailing", "DPMSolverMultistep", _TRAILING),
    "unipc": ("trailing", "UniPCMultistep", _TRAILING),
}
"""Times of a sampler, and diffusers' scheduler of the same."""


class Case:
    """A pipeline of diffusers, its folder, and the model read from it."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind, self.folder = kind, root / kind
        self.pipe = pipeline(kind)
        self.pipe.save_pretrained(self.folder)
        self.pipe.set_progress_bar_config(disable=True)
        self.model = load(self.folder)


def prior(channels: int = 4, side: int = SIDE // 2) -> Tensor:
    """The noise that pictures of SEEDS begin with."""
    return Noise(SEEDS).randn((len(SEEDS), channels, side, side), "prior")


def picture(seed: int = 0, side: int = SIDE) -> Tensor:
    """Pictures (2, 3, side, side) in [-1, 1], smooth enough to be no noise."""
    rough = torch.randn(2, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(rough, side, mode="bicubic").clamp(-1, 1)


def walk_as(pipe: Any, kind: str, sampler: str) -> None:
    """Give a pipeline the scheduler of a sampler."""
    _, name, options = WALKS[sampler]
    prediction = "v_prediction" if kind in VELOCITY else "epsilon"
    betas = LOW_RES if kind == "upscaler" else SD
    pipe.scheduler = getattr(diffusers, f"{name}Scheduler")(**betas, prediction_type=prediction, **options)


def from_noise(pipe: Any, steps: int, x: Tensor) -> Tensor:
    """Noise of unit scale as the pipeline's `latents`, which its scheduler multiplies.

    Euler's x is that of variance-exploding levels, and begins at sigma rather than at sqrt(1 + sigma²).
    """
    pipe.scheduler.set_timesteps(steps)
    if not hasattr(pipe.scheduler, "sigmas") or float(pipe.scheduler.init_noise_sigma) == 1:
        return x
    sigma = pipe.scheduler.sigmas[0]
    return x * (sigma**2 + 1).sqrt() / pipe.scheduler.init_noise_sigma


@contextlib.contextmanager
def drawing(pipe: Any, *draws: Tensor) -> Iterator[None]:
    """Let a pipeline and its scheduler draw these numbers, then zeros; and of posteriors take the mean."""
    rest = list(draws)

    def next_draw(shape: Any, **_: Any) -> Tensor:
        return rest.pop(0) if rest else torch.zeros(shape)

    with pytest.MonkeyPatch.context() as patch:
        for part in (pipe, pipe.scheduler):
            module = importlib.import_module(type(part).__module__)
            if hasattr(module, "randn_tensor"):
                patch.setattr(module, "randn_tensor", next_draw)
        patch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
        yield


@contextlib.contextmanager
def drawn() -> Iterator[list[Tensor]]:
    """The numbers that samplers draw meanwhile, one tensor a draw."""
    kept: list[Tensor] = []
    plain = Noise.randn_like

    def kept_draw(self: Noise, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
        made = plain(self, x, purpose, moment)
        kept.append(made)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Noise, "randn_like", kept_draw)
        yield kept


def tensors(model: Model) -> dict[str, Tensor]:
    parts = model.modules().items()
    return {f"{part}.{name}": t for part, module in parts for name, t in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def error(mine: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest number."""
    return float((mine - other).abs().max() / other.abs().max())


def apart(mine: Tensor, other: Tensor) -> float:
    """Largest difference of pictures in [-1, 1]; no picture of theirs may be flat."""
    assert mine.shape == other.shape
    assert float(other.std()) > 0.1
    return float((mine - other).abs().max())


def asked(kind: str, strength: float | None = None) -> tuple[dict[str, Any], dict[str, Any], list[Tensor]]:
    """What a kind is told beside a prompt: by diffusers' names, by ours, and what its pipeline draws.

    Args:
        kind: one of KINDS.
        strength: of an edit; 1 for inpainting and .6 for others if not said.
    """
    if kind in ("sd1", "sd2", "xl") and strength is None:
        return {"height": SIDE, "width": SIDE}, {"size": SIDE}, []
    image, much = picture(), strength or (1.0 if "inpaint" in kind else 0.6)
    if kind == "upscaler":
        small = picture(side=SIDE // 2)
        seeds = [11, 12]
        draw = Noise(seeds).randn_like(small, "low_res")
        said = {"low_res": list(small), "noise_level": 35, "noise_seed": seeds, "size": SIDE}
        return {"image": small, "noise_level": 35}, said, [draw]
    if "inpaint" in kind:
        mask = torch.zeros(2, 1, SIDE, SIDE)
        mask[0, :, 5:20, 8:31], mask[1, :, :, 16:] = 1, 1
        edit = Inpaint(list(image), list(mask), much)
        sides = {"height": SIDE, "width": SIDE}
        return {"image": image, "mask_image": mask, "strength": much, **sides}, {"edit": edit}, [prior()]
    said, told = {"edit": ImageToImage(list(image), much)}, {"image": image, "strength": much}
    if kind == "depth":
        depth = 3 * picture(1).mean(1) + 7
        said["depth"], told["depth_map"] = list(depth), depth
    return told, said, [prior()]


def theirs(
    case: Case,
    sampler: str,
    steps: int,
    scale: float = 7.5,
    strength: float | None = None,
    pipe: Any = None,
    draws: Sequence[Tensor] = (),
    **said: Any,
) -> Tensor:
    """diffusers' pictures in [-1, 1], from the noise of SEEDS.

    Args:
        case: of which kind.
        sampler: one of WALKS.
        steps: of the whole walk.
        scale: of guidance.
        strength: of an edit.
        pipe: another pipeline than the case's.
        draws: what the scheduler draws, in order.
        said: further arguments of the pipeline.
    """
    pipe = pipe or case.pipe
    walk_as(pipe, case.kind, sampler)
    told, _, first = asked(case.kind, strength)
    told |= {"prompt": PROMPTS, "negative_prompt": NEGATIVE, "guidance_scale": scale, "output_type": "pt"}
    if told.get("strength", 1) == 1 and (
        case.kind == "upscaler" or "mask_image" in told or "image" not in told
    ):
        told["latents"] = from_noise(pipe, steps, prior())
        first = first if case.kind == "upscaler" else []
    with drawing(pipe, *first, *draws):
        return 2 * pipe(**{**told, **said}, num_inference_steps=steps).images - 1


def ours(
    case: Case,
    sampler: str,
    steps: int,
    scale: float = 7.5,
    strength: float | None = None,
    model: Model | None = None,
    **said: Any,
) -> Tensor:
    """The same pictures made here, with the same arguments; `said` are further ones of `generate`."""
    walk = {"sampler": sampler, "times": WALKS[sampler][0], "steps": steps, "guidance": scale, "seeds": SEEDS}
    told = {"prompt": PROMPTS, "negative": {"prompt": NEGATIVE}, **asked(case.kind, strength)[1], **said}
    return generate(model or case.model, **walk, **told).tensor
