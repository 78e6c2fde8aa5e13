"""Whole pipelines along every walk: samplers, step counts, guidance, strengths, and what is left unsaid."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sd_cases import WALKS, Case, apart, asked, drawn, ours, picture, theirs
from torch import Tensor

from sfumato.editing.image_to_image import ImageToImage

Cases = Callable[[str], Case]


@pytest.fixture(scope="module")
def first(cases: Cases) -> Case:
    return cases("sd1")


def both(case: Case, sampler: str, steps: int, **told: float) -> tuple[Tensor, Tensor]:
    """Our pictures and theirs; what our sampler draws is theirs to draw."""
    with drawn() as draws:
        mine = ours(case, sampler, steps, **told)
    return mine, theirs(case, sampler, steps, draws=draws, **told)


# Of a single step of PLMS theirs makes one estimate, ours the two of its pseudo Heun step.
COUNTS = [(name, 4) for name in sorted(WALKS)]
COUNTS += [("ddim", 1), ("dpm_solver_pp", 1), ("euler_ancestral", 1), ("unipc", 1), ("plms", 7), ("unipc", 7)]
STRENGTHS = [(name, 0.75) for name in ("ddim", "dpm_solver_pp", "euler", "euler_ancestral", "unipc")]
STRENGTHS += [("ddim", 0.3), ("unipc", 0.3), ("ddim", 1.0)]


@pytest.mark.parametrize("sampler, steps", COUNTS)
def test_every_sampler_and_number_of_steps(first: Case, sampler: str, steps: int) -> None:
    assert apart(*both(first, sampler, steps)) <= 1e-4


@pytest.mark.parametrize("sampler, strength", STRENGTHS)
def test_pictures_made_over(first: Case, sampler: str, strength: float) -> None:
    """Not by PLMS: of a walk without its first steps theirs asks the network about times that x is not of."""
    import diffusers

    parts = dict(first.pipe.components)
    over = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    over.set_progress_bar_config(disable=True)
    image = picture()
    steps = 5 if strength < 0.5 else 4
    with drawn() as draws:
        mine = ours(first, sampler, steps, edit=ImageToImage(list(image), strength))
    other = theirs(first, sampler, steps, strength=strength, pipe=over, draws=draws)
    assert apart(mine, other) <= 1e-4


@pytest.mark.parametrize("kind, scale", [("sd1", 1.0), ("sd2", 3.0), ("xl", 1.0), ("upscaler", 1.0)])
def test_guidance(cases: Cases, kind: str, scale: float) -> None:
    assert apart(*both(cases(kind), "dpm_solver_pp", 3, scale=scale)) <= 1e-4


@pytest.mark.parametrize(
    "kind, strength", [("depth", 0.4), ("inpaint", 0.5), ("refiner", 0.3), ("refiner", 1)]
)
def test_strengths_of_other_pipelines(cases: Cases, kind: str, strength: float) -> None:
    case = cases(kind)
    mine, other = both(case, "dpm_solver_pp", 5, strength=strength)
    if kind == "inpaint":
        mine = mine.where(torch.stack(asked(kind)[1]["edit"].mask) > 0, other)
    assert apart(mine, other) <= 1e-4


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_a_negative_prompt_left_out_or_empty(cases: Cases, kind: str) -> None:
    """XL makes zeros of one that is not said, and of the empty text what it makes of any text."""
    case, made = cases(kind), []
    for unsaid in (None, ["", "dog"]):
        mine = ours(case, "ddim", 2, negative=unsaid and {"prompt": unsaid})
        assert apart(mine, theirs(case, "ddim", 2, negative_prompt=unsaid)) <= 1e-4
        made.append(mine)
    assert torch.equal(made[0][0], made[1][0]) == (kind == "sd1")
    assert not torch.equal(made[0][1], made[1][1])


def test_sizes_and_scores_that_are_said(cases: Cases) -> None:
    case = cases("xl")
    mine = ours(case, "euler", 2, original_size=(48, 40), crop=(4, 2), target_size=(64, 32))
    sizes = {"original_size": (48, 40), "crops_coords_top_left": (4, 2), "target_size": (64, 32)}
    unsaid = {f"negative_{name}": value for name, value in sizes.items()}
    assert apart(mine, theirs(case, "euler", 2, **sizes, **unsaid)) <= 1e-4
    case = cases("refiner")
    mine = ours(case, "ddim", 3, aesthetic_score=7.5)
    assert apart(mine, theirs(case, "ddim", 3, aesthetic_score=7.5)) <= 1e-4


@pytest.mark.parametrize("level", [0, 350])
def test_levels_of_the_upscaler(cases: Cases, level: int) -> None:
    case = cases("upscaler")
    assert apart(ours(case, "ddim", 2, noise_level=level), theirs(case, "ddim", 2, noise_level=level)) <= 1e-4


def test_long_prompts_make_the_pictures_of_their_states(first: Case) -> None:
    """A prompt beyond 77 tokens theirs would cut; given our states it makes the same picture of all of it."""
    long = [" ".join(["a red apple and a green pear"] * 14), " ".join(["two cats on a sofa"] * 20)]
    short = [" ".join(["blurry and dark"] * 40), " ".join(["dog"] * 100)]
    mine = ours(first, "ddim", 2, prompt=long, negative={"prompt": short})
    told, unsaid = (first.model.conditioner(2, prompt=text).tokens for text in (long, short))
    assert told.shape[1] == unsaid.shape[1] == 154
    embedded = {"prompt_embeds": told, "negative_prompt_embeds": unsaid}
    other = theirs(first, "ddim", 2, prompt=None, negative_prompt=None, **embedded)
    assert apart(mine, other) <= 1e-4
