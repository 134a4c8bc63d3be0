import json

import numpy as np
import pytest
from clips import index_of, write_clip, write_images
from PIL import Image

from cinema_jax.data.example import Source
from cinema_jax.data.folder import Folder
from cinema_jax.errors import InputError

SIZE = {"frames": 5, "height": 16, "width": 16, "fps": 5}


@pytest.fixture
def folder(tmp_path):
    """Two clips, pictures of three colours, a mask; `write(records)` makes the manifest."""
    root = tmp_path / "set"
    root.mkdir()
    write_clip(root / "a.mp4", frames=20, fps=10)
    scene = np.zeros((40, 64, 3), np.uint8)
    scene[10:20, 20:50] = (0, 0, 250)
    write_images(root / "b.mp4", [scene] * 12, 10)
    for name, colour in (("red", (250, 0, 0)), ("green", (0, 250, 0)), ("grey", (90, 90, 90))):
        Image.new("RGB", (12, 10), colour).save(root / f"{name}.png")
    mask = Image.new("L", (12, 10))
    mask.paste(255, (2, 2, 8, 8))
    mask.save(root / "mask.png")
    return root


def write(folder, *records):
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def load(folder, **options):
    return Folder(folder, **{**SIZE, "split": "all", **options})


def red(**more):
    return {"image": "red.png", "subject": "a", **more}


def test_a_full_line_is_read(folder):
    references = [
        red(mask="mask.png", noun="ball"),
        {"video": "b.mp4", "frame": 7, "box": [20, 10, 50, 20], "subject": "b"},
    ]
    record = {"video": "a.mp4", "caption": "long", "prompt": "short", "start": 0.5, "references": references}
    write(folder, {"video": "b.mp4", "caption": "plain"}, "", record)
    data = load(folder)
    assert isinstance(data, Source)
    assert [data.id(i) for i in range(len(data))] == ["b.mp4@0", "a.mp4@0.5"]
    assert [index_of(frame) for frame in data.video(1)] == [5, 7, 9, 11, 13]
    conditions = data.conditions(1, np.random.default_rng(0))
    assert (conditions.caption, conditions.prompt) == ("long", "short")
    ball, box = sorted(conditions.references, key=lambda reference: reference.subject)
    assert (ball.noun, box.noun) == ("ball", None)
    assert ball.mask is not None
    assert ball.mask.sum() == 36 * 255
    assert (ball.image == (250, 0, 0)).all()
    assert box.image.shape == (10, 30, 3)
    assert np.abs(np.median(box.image, (0, 1)) - (0, 0, 250)).max() < 12
    plain = data.conditions(0, np.random.default_rng(0))
    assert (plain.prompt, plain.references) == ("plain", ())


def views(folder, **options):
    second = {"image": "green.png", "subject": "a"}
    third = {"image": "grey.png", "subject": "b"}
    write(folder, {"video": "a.mp4", "caption": "c", "references": [red(), second, third]})
    data = load(folder, **options)
    return [
        [str(r.image[0, 0].argmax()) + r.subject for r in data.conditions(0, np.random.default_rng(seed)).references]
        for seed in range(40)
    ]


def test_one_view_of_each_subject_is_chosen_in_random_order(folder):
    seen = views(folder)
    assert all(sorted(name[1] for name in names) == ["a", "b"] for names in seen)
    assert {tuple(names) for names in seen} == {("0a", "0b"), ("1a", "0b"), ("0b", "0a"), ("0b", "1a")}
    assert views(folder) == seen


def test_second_views_come_as_often_as_asked_and_only_while_there_is_room(folder):
    assert all(sorted(names) == ["0a", "0b", "1a"] for names in views(folder, second_view=1.0))
    assert all(len(names) == 2 for names in views(folder, second_view=1.0, max_references=2))
    assert 8 < sum(len(names) == 3 for names in views(folder, second_view=0.5)) < 32


def test_the_split_depends_on_the_ids_alone(folder):
    records = [{"video": "a.mp4", "caption": "c", "id": f"clip {i}"} for i in range(40)]
    write(folder, *records)
    train, validation = (load(folder, split=s, validation_fraction=0.2) for s in ("train", "validation"))
    held = {validation.id(i) for i in range(len(validation))}
    kept = {train.id(i) for i in range(len(train))}
    assert held | kept == {record["id"] for record in records}
    assert not held & kept
    assert 3 <= len(held) <= 14
    write(folder, *records[::-1], *({"video": "b.mp4", "caption": "c", "id": f"new {i}"} for i in range(9)))
    grown = load(folder, split="validation", validation_fraction=0.2)
    assert {grown.id(i) for i in range(len(grown))} & {record["id"] for record in records} == held


def test_an_empty_side_of_the_split_is_an_error(folder):
    write(folder, {"video": "a.mp4", "caption": "c"})
    for split in ("train", "validation"):
        with pytest.raises(InputError, match=r"of 1 examples leaves \d for training and \d for validation"):
            load(folder, split=split, validation_fraction=0.3)
    assert len(load(folder, split="train", validation_fraction=0)) == 1
    with pytest.raises(InputError, match="validation_fraction is 0"):
        load(folder, split="validation", validation_fraction=0)


GOOD = {"video": "a.mp4", "caption": "c"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "must be a JSON object"),
        ({"caption": "c"}, 'field "video" is missing'),
        ({"video": "a.mp4"}, 'field "caption" is missing'),
        ({**GOOD, "caption": " "}, '"caption" is " "; it must be text'),
        ({**GOOD, "caption": 3}, '"caption" is 3; it must be text'),
        ({**GOOD, "captions": "c"}, 'unknown field "captions"; accepted are id, video'),
        ({**GOOD, "video": "gone.mp4"}, '"video" is "gone.mp4"; there is no such file'),
        ({**GOOD, "video": "../outside.mp4"}, '"video" is "../outside.mp4", which leaves the dataset folder'),
        ({**GOOD, "video": "/etc/hostname"}, '"video" is "/etc/hostname", which leaves the dataset folder'),
        (
            {**GOOD, "video": "link.mp4"},
            r'"link.mp4", a symbolic link that leads out .*; config\.data\.follow_links=True',
        ),
        ({**GOOD, "video": "e\u0301.mp4"}, "there is no such file"),
        ({**GOOD, "video": "n\u0303.mp4"}, "the file's name is in Unicode's form NFC, which looks the same"),
        ({**GOOD, "video": "x" * 5000}, "cannot be looked up"),
        ({**GOOD, "video": "loop.mp4"}, r'"video" is "loop.mp4"'),
        ({**GOOD, "video": "a\0.mp4"}, "zero bytes"),
        ({**GOOD, "start": -1}, '"start" is -1; it must be a number of seconds'),
        ({**GOOD, "start": "1"}, '"start" is "1"; it must be a number of seconds'),
        ({**GOOD, "start": True}, '"start" is true; it must be a number of seconds'),
        ('{"video": "a.mp4", "caption": "c", "start": NaN}', '"start" is NaN'),
        ({**GOOD, "start": 2, "end": 1}, '"end" is 1; it must be after "start"'),
        ({**GOOD, "start": 1, "end": 1.5}, "is 0.50 s; 5 frames at 5 a second need 0.90 s"),
        ({**GOOD, "references": {}}, '"references" is {}; it must be a list'),
        ({**GOOD, "references": ["red.png"]}, r'"references\[0\]" is "red.png"; it must be an object'),
        ({**GOOD, "references": [{"image": "red.png"}]}, r'field "references\[0\].subject" is missing'),
        ({**GOOD, "references": [red(), red(imag="b")]}, r'unknown field "references\[1\].imag"'),
        ({**GOOD, "references": [{"subject": "a"}]}, 'must have either "image" or "video"'),
        ({**GOOD, "references": [red(video="b.mp4", frame=1)]}, 'must have either "image" or "video"'),
        ({**GOOD, "references": [red(frame=1)]}, 'goes with "video" only'),
        ({**GOOD, "references": [{"video": "b.mp4", "subject": "a"}]}, r'field "references\[0\].frame" is missing'),
        ({**GOOD, "references": [{"video": "b.mp4", "frame": -1, "subject": "a"}]}, "frame number"),
        ({**GOOD, "references": [{"video": "b.mp4", "frame": 1, "mask": "mask.png", "subject": "a"}]}, '"image" only'),
        ({**GOOD, "references": [red(box=[0, 0, 5])]}, r'"references\[0\].box" is \[0, 0, 5\]; it must be \[x0'),
        ({**GOOD, "references": [red(box=[5, 0, 5, 4])]}, "x0 < x1"),
        ({**GOOD, "references": [red(box=[0.0, 0, 5, 4])]}, "it must be"),
        ({**GOOD, "references": [red(subject=str(i)) for i in range(5)]}, "names 5 subjects; at most 4"),
    ],
)
def test_a_bad_line_is_named_with_its_number_field_and_value(folder, record, message):
    (folder.parent / "outside.mp4").write_bytes(b"x")
    (folder / "link.mp4").symlink_to(folder.parent / "outside.mp4")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "\u00f1.mp4").touch()
    write(folder, {**GOOD, "id": "fine"}, record)
    with pytest.raises(InputError, match=message) as caught:
        load(folder)
    assert "manifest.jsonl:2: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("opened", "bad"), [("train", "validation"), ("validation", "train")])
def test_a_bad_line_is_named_whichever_split_is_opened(folder, opened, bad):
    good = [{**GOOD, "id": str(i)} for i in range(20)]
    write(folder, *good)
    line = int(load(folder, split=bad, validation_fraction=0.5).id(0))
    good[line] |= {"start": 1, "end": 1.5}
    write(folder, *good)
    with pytest.raises(InputError, match=rf"manifest.jsonl:{line + 1}: .* is 0\.50 s"):
        load(folder, split=opened, validation_fraction=0.5)


def test_links_that_stay_inside_are_followed(folder):
    (folder / "inside.mp4").symlink_to(folder / "a.mp4")
    write(folder, {**GOOD, "video": "inside.mp4"})
    assert len(load(folder)) == 1


def test_links_that_lead_out_are_followed_where_that_is_allowed(folder):
    """As the cache of a hub lays files out."""
    (folder / "b.mp4").rename(folder.parent / "blob")
    (folder / "b.mp4").symlink_to("../blob")
    write(folder, {**GOOD, "video": "b.mp4"})
    assert load(folder, follow_links=True).video(0).shape == (5, 16, 16, 3)


def test_lines_end_at_line_feeds_alone(folder):
    caption = "one\u2028two\u2029three\u0085four"
    write(folder, json.dumps({**GOOD, "caption": caption}, ensure_ascii=False))
    assert load(folder).caption(0) == caption


def test_all_problems_are_listed_and_ids_must_differ(folder):
    write(folder, GOOD, GOOD, {**GOOD, "start": 1, "x": 1}, *[{"video": "a.mp4"}] * 12)
    with pytest.raises(InputError) as caught:
        load(folder)
    lines = str(caught.value).splitlines()
    assert 'manifest.jsonl:2: id "a.mp4@0" is also on line 1' in lines[0]
    assert 'manifest.jsonl:3: unknown field "x"' in lines[1]
    assert (len(lines), lines[-1]) == (11, "... and 4 more")


def test_missing_or_empty_manifests_are_named(folder, tmp_path):
    for path, message in ((tmp_path / "gone", "no such folder"), (folder, "needs a manifest.jsonl")):
        with pytest.raises(InputError, match=message):
            load(path)
    write(folder, "", " ")
    with pytest.raises(InputError, match="holds no example"):
        load(folder)
    (folder / "manifest.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load(folder)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (red(box=[0, 0, 13, 4]), r"box \[0, 0, 13, 4\] does not fit into the picture, which is 12x10"),
        (red(mask="mask.png", box=[9, 0, 12, 10]), "holds nothing of the subject's mask"),
        ({"video": "b.mp4", "frame": 99, "subject": "a"}, "there is no frame 99; the video has 12 frames"),
        ({"image": "a.mp4", "subject": "a"}, "not an image"),
        ({"video": "b.mp4", "frame": 1, "box": [0, 0, 60, 2], "subject": "a"}, "60x2; one side may be at most 20"),
        ({"image": "wide.png", "mask": "mask.png", "subject": "a"}, "the mask is 12x10, but its image .* is 30x10"),
    ],
)
def test_references_that_cannot_be_used_are_input_errors_when_they_are_read(folder, reference, message):
    Image.new("RGB", (30, 10)).save(folder / "wide.png")
    write(folder, {**GOOD, "references": [reference]})
    with pytest.raises(InputError, match=message):
        load(folder).conditions(0, np.random.default_rng(0))


def test_a_clip_that_is_too_short_is_an_input_error_when_it_is_read(folder):
    write(folder, {**GOOD, "start": 1.5})
    with pytest.raises(InputError, match=r"a\.mp4: the video ends at 2\.00 s, but"):
        load(folder).video(0)
