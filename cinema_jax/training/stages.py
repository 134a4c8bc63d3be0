"""The six stages: what each one's loss is, which parts it needs, and what its held-out evaluation says.

A loss takes `(params, batch, keys)`, where `params` are the trainable and frozen parameters together and `keys` holds
one random key per sample, and returns loss and metrics: means over samples, or where these are of unequal length a
`Share` of two such means.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from cinema_jax.cinema import Batch, Cinema, Conditions, Params, to_float
from cinema_jax.config import Config
from cinema_jax.diffusion import flow
from cinema_jax.errors import InputError
from cinema_jax.models.aligner.model import alignment_loss
from cinema_jax.models.numerics import at_least_fp32, token_log_likelihood
from cinema_jax.models.qwen_vl.model import MLLMInputs
from cinema_jax.training.optimizer import Optimizer
from cinema_jax.training.state import TrainState, trained
from cinema_jax.training.step import Share, TrainStep, make_train_step

Metrics = dict[str, Float[Array, ""] | Share]
Loss = Callable[[Params, Batch, Key[Array, "B"]], tuple[Float[Array, ""] | Share, Metrics]]

# Equal parts of the flow's time, of which training and evaluation report the loss apart: `loss_t0` is the least noise.
TIME_BUCKETS = 4
# Where the held-out error is looked at: in the middle of each of these, and where layout, number and place of subjects
# are decided. `eval_loss` is over the first.
HELD_OUT_TIMES = (0.125, 0.375, 0.625, 0.875, 0.95, 0.99)
# Those at which `align` is judged.
_GATED = slice(2, None)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training."""

    name: str
    # The parts its step and its report use, where the MLLM reads prompts.
    parts: tuple[str, ...]
    # Those of them that its loss can teach. Not the VAE whose latents a stage is given: it made them as it was.
    teaches: tuple[str, ...]
    # Builds the training loss, and the held-out one.
    loss: Callable[[Cinema], Loss]
    evaluate: Callable[[Cinema], Loss]
    # Whether it trains on cached latents of the videos.
    latents: bool = False

    def needed(self, config: Config) -> tuple[str, ...]:
        """The parts that a run of this config needs: T5 and no AlignerNet, where that reads finetune's prompts."""
        if self.name != "finetune" or config.condition.conditioner == "mllm":
            return self.parts
        # The MLLM judges drawn subjects, though it does not read.
        unused = ("aligner",) if config.data.source == "critters" and not config.data.subjects else ("aligner", "mllm")
        return (*(part for part in self.parts if part not in unused), "t5")

    def taught(self, config: Config) -> tuple[str, ...]:
        """The parts that the loss of such a run can teach: T5 and not the AlignerNet, where that reads no prompt."""
        reads_t5 = self.name == "finetune" and config.condition.conditioner == "t5"
        return tuple("t5" if reads_t5 and part == "aligner" else part for part in self.teaches)

    def trained(self, config: Config, paths: Iterable[str]) -> tuple[list[str], list[str]]:
        """Parameter paths that the stage trains, and the rest, in order.

        Raises:
            InputError: a pattern of `trainable` or of the rates that is none, matches nothing, or names parameters
                that have no gradient.
        """
        paths = list(paths)
        self.check_trainable(config, paths)
        return trained(paths, getattr(config, self.name))

    def check_trainable(self, config: Config, paths: Iterable[str]) -> None:
        """Refuse patterns of parameters that have no gradient: weight decay alone would move them.

        Args:
            paths: of all parameters.

        Raises:
            InputError: names the pattern and the part, and the parts that can be trained.
        """
        taught, paths = self.taught(config), list(paths)
        for pattern in getattr(config, self.name).trainable:
            named = {path.split("/")[0] for path in paths if re.fullmatch(pattern, path)}
            if others := sorted(named.difference(taught)):
                raise InputError(
                    f"config.{self.name}.trainable holds {pattern!r}, which names parameters of {', '.join(others)}; "
                    f"the loss of this stage can train {', '.join(taught)} alone"
                )


def make_step(stage: Stage, cinema: Cinema, optimizer: Optimizer, state: TrainState) -> TrainStep:
    """The compiled step of a stage, for states like `state`, which may be abstract."""
    loss, config = stage.loss(cinema), getattr(cinema.config, stage.name)
    return make_train_step(
        lambda params, frozen, batch, keys: loss({**frozen, **params}, batch, keys),
        optimizer,
        state,
        ema_decay=config.ema_decay,
        microbatches=config.microbatches,
    )


def vae_loss(cinema: Cinema) -> Loss:
    """Mean squared error of reconstructed pixels plus a small KL term that keeps the latents bounded."""

    def loss(params, batch, keys):
        video = to_float(batch["video"])
        vae = cinema.part(params, "vae")
        mean, logvar = map(at_least_fp32, vae.encode_moments(video.astype(cinema.dtype)))
        logvar = jnp.clip(logvar, -30.0, 20.0)
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        decoded = vae.decode_raw((mean + jnp.exp(0.5 * logvar) * noise).astype(cinema.dtype))
        error = jnp.mean((at_least_fp32(decoded) - video) ** 2)
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1.0 - logvar)
        return error + cinema.config.vae.kl_weight * kl, {"mse": error, "kl": kl, "psnr": psnr(error)}

    return loss


def vae_evaluation(cinema: Cinema) -> Loss:
    """PSNR of clips through the posterior mode, averaged over clips."""

    def loss(params, batch, keys):
        video = to_float(batch["video"])
        vae = cinema.part(params, "vae")
        decoded = at_least_fp32(vae.decode_raw(vae.encode_moments(video.astype(cinema.dtype))[0]))
        decoded = jnp.clip(decoded, -1.0, 1.0)
        errors = jnp.mean((decoded - video) ** 2, axis=(1, 2, 3, 4))
        return errors.mean(), {"psnr": psnr(errors).mean()}

    return loss


def psnr(mse: Float[Array, "..."]) -> Float[Array, "..."]:
    """Peak signal-to-noise ratio in dB of a mean squared error over values in [-1, 1]."""
    return 10.0 * jnp.log10(4.0 / mse)


def mllm_loss(cinema: Cinema) -> Loss:
    """Next-token cross entropy on the answer's tokens."""

    def loss(params, batch, keys):
        inputs = MLLMInputs.from_batch(batch)
        logits = at_least_fp32(cinema.part(params, "mllm").logits(inputs)[:, :-1])
        targets, mask = batch["tokens"][:, 1:], batch["loss_mask"][:, 1:].astype(logits.dtype)
        log_likelihood = token_log_likelihood(logits, targets)
        correct = (logits.argmax(-1) == targets).astype(logits.dtype)
        return per_token(-log_likelihood, mask), {"token_accuracy": per_token(correct, mask)}

    return loss


def t5_loss(cinema: Cinema) -> Loss:
    """Denoising: the true tokens of texts in which some were replaced, as cross entropy over all but padding.

    The features' products with the token embedding, scaled as in T5 (arXiv 1910.10683), are the logits.
    """
    config, sizes = cinema.config.t5, cinema.part_configs["t5"]

    def loss(params, batch, keys):
        tokens = batch["tokens"]
        draws = jax.vmap(lambda key: jax.random.bits(key, (2, tokens.shape[1])))(keys)
        real = jnp.arange(tokens.shape[1]) < batch["lengths"][:, None]
        corrupted = real & (draws[:, 0] < np.uint32(config.corruption * (2**32 - 1)))
        seen = jnp.where(corrupted, (draws[:, 1] % sizes.vocab_size).astype(tokens.dtype), tokens)
        embedding = cinema.part(params, "t5").token_embedding[...]
        logits = at_least_fp32(cinema.encode_caption(params, seen) @ embedding.T) * sizes.d_model**-0.5
        log_likelihood = token_log_likelihood(logits, tokens)
        found = (logits.argmax(-1) == tokens).astype(logits.dtype)
        return per_token(-log_likelihood, real), {"corrupted_accuracy": per_token(found, corrupted)}

    return loss


def per_token(values: Float[Array, "B T"], mask: Shaped[Array, "B T"]) -> Share:
    """The mean over those tokens of all samples together that `mask` marks."""
    mask = mask.astype(values.dtype)
    return Share((values * mask).sum(axis=1).mean(), mask.sum(axis=1).mean())


def flow_loss(cinema: Cinema, conditions: Callable[[Params, Batch], Conditions], stage: str) -> Loss:
    """Flow matching on the video's tokens, at random times and noise.

    With `flow.times="schedule"` the loss is the error of v, at times as often as in the transformer's own pretraining.
    """
    config = cinema.config.flow

    def loss(params, batch, keys):
        latents = batch["latents"]
        times = training_times(cinema.config, stage, keys, batch["index"])
        noise = flow.sample_noise(keys, latents.shape[1:])
        told, weights = conditions(params, batch), batch.get("error_weights")
        errors = flow_errors(cinema, params, latents, noise, times, told, weights)
        weighted = errors * flow.v_weight(times) if config.times == "schedule" else errors
        return weighted.mean(), by_time(errors, times)

    return loss


def training_times(config: Config, stage: str, keys: Key[Array, "B"], indices: Int[Array, "B"]) -> Float[Array, "B"]:
    """The times of a batch, or of one of its microbatches, as `config.flow` wants them.

    Args:
        indices: the samples' global example indices.
    """
    how, own = config.flow, getattr(config, stage)
    if how.times == "logit_normal" and not how.stratified:
        return flow.logit_normal_times(keys, mean=how.time_mean, std=how.time_std, shift=how.shift)
    # Not the config's: the phases of a stage have batches of their own.
    batch_size = len(indices) * own.microbatches
    return times_below(config, flow.shares(keys, indices if how.stratified else None, batch_size))


def times_below(config: Config, shares: Float[Array, "B"]) -> Float[Array, "B"]:
    """The times below which training draws those shares of its times."""
    how = config.flow
    return flow.times_at(
        shares,
        mean=how.time_mean,
        std=how.time_std,
        shift=how.shift,
        uniform=how.times == "uniform",
        levels=config.schedule.flow_times() if how.times == "schedule" else None,
    )


def noisier(config: Config) -> list[float]:
    """Of the times that training draws, the share that lies beyond each of `HELD_OUT_TIMES`."""
    times = times_below(config, (jnp.arange(10_000) + 0.5) / 10_000)
    return [float(jnp.mean(times > time)) for time in HELD_OUT_TIMES]


def by_time(errors: Float[Array, "B"], times: Float[Array, "B"]) -> Metrics:
    """The samples' errors, apart for each bucket of their times."""
    bucket = jnp.minimum((times * TIME_BUCKETS).astype(jnp.int32), TIME_BUCKETS - 1)
    inside = [bucket == i for i in range(TIME_BUCKETS)]
    return {
        f"loss_t{i}": Share(jnp.where(here, errors, 0.0).mean(), here.astype(errors.dtype).mean())
        for i, here in enumerate(inside)
    }


def flow_evaluation(cinema: Cinema, conditions: Callable[[Params, Batch], Conditions]) -> Loss:
    """The same with fixed noise, at fixed times; the loss is over those in the middle of the `TIME_BUCKETS`."""

    def loss(params, batch, keys):
        errors = held_out_errors(cinema, params, batch, conditions(params, batch))
        return errors[:TIME_BUCKETS].mean(), {f"loss_t{i}": errors[i] for i in range(len(HELD_OUT_TIMES))}

    return loss


def held_out_errors(cinema: Cinema, params: Params, batch: Batch, told: Conditions) -> Float[Array, "times"]:
    """The mean error of a batch at each of `HELD_OUT_TIMES`, each with its own fixed noise."""
    latents, grid = batch["latents"], jnp.asarray(HELD_OUT_TIMES, float)

    def at(i):
        noise = flow.evaluation_noise(batch["index"], i, latents.shape[1:])
        times = jnp.full(latents.shape[0], grid[i])
        return flow_errors(cinema, params, latents, noise, times, told).mean()

    return jax.lax.map(at, jnp.arange(len(grid)))


def flow_errors(
    cinema: Cinema,
    params: Params,
    latents: Float[Array, "B F H W C"],
    noise: Float[Array, "B F H W C"],
    times: Float[Array, "B"],
    conditions: Conditions,
    weights: Float[Array, "B F H W"] | None = None,
) -> Float[Array, "B"]:
    """Per-sample flow matching error at given times and noise."""
    velocity = cinema.velocity(params, flow.interpolate(latents, noise, times), times, conditions)
    return flow.flow_loss(velocity, latents, noise, weights)


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


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("vae", ("vae",), ("vae",), vae_loss, vae_evaluation),
        Stage("mllm", ("mllm",), ("mllm",), mllm_loss, mllm_loss),
        Stage("t5", ("t5",), ("t5",), t5_loss, t5_loss),
        Stage(
            "pretrain",
            ("vae", "t5", "dit"),
            ("t5", "dit"),
            lambda cinema: flow_loss(cinema, cinema.pretrain_conditions, "pretrain"),
            lambda cinema: flow_evaluation(cinema, cinema.pretrain_conditions),
            latents=True,
        ),
        Stage("align", ("vae", "t5", "mllm", "aligner", "dit"), ("aligner",), align_loss, align_evaluation),
        Stage(
            "finetune",
            ("vae", "mllm", "aligner", "dit"),
            ("aligner", "dit"),
            lambda cinema: flow_loss(cinema, cinema.conditions, "finetune"),
            lambda cinema: flow_evaluation(cinema, cinema.conditions),
            latents=True,
        ),
    )
}
