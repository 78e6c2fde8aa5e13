"""Weights by exact name and shape, or a report that says what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.checkpoints.keys import compare, fit
from sfumato.core.errors import KeyMismatch


def _parts() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"network": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), "conditioner": nn.Embedding(5, 2)}


def _tensors(parts: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{p}.{n}": t.clone() for p, m in parts.items() for n, t in m.state_dict().items()}


def test_an_exact_fit_keeps_element_types() -> None:
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in _tensors(_parts()).items()}
    parts = _parts()
    assert fit(parts, tensors, "file").exact
    assert parts["network"][0].weight.dtype == torch.float16
    assert parts["network"][0].weight.requires_grad
    assert torch.equal(parts["conditioner"].weight, tensors["conditioner.weight"])


def test_renamed_missing_and_misshapen_are_told_with_the_nearest() -> None:
    tensors = _tensors(_parts())
    tensors["network.O.weight"] = tensors.pop("network.0.weight")
    tensors["conditioner.weight"] = torch.zeros(6, 2)
    with pytest.raises(KeyMismatch) as caught:
        fit(_parts(), tensors, "file")
    assert str(caught.value) == (
        "file: 6 of 8 tensors fit; 1 other shapes: conditioner.weight [5, 2], got [6, 2]; "
        "1 missing: network.0.weight (nearest: network.O.weight); 1 unexpected: network.O.weight "
        "(give the weights of this network, or strict=False to load what fits)"
    )


def test_long_lists_show_ten_of_n() -> None:
    report = compare({f"layer.{i}": (1,) for i in range(37)}, {"other": (1,)})
    assert "37 missing" in str(report)
    assert "and 27 more" in str(report)
    assert str(report).count("layer.") == 10


def test_not_strict_loads_what_fits_and_warns() -> None:
    tensors = _tensors(_parts())
    del tensors["conditioner.weight"]
    tensors["network.0.bias"] = torch.full((4,), 9.0)
    parts = _parts()
    with pytest.warns(UserWarning, match="1 missing: conditioner.weight"):
        fit(parts, tensors, "file", strict=False)
    assert parts["network"][0].bias.tolist() == [9.0] * 4


def test_random_weights_never_pass_for_loaded_ones() -> None:
    with pytest.raises(KeyMismatch):
        fit(_parts(), {"nothing": torch.zeros(1)}, "file", strict=False)


def test_meta_tensors_never_remain() -> None:
    with torch.device("meta"):
        parts = _parts()
    tensors = _tensors(_parts())
    assert fit(parts, tensors, "file").exact
    with torch.device("meta"):
        parts = _parts()
    del tensors["network.0.bias"]
    with (
        pytest.warns(UserWarning, match="missing"),
        pytest.raises(KeyMismatch, match=r"left without numbers: network\.0\.bias"),
    ):
        fit(parts, tensors, "file", strict=False)


def test_names_are_never_followed_as_attributes() -> None:
    tensors = {**_tensors(_parts()), "network.0.__class__.evil": torch.zeros(1)}
    with pytest.raises(KeyMismatch, match="unexpected"):
        fit(_parts(), tensors, "file")
    assert not hasattr(nn.Linear, "evil")
