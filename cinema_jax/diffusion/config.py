"""What a sampler can be asked for. No jax here: data worker processes import this file."""

from typing import Literal

# unipc and euler follow the flow; ddim and dpm are CogVideoX' own, for networks that predict v.
Solver = Literal["unipc", "euler", "ddim", "dpm"]
Spacing = Literal["uniform", "cosine", "schedule", "timesteps"]
Times = Literal["logit_normal", "uniform", "schedule"]
Prediction = Literal["velocity", "v_prediction"]
FLOW_SOLVERS: tuple[Solver, ...] = ("unipc", "euler")
DISCRETE_SOLVERS: tuple[Solver, ...] = ("ddim", "dpm")
SOLVERS = FLOW_SOLVERS + DISCRETE_SOLVERS
