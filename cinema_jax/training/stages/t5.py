"""The stage `t5`: T5 learns the words of the data, alone."""

import jax
import jax.numpy as jnp
import numpy as np

from cinema_jax.cinema import Cinema
from cinema_jax.data.pipeline import Examples
from cinema_jax.models.numerics import at_least_fp32, token_log_likelihood
from cinema_jax.training.stages.base import Loss, Stage, per_token


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


T5 = Stage(
    "t5",
    parts=("t5",),
    teaches=("t5",),
    loss=t5_loss,
    evaluate=t5_loss,
    example=Examples.t5,
    t5_texts=("caption", "prompt"),
)
