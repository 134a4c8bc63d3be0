"""The whole model: conditions in, velocity out. The only place that knows all the parts."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from cinema_jax.config import Config
from cinema_jax.devices import sharding
from cinema_jax.diffusion.discrete import as_velocity
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.models.backbone import Backbone
from cinema_jax.models.clip.model import squashed
from cinema_jax.models.layers import TIMESTEPS
from cinema_jax.models.numerics import at_least_fp32
from cinema_jax.models.qwen_vl.model import MLLMInputs
from cinema_jax.weights import rules
from cinema_jax.weights.quantised import SCALE, Kind

Params = Mapping[str, Any]
Batch = Mapping[str, Any]


class Conditions(NamedTuple):
    """What the video transformer is told beside the noisy video."""

    text: Float[Array, "B T D"]
    entities: Float[Array, "B K H W C"]
    entity_lengths: Int[Array, "B"]
    # For transformers that read more (Wan's I2V kind, BindWeave): what stands beside the noise in the video's channels,
    # CLIP's tokens of the references, and the MLLM's states with how many of them are those of each sample.
    channels: Float[Array, "B F H W C2"] | None = None
    images: Float[Array, "B I Di"] | None = None
    states: Float[Array, "B L Dm"] | None = None
    state_lengths: Int[Array, "B"] | None = None


class Cinema:
    """The structure of all parts; parameters are always passed in, as one flat dictionary of all parts' arrays.

    Args:
        config: the run's configuration.
        part_configs: part name to that part's own config.
        quantised: part name to what the large kernels of that part are, if not numbers: each then has its codes in
            its place and `<path>_scale` beside it.
    """

    def __init__(
        self, config: Config, part_configs: Mapping[str, Any], quantised: Mapping[str, Kind] = MappingProxyType({})
    ):
        self.config = config
        # What networks compute in, and what is trained is held in.
        self.dtype = jnp.dtype(config.precision)
        self.state_dtype = np.promote_types(self.dtype, np.float32)
        self.part_configs, self.quantised = dict(part_configs), dict(quantised)
        self.graphs, self.shapes = {}, {}
        for name, part_config in self.part_configs.items():
            self.graphs[name], shapes = parts.structure(name, part_config, self.quantised.get(name))
            self.shapes |= shapes
        scales = [path for path in self.shapes if path.endswith(SCALE)]
        self._as_they_are = {*scales, *(path.removesuffix(SCALE) for path in scales)}

    def held(self, params: Params) -> Params:
        """Parameters that nobody trains in the type in which they lie on the devices: what the config computes in."""
        return {path: self._narrow(path, x) for path, x in params.items()}

    def _narrow(self, path: str, x: Any) -> Any:
        """A parameter in the type that the config computes in; codes and their scales have types of their own."""
        return x if path in self._as_they_are else x.astype(self.dtype)

    def part(self, params: Params, name: str) -> Any:
        """The module of a part, holding its share of `params`, in the type that the config computes in.

        Raises:
            InputError: the part is not among those that were loaded.
        """
        if name not in self.graphs:
            raise InputError(f"the {name} is not loaded; loaded are {', '.join(self.graphs)}")
        own = {}
        for path, x in params.items():
            if path.startswith(f"{name}/"):
                x = sharding.in_use(path, self._narrow(path, x))
                # Stacked layers are gathered one by one, where they are used.
                x = x if re.search(sharding.STACKED, path) else sharding.gathered(path, x)
                own[path.removeprefix(f"{name}/")] = x
        return rules.build(self.graphs[name], own)

    def encode_video(self, params: Params, video: UInt8[Array, "B frames height width 3"]) -> Float[Array, "B F H W C"]:
        """Normalised latents (posterior mode) of clips."""
        return self.part(params, "vae").encode(to_float(video).astype(self.dtype))

    def decode_video(
        self, params: Params, latents: Float[Array, "B F H W C"], tiled: bool | None = None
    ) -> UInt8[Array, "B frames height width 3"]:
        """Clips of normalised latents, in tiles if that is wanted; None: if the config wants it."""
        vae = self.part(params, "vae")
        decode = vae.decode_tiled if (self.config.flow.tiled_decoding if tiled is None else tiled) else vae.decode
        return to_uint8(decode(latents.astype(self.dtype)))

    def encode_references(
        self, params: Params, references: UInt8[Array, "B K height width 3"]
    ) -> Float[Array, "B K H W C"]:
        """Latents of the references, each a clip of one frame."""
        vae = self.part(params, "vae")

        # One after the other: pictures are large, and a batch of them is work enough.
        def encode(pictures: UInt8[Array, "B height width 3"]) -> Float[Array, "B H W C"]:
            return vae.encode(to_float(pictures[:, None]).astype(self.dtype))[:, 0]

        return jax.lax.map(encode, references.swapaxes(0, 1)).swapaxes(0, 1)

    def encode_caption(self, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """What the text encoder says of all positions; of padding, what its transformer was trained with."""
        return self.part(params, "t5").features(tokens)

    def prompt_states(self, params: Params, batch: Batch) -> Float[Array, "B L D"]:
        """The MLLM's states of prompts and references, which the aligner reads; what is behind a prompt is padding."""
        inputs = MLLMInputs.from_batch(batch)
        inputs = inputs._replace(patches=inputs.patches.astype(self.dtype))
        return self.part(params, "mllm").hidden_states(inputs, self.config.condition.mllm_layer)

    def read_prompt(self, params: Params, batch: Batch) -> Float[Array, "B T D"]:
        """The aligner's tokens for prompts and references as the MLLM reads them."""
        states, lengths = self.prompt_states(params, batch), MLLMInputs.from_batch(batch).lengths
        return self.part(params, "aligner")(jax.lax.stop_gradient(states), lengths)

    def conditions(self, params: Params, batch: Batch) -> Conditions:
        """What `batch` (see `data/pipeline.py`) tells the transformer, by the configured conditioner."""
        reader = self.config.condition.conditioner
        if reader == "mllm":
            text = self.read_prompt(params, batch)
        else:
            text = self.encode_caption(params, batch["prompt_tokens"])
        told = self._beside(params, text, batch)
        if reader != "both":
            return told
        return told._replace(states=self.prompt_states(params, batch), state_lengths=batch["lengths"])

    def _beside(self, params: Params, text: Float[Array, "B T D"], batch: Batch) -> Conditions:
        """Text, and the references of `batch` as visual entities."""
        if not self.config.condition.entities or batch["references"].shape[1] == 0:
            return self.without_entities(text)
        condition, lengths = self.config.condition, batch["entity_lengths"]
        entities, count = self.encode_references(params, batch["references"]), batch["references"].shape[1]
        if condition.empty_references == "absent":
            return Conditions(text, entities, lengths)
        seen = batch["entities_shown"][:, None] & (jnp.arange(count) < lengths[:, None])
        entities = jnp.where(seen[..., None, None, None], entities, 0)
        if condition.empty_references == "slots":
            lengths = jnp.full_like(lengths, count)
        if condition.reference_channels == "latents":
            return Conditions(text, entities, lengths)
        entities, channels = self._masked(params, entities, jnp.where(seen[..., None], batch["areas"], 0), batch)
        return Conditions(text, entities, lengths, channels, self.picture_tokens(params, batch["references"], seen))

    def _masked(
        self, params: Params, latents: Float[Array, "B K H W C"], areas: Int[Array, "B K 4"], batch: Batch
    ) -> tuple[Float[Array, "B K H W C2"], Float[Array, "B F H W C3"]]:
        """References with the channels of a network of Wan's I2V kind, and what the video has beside its noise.

        These are a mask and latents: of a reference where its picture lies, and its own; of the video nothing that is
        given, and those of a clip in mid-grey.

        Args:
            areas: left, top, right and bottom of the pictures, in pixels.
        """
        scale, (height, width) = self.part_configs["vae"].spatial_compression, latents.shape[2:4]
        left, top, right, bottom = (x[..., None] for x in jnp.unstack(areas, axis=-1))
        # The nearest pixel to a latent is the first of those it stands for.
        rows, columns = scale * jnp.arange(height), scale * jnp.arange(width)
        mask = ((top <= rows) & (rows < bottom))[..., :, None] & ((left <= columns) & (columns < right))[..., None, :]
        noise = jnp.zeros_like(latents)
        # As many channels as frames of a latent, of which a picture has one.
        rest = self.part_configs["dit"].in_channels - 2 * latents.shape[-1]
        mask = jnp.pad(mask[..., None].astype(latents.dtype), [(0, 0)] * 4 + [(0, rest - 1)])
        grey = jnp.zeros((1, batch["frames_given"].shape[1], scale * height, scale * width, 3), self.dtype)
        clip = self.part(params, "vae").encode(grey)
        channels = jnp.pad(clip, [(0, 0)] * 4 + [(rest, 0)])
        channels = jnp.broadcast_to(channels, (len(latents), *channels.shape[1:]))
        return jnp.concatenate([noise, mask, latents], axis=-1), channels

    def picture_tokens(
        self, params: Params, references: UInt8[Array, "B K height width 3"], seen: Bool[Array, "B K"]
    ) -> Float[Array, "B I D"]:
        """CLIP's tokens of all references, before its last layer; of those that are not `seen`, as many zeros."""
        clip = self.part(params, "clip")
        size = self.part_configs["clip"].image_size
        tokens = jax.lax.map(lambda pictures: clip(squashed(pictures, size)), references.swapaxes(0, 1))
        tokens = jnp.where(seen[..., None, None], tokens.swapaxes(0, 1), 0)
        return tokens.reshape(len(tokens), -1, tokens.shape[-1])

    def pretrain_conditions(self, params: Params, batch: Batch) -> Conditions:
        """The caption through T5, with the references that `config.pretrain.references` shows."""
        text = self.encode_caption(params, batch["caption_tokens"])
        return self._beside(params, text, batch) if self.config.pretrain.references else self.without_entities(text)

    def caption_conditions(self, params: Params, tokens: Int[Array, "B T"]) -> Conditions:
        """Text-to-video conditions: the caption through T5, no references."""
        return self.without_entities(self.encode_caption(params, tokens))

    def without_entities(self, text: Float[Array, "B T D"]) -> Conditions:
        """Conditions of text alone, with room for no reference."""
        dit, size = self.part_configs["dit"], text.shape[0]
        empty = jnp.zeros((size, 0, dit.patch_size, dit.patch_size, dit.in_channels), text.dtype)
        return Conditions(text, empty, jnp.zeros(size, jnp.int32))

    def velocity(
        self, params: Params, video: Float[Array, "B F H W C"], time: Float[Array, "B"], conditions: Conditions
    ) -> Float[Array, "B F H W C"]:
        """The velocity d(video)/d(time) at flow time `time` (1 = noise)."""
        if self.config.flow.prediction == "velocity":
            return self._transform(params, video, time, conditions)
        return as_velocity(lambda z, t: self.predict_v(params, z, t, conditions), self.config.schedule)(video, time)

    def predict_v(
        self, params: Params, video: Float[Array, "B F H W C"], timestep: Float[Array, "B"], conditions: Conditions
    ) -> Float[Array, "B F H W C"]:
        """What a transformer with `flow.prediction="v_prediction"` says at a timestep of its noise schedule."""
        return self._transform(params, video, timestep / TIMESTEPS, conditions)

    def _transform(self, params: Params, video: Array, time: Array, conditions: Conditions) -> Array:
        dit: Backbone = self.part(params, "dit")
        text, entities, lengths, channels, *_ = conditions
        noisy = video if channels is None else jnp.concatenate([video, channels.astype(video.dtype)], axis=-1)
        narrow = (x.astype(self.dtype) for x in (noisy, text, entities))
        more = {"images": conditions.images, "states": conditions.states, "state_lengths": conditions.state_lengths}
        more = {name: x for name, x in more.items() if x is not None}
        # Between the steps of a sampler, and in the loss, velocities are as wide as the video.
        return dit(*narrow, lengths, time, **more).astype(video.dtype)


def to_float(video: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """0..255 to [-1, 1]."""
    return video.astype(float) / 127.5 - 1.0


def to_uint8(video: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """[-1, 1] to 0..255, rounded and clipped."""
    return jnp.clip(jnp.round((at_least_fp32(video) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
