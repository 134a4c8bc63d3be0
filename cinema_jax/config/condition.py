"""How prompt and references reach the video transformer: what a checkpoint of each kind declares, as data."""

import dataclasses
from typing import Literal

from cinema_jax.config.fields import option


@dataclasses.dataclass(frozen=True)
class ConditionConfig:
    """How prompt and references reach the video transformer."""

    conditioner: Literal["mllm", "t5", "both"] = option(
        "mllm",
        "What reads the prompt: the multimodal LLM, through the AlignerNet; T5, the paper's ablation; or both, where "
        "the transformer projects the multimodal LLM's states itself (BindWeave).",
    )
    entities: bool = option(True, "Whether references enter as visual entity tokens; off is the paper's ablation.")
    empty_references: Literal["absent", "zeros", "slots"] = option(
        "absent",
        "What dropped references, and guidance without them, leave in the place of visual entity tokens: nothing, or "
        "as many of zero latents (Phantom). The multimodal LLM sees no pictures then. slots: there are always "
        "data.max_references, and those that a video does not have are zeros too (BindWeave).",
    )
    reference_channels: Literal["latents", "masked"] = option(
        "latents",
        "What a reference's channels are: its latents; or, for transformers of Wan's I2V kind, zeros in the place of "
        "noise, a mask of where its picture lies, and its latents: the video then has those of an empty clip, and "
        "CLIP's tokens of the pictures are read, too (BindWeave).",
    )
    aligner_init: Literal["aligned", "random"] = option("aligned", "Where finetune takes the AlignerNet from.")
    mllm_layer: int = option(-1, "Which hidden state of the MLLM is read; -1: the last.")
    template: Literal["demo", "qwen", "bindweave"] = option(
        "demo", "The text around prompt and pictures: short words, the full chat, or Qwen's own with the prompt first."
    )
    mllm_tokens: int = option(512, "Tokens of the MLLM's input: instruction, references and prompt, padding included.")
    truncate: bool = option(
        False,
        "Whether texts that are too long for text_tokens or mllm_tokens are cut in training, each with its line in the "
        "log; off: they are refused, before anything is encoded or trained.",
    )
    answer_tokens: int = option(64, "Further tokens for the answer, in the mllm stage.")
    mllm_patches: int = option(192, "Image patches of one sample, over all its references.")
    mllm_max_pixels: int = option(112 * 112, "Pixel cap of one reference as the MLLM sees it.")
    mllm_min_pixels: int = option(56 * 56, "Smaller references are enlarged to this many pixels for the MLLM.")
    mllm_scales: tuple[float, float] = option(
        (1.0, 1.0),
        "By how much the sides of a picture are scaled before the multimodal LLM's own rules: of one of up to 1280 x "
        "720 pixels, and of a larger one.",
    )
    text_tokens: int = option(226, "Tokens of the text block: T5's length and the AlignerNet's latents.")
    clean_text: bool = option(
        False,
        "Whether texts are cleaned before T5 reads them, as Wan was trained: wrongly decoded characters repaired, "
        "HTML's escapes undone, all white space single.",
    )
    text_dropout: float = option(0.1, "How often training replaces the prompt by the empty one, and that alone.")
    reference_dropout: float = option(0.05, "How often it leaves the references out, and those alone.")
    joint_dropout: float = option(
        0.1, "How often it does both at once: the case that guidance is measured from at every step of the sampler."
    )
