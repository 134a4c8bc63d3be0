"""The stage `align`: the AlignerNet learns to say of prompt and references what T5 says of the caption."""

from collections.abc import Collection, Mapping

import jax

from cinema_jax.cinema import Cinema, Params
from cinema_jax.data.pipeline import Examples
from cinema_jax.models.aligner.model import alignment_loss
from cinema_jax.training.stages.base import Loss, Stage
from cinema_jax.training.stages.flow import TIME_BUCKETS, held_out_errors
from cinema_jax.training.step import Share

# Those of `HELD_OUT_TIMES` at which the stage is judged.
_GATED = slice(2, None)


class _Align(Stage):
    def started(self, params: Params, origins: Mapping[str, str], trained: Collection[str]) -> Params:
        """A new AlignerNet's output has the size of T5's features in each channel.

        Both end in a norm times a learned scale per channel. T5's are far from 1, and Adam moves a scale by no more
        than its learning rate at each step: from 1 much of the stage would go into that alone.
        """
        ours, theirs = "aligner/output_norm/scale", "t5/final_norm/scale"
        if origins["aligner"] != "random" or ours not in trained:
            return params
        return {**params, ours: params[theirs]}


def align_loss(cinema: Cinema) -> Loss:
    """The AlignerNet's tokens against the frozen T5 features of the caption, padding positions included."""
    config = cinema.config.align

    def loss(params, batch, keys):
        target = jax.lax.stop_gradient(cinema.encode_caption(params, batch["caption_tokens"]))
        return alignment_loss(
            cinema.read_prompt(params, batch),
            target,
            batch["caption_lengths"],
            mse_weight=config.mse_weight,
            cosine_weight=config.cosine_weight,
            balanced=config.balanced,
        )

    return loss


def align_evaluation(cinema: Cinema) -> Loss:
    """The alignment loss, and what the frozen transformer makes of aligned states beside T5's own and the empty text.

    `flow_gate` says how much of what T5 has to say is missing, where text matters most: 0 is as good as T5, 1 is as bad
    as saying nothing.
    """
    aligned = align_loss(cinema)

    def loss(params, batch, keys):
        value, metrics = aligned(params, batch, keys)
        told = {
            "t5": cinema.caption_conditions(params, batch["caption_tokens"]),
            "empty": cinema.caption_conditions(params, batch["empty_tokens"]),
            "aligned": cinema.without_entities(cinema.read_prompt(params, batch)),
        }
        errors = {name: held_out_errors(cinema, params, batch, each) for name, each in told.items()}
        flows = {name: errors[name][:TIME_BUCKETS].mean() for name in ("t5", "aligned")}
        noisy = {name: each[_GATED].mean() for name, each in errors.items()}
        metrics |= {f"flow_{name}": each for name, each in flows.items()}
        metrics["flow_ratio"] = flows["aligned"] / flows["t5"]
        metrics["flow_gate"] = Share(noisy["aligned"] - noisy["t5"], noisy["empty"] - noisy["t5"])
        return value, metrics

    return loss


ALIGN = _Align(
    "align",
    parts=("vae", "t5", "mllm", "aligner", "dit"),
    teaches=("aligner",),
    loss=align_loss,
    evaluate=align_evaluation,
    example=Examples.align,
    captions=True,
    t5_texts=("caption",),
    mllm_texts=("prompt with its references", "caption"),
)
