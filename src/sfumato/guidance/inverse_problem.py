"""Guidance by a measurement: inverse problems without training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.core.condition import Condition
from sfumato.core.denoiser import Denoised, Denoiser
from sfumato.core.errors import InvalidInput
from sfumato.core.level import Level
from sfumato.core.operators import Blur, Downsample, Grey, Mask

_LEAST = 1e-3
"""The lowest alpha / sigma at which the estimate is differentiated."""


@dataclass(frozen=True)
class InverseProblem:
    """Guidance to data of which a measurement is known: y = A(x0) + noise_std · n.

        x0 = x0 + scale · (sigma² / alpha) · ∇_x log p(y | x_t)
           = x0 + scale · V Aᵀ u,    V = (sigma² / alpha) ∂x0/∂x,

    which is the mean of x0 given x_t and y, since V is the covariance of x0 given x_t. With the residual
    r = y - A(x0), which is differentiated through the denoiser, and v = sigma² / (alpha² + sigma²), the
    variance that x0 would have given x_t if data were white, the methods differ in u:

        "dps"      u = sqrt(m) r / (|r| sqrt(v + noise_std²)), m numbers being measured. Any operator.
        "pigdm"    (noise_std² + v A Aᵀ) u = r: exact for white Gaussian data and linear A.
        "moments"  (noise_std² + A V Aᵀ) u = r: exact for all Gaussian data and linear A, hence the whole walk
                   samples the true posterior; V is the network's own, one backward pass an iteration.

    The two equations are solved by conjugate gradients; operators that are not linear are linearised at x0.

    DPS as published does not shift x0, but moves x by -ζ ∇_x |r| after each step of DDPM. Such a step
    multiplies a shift of x0 by alpha_s β / sigma_t², so that the paper adds -(ζ / β) (alpha_t / alpha_s) ∇|r|
    to the score, and steers the more, the more steps there are. Ours adds -scale · sqrt(m / (v + noise_std²))
    ∇|r| whatever the steps: for 78² numbers the factor runs from 78 at pure noise to 7800 at sigma .01, where
    the 1 / β of a thousand linear steps runs from 50 to 10⁴. (The paper writes ∇|r|² · ζ / |r|, twice as much
    as the ∇|r| · ζ of its code.)

    A network's V is only roughly a covariance, least of all at high noise, where x tells it little: with
    networks "moments" wants an honest noise_std, 1 to 3 iterations, and an `Interval` around it that ends
    near sigma/alpha 10; the other two do without.

    Chung, Kim, McCann, Klasky & Ye 2023, "Diffusion Posterior Sampling for General Noisy Inverse Problems",
    arXiv:2209.14687, algorithm 1; Song, Vahdat, Mardani & Kautz 2023, "Pseudoinverse-Guided Diffusion Models
    for Inverse Problems", ICLR; Rozet, Andry, Lanusse & Louppe 2024, "Learning Diffusion Priors from
    Observations by Expectation Maximization", arXiv:2405.13712 ("moments").

    Args:
        operator: A: from x (B, C, ..) to measurements (B, ..), one of core/operators.py or any differentiable
            function. It sees x, not pictures: for a model of latents, decode first.
        measurement: y (1, ..) for all samples, or (B, ..) for each, as A gives it.
        method: "dps", "pigdm" or "moments".
        scale: how strongly; 0 leaves the model alone.
        noise_std: standard deviation of the measurement's noise.
        iterations: of conjugate gradients.

    Raises:
        InvalidInput: no operator or no measurement, when guidance is to be applied; a measurement of another
            shape than the operator's.
    """

    operator: Mask | Downsample | Blur | Grey | Callable[[Tensor], Tensor] | None = None
    measurement: Tensor | None = None
    method: Literal["dps", "pigdm", "moments"] = "dps"
    scale: float = 1.0
    noise_std: float = 0.0
    iterations: int = 3

    def __post_init__(self) -> None:
        if self.operator is not None and not callable(self.operator):
            raise InvalidInput(
                f"{type(self.operator).__name__} is no operator", where="inverse_problem.operator"
            )
        if self.measurement is not None and not isinstance(self.measurement, Tensor):
            raise InvalidInput(
                f"{type(self.measurement).__name__} is no tensor", where="inverse_problem.measurement"
            )
        if self.method not in ("dps", "pigdm", "moments"):
            raise InvalidInput(
                f"{self.method!r} is not dps, pigdm or moments", where="inverse_problem.method"
            )
        if not 0 <= self.noise_std < math.inf:
            raise InvalidInput(f"{self.noise_std} is not at least 0", where="inverse_problem.noise_std")
        if self.iterations < 1:
            raise InvalidInput(f"{self.iterations} is not at least 1", where="inverse_problem.iterations")

    def __call__(self, denoiser: Denoiser, null: Condition) -> Denoiser:
        """The guided denoiser; levels are floats, as while sampling."""
        if self.scale == 0:
            return denoiser
        for name in ("operator", "measurement"):
            if getattr(self, name) is None:
                raise InvalidInput(f"no {name} is given", where=f"inverse_problem.{name}")

        def guided(x: Tensor, level: Level[Any], condition: Condition) -> Denoised:
            if not torch.is_inference_mode_enabled():
                return self._estimate(denoiser, x, level, condition)
            # What was made in inference mode cannot be differentiated, its copies can. torch.func takes
            # gradients without grad mode too, and then nothing is kept for those of the weights.
            with torch.inference_mode(False), torch.no_grad():
                return self._estimate(denoiser, x.clone(), level, condition.map(torch.clone))

        return guided

    def _estimate(self, denoiser: Denoiser, x: Tensor, level: Level[float], condition: Condition) -> Denoised:
        if level.sigma == 0:
            return denoiser(x, level, condition)
        if level.alpha < _LEAST * level.sigma:
            # Where alpha is 0 so is the derivative, while V tends to the covariance of the data.
            nearest = Level(_LEAST, 1.0)
            x, level = x * (nearest.norm / level.norm), nearest
        alpha, sigma = level

        def estimate(at: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            x0, variance = denoiser(at, level, condition)
            return x0, () if variance is None else (variance,)

        operator: Any = self.operator
        # Its type leaves the third result out.
        differentiate: Any = torch.func.vjp
        x0, pull, variance = differentiate(estimate, x, has_aux=True)
        predicted, transpose = differentiate(operator, x0)
        residual = self._measured(predicted) - predicted
        white = (sigma / level.norm) ** 2

        def spread(u: Tensor) -> Tensor:
            """V Aᵀ u."""
            return pull(*transpose(u))[0] * (sigma**2 / alpha)

        def matrix(u: Tensor) -> Tensor:
            back = white * transpose(u)[0] if self.method == "pigdm" else spread(u)
            return self.noise_std**2 * u + torch.func.jvp(operator, (x0,), (back,))[1]

        if self.method == "dps":
            width = math.sqrt(white + self.noise_std**2)
            # Where nothing is left to correct the direction is 0, not 0 / 0.
            length = _dot(residual, residual).sqrt().clamp_min(torch.finfo(residual.dtype).tiny)
            u = residual / length * (math.sqrt(residual[0].numel()) / width)
        else:
            u = conjugate_gradients(matrix, residual, self.iterations)
        return Denoised(torch.add(x0, spread(u), alpha=self.scale), *variance)

    def _measured(self, predicted: Tensor) -> Tensor:
        """y, for as many rows as there are."""
        assert self.measurement is not None
        y, rows = self.measurement.to(predicted), len(predicted)
        if y.shape[1:] != predicted.shape[1:] or y.ndim == 0 or len(y) == 0 or rows % len(y):
            raise InvalidInput(
                f"{tuple(y.shape)} where the operator gives {tuple(predicted.shape)}",
                where="inverse_problem.measurement",
            )
        return y.repeat(rows // len(y), *[1] * (y.ndim - 1))


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """u with matrix(u) = b, each row (B, ..) a system of its own; the matrix symmetric and not negative.

    Hestenes & Stiefel 1952. A row that is solved, or meets a direction in which its matrix is not positive
    (a network's V need not be a covariance), stays where it has come to.
    """
    u, residual, direction = torch.zeros_like(b), b, b
    square = _dot(residual, residual)
    going = square > 0
    for _ in range(iterations):
        image = matrix(direction)
        bend = _dot(direction, image)
        going = going & (bend > 0) & (square > 0)
        step = torch.where(going, square / torch.where(going, bend, 1.0), 0.0)
        u, residual = u + step * direction, residual - step * image
        after = _dot(residual, residual)
        direction = residual + torch.where(going, after / torch.where(going, square, 1.0), 0.0) * direction
        square = after
    return u


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B, 1, .., 1), row by row."""
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))
