"""The command on a tiny checkpoint, what it leaves behind, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from tiny import random_run, run_together

from cinema_jax import evaluate
from cinema_jax.data.critters.cutout import find_cutouts, split_cutouts
from cinema_jax.data.video import probe
from cinema_jax.errors import InputError
from cinema_jax.evaluation import suite as suites
from cinema_jax.evaluation.judge.weights import read_judge, write_judge
from cinema_jax.evaluation.videos import Gallery, claim, fingerprint
from cinema_jax.experiment import parts
from cinema_jax.sampling.sampler import Sampler
from cinema_jax.weights.rules import flatten


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return random_run(tmp_path_factory.mktemp("runs") / "tiny")


def evaluated(workdir, **options):
    flags.FLAGS.mark_as_parsed()
    with (
        pytest.MonkeyPatch.context() as patch,
        flagsaver.flagsaver(checkpoint=str(workdir), **{"cases": 2, "steps": 1, "batch_size": 2} | options),
    ):
        patch.setattr(suites, "_GALLERY", 80)
        evaluate.main()


@pytest.fixture(scope="module")
def output(workdir):
    evaluated(workdir)
    return workdir / "evaluation"


def test_figures_of_every_measure_are_written(output):
    found = json.loads((output / "figures.json").read_text())
    assert len(found["cases"]) == 6
    assert set(found["digests"]) >= {"vae", "mllm", "aligner", "dit", "judge"}
    for name, columns in found["figures"].items():
        assert set(columns) == {
            f"{kind}{end}" for kind in ("generated", "real", "reconstructed") for end in ("", "_shuffled")
        }
        for groups in columns.values():
            assert all(x is None or x["low"] <= x["value"] <= x["high"] for x in groups.values()), name


def test_real_videos_are_told_from_what_a_random_network_generates(output):
    figures = json.loads((output / "figures.json").read_text())["figures"]
    real, generated = ({name: x[column]["all"] for name, x in figures.items()} for column in ("real", "generated"))
    # None of these six prompts names a direction.
    assert [name for name, x in real.items() if x is None] == ["direction"]
    assert all(generated[name] for name, x in real.items() if x)
    for name in ("identity", "binding", "action", "place"):
        assert real[name]["value"] > 0.9, name
        assert generated[name]["value"] < 0.7, name


def test_the_page_shows_every_video(output):
    page = (output / "index.html").read_text()
    for case in json.loads((output / "figures.json").read_text())["cases"]:
        for file in (f"generated/{case['id']}.mp4", f"real/{case['id']}.mp4", f"references/{case['id']}.png"):
            assert f'src="{file}"' in page
            assert (output / file).is_file()


def test_the_page_has_every_figure_with_ceiling_and_chance(output):
    page = (output / "index.html").read_text()
    figures = json.loads((output / "figures.json").read_text())["figures"]
    assert page.count('<th scope="row">') == len(figures)
    identity = page[page.index('<th scope="row">identity') :].split("</tr>")[0]
    for column in ("generated", "reconstructed", "generated_shuffled"):
        assert f"<td>{100 * figures['identity'][column]['all']['value']:.1f} %" in identity


def test_videos_are_not_made_twice(workdir, output, monkeypatch):
    before = {file: file.stat().st_mtime_ns for file in output.glob("k*.png")}
    missing = output / "k2-001.png"
    pixels = missing.read_bytes()
    missing.unlink()
    asked, sample = [], Sampler.__call__

    def counting(self, requests, settings):
        asked.extend(request.prompt for request in requests)
        return sample(self, requests, settings)

    monkeypatch.setattr(Sampler, "__call__", counting)
    evaluated(workdir)
    assert len(set(asked)) == 1
    assert missing.read_bytes() == pixels
    assert {file: file.stat().st_mtime_ns for file in before if file != missing} == {
        file: moment for file, moment in before.items() if file != missing
    }


def test_videos_of_other_settings_are_refused(workdir, output):
    with pytest.raises(InputError, match=r"\(settings differ\); name a new --output"):
        evaluated(workdir, guidance_text=3.5)


def test_a_list_of_opens2v_becomes_videos(workdir, tmp_path):
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "cup.png")
    (tmp_path / "list.json").write_text(json.dumps({"singleobj_1": {"prompt": "it jumps", "img_paths": ["cup.png"]}}))
    output = tmp_path / "videos"
    evaluated(workdir, suite="opens2v", samples=str(tmp_path / "list.json"), output=str(output))
    found = probe(output / "singleobj_1.mp4")
    assert (found.frames, found.height, found.width) == (5, 32, 32)
    Image.new("RGB", (40, 30), (30, 200, 30)).save(tmp_path / "cup.png")
    with pytest.raises(
        InputError, match="videos holds singleobj_1 and 0 more videos of another prompt, other pictures"
    ):
        evaluated(workdir, suite="opens2v", samples=str(tmp_path / "list.json"), output=str(output))


def test_two_processes_share_the_videos_of_a_list(workdir, tmp_path):
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "cup.png")
    names = ("one", "two", "three")
    listed = {name: {"prompt": "it jumps", "img_paths": ["cup.png"]} for name in names}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    evaluated(workdir, suite="opens2v", samples=str(tmp_path / "list.json"), output=str(alone))
    words = [f"--checkpoint={workdir}", "--suite=opens2v", f"--samples={tmp_path / 'list.json'}", f"--output={shared}"]
    told = run_together(["-m", "cinema_jax.evaluate", *words, "--steps=1"])
    assert [status for status, *_ in told] == [0, 0], told
    assert "3 videos, 3 of them made now" in told[0][1]
    assert "videos" not in told[1][1]
    # One made the first and the third, the other the second.
    assert ["2/2 [" in told[0][2], "1/1 [" in told[1][2]] == [True, True]
    for name in names:
        assert (shared / f"{name}.mp4").read_bytes() == (alone / f"{name}.mp4").read_bytes()


def test_opens2v_wants_its_list(workdir):
    with pytest.raises(InputError, match="needs --samples"):
        evaluated(workdir, suite="opens2v")


def test_subjects_play_in_the_critters_alone(workdir):
    with pytest.raises(InputError, match="--subjects=photographs is for the suite critters only"):
        evaluated(workdir, suite="opens2v", subjects="photographs")


@pytest.fixture
def pictures(tmp_path):
    """Thirteen cut-outs."""
    (tmp_path / "pictures").mkdir()
    for number in range(13):
        picture = Image.new("RGBA", (40, 30))
        picture.paste((20 * number, 90, 200, 255), (5, 5, 35, 25))
        picture.save(tmp_path / "pictures" / f"thing{chr(97 + number)}.png")
    return tmp_path / "pictures"


def test_what_the_run_has_trained_on_does_not_play_but_is_compared_with(workdir, pictures, tmp_path, capsys):
    held = [cutout.key for cutout in split_cutouts(find_cutouts(pictures), "test")]
    trained = tmp_path / "trained"
    shutil.copytree(workdir, trained, ignore=shutil.ignore_patterns("evaluation"))
    config = json.loads((trained / "config.json").read_text())
    config["data"]["subjects"] = str(pictures)
    (trained / "config.json").write_text(json.dumps(config))
    evaluated(trained, subjects=str(pictures))
    found = json.loads((trained / "evaluation" / "figures.json").read_text())
    assert found["subjects"] == held
    assert found["candidates"] == 11
    assert {name for case in found["cases"] for name in case["subjects"]} <= set(held)
    assert f"{len(held)} of 13 pictures are used as subjects" in capsys.readouterr().out


def test_it_is_said_where_the_pictures_of_training_are_not_known(pictures, capsys):
    keys = {cutout.key for cutout in find_cutouts(pictures)}
    held = {cutout.key for cutout in split_cutouts(find_cutouts(pictures), "test")}
    # A published config has the folder's name alone.
    for trained, playing in (("", keys), ("pictures", held), ("elsewhere", keys)):
        play, others = evaluate._cutouts(str(pictures), trained)
        assert {cutout.key for cutout in play} == playing
        assert {cutout.key for cutout in others} == keys - playing
    assert "trained on pictures of elsewhere, which is not here" in capsys.readouterr().out


def test_pictures_that_were_all_trained_on_are_refused(pictures, tmp_path):
    (tmp_path / "seen").mkdir()
    for cutout in split_cutouts(find_cutouts(pictures), "train"):
        shutil.copy(cutout.path, tmp_path / "seen")
    with pytest.raises(InputError, match="holds no picture that the checkpoint has not been trained on"):
        evaluate._cutouts(str(tmp_path / "seen"), str(pictures))


def test_claims_of_the_same_are_welcome(tmp_path):
    claim(tmp_path, {"a": 1}, {"k1": "x"})
    claim(tmp_path, {"a": 1}, {"k1": "x", "k2": "y"})
    with pytest.raises(InputError, match="a differ"):
        claim(tmp_path, {"a": 2}, {"k1": "x"})
    with pytest.raises(
        InputError, match="holds k2 and 0 more videos of another prompt, other pictures or another place"
    ):
        claim(tmp_path, {"a": 1}, {"k1": "x", "k2": "z"})
    with pytest.raises(InputError, match="is a file; name a folder"):
        claim(tmp_path / "generation.json", {"a": 1}, {})


def test_folders_that_do_not_say_what_their_videos_show_are_refused(tmp_path):
    (tmp_path / "generation.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match=r"\(videos differ\); name a new --output"):
        claim(tmp_path, {"a": 1}, {"k1": "x"})


def test_a_video_is_told_by_prompt_pictures_their_order_and_seed():
    asked = fingerprint("it jumps", 3, ["a", "b"])
    others = [("it sits", 3, ["a", "b"]), ("it jumps", 4, ["a", "b"]), ("it jumps", 3, ["b", "a"])]
    assert asked == fingerprint("it jumps", 3, iter(["a", "b"]))
    assert asked not in [fingerprint(*other) for other in others]


def test_the_default_output_is_not_inside_what_belongs_to_others(tmp_path):
    from huggingface_hub import constants

    cached = Path(constants.HF_HUB_CACHE) / "models--a--b/snapshots/1"
    assert evaluate._beside(cached) == evaluate._beside(parts.PACKAGED / "demo") == Path("evaluation")
    assert evaluate._beside(tmp_path) == tmp_path / "evaluation"


def test_a_damaged_video_is_one_sentence(tmp_path):
    kept = Gallery(tmp_path)
    kept.write("k1-000", np.zeros((3, 4, 5, 3), np.uint8))
    assert kept.read("k1-000", 3, 4, 5).shape == (3, 4, 5, 3)
    with pytest.raises(InputError, match="is no video of 3 frames of 8x8"):
        kept.read("k1-000", 3, 8, 8)
    kept.file("k1-000").write_bytes(b"no picture")
    with pytest.raises(InputError, match="not an image that can be read"):
        kept.read("k1-000", 3, 4, 5)


def test_a_judge_survives_its_folder(tmp_path):
    config, judge = read_judge(parts.PACKAGED / "judge")
    write_judge(tmp_path, config, flatten(judge))
    again, copy = read_judge(tmp_path)
    assert again == config
    for path, x in flatten(judge).items():
        np.testing.assert_array_equal(x, flatten(copy)[path])


def test_a_folder_without_a_judge_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "AlignerNet"}')
    with pytest.raises(InputError, match="does not describe a Judge"):
        read_judge(tmp_path)
