"""The stages of training, each in a file of its own."""

from cinema_jax.training.stages.align import ALIGN
from cinema_jax.training.stages.base import Stage, make_step
from cinema_jax.training.stages.finetune import FINETUNE
from cinema_jax.training.stages.mllm import MLLM
from cinema_jax.training.stages.pretrain import PRETRAIN
from cinema_jax.training.stages.t5 import T5
from cinema_jax.training.stages.vae import VAE

STAGES: dict[str, Stage] = {stage.name: stage for stage in (VAE, MLLM, T5, PRETRAIN, ALIGN, FINETUNE)}

__all__ = ["STAGES", "Stage", "make_step"]
