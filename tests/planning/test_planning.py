"""Planning: what it reads from a compiled program, and a real step compiled for TPUs that are not here."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from tiny import TPU_ENVIRONMENT, process_environment, tiny_values

from cinema_jax.cinema import Cinema
from cinema_jax.config import parse
from cinema_jax.devices import sharding
from cinema_jax.devices.axes import AXES
from cinema_jax.devices.chips import chip_of
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.planning import planner, program, report
from cinema_jax.planning.collectives import collectives, summary
from cinema_jax.planning.report import Report
from cinema_jax.training import loop
from cinema_jax.training.stages import STAGES

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


@pytest.mark.parametrize(
    ("started", "plain"),
    [
        (
            "(bf16[2,4], bf16[8,4]) all-gather-start(%w), replica_groups=[2,4]<=[8]",
            "bf16[8,4] all-gather(%w), replica_groups=[2,4]<=[8]",
        ),
        (
            "((bf16[2,4], f32[1,4]), (bf16[8,4], f32[4,4])) all-gather-start(%w, %v), replica_groups=[2,4]<=[8]",
            "(bf16[8,4], f32[4,4]) all-gather(%w, %v), replica_groups=[2,4]<=[8]",
        ),
        # Has no operands in its shape.
        (
            "(f32[16], f32[8]) all-reduce-start(%x, %y), replica_groups=[2,4]<=[8]",
            "(f32[16], f32[8]) all-reduce(%x, %y), replica_groups=[2,4]<=[8]",
        ),
        ("f32[] all-reduce-start(%x), replica_groups=[2,4]<=[8]", "f32[] all-reduce(%x), replica_groups=[2,4]<=[8]"),
        (
            "((f32[16]), f32[4], u32[]) reduce-scatter-start(%x), replica_groups=[2,4]<=[8]",
            "f32[4] reduce-scatter(%x), replica_groups=[2,4]<=[8]",
        ),
    ],
)
def test_an_operation_that_only_starts_sends_what_the_whole_one_does(started, plain):
    first, second = (
        collectives(f"ENTRY %main (x: f32[16]) -> f32[4] {{\n  %a = {line}\n}}") for line in (started, plain)
    )
    assert first[0].wire_bytes == second[0].wire_bytes > 0


@pytest.mark.parametrize("stage", ["pretrain", "align", "finetune"])
def test_a_planned_batch_is_what_the_trainer_makes(stage, tmp_path):
    values = tiny_values()
    # With a weight for each latent in the batch.
    values.flow.subject_weight = 2.0
    run = Run.open(parse(values), tmp_path)
    config = getattr(run.config, stage)
    mesh = sharding.make_mesh()
    random = {name: run.part_config(name) for name in STAGES[stage].needed(run.config)}
    trainer = object.__new__(loop.Trainer)
    trainer.run, trainer.stage, trainer.mesh, trainer.config, trainer.unreadable = run, STAGES[stage], mesh, config, {}
    trainer.cinema, trainer.seed = Cinema(run.config, random), run.config.seed
    examples = loop.Examples(run.source("train"), run.preprocessor(), range(4))
    if STAGES[stage].latents:
        shape = program.abstract_batch(trainer.cinema, stage, 1)["latents"].shape[1:]
        examples = loop.Examples(run.source("train"), run.preprocessor(), range(4), np.zeros((4, *shape), np.float32))
    _, batch = next(trainer.batches((loop.Mixture((examples,)),), 0))
    planned = program.abstract_batch(trainer.cinema, stage, config.batch_size, mesh)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, np.dtype(x.dtype)) for name, x in planned.items()
    }


@pytest.mark.parametrize("topology", ["v5p", "v9:4x4", "v5e:4y4", "", "v5e:"])
def test_a_topology_that_is_none_is_refused(topology):
    with pytest.raises(InputError, match=r"--topology is .* v5p:4x4x4"):
        chip_of(topology)


SHAPES = [
    *("v5e:1x1", "v5e:2x2", "v6e:2x4", "v5e:4x4", "v6e:16x16", "v5e:4x5", "v5e:3x3", "v6e:16x32", "v5e:2x2x1"),
    *("v4:2x2x1", "v4:2x2x2", "v5p:2x4x4", "v5p:4x4x4", "v4:4x4x8", "v5p:4x4x6", "v5p:8x4x4", "v5p:16x16x24"),
    *("v4:16x16x20", "v5p:4x4", "v5p:0x4x4", "v5p:4x4x4x4"),
]


def test_the_launchers_and_plan_take_the_same_topologies_with_as_many_hosts(tpus):
    script = 'source "$0"; for t in "$@"; do (read_topology $t >/dev/null 2>&1 && echo $HOSTS) || echo 0; done'
    shell = Path(__file__).parents[2] / "launch" / "topology.sh"
    done = subprocess.run(["bash", "-c", script, str(shell), *SHAPES], capture_output=True, text=True, check=True)

    def hosts(topology):
        try:
            return len({device.process_index for device in planner.devices(topology)})
        except InputError:
            return 0

    assert {topology: hosts(topology) for topology in SHAPES} == dict(
        zip(SHAPES, map(int, done.stdout.split()), strict=True)
    )


def test_a_shape_that_a_generation_does_not_have_is_refused_with_those_that_it_has():
    with pytest.raises(InputError, match="v5e has the shapes 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"):
        chip_of("v5e:4x5")


def test_a_v4_chip_is_one_device_with_the_memory_that_the_compiler_gives_it(tpus):
    target = planner.Target("v4:2x2x2")
    mesh = sharding.make_mesh(fsdp=8, devices=planner.devices(target.topology))
    assert len({tuple(device.coords) for device in mesh.devices.flat}) == mesh.size == 8
    place = NamedSharding(mesh, PartitionSpec())
    large = jax.ShapeDtypeStruct((64, 2**30), np.float32, sharding=place)
    with pytest.raises(jax.errors.JaxRuntimeError, match=rf"available HBM \({chip_of('v4:2x2x2').hbm_gib}G\)"):
        jax.jit(lambda x: 2 * x).lower(large).compile()


def report_of(run, topology, gib):
    """Of the mesh and preset of a run, as if it took so much memory, and its links time by its mesh."""
    mesh, remat = run.config.mesh, run.config.dit_model.remat
    return Report(
        program="the step",
        topology=topology,
        mesh=vars(mesh),
        batch=16,
        remat=remat,
        fits=gib <= 15.75,
        hbm_gib=gib,
        hbm_limit_gib=15.75,
        memory_gib={},
        wire_gib=0.0,
        between_slices_gib=0.0,
        ideal_wire_gib={},
        collectives={},
        largest=[],
        flops=1.0,
        hbm_traffic_gib=0.0,
        seconds={"compute": 1.0, "links": 10.0 * mesh.fsdp + mesh.context},
        trace_s=0.0,
        compile_s=0.0,
    )


def searched(gib, folder):
    """What a search over v5e:4x4 finds and tries, where `gib` says what a mesh and preset take."""
    values, tried = tiny_values(), []
    values.finetune.batch_size = 16
    values.stages = ("finetune",)

    def compiled(run, stage, target):
        mesh, remat = run.config.mesh, run.config.dit_model.remat
        tried.append((mesh.fsdp, mesh.context, remat))
        return report_of(run, target.topology, gib(mesh, remat))

    run = Run(parse(values), folder)
    try:
        return planner.search(run, "finetune", planner.Target("v5e:4x4"), compiled), tried
    except InputError as error:
        return str(error), tried


def test_a_search_tries_the_most_sharded_mesh_and_every_preset_on_each(tpus, tmp_path):
    def gib(mesh, remat):
        return 20.0 if mesh.fsdp * mesh.context < 16 or remat == "dots" else 10.0

    found, tried = searched(gib, tmp_path)
    meshes = list(dict.fromkeys(sizes[:2] for sizes in tried))
    assert len(meshes) == planner.MOST_MESHES
    assert (16, 1) in meshes
    for sizes in meshes:
        presets = [remat for *there, remat in tried if tuple(there) == sizes]
        fits = sizes[0] * sizes[1] == 16
        assert presets == list(planner.PRESETS[:2] if fits else planner.PRESETS)
    assert [result.remat for result in found] == ["attention"] * len(found)
    assert [result.seconds["links"] for result in found] == sorted(result.seconds["links"] for result in found)


def test_a_search_in_which_nothing_fits_says_so_and_what_came_closest(tpus, tmp_path):
    def gib(mesh, remat):
        return 17.5 if remat == "offload" and mesh.fsdp == 16 else 20.0

    sentence, tried = searched(gib, tmp_path)
    assert len(tried) == planner.MOST_MESHES * len(planner.PRESETS)
    assert sentence.startswith("none of 16 programs on 4 meshes fits; the closest: the step on v5e:4x4 (mesh ")
    assert "fsdp 16" in sentence
    assert sentence.endswith("remat offload) needs 17.50 of 15.75 GiB a chip")


def test_the_most_sharded_mesh_takes_the_last_place_where_it_would_be_left_out():
    assert planner.chosen([(1, 4), (2, 2), (4, 1), (2, 4), (8, 1), (16, 1)]) == [(1, 4), (2, 2), (4, 1), (16, 1)]
    assert planner.chosen([(16, 1), (2, 2)]) == [(16, 1), (2, 2)]


def test_what_a_program_that_does_not_fit_would_send_and_take_is_unknown():
    mesh = AbstractMesh((1, 1, 4, 1, 1), AXES)
    planned = program.Program(None, (), None, {}, lambda: 0)
    options = {"batch": 4, "remat": "full", "flops": 197e12, "trace_s": 1.0, "compile_s": 1.0}
    refused = [
        report.report(
            "a step", "v5e:2x2", chip_of("v5e:2x2"), mesh, planned, None, program_gib=gib, held_out_gib=0.5, **options
        )
        for gib in (20.0, None)
    ]
    found = [json.loads(json.dumps(result.as_json(), allow_nan=False)) for result in refused]
    for name in ("wire_gib", "between_slices_gib", "hbm_traffic_gib", "collectives", "largest", "bound"):
        assert [result[name] for result in found] == [None, None]
    assert [result["hbm_gib"] for result in found] == [20.5, None]
    assert found[0]["seconds"] == {"compute": 0.25, "HBM": None, "links": None}
    told = report.table(refused[0], chip_of("v5e:2x2"))
    assert "sent by each chip in a step: unknown" in told
    assert "what bounds a step is unknown" in told
    assert "  links    unknown" in told
    assert "how much is unknown" in report.table(refused[1], chip_of("v5e:2x2"))


ROOT = Path(__file__).parents[2]


def command(*arguments, folder=ROOT):
    """The command, as it ends."""
    line = [sys.executable, "-m", "cinema_jax.plan", *arguments]
    environment = process_environment() | TPU_ENVIRONMENT
    return subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_a_config_that_is_not_there_is_one_sentence_and_status_2():
    done = command("--config=configs/nope.py", "--topology=v5e:4x4")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --config is 'configs/nope.py', which is no file")
    assert "Traceback" not in done.stderr


def test_nothing_is_read_from_a_folder_that_is_called_as_plans_once_were(tpus, tmp_path):
    for part in ("dit", "vae", "mllm", "aligner"):
        folder = tmp_path / "planned" / "parts" / part
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("no JSON")
    config = f"--config={ROOT / 'configs' / 'demo.py'}:smoke"
    done = command(config, "--topology=v5e:2x2", "--hosts", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hosts"] == 1


# Released widths, but two layers and few tokens.
SMALL = {
    "finetune.batch_size": 16,
    "pretrain.batch_size": 32,
    "dit_model.num_layers": 2,
    "mllm_model.num_hidden_layers": 2,
    "data.height": 96,
    "data.width": 144,
    "data.frames": 9,
    "data.buckets": (),
    "finetune.curriculum": (),
    "data.reference_height": 96,
    "data.reference_width": 144,
    "condition.mllm_patches": 256,
    "condition.mllm_tokens": 256,
}

SMALL_FLAGS = [f"--config.{name}={value}" for name, value in SMALL.items()]


def plan(config, topology, *arguments):
    """What the command prints."""
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu (pip install libtpu)")
    done = command(f"--config=configs/{config}.py", f"--topology={topology}", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Made by `CINEMA_GOLDEN=write pytest -m "release or not release" tests/planning`: look at what changed before you
# commit it.
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
        pytest.param("pretrain", "v5p:2x2x4", (), marks=pytest.mark.release),
        pytest.param(
            *("pretrain", "v6e:4x4", ("--config.mesh.slice=2", "--config.stages=('pretrain',)")),
            marks=pytest.mark.release,
        ),
        # With the MLLM, the VAE and references: several minutes of compiling.
        pytest.param("finetune", "v5e:4x4", (), marks=pytest.mark.release),
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
