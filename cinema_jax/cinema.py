"""The whole model: conditions in, velocity out. The only place that knows all the parts."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from cinema_jax.config import Config
from cinema_jax.devices import sharding
from cinema_jax.diffusion.discrete import as_velocity
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.models.backbone import Backbone
from cinema_jax.models.layers import TIMESTEPS
from cinema_jax.models.numerics import at_least_fp32
from cinema_jax.models.qwen_vl.model import MLLMInputs
from cinema_jax.weights import rules

Params = Mapping[str, Any]
Batch = Mapping[str, Any]


class Conditions(NamedTuple):
    """What the video transformer is told beside the noisy video."""

    text: Float[Array, "B T D"]
    entities: Float[Array, "B K H W C"]
    entity_lengths: Int[Array, "B"]


class Cinema:
    """The structure of all parts; parameters are always passed in, as one flat dictionary of all parts' arrays.

    Args:
        config: the run's configuration.
        part_configs: part name to that part's own config.
    """

    def __init__(self, config: Config, part_configs: Mapping[str, Any]):
        self.config = config
        # What networks compute in, and what is trained is held in.
        self.dtype = jnp.dtype(config.precision)
        self.state_dtype = np.promote_types(self.dtype, np.float32)
        self.part_configs = dict(part_configs)
        self.graphs, self.shapes = {}, {}
        for name, part_config in self.part_configs.items():
            self.graphs[name], shapes = parts.structure(name, part_config)
            self.shapes |= shapes

    def held(self, params: Params) -> Params:
        """Parameters that nobody trains in the type in which they lie on the devices: what the config computes in."""
        return {path: x.astype(self.dtype) for path, x in params.items()}

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
                x = sharding.in_use(path, x.astype(self.dtype))
                # Stacked layers are gathered one by one, where they are used.
                x = x if re.search(sharding.STACKED, path) else sharding.gathered(path, x)
                own[path.removeprefix(f"{name}/")] = x
        return rules.build(self.graphs[name], own)

    def encode_video(self, params: Params, video: UInt8[Array, "B frames height width 3"]) -> Float[Array, "B F H W C"]:
        """Normalised latents (posterior mode) of clips."""
        return self.part(params, "vae").encode(to_float(video).astype(self.dtype))

    def decode_video(
        self, params: Params, latents: Float[Array, "B F H W C"]
    ) -> UInt8[Array, "B frames height width 3"]:
        """Clips of normalised latents, in tiles if the config wants it."""
        vae = self.part(params, "vae")
        decode = vae.decode_tiled if self.config.flow.tiled_decoding else vae.decode
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
        if self.config.condition.conditioner == "mllm":
            text = self.read_prompt(params, batch)
        else:
            text = self.encode_caption(params, batch["prompt_tokens"])
        return self._beside(params, text, batch)

    def _beside(self, params: Params, text: Float[Array, "B T D"], batch: Batch) -> Conditions:
        """Text, and the references of `batch` as visual entities."""
        if not self.config.condition.entities or batch["references"].shape[1] == 0:
            return self.without_entities(text)
        entities = self.encode_references(params, batch["references"])
        if self.config.condition.empty_references == "zeros":
            entities = jnp.where(batch["entities_shown"][:, None, None, None, None], entities, 0)
        return Conditions(text, entities, batch["entity_lengths"])

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
        text, entities, lengths = conditions
        narrow = (x.astype(self.dtype) for x in (video, text, entities))
        # Between the steps of a sampler, and in the loss, velocities are as wide as the video.
        return dit(*narrow, lengths, time).astype(video.dtype)


def to_float(video: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """0..255 to [-1, 1]."""
    return video.astype(float) / 127.5 - 1.0


def to_uint8(video: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """[-1, 1] to 0..255, rounded and clipped."""
    return jnp.clip(jnp.round((at_least_fp32(video) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
