"""Weights into modules: by exact name and shape, with a report of what fits and what does not."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sfumato.core.errors import KeyMismatch

_LISTED = 10


@dataclass(frozen=True)
class KeyReport:
    """How the tensors of a file fit a model.

    Args:
        matched: names that stand on both sides with the same shape.
        missing: names the model has and the file lacks.
        unexpected: names the file has and the model lacks.
        misshapen: (name, shape in the model, shape in the file).
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def exact(self) -> bool:
        """Whether everything fits."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.misshapen)
        parts = [f"{len(self.matched)} of {total} tensors fit"]
        if self.misshapen:
            parts.append(
                _listed("other shapes", [f"{n} {list(a)}, got {list(b)}" for n, a, b in self.misshapen])
            )
        if self.missing:
            # The nearest is sought for those alone that are listed: among a thousand each takes a while.
            near = [_with_nearest(name, self.unexpected) for name in self.missing[:_LISTED]]
            parts.append(_listed("missing", near + list(self.missing[_LISTED:])))
        if self.unexpected:
            parts.append(_listed("unexpected", list(self.unexpected)))
        return "; ".join(parts)


def compare(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> KeyReport:
    """The report of shapes by name: what a model expects against what a file holds."""
    both = [name for name in expected if name in found]
    return KeyReport(
        matched=tuple(name for name in both if tuple(expected[name]) == tuple(found[name])),
        missing=tuple(name for name in expected if name not in found),
        unexpected=tuple(name for name in found if name not in expected),
        misshapen=tuple(
            (name, tuple(expected[name]), tuple(found[name]))
            for name in both
            if tuple(expected[name]) != tuple(found[name])
        ),
    )


def shapes(parts: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Shapes of all saved tensors of a model's parts, by name with the part in front."""
    return {
        f"{part}.{name}": tuple(tensor.shape)
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def check(report: KeyReport, where: str, strict: bool = True) -> None:
    """Raise KeyMismatch unless everything fits; not strict, warn instead, unless nothing fits at all."""
    if report.exact:
        return
    if strict or not report.matched:
        raise KeyMismatch(
            str(report), where=where, do="give the weights of this network, or strict=False to load what fits"
        )
    warnings.warn(f"{where}: {report}; the rest keeps its initial values", stacklevel=3)


def fit(
    parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], where: str, strict: bool = True
) -> KeyReport:
    """Put tensors into modules by exact name, keeping the element types of the tensors.

    Names are looked up among those the modules own and never followed as attributes.

    Args:
        parts: modules by the prefix their tensors stand under.
        tensors: weights by full name.
        where: what to call the file in errors.
        strict: refuse anything missing, unexpected or misshapen; else warn and load what fits.

    Raises:
        KeyMismatch: it does not fit, or a tensor without numbers (meta) would remain.
    """
    report = compare(shapes(parts), {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    check(report, where, strict)
    matched = set(report.matched)
    for prefix, module in parts.items():
        own: dict[str, Any] = {
            name: tensors[f"{prefix}.{name}"] for name in module.state_dict() if f"{prefix}.{name}" in matched
        }
        module.load_state_dict(own, strict=False, assign=True)
        held = [*module.named_parameters(), *module.named_buffers()]
        if empty := [f"{prefix}.{name}" for name, tensor in held if tensor.is_meta]:
            raise KeyMismatch(_listed("left without numbers", empty), where=where)
    return report


def _listed(title: str, names: list[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {title}: {', '.join(names[:_LISTED])}{more}"


def _with_nearest(name: str, others: tuple[str, ...]) -> str:
    # Names of large models are many and long: look only among those that could be the same layer.
    tail = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, [o for o in others if o.endswith(tail)][:2000], n=1, cutoff=0.6)
    return f"{name} (nearest: {close[0]})" if close else name
