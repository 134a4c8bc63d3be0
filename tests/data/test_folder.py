import json
import os
import shutil

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
    record = {"video": "a.mp4", "caption": "long", "prompt": "short", "start": 0.5, "end": 1.5}
    record["references"] = references
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


def test_a_box_may_show_a_margin_as_far_as_the_picture_goes(folder):
    boxes = [red(box=[0, 2, 10, 8]), {"video": "b.mp4", "frame": 7, "box": [20, 10, 60, 20], "subject": "b"}]
    write(folder, {"video": "a.mp4", "caption": "c", "references": boxes})
    first, second = load(folder, margin=0.1).references(0)
    # 1 and 4 pixels across, 1 and 1 down; the picture ends at the left of the one and at the right of the other.
    assert (first.image.shape, second.image.shape) == ((8, 11, 3), (12, 48, 3))


def views(folder, prompt="b meets a", **options):
    second = {"image": "green.png", "subject": "a"}
    third = {"image": "grey.png", "subject": "b"}
    write(folder, {"video": "a.mp4", "caption": "c", "prompt": prompt, "references": [red(), third, second]})
    data = load(folder, **options)
    return [
        [str(r.image[0, 0].argmax()) + r.subject for r in data.conditions(0, np.random.default_rng(seed)).references]
        for seed in range(40)
    ]


def test_one_view_of_each_subject_is_chosen_in_random_order_where_the_prompt_names_them(folder):
    seen = views(folder)
    assert all(sorted(name[1] for name in names) == ["a", "b"] for names in seen)
    assert {tuple(names) for names in seen} == {("0a", "0b"), ("1a", "0b"), ("0b", "0a"), ("0b", "1a")}
    assert views(folder) == seen


def test_the_manifests_order_is_kept_where_the_prompt_does_not_name_all_subjects(folder):
    for prompt in ("two friends meet", "a meets somebody"):
        assert {tuple(names) for names in views(folder, prompt)} == {("0a", "0b"), ("1a", "0b")}
    assert {tuple(names) for names in views(folder, "they meet", second_view=1.0)} == {
        ("0a", "1a", "0b"),
        ("1a", "0a", "0b"),
    }


def test_a_frame_of_the_same_video_is_of_the_same_clip_and_a_picture_is_not_unless_somebody_says_so(folder):
    frame = {"frame": 1, "subject": "a"}
    references = [{"video": "a.mp4", **frame}, {"video": "b.mp4", **frame}, red(), red(same_clip=True)]
    references.append({"video": "a.mp4", "same_clip": False, **frame})
    write(folder, {"video": "a.mp4", "caption": "c", "references": references})
    assert [each.same_clip for each in load(folder).references(0)] == [True, False, False, True, False]
    for share in (0.0, 0.25, 1.0):
        data = load(folder, other_view=share)
        shown = [data.conditions(0, np.random.default_rng(seed)).references[0].same_clip for seed in range(200)]
        # Two of five views are of the clip.
        assert np.mean(shown) == pytest.approx(1 - share if share else 0.4, abs=0.1)


def test_second_views_come_as_often_as_asked_and_only_while_there_is_room(folder):
    assert all(sorted(names) == ["0a", "0b", "1a"] for names in views(folder, second_view=1.0))
    assert all(len(names) == 2 for names in views(folder, second_view=1.0, max_references=2))
    assert 8 < sum(len(names) == 3 for names in views(folder, second_view=0.5)) < 32


def test_transparency_leaves_no_background_and_a_mask_beside_the_picture_does(folder):
    cutout = Image.open(folder / "red.png").convert("RGBA")
    cutout.putalpha(Image.open(folder / "mask.png"))
    cutout.save(folder / "cutout.png")
    frame = {"video": "b.mp4", "frame": 1, "subject": "d"}
    pictures = [{"image": "cutout.png", "subject": "b"}, {"image": "cutout.png", "mask": "mask.png", "subject": "c"}]
    write(folder, {**GOOD, "references": [red(), red(mask="mask.png"), *pictures, frame]})
    references = load(folder).references(0)
    assert [reference.background for reference in references] == [True, True, False, False, True]
    assert [reference.mask is None for reference in references] == [True, False, False, False, True]


def names(data):
    return {data.id(i) for i in range(len(data))}


def copies(folder, count):
    """Lines of so many videos."""
    for i in range(count):
        shutil.copyfile(folder / "a.mp4", folder / f"{i}.mp4")
    return [{"video": f"{i}.mp4", "caption": "c", "end": 1, "id": f"clip {i}"} for i in range(count)]


def test_videos_that_are_added_move_none_of_the_others(folder):
    records = copies(folder, 40)
    write(folder, *records[:30])
    train, held = (names(load(folder, split=s, validation_fraction=0.2)) for s in ("train", "validation"))
    assert train | held == {record["id"] for record in records[:30]}
    assert not held & train
    assert 2 <= len(held) <= 12
    write(folder, *records[::-1])
    grown = names(load(folder, split="validation", validation_fraction=0.2))
    assert grown & (train | held) == held


@pytest.mark.parametrize("by", ["video", "group"])
def test_clips_of_one_video_or_group_are_held_out_together(folder, by):
    records = copies(folder, 40)
    for i, record in enumerate(records):
        record |= {"video": f"{i // 4}.mp4"} if by == "video" else {"group": f"film {i // 4}"}
    write(folder, *records)
    held = names(load(folder, split="validation", validation_fraction=0.3))
    assert 0 < len(held) < 40
    assert all(len({f"clip {4 * film + part}" for part in range(4)} & held) in (0, 4) for film in range(10))


def test_parts_of_one_video_alone_are_held_out_with_a_warning(folder, caplog):
    write(folder, *({"video": "a.mp4", "caption": "c", "start": i / 10} for i in range(10)))
    held, train = (names(load(folder, split=s, validation_fraction=0.2)) for s in ("validation", "train"))
    assert min(len(held), len(train)) > 0
    assert 'all 10 clips are of one video or group, "a.mp4"' in caplog.text


def test_one_clip_cannot_be_divided(folder):
    write(folder, {"video": "a.mp4", "caption": "c"})
    for split in ("train", "validation"):
        with pytest.raises(InputError, match=r"validation_fraction 0\.3 of 1 example leaves none for training or none"):
            load(folder, split=split, validation_fraction=0.3)
    assert len(load(folder, split="train", validation_fraction=0)) == 1
    with pytest.raises(InputError, match="validation_fraction is 0"):
        load(folder, split="validation", validation_fraction=0)


def test_a_long_clip_gives_any_part_and_a_held_out_one_its_beginning(folder):
    records = [{"video": "a.mp4", "caption": "c", "id": str(i)} for i in range(60)]
    records[0] |= {"start": 0.4, "end": 1.6}
    write(folder, *records)
    begins = {}
    for split in ("train", "validation"):
        data = load(folder, split=split, validation_fraction=0.3)
        for i in range(len(data)):
            shown = [index_of(frame) for frame in data.video(i)]
            assert shown == list(range(shown[0], shown[0] + 10, 2))
            begins.setdefault("cut" if data.id(i) == "0" else split, set()).add(shown[0])
            assert np.array_equal(data.video(i), data.video(i))
    # 20 frames at 10 a second, of which 5 at 5 a second are shown.
    assert begins["train"] == {0, 2, 4, 6, 8, 10}
    assert begins["validation"] == {0}
    assert begins["cut"] <= {4, 6}


def test_content_changes_with_whatever_the_frames_follow_from(folder):
    def content(split="all", **fields):
        write(folder, {"video": "b.mp4", "caption": "c"}, {"video": "a.mp4", "caption": "c", "id": "x", **fields})
        data = load(folder, split=split, validation_fraction=0)
        return json.loads(json.dumps(data.content(1)))

    before = content()
    assert content(caption="another", references=[red()]) == before
    shutil.copyfile(folder / "a.mp4", folder / "c.mp4")
    variants = [content(start=0.5), content(end=1.5), content(video="c.mp4")]
    os.utime(folder / "a.mp4", ns=(0, 1))
    variants.append(content())
    assert len({json.dumps(each) for each in [before, *variants]}) == 5


GOOD = {"video": "a.mp4", "caption": "c"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**GOOD, "group": "x"}, 'is of group "x", but line 1, of the same video, of "a.mp4"'),
        ({**GOOD, "group": 3}, '"group" is 3; it must be text'),
        ("{", "cannot be read as JSON"),
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
        ('{"video": "a.mp4", "caption": "c", "start": NaN}', "start is NaN"),
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
        ({**GOOD, "references": [red(same_clip=1)]}, r'"references\[0\].same_clip" is 1; it must be true or false'),
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
