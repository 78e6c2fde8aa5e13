"""Prompt-to-prompt: the attention of the equations, and the same pictures where nothing is edited."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from network_recipes import normal
from prompted_recipes import prompted, small
from torch import Tensor

import sfumato
from sfumato.core.condition import Condition
from sfumato.core.edit import Scene, Start, Turn
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Attend, Chain, Context, Hooks, Site
from sfumato.core.region import Region
from sfumato.core.reverse import ReverseProcess
from sfumato.editing.attended import Recorder, sides_of
from sfumato.editing.local_blend import LocalBlend
from sfumato.editing.prompt_to_prompt import PromptToPrompt, _Script
from sfumato.editing.word_alignment import wordings
from sfumato.generation.generate import generate
from sfumato.guidance.classifier_free import ClassifierFree
from sfumato.guidance.perturbed_attention import PerturbedAttention
from sfumato.guidance.windows import Windows
from sfumato.interfaces.recipe import save_png
from sfumato.interfaces.replay import replay
from sfumato.networks.layers.attention import attend
from sfumato.processes.edm import EDM
from sfumato.processes.flow import Flow
from sfumato.processes.vp import VP
from sfumato.times.uniform import Uniform

SOURCE = "a red cat on the mat"
PAIRS = [
    (SOURCE, "a red dog on the mat"),
    (SOURCE, "a red tame cat on the mat"),
    (SOURCE, "a lemon on the mat"),
]
NETWORKS = ["sd_unet", "dit", "adm", "controlled"]
GUIDED = [[], [ClassifierFree(3.0)]]


def pair(model: Any, *prompts: str, **settings: Any) -> Tensor:
    return generate(model, prompt=list(prompts), **{"seeds": [7] * len(prompts), **settings}).tensor


# ---- the attention of the equations ----


def scene_of(prompts: list[str]) -> Scene:
    model = prompted()
    path = Flow()
    with torch.no_grad():
        told = small()(len(prompts), prompt=prompts).to(torch.float64)
    model.conditioner = small()
    seeds = [7] * len(prompts)
    return Scene(model, {"prompt": prompts}, told, seeds, (4, 4), (3, 4, 4), path, Uniform()(path, 10))


def probabilities(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    return scores.softmax(-1)


class Adds(Hooks):
    """What an image prompt does: something is added to what attention answers, row by row."""

    def attention(
        self, site: Site, context: Context, attend: Attend, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        return attend(q, k, v) + q


@pytest.mark.parametrize("kind", ["cross", "self"])
@pytest.mark.parametrize("method", ["replace", "refine"])
@pytest.mark.parametrize("guided, adds", [(False, False), (True, False), (True, True)])
def test_attention_is_edited_as_the_equations_say(kind: str, method: str, guided: bool, adds: bool) -> None:
    """With explicit maps, of prompts of unlike lengths, weights and a word with a part of its own."""
    prompts = [SOURCE, "a red ton on the mat"] if method == "replace" else [SOURCE, "a red tame cat on mat"]
    scene = scene_of(prompts)
    edit = PromptToPrompt(
        method, cross=1.0, cross_words={"mat": 0.0}, self_attention=1.0, weights={"red": 2.5}
    )
    script = _Script(edit, scene)
    hooks = script.hooks(Flow()(0.5))
    assert hooks is not None
    hooks = Chain(hooks, Adds()) if adds else hooks
    told = scene.condition
    assert told.mask is not None
    assert told.mask[0].sum() != told.mask[1].sum()
    if guided:
        null = small()(2).to(torch.float64)
        told = Condition.stack((null, told))
    rows, length = len(told), told.tokens.shape[1]
    heads, places, width = 2, 16, 6
    keys = length if kind == "cross" else length + places
    q, k, v = (normal(rows, heads, n, width, seed=s).double() for s, n in enumerate((places, keys, keys)))
    context = Context(torch.zeros(rows, 1), Condition(tokens=told.tokens, mask=told.mask, hooks=hooks))
    mask = torch.nn.functional.pad(told.mask, (0, keys - length), value=True)
    ours = attend(Site("here", kind), context, q, k, v, mask[:, None, None, :])

    maps = probabilities(q, k, mask)
    first = 2 if guided else 0
    source, own = maps[first], maps[first + 1]
    new = own.clone()
    moves, known = script.moves[0].double(), script.known[0].bool()
    columns = len(known)
    for n in range(columns):
        told_by_source = (source[..., :columns] * moves[:, n]).sum(-1)
        new[..., n] = told_by_source if known[n] else own[..., n]
    if kind == "self":
        new[..., length:] = source[..., length:]
    edited = wordings(scene)[1]
    new[..., edited.find("red")] *= 2.5
    new[..., edited.find("mat")] = own[..., edited.find("mat")]
    wanted = maps @ v
    wanted[first + 1] = new @ v[first + 1]
    torch.testing.assert_close(ours - q if adds else ours, wanted, rtol=1e-10, atol=1e-10)
    plain = maps @ v
    assert (plain[first + 1] - wanted[first + 1]).abs().max() > 0.01


def test_self_attention_is_the_source_s_in_small_maps_alone() -> None:
    scene = scene_of([SOURCE, "a red dog on the mat"])
    q, k, v = (normal(4, 2, 16, 6, seed=s).double() for s in range(3))
    told = Condition.stack((small()(2).to(torch.float64), scene.condition))
    for places, few in ((16, True), (15, False)):
        hooks = _Script(PromptToPrompt(places=places), scene).hooks(Flow()(1.0))
        context = Context(torch.zeros(4, 1), Condition(tokens=told.tokens, mask=told.mask, hooks=hooks))
        ours = attend(Site("here", "self"), context, q, k, v)
        wanted = probabilities(q, k, None) @ v
        if few:
            wanted[3] = probabilities(q[2], k[2], None) @ v[3]
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process", [Flow(), VP(), EDM()])
def test_parts_of_the_walk_are_whole_steps(process: Any) -> None:
    """int(N a) ≤ step < int(N b), as published, whatever the process."""
    times = Uniform()(process, 10)
    scene = Scene(None, {}, Condition(), [7], (4, 4), (3, 4, 4), process, times)
    for start, end in ((0, 0.8), (0.25, 0.5), (0, 0), (0.5, 0.5), (0, 1), (0.39, 1), (0, 0.3)):
        within = scene.between(start, end)
        on = [within(process(t)) for t in times.tolist()[:-1]]
        assert on == [int(10 * start) <= step < int(10 * end + 1e-9) for step in range(10)], (start, end)
    # Between times, where samplers of two stages ask, the part of the step around it holds.
    a, b = times[7].item(), times[8].item()
    assert scene.between(0, 0.8)(process((a + b) / 2))
    assert not scene.between(0, 0.7)(process((a + b) / 2))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", ["cross", "self"])
def test_what_is_recorded_is_the_sum_of_the_map_s_columns(guided: bool, kind: str) -> None:
    scene = scene_of([SOURCE, "a dog"])
    columns = scene.condition.tokens.shape[1]  # type: ignore[union-attr]
    groups = (normal(2, columns, 9) > 0).float()
    recorder = Recorder(scene, groups)
    told = scene.condition
    if guided:
        told = Condition.stack((small()(2).to(torch.float64), told))
    rows, keys = len(told), columns if kind == "cross" else columns + 16
    q, k, v = (normal(rows, 2, n, 4, seed=s).double() for s, n in enumerate((16, keys, keys)))
    assert told.mask is not None
    mask = torch.nn.functional.pad(told.mask, (0, keys - columns), value=True)
    context = Context(torch.zeros(rows, 1), Condition(tokens=told.tokens, mask=told.mask, hooks=recorder))
    out = attend(Site("here", kind), context, q, k, v, mask[:, None, None, :])
    context = Context(context.embedding, replace(context.condition, hooks=Chain(recorder, Adds())))
    added = attend(Site("here", kind), context, q, k, v, mask[:, None, None, :])
    torch.testing.assert_close(added, out + q)
    torch.testing.assert_close(out, probabilities(q, k, mask) @ v)
    maps = probabilities(q, k, mask)[-2:, :, :, :columns].mean(1)
    torch.testing.assert_close(recorder.sums["here"], (2 * maps @ groups.double()).float())


# ---- what leaves nothing to change ----


@pytest.mark.parametrize(
    "name, guidance, sampler",
    [
        ("sd_unet", GUIDED[1], "euler"),
        ("sd_unet", GUIDED[0], "heun"),
        ("dit", GUIDED[1], "dpm_solver_pp"),
        ("adm", GUIDED[1], "euler"),
        ("controlled", GUIDED[1], "euler"),
    ],
)
def test_the_same_prompt_is_the_same_picture_bit_for_bit(name: str, guidance: Any, sampler: str) -> None:
    model = prompted(name)
    hint = {"edges": normal(3, 8, 8).clamp(-1, 1)} if name == "controlled" else {}
    # Where text and places are attended to at once, parts of unlike length are summed apart.
    edit = PromptToPrompt(cross=0.6, self_attention=0.6)
    same = pair(model, SOURCE, SOURCE, edit=edit, guidance=guidance, sampler=sampler, **hint)
    assert torch.equal(same[0], same[1])
    # And the source is what it is without an edit.
    two = pair(model, SOURCE, "a red dog on the mat", edit=edit, guidance=guidance, sampler=sampler, **hint)
    plain = pair(model, SOURCE, "a red dog on the mat", guidance=guidance, sampler=sampler, **hint)
    assert torch.equal(two[0], plain[0])
    assert (two[1] - plain[1]).abs().max() > 1e-4
    assert (two[1] - two[0]).abs().max() > 1e-4


@pytest.mark.parametrize("name", NETWORKS[:3])
def test_no_part_of_the_walk_is_no_edit(name: str) -> None:
    model, edit = prompted(name), PromptToPrompt(cross=0.0, self_attention=0.0)
    for prompts in PAIRS:
        assert torch.equal(pair(model, *prompts, edit=edit), pair(model, *prompts))
    assert torch.equal(
        pair(
            model,
            *PAIRS[0],
            seeds=[7, 8],
            edit=PromptToPrompt(cross=0.0, self_attention=0.0, unlike_seeds=True),
        ),
        pair(model, *PAIRS[0], seeds=[7, 8]),
    )


@pytest.mark.parametrize("words", ["small", "clip"])
def test_the_whole_walk_with_equal_tokens_is_the_source(words: str) -> None:
    edit = PromptToPrompt(cross=1.0, self_attention=1.0, weights={"c": 1.0})
    prompts = ("a c on", "A  c on") if words == "small" else ("a (c:1.2) e", "a  (c:1.2) e")
    made = pair(prompted(words=words), *prompts, edit=edit, guidance=[ClassifierFree(2.0)])
    assert torch.equal(made[0], made[1])


def test_weights_of_one_are_none_and_others_are_heard() -> None:
    model = prompted()
    plain = pair(model, *PAIRS[0], edit=PromptToPrompt())
    one = pair(model, *PAIRS[0], edit=PromptToPrompt(weights={"dog": 1.0, "red": 1.0}))
    assert torch.equal(plain, one)
    said = pair(model, SOURCE, SOURCE, SOURCE, edit=PromptToPrompt(weights={"red": 3.0}))
    assert torch.equal(said[1], said[2])
    assert (said[0] - said[1]).abs().max() > 1e-4


def test_edits_do_not_see_each_other_and_long_negative_prompts_change_no_places() -> None:
    model = prompted()
    settings: dict[str, Any] = {"edit": PromptToPrompt(), "guidance": [ClassifierFree(3.0)]}
    settings["negative"] = {"prompt": "the lemon and the green mat on the dog and the cat"}
    all_at_once = pair(model, SOURCE, *(other for _, other in PAIRS), **settings)
    for row, prompts in enumerate(PAIRS, 1):
        alone = pair(model, *prompts, **settings)
        torch.testing.assert_close(all_at_once[[0, row]], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("order", [0, 1])
def test_with_perturbed_attention(order: int) -> None:
    """In either order the source is as without an edit, and the same prompt the same picture."""
    model = prompted()
    guidance: list[Any] = [ClassifierFree(2.0), PerturbedAttention(2.0)]
    guidance = guidance[:: -1 if order else 1]
    edit = LocalBlend(("cat", "dog"), edit=PromptToPrompt())
    made = pair(model, *PAIRS[0], edit=edit, guidance=guidance)
    plain = pair(model, *PAIRS[0], guidance=guidance)
    assert torch.equal(made[0], plain[0])
    assert (made[1] - plain[1]).abs().max() > 1e-4
    same = pair(model, SOURCE, SOURCE, edit=PromptToPrompt(), guidance=guidance)
    assert torch.equal(same[0], same[1])


def test_threads_do_not_mix() -> None:
    model = prompted()
    edits = [PromptToPrompt(), None, PromptToPrompt(self_attention=0.0), LocalBlend(("cat",))]
    jobs = [(edit, prompts) for prompts in PAIRS for edit in edits]

    def make(job: Any) -> Tensor:
        return pair(model, *job[1], edit=job[0])

    serial = [make(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(make, jobs))
    assert all(torch.equal(a, b) for a, b in zip(serial, together, strict=True))


# ---- local blend ----


def test_an_empty_mask_is_the_source_and_a_full_one_the_edit() -> None:
    model = prompted()
    for prompts in PAIRS[:2]:
        word = ("cat", "dog")
        words = word if "dog" in prompts[1] else ("cat",)
        nothing = pair(model, *prompts, edit=LocalBlend(words, threshold=1.0, start=0.0))
        assert torch.equal(nothing[0], nothing[1])
        everything = pair(model, *prompts, edit=LocalBlend(words, threshold=-1.0, start=0.0))
        assert torch.equal(everything, pair(model, *prompts, edit=PromptToPrompt()))
        gone = LocalBlend(words, subtract=("mat",), threshold=-1.0, subtract_threshold=-1.0)
        gone_too = pair(model, *prompts, edit=gone)
        assert torch.equal(gone_too[0], gone_too[1])


@pytest.mark.parametrize("name", NETWORKS[:3])
def test_places_outside_of_a_mask_are_the_source_s(name: str) -> None:
    edit = LocalBlend(("cat", "dog"), region=Region((2, 0, 8, 5)), threshold=0.6)
    made = pair(prompted(name), *PAIRS[0], edit=edit)
    differ = (made[0] != made[1]).any(dim=0)
    assert differ.any()
    assert not differ[5:].any()
    assert not differ[:, :2].any()
    whole = pair(prompted(name), *PAIRS[0], edit=LocalBlend(region=Region((2, 0, 8, 5))))
    inside = (whole[0] != whole[1]).any(dim=0)
    # Some of them are as white in both.
    assert 15 < inside.sum() <= 30
    assert not inside[5:].any()
    assert not inside[:, :2].any()


def test_the_mask_is_that_of_the_published_steps() -> None:
    """Sums of two layers of 4 x 4 places for x of 8 x 8, by hand: pooled, resized, cut, and united."""
    scene = scene_of([SOURCE, "a red dog on the mat"])
    blend = LocalBlend(("cat", "dog"), subtract=("mat",), side=4)
    sampler = blend.turn(scene).sampler(None)  # type: ignore[misc, arg-type]
    recorder = sampler.recorder  # type: ignore[attr-defined]
    first, second = normal(2, 16, 2, seed=1).abs(), normal(2, 16, 2, seed=2).abs()
    recorder.sums = {"one": first, "two": second, "large": normal(2, 64, 2)}
    sampler._choose(recorder)  # type: ignore[attr-defined]
    assert set(recorder.sums) == {"one", "two"}
    ours = sampler._mask((8, 8))  # type: ignore[attr-defined]
    mean = (first + second) / 2
    masks = []
    for row in range(2):
        word, other = (mean[row, :, i].view(4, 4) for i in range(2))
        wide = torch.stack(
            [word[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max() for y in range(4) for x in range(4)]
        ).view(4, 4)
        masks.append((wide / wide.max() > 0.3, other / other.max() > 0.3))
    both, subtracted = masks[0][0] | masks[1][0], masks[0][1] | masks[1][1]
    wanted = (both & ~subtracted).repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(ours[1, 0], wanted.float())
    assert 0 < wanted.sum() < 64


def test_sides_of_maps() -> None:
    assert sides_of(256, (64, 64)) == (16, 16)
    assert sides_of(24, (16, 24)) == (4, 6)
    with pytest.raises(InvalidInput, match="no smaller map"):
        sides_of(60, (64, 64))


# ---- through the doors ----


def test_it_is_replayed_from_its_recipe(tmp_path: Path) -> None:
    sfumato.save(prompted(), tmp_path / "m")
    model = sfumato.load(tmp_path / "m")
    edits: list[Any] = [
        {"name": "prompt_to_prompt", "cross": [0.1, 0.9], "weights": {"dog": 2}, "cross_words": {"dog": 0.5}},
        LocalBlend(("cat", "dog"), ("red",), Region((0, 0, 8, 4)), PromptToPrompt(self_attention=0.0)),
        {"name": "local_blend", "words": ["dog"], "edit": {"name": "prompt_to_prompt", "method": "refine"}},
    ]
    for edit in edits:
        made = sfumato.generate(model, prompt=list(PAIRS[0]), seeds=[7, 7], edit=edit, size=8)
        assert "unrecorded" not in made.recipe
        for row in range(2):
            path = save_png(made.images[row], made.recipes[row], tmp_path / "out")
            assert replay(path).identical, edit
    lost = generate(
        model,
        prompt=list(PAIRS[0]),
        seeds=[7, 7],
        edit=LocalBlend(region=Region(mask=torch.ones(8, 8))),
    )
    assert lost.recipe["unrecorded"] == ["edit.region"]


def test_memory_is_planned_for_all_rows_together() -> None:
    model = prompted("adm")
    asked: dict[str, Any] = {"prompt": list(PAIRS[0]), "seeds": [7, 7], "size": 32}
    plain, edited = sfumato.plan(model, **asked), sfumato.plan(model, **asked, edit=PromptToPrompt())
    assert edited.walk > plain.walk
    assert edited.batch == 2
    with pytest.raises(InvalidInput, match="walked together"):
        generate(model, **asked, edit=PromptToPrompt(), batch=1)


def test_an_edit_may_start_elsewhere_with_another_null() -> None:
    """The door that inversions use: an x of its own, and a null for each level."""
    model = prompted()
    asked: dict[str, Any] = {"prompt": SOURCE, "seed": 3, "guidance": [ClassifierFree(4.0)]}
    x = normal(1, 3, 8, 8)

    class Elsewhere:
        def turn(self, scene: Scene) -> Turn:
            null = model.conditioner(1, prompt="the mat")

            def begin(start: Start) -> Start:
                early, late = start.guided(start.null), start.guided(null)

                def chosen(x: Tensor, level: Any, condition: Condition) -> Any:
                    return (early if level.sigma > 0.5 else late)(x, level, condition)

                reverse = ReverseProcess(chosen, start.reverse.process, start.reverse.condition)
                return Start(reverse, x, start.times[1:], start.sampler, null, start.guided)

            return Turn(begin=begin)

    made = generate(model, **asked, edit=Elsewhere())
    assert made.recipe["unrecorded"] == ["edit"]
    grid = Uniform()(Flow(), 5).tolist()[1:]
    with torch.no_grad():
        told = model.conditioner(1, prompt=SOURCE)
        for t, s in pairwise(grid):
            null = model.conditioner.null(told) if t > 0.5 else model.conditioner(1, prompt="the mat")
            x0 = ClassifierFree(4.0)(model.denoiser, null)(x, Flow()(t), told).x0
            x = x + (s - t) * (x - x0) / t
    torch.testing.assert_close(made.tensor, x.clamp(-1, 1), rtol=1e-4, atol=1e-4)


# ---- refusals ----


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"prompt": SOURCE, "seeds": [7]}, "no source"),
        ({"seeds": [7, 8]}, r"seeds=\[7, 7\]"),
        ({"edit": PromptToPrompt(weights={"lemon": 2.0})}, "'lemon' does not stand in 'a red dog"),
        ({"edit": PromptToPrompt(cross_words={"cat": 0.5})}, "'cat' does not stand in"),
        (
            {"edit": PromptToPrompt("replace"), "prompt": ["a cat", "a red cat"]},
            "2 words are not replaced by 3",
        ),
        ({"edit": PromptToPrompt(places=3)}, "at most 3 places: the smallest has 16"),
        ({"edit": LocalBlend(("lemon",))}, "'lemon' does not stand in"),
        ({"edit": LocalBlend(("cat",)), "guidance": [Windows(4, 2)]}, "windows"),
        ({"edit": LocalBlend(region=Region((8, 0, 9, 9)))}, "no pixel of a picture of 8 x 8"),
    ],
)
def test_what_cannot_be_edited(more: dict[str, Any], match: str) -> None:
    asked: dict[str, Any] = {"prompt": list(PAIRS[0]), "seeds": [7, 7], "edit": PromptToPrompt()}
    with pytest.raises(InvalidInput, match=match):
        generate(prompted(), **{**asked, **more})


def test_a_network_that_attends_to_nothing(tiny: Any) -> None:
    with pytest.raises(InvalidInput, match="attends to no prompt"):
        generate(tiny, concept="cat", seeds=[7, 7], edit=PromptToPrompt())
    deaf = prompted()
    deaf.denoiser.network = type(deaf.denoiser.network)(
        in_channels=3,
        out_channels=3,
        channels=32,
        multipliers=(1,),
        blocks=1,
        attention=(),
        heads=2,
        tokens=0,
    )
    for edit in (PromptToPrompt(self_attention=0.0), LocalBlend(("cat",), edit=PromptToPrompt())):
        with pytest.raises(InvalidInput, match=r"attends to the prompt|tokens"):
            generate(deaf, prompt=list(PAIRS[0]), seeds=[7, 7], edit=edit)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PromptToPrompt(cross=1.1),
        lambda: PromptToPrompt(self_attention=(0.5, 0.4)),
        lambda: PromptToPrompt(cross_words={"cat": (-0.1, 1.0)}),
        lambda: PromptToPrompt("swap"),  # type: ignore[arg-type]
        lambda: PromptToPrompt(weights={"cat": float("nan")}),
        lambda: PromptToPrompt(places=0),
        lambda: LocalBlend(),
        lambda: LocalBlend("cat"),  # type: ignore[arg-type]
        lambda: LocalBlend(("cat",), start=2.0),
        lambda: LocalBlend(("cat",), edit=3),  # type: ignore[arg-type]
    ],
)
def test_settings_that_are_none(wrong: Any) -> None:
    with pytest.raises(InvalidInput):
        wrong()
