import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds
from clips import write_clip
from etils import epath
from prepared import SHAPE, SIZE, VIDEOS, encode, make_folder, run

from cinema_jax.data.buckets import Bucket
from cinema_jax.data.example import EncodedSource
from cinema_jax.data.folder import Folder
from cinema_jax.data.loader import Loader, LoaderConfig
from cinema_jax.data.records import Records
from cinema_jax.errors import InputError
from cinema_jax.inputs.publishing import Output
from cinema_jax.training.preparing import Preparation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("clips") / "set")


@pytest.fixture(scope="module")
def output(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("records") / "records"
    assert run(folder, output)
    return output


def load(output, **options):
    return Records(str(output), **{**SIZE, "split": "all", **options})


def same(one, other):
    """Whether two references are the same to the last pixel."""
    masks = [reference.mask for reference in (one, other)]
    return (
        (one.subject, one.noun, one.background, one.same_clip)
        == (other.subject, other.noun, other.background, other.same_clip)
        and np.array_equal(one.image, other.image)
        and (masks[0] is None) == (masks[1] is None)
        and (masks[0] is None or np.array_equal(*masks))
    )


def test_examples_are_those_of_the_folder(folder, output):
    source, records = Folder(folder, split="all", **SIZE), load(output)
    assert isinstance(records, EncodedSource)
    assert len(records) == len(records.latents) == VIDEOS
    for index in range(VIDEOS):
        assert (records.id(index), records.caption(index)) == (source.id(index), source.caption(index))
        for seed in range(4):
            theirs, ours = (x.conditions(index, np.random.default_rng(seed)) for x in (source, records))
            assert (ours.caption, ours.prompt) == (theirs.caption, theirs.prompt)
            assert len(ours.references) == len(theirs.references)
            assert all(map(same, ours.references, theirs.references))
        expected = encode(source.video(index)[None])[0]
        assert records.latents[index].dtype == ml_dtypes.bfloat16
        assert np.array_equal(records.latents[index], expected)


def test_splits_are_those_of_the_folder(folder, output):
    for split in ("train", "validation"):
        theirs = Folder(folder, split=split, validation_fraction=0.3, **SIZE)
        ours = load(output, split=split, validation_fraction=0.3)
        assert [ours.id(i) for i in range(len(ours))] == [theirs.id(i) for i in range(len(theirs))]
        assert ours.caption(len(ours) - 1) == theirs.caption(len(theirs) - 1)


def test_references_are_shuffled_only_where_the_prompt_names_them(output):
    records = load(output)
    for index, orders in ((3, {("one", "two"), ("two", "one")}), (5, {("one", "two")})):
        drawn = [records.conditions(index, np.random.default_rng(seed)).references for seed in range(20)]
        assert {tuple(reference.subject for reference in references) for references in drawn} == orders


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_splits_of_buckets_are_those_of_the_folder(tmp_path, fraction):
    # Two parts of a video are together; groups of both buckets decide whether a side would be empty.
    lines = [{"video": f"{i // 2}.mp4", "start": i % 2 / 8, "caption": "c"} for i in range(12)]
    for i in range(6):
        write_clip(tmp_path / f"{i}.mp4", 12, 8, (32, 64) if i % 2 else (64, 32))
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    buckets = [Bucket(5, 32, 64, 3), Bucket(5, 64, 32, 3)]
    held = 0
    for number, (frames, height, width, references) in enumerate(buckets):
        size = {"frames": frames, "height": height, "width": width, "fps": 8.0, "max_references": references}
        both = {"buckets": buckets, "bucket": number, "validation_fraction": fraction}
        output = Output(epath.Path(tmp_path / str(number)))
        source, key = Folder(tmp_path, split="all", **size, **both), {**size, "shape": [2, height // 8, width // 8, 3]}
        assert Preparation(source, output, key, 4).run(encode, (0, 1), 2, 2)
        for split in ("train", "validation"):
            theirs = Folder(tmp_path, split=split, **size, **both)
            ours = Records(str(output.path), split=split, of_bucket=True, validation_fraction=fraction, **size)
            assert [ours.id(i) for i in range(len(ours))] == [theirs.id(i) for i in range(len(theirs))]
            held += len(theirs) if split == "validation" else 0
    assert 0 < held < 12
    assert held % 2 == 0


def test_tensorflow_datasets_reads_the_folder(output):
    data = tfds.builder_from_directory(str(output)).as_data_source(split="train")
    records = load(output)
    assert len(data) == VIDEOS
    for index, example in enumerate(data):
        assert example["id"].decode() == records.id(index)
        assert example["latents"].dtype == ml_dtypes.bfloat16
        assert np.array_equal(example["latents"], records.latents[index])
    references = data[3]["references"]
    assert [text.decode() for text in references["noun"]] == ["bärchen", "", ""]
    assert [bool(masked) for masked in references["masked"]] == [True, False, False]
    assert [image.shape for image in references["image"]] == [(12, 10, 3), (10, 14, 3), (22, 25, 3)]
    assert [mask.shape for mask in references["mask"]] == [(12, 10, 1), (10, 14, 1), (22, 25, 1)]


def test_the_documented_code_reads_the_folder_without_tensorflow(output, tmp_path):
    document = Path(__file__).parents[2] / "docs/prepare.md"
    code = re.search(r"```python\n(.*?)```", document.read_text(), re.DOTALL)[1]
    (tmp_path / "records").symlink_to(str(output))
    code += 'import sys\nassert "tensorflow" not in sys.modules\nprint(data[0]["latents"].dtype)\n'
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "bfloat16\n", done.stderr


def test_a_pickled_source_reads_on(output):
    records = load(output)
    before = records.latents[5]
    copy = pickle.loads(pickle.dumps(records))
    assert np.array_equal(copy.latents[5], before)
    assert copy.latents[5].shape == tuple(SHAPE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 48, "fps": 10.0}, "was prepared with height 32, not 48, fps 8, not 10: set config.data to that"),
        ({"frames": 9}, "was prepared with frames 5, not 9"),
        ({"max_references": 2}, "up to 3 references an example; config.data.max_references is 2"),
        ({"split": "test"}, 'split is "test"'),
        ({"split": "validation", "validation_fraction": 0}, "validation_fraction is 0"),
    ],
)
def test_records_of_other_clips_are_refused(output, changes, message):
    with pytest.raises(InputError, match=message):
        load(output, **changes)


def test_other_latents_and_pixels_are_refused(output):
    records = load(output)
    records.check_vae("a stand-in")
    with pytest.raises(InputError, match=r"another VAE \(a stand-in\) than this run's \(mine\)"):
        records.check_vae("mine")
    with pytest.raises(InputError, match="holds latents; for pixels"):
        records.video(0)


def test_a_damaged_file_is_an_input_error_when_it_is_read(output, tmp_path):
    shutil.copytree(output, tmp_path / "records")
    (tmp_path / "records" / "videos-train.array_record-00001-of-00003").write_bytes(b"cut")
    records = load(tmp_path / "records")
    assert records.caption(0) == "long 0"
    with pytest.raises(InputError, match=r"records: the record of 4\.mp4@0 cannot be read \("):
        records.caption(4)


def test_a_folder_of_an_older_version_is_refused(output, tmp_path):
    shutil.copytree(output, tmp_path / "records")
    (tmp_path / "records" / "groups.json").unlink()
    with pytest.raises(InputError, match=r"holds no groups\.json: an older version prepared it"):
        load(tmp_path / "records")


def test_a_folder_that_is_not_finished_is_refused(folder, tmp_path):
    run(folder, tmp_path / "records", (0, 2))
    for path in (tmp_path / "records", tmp_path / "gone"):
        with pytest.raises(InputError, match=r"holds no dataset_info\.json"):
            load(path)


DAMAGE = {
    "flipped bits": lambda data: bytes(x ^ (16 * (i % 997 == 500)) for i, x in enumerate(data)),
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_replaced_and_counted(output, tmp_path, damage):
    shutil.copytree(output, tmp_path / "records")
    file = tmp_path / "records" / "videos-train.array_record-00001-of-00003"
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    records = load(tmp_path / "records")

    def example(entry, number, rng):
        told = records.conditions(entry, rng)
        return {"latents": np.asarray(records.latents[entry], np.float32), "references": np.int32(len(told.references))}

    loader = Loader([len(records)], example, LoaderConfig(len(records), num_threads=0))
    ((_, batch),) = loader.steps(0, 1)
    assert len(batch["latents"]) == len(records)
    assert loader.replaced >= 1
    assert all("cannot be read" in message for message in loader.failures.values())


@pytest.mark.parametrize("name", ["prepare.json", "ids.json", "groups.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["", "null", "[1]", "{}", '{"records": 1, "splits": [], "frames": "5"}', "[" * 9999])
def test_damaged_notes_are_named_in_one_sentence(output, tmp_path, name, text):
    shutil.copytree(output, tmp_path / "records")
    (tmp_path / "records" / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(name)):
        load(tmp_path / "records")
