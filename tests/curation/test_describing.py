"""What becomes of a multimodal LLM's answers. The answers stand here: no model that runs in a test can give them."""

import dataclasses

import numpy as np
import pytest
from films import film, texture
from PIL import Image
from tiny import random_params

from cinema_jax.curation import crops, curating, describing
from cinema_jax.curation.results import Clip
from cinema_jax.curation.sources import Source
from cinema_jax.data.images import read_image
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.inputs.replies import value_of
from cinema_jax.models.qwen_vl.config import Qwen2VLConfig, Qwen25VLVisionConfig
from cinema_jax.models.qwen_vl.tokenizer import build_word_tokenizer
from cinema_jax.sampling.mllm import Answer, Value

CONFIG = crops.CropConfig()
BOX = (0.2, 0.2, 0.5, 0.6)


class Written:
    """Says what is written, one text after the other, and keeps what it was asked; read as answers of a model are."""

    def __init__(self, *texts: str):
        self.texts, self.asked = list(texts), []

    def values(self, chats, kind, **_):
        """Values of the next texts."""
        return [self._value(chat, kind) for chat in chats]

    def _value(self, chat, kind) -> Value:
        self.asked.append(chat)
        text = self.texts.pop(0)
        try:
            return Value(value_of(text, kind), None, (Answer(text, True),))
        except InputError as error:
            return Value(None, str(error), (Answer(text, True),))


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([[BOX], [BOX], [BOX]], None),
        ([[BOX], [], [BOX]], "not in every frame"),
        ([[BOX], [BOX, (0.6, 0.2, 0.9, 0.6)], [BOX]], "several of a kind"),
        ([[BOX], [(0.7, 0.5, 1.0, 0.9)], [BOX]], "boxes far apart"),
        ([[BOX], [(0.3, 0.35, 0.4, 0.45)], [BOX]], "boxes of other sizes"),
    ],
)
def test_boxes_of_three_frames_must_agree(boxes, reason):
    found = crops.disagreement(boxes, CONFIG)
    assert (found and found[0]) == reason


def test_of_two_names_for_one_box_the_first_stays():
    frame = [("dog", BOX), ("Animal", (0.2, 0.2, 0.5, 0.58)), ("tree", (0.6, 0.0, 0.9, 0.9))]
    found = describing.agreed([frame] * 3, ["dog", "animal", "tree", "cat"], CONFIG)
    assert [(name, why and why[0]) for name, _, why in found] == [
        ("dog", None),
        ("animal", "same box"),
        ("tree", None),
        ("cat", "not in every frame"),
    ]


def _figure() -> tuple[np.ndarray, np.ndarray]:
    """A red disc of patches before a plain wall, and where it is."""
    height, width = 300, 400
    y, x = np.mgrid[:height, :width]
    disc = (x - 200) ** 2 + (y - 150) ** 2 < 70**2
    frame = np.full((height, width, 3), (90, 150, 90), np.uint8)
    frame[disc] = texture(3, height, width)[disc] // 4 + np.uint8((150, 0, 0))
    return frame, disc


def test_the_mask_of_a_subject_is_what_stands_out_in_its_box():
    frame, disc = _figure()
    picture, why = crops.cut_out(frame, (0.3, 0.2, 0.7, 0.8), CONFIG)
    assert why is None
    inside, own = picture[..., 3] > 0, disc[60:240, 120:280]
    assert (inside & own).sum() / (inside | own).sum() > 0.95
    np.testing.assert_array_equal(picture[..., :3], frame[60:240, 120:280])


@pytest.mark.parametrize(
    ("box", "limits", "reason"),
    [
        ((0.3, 0.2, 0.5, 0.4), {}, "too small"),
        ((0.3, 0.2, 0.7, 0.8), {"least_share": 0.3}, "too small in the frame"),
        ((0.0, 0.0, 0.99, 0.99), {}, "too large in the frame"),
        ((0.0, 0.0, 0.7, 0.8), {}, "cut off"),
        ((0.0, 0.0, 0.29, 1.0), {"most_edges": 3}, "blurred"),
        ((0.3, 0.2, 0.7, 0.8), {"least_mask": 0.9}, "no mask"),
    ],
)
def test_why_a_subject_is_not_kept(box, limits, reason):
    picture, why = crops.cut_out(_figure()[0], box, dataclasses.replace(CONFIG, **limits))
    assert picture is None
    assert why[0] == reason


def test_a_frame_is_shown_at_a_size_that_the_model_takes_as_it_is():
    for height, width in ((1080, 1920), (240, 320), (30, 500)):
        shown = describing.seen_by_model(np.zeros((height, width, 3), np.uint8))
        assert not any(side % 28 for side in shown.shape[:2])
        assert 4 * 28 * 28 <= shown.shape[0] * shown.shape[1] <= 1024 * 28 * 28


@pytest.fixture(scope="module")
def pending(tmp_path_factory):
    path = film(tmp_path_factory.mktemp("raw") / "a.mp4", {1: 30})
    clip = Clip("a.mp4", 0.0, 1.5, 240, 320, "", {})
    later = dataclasses.replace(clip, start=1.5, end=3.0)
    return describing.Pending(Source("a.mp4", str(path)), (clip, later))


SAID = '```json\n{"caption": "Patches\\n move.", "prompt": "patches", "subjects": ["patch", "dog", "<|im_end|>"]}\n```'


def _there(left: int) -> str:
    return f'[{{"bbox_2d": [{left}, 50, {left + 120}, 190], "label": "patch"}}]'


def test_answers_become_captions_and_subjects_or_a_line_with_the_reason(pending, tmp_path):
    speaker = Written(SAID, "No idea.", *map(_there, (60, 66, 72)))
    results = describing.described(speaker, [pending], CONFIG, tmp_path, "references")
    [clip] = results.clips
    assert (clip.caption, clip.prompt) == ("Patches move.", "patches")
    [subject] = clip.subjects
    assert subject.noun == "patch"
    # The frame of 320x240 was shown as 308x252: the box is from (69, 48) to (193, 181).
    assert read_image(tmp_path / subject.image).image.shape[:2] == (133, 124)
    with Image.open(tmp_path / subject.image) as image:
        assert image.mode == "RGBA"
    assert [(one.id, one.step, one.reason) for one in results.rejected] == [
        ("a.mp4@0.000#<|im_end|>", "subjects", "no noun"),
        ("a.mp4@0.000#dog", "subjects", "not in every frame"),
        ("a.mp4@1.500", "caption", "no answer of use"),
    ]
    assert results.rejected[2].detail == "the answer holds no JSON"


def test_a_caption_that_is_given_is_not_replaced(pending, tmp_path):
    given = dataclasses.replace(pending, source=dataclasses.replace(pending.source, caption="Given."))
    none = SAID.replace('["patch", "dog", "<|im_end|>"]', "[]")
    speaker = Written(none, none)
    results = describing.described(speaker, [given], CONFIG, tmp_path, "references")
    assert [clip.caption for clip in results.clips] == ["Given.", "Given."]
    assert len(speaker.asked) == 2


@pytest.fixture
def small(tmp_path):
    """A Qwen2.5-VL with random weights, which knows few words and no JSON."""
    tokenizer, folder = build_word_tokenizer(["a bird jumps"]), tmp_path / "mllm"
    vision = Qwen25VLVisionConfig(
        depth=1, hidden_size=16, out_hidden_size=32, intermediate_size=16, num_heads=2, fullatt_block_indexes=(0,)
    )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "mrope_section": (1, 1, 2), "tie_word_embeddings": False, "image_token_id": 3}
    config = Qwen2VLConfig(vision=vision, vocab_size=len(tokenizer), **sizes)
    folder.mkdir()
    parts.write("mllm", config, random_params("mllm", config), folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_cannot_answer_costs_its_clips_and_not_the_run(small, pending, tmp_path):
    pytest.importorskip("scenedetect", reason="PySceneDetect is not installed (pip install 'cinema_jax[curate]')")

    def plainly(work, shards, step):
        for shard in shards:
            shard.do(work)

    output = tmp_path / "output"
    output.mkdir()
    results = curating.curate([pending.source], output, curating.CurateConfig(), plainly, 4, str(small))
    assert [(one.id, one.step, one.reason) for one in results.rejected] == [
        ("a.mp4@0.000", "caption", "no answer of use")
    ]
    assert not (output / "manifest.jsonl").read_text()
