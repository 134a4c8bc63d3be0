"""A file of captions: what its lines are, and how `align` reads them."""

import dataclasses
import pickle

import numpy as np
import pytest
from tiny import tiny_config, tiny_values

from cinema_jax.config import parse
from cinema_jax.data.captions import Captions
from cinema_jax.data.pipeline import Examples
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeffa red cat\r\n\n  \nein Bär\u2028springt\na blue dog".encode())
    return path


def test_lines_that_are_not_blank_are_captions_by_their_number(file):
    captions = Captions(str(file))
    assert list(captions) == ["a red cat", "ein Bär\u2028springt", "a blue dog"]
    assert list(captions.lines) == [1, 4, 5]
    assert list(pickle.loads(pickle.dumps(captions))) == list(captions)
    digest = captions.digest
    file.write_bytes(file.read_bytes() + b"s")
    assert Captions(str(file)).digest != digest


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"\n \n", "holds no caption"), (b"a\n\xff\n", r"captions\.txt:2: not UTF-8")],
)
def test_a_file_without_captions_is_refused(tmp_path, content, message):
    path = tmp_path / "captions.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Captions(str(path))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_align_reads_captions_of_no_video_as_often_as_asked_without_references(file, tmp_path, share):
    config = tiny_config()
    condition = dataclasses.replace(config.condition, text_dropout=0.0, reference_dropout=0.0, joint_dropout=0.0)
    align = dataclasses.replace(config.align, caption_share=share)
    data = dataclasses.replace(config.data, captions=str(file))
    run = Run(dataclasses.replace(config, align=align, condition=condition, data=data), tmp_path)
    captions = run.captions() or ()
    assert len(captions) == (3 if share else 0)
    preprocessor = run.preprocessor()
    examples = Examples(run.source("train"), preprocessor, range(4), captions=captions)
    tokens = [preprocessor.text(caption)[0].tolist() for caption in captions]
    counts = np.zeros(4)
    for number in range(80):
        arrays = examples.align(number % 4, np.random.default_rng(number))
        found = arrays["caption_tokens"].tolist()
        place = tokens.index(found) if found in tokens else 3
        counts[place] += 1
        if place < 3:
            read = preprocessor.processor(captions[place], [])
            np.testing.assert_array_equal(arrays["tokens"], read["tokens"])
            assert arrays["entity_lengths"] == 0
        else:
            assert arrays["entity_lengths"] > 0
    assert abs(counts[:3].sum() / 80 - share) < 0.12
    assert share == 0 or counts[:3].min() > 0
    # Held-out examples are those of the videos.
    held_out = dataclasses.replace(examples, augment=False)
    assert held_out.align(0, np.random.default_rng(0))["entity_lengths"] > 0


def test_a_share_without_a_file_is_refused():
    values = tiny_values()
    values.align.caption_share = 0.5
    with pytest.raises(InputError, match=r"align\.caption_share is 0\.5, but config\.data\.captions is empty"):
        parse(values)
    values.align.caption_share = 1.5
    with pytest.raises(InputError, match=r"align\.caption_share is 1\.5; it must lie in \[0, 1\]"):
        parse(values)
