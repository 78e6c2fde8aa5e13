"""Class tokens: one word of each of a few lists, attended to rather than added."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditioners.class_label import ClassLabel
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput


@dataclass(eq=False, repr=False)
class ClassToken(nn.Module):
    """Named classes as rows of a table in the condition's tokens, one token a list of names.

    Latent diffusion's class-conditional models are told their class so. The table learns with the network. A
    class that is not said is the table's last row with `null_row`, which guidance needs; else zeros.

    Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv:2112.10752,
    appendix E.

    Args:
        labels: names by input, e.g. {"label": ["tench", "goldfish"]}.
        width: of the tokens.
        null_row: the table ends in a row of "no class".
    """

    labels: dict[str, list[str]] = field(default_factory=dict)
    width: int = 512
    null_row: bool = True

    def __post_init__(self) -> None:
        super().__init__()
        if not self.labels or self.width < 1:
            raise InvalidInput("give at least one list of names, and a width", where="class_token.labels")
        self.said = ClassLabel(self.labels)
        self.embedding = nn.Embedding(self.said.size + self.null_row, self.width)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(self.labels)

    @property
    def tokens(self) -> int:
        """Width of the condition's tokens."""
        return self.width

    @property
    def shares(self) -> dict[str, int | None]:
        """A token a list."""
        return {"tokens": len(self.labels)}

    def forward(self, count: int, **inputs: Any) -> Condition:
        """One name for all rows, a list with one a row, or None for nothing → (count, lists, width)."""
        vector = self.said(count, **inputs).vector
        assert vector is not None
        sizes = [len(names) for names in self.labels.values()]
        table = self.embedding.weight
        parts = torch.split(vector.to(table), sizes, 1), torch.split(table[: sum(sizes)], sizes)
        tokens = [self._token(one_hot, rows) for one_hot, rows in zip(*parts, strict=True)]
        return Condition(tokens=torch.stack(tokens, 1))

    def null(self, condition: Condition) -> Condition:
        """No class, row for row."""
        return self(len(condition))

    def check(self, **inputs: Any) -> None:
        """Refuse unknown inputs and names, naming the nearest, before any work."""
        self.said.check(**inputs)

    def _token(self, one_hot: Tensor, rows: Tensor) -> Tensor:
        """The rows that are said (B, width)."""
        found = rows[one_hot.argmax(1)]
        none = self.embedding.weight[-1] if self.null_row else torch.zeros_like(found[0])
        return torch.where(one_hot.any(1, keepdim=True), found, none)
