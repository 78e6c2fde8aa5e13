"""Muon: momentum of matrices made orthogonal, AdamW for all else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
_LEAST = 32
"""A matrix with a shorter side has too few directions to be worth it."""
_TALLEST = 16
"""A matrix with more rows a column is a table, looked up a row at a time."""
_TABLE = re.compile("embedding|token_emb|pos_emb|position")
_LIKE_ADAM = 0.2
"""Root mean square of AdamW's updates, as it is found in training."""


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter maps features to features, as tables of words and places and thin ends do not."""
    if parameter.ndim < 2 or _TABLE.search(name):
        return False
    rows, columns = len(parameter), parameter[0].numel()
    return min(rows, columns) >= _LEAST and rows <= _TALLEST * columns


def orthogonalized(matrices: Tensor) -> Tensor:
    """About U Vᵀ of each U S Vᵀ, (K, m, n) with m <= n: singular values from .7 to 1.2, none left small.

    Five steps of X ← (a + b XXᵀ + c (XXᵀ)²) X. All of them are polynomials of the first XXᵀ, so that they are
    taken of this m x m matrix, and X is met but once; with long kernels a third of the work.
    """
    x = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    gram = x @ x.mT
    one = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    whole = one
    for _ in range(_STEPS):
        factor = _A * one + _B * gram + _C * (gram @ gram)
        whole, gram = factor @ whole, factor @ gram @ factor
    return whole @ x


class Muon(torch.optim.AdamW):
    """AdamW but for groups with `matrices`, which move along their orthogonalised momentum.

        M ← μ M + (1 - μ) G,   W ← W - rate · (.2 √max(m, n) · O(μ M + (1 - μ) G) + decay · W)

    Kernels are matrices of their rows of outputs. What is seen rarely turns few directions a little; made
    orthogonal, these count as much as the others, so that the rare is learnt sooner than by Adam (Wang et al.
    2025, "Muon Outperforms Adam in Tail-End Associative Memory Learning", arXiv:2509.26030). Updates are as
    large as AdamW's, which take the same rate (Liu et al. 2025, "Muon is Scalable for LLM Training",
    arXiv:2502.16982, section 2.2). Of several processes each makes a share of the matrices orthogonal.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
    https://kellerjordan.github.io/posts/muon/.

    Args:
        groups: of parameters; those with `matrices` true are moved by momentum.
        momentum: μ.
        settings: of AdamW.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float, **settings: Any) -> None:
        super().__init__([{"matrices": False, **group} for group in groups], **settings)
        self.momentum = momentum

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of both kinds."""
        matrices = [
            (p, group, p.grad)
            for group in self.param_groups
            if group["matrices"]
            for p in group["params"]
            if p.grad is not None
        ]
        for parameter, _, _ in matrices:
            parameter.grad = None  # AdamW passes it by
        loss = super().step(closure)
        alike: dict[tuple[int, int], list[tuple[nn.Parameter, float, float, Tensor]]] = {}
        with torch.no_grad():
            for parameter, group, gradient in matrices:
                parameter.grad = gradient
                memory = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                memory.lerp_(gradient, 1 - self.momentum)
                ahead = gradient.lerp(memory, self.momentum).flatten(1)
                short, long = sorted(ahead.shape)
                flat = ahead if len(ahead) == short else ahead.mT
                alike.setdefault((short, long), []).append(
                    (parameter, group["lr"], group["weight_decay"], flat)
                )
            for (_, long), members in alike.items():
                turned = _shared(torch.stack([flat for *_, flat in members]))
                for (parameter, rate, decay, _), each in zip(members, turned, strict=True):
                    each = each if len(each) == len(parameter) else each.mT
                    parameter.mul_(1 - rate * decay)
                    parameter.add_(each.reshape(parameter.shape), alpha=-rate * _LIKE_ADAM * math.sqrt(long))
        return loss


def _shared(matrices: Tensor) -> Tensor:
    """Orthogonal factors (K, m, n), each made by one process and told to all."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return orthogonalized(matrices)
    made, mine = torch.zeros_like(matrices), slice(dist.get_rank(), None, dist.get_world_size())
    if len(matrices[mine]):
        made[mine] = orthogonalized(matrices[mine])
    dist.all_reduce(made)
    return made
