"""The stage `pretrain`: the video transformer learns from captions, and if the config says so from references."""

from cinema_jax.data.pipeline import Examples
from cinema_jax.training.stages.base import Stage
from cinema_jax.training.stages.flow import flow_evaluation, flow_loss

PRETRAIN = Stage(
    "pretrain",
    parts=("vae", "t5", "dit"),
    teaches=("t5", "dit"),
    loss=lambda cinema: flow_loss(cinema, cinema.pretrain_conditions, "pretrain"),
    evaluate=lambda cinema: flow_evaluation(cinema, cinema.pretrain_conditions),
    example=Examples.pretrain,
    told=Examples.pretrain_told,
    latents=True,
    t5_texts=("caption",),
)
