"""The stage `vae`: the video VAE learns to bring clips back."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cinema_jax.cinema import Cinema, Params, to_float
from cinema_jax.data.pipeline import Examples
from cinema_jax.data.sheets import Group, Row, spread
from cinema_jax.devices import distributed
from cinema_jax.experiment.run import Run
from cinema_jax.models.numerics import at_least_fp32
from cinema_jax.training.metrics import MetricsWriter
from cinema_jax.training.reports import SHOWN, save_sheet
from cinema_jax.training.stages.base import Loss, Stage


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


def show_reconstructions(run: Run, cinema: Cinema, params: Params, metrics: MetricsWriter) -> dict[str, float]:
    """Held-out clips beside what the VAE makes of them."""
    source = run.source("validation")
    videos = np.stack([source.video(index) for index in range(min(SHOWN, len(source)))])
    coded = distributed.fetch(jax.jit(lambda p, v: cinema.decode_video(p, cinema.encode_video(p, v)))(params, videos))
    rows = [
        Row([Group("real", spread(a, 4)), Group("coded", spread(b, 4))]) for a, b in zip(videos, coded, strict=True)
    ]
    save_sheet(run, "vae", rows, metrics)
    return {}


VAE = Stage(
    "vae",
    parts=("vae",),
    teaches=("vae",),
    loss=vae_loss,
    evaluate=vae_evaluation,
    example=Examples.vae,
    image_example=Examples.vae_image,
    report=show_reconstructions,
)
