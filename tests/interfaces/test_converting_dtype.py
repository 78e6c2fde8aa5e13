"""Converting to another element type: half the bytes, the nearest numbers, and none that overflow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sfumato
from sfumato.core.errors import NotFinite, NotFound
from sfumato.interfaces.converting import convert
from sfumato.model import Model


def test_weights_are_rounded_to_the_nearest_and_take_half_the_room(tiny: Model, tmp_path: Path) -> None:
    sfumato.save(tiny, tmp_path / "wide")
    convert(tmp_path / "wide", tmp_path / "half", "native", "float16", True, {})
    wide, half = (sfumato.load(tmp_path / name).denoiser.network.state_dict() for name in ("wide", "half"))
    for name, tensor in wide.items():
        assert half[name].dtype == torch.float16
        assert torch.equal(half[name], tensor.half())
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("wide", "half")]
    assert sizes[1] < 0.7 * sizes[0]


def test_what_an_element_type_cannot_hold_is_refused(tiny: Model, tmp_path: Path) -> None:
    with torch.no_grad():
        next(tiny.denoiser.network.parameters()).view(-1)[0] = 70_000.0
    sfumato.save(tiny, tmp_path / "wide")
    with pytest.raises(NotFinite, match=r"a weight is beyond the 65504 .*bfloat16"):
        convert(tmp_path / "wide", tmp_path / "half", "native", "float16", True, {})
    assert not (tmp_path / "half").exists()
    convert(tmp_path / "wide", tmp_path / "brain", "native", "bfloat16", True, {})
    with pytest.raises(NotFound, match="no element type 'float61'"):
        convert(tmp_path / "wide", tmp_path / "other", "native", "float61", True, {})
