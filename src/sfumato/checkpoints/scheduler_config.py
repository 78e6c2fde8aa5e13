"""Schedulers of diffusers as a process, a prediction and default settings of a walk, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.checkpoints.diffusers_config import refuse_others
from sfumato.core.errors import InvalidInput, nearest
from sfumato.core.prediction import Prediction
from sfumato.core.process import Process
from sfumato.processes.betas import Betas
from sfumato.registry import name_of

_SAMPLERS: dict[str, str] = {
    "PNDM": "plms",
    "DDIM": "ddim",
    "DDPM": "ancestral",
    "EulerDiscrete": "euler",
    "EulerAncestralDiscrete": "euler_ancestral",
    "DPMSolverMultistep": "dpm_solver_pp",
    "DPMSolverSinglestep": "dpm_solver_pp",
    "DEISMultistep": "dpm_solver_pp",
    "LMSDiscrete": "lms",
    "HeunDiscrete": "heun",
    "KDPM2Discrete": "dpm2",
    "UniPCMultistep": "unipc",
}
"""Our sampler by the beginning of diffusers' class."""

_SPACING = {"PNDM": "leading", "DDIM": "leading", "DDPM": "leading"}
"""Where steps lie if nothing is said; linspace for the others."""

_ENDS = {"HeunDiscrete": (0.00085, 0.012), "KDPM2Discrete": (0.00085, 0.012)}
"""Betas where nothing is said; (.0001, .02) for the others."""

_LARGE = ("fixed_large", "fixed_large_log")
"""What DDPM's calls a variance that is exact for unit Gaussian data; its others are read as the smaller."""

_VARIANCES = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}

_KNOWN = (
    "algorithm_type beta_end beta_schedule beta_start clip_sample clip_sample_range disable_corrector "
    "dynamic_thresholding_ratio euler_at_final final_sigmas_type flow_shift interpolation_type "
    "lambda_min_clipped lower_order_final num_train_timesteps predict_epsilon predict_x0 prediction_type "
    "rescale_betas_zero_snr sample_max_value set_alpha_to_one shift_terminal sigma_max sigma_min "
    "skip_prk_steps solver_order solver_p solver_type steps_offset tensor_format thresholding "
    "time_shift_type timestep_spacing timestep_type trained_betas use_beta_sigmas use_dynamic_shifting "
    "use_exponential_sigmas use_flow_sigmas use_karras_sigmas use_lu_lambdas variance_type"
)
"""What diffusers has written of these since 2022; of how to walk, only what names here say is heeded."""

_PREDICTIONS = {"epsilon": "noise", "v_prediction": "velocity", "sample": "data"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


def model_from_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(Description of the process, name of the prediction) of a scheduler's configuration.

    Raises:
        InvalidInput: a scheduler of another process; `where` names the setting.
    """
    kind = _kind(config)
    if kind not in _SAMPLERS:
        raise InvalidInput(
            f"a scheduler {config.get('_class_name')!r} walks another process",
            where="scheduler._class_name",
            do=nearest(kind, _SAMPLERS),
        )
    for key in ("use_flow_sigmas", "use_dynamic_shifting"):
        if config.get(key):
            raise InvalidInput(f"{config[key]!r} is another process", where=f"scheduler.{key}")
    if config.get("timestep_type", "discrete") != "discrete":
        raise InvalidInput("the network is told another time", where="scheduler.timestep_type")
    refuse_others(config, "scheduler", {}, _KNOWN.split())
    # Files of 2022 say whether it is noise, of those of data alone.
    first = "sample" if config.get("predict_epsilon") is False else "epsilon"
    prediction = config.get("prediction_type", first)
    if prediction not in _PREDICTIONS:
        raise InvalidInput(
            f"{prediction!r} is not known", where="scheduler.prediction_type", do=nearest("", _PREDICTIONS)
        )
    schedule = config.get("beta_schedule", "linear")
    if schedule not in _SCHEDULES:
        raise InvalidInput(
            f"{schedule!r} is not known", where="scheduler.beta_schedule", do=nearest("", _SCHEDULES)
        )
    start, end = _ENDS.get(kind, (0.0001, 0.02))
    process: dict[str, Any] = {
        "name": "betas",
        "schedule": _SCHEDULES[schedule],
        "steps": config.get("num_train_timesteps", 1000),
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    if (values := config.get("trained_betas")) is not None:
        process |= {"values": list(values), "zero_terminal_snr": False}
    elif schedule != "squaredcos_cap_v2":
        process |= {"start": config.get("beta_start", start), "end": config.get("beta_end", end)}
    return process, _PREDICTIONS[prediction]


def walk_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of a model's card: sampler and times as the scheduler's, as near as names say it."""
    kind = _kind(config)
    sampler: dict[str, Any] = {"name": _SAMPLERS.get(kind, "dpm_solver_pp")}
    if sampler["name"] == "dpm_solver_pp" and config.get("solver_order", 2) in (1, 2, 3):
        sampler["order"] = config.get("solver_order", 2)
        if str(config.get("algorithm_type", "")).startswith("sde"):
            sampler["eta"] = 1.0
        if config.get("solver_type") == "heun":
            sampler["variant"] = "heun"
    if kind == "DDPM" and config.get("variance_type") in _LARGE:
        sampler["variance"] = "large"
    spacing = config.get("timestep_spacing", _SPACING.get(kind, "linspace"))
    times: dict[str, Any] = {"name": "linspace"}
    if config.get("use_karras_sigmas"):
        times = {"name": "karras"}
    elif config.get("use_exponential_sigmas"):
        times = {"name": "exponential"}
    elif spacing == "trailing" or config.get("rescale_betas_zero_snr"):
        times = {"name": "trailing"}
    elif spacing == "leading":
        offset = config.get("steps_offset", 0)
        # The last step of these two goes to index 0 unless they say otherwise.
        ends = kind in ("PNDM", "DDIM") and not config.get("set_alpha_to_one", kind == "DDIM")
        times = {"name": "leading", "offset": offset, "clean": not (ends and offset)}
    elif kind in ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep"):
        times["endpoint"] = False
    return {"sampler": sampler, "times": times, "steps": 50 if kind in ("PNDM", "DDIM", "DDPM") else 30}


def to_config(process: Process, prediction: Prediction, card: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a scheduler with this process and prediction, walking as the card says or DDIM.

    Raises:
        InvalidInput: diffusers has no such process or prediction.
    """
    if not isinstance(process, Betas):
        raise InvalidInput("diffusers' folders hold models of discrete betas", where="model.process")
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    if (name := name_of(type(prediction))) not in predictions:
        raise InvalidInput(f"diffusers has no prediction of {name}", where="model.prediction")
    said = card.get("sampler", "ddim")
    sampler, settings = (said["name"], said) if isinstance(said, Mapping) else (said, {})
    kind = next((theirs for theirs, ours in _SAMPLERS.items() if ours == sampler), "DDIM")
    config: dict[str, Any] = {
        "_class_name": f"{kind}Scheduler",
        "num_train_timesteps": process.steps,
        "prediction_type": predictions[name],
        **_betas(process),
        **_spacing(card.get("times", "leading")),
    }
    # PNDM knows no shift to zero terminal SNR; its betas say it all.
    if process.zero_terminal_snr and kind in ("PNDM", "LMSDiscrete", "HeunDiscrete", "KDPM2Discrete"):
        config |= {"rescale_betas_zero_snr": False, "trained_betas": process.betas.tolist()}
    if kind in ("DDIM", "DDPM"):
        config["clip_sample"] = False
    if kind == "DDPM":
        config["variance_type"] = _VARIANCES.get(settings.get("variance", "small"), "fixed_small")
    if kind == "PNDM":
        config["skip_prk_steps"] = True
    return config


def _betas(process: Betas) -> dict[str, Any]:
    if process.values is not None:
        return {"beta_schedule": "linear", "trained_betas": list(process.values)}
    theirs = {ours: each for each, ours in _SCHEDULES.items()}[process.schedule]
    scale = 1000 / process.steps
    usual = {"linear": (scale * 1e-4, scale * 0.02), "scaled_linear": (0.00085, 0.012)}
    start, end = usual.get(process.schedule, (1e-4, 0.02))
    return {
        "beta_schedule": theirs,
        "beta_start": start if process.start is None else process.start,
        "beta_end": end if process.end is None else process.end,
        "trained_betas": None,
        "rescale_betas_zero_snr": process.zero_terminal_snr,
    }


def _spacing(times: Any) -> dict[str, Any]:
    settings = dict(times) if isinstance(times, Mapping) else {"name": times}
    name = settings["name"]
    if name == "karras":
        return {"use_karras_sigmas": True}
    if name not in ("leading", "linspace", "trailing"):
        return {"timestep_spacing": "trailing"}
    if name != "leading":
        return {"timestep_spacing": name}
    clean = settings.get("clean", True)
    return {
        "timestep_spacing": "leading",
        "steps_offset": settings.get("offset", 1),
        "set_alpha_to_one": clean,
    }


def _kind(config: Mapping[str, Any]) -> str:
    return str(config.get("_class_name", "")).removesuffix("Scheduler")
