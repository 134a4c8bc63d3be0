import json

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tqdm import tqdm

from cinema_jax.training.metrics import MetricsWriter, truncate


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir, stage="align"):
    """The events of a stage's TensorBoard files: records of an 8-byte length, a checksum, the data, a checksum."""
    found = []
    for path in sorted((workdir / "tensorboard" / stage).iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def write(workdir, steps, stage="align", resume_step=0):
    with MetricsWriter(workdir, stage=stage, resume_step=resume_step) as writer:
        for step in steps:
            writer.write(step, {"loss": step / 2})


def test_one_object_a_line(tmp_path):
    with MetricsWriter(tmp_path, stage="align") as writer:
        writer.write(1, {"loss": np.float32(0.5), "skipped": np.int32(0)})
    assert lines(tmp_path) == [{"step": 1, "stage": "align", "loss": 0.5, "skipped": 0.0}]


def test_lines_are_on_disk_before_the_writer_is_closed(tmp_path):
    with MetricsWriter(tmp_path, stage="align") as writer:
        writer.write(1, {"loss": 0.5})
        assert len(lines(tmp_path)) == 1


def test_value_that_is_not_finite_stays_valid_json(tmp_path):
    with MetricsWriter(tmp_path, stage="align") as writer:
        writer.write(1, {"loss": float("nan")})
    assert lines(tmp_path)[0]["loss"] is None


def test_resumed_run_has_no_step_twice(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5], resume_step=2)
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_stage_that_begins_anew_is_measured_before_its_first_step_once(tmp_path):
    write(tmp_path, [1], stage="align")
    write(tmp_path, [0, 1], stage="finetune")
    write(tmp_path, [0, 1], stage="finetune")
    write(tmp_path, [2], stage="finetune", resume_step=1)
    assert [(row["stage"], row["step"]) for row in lines(tmp_path)] == [
        ("align", 1),
        *(("finetune", step) for step in (0, 1, 2)),
    ]


def test_resume_keeps_the_stages_before(tmp_path):
    write(tmp_path, [1, 2, 3], stage="align")
    write(tmp_path, [1, 2], stage="finetune")
    write(tmp_path, [2], stage="finetune", resume_step=1)
    assert [(row["stage"], row["step"]) for row in lines(tmp_path)] == [
        ("align", 1),
        ("align", 2),
        ("align", 3),
        ("finetune", 1),
        ("finetune", 2),
    ]


def test_line_that_was_cut_off_is_dropped(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "sta')
    truncate(path, "align", 9)
    assert [row["step"] for row in lines(tmp_path)] == [1, 2]


def test_tensorboard_gets_the_scalars(tmp_path):
    write(tmp_path, [1, 2])
    found = [(v.tag, e.step, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert found == [("loss", 1, 0.5), ("loss", 2, 1.0)]


@pytest.mark.parametrize(("kind", "magic"), [("images", b"\x89PNG"), ("video", b"GIF89a")])
def test_tensorboard_gets_pictures(tmp_path, kind, magic):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    with MetricsWriter(tmp_path, stage="align") as writer:
        getattr(writer, kind)(4, "sample", pixels)
    images = [(v.tag, e.step, v.image.encoded_image_string) for e in events(tmp_path) for v in e.summary.value]
    assert [(tag, step, data[: len(magic)]) for tag, step, data in images] == [("sample", 4, magic)]


def test_sinks_get_the_same_scalars(tmp_path):
    told = []
    with MetricsWriter(tmp_path, stage="align", sinks=[lambda *row: told.append(row)]) as writer:
        writer.write(3, {"loss": np.float32(0.5)})
    assert told == [("align", 3, {"loss": 0.5})]


def test_bars_after_the_last_step_are_not_nested_into_its_own(tmp_path, capsys):
    with MetricsWriter(tmp_path, stage="align", total_steps=2) as writer:
        writer.progress(2, loss=1.0)
        writer.end_bar()
        for _ in tqdm(range(3), desc="judge"):
            pass
    # Nested bars move the cursor to lines of their own, and back.
    assert "\x1b[A" not in capsys.readouterr().err


def test_bar_shows_loss_and_position(tmp_path, capsys):
    with MetricsWriter(tmp_path, stage="align", resume_step=2, total_steps=10, title="align (1 of 2)") as writer:
        writer.progress(10, left=125.0, loss=0.25)
    shown = capsys.readouterr().err
    assert all(text in shown for text in ("align (1 of 2)", "10/10", "loss=0.25", "all_done_in=02:05")), shown


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    with MetricsWriter(tmp_path / "run", stage="align") as writer:
        writer.write(1, {"loss": 0.0})
        writer.progress(1, loss=0.0)
        writer.images(1, "sample", pixels)
        writer.video(1, "sample", pixels)
    assert not (tmp_path / "run").exists()
