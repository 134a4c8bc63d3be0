"""Configuration of training. No jax here: data worker processes import this file."""

import dataclasses

from cinema_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of a stage."""

    # "adamw", or "muon": kernels move by their orthogonalised momentum, at AdamW's typical size (arXiv 2502.16982), and
    # everything else by AdamW, both with Nesterov momentum.
    name: str = "adamw"
    # Peak learning rate.
    learning_rate: float = 1e-4
    # Steps of linear warm-up from 0.
    warmup_steps: int = 100
    # What follows the warm-up: "constant", or "cosine" down to `final_fraction` of the peak at the last step.
    schedule: str = "constant"
    # Learning rate at the end of a cosine, as a fraction of the peak.
    final_fraction: float = 0.0
    # Decay of the two moments; with muon the first one is that of the kernels' momentum too.
    beta1: float = 0.9
    beta2: float = 0.95
    # Added to the root of the second moment.
    epsilon: float = 1e-8
    # Decoupled weight decay; applied to kernels only.
    weight_decay: float = 1e-4
    # Gradients are scaled down to this global norm.
    clip_norm: float = 1.0
    # Regular expressions of parameters, and what their learning rate is multiplied by: (("t5/.*", 0.1),).
    rates: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        bounds = {
            "name": (self.name in ("adamw", "muon"), "'adamw' or 'muon'"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "warmup_steps": (self.warmup_steps >= 0, "0 or more"),
            "schedule": (self.schedule in ("constant", "cosine"), "'constant' or 'cosine'"),
            "final_fraction": (0 <= self.final_fraction <= 1, "in [0, 1]"),
            "beta1": (0 <= self.beta1 < 1, "in [0, 1)"),
            "beta2": (0 <= self.beta2 < 1, "in [0, 1)"),
            "epsilon": (self.epsilon > 0, "above 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "clip_norm": (self.clip_norm > 0, "above 0 (inf clips nothing)"),
            "rates": (all(factor > 0 for _, factor in self.rates), "factors above 0"),
        }
        for field, (good, accepted) in bounds.items():
            if not good:
                raise InputError(f"optimizer.{field} = {getattr(self, field)!r} must be {accepted}")
