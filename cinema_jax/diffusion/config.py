"""What a sampler can be asked for. No jax here: data worker processes import this file."""

from typing import Literal, get_args

Solver = Literal["unipc", "euler"]
Spacing = Literal["uniform", "cosine"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
