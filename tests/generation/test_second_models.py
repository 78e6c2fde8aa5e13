"""Second models that a guidance names by path: a classifier, or any other model, from generate to replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sfumato
from sfumato.checkpoints import native
from sfumato.checkpoints.load import load
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput, NotFound
from sfumato.generation import memory
from sfumato.generation.generate import generate as walk
from sfumato.guidance.auto import Auto
from sfumato.guidance.classifier import Classifier
from sfumato.guidance.interval import Interval
from sfumato.interfaces.cli import main
from sfumato.interfaces.looking import inspect
from sfumato.interfaces.recipe import encode, read_recipe, save_png, texts_of
from sfumato.interfaces.replay import replay
from sfumato.model import Model

CLASSES = ["shirt", "sneaker", "bag"]


def fresh(seed: int, description: dict[str, Any], card: dict[str, Any] | None = None) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Model.from_description(description, card)
        for parameter in model.denoiser.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def classifier(seed: int = 0, **more: Any) -> Model:
    network = {"name": "adm_classifier", "size": 8, "classes": 3, "channels": 32, "head_channels": 16}
    network |= {"multipliers": [1, 2], "attention": [2]}
    conditioner = {"name": "class_label", "labels": {"label": CLASSES}}
    parts = {"network": network, "process": "vp", "classifies": "label", "conditioner": conditioner}
    model = fresh(seed, {**parts, "space": {"name": "pixel", "patch": 2}, **more})
    with torch.no_grad():
        # A fresh network hardly tells one picture from another.
        model.denoiser.network.out[-1].c_proj.weight *= 50
    return model


@pytest.fixture
def unconditional() -> Model:
    network = {
        "name": "adm",
        "in_channels": 12,
        "out_channels": 12,
        "channels": 32,
        "multipliers": [1],
        "attention": [],
    }
    return fresh(
        1,
        {
            "network": network,
            "process": "vp",
            "prediction": "velocity",
            "space": {"name": "pixel", "patch": 2},
        },
        {"size": [16, 16], "steps": 5},
    )


@pytest.fixture
def folder(tmp_path: Path, unconditional: Model) -> Path:
    """A folder with an unconditional model and a classifier of what it makes."""
    native.save(unconditional, tmp_path / "model")
    network = {"name": "adm_classifier", "in_channels": 12, "size": 8, "classes": 3, "channels": 32}
    network |= {"multipliers": [1, 2], "attention": [2], "head_channels": 16}
    native.save(classifier(network=network), tmp_path / "classifier")
    return tmp_path


def steered(folder: Path, scale: float = 20.0, **more: Any) -> dict[str, Any]:
    return {"name": "classifier", "scale": scale, "model": str(folder / "classifier"), **more}


# Pictures ---------------------------------------------------------------------------------------------------


def test_an_unconditional_model_is_steered_by_the_input_of_the_classifier(folder: Path) -> None:
    """The class that the classifier sees in what was made becomes likelier."""
    model, judge = load(folder / "model"), load(folder / "classifier")

    def seen(**settings: Any) -> torch.Tensor:
        pictures = sfumato.generate(model, seed=3, count=4, steps=20, **settings).tensor
        with torch.no_grad():
            x = judge.space.encode(pictures)
            return judge.denoiser.logits(x, model.process(0.05)).log_softmax(1)

    plain = seen()
    for k, name in enumerate(CLASSES):
        rise = (seen(guidance=steered(folder, 10.0), label=name) - plain)[:, k]
        assert (rise >= 0).all()
        assert rise.mean() > 0.2
    assert torch.equal(seen(guidance=steered(folder, 0.0), label="bag"), plain)


def test_each_picture_has_its_own_class_and_is_the_same_alone(folder: Path) -> None:
    model = load(folder / "model")
    labels = ["bag", None, "shirt"]
    settings: dict[str, Any] = {"guidance": steered(folder)}
    together = sfumato.generate(model, seeds=[5, 6, 7], label=labels, **settings).tensor
    for row, (seed, label) in enumerate(zip([5, 6, 7], labels, strict=True)):
        alone = (
            sfumato.generate(model, seed=seed)
            if label is None
            else sfumato.generate(model, seed=seed, label=label, **settings)
        )
        torch.testing.assert_close(together[row], alone.tensor[0], rtol=0, atol=1e-3)
    parts = sfumato.generate(model, seeds=[5, 6, 7], label=labels, batch=2, **settings).tensor
    torch.testing.assert_close(parts, together, rtol=0, atol=1e-3)


def test_path_loaded_model_and_function_say_the_same(folder: Path) -> None:
    model, judge = load(folder / "model"), load(folder / "classifier")
    told = judge.denoiser.likelihood(torch.tensor([[0.0, 0.0, 1.0]]))
    by_path = sfumato.generate(model, seed=1, guidance=steered(folder), label="bag")
    loaded = sfumato.generate(model, seed=1, guidance=Classifier(20.0, judge), label="bag")
    function = sfumato.generate(model, seed=1, guidance=Classifier(20.0, told))
    assert torch.equal(by_path.tensor, loaded.tensor)
    assert torch.equal(by_path.tensor, function.tensor)
    assert loaded.recipes[0]["guidance"] == by_path.recipes[0]["guidance"]
    assert function.recipes[0]["unrecorded"] == ["guidance.model"]
    assert "unrecorded" not in by_path.recipes[0]


def test_the_card_may_name_a_classifier_and_a_guidance_may_hold_one(folder: Path) -> None:
    model = load(folder / "model")
    plain = sfumato.generate(model, seed=1, label="bag", guidance=steered(folder)).tensor
    inside = {"name": "interval", "guidance": steered(folder)}
    assert torch.equal(sfumato.generate(model, seed=1, label="bag", guidance=inside).tensor, plain)
    model.card["guidance"] = [steered(folder)]
    assert torch.equal(sfumato.generate(model, seed=1, label="bag").tensor, plain)


def test_a_conditional_model_is_told_and_judged(tiny: Model, tmp_path: Path) -> None:
    """A classifier of one of the inputs the denoiser heeds: said once, heard by both."""
    network = {"name": "adm_classifier", "size": 16, "classes": 3, "channels": 32, "head_channels": 16}
    network |= {"multipliers": [1, 2], "attention": []}
    labels = {"concept": ["red apple", "cat", "lemon"]}
    conditioner = {"name": "class_label", "labels": labels}
    judge = classifier(network=network, classifies="concept", conditioner=conditioner, space="pixel")
    native.save(judge, tmp_path / "judge")
    said = {"seed": 2, "concept": "cat", "style": "noto"}
    guidance = ["classifier_free", {"name": "classifier", "scale": 30.0, "model": str(tmp_path / "judge")}]
    plain = sfumato.generate(tiny, guidance=guidance[:1], **said).tensor
    both = sfumato.generate(tiny, guidance=guidance, **said).tensor
    # Guided inside classifier-free guidance the batch is told twice: the same sum.
    inner = sfumato.generate(tiny, guidance=guidance[::-1], **said).tensor
    assert (both - plain).abs().max() > 0.01
    torch.testing.assert_close(inner, both, rtol=0, atol=1e-3)


# Recipes ----------------------------------------------------------------------------------------------------


def make(folder: Path, **settings: Any) -> list[Path]:
    given = {"guidance": steered(folder), "label": "bag", "seed": 4, **settings}
    images = sfumato.generate(load(folder / "model"), **given)
    pairs = zip(images.images, images.recipes, strict=True)
    return [save_png(image, recipe, folder / "out") for image, recipe in pairs]


@pytest.mark.parametrize(
    "settings", [{}, {"count": 3, "label": ["bag", None, "shirt"]}, {"sampler": {"name": "ddim", "eta": 1.0}}]
)
def test_replay_gives_the_same_bytes(folder: Path, settings: dict[str, Any]) -> None:
    for path in make(folder, **settings):
        result = replay(path)
        assert result.identical
        assert result.pixels_differ == 0


def test_the_recipe_names_path_and_hash(folder: Path) -> None:
    (path,) = make(folder)
    recipe = read_recipe(path)
    place = str(folder / "classifier")
    assert recipe["guidance"] == [steered(folder)]
    assert recipe["second_models"] == {place: native.hash_of(folder / "classifier" / "model.safetensors")}
    assert recipe["inputs"] == {"label": "bag"}


def test_replay_refuses_another_classifier(folder: Path) -> None:
    (path,) = make(folder)
    native.save(load(folder / "classifier"), folder / "kept")
    other = load(folder / "classifier")
    with torch.no_grad():
        next(other.denoiser.parameters()).add_(1)
    native.save(other, folder / "classifier")
    with pytest.raises(InvalidInput, match=r"made with weights \w{12}…, but .*classifier holds \w{12}…"):
        replay(path)
    native.save(load(folder / "kept"), folder / "classifier")
    assert replay(path).identical
    recipe = read_recipe(path)
    del recipe["second_models"]
    path.write_bytes(encode(Image.open(path), texts_of(recipe)))
    with pytest.raises(InvalidInput, match="made with weights None"):
        replay(path)


def test_what_a_recipe_cannot_hold_is_not_replayed(folder: Path) -> None:
    told = classifier().denoiser
    path, *_ = make(folder, guidance=Classifier(0.0, told), label=None)
    with pytest.raises(InvalidInput, match=r"a recipe cannot hold: guidance\.model"):
        replay(path)


# Any second model -------------------------------------------------------------------------------------------


def test_a_guidance_may_ask_any_other_model(folder: Path, unconditional: Model) -> None:
    """A field called model is all it takes: the path is read, recorded and replayed."""
    with torch.no_grad():
        for parameter in unconditional.denoiser.parameters():
            parameter.mul_(0.9)
    native.save(unconditional, folder / "weak")
    told = {"name": "auto", "model": str(folder / "weak")}
    (path,) = make(folder, guidance=[told], label=None)
    recipe = read_recipe(path)
    assert recipe["guidance"] == [told]
    assert list(recipe["second_models"]) == [str(folder / "weak")]
    assert replay(path).identical
    (same,) = make(folder, guidance=[{**told, "scale": 1.0}], label=None)
    (plain,) = make(folder, guidance=[], label=None)
    assert Image.open(same).tobytes() == Image.open(plain).tobytes() != Image.open(path).tobytes()


def test_a_model_named_twice_is_read_once(folder: Path) -> None:
    read: list[str] = []

    def once(path: str) -> Model:
        read.append(path)
        return load(path)

    walk(load(folder / "model"), guidance=[steered(folder), steered(folder)], label="bag", load=once)
    assert read == [str(folder / "classifier")]
    sfumato.generate(load(folder / "model"), guidance=steered(folder), label="bag", load=once)
    assert len(read) == 2


# Refusals ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, judge = load(folder / "model"), load(folder / "classifier")
    monkeypatch.setattr("sfumato.generation.generate._batch", lambda *given: pytest.fail("work was done"))

    def refused(match: str, kind: type[Exception] = InvalidInput, on: Model = model, **settings: Any) -> None:
        with pytest.raises(kind, match=match):
            sfumato.generate(on, **{"guidance": steered(folder), "label": "bag", **settings})

    refused("a classifier makes no pictures", on=judge)
    refused("label: the classifier is told no class", label=None)
    refused("unknown label 'bog'.*bag", label="bog")
    refused("colour: this model is unconditional", colour="red")
    refused("label: this model is unconditional and heeds no inputs", guidance=[])
    refused(
        "no such file or folder", NotFound, guidance={"name": "classifier", "model": str(folder / "none")}
    )
    refused("no classifier is given", guidance="classifier", label=None)
    refused("this is no classifier", guidance=Classifier(1.0, model), label=None)
    weaker = {"name": "auto", "model": str(folder / "classifier")}
    refused("a classifier makes no pictures", guidance=weaker)
    refused("has the space .*pixel", guidance=Classifier(1.0, classifier(space="pixel")))
    told = fresh(0, {**model.describe(), "conditioner": judge.describe()["conditioner"]})
    refused("has the conditioner .*sneaker.*the model walked has .*nothing", guidance=Auto(2.0, told))
    refused("a map of 12 x 12 for a classifier of 8 x 8", size=24)
    with pytest.raises(InvalidInput, match="is a path"):
        walk(model, guidance=Interval(guidance=Classifier(1.0, "runs/classifier")), label="bag")


def test_the_memory_of_the_classifier_is_counted(folder: Path) -> None:
    from sfumato.generation.second_models import bind

    model, judge = load(folder / "model"), load(folder / "classifier")
    nothing = Condition()
    with torch.inference_mode():
        guidance = bind([Classifier(1.0, judge)], 1, {"label": ["bag"]}, measured=True)
        plain = memory.bytes_per_sample(model.denoiser, [], (12, 8, 8), nothing, nothing)
        counted = memory.bytes_per_sample(model.denoiser, guidance, (12, 8, 8), nothing, nothing)
    # The features of all its stages are kept for the gradient: some hundred maps of 32 and 64 channels.
    assert counted > plain + 50 * 4 * 32 * 64
    assert all(not p.is_meta for p in judge.denoiser.parameters())


def test_a_classifier_in_training_mode_is_asked_in_evaluation_mode(folder: Path) -> None:
    network = {**load(folder / "classifier").describe()["network"], "dropout": 0.5}
    judge = classifier(network=network)
    model = load(folder / "model")
    settings: dict[str, Any] = {"guidance": Classifier(20.0, judge), "label": "bag", "seed": 1}
    still = sfumato.generate(model, **settings).tensor
    judge.denoiser.network.train()
    assert torch.equal(sfumato.generate(model, **settings).tensor, still)
    assert judge.denoiser.network.training


# Files and commands -----------------------------------------------------------------------------------------


def test_a_classifier_is_saved_loaded_and_inspected(folder: Path) -> None:
    judge = load(folder / "classifier")
    x, level = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(0)), judge.process(0.4)
    native.save(judge, folder / "again")
    with torch.no_grad():
        assert torch.equal(load(folder / "again").denoiser.logits(x, level), judge.denoiser.logits(x, level))
    told = inspect(folder / "classifier")
    assert told["classifies"] == "label"
    assert told["inputs"] == {"label": "3: shirt, sneaker, bag"}
    assert told["keys"].endswith("tensors fit")
    record = json.loads((folder / "classifier" / "model.json").read_text())
    record["model"]["prediction"] = "noise"
    (folder / "classifier" / "model.json").write_text(json.dumps(record))
    with pytest.raises(InvalidInput, match=r"unknown key 'model\.prediction'"):
        load(folder / "classifier")


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(folder / "model"), "--seed", "4", "--out", str(folder / "cli"), "--json"]
    guidance = ["--guidance", json.dumps(steered(folder))]
    assert main([*words, "--label", "bag", *guidance]) == 0
    path = Path(json.loads(capsys.readouterr().out)["path"])
    assert Image.open(path).tobytes() == Image.open(make(folder)[0]).tobytes()
    assert main(["replay", str(path), "--out", str(folder / "again")]) == 0
    assert "identical bytes" in capsys.readouterr().err
    assert main([*words, "--lable", "bag", *guidance]) == 2
    assert main([*words, "--label", "bag"]) == 2
    assert "neither an option nor an input of this model" in capsys.readouterr().err
    assert main(["generate", str(folder / "classifier"), "--label", "bag"]) == 2
    assert "a classifier makes no pictures" in capsys.readouterr().err
