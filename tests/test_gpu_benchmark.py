"""`python -m benchmarks.gpu` at toy size: its cheapest parts, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import process_environment

ROOT = Path(__file__).parents[1]


def command(*arguments: str) -> subprocess.CompletedProcess:
    call = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(call, cwd=ROOT, env=process_environment(), capture_output=True, text=True)


def test_results_are_lines_that_say_of_what(tmp_path):
    done = command(f"--out={tmp_path}", "--tiny", "--parts=attention,matmul")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert all(line["card"] and line["jax"] and line["tiny"] for line in lines)
    assert [line["status"] for line in lines if line["item"] == "end"] == [0, 0], done.stderr
    attention, matmul = (
        [x for x in lines if x["part"] == part and x["item"] != "end"] for part in ("attention", "matmul")
    )
    assert len(attention) == 14
    assert all(line["within"] for line in attention), attention
    # 16 bits differ, so something was compared.
    assert all(min(line["errors"].values()) > 0 for line in attention)
    assert all(line["tflops"] > 0 and "device" in line for line in matmul)


@pytest.mark.parametrize(("flag", "word"), [("--parts=2b,3b", "'3b'"), ("--sections=all", "'all'")])
def test_unknown_parts_are_refused_in_one_sentence(tmp_path, flag, word):
    done = command(f"--out={tmp_path}", flag)
    assert done.returncode == 2
    assert word in done.stderr.splitlines()[-1]
    assert "accepted: " in done.stderr.splitlines()[-1]


def test_without_a_card_nothing_is_measured_at_full_size(tmp_path):
    done = command(f"--out={tmp_path}", "--parts=matmul")
    assert "--tiny needs none" in done.stderr
    (line,) = map(json.loads, (tmp_path / "gpu.jsonl").read_text().splitlines())
    assert line["item"] == "end"
    assert line["status"] == 1
