"""From a prompt and reference images to the arrays Qwen2-VL and Qwen2.5-VL read.

numpy and Pillow only, no jax: data worker processes import this file.
"""

import bisect
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from cinema_jax.errors import InputError
from cinema_jax.inputs.texts import check_whole
from cinema_jax.models.qwen_vl.config import VisionConfig

SYSTEM = (
    "You prepare the making of a video. Reference images show its subjects, and a prompt tells what happens. "
    "Read the images and the prompt together, and work out which words of the prompt speak of which image. "
    "Keep each subject true to the visual traits of its reference: shape, colours, texture, face and clothing. "
    "Its appearance stays consistent across all frames. Subjects move naturally, are integrated seamlessly into "
    "one scene, and everything remains coherent in time and space."
)


@dataclasses.dataclass(frozen=True)
class Template:
    """The parts of the text around prompt and images, in their order in the sequence.

    The default is a chat for the released Qwen tokenizers.
    """

    # Everything before the images: the system message and the header of the user's.
    opening: str = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    # Once per image; {number} counts from 1. Holds `image_token` exactly once.
    image: str = "Image {number}: <|vision_start|><|image_pad|><|vision_end|>\n"
    # After the prompt: the end of the user's message and the header of the assistant's.
    closing: str = "<|im_end|>\n<|im_start|>assistant\n"
    # The token that is repeated once per merged patch block of the image.
    image_token: str = "<|image_pad|>"
    # Whether the prompt stands before the images.
    prompt_first: bool = False

    def __post_init__(self):
        if self.image.count(self.image_token) != 1:
            raise InputError(f"template.image is {self.image!r}, accepted is a text with {self.image_token} once")

    def text(self, prompt: str, images: int) -> str:
        """The whole sequence as text, with one image token per image."""
        numbered = "".join(self.image.format(number=i + 1) for i in range(images))
        asked = f"{prompt}{numbered}" if self.prompt_first else f"{numbered}{prompt}"
        return f"{self.opening}{asked}{self.closing}"


# For small models trained from scratch: few tokens, plain words (`tokenizer.build_word_tokenizer` knows them).
DEMO_TEMPLATE = Template(
    opening="show each subject of these images in one video : ",
    image="image {number} <image> ",
    closing=" answer :",
    image_token="<image>",
)

# Qwen's own chat: what BindWeave was trained on.
BINDWEAVE_TEMPLATE = Template(
    opening="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    image="<|vision_start|><|image_pad|><|vision_end|>",
    prompt_first=True,
)
TEMPLATES = {"demo": DEMO_TEMPLATE, "qwen": Template(), "bindweave": BINDWEAVE_TEMPLATE}


def smart_resize(height: int, width: int, unit: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Qwen's rule for the size of an image: multiples of `unit`, about the same aspect, an area within bounds.

    Very long images may exceed `max_pixels`, because no side gets shorter than `unit`.

    Raises:
        InputError: if one side is more than 200 times the other.
    """
    if max(height, width) > 200 * min(height, width):
        raise InputError(f"image is {width} x {height} pixels, accepted is an aspect ratio of at most 200")

    # As in the reference, sides are first rounded without a lower limit: a thin image counts as having no area.
    area = round(height / unit) * round(width / unit) * unit**2
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = [math.floor(side / shrink / unit) for side in (height, width)]
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * grow / unit) for side in (height, width)]
    else:
        sides = [round(side / unit) for side in (height, width)]
    return max(1, sides[0]) * unit, max(1, sides[1]) * unit


def fit_size(height: int, width: int, unit: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """`smart_resize`, with the longer side cut where it would exceed `max_pixels` (at least unit**2) nevertheless."""
    height, width = smart_resize(height, width, unit, min(min_pixels, max_pixels), max_pixels)
    if height * width > max_pixels:
        blocks = max_pixels // unit**2
        cut = max(1, blocks // (min(height, width) // unit)) * unit
        height, width = min(height, cut), min(width, cut)
    return height, width


def _merge_order(grid: np.ndarray, merge: int) -> np.ndarray:
    """Rows and columns of a grid, the first two axes, flattened merge block by merge block."""
    rows, columns, *rest = grid.shape
    blocks = grid.reshape(rows // merge, merge, columns // merge, merge, *rest).swapaxes(1, 2)
    return blocks.reshape(rows * columns, *rest)


def patchify(frames: UInt8[np.ndarray, "frames h w 3"], config: VisionConfig) -> Float[np.ndarray, "P patch_dim"]:
    """Normalised flat patches (colour, frame, row, column) in merge blocks.

    Args:
        frames: one, which is repeated, or as many as a patch has; the sides are multiples of the unit.
    """
    mean, std = (np.asarray(x, np.float32) for x in (config.image_mean, config.image_std))
    pixels = (frames.astype(np.float32) / np.float32(255) - mean) / std
    size, (count, height, width, _) = config.patch_size, frames.shape
    rows, columns = height // size, width // size
    grid = pixels.reshape(count, rows, size, columns, size, 3).transpose(1, 3, 5, 0, 2, 4)
    patches = _merge_order(grid, config.spatial_merge_size)
    repeated = np.repeat(patches, config.temporal_patch_size // count, axis=2)
    return repeated.reshape(rows * columns, config.patch_dim)


def patch_grid(rows: int, columns: int, merge: int) -> Int[np.ndarray, "P 2"]:
    """Row and column of each patch, in the order of `patchify`."""
    return _merge_order(np.stack(np.indices((rows, columns), np.int32), axis=-1), merge)


def mrope_positions(
    is_image: np.ndarray, grids: Sequence[tuple[int, int]], times: Sequence[Sequence[int]] = ()
) -> Int[np.ndarray, "3 L"]:
    """Time, row and column of each token.

    Text counts on in all three. An image that starts at p has (p, p + row, p + column), and the text after it goes on
    after the largest of these. The patches of a video's frames have p + their time in the place of the first p.

    Args:
        is_image: Bool [L], whether a token belongs to an image or a video.
        grids: rows and columns of the merged blocks of each; there are rows x columns tokens of an image.
        times: of each the times of its temporal patches, the first 0; by default all are images, with one.
    """
    positions = np.zeros((3, len(is_image)), np.int32)
    place, following = 0, 0  # the next token and its position
    for (rows, columns), own in zip(grids, times or [(0,)] * len(grids), strict=True):
        text, count = int(np.argmax(is_image[place:])), len(own) * rows * columns
        positions[:, place : place + text] = following + np.arange(text)
        place, following = place + text, following + text
        positions[0, place : place + count] = following + np.repeat(own, rows * columns)
        positions[1:, place : place + count] = following + np.tile(np.indices((rows, columns)).reshape(2, -1), len(own))
        place, following = place + count, following + max(rows, columns, own[-1] + 1)
    positions[:, place:] = following + np.arange(len(is_image) - place)
    return positions


def padded(array: np.ndarray, size: int) -> np.ndarray:
    """An array with zeros behind its first axis."""
    return np.pad(array, [(0, size - len(array))] + [(0, 0)] * (array.ndim - 1))


def check_text(text: str, tokenizer: Any) -> None:
    """Raises `InputError` where a text cannot be read as words: half characters, and tokens that mean something."""
    check_whole(text, "the text")
    found = next((token for token in tokenizer.all_special_tokens if token in text), None)
    if found is not None:
        raise InputError(f"the text {text[:80]!r} holds {found!r}, which is reserved by the tokenizer")


@dataclasses.dataclass(frozen=True)
class Processor:
    """One example's prompt and images as arrays of a fixed shape.

    Raises:
        InputError: when built, if a setting does not fit the tokenizer or the vision tower.
    """

    tokenizer: Any  # a transformers tokenizer with a padding token and an end-of-sequence token
    vision: VisionConfig  # patch sizes and normalisation
    template: Template = Template()  # the text around prompt and images
    max_length: int = 1536  # L: tokens of a sequence, image tokens and answer included
    max_patches: int = 4096  # P: patches of all images of an example together, a multiple of the merge unit
    max_pixels: int = 1024 * 28 * 28  # of one image; larger ones are shrunk
    min_pixels: int = 4 * 28 * 28  # of one image; smaller ones are enlarged
    truncate: bool = False  # cut prompts that leave no room; else `InputError`

    def __post_init__(self):
        for name in ("pad_token_id", "eos_token_id"):
            if getattr(self.tokenizer, name) is None:
                raise InputError(f"tokenizer.{name} is None, accepted is a tokenizer that has one")
        if self._tokenize(self.template.image_token) != [self.image_token_id]:
            raise InputError(f"template.image_token is {self.template.image_token!r}, which is no token of its own")
        if self.max_patches % self.vision.merge_unit:
            raise InputError(f"max_patches is {self.max_patches}, accepted are multiples of {self.vision.merge_unit}")
        if not self.vision.pixel_unit**2 <= self.max_pixels or not 0 < self.min_pixels <= self.max_pixels:
            raise InputError(
                f"min_pixels and max_pixels are {self.min_pixels} and {self.max_pixels}, accepted are "
                f"0 < min_pixels <= max_pixels and max_pixels >= {self.vision.pixel_unit**2}"
            )

    @property
    def image_token_id(self) -> int:
        """The token that stands for a merged patch block; the model's `image_token_id`."""
        return self.tokenizer.convert_tokens_to_ids(self.template.image_token)

    def __call__(self, prompt: str, images: Sequence[np.ndarray], answer: str | None = None) -> dict[str, np.ndarray]:
        """The fields of `MLLMInputs` for one example, without the batch axis.

        Args:
            prompt: free text, may be empty.
            images: uint8 [h w 3], RGB, any number, none included.
            answer: if given, it and an end-of-sequence token follow, and `loss_mask` Bool[L] marks these tokens: those
                that training predicts, each from the state before it.

        Raises:
            InputError: naming the length and the maximum, if the text is too long or the images too many.
        """
        resized = self._resize(images)
        tokens, answered, grids = self._tokens(prompt, [image.shape[:2] for image in resized], answer)
        length = len(tokens) + len(answered)
        sequence = np.full(self.max_length, self.tokenizer.pad_token_id, np.int32)
        sequence[:length] = [*tokens, *answered]
        positions = mrope_positions(np.asarray([*tokens, *answered]) == self.image_token_id, grids)
        arrays = {
            "tokens": sequence,
            "lengths": np.asarray(length, np.int32),
            "positions": np.ascontiguousarray(padded(positions.T, self.max_length).T),
            **self._patches(resized),
        }
        if answer is not None:
            place = np.arange(self.max_length)
            arrays["loss_mask"] = (place >= len(tokens)) & (place < length)
        return arrays

    def _asked(self, prompt: str, grids: Sequence[tuple[int, int]]) -> list[int]:
        """The tokens of prompt and images in the template."""
        return self._expand(self._tokenize(self.template.text(prompt, len(grids))), grids)

    def _cut(self, prompt: str, grids: Sequence[tuple[int, int]], room: int) -> str:
        """The words with which a prompt begins that have room beside the images; none, where these have none."""
        if len(self._asked(prompt, grids)) <= room:
            return prompt
        # Languages without spaces are cut between characters.
        ends = [word.end() for word in re.finditer(r"\S+", prompt)]
        ends = ends if len(ends) > 1 else range(1, len(prompt) + 1)
        kept = bisect.bisect_right(ends, room, key=lambda end: len(self._asked(prompt[:end], grids)))
        return prompt[: ends[kept - 1]] if kept else ""

    def check(self, prompt: str, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises as a call would, without any pixels; `sizes` are height and width of the images."""
        self._tokens(prompt, self._fitted(sizes), None)

    def _tokens(
        self, prompt: str, resized: Sequence[tuple[int, int]], answer: str | None
    ) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        """The tokens of the prompt with its images, those of the answer, and the merged blocks of each image."""
        for text in (prompt, answer or ""):
            check_text(text, self.tokenizer)
        grids = [(height // self.vision.pixel_unit, width // self.vision.pixel_unit) for height, width in resized]
        answered = [] if answer is None else [*self._tokenize(answer), self.tokenizer.eos_token_id]
        if self.truncate:
            prompt = self._cut(prompt, grids, self.max_length - len(answered))
        tokens = self._asked(prompt, grids)
        if (length := len(tokens) + len(answered)) > self.max_length:
            raise InputError(
                f"the sequence of the prompt {prompt[:80]!r} has {length} tokens, {sum(r * c for r, c in grids)} of "
                f"them of {len(grids)} images: max_length is {self.max_length}"
            )
        return tokens, answered, grids

    def most_tokens(self, prompts: Sequence[str], images: Sequence[int]) -> list[int]:
        """The most tokens that each prompt can take with so many images, whatever their sizes."""
        texts = [self.template.text(prompt, count) for prompt, count in zip(prompts, images, strict=True)]
        lengths = map(len, self.tokenizer(texts, add_special_tokens=False)["input_ids"])
        return [length + count * (self._blocks(count) - 1) for length, count in zip(lengths, images, strict=True)]

    def _blocks(self, images: int) -> int:
        """The most merged blocks of one of several images."""
        share = self.max_patches // self.vision.merge_unit // max(1, images)
        return min(self.max_pixels // self.vision.pixel_unit**2, share)

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _resize(self, images: Sequence[np.ndarray]) -> list[UInt8[np.ndarray, "h w 3"]]:
        """Images at the tower's sizes; the patch buffer is shared out evenly, so that all of them fit."""
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
                raise InputError(f"an image is {image.dtype} {list(image.shape)}, accepted is uint8 [h w 3]")
        resized = []
        for image, (height, width) in zip(images, self._fitted([image.shape[:2] for image in images]), strict=True):
            picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
            resized.append(np.asarray(picture))
        return resized

    def _fitted(self, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Heights and widths at which the tower reads images of these."""
        share = self.max_patches // self.vision.merge_unit // max(1, len(sizes))
        if share == 0:
            raise InputError(
                f"{len(sizes)} images need at least {len(sizes) * self.vision.merge_unit} patches: max_patches is "
                f"{self.max_patches}"
            )
        unit = self.vision.pixel_unit
        max_pixels = min(self.max_pixels, share * unit**2)
        return [fit_size(*size, unit, self.min_pixels, max_pixels) for size in sizes]

    def _expand(self, tokens: Sequence[int], grids: Sequence[tuple[int, int]]) -> list[int]:
        """Repeat each image token once per merged block."""
        counts = iter([rows * columns for rows, columns in grids])
        return [token for token in tokens for _ in range(next(counts) if token == self.image_token_id else 1)]

    def _patches(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        size, merge = self.vision.patch_size, self.vision.spatial_merge_size
        patches = [np.zeros((0, self.vision.patch_dim), np.float32)]
        segments, places = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int32)]
        for number, image in enumerate(images, start=1):
            places.append(patch_grid(image.shape[0] // size, image.shape[1] // size, merge))
            patches.append(patchify(image[None], self.vision))
            segments.append(np.full(len(patches[-1]), number, np.int32))
        parts = {"patches": patches, "patch_segments": segments, "patch_positions": places}
        return {name: padded(np.concatenate(part), self.max_patches) for name, part in parts.items()}


def collate(examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Examples as one batch."""
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
