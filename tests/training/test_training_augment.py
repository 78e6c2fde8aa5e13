"""Augmentation that does not leak: exact where it can be, and told in full."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_toys import Points, Toy

from sfumato.conditioners.augmented import LABELS, Augmented
from sfumato.conditioners.class_label import ClassLabel
from sfumato.conditioners.semantic_map import SemanticMap
from sfumato.core.condition import Condition
from sfumato.core.denoiser import NetworkDenoiser
from sfumato.core.errors import InvalidInput, RunChanged
from sfumato.core.noise import Noise
from sfumato.core.prediction import Flow as FlowPrediction
from sfumato.core.reverse import ReverseProcess
from sfumato.core.sampler import sample
from sfumato.data.item import Batch
from sfumato.generation.generate import generate
from sfumato.model import Model
from sfumato.networks.adm import ADM
from sfumato.networks.dit import DiT
from sfumato.networks.mlp import MLP
from sfumato.processes.flow import Flow
from sfumato.registry import build, describe
from sfumato.samplers.heun import Heun
from sfumato.spaces.pixel import Pixel
from sfumato.times.uniform import Uniform as UniformTimes
from sfumato.training.augment import _ANALYSIS, _SYNTHESIS, Augment, resample
from sfumato.training.ema import Average
from sfumato.training.objectives.denoising import Denoising
from sfumato.training.optimizers import AdamW
from sfumato.training.settings import Saving, Settings, Validating
from sfumato.training.trainer import Trainer

XFLIP, YFLIP, SCALE, COSINE, SINE, ALONG, UP, RIGHT, DOWN = range(9)


def pictures(count: int, height: int, width: int, seed: int = 0, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, height, width, generator=generator, dtype=torch.float64)


def told(count: int = 3, **values: float) -> Tensor:
    labels = torch.zeros(count, 9, dtype=torch.float64)
    for name, value in values.items():
        labels[:, globals()[name]] = value
    return labels


def turned(angle: float) -> dict[str, float]:
    return {"COSINE": math.cos(angle) - 1, "SINE": math.sin(angle)}


def test_nothing_happens_at_chance_0_bit_for_bit() -> None:
    images, noise = pictures(50, 8, 12), Noise(range(50))
    changed, labels = Augment(p=0)(images, noise)
    assert torch.equal(changed, images)
    assert not labels.any()
    # And rows that are left alone come back bit for bit beside rows that are not.
    changed, labels = Augment(p=0.2, xflip=False)(images, noise)
    alone = ~labels.any(1)
    assert 0 < alone.sum() < 50
    assert torch.equal(changed[alone], images[alone])
    assert not any(torch.equal(a, b) for a, b in zip(changed[~alone], images[~alone], strict=True))


def test_flips_are_exact_and_twice_is_nothing() -> None:
    images, augment = pictures(3, 8, 12), Augment()
    assert torch.equal(augment.apply(images, told(XFLIP=1)), images.flip(3))
    assert torch.equal(augment.apply(images, told(YFLIP=1)), images.flip(2))
    both = told(XFLIP=1, YFLIP=1)
    assert torch.equal(augment.apply(augment.apply(images, both), both), images)


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("side", [7, 12])
def test_a_quarter_turn_is_exact(quarters: int, side: int) -> None:
    images = pictures(3, side, side)
    changed = Augment().apply(images, told(**turned(quarters * math.pi / 2)))
    torch.testing.assert_close(changed, images.rot90(quarters, (2, 3)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("right, down", [(1, 0), (0, 3), (-2, 4), (-13, 9), (40, 0)])
def test_a_whole_shift_is_exact_and_goes_on_mirrored(right: int, down: int) -> None:
    images = pictures(3, 8, 12)
    changed = Augment().apply(images, told(RIGHT=right / (12 * 0.125), DOWN=down / (8 * 0.125)))

    def mirrored(side: int, by: int) -> list[int]:
        period = 2 * (side - 1)
        return [min((i - by) % period, (by - i) % period) for i in range(side)]

    expected = images[:, :, mirrored(8, down)][:, :, :, mirrored(12, right)]
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-10)


def test_the_filters_bring_back_what_they_made_finer() -> None:
    """Biorthogonal: Σ_n analysis[n] synthesis[n - 2k] = 1 at k = 0 and 0 elsewhere; both keep a constant."""
    analysis = [*_ANALYSIS, *_ANALYSIS[-2::-1]]
    synthesis = [*_SYNTHESIS, *_SYNTHESIS[-2::-1]]
    for k in range(-5, 6):
        pairs = [
            a * synthesis[n - 4 - 2 * k + 3]
            for n, a in enumerate(analysis)
            if 0 <= n - 4 - 2 * k + 3 < len(synthesis)
        ]
        assert sum(pairs) == pytest.approx(float(k == 0), abs=1e-12)
    assert sum(analysis) == pytest.approx(1, abs=1e-12)
    assert sum(synthesis[::2]) == pytest.approx(sum(synthesis[1::2]), abs=1e-12)


def waves(places: Tensor, cut: float, seed: int = 0) -> Tensor:
    """Pictures (B, 1, H, W) of waves up to a share of the finest there are, at places (B, H, W, 2)."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.zeros(places.shape[:3], dtype=torch.float64)
    for _ in range(6):
        frequency = (2 * torch.rand(len(places), 2, generator=generator).double() - 1) * cut * math.pi
        phase = 2 * math.pi * torch.rand(len(places), generator=generator).double()
        out = out + (torch.einsum("bhwi,bi->bhw", places, frequency) + phase[:, None, None]).cos()
    return out[:, None] / 3**0.5


def test_pictures_without_the_finest_waves_are_seen_as_they_are() -> None:
    """Against the waves themselves at the moved places: a third of the error of plain bilinear sampling."""
    side, count = 48, 16
    labels = Augment(p=1).labels(Noise(range(count)))
    labels[:, :2] = 0
    inverse = Augment()._inverse(labels.double(), side, side)
    line = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    still = torch.stack((x, y, torch.ones_like(x)), dim=-1)
    places = still[..., :2].expand(count, -1, -1, -1)
    moved = torch.einsum("bij,hwj->bhwi", inverse, still)
    # Only places that come from inside the frame: waves do not go on mirrored.
    inside = (moved.abs() < side / 2 - 6).all(-1)[:, None]
    assert inside.float().mean() > 0.2
    images, truth = waves(places, 0.3), waves(moved, 0.3)

    def error(seen: Tensor) -> float:
        return float((seen - truth)[inside].pow(2).mean().sqrt())

    plain = nn.functional.grid_sample(
        images, moved / (side / 2), "bilinear", "reflection", align_corners=False
    )
    assert error(resample(images, inverse)) < 0.02
    assert error(resample(images, inverse)) < error(plain) / 3


def test_what_is_finer_than_the_new_pixels_is_smoothed_away() -> None:
    """A checkerboard made smaller by half: sampled plainly it stays one, or turns all white."""
    side = 32
    board = ((torch.arange(side)[:, None] + torch.arange(side)) % 2).double() * 2 - 1
    labels = told(1, SCALE=-1)
    smaller = Augment(scale=1.0).apply(board[None, None], labels)
    assert smaller[..., 8:24, 8:24].abs().max() < 0.15


@pytest.mark.parametrize(
    "labels, matrix",
    [
        ({"SCALE": 1.5}, [[2**0.3, 0], [0, 2**0.3]]),
        (turned(0.7), [[math.cos(0.7), math.sin(0.7)], [-math.sin(0.7), math.cos(0.7)]]),
        ({"ALONG": 2.0}, [[2**0.4, 0], [0, 2**-0.4]]),
        ({"ALONG": -2.0}, [[2**-0.4, 0], [0, 2**0.4]]),
        ({"UP": 2.0}, [[2**-0.4, 0], [0, 2**0.4]]),
        # Along the diagonal that rises to the right; below zero, squeezed along it.
        (
            {"ALONG": 2**0.5, "UP": 2**0.5},
            [
                [(2**0.4 + 2**-0.4) / 2, (2**-0.4 - 2**0.4) / 2],
                [(2**-0.4 - 2**0.4) / 2, (2**0.4 + 2**-0.4) / 2],
            ],
        ),
        (
            {"ALONG": -(2**0.5), "UP": -(2**0.5)},
            [
                [(2**0.4 + 2**-0.4) / 2, (2**0.4 - 2**-0.4) / 2],
                [(2**0.4 - 2**-0.4) / 2, (2**0.4 + 2**-0.4) / 2],
            ],
        ),
    ],
)
def test_labels_say_what_becomes_of_a_place(labels: dict[str, float], matrix: list[list[float]]) -> None:
    """By hand, in pixels to the right and down: the inverse undoes it, shift included."""
    inverse = Augment()._inverse(told(1, **labels, RIGHT=0.4, DOWN=-0.8), 20, 10)[0]
    forward = torch.tensor(matrix, dtype=torch.float64)
    place = torch.tensor([3.0, -2.0], dtype=torch.float64)
    moved = forward @ place + torch.tensor([10 * 0.125 * 0.4, 20 * 0.125 * -0.8], dtype=torch.float64)
    torch.testing.assert_close(inverse[:, :2] @ moved + inverse[:, 2], place)


def test_labels_tell_every_change_from_every_other() -> None:
    """Two rows of unlike pictures have unlike labels, stretches and squashes along one axis among them."""
    labels = Augment(p=1).labels(Noise(range(2000))).double()
    inverse = Augment()._inverse(labels, 32, 32).flatten(1)
    near = torch.cdist(labels[:, 2:], labels[:, 2:]) + torch.eye(2000) * 9
    apart = torch.cdist(inverse[:, [0, 1, 3, 4]], inverse[:, [0, 1, 3, 4]])
    # A continuous map: no pair of close labels is far apart in what it does.
    assert (apart / near).max() < 3


def test_chances_and_sizes_are_what_is_asked() -> None:
    count = 40000
    labels = Augment(p=0.3).labels(Noise(range(count))).double()
    share = (labels != 0).double().mean(0)
    expected = torch.tensor([0.5, 0.15, 0.3, 0.3, 0.3, 0.3, 0.15, 0.3, 0.3], dtype=torch.float64)
    torch.testing.assert_close(share, expected, rtol=0, atol=0.01)
    scale = labels[labels[:, SCALE] != 0, SCALE]
    assert scale.mean().abs() < 0.03
    assert scale.std().item() == pytest.approx(1, abs=0.03)
    angle = torch.atan2(labels[:, SINE], labels[:, COSINE] + 1)[labels[:, SINE] != 0]
    assert torch.histc(angle, 8, -math.pi, math.pi).div(len(angle)).sub(1 / 8).abs().max() < 0.015
    stretched = labels[labels[:, UP] != 0]
    assert torch.hypot(stretched[:, ALONG], stretched[:, UP]).pow(2).mean().item() == pytest.approx(
        1, abs=0.05
    )
    slope = torch.atan(stretched[:, UP] / stretched[:, ALONG])
    assert torch.histc(slope, 8, -math.pi / 2, math.pi / 2).div(len(slope)).sub(1 / 8).abs().max() < 0.015
    # Each by its own chance.
    together = ((labels[:, SCALE] != 0) & (labels[:, RIGHT] != 0)).double().mean().item()
    assert together == pytest.approx(0.09, abs=0.006)


def test_each_can_be_left_out() -> None:
    off: dict[str, Any] = {
        "xflip": False, "yflip": False, "scale": 0.0, "rotate": 0.0, "anisotropy": 0.0, "translate": 0.0,
    }  # fmt: skip
    columns = {
        "xflip": [0],
        "yflip": [1],
        "scale": [2],
        "rotate": [3, 4],
        "anisotropy": [5, 6],
        "translate": [7, 8],
    }
    noise = Noise(range(64))
    assert not Augment(p=1, **off).labels(noise).any()
    for name, here in columns.items():
        only = Augment(p=1, **{key: value for key, value in off.items() if key != name}).labels(noise)
        assert torch.equal(only.any(0).nonzero().flatten(), torch.tensor(here)), name


def test_a_row_depends_on_its_seed_alone() -> None:
    images, augment = pictures(16, 9, 9), Augment(p=0.5)
    whole, labels = augment(images, Noise(range(16)))
    half, labels_half = augment(images[8:], Noise(range(8, 16)))
    assert torch.equal(labels[8:], labels_half)
    torch.testing.assert_close(whole[8:], half, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"p": 1.5}, {"p": -0.1}, {"scale": -1.0}, {"translate": math.inf}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="augment"):
        Augment(**wrong)  # type: ignore[arg-type]


# The conditioner, and the networks that are told.

CLASSES = {"kind": ["left", "right"]}


def test_the_conditioner_says_zeros_unless_it_is_told() -> None:
    inner = ClassLabel(CLASSES)
    augmented = Augmented(inner)
    said = augmented(3, kind=["left", "right", None])
    assert torch.equal(said.vector[:, :2], inner(3, kind=["left", "right", None]).vector)
    assert said.vector.shape == (3, 2 + LABELS)
    assert not said.vector[:, 2:].any()
    labels = torch.randn(3, LABELS)
    after = augmented.told(said, labels)
    assert torch.equal(after.vector, torch.cat((said.vector[:, :2], labels), 1))
    # The null forgets what is asked, not what was done to the picture.
    null = augmented.null(after)
    assert torch.equal(null.vector, torch.cat((torch.zeros(3, 2), labels), 1))
    assert augmented.inputs == ("kind",)
    with pytest.raises(InvalidInput, match="left"):
        augmented.check(kind="lefft")
    alone = Augmented()
    assert torch.equal(alone(2).vector, torch.zeros(2, LABELS))
    assert torch.equal(alone.null(alone.told(alone(3), labels)).vector, labels)
    with pytest.raises(InvalidInput, match="already"):
        Augmented(alone)  # type: ignore[arg-type]


def test_a_model_with_it_is_described_and_built() -> None:
    settings = {"name": "augmented", "conditioner": {"name": "class_label", "labels": CLASSES}}
    assert describe(build("conditioner", settings)) == settings
    assert describe(build("conditioner", "augmented")) == {"name": "augmented"}
    objective = {"name": "denoising", "augment": {"p": 0.15, "rotate": 0.25}}
    assert describe(build("objective", objective)) == objective
    assert build("objective", objective).augment == Augment(0.15, rotate=0.25)
    assert build("objective", {"name": "denoising", "augment": {}}).augment == Augment()


NETWORKS = {
    "adm": lambda n: ADM(channels=16, multipliers=(1,), blocks=1, attention=(), classes=n, scale_shift=True),
    "dit": lambda n: DiT(in_channels=3, out_channels=3, width=16, depth=1, heads=2, classes=n),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_labels_and_zeros_are_no_labels(name: str) -> None:
    """Bias-free: with zeros the network is, bit for bit, the one that is told nothing of augmentations."""
    torch.manual_seed(0)
    network = NETWORKS[name](2 + LABELS).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    model = Model(
        NetworkDenoiser(network, Flow(), FlowPrediction(), "thousand"),
        Augmented(ClassLabel(CLASSES)),
        Pixel(),
        {"size": [8, 8], "steps": 2, "sampler": "euler", "times": "uniform"},
    )
    plain = NETWORKS[name](2).eval()
    weights = {k: v[:2] if v.shape[:1] == (2 + LABELS,) else v for k, v in network.state_dict().items()}
    plain.load_state_dict(weights)
    without = dataclasses.replace(
        model,
        denoiser=NetworkDenoiser(plain, Flow(), FlowPrediction(), "thousand"),
        conditioner=ClassLabel(CLASSES),
    )
    told_nothing = generate(model, count=2, seed=3, kind="right", guidance=2.0).tensor
    torch.testing.assert_close(
        told_nothing, generate(without, count=2, seed=3, kind="right", guidance=2.0).tensor
    )
    x, condition = torch.randn(2, 3, 8, 8), model.conditioner(2, kind="left")
    labels = Augment(p=1).labels(Noise([1, 2]))
    heard = network(x, torch.ones(2), Augmented.told(condition, labels)) - network(
        x, torch.ones(2), condition
    )
    assert heard.abs().max() > 1e-3


def test_points_of_an_mlp_are_told_too() -> None:
    network = MLP(dim=2, width=16, depth=1, classes=LABELS)
    nn.init.normal_(network.out[1].weight)
    nn.init.normal_(network.blocks[0].back.weight)
    x = torch.randn(1, 2)
    heard = [network(x, torch.ones(1), Condition(vector=v)) for v in (torch.zeros(1, 9), torch.ones(1, 9))]
    assert (heard[0] - heard[1]).abs().max() > 1e-3


def test_labels_enter_the_loss_and_drop_does_not_drop_them() -> None:
    asked: list[Condition] = []

    class Spy(Toy):
        def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
            asked.append(condition)
            return super().forward(x, time, condition)

    network = Spy(size=16, classes=2 + LABELS)
    model = Model(
        NetworkDenoiser(network, Flow(), FlowPrediction(), "time"), Augmented(ClassLabel(CLASSES)), Points()
    )
    batch = SimpleNamespace(image=pictures(64, 4, 4, channels=1).float(), inputs={"kind": ["left"] * 64})
    noise = Noise(range(64))
    Denoising(drop=0.5, augment=Augment(p=0.5)).loss(model, batch, noise)
    vector = asked[-1].vector
    assert vector is not None
    assert torch.equal(vector[:, 2:], Augment(p=0.5).labels(noise))
    assert 16 < int((vector[:, :2].sum(1) == 0).sum()) < 48
    model.conditioner = ClassLabel(CLASSES)
    with pytest.raises(InvalidInput, match="name: augmented"):
        Denoising(augment=Augment()).loss(model, batch, noise)


# Leaking, measured.


class Deaf(Toy):
    """Is not told."""

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.vector is not None
        return super().forward(x, time, Condition(vector=torch.zeros_like(condition.vector)))


CORNERS = -0.5 + 0.05 * torch.randn(256, 1, 4, 4, generator=torch.Generator().manual_seed(0))
CORNERS[:, :, :2, :2] += 1.0


@dataclasses.dataclass(frozen=True)
class Corners:
    """4 x 4 pictures that are bright at the top left, and nowhere else."""

    def __len__(self) -> int:
        return 256

    def load(self, index: int, seed: int) -> Any:
        return SimpleNamespace(image=CORNERS[index], inputs={})

    def collate(self, items: Any) -> Any:
        return SimpleNamespace(image=torch.stack([item.image for item in items]), inputs={})

    def fingerprint(self) -> str:
        return "corners"


def drawn(network: nn.Module, directory: Any) -> Tensor:
    """Pictures a model makes once it was trained on corners, turned and mirrored by chance of .5 each."""
    model = Model(NetworkDenoiser(network, Flow(), FlowPrediction(), "time"), Augmented(), Points())
    settings = Settings(
        batch=64,
        steps=500,
        optimizer=AdamW(rate=5e-3, decay="cosine", warm_up=20),
        ema=(Average(half_life=3000.0),),
        saving=Saving(every=1000, minutes=None),
        validation=Validating(every=500, items=8),
    )
    objective = Denoising(augment=Augment(p=0.5, scale=0.0, anisotropy=0.0, translate=0.0))
    Trainer(model, Corners(), objective, settings, directory).train()
    count = 400
    reverse = ReverseProcess(model.denoiser, model.process, model.conditioner(count), Noise(range(count)))
    with torch.no_grad():
        return sample(Heun(), reverse, reverse.prior((count, 1, 4, 4)), UniformTimes()(model.process, 12))


def test_told_augmentations_do_not_leak_and_untold_ones_do(tmp_path: Any) -> None:
    torch.manual_seed(0)
    told_of = drawn(Toy(size=16, width=64, classes=LABELS), tmp_path / "told")
    torch.manual_seed(0)
    untold = drawn(Deaf(size=16, width=64, classes=LABELS), tmp_path / "untold")

    def upright(made: Tensor) -> float:
        corners = torch.stack(
            [made[:, 0, a : a + 2, b : b + 2].mean((1, 2)) for a in (0, 2) for b in (0, 2)], dim=1
        )
        return float(((corners[:, 0] > 0.25) & (corners[:, 1:] < -0.2).all(1)).float().mean())

    assert upright(told_of) > 0.85
    assert upright(untold) < 0.5


class Killed(Exception):
    """Stands for a crash without warning."""


def test_an_augmented_run_that_was_killed_is_bit_for_bit_the_one_that_was_not(tmp_path: Any) -> None:
    def trainer(directory: Any, observe: Any = None, p: float = 0.5) -> Trainer:
        torch.manual_seed(0)
        network = Toy(size=16, classes=LABELS)
        model = Model(NetworkDenoiser(network, Flow(), FlowPrediction(), "time"), Augmented(), Points())
        settings = Settings(batch=8, steps=6, optimizer=AdamW(1e-2), ema=(), saving=Saving(every=4))
        return Trainer(model, Corners(), Denoising(augment=Augment(p)), settings, directory, observe)

    def crash(event: Any) -> None:
        if event.kind == "step" and event.step == 5:
            raise Killed

    whole = trainer(tmp_path / "whole").train().denoiser.network.state_dict()
    with pytest.raises(Killed):
        trainer(tmp_path / "parts", crash).train()
    resumed = trainer(tmp_path / "parts").train().denoiser.network.state_dict()
    other = trainer(tmp_path / "other", p=0.0).train().denoiser.network.state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert not torch.equal(whole["inner.0.weight"], other["inner.0.weight"])
    with pytest.raises(RunChanged, match=r"augment.p: 0.5 -> 0.4"):
        trainer(tmp_path / "parts", p=0.4).train()


def test_conditions_place_by_place_are_refused_beside_augmentation() -> None:
    """The map would stay where it is while the picture turns."""
    conditioner = Augmented(SemanticMap(classes=2, channels=0))  # type: ignore[arg-type]
    network = Toy(size=2 * 8 * 8, classes=0)
    model = Model(NetworkDenoiser(network, Flow(), FlowPrediction(), "time"), conditioner, Pixel())
    batch = Batch(torch.zeros(1, 3, 8, 8), {"semantic_map": [torch.zeros(8, 8, dtype=torch.int64)]})
    with pytest.raises(InvalidInput, match="place by place"):
        Denoising(augment=Augment(p=0.5)).loss(model, batch, Noise([1]))
