"""CLIP's text tower: tokens to states, and to one vector for the whole text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.errors import InvalidInput, look_up
from sfumato.encoders.clip_layers import Activation, Encoded, Layers

_H: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16, "activation": "gelu"}

PUBLISHED: dict[str, dict[str, Any]] = {
    "clip_b32": {"projection": 512},
    "clip_b16": {"projection": 512},
    "clip_l14": {"width": 768, "heads": 12},
    "clip_l14_projected": {"width": 768, "heads": 12, "projection": 768},
    "openclip_h14": _H,
    "openclip_h14_projected": {**_H, "projection": 1024},
    # Stable Diffusion 2 reads the layer before the last; what stands in folders lacks the last altogether.
    "openclip_h14_penultimate": {**_H, "depth": 23},
    "openclip_bigg14": {
        "width": 1280,
        "depth": 32,
        "heads": 20,
        "activation": "gelu",
        "projection": 1280,
    },
}
"""Settings of the published towers: clip_l14 reads prompts in Stable Diffusion 1 and XL, openclip_h14 in 2,
openclip_bigg14 in XL and its refiner."""


@dataclass(eq=False, repr=False)
class ClipText(nn.Module):
    """The text tower of CLIP: a transformer in which a token sees those before it.

    forward(ids (B, N)) → states (B, N, width) of a layer, and pooled (B, projection or width): the state at
    the end-of-text token after all layers and the final norm, projected. Names of the weights are those of
    the reference implementation in transformers.

    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
    arXiv:2103.00020.

    Args:
        width: of the states.
        depth: layers.
        heads: of attention.
        hidden: of the feed-forward; 0 is four times the width.
        vocabulary: how many tokens there are.
        length: the longest text, begin and end included.
        activation: quick_gelu, x · sigmoid(1.702 x), in OpenAI's weights; gelu in OpenCLIP's.
        projection: length of the pooled vector; 0 for none, then it is the state itself.
        end: id of the end-of-text token, whose first place is where the text is pooled; -1 for the place of
            the highest id, the older rule, which tokens added after it would break.
        eps: of the layer norms.
    """

    width: int = 512
    depth: int = 12
    heads: int = 8
    hidden: int = 0
    vocabulary: int = 49408
    length: int = 77
    activation: Activation = "quick_gelu"
    projection: int = 0
    end: int = 49407
    eps: float = 1e-5

    @staticmethod
    def published(name: str) -> ClipText:
        """A tower with the settings of published weights, by a name of PUBLISHED such as "clip_l14"."""
        return ClipText(**look_up(PUBLISHED, name, "published tower"))

    def __post_init__(self) -> None:
        super().__init__()
        self.text_model = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict(
                    {
                        "token_embedding": nn.Embedding(self.vocabulary, self.width),
                        "position_embedding": nn.Embedding(self.length, self.width),
                    }
                ),
                "encoder": Layers(
                    self.width, self.depth, self.heads, self.hidden, self.activation, True, self.eps
                ),
                "final_layer_norm": nn.LayerNorm(self.width, eps=self.eps),
            }
        )
        self.text_projection = nn.Linear(self.width, self.projection, bias=False) if self.projection else None
        self._initialise()

    @property
    def pooled_width(self) -> int:
        """Length of the pooled vector."""
        return self.projection or self.width

    def forward(self, ids: Tensor, layer: int = -1, norm: bool = True, pooled: bool = True) -> Encoded:
        """Ids (B, N) → the states of a layer, and pooled if asked for.

        Args:
            ids: (B, N), int64.
            layer: after how many layers, 0 to `depth`; or counted from the end, -1 the last, -2 the one
                before it.
            norm: the final norm stands after the states.
            pooled: run the other layers too.
        """
        place = self.place(layer)
        hidden = self.hidden_states(ids, None if pooled else place)
        last = self.text_model["final_layer_norm"]
        states = last(hidden[place]) if norm else hidden[place]
        return Encoded(states, self.pool(last(hidden[-1]), ids) if pooled else None)

    def hidden_states(self, ids: Tensor, upto: int | None = None) -> list[Tensor]:
        """Ids (B, N) → states before the first layer and after each, without the final norm."""
        if ids.shape[1] > self.length:
            raise InvalidInput(f"{ids.shape[1]} tokens, {self.length} at most", where="ids")
        embeddings = self.text_model["embeddings"]
        places = torch.arange(ids.shape[1], device=ids.device)
        h = embeddings["token_embedding"](ids) + embeddings["position_embedding"](places)  # type: ignore[index]
        return self.text_model["encoder"](h, upto)

    def pool(self, states: Tensor, ids: Tensor) -> Tensor:
        """The state (B, N, width) at the end of each text, projected."""
        place = ids.argmax(1) if self.end < 0 else (ids == self.end).int().argmax(1)
        found = states[torch.arange(len(ids), device=ids.device), place]
        return found if self.text_projection is None else self.text_projection(found)

    def place(self, layer: int) -> int:
        """A layer counted from the end as one counted from the start."""
        if not -self.depth - 1 <= layer <= self.depth:
            raise InvalidInput(f"there is no layer {layer} of {self.depth}", where="layer")
        return layer if layer >= 0 else self.depth + 1 + layer

    def _initialise(self) -> None:
        embeddings = self.text_model["embeddings"]
        nn.init.normal_(embeddings["token_embedding"].weight, std=0.02)  # type: ignore[index]
        nn.init.normal_(embeddings["position_embedding"].weight, std=0.01)  # type: ignore[index]
        self.text_model["encoder"].initialise()  # type: ignore[operator]
        if self.text_projection is not None:
            nn.init.normal_(self.text_projection.weight, std=self.width**-0.5)
