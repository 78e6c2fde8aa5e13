"""Compile: a network's blocks as code that is made for this machine, once for each kind of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.acceleration.packed import PACKED
from sfumato.core.acceleration import Acceleration
from sfumato.core.condition import Condition
from sfumato.core.errors import InvalidInput
from sfumato.core.hooks import Context, Site
from sfumato.core.meta import sharing

KEPT = Path("~/.cache/sfumato/compiled")
"""Where code is kept from one process to the next, unless TORCHINDUCTOR_CACHE_DIR says otherwise."""
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Compile(Acceleration):
    """Residual and transformer blocks through torch.compile.

    Blocks alike in kind and shape share their code, so that Stable Diffusion's U-Net is compiled for its
    kinds of blocks, and not once as a whole, which takes minutes. Weights are what code is given: it serves
    other seeds, prompts, steps and merged adapters as it is. It is made at the first walk, kept on disk, and
    found there by the next process.

    What it cannot say is computed as before: blocks that hooks look into (edits, caches), that gradients are
    asked of, or whose layers are packed. On a CPU `prepack` gains more; this is for accelerators.

    Ansel et al. 2024, "PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and
    Graph Compilation", ASPLOS.

    Args:
        mode: of torch.compile; "reduce-overhead" replays a block's kernels as one CUDA graph.
        backend: of torch.compile.
        shapes: how often code is made for a class of blocks; of more kinds and shapes blocks are computed as
            before.

    Raises:
        InvalidInput: no such mode or backend, or no shapes.
    """

    mode: str = "default"
    backend: str = "inductor"
    shapes: int = 64

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise InvalidInput(f"{self.mode!r} is none of {', '.join(_MODES)}", where="compile.mode")
        if self.shapes < 1:
            raise InvalidInput(f"{self.shapes} is no number from 1", where="compile.shapes")

    def prepare(self, module: nn.Module, run: Callable[[Any], object]) -> nn.Module:
        """A copy that shares the weights; the module itself where it has no such blocks."""
        known = torch.compiler.list_backends(exclude_tags=())
        if self.backend not in known:
            raise InvalidInput(f"no backend {self.backend!r}", where="compile.backend", do=", ".join(known))
        names = [name for name, part in module.named_modules() if _is_block(part)]
        if not names:
            return module
        if self.backend == "inductor":
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(KEPT.expanduser()))
        made, kinds = sharing(module), dict[type[nn.Module], type[nn.Module]]()
        for name in names:
            block = made.get_submodule(name)
            plain = type(block)
            if plain not in kinds:
                kinds[plain] = self._compiled(plain)
            block.__class__ = kinds[plain]
        return made

    def _compiled(self, plain: Any) -> type[nn.Module]:
        """A class of blocks that is another but for going by code of its own wherever that is the same."""
        # A shape's own code is faster than one for all.
        limits = {"dynamic": False, "recompile_limit": self.shapes, "isolate_recompiles": True}
        mode = None if self.mode == "default" else self.mode
        through: Any = torch.compile
        code = through(plain._run, mode=mode, backend=self.backend, **limits)

        def _run(self: Any, h: Tensor, context: Context) -> Tensor:
            if context.hooks is not None or h.is_meta or torch.is_grad_enabled():
                made: Tensor = plain._run(self, h, context)
                return made
            # What no block reads is not what code is made for.
            told = Condition(tokens=context.condition.tokens, mask=context.condition.mask)
            made = code(self, h, Context(context.embedding, told))
            return made

        return type(f"Compiled{plain.__name__}", (plain,), {"_run": _run, "__doc__": plain.__doc__})


def _is_block(part: nn.Module) -> bool:
    """Whether it is a block that makes h of h, and of layers that PyTorch can look into."""
    site = getattr(part, "site", None)
    block = isinstance(site, Site) and site.kind in ("residual", "transformer") and hasattr(part, "_run")
    return block and not any(isinstance(layer, PACKED) for layer in part.modules())
