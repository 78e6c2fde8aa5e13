"""sfumato: diffusion models - train, steer, edit with, personalise, speed up and serve them.

    model = sfumato.load("runs/emoji")
    sfumato.generate(model, concept="red apple", count=4, seed=7).images[0].save("apple.png")

Names are imported when first used, so that `import sfumato` itself is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.checkpoints.controlled import controlled as controlled
    from sfumato.checkpoints.hub import fetch as fetch
    from sfumato.checkpoints.load import load as load
    from sfumato.checkpoints.native import save as save
    from sfumato.checkpoints.prompted import grounded as grounded
    from sfumato.checkpoints.prompted import prompted as prompted
    from sfumato.core.condition import Condition as Condition
    from sfumato.core.denoiser import Denoised as Denoised
    from sfumato.core.denoiser import NetworkDenoiser as NetworkDenoiser
    from sfumato.core.errors import SfumatoError as SfumatoError
    from sfumato.core.hooks import Hooks as Hooks
    from sfumato.core.level import Level as Level
    from sfumato.core.noise import Noise as Noise
    from sfumato.core.process import Process as Process
    from sfumato.core.reverse import ReverseProcess as ReverseProcess
    from sfumato.core.sampler import Sampler as Sampler
    from sfumato.core.sampler import sample as sample
    from sfumato.editing.interpolate import interpolate as interpolate
    from sfumato.editing.invert import invert as invert
    from sfumato.generation.images import Images as Images
    from sfumato.generation.optimize import optimize as optimize
    from sfumato.interfaces.grid import grid as grid
    from sfumato.interfaces.planning import plan as plan
    from sfumato.interfaces.request import generate as generate
    from sfumato.model import Model as Model

__version__ = "0.1.0"

_HOMES = {
    "load": "checkpoints.load",
    "fetch": "checkpoints.hub",
    "save": "checkpoints.native",
    "generate": "interfaces.request",
    "plan": "interfaces.planning",
    "optimize": "generation.optimize",
    "grid": "interfaces.grid",
    "controlled": "checkpoints.controlled",
    "grounded": "checkpoints.prompted",
    "prompted": "checkpoints.prompted",
    "invert": "editing.invert",
    "interpolate": "editing.interpolate",
    "Images": "generation.images",
    "Model": "model",
    "Condition": "core.condition",
    "Denoised": "core.denoiser",
    "NetworkDenoiser": "core.denoiser",
    "SfumatoError": "core.errors",
    "Hooks": "core.hooks",
    "Level": "core.level",
    "Noise": "core.noise",
    "Process": "core.process",
    "ReverseProcess": "core.reverse",
    "Sampler": "core.sampler",
    "sample": "core.sampler",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
