"""BindWeave in PyTorch at toy size, from its description: diffusers' I2V blocks, and transformers' Qwen2.5-VL and CLIP.

Written for one sample and with nothing of this project in it, so that what it computes is an independent answer.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.embeddings import PixArtAlphaTextProjection
from PIL import Image
from released import tokenizer
from safetensors.torch import save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from cinema_jax.models.qwen_vl.processing import BINDWEAVE_TEMPLATE
from cinema_jax.models.qwen_vl.tokenizer import build_word_tokenizer

SLOTS, STATES, TEXT, CLIP_SIZE, CLIP_TOKENS = 4, 32, 16, 28, 5
HEIGHT, WIDTH, FRAMES, STEPS, GUIDANCE = 32, 48, 9, 3, 5.0
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
SIZES = {"vocab_size": 50, "d_model": TEXT, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}


class _Reads(torch.nn.Module):
    """Cross-attention to the image tokens and, apart from it, to all text tokens: diffusers' own reads 512 of these."""

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, rotary_emb=None):
        images, text = encoder_hidden_states.split([SLOTS * CLIP_TOKENS, encoder_hidden_states.shape[1] - 20], dim=1)
        q = attn.norm_q(attn.to_q(hidden_states))
        told = attn.norm_k(attn.to_k(text)), attn.to_v(text)
        seen = attn.norm_added_k(attn.add_k_proj(images)), attn.add_v_proj(images)
        out = 0
        for k, v in (told, seen):
            heads = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
            out = out + torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


@dataclasses.dataclass
class BindWeave:
    """Its networks, and the folders in which they are published."""

    transformer: torch.nn.Module
    projector: torch.nn.Module
    vae: torch.nn.Module
    umt5: torch.nn.Module
    umt5_words: transformers.PreTrainedTokenizerBase
    clip: torch.nn.Module
    qwen: torch.nn.Module
    qwen_words: transformers.PreTrainedTokenizerBase
    # A pipeline of Wan's I2V; the transformer; the MLLM.
    sources: tuple[Path, Path, Path]

    def states(self, prompt: str, pictures: Sequence[Path]) -> torch.Tensor:
        """Qwen2.5-VL's last states of the chat, whose pictures stand behind the text."""
        images = []
        for picture in map(Image.open, pictures):
            picture = picture.convert("RGB")
            scale = 0.3 if picture.width * picture.height > 1280 * 720 else 0.75
            images.append(picture.resize((int(picture.width * scale), int(picture.height * scale))))
        processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 4 * 28 * 28, "longest_edge": 1024 * 28 * 28})
        seen = processor(images=images, return_tensors="pt")
        text = CHAT.format(prompt + len(images) * "<|vision_start|><|image_pad|><|vision_end|>")
        pad, counts = self.qwen.config.image_token_id, iter((seen["image_grid_thw"].prod(dim=1) // 4).tolist())
        ids = [i for i in self.qwen_words(text)["input_ids"] for _ in range(next(counts) if i == pad else 1)]
        tokens = torch.tensor([ids])
        told = {"mm_token_type_ids": (tokens == pad).int(), "attention_mask": torch.ones_like(tokens)}
        return self.qwen.model(input_ids=tokens, **seen, **told).last_hidden_state

    def text(self, prompt: str, pictures: Sequence[Path]) -> torch.Tensor:
        """The projected states, and UMT5's features of 512 positions, those behind the prompt zero."""
        told = self.umt5_words(prompt, padding="max_length", max_length=512, return_tensors="pt")
        length = int(told["attention_mask"].sum())
        features = self.umt5(**told).last_hidden_state
        features[:, length:] = 0
        return torch.cat([self.projector(self.states(prompt, pictures)), features], dim=1)

    def encode(self, clip: torch.Tensor) -> torch.Tensor:
        """Normalised latents of a clip (B C F H W)."""
        mean, std = (
            torch.tensor(x).view(1, -1, 1, 1, 1) for x in (self.vae.config.latents_mean, self.vae.config.latents_std)
        )
        return (self.vae.encode(clip).latent_dist.mode() - mean) / std

    def pictures(self, files: Sequence[Path]) -> tuple[torch.Tensor, torch.Tensor]:
        """The 8 channels (mask, 3 zeros, 4 latents) of all slots and the video, and CLIP's tokens."""
        channels, tokens = torch.zeros(1, 8, SLOTS, HEIGHT // 8, WIDTH // 8), torch.zeros(1, SLOTS * CLIP_TOKENS, 12)
        for i, picture in enumerate(map(Image.open, files)):
            ratio = min(1.0, WIDTH / picture.width, HEIGHT / picture.height)
            size = int(picture.width * ratio), int(picture.height * ratio)
            place = (WIDTH - size[0]) // 2, (HEIGHT - size[1]) // 2
            canvas, area = Image.new("RGB", (WIDTH, HEIGHT)), Image.new("L", (WIDTH, HEIGHT))
            canvas.paste(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), place)
            area.paste(255, (*place, place[0] + size[0], place[1] + size[1]))
            pixels = torch.tensor(np.array(canvas)).permute(2, 0, 1)[None].float() / 255
            mask = torch.tensor(np.array(area) > 127)[None, None].float()
            channels[:, 0, i] = torch.nn.functional.interpolate(mask, channels.shape[-2:], mode="nearest")[:, 0]
            channels[:, 4:, i] = self.encode(2 * pixels[:, :, None] - 1)[:, :, 0]
            small = torch.nn.functional.interpolate(pixels, (CLIP_SIZE, CLIP_SIZE), mode="bilinear", antialias=True)
            mean, std = (
                torch.tensor(x).view(3, 1, 1)
                for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
            )
            seen = self.clip((small - mean) / std, output_hidden_states=True).hidden_states[-2]
            tokens[:, i * CLIP_TOKENS : (i + 1) * CLIP_TOKENS] = seen
        grey = self.encode(torch.zeros(1, 3, FRAMES, HEIGHT, WIDTH))
        video = torch.cat([torch.zeros_like(grey), grey], dim=1)
        return torch.cat([channels, video], dim=2), tokens

    def velocity(self, z, timestep, text, channels, tokens) -> torch.Tensor:
        """Of the video: the slots in front of it hold no noise, and are cut off."""
        clip = torch.cat([torch.nn.functional.pad(z, (0, 0, 0, 0, SLOTS, 0)), channels], dim=1)
        return self.transformer(clip, timestep.expand(1), text, tokens, return_dict=False)[0][:, :, SLOTS:]

    def sample(self, z, prompt: str, negative: str, pictures: Sequence[Path]) -> torch.Tensor:
        """Latents of a video, guided against the negative prompt with the same pictures."""
        scheduler = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        scheduler.set_timesteps(STEPS)
        asked, avoided, seen = self.text(prompt, pictures), self.text(negative, pictures), self.pictures(pictures)
        for timestep in scheduler.timesteps:
            against = self.velocity(z, timestep, avoided, *seen)
            v = against + GUIDANCE * (self.velocity(z, timestep, asked, *seen) - against)
            z = scheduler.step(v, timestep, z, return_dict=False)[0]
        return z


def bindweave(folder: Path) -> BindWeave:
    """Random weights, and the three folders that a user has of them."""
    torch.manual_seed(3)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 12, "out_channels": 4, "num_layers": 2}
    sizes |= {"text_dim": TEXT, "freq_dim": 16, "ffn_dim": 32, "image_dim": 12, "added_kv_proj_dim": 24}
    transformer = diffusers.WanTransformer3DModel(**sizes)
    projector = PixArtAlphaTextProjection(STATES, TEXT, act_fn="gelu_tanh")
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.5, 2.0, 1.0]}
    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=4, num_res_blocks=1, **statistics)
    umt5 = transformers.UMT5EncoderModel(transformers.UMT5Config(**SIZES))
    small = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2}
    clip = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**small, image_size=CLIP_SIZE, patch_size=14, hidden_act="gelu")
    )
    words = build_word_tokenizer(["small", "rabbit", "meadow"], BINDWEAVE_TEMPLATE)
    qwen = _qwen(words)
    with torch.no_grad():
        for network in (transformer, projector, vae, clip, qwen):
            for name, parameter in network.named_parameters():
                if parameter.ndim > 1 and not name.endswith("gamma"):
                    parameter.normal_(0, 0.7 * parameter[0].numel() ** -0.5)
    for network in (transformer, projector, vae, umt5, clip, qwen):
        network.eval()
    sources = folder / "Wan2.1-I2V", folder / "BindWeave", folder / "Qwen2.5-VL"
    parts = {"vae": vae, "text_encoder": umt5, "tokenizer": tokenizer(folder / "own"), "image_encoder": clip}
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5)
    other = diffusers.WanTransformer3DModel(**sizes)
    pipeline = diffusers.WanImageToVideoPipeline(
        **parts, transformer=other, scheduler=scheduler, image_processor=transformers.CLIPImageProcessor()
    )
    pipeline.save_pretrained(sources[0])
    qwen.save_pretrained(sources[2])
    words.save_pretrained(sources[2])
    # Its config.json is that of the Wan it was made of.
    transformer.save_pretrained(sources[1])
    file = sources[1] / "diffusion_pytorch_model.safetensors"
    added = {f"condition_embedder.text_projector.{name}": x for name, x in projector.state_dict().items()}
    save_file(transformer.state_dict() | added, file)
    for block in transformer.blocks:
        block.attn2.processor = _Reads()
    return BindWeave(transformer, projector, vae, umt5, parts["tokenizer"], clip, qwen, words, sources)


def _qwen(words: transformers.PreTrainedTokenizerBase) -> torch.nn.Module:
    text = {"vocab_size": len(words), "hidden_size": STATES, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}}
    vision = {"depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 20, "out_hidden_size": STATES}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision | {"fullatt_block_indexes": [1]},
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        tie_word_embeddings=False,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)
