"""How fast the networks are beside their PyTorch originals, on the CPU, in fp32:

    pip install -e ".[test]" && python benchmarks/speed.py

Both have the same random weights (through our import) and the same inputs, run in turn in one process, and must agree;
times are medians. Prints a table in Markdown. `--only=vae` runs the rows of one network: dit, t5, qwen or vae.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import app, flags
from diffusers import AutoencoderKLWan, CogVideoXTransformer3DModel
from flax import nnx
from timing import seconds

from cinema_jax.commands import command
from cinema_jax.models.cogvideox import weights as cogvideox_weights
from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.models.cogvideox.transformer import CogVideoXTransformer
from cinema_jax.models.qwen_vl import config as qwen_config
from cinema_jax.models.qwen_vl import weights as qwen_weights
from cinema_jax.models.qwen_vl.config import MLLMInputs, Qwen2VLConfig, Qwen2VLVisionConfig
from cinema_jax.models.qwen_vl.model import Qwen2VL
from cinema_jax.models.qwen_vl.processing import mrope_positions, patch_grid
from cinema_jax.models.t5 import weights as t5_weights
from cinema_jax.models.t5.config import T5Config
from cinema_jax.models.t5.model import T5Encoder
from cinema_jax.models.wan import weights as wan_weights
from cinema_jax.models.wan.config import WanVAEConfig
from cinema_jax.models.wan.vae import WanVAE
from cinema_jax.weights.rules import flatten, import_weights, load_into

ONLY = flags.DEFINE_enum("only", None, ["dit", "t5", "qwen", "vae"], "One network alone.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Runs of each, after two for warming up.", lower_bound=1)
THREADS = 2
# Seconds after which the other library's threads are asleep.
PAUSE = 0.3
IMAGE_TOKEN = 7


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. Both functions take nothing and return a number or an array to compare."""

    name: str
    parameters: int
    original: str
    theirs: Callable[[], np.ndarray]
    ours: Callable[[], np.ndarray]


def with_weights_of(original: torch.nn.Module, model: nnx.Module, table: Any, read: Callable = dict) -> tuple[Any, Any]:
    """Our graph and our state with the original's weights."""
    tensors = {name: x.detach().numpy() for name, x in original.state_dict().items()}
    load_into(model, import_weights(read(tensors), table, flatten(model)))
    graph, state = nnx.split(model)
    return graph, jax.tree.map(jnp.asarray, state)


def size_of(original: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in original.parameters())


def normal(*shape: int) -> np.ndarray:
    """Reproducible inputs."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def lively(original: torch.nn.Module) -> torch.nn.Module:
    """The network with every matrix random: some start at zero, and would compute nothing."""
    with torch.no_grad():
        for parameter in original.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return original.eval()


def dit() -> Iterator[Row]:
    """A small CogVideoX: 226 text tokens and 5 x 16 x 16 patches."""
    config = CogVideoXConfig(num_layers=6, num_attention_heads=12, sample_height=32, sample_width=32, sample_frames=17)
    config = dataclasses.replace(config, remat="none")
    original = lively(CogVideoXTransformer3DModel.from_config(cogvideox_weights.config_to_hf(config)))
    model = nnx.eval_shape(lambda: CogVideoXTransformer(config, rngs=nnx.Rngs(0)))
    graph, state = with_weights_of(original, model, cogvideox_weights.TABLE)
    video, text = normal(1, 5, 32, 32, 16), normal(1, 226, 4096)

    def their_forward():
        video_ = torch.tensor(video).permute(0, 1, 4, 2, 3)
        return original(video_, torch.tensor(text), torch.tensor([700.0])).sample.permute(0, 1, 3, 4, 2)

    def their_loss():
        original.zero_grad()
        their_forward().square().mean().backward()
        return original.patch_embed.proj.weight.grad.numpy().transpose(2, 3, 1, 0)

    forward = jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))
    loss = jax.jit(jax.grad(lambda state, *inputs: jnp.mean(nnx.merge(graph, state)(*inputs) ** 2)))
    inputs = jnp.asarray(video), jnp.asarray(text), None, None, jnp.array([0.7])
    row = f"DiT, {226 + 5 * 16 * 16} tokens"
    parameters = size_of(original)
    with torch.no_grad():
        yield Row(f"{row}, forward", parameters, "diffusers", their_forward, lambda: forward(state, *inputs))
    ours = lambda: loss(state, *inputs)["patch_embed"]["kernel"].get_value()  # noqa: E731
    yield Row(f"{row}, forward + backward", parameters, "diffusers", their_loss, ours)


def t5() -> Iterator[Row]:
    """T5 v1.1 large with eight layers, 226 tokens."""
    config = T5Config(d_model=1024, d_kv=64, d_ff=2816, num_layers=8, num_heads=16)
    original = transformers.T5EncoderModel(transformers.T5Config(**t5_weights.config_to_hf(config))).eval()
    model = nnx.eval_shape(lambda: T5Encoder(config, rngs=nnx.Rngs(0)))
    graph, state = with_weights_of(original, model, t5_weights.table(config), t5_weights.untie)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 226), np.int32)
    forward = jax.jit(lambda state, tokens: nnx.merge(graph, state)(tokens))
    ours = lambda: forward(state, tokens)  # noqa: E731
    theirs = lambda: original(torch.tensor(tokens)).last_hidden_state  # noqa: E731
    with torch.no_grad():
        yield Row("T5, 226 tokens, forward", size_of(original), "transformers", theirs, ours)


def small_qwen() -> tuple[torch.nn.Module, Any, Any, MLLMInputs, dict[str, torch.Tensor]]:
    """A Qwen2-VL, theirs and ours (graph and state), and what both read: two images of 224 x 224 pixels among words."""
    vision = Qwen2VLVisionConfig(depth=7, embed_dim=512, num_heads=8)
    config = Qwen2VLConfig(
        vision=vision,
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=12,
        num_key_value_heads=2,
        mrope_section=(8, 12, 12),
        tie_word_embeddings=True,
        image_token_id=IMAGE_TOKEN,
    )
    original = transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig.from_dict(qwen_config.config_to_hf(config))
    ).eval()
    model = nnx.eval_shape(lambda: Qwen2VL(config, rngs=nnx.Rngs(0)))
    read = lambda tensors: qwen_weights.drop_head(tensors, config)  # noqa: E731
    graph, state = with_weights_of(original, model, qwen_weights.table(config), read)
    grids, images = [(8, 8), (8, 8)], np.full(64, IMAGE_TOKEN)
    words = np.random.default_rng(0).integers(100, config.vocab_size, 100)
    tokens = np.concatenate([words[:40], images, words[40:50], images, words[50:]])[None].astype(np.int32)
    patches = normal(512, vision.patch_dim)
    inputs = MLLMInputs(
        tokens=tokens,
        lengths=np.array([tokens.size], np.int32),
        positions=mrope_positions(tokens[0] == IMAGE_TOKEN, grids)[None],
        patches=patches[None],
        patch_segments=np.repeat(np.int32([1, 2]), 256)[None],
        patch_positions=np.concatenate([patch_grid(16, 16, 2)] * 2)[None],
    )
    ids = torch.tensor(tokens).long()
    theirs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.tensor(patches),
        "image_grid_thw": torch.tensor([[1, 16, 16]] * 2),
        "mm_token_type_ids": (ids == IMAGE_TOKEN).int(),
    }
    return original, graph, state, inputs, theirs


def qwen() -> Iterator[Row]:
    """A small Qwen2-VL reads two images among 100 words."""
    original, graph, state, inputs, given = small_qwen()
    forward = jax.jit(lambda state, inputs: nnx.merge(graph, state).hidden_states(inputs))
    theirs = lambda: original.model(**given, use_cache=False).last_hidden_state  # noqa: E731
    with torch.no_grad():
        name = f"Qwen2-VL, {inputs.tokens.size} tokens with 2 images, forward"
        yield Row(name, size_of(original), "transformers", theirs, lambda: forward(state, inputs))


def vae() -> Iterator[Row]:
    """The Wan VAE at its full size."""
    config = WanVAEConfig()
    original = AutoencoderKLWan.from_config(wan_weights.config_to_hf(config)).eval()
    model = nnx.eval_shape(lambda: WanVAE(config, rngs=nnx.Rngs(0)))
    graph, state = with_weights_of(original, model, wan_weights.TABLE)
    video, latents = normal(1, 9, 128, 128, 3).clip(-1, 1), normal(1, 3, 16, 16, 16)
    encode = jax.jit(lambda state, x: nnx.merge(graph, state).encode(x))
    decode = jax.jit(lambda state, x: nnx.merge(graph, state).decode(x))
    encode_at_once = jax.jit(lambda state, x: nnx.merge(graph, state).encode_moments(x)[0])
    decode_at_once = jax.jit(lambda state, x: nnx.merge(graph, state).decode_raw(x))
    mean, std = (np.array(x, np.float32) for x in (config.latents_mean, config.latents_std))
    channels_first, channels_last = (0, 4, 1, 2, 3), (0, 2, 3, 4, 1)

    def their_encode():
        moments = original.encode(torch.tensor(video).permute(channels_first)).latent_dist
        return (moments.mean.permute(channels_last) - mean) / std

    def their_decode():
        raw = torch.tensor(latents * std + mean).permute(channels_first)
        return original.decode(raw).sample.permute(channels_last)

    def rows():
        yield "encode", their_encode, lambda: encode(state, video)
        yield "encode at once", their_encode, lambda: (encode_at_once(state, video) - mean) / std
        yield "decode", their_decode, lambda: decode(state, latents)
        yield "decode at once", their_decode, lambda: jnp.clip(decode_at_once(state, latents * std + mean), -1, 1)

    parameters = size_of(original)
    with torch.no_grad():
        for name, theirs, ours in rows():
            yield Row(f"Wan VAE, 9 x 128 x 128, {name}", parameters, "diffusers", theirs, ours)


def measure(row: Row) -> str:
    """The row's line of the table."""
    expected, found = (np.asarray(function()) for function in (row.theirs, row.ours))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-3, f"{row.name}: the networks differ by {error:.1e}"
    pair = lambda: tuple(seconds(function, pause=PAUSE) for function in (row.theirs, row.ours))  # noqa: E731
    pair()
    times = [pair() for _ in range(ROUNDS.value)]
    theirs, ours = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    millions = row.parameters / 1e6
    return (
        f"| {row.name} | {millions:.1f} M | {row.original} {theirs:.2f} s | {ours:.2f} s | {ratio:.2f} | {error:.0e} |"
    )


def main(_) -> None:
    """Print the table."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    print("| work | parameters | PyTorch | cinema_jax | ratio | difference |\n|---|---|---|---|---|---|")
    for rows in (dit, t5, qwen, vae):
        for row in rows() if ONLY.value in (None, rows.__name__) else ():
            print(measure(row), flush=True)


if __name__ == "__main__":
    command.with_huge_pages()
    app.run(main)
