"""Planning: what it reads from a compiled program, and a real step compiled for TPUs that are not here."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from tiny import TPU_ENVIRONMENT, process_environment, tiny_config

from cinema_jax import sharding
from cinema_jax.chips import chip_of
from cinema_jax.cinema import Cinema
from cinema_jax.config import parse
from cinema_jax.errors import InputError
from cinema_jax.planning import planner, program
from cinema_jax.planning.collectives import collectives, summary
from cinema_jax.planning.report import Report
from cinema_jax.training import loop
from cinema_jax.training.run import Run
from cinema_jax.training.stages import STAGES
from configs import cogvideox_2b

PROGRAM = """\
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%condition (p: (s32[], bf16[8,4])) -> pred[] {
  %limit = s32[] constant(6)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %step = s32[] constant(2)
  %i = s32[] get-tuple-element(%p), index=0
  %next = s32[] add(%i, %step)
  %w = bf16[2,4] get-tuple-element(%p), index=1
  %whole = bf16[8,4]{1,0} all-gather(%w), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %out = (s32[], bf16[8,4]) tuple(%next, /*index=1*/%whole)
}

%fused.all-reduce-scatter (x: f32[16]) -> f32[4] {
  %r = f32[16]{0} all-reduce(%x), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %own = f32[4]{0} dynamic-slice(%r)
}

%continued (x: bf16[2,4]) -> bf16[8,4] {
  ROOT %again = bf16[8,4] all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], \
backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
}

ENTRY %main (x: f32[16]) -> f32[4] {
  %loop = (s32[], bf16[8,4]) while(%start), condition=%condition, body=%body
  %c = bf16[8,4] fusion(%x), kind=kCustom, calls=%continued
  %norm = f32[] all-reduce(%n), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a','b'}, to_apply=%add
  %far = (bf16[4]{0}, u32[], token[]) send(%y, %after), is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %moved = (bf16[4], bf16[4], u32[], u32[]) collective-permute-start(%y), source_target_pairs={{0,1},{1,0}}
  ROOT %s = f32[4] fusion(%x), kind=kLoop, calls=%fused.all-reduce-scatter
}
"""


def test_collectives_count_the_turns_of_loops_and_each_operation_once():
    found = summary(collectives(PROGRAM))
    assert found == {
        # 3 turns of 8 x 4 numbers in bf16, of which a chip sends what it has to three others.
        "all-gather": {"count": 3, "wire_bytes": 3 * 64 * 3 / 4},
        "all-reduce": {"count": 1, "wire_bytes": 2 * 4 * 7 / 8},
        "between slices": {"count": 1, "wire_bytes": 8},
        "collective-permute": {"count": 1, "wire_bytes": 8.0},
        "reduce-scatter": {"count": 1, "wire_bytes": 64 * 3 / 4},
    }


@pytest.mark.parametrize("stage", ["pretrain", "align", "finetune"])
def test_a_planned_batch_is_what_the_trainer_makes(stage, tmp_path):
    run = Run.open(tiny_config(), tmp_path)
    config = getattr(run.config, stage)
    mesh = sharding.make_mesh()
    random = {name: run.part_config(name) for name in STAGES[stage].needed(run.config)}
    trainer = object.__new__(loop.Trainer)
    trainer.run, trainer.stage, trainer.mesh, trainer.config, trainer.unreadable = run, STAGES[stage], mesh, config, {}
    trainer.cinema = Cinema(run.config, random)
    examples = loop.Examples(run.source("train"), run.preprocessor(), range(4))
    if STAGES[stage].latents:
        shape = program.example_shapes(trainer.cinema, stage)["latents"][0]
        examples = loop.Examples(run.source("train"), run.preprocessor(), range(4), np.zeros((4, *shape), np.float32))
    _, batch = next(trainer.batches(loop.Mixture((examples,)), 0))
    planned = program.abstract_batch(trainer.cinema, stage, config.batch_size, mesh)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, np.dtype(x.dtype)) for name, x in planned.items()
    }


@pytest.mark.parametrize("topology", ["v5p", "v9:4x4", "v5e:4y4", ""])
def test_a_topology_that_is_none_is_refused(topology):
    with pytest.raises(InputError, match=r"--topology is .* v5p:4x4x4"):
        chip_of(topology)


def test_a_search_compiles_meshes_that_send_least_and_presets_until_one_fits(monkeypatch):
    values = cogvideox_2b.get_config()
    values.data.path, values.finetune.batch_size = "planned", 8
    tried = []

    def plan_step(run, stage, topology):
        mesh, remat = run.config.mesh, run.config.dit_model.remat
        tried.append((mesh.fsdp, mesh.context, remat))
        return Mock(Report, fits=remat == "full", seconds={"compute": 1.0, "links": float(mesh.fsdp)})

    # As if smaller meshes had to send less.
    monkeypatch.setattr(planner, "devices", lambda topology, slices: [None] * 16)
    monkeypatch.setattr(planner, "mesh_of", lambda run, topology: 10 * run.config.mesh.fsdp + run.config.mesh.context)
    monkeypatch.setattr(planner.program, "train_program", lambda run, stage, mesh: None)
    monkeypatch.setattr(planner.report, "ideal_wire", lambda planned, mesh: {"all": float(mesh)})
    monkeypatch.setattr(planner, "plan_step", plan_step)
    found = planner.search(Run(parse(values), Path("planned")), "finetune", "v6e:4x4")
    assert tried == [
        *((2, 4, remat) for remat in ("dots", "attention", "full")),
        *((fsdp, context, "full") for fsdp, context in ((4, 2), (4, 4), (8, 2))),
    ]
    assert [result.seconds["links"] for result in found] == [2.0, 4.0, 4.0, 8.0]


# Released widths, but two layers and few tokens.
SMALL = {
    "finetune.batch_size": 16,
    "pretrain.batch_size": 32,
    "dit_model.num_layers": 2,
    "mllm_model.num_hidden_layers": 2,
    "data.height": 96,
    "data.width": 144,
    "data.frames": 9,
    "data.reference_height": 96,
    "data.reference_width": 144,
    "condition.mllm_patches": 256,
    "condition.mllm_tokens": 256,
}

SMALL_FLAGS = [f"--config.{name}={value}" for name, value in SMALL.items()]


def plan(config, topology, *arguments):
    """What the command prints."""
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu (pip install libtpu)")
    command = [sys.executable, "-m", "cinema_jax.plan", f"--config=configs/{config}.py", f"--topology={topology}"]
    environment = process_environment() | TPU_ENVIRONMENT
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Made by `CINEMA_GOLDEN=write python -m pytest tests/planning`: look at what changed before you commit it.
GOLDEN = Path(__file__).parent / "golden"
WRITE = os.environ.get("CINEMA_GOLDEN") == "write"


def golden(name, found):
    """What the file holds; `found` is written there first if that was asked for."""
    file = GOLDEN / name
    if WRITE:
        file.write_text(found)
    return file.read_text()


@pytest.mark.parametrize(
    ("stage", "topology", "more"),
    [
        ("pretrain", "v5p:2x2x4", ()),
        ("pretrain", "v6e:4x4", ("--config.mesh.slice=2",)),
        # With the MLLM, the VAE and references.
        ("finetune", "v5e:4x4", ()),
    ],
)
def test_a_step_compiles_and_moves_its_weights_and_nothing_else(stage, topology, more):
    """An all-gather of activations would show in what is sent, and in the golden counts."""
    result = json.loads(plan("cogvideox_2b", topology, "--json", f"--stage={stage}", *more, *SMALL_FLAGS))
    assert result["fits"]
    assert 0 < result["hbm_gib"] < result["hbm_limit_gib"]
    assert all(size >= 0 for size in result["memory_gib"].values())
    assert result["wire_gib"] < 1.25 * sum(result["ideal_wire_gib"].values())
    # Each chip sends the sum of its slice's gradients for its own share of the parameters.
    share = result["memory_gib"]["trained parameters"] / 2
    assert result["between_slices_gib"] == pytest.approx(share if more else 0, rel=0.1)
    version = importlib.metadata.version("libtpu")
    found = {"libtpu": version, "collectives": result["collectives"]}
    expected = json.loads(golden(f"{stage}_{topology.replace(':', '_')}.json", json.dumps(found, indent=1) + "\n"))
    if expected["libtpu"] == version:
        assert found == expected
    else:
        # Other versions fuse and combine otherwise, but send as much.
        sent, as_before = (sum(x["wire_bytes"] for x in y["collectives"].values()) for y in (found, expected))
        assert sent == pytest.approx(as_before, rel=0.1)


@pytest.mark.parametrize("config", ["cogvideox_2b", "cogvideox_5b"])
def test_parameters_lie_as_they_did_and_nothing_large_is_replicated(config):
    """At the released size."""
    table = plan(config, "v5p:4x4x4", "--table")
    assert table == golden(f"{config}.txt", table)
    lines = table.splitlines()
    replicated = [line.split() for line in lines if " replicated " in line]
    assert replicated
    assert [row[0] for row in replicated if int(row[3].replace(",", "")) > 2**20] == []
