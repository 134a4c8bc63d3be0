"""Noise schedules in diffusers' words: CogVideoX' discrete one, and the shift of a flow. No jax here.

References: `CogVideoXDDIMScheduler`, and `UniPCMultistepScheduler` as Wan has it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from cinema_jax.errors import InputError, unsupported
from cinema_jax.inputs import typed

# What only other networks' schedulers set otherwise.
_FIXED = {
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}
# A table has a row for each.
MOST_TIMESTEPS = 100_000
# They only matter where samples are clipped.
_IGNORED = ("clip_sample_range", "sample_max_value", "thresholding", "dynamic_thresholding_ratio")
# diffusers' classes, by what we call them.
SCHEDULERS: Mapping[str, str] = {"ddim": "CogVideoXDDIMScheduler", "dpm": "CogVideoXDPMScheduler"}
# Those of flows.
FLOW_SCHEDULER = "UniPCMultistepScheduler"
EULER_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
# What Wan's says, and what diffusers means where it says nothing.
_FLOW_FIXED = {
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "disable_corrector": [],
    "solver_p": None,
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
}
_FLOW_UNSAID = {"prediction_type": "epsilon", "use_flow_sigmas": False}
# They only matter where sigmas are those of betas, or samples are clipped.
_FLOW_IGNORED = (
    *("beta_start", "beta_end", "beta_schedule", "trained_betas", "timestep_spacing", "steps_offset"),
    *("rescale_betas_zero_snr", "dynamic_thresholding_ratio", "sample_max_value", "time_shift_type"),
    *("sigma_min", "sigma_max"),
)


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """How much signal and noise each timestep has. The defaults are CogVideoX-2b's."""

    # Timesteps, from nearly no noise to the most.
    num_train_timesteps: int = 1000
    # Between these the square root of the noise added in each step grows linearly.
    beta_start: float = 0.00085
    # The other end of that line.
    beta_end: float = 0.012
    # Divides the signal-to-noise ratio: 3.0 in 2b, 1.0 in 5b.
    snr_shift_scale: float = 3.0
    # The last timestep is pure noise (arXiv 2305.08891).
    rescale_betas_zero_snr: bool = True

    def __post_init__(self):
        if not 2 <= self.num_train_timesteps <= MOST_TIMESTEPS:
            raise InputError(
                f"num_train_timesteps is {self.num_train_timesteps}; it must be at least 2 and at most {MOST_TIMESTEPS}"
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(f"beta_start {self.beta_start} and beta_end {self.beta_end} must rise between 0 and 1")
        if not 0 < self.snr_shift_scale < float("inf"):
            raise InputError(f"snr_shift_scale is {self.snr_shift_scale}; it must be above 0 and finite")

    def alphas_cumprod(self) -> Float[np.ndarray, "timesteps"]:
        """The share of the signal's variance at each timestep, falling from nearly 1; float64."""
        betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps) ** 2
        alphas = np.cumprod(1 - betas)
        alphas = alphas / (self.snr_shift_scale + (1 - self.snr_shift_scale) * alphas)
        if not self.rescale_betas_zero_snr:
            return alphas
        roots = np.sqrt(alphas)
        return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2

    def timesteps(self, steps: int) -> Int[np.ndarray, "steps"]:
        """The timesteps of a sampler's network evaluations, from the noisiest on ("trailing").

        Raises:
            InputError: for less than 1 or more than `num_train_timesteps` steps.
        """
        if not 1 <= steps <= self.num_train_timesteps:
            raise InputError(f"steps is {steps}; accepted is 1 to {self.num_train_timesteps}")
        spaced = np.arange(self.num_train_timesteps, 0, -self.num_train_timesteps / steps)
        return np.round(spaced).astype(np.int64) - 1

    def flow_times(self) -> Float[np.ndarray, "timesteps"]:
        """The time in [0, 1] at which a rectified flow has each timestep's signal-to-noise ratio, rising; float64."""
        alphas = self.alphas_cumprod()
        signal, noise = np.sqrt(alphas), np.sqrt(1 - alphas)
        return noise / (signal + noise)

    def time_grid(self, steps: int) -> Float[np.ndarray, "n"]:
        """The flow times of `timesteps(steps)`, then 0: where the schedule's own samplers call the network.

        `n` is `steps + 1`; float64.
        """
        return np.append(self.flow_times()[self.timesteps(steps)], 0.0)


def schedule_from_hf(config: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule of a `scheduler/scheduler_config.json` of diffusers; unsaid fields take diffusers' defaults.

    Raises:
        InputError: naming the fields that describe another schedule.
    """
    said = {name: value for name, value in config.items() if not name.startswith("_") and name not in _IGNORED}
    # diffusers' own defaults, where they differ from what CogVideoX sets.
    unsaid = {"clip_sample": True, "prediction_type": "epsilon", "timestep_spacing": "leading"}
    unsaid["rescale_betas_zero_snr"] = False
    fields = tuple(field.name for field in dataclasses.fields(NoiseSchedule))
    problems = []
    if (name := config.get("_class_name")) not in (None, *SCHEDULERS.values()):
        problems.append(f"_class_name is {name!r}; accepted: {', '.join(SCHEDULERS.values())}")
    values = {**unsaid, **said}
    problems += unsupported(values, _FIXED, fields)
    if problems:
        raise InputError("this noise schedule is not supported: " + ", ".join(problems))
    return typed.checked({name: values[name] for name in fields if name in values}, NoiseSchedule, "")


def schedule_to_hf(schedule: NoiseSchedule, scheduler: Literal["ddim", "dpm"]) -> dict[str, Any]:
    """The `scheduler_config.json` with which diffusers builds the same schedule."""
    return {"_class_name": SCHEDULERS[scheduler], **dataclasses.asdict(schedule), **_FIXED}


def flow_shift_from_hf(config: Mapping[str, Any]) -> float:
    """The shift in a `scheduler/scheduler_config.json` of a flow that UniPC samples.

    Raises:
        InputError: naming the fields that describe another scheduler.
    """
    if (name := config.get("_class_name")) != FLOW_SCHEDULER:
        raise InputError(f"this scheduler is not supported: _class_name is {name!r}; accepted: {FLOW_SCHEDULER}")
    said = {name: value for name, value in config.items() if not name.startswith("_") and name not in _FLOW_IGNORED}
    values = {**_FLOW_UNSAID, "flow_shift": 1.0, **said}
    if problems := unsupported(values, _FLOW_FIXED, ("flow_shift",)):
        raise InputError("this scheduler is not supported: " + ", ".join(problems))
    return typed.checked(values["flow_shift"], float, "flow_shift")


def flow_shift_to_hf(shift: float) -> dict[str, Any]:
    """The `scheduler_config.json` with which diffusers samples a flow of this shift as `spacing="timesteps"` does."""
    return {"_class_name": FLOW_SCHEDULER, **_FLOW_FIXED, "flow_shift": shift}
