"""Text with a draft: a caption in tokens, and beside x what pictures of that caption are like on average."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.conditioners.beside import asked_size
from sfumato.conditioners.text_small import TextSmall
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.space import Space


@dataclass(eq=False, repr=False)
class TextDraft(TextSmall):
    """What text_small says, and beside x a first guess of it: the regression of x on the caption.

        draft = W2 gelu(W1 mean(tokens)), about E[x | caption]

    A network that denoises meets a caption's weights once for every place of x at every level of noise; a
    head that guesses x at one go learns what a caption stands for some hundred times sooner, and blurred. The
    network, which is told that guess, is left to make a picture of it. Train the guess first, by the
    objective `drafting`, then the network by `denoising` with `draft` above 0, which keeps the guess a guess.
    Another size of picture is told the guess stretched. The null is the empty caption beside zeros.

    The initial predictor of Whang, Delbracio, Talebi, Saharia, Dimakis & Milanfar 2022, "Deblurring via
    Stochastic Refinement", arXiv:2112.02475, and of Han, Zheng & Zhou 2022, "CARD: Classification and
    Regression Diffusion Models", arXiv:2206.07275, for text.

    Args:
        shape: of the draft, (channels, height, width): of x where the model is trained.
        hidden: units of the head.

    Raises:
        InvalidInput: a shape that is none, or no pooled vector to guess from.
    """

    pooled: bool = True
    shape: tuple[int, int, int] = (4, 8, 8)
    hidden: int = 256

    inputs: ClassVar[tuple[str, ...]] = ("prompt", "caption", "size")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.shape) != 3 or min(self.shape) < 1 or self.hidden < 1:
            raise InvalidInput(f"{self.shape} of {self.hidden} units is no draft", where="text_draft.shape")
        if not self.pooled:
            raise InvalidInput("a draft is made of the pooled vector", where="text_draft.pooled")
        size = self.shape[0] * self.shape[1] * self.shape[2]
        self.head = nn.Sequential(
            nn.Linear(self.encoder.width, self.hidden), nn.GELU(), nn.Linear(self.hidden, size)
        )
        # In a tuple: torch takes no module in it for one of the conditioner's own.
        self._bound: tuple[Space, ...] = ()

    def bind(self, space: Space) -> None:
        """The model's space, which says how large x is."""
        self._bound = (space,)

    def forward(self, count: int, **inputs: Any) -> Condition:
        """One caption for all rows, a list with one a row, or None → tokens, mask, vector and draft."""
        size = asked_size({"size": inputs.pop("size", None)})
        said = super().forward(count, **inputs)
        assert said.vector is not None
        return replace(said, draft=self._fitted(self.head(said.vector).view(-1, *self.shape), size))

    def null(self, condition: Condition) -> Condition:
        """The empty caption beside zeros, row for row."""
        blank = None if condition.draft is None else torch.zeros_like(condition.draft)
        return replace(super().forward(len(condition)), draft=blank)

    def check(self, **inputs: Any) -> None:
        """Refuse what is no text, and what is too long, before any work."""
        super().check(**{name: value for name, value in inputs.items() if name != "size"})

    def _fitted(self, draft: Tensor, size: tuple[int, int] | None) -> Tensor:
        """The draft for pictures of (height, width) pixels."""
        if size is None or not self._bound:
            return draft
        space = self._bound[0]
        # Latents are of a size even where nobody can decode them.
        places = getattr(space, "latent_shape", space.shape)(*size)[1:]
        if places == draft.shape[-2:]:
            return draft
        return F.interpolate(draft, tuple(places), mode="bilinear", antialias=True)
