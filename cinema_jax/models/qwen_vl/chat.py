"""Conversations with pictures and videos as the arrays that Qwen2-VL and Qwen2.5-VL read before they answer.

`processing.py` lays out one prompt behind its images, for conditioning; here texts, pictures and videos follow each
other as somebody wrote them. numpy and Pillow only, no jax.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from cinema_jax.errors import InputError
from cinema_jax.models.qwen_vl.config import Qwen25VLVisionConfig, VisionConfig
from cinema_jax.models.qwen_vl.processing import (
    DEMO_TEMPLATE,
    check_text,
    fit_size,
    mrope_positions,
    padded,
    patch_grid,
    patchify,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video.

    Attributes:
        frames: sRGB; those that the model shall see.
        fps: how many of *them* show a second.
    """

    frames: UInt8[np.ndarray, "frames h w 3"]
    fps: float

    def __post_init__(self):
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise InputError(f"fps of a clip is {self.fps}; it must be above 0 and finite")


# A text, a picture (uint8, [h w 3], sRGB), or a video.
Content = str | np.ndarray | Clip


@dataclasses.dataclass(frozen=True, eq=False)
class Message:
    """What one side says, in the order in which it is read."""

    role: Literal["system", "user", "assistant"]
    content: tuple[Content, ...]


# Messages of a conversation, the last one the user's.
Chat = Sequence[Message]


def ask(*content: Content) -> tuple[Message, ...]:
    """A conversation that has just begun: one message of the user."""
    return (Message("user", content),)


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """The words around messages. The default is that of the released Qwen tokenizers."""

    # One message; holds {role} and {content}.
    message: str = "<|im_start|>{role}\n{content}<|im_end|>\n"
    # What the answer follows.
    answer: str = "<|im_start|>assistant\n"
    # Of a conversation that has none, the system's message.
    system: str = "You are a helpful assistant."
    # A picture or a video; {number} counts them from 1. Holds `image_token` once, for both: what the model reads in its
    # place are patches, and which of the two it is it knows by their positions.
    image: str = "<|vision_start|><|image_pad|><|vision_end|>"
    image_token: str = "<|image_pad|>"
    # Before a picture of which a text speaks by its number, where `image` does not say that.
    label: str = "Image {number}: "

    def labelled(self, pictures: Sequence[np.ndarray]) -> tuple[Content, ...]:
        """Pictures by their numbers, for a message that begins with them."""
        content: list[Content] = []
        for number, picture in enumerate(pictures, 1):
            label = self.label.format(number=number)
            content += [label, picture, "\n"] if label else [picture]
        return tuple(content)


# For the small models of `processing.DEMO_TEMPLATE`, which were taught one question and its answer.
DEMO_CHAT = ChatTemplate(
    message="{content} ",
    answer=DEMO_TEMPLATE.closing,
    system=DEMO_TEMPLATE.opening,
    image=DEMO_TEMPLATE.image,
    image_token=DEMO_TEMPLATE.image_token,
    label="",
)


def template_of(tokenizer: Any) -> ChatTemplate:
    """The template whose image token a tokenizer knows.

    Raises:
        InputError: it knows that of none.
    """
    for template in (ChatTemplate(), DEMO_CHAT):
        if len(tokenizer(template.image_token, add_special_tokens=False)["input_ids"]) == 1:
            return template
    raise InputError("the tokenizer knows neither <|image_pad|> nor <image>, so it is that of no model which sees")


class Read(NamedTuple):
    """A conversation as the model reads it, without padding; the fields are those of `MLLMInputs`."""

    tokens: Int[np.ndarray, "L"]
    positions: Int[np.ndarray, "3 L"]
    patches: np.ndarray
    patch_segments: Int[np.ndarray, "P"]
    patch_positions: Int[np.ndarray, "P 2"]

    def filled(self, length: int, patches: int) -> dict[str, np.ndarray]:
        """One row of a batch, padded to these sizes."""
        return {
            "tokens": padded(self.tokens, length),
            "lengths": np.int32(len(self.tokens)),
            "positions": np.ascontiguousarray(padded(self.positions.T, length).T),
            **{name: padded(getattr(self, name), patches) for name in self._fields[2:]},
        }


class _Seen(NamedTuple):
    """A picture or a video at the tower's size."""

    frames: UInt8[np.ndarray, "frames h w 3"]
    times: tuple[int, ...]  # M-RoPE's, of each temporal patch


@dataclasses.dataclass(frozen=True)
class ChatProcessor:
    """Conversations as arrays.

    Raises:
        InputError: when built, if the template does not fit the tokenizer.
    """

    tokenizer: Any  # a transformers tokenizer
    vision: VisionConfig  # patch sizes and normalisation
    template: ChatTemplate = ChatTemplate()
    max_tokens: int = 16384  # of a conversation, pictures included
    max_pixels: int = 1024 * 28 * 28  # of a picture, or a frame; larger ones are shrunk
    min_pixels: int = 4 * 28 * 28  # of a picture, or a frame; smaller ones are enlarged
    max_clip_pixels: int = 8192 * 28 * 28  # of the temporal patches of a video together

    def __post_init__(self):
        if self._tokenize(self.template.image_token) != [self.image_token_id]:
            raise InputError(f"template.image_token is {self.template.image_token!r}, which is no token of its own")

    @property
    def image_token_id(self) -> int:
        """The token that stands for a merged patch block; the model's `image_token_id`."""
        return self.tokenizer.convert_tokens_to_ids(self.template.image_token)

    @property
    def stop(self) -> tuple[int, ...]:
        """The tokens that end an answer: of a message, and of a text (with which the released models pad)."""
        ends = (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        return tuple(dict.fromkeys(token for token in ends if token is not None))

    def __call__(self, chat: Chat) -> Read:
        """A conversation, up to where the answer begins.

        Raises:
            InputError: it is empty or too long, does not end with the user, or holds what cannot be read.
        """
        chat = list(chat)
        if not chat or chat[-1].role != "user":
            raise InputError("a conversation must end with a message of the user")
        if chat[0].role != "system":
            chat.insert(0, Message("system", (self.template.system,)))
        seen: list[_Seen] = []
        text = "".join(self._said(message, seen) for message in chat) + self.template.answer
        unit, size, merge = self.vision.pixel_unit, self.vision.patch_size, self.vision.spatial_merge_size
        sides = [one.frames.shape[1:3] for one in seen]
        grids = [(height // unit, width // unit) for height, width in sides]
        blocks = iter([rows * columns * len(one.times) for one, (rows, columns) in zip(seen, grids, strict=True)])
        tokens = [
            token for token in self._tokenize(text) for _ in range(next(blocks) if token == self.image_token_id else 1)
        ]
        if len(tokens) > self.max_tokens:
            raise InputError(f"the conversation has {len(tokens)} tokens; at most {self.max_tokens} are accepted")
        tokens = np.asarray(tokens, np.int32)
        positions = mrope_positions(tokens == self.image_token_id, grids, [one.times for one in seen])
        # The tower sees each temporal patch for itself, like an image of its own.
        patches = [patchify(own, self.vision) for one in seen for own in self._temporal(one)]
        places = [
            patch_grid(height // size, width // size, merge)
            for one, (height, width) in zip(seen, sides, strict=True)
            for _ in one.times
        ]
        segments = [np.full(len(own), number, np.int32) for number, own in enumerate(patches, 1)]
        return Read(
            tokens,
            positions,
            np.concatenate([np.zeros((0, self.vision.patch_dim), np.float32), *patches]),
            np.concatenate([np.zeros(0, np.int32), *segments]),
            np.concatenate([np.zeros((0, 2), np.int32), *places]),
        )

    def decode(self, tokens: Int[np.ndarray, "new"]) -> str:
        """The text of an answer, without special tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def _said(self, message: Message, seen: list[_Seen]) -> str:
        """The text of a message; its pictures and videos are added to `seen`."""
        words = []
        for part in message.content:
            if isinstance(part, str):
                # The template's own words may be reserved ones.
                check_text(part, self.tokenizer)
                words.append(part)
            else:
                seen.append(self._clip(part) if isinstance(part, Clip) else self._picture(part))
                words.append(self.template.image.format(number=len(seen)))
        return self.template.message.format(role=message.role, content="".join(words))

    def _picture(self, image: np.ndarray) -> _Seen:
        return _Seen(self._resized(image[None], self.max_pixels, "a picture"), (0,))

    def _clip(self, clip: Clip) -> _Seen:
        count = -(-len(clip.frames) // self.vision.temporal_patch_size)
        # As in the reference, the pixels of a long video are shared out evenly.
        most = max(self.vision.pixel_unit**2, min(self.max_pixels, self.max_clip_pixels // max(1, count)))
        frames, moments = self._resized(clip.frames, most, "a clip"), np.arange(count)
        if isinstance(self.vision, Qwen25VLVisionConfig):
            moments = moments * (self.vision.tokens_per_second * self.vision.temporal_patch_size / clip.fps)
        return _Seen(frames, tuple(int(moment) for moment in moments))

    def _resized(self, frames: np.ndarray, most: int, name: str) -> UInt8[np.ndarray, "frames h w 3"]:
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.size == 0 or frames.dtype != np.uint8:
            shape = list(frames.shape[1:] if name == "a picture" else frames.shape)
            raise InputError(f"{name} is {frames.dtype} {shape}, accepted is uint8 [h w 3], of a clip [frames h w 3]")
        height, width = fit_size(*frames.shape[1:3], self.vision.pixel_unit, min(self.min_pixels, most), most)
        if (height, width) == frames.shape[1:3]:
            return frames
        resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
        return np.stack([np.asarray(frame) for frame in resized])

    def _temporal(self, one: _Seen) -> Sequence[np.ndarray]:
        """The frames of each temporal patch; the last one of a video is repeated where some are missing."""
        size = self.vision.temporal_patch_size
        if len(one.frames) == 1:
            return [one.frames]
        frames = np.concatenate([one.frames, np.repeat(one.frames[-1:], -len(one.frames) % size, axis=0)])
        return [frames[start : start + size] for start in range(0, len(frames), size)]

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
