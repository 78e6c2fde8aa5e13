"""The loops of diffusers' schedulers and sfumato's samplers on one tiny random U-Net give the same pictures.

Both start from the same numbers and see the same network in float32; the noise sfumato drew is played back to
diffusers. Agreement is to 4e-6 of the largest value. Where diffusers departs from its own method, the test
says so and shows the departure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")

from sfumato.core.condition import Condition  # noqa: E402
from sfumato.core.denoiser import NetworkDenoiser  # noqa: E402
from sfumato.core.noise import Noise  # noqa: E402
from sfumato.core.prediction import PREDICTIONS  # noqa: E402
from sfumato.core.process import Process  # noqa: E402
from sfumato.core.reverse import ReverseProcess  # noqa: E402
from sfumato.core.sampler import sample  # noqa: E402
from sfumato.processes.betas import Betas  # noqa: E402
from sfumato.processes.edm import EDM  # noqa: E402
from sfumato.processes.flow import Flow  # noqa: E402
from sfumato.registry import build  # noqa: E402

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SEEDS = [3, 4]


class Drawn(Noise):
    """Noise that keeps what it drew, for diffusers to be given the same."""

    def __init__(self) -> None:
        super().__init__(SEEDS)
        self.kept: list[Tensor] = []

    def randn_like(self, x: Tensor, purpose: str = "noise", moment: float = 0.0) -> Tensor:
        self.kept.append(super().randn_like(x, purpose, moment))
        return self.kept[-1]


class Wrapped(nn.Module):
    """diffusers' U-Net as a network of sfumato."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return self.unet(x, time).sample


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
        )
    return net.eval().requires_grad_(False)


def start() -> Tensor:
    return Noise(SEEDS).randn((2, 3, 8, 8), "prior")


def ours(
    unet: nn.Module,
    sampler: Any,
    times: Any,
    steps: int,
    process: Process | None = None,
    prediction: str = "noise",
    time_input: str = "index",
    scale: float = 1.0,
) -> tuple[Tensor, list[Tensor]]:
    """sfumato's samples, and the noise it drew."""
    process, noise = process or Betas("scaled_linear"), Drawn()
    denoiser = NetworkDenoiser(Wrapped(unet), process, PREDICTIONS[prediction](), time_input)
    grid = times if isinstance(times, Tensor) else build("times", times)(process, steps)
    reverse = ReverseProcess(denoiser, process, source=noise)
    return sample(build("sampler", sampler), reverse, scale * start(), grid), noise.kept


def theirs(unet: nn.Module, scheduler: Any, steps: int, x: Tensor, **options: Any) -> Tensor:
    """diffusers' loop, as its pipelines write it."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        into = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(unet(into, t.expand(len(x))).sample, t, x, **options).prev_sample
    return x


def play(monkeypatch: pytest.MonkeyPatch, scheduler: Any, draws: list[Tensor]) -> None:
    """Let a scheduler draw these numbers, then zeros."""
    import importlib

    rest = list(draws)

    def next_draw(shape: Any, **_: Any) -> Tensor:
        return rest.pop(0) if rest else torch.zeros(shape)

    monkeypatch.setattr(importlib.import_module(type(scheduler).__module__), "randn_tensor", next_draw)


def agree(a: Tensor, b: Tensor, tolerance: float = 4e-6) -> None:
    assert a.isfinite().all()
    error = float((a - b).abs().max() / b.abs().max())
    assert error < tolerance, f"{error:.1e} of the largest value"


Make = Callable[..., Any]
VP_FORM: list[tuple[str, Any, Make, dict, Any]] = [
    ("DDIM", "ddim", diffusers.DDIMScheduler, {"clip_sample": False}, "trailing"),
    ("DDIM leading", "ddim", diffusers.DDIMScheduler, {"clip_sample": False, "steps_offset": 1}, "leading"),
    (
        "DDIM as Stable Diffusion ships it",
        "ddim",
        diffusers.DDIMScheduler,
        {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False},
        {"name": "leading", "clean": False},
    ),
    (
        "PNDM as Stable Diffusion ships it",
        "plms",
        diffusers.PNDMScheduler,
        {"skip_prk_steps": True, "steps_offset": 1},
        {"name": "leading", "clean": False},
    ),
    ("PNDM", "plms", diffusers.PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": True}, "trailing"),
    ("DPM++ 2M", "dpm_solver_pp", diffusers.DPMSolverMultistepScheduler, {}, "trailing"),
    (
        "DPM++ 2M heun",
        {"name": "dpm_solver_pp", "variant": "heun"},
        diffusers.DPMSolverMultistepScheduler,
        {"solver_type": "heun"},
        "trailing",
    ),
    (
        "DPM++ 2M linspace",
        "dpm_solver_pp",
        diffusers.DPMSolverMultistepScheduler,
        {},
        {"name": "linspace", "endpoint": False},
    ),
    (
        "DPM++ 1",
        {"name": "dpm_solver_pp", "order": 1},
        diffusers.DPMSolverMultistepScheduler,
        {"solver_order": 1},
        "trailing",
    ),
    ("UniPC", "unipc", diffusers.UniPCMultistepScheduler, {}, "trailing"),
]


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("label, sampler, make, options, times", VP_FORM, ids=[c[0] for c in VP_FORM])
def test_deterministic(
    unet: nn.Module, label: str, sampler: Any, make: Make, options: dict, times: Any, steps: int
) -> None:
    spacing = times if isinstance(times, str) else times["name"]
    scheduler = make(**SD, timestep_spacing=spacing, **options)
    agree(ours(unet, sampler, times, steps)[0], theirs(unet, scheduler, steps, start()))


def test_unipc_bh1(unet: nn.Module) -> None:
    """B(h) = h is infinite in a last step to clean data: diffusers gives NaN there, sfumato the estimate.
    With both walks ending at index 0, and diffusers' order kept to the end, they agree.
    """
    options = {**SD, "timestep_spacing": "trailing", "solver_type": "bh1"}
    broken = theirs(unet, diffusers.UniPCMultistepScheduler(**options), 10, start())
    assert broken.isnan().all()
    sampler = {"name": "unipc", "solver": "bh1"}
    assert ours(unet, sampler, "trailing", 10)[0].isfinite().all()
    scheduler = diffusers.UniPCMultistepScheduler(
        **options, final_sigmas_type="sigma_min", lower_order_final=False
    )
    times = build("times", "trailing")(Betas("scaled_linear"), 10)
    times[-1] = 1 / 1000
    agree(ours(unet, sampler, times, 10)[0], theirs(unet, scheduler, 10, start()))


RATIO_FORM = [
    ("Euler", "euler", diffusers.EulerDiscreteScheduler),
    ("Heun", "heun", diffusers.HeunDiscreteScheduler),
    ("LMS", "lms", diffusers.LMSDiscreteScheduler),
    ("DPM2", "dpm2", diffusers.KDPM2DiscreteScheduler),
]


@pytest.mark.parametrize("prediction, kind", [("noise", "epsilon"), ("velocity", "v_prediction")])
@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("label, sampler, make", RATIO_FORM, ids=[c[0] for c in RATIO_FORM])
def test_in_sigma_space(
    unet: nn.Module, label: str, sampler: str, make: Make, steps: int, prediction: str, kind: str
) -> None:
    """These hold x/alpha. Trailing spacing: on whole indices both look levels up alike (between them
    diffusers' Euler interpolates sigma, sfumato log-SNR).
    """
    scheduler = make(**SD, timestep_spacing="trailing", prediction_type=kind)
    x = start() / Betas("scaled_linear")(1.0).alpha
    agree(ours(unet, sampler, "trailing", steps, prediction=prediction)[0], theirs(unet, scheduler, steps, x))


@pytest.mark.parametrize("prediction, kind", [("data", "sample"), ("velocity", "v_prediction")])
def test_other_predictions(unet: nn.Module, prediction: str, kind: str) -> None:
    for sampler, make, options in (
        ("ddim", diffusers.DDIMScheduler, {"clip_sample": False}),
        ("dpm_solver_pp", diffusers.DPMSolverMultistepScheduler, {}),
        ("unipc", diffusers.UniPCMultistepScheduler, {}),
    ):
        scheduler = make(**SD, timestep_spacing="trailing", prediction_type=kind, **options)
        mine = ours(unet, sampler, "trailing", 10, prediction=prediction)[0]
        agree(mine, theirs(unet, scheduler, 10, start()))


def test_ddpm(unet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers.DDPMScheduler(**SD, clip_sample=False, timestep_spacing="trailing")
    mine, draws = ours(unet, "ancestral", "trailing", 20)
    play(monkeypatch, scheduler, draws)
    assert len(draws) == 19
    agree(mine, theirs(unet, scheduler, 20, start()))


def test_ddpm_with_large_variance(unet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leading spacing ends at index 0, where diffusers leaves the noise away as DDPM says. With trailing
    spacing it would add sqrt(β) noise in the last step too; sfumato never adds noise to clean data.
    """
    scheduler = diffusers.DDPMScheduler(
        **SD, clip_sample=False, timestep_spacing="leading", variance_type="fixed_large"
    )
    mine, draws = ours(unet, {"name": "ancestral", "variance": "large"}, {"name": "leading", "offset": 0}, 20)
    play(monkeypatch, scheduler, draws)
    agree(mine, theirs(unet, scheduler, 20, start()))


def test_ddim_with_noise(unet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing")
    mine, draws = ours(unet, {"name": "ddim", "eta": 0.7}, "trailing", 20)
    play(monkeypatch, scheduler, draws)
    agree(mine, theirs(unet, scheduler, 20, start(), eta=0.7))


def test_euler_ancestral(unet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SD, timestep_spacing="trailing")
    mine, draws = ours(unet, "euler_ancestral", "trailing", 20)
    play(monkeypatch, scheduler, draws)
    x = start() / Betas("scaled_linear")(1.0).alpha
    agree(mine, theirs(unet, scheduler, 20, x))


@pytest.mark.parametrize("variant", ["midpoint", "heun"])
def test_sde_dpm_solver(unet: nn.Module, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SD, timestep_spacing="trailing", algorithm_type="sde-dpmsolver++", solver_type=variant
    )
    sampler = {"name": "dpm_solver_pp", "eta": 1.0, "variant": variant}
    mine, draws = ours(unet, sampler, "trailing", 20)
    play(monkeypatch, scheduler, draws)
    agree(mine, theirs(unet, scheduler, 20, start()))


def test_third_order_dpm_solver_with_its_factor_mended(
    unet: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' third-order rule takes half the second derivative (see test_samplers_order). Doubling D2 in
    it, and beginning with the φ form in the second step, gives sfumato's samples; as it is, it does not.
    """
    scheduler = diffusers.DPMSolverMultistepScheduler(**SD, timestep_spacing="trailing", solver_order=3)
    mine = ours(unet, {"name": "dpm_solver_pp", "order": 3}, "trailing", 20)[0]
    plain = theirs(unet, scheduler, 20, start())
    assert float((mine - plain).abs().max() / plain.abs().max()) > 1e-5

    def third(outputs: list[Tensor], sample: Tensor, **_: Any) -> Tensor:
        i = scheduler.step_index
        sigma = [scheduler.sigmas[j] for j in (i + 1, i, i - 1, i - 2)]
        alpha, sigmas = zip(*(scheduler._sigma_to_alpha_sigma_t(s) for s in sigma), strict=True)
        lam = [torch.log(a) - torch.log(s) for a, s in zip(alpha, sigmas, strict=True)]
        h, r0, r1 = (
            lam[0] - lam[1],
            (lam[1] - lam[2]) / (lam[0] - lam[1]),
            (lam[2] - lam[3]) / (lam[0] - lam[1]),
        )
        m0, m1, m2 = outputs[-1], outputs[-2], outputs[-3]
        d10, d11 = (m0 - m1) / r0, (m1 - m2) / r1
        d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), 2 * (d10 - d11) / (r0 + r1)
        e = torch.expm1(-h)
        return (
            sigmas[0] / sigmas[1] * sample
            - alpha[0] * e * m0
            + alpha[0] * (e / h + 1) * d1
            - alpha[0] * ((e + h) / h**2 - 0.5) * d2
        )

    def second(outputs: list[Tensor], sample: Tensor, **_: Any) -> Tensor:
        kept = scheduler.config.solver_type
        scheduler.register_to_config(solver_type="heun")
        moved = type(scheduler).multistep_dpm_solver_second_order_update(scheduler, outputs, sample=sample)
        scheduler.register_to_config(solver_type=kept)
        return moved

    monkeypatch.setattr(scheduler, "multistep_dpm_solver_third_order_update", third)
    monkeypatch.setattr(scheduler, "multistep_dpm_solver_second_order_update", second)
    agree(mine, theirs(unet, scheduler, 20, start()))


EDM_FORM = [
    ("EDM Euler", "euler", diffusers.EDMEulerScheduler),
    ("EDM DPM++ 2M", "dpm_solver_pp", diffusers.EDMDPMSolverMultistepScheduler),
]


@pytest.mark.parametrize("label, sampler, make", EDM_FORM, ids=[c[0] for c in EDM_FORM])
def test_edm(unet: nn.Module, label: str, sampler: str, make: Make) -> None:
    """Karras' levels, EDM's preconditioning, the network told a quarter of log sigma."""
    scheduler = make()
    mine = ours(unet, sampler, "karras", 18, EDM(), "edm", "quarter_log_sigma", scale=80.0)[0]
    agree(mine, theirs(unet, scheduler, 18, 80 * start()))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_euler(unet: nn.Module, shift: float) -> None:
    """On diffusers' own levels (which it shifts twice: sheet 01 §6)."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(12)
    times = scheduler.sigmas.double()
    mine = ours(unet, "euler", times, 12, Flow(), "flow", "thousand")[0]
    agree(mine, theirs(unet, scheduler, 12, start()))


def test_flow_matching_heun(unet: nn.Module) -> None:
    """FlowMatchHeun averages slopes over the time of straight lines, which `heun` does when `straight`; over
    sigma/alpha, EDM's way, the same order gives other numbers at finite steps.
    """
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(12)
    sigmas = [*scheduler.sigmas[:-1].double().unique_consecutive().tolist(), 0.0]
    expected = theirs(unet, scheduler, 12, start())
    times = torch.tensor(sigmas, dtype=torch.float64)
    straight = {"name": "heun", "straight": True}
    agree(ours(unet, straight, times, 12, Flow(), "flow", "thousand")[0], expected)
    heun = ours(unet, "heun", times, 12, Flow(), "flow", "thousand")[0]
    assert 1e-4 < float((heun - expected).abs().max() / expected.abs().max()) < 0.5


def test_zero_terminal_snr() -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    plain = Betas("scaled_linear").betas
    ours = Betas("scaled_linear", zero_terminal_snr=True).betas
    torch.testing.assert_close(ours, rescale_zero_terminal_snr(plain), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_betas(schedule: str) -> None:
    ends = SD if schedule == "scaled_linear" else {"beta_schedule": schedule}
    name = "cosine" if schedule == "squaredcos_cap_v2" else schedule
    theirs = diffusers.DDPMScheduler(**ends).betas.double()
    torch.testing.assert_close(Betas(name).betas, theirs, rtol=2e-6, atol=1e-9)  # type: ignore[arg-type]


def test_karras_levels() -> None:
    process = Betas("scaled_linear")
    scheduler = diffusers.EulerDiscreteScheduler(**SD, use_karras_sigmas=True)
    scheduler.set_timesteps(10)
    times = build("times", "karras")(process, 10)
    ratios = [process(t).ratio for t in times.tolist()]
    assert ratios == pytest.approx(scheduler.sigmas.tolist(), rel=3e-5, abs=1e-9)
    # The network is told the time between indices; diffusers finds it by the same line in log sigma.
    told = (times[:-1] * 1000 - 1).tolist()
    assert told == pytest.approx(scheduler.timesteps.tolist(), rel=1e-4, abs=2e-2)
    assert math.isclose(told[0], 999, abs_tol=1e-6)
