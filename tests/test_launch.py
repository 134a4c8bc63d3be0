"""The scripts of launch/, with stand-ins for what they call: nothing here reaches a cloud or a cluster."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloud
import jsonschema
import pytest
import yaml
from jobset_schema import JOBSET

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
# Topology, Google's accelerator type, chips and hosts: from the tables of its public pages, not computed.
SLICES = [
    ("v4:2x2x1", "v4-8", 4, 1),
    ("v4:2x2x4", "v4-32", 16, 4),
    ("v4:4x4x4", "v4-128", 64, 16),
    ("v5e:1x1", "v5litepod-1", 1, 1),
    ("v5e:2x2", "v5litepod-4", 4, 1),
    ("v5e:2x4", "v5litepod-8", 8, 1),
    ("v5e:4x4", "v5litepod-16", 16, 4),
    ("v5e:16x16", "v5litepod-256", 256, 64),
    ("v5p:2x2x1", "v5p-8", 4, 1),
    ("v5p:2x2x2", "v5p-16", 8, 2),
    ("v5p:2x4x4", "v5p-64", 32, 8),
    ("v5p:4x4x4", "v5p-128", 64, 16),
    ("v5p:4x4x8", "v5p-256", 128, 32),
    ("v5p:16x16x24", "v5p-12288", 6144, 1536),
    ("v6e:2x4", "v6e-8", 8, 1),
    ("v6e:4x4", "v6e-16", 16, 4),
    ("v6e:8x16", "v6e-128", 128, 32),
]
COMMON = {"config": "configs/cogvideox_5b.py", "workdir": "gs://bucket/run", "zone": "us-east5-a"}
GKE = {"config": "configs/cogvideox_5b.py", "workdir": "gs://bucket/run", "image": "registry/cinema_jax"}
QUEUED = "gcloud compute tpus queued-resources"
TRAIN = "--config=configs/cogvideox_5b.py"


def shell(*command: str, **environment: str) -> subprocess.CompletedProcess:
    """A script with a clean environment: CINEMA_* variables of whoever tests are options too."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CINEMA_", "SLURM_"))}
    return subprocess.run(["bash", *command], env=kept | environment, capture_output=True, text=True, timeout=120)


def options(values: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def tpu_vm(command: str, topology: str, *more: str, **values: str) -> list[str]:
    """The lines of a dry run, which needs no gcloud."""
    given = options(COMMON | {"topology": topology} | values)
    result = shell(str(LAUNCH / "tpu_vm.sh"), command, "--dry-run", *given, *more, PATH="/usr/bin:/bin")
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def gke(topology: str, *more: str, **values: str) -> dict:
    """The filled file of a dry run."""
    result = shell(str(LAUNCH / "gke.sh"), "--dry-run", *options(GKE | {"topology": topology} | values), *more)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    checked = subprocess.run([shellcheck, "-x", "-P", ROOT, script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert shell("-n", str(script)).returncode == 0


@pytest.mark.parametrize(("topology", "accelerator", "chips", "hosts"), SLICES)
def test_topologies_are_counted_as_google_counts_them(topology, accelerator, chips, hosts):
    script = 'source "$0" && read_topology "$1" && echo $ACCELERATOR_TYPE $CHIPS $HOSTS'
    result = shell("-c", script, str(LAUNCH / "topology.sh"), topology)
    assert result.stdout.split() == [accelerator, str(chips), str(hosts)], result.stderr


@pytest.mark.parametrize(
    ("topology", "flags"),
    [
        ("v4:4x4x16", "--type=v4 --topology=4x4x16 --runtime-version=tpu-ubuntu2204-base"),
        ("v5e:4x4", "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite"),
        ("v5p:4x4x4", "--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5"),
        ("v6e:16x16", "--accelerator-type=v6e-256 --runtime-version=v2-alpha-tpuv6e"),
    ],
)
def test_create_asks_for_the_slice(topology, flags):
    lines = tpu_vm("create", topology)
    assert lines == [f"{QUEUED} create cinema --node-id=cinema {flags} --spot --zone=us-east5-a"]


def test_create_takes_slices_projects_and_flags_of_gcloud():
    given = {"node-count": "2", "spot": "no", "project": "mine", "gcloud": "--reserved --internal-ips", "name": "big"}
    assert tpu_vm("create", "v6e:4x4", **given) == [
        f"{QUEUED} create big --node-count=2 --node-prefix=big --accelerator-type=v6e-16 "
        "--runtime-version=v2-alpha-tpuv6e --reserved --internal-ips --zone=us-east5-a --project=mine"
    ]


def test_resume_deletes_creates_installs_checks_and_runs():
    hosts = f"{QUEUED} ssh cinema --node=all --worker=all --quiet"
    given = rf"gs://bucket/run {TRAIN} '\''--config.optimizer.name=a b'\''"
    assert tpu_vm("resume", "v5p:4x4x4", "--git=git@host:owner/name@v1", "--", "--config.optimizer.name=a b") == [
        "# if it is SUSPENDED or FAILED",
        f"{QUEUED} delete cinema --force --quiet --zone=us-east5-a",
        "# if there is none",
        *tpu_vm("create", "v5p:4x4x4"),
        "# until it is ACTIVE",
        f"{QUEUED} list '--filter=name~(^|/)cinema$' '--format=value(state.state)' --zone=us-east5-a",
        "# then",
        f"{QUEUED} scp {LAUNCH}/worker.sh cinema: --node=all --worker=all --quiet --zone=us-east5-a",
        f"{hosts} '--command=bash worker.sh install git@host:owner/name v1' --zone=us-east5-a",
        f"{hosts} '--command=bash worker.sh stop' --zone=us-east5-a",
        f"{hosts} '--command=bash worker.sh start {given} --check' --zone=us-east5-a",
        "# until no host is running",
        f"{hosts} '--command=if [ -f worker.sh ]; then bash worker.sh status {given} --check; else echo CINEMA "
        "$(hostname) idle; fi' --zone=us-east5-a",
        f"{hosts} '--command=bash worker.sh start {given}' --zone=us-east5-a",
    ]


def test_resume_may_start_without_the_check():
    assert not [line for line in tpu_vm("resume", "v5p:4x4x4", check="no") if "--check" in line]


def test_resume_packs_before_it_asks_for_anything():
    first, *rest = tpu_vm("resume", "v5p:4x4x4")
    assert first.startswith("tar -czf ")
    assert not [line for line in rest if line.startswith("tar ")]


def test_install_copies_the_checkout():
    pack, *rest = tpu_vm("install", "v6e:4x4", ssh="--internal-ip")
    assert pack.startswith("tar -czf ")
    assert f"{LAUNCH}/worker.sh {pack.split()[2]} cinema:" in rest[0]
    assert all("--worker=all --quiet --internal-ip" in line for line in rest)


REFUSED = {
    "no generation": ("tpu_vm.sh", {"topology": "4x4x4"}, "--topology=4x4x4 is not a generation of v4, v5e, v5p, v6e"),
    "unknown generation": ("tpu_vm.sh", {"topology": "v9:4x4"}, "--topology=v9:4x4 is not a generation"),
    "flat v5p": ("tpu_vm.sh", {"topology": "v5p:4x4"}, "v5p has the shapes 2x2x1"),
    "v5p of odd shape": ("tpu_vm.sh", {"topology": "v5p:4x4x6"}, "v5p has the shapes 2x2x1"),
    "v5p in the wrong order": ("tpu_vm.sh", {"topology": "v5p:8x4x4"}, "A <= B <= C"),
    "too large": ("tpu_vm.sh", {"topology": "v5p:16x24x24"}, "at most 6144 chips"),
    "solid v6e": ("tpu_vm.sh", {"topology": "v6e:2x2x2"}, "v6e has the shapes 1x1"),
    "no topology": ("tpu_vm.sh", {"topology": ""}, "--topology is missing"),
    "no bucket": ("tpu_vm.sh", {"workdir": "runs/5b"}, "--workdir=runs/5b: hosts that come and go"),
    "half a bucket": ("tpu_vm.sh", {"workdir": "gs://bucket"}, "need a gs://bucket/folder"),
    "no workdir": ("tpu_vm.sh", {"workdir": ""}, "--workdir is missing"),
    "no such config": ("tpu_vm.sh", {"config": "configs/none.py"}, "there is no such file"),
    "bad name": ("tpu_vm.sh", {"name": "My_Run"}, "--name=My_Run is not a letter, then lower-case"),
    "bad zone": ("tpu_vm.sh", {"zone": "us-east5"}, "--zone=us-east5 is not a zone"),
    "unknown option": ("tpu_vm.sh", {"colour": "red"}, "unknown option --colour"),
    "no image": ("gke.sh", {"image": ""}, "--image is missing"),
    "gke without bucket": ("gke.sh", {"workdir": "runs/5b", "topology": "v6e:2x2"}, "need a gs://bucket/folder"),
    "slices of one host": ("gke.sh", {"topology": "v6e:2x4", "node-count": "2"}, "slices of several hosts only"),
    "chips of a host": ("gke.sh", {"chips-per-host": "8"}, "and only 2x4 has a choice"),
}


@pytest.mark.parametrize(("script", "values", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_sentence(script, values, message):
    command = [str(LAUNCH / script), "create"] if script == "tpu_vm.sh" else [str(LAUNCH / script)]
    good = (COMMON if script == "tpu_vm.sh" else GKE) | {"topology": "v5p:4x4x4"}
    result = shell(*command, "--dry-run", *options(good | values))
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_one_host_that_stays_may_keep_its_own_disk():
    assert tpu_vm("run", "v6e:2x4", workdir="runs/5b", spot="no")


# Answers with the next line of `states` (what the slice is) or `hosts` (what each host says), and notes every question.
GCLOUD = """#!/bin/bash
echo "$*" >> calls
answer() { head -n 1 "$1"; if (($(wc -l < "$1") > 1)); then sed -i 1d "$1"; fi; }
case "$*" in
  *"auth list"*) cat account ;;
  *"queued-resources list"*) answer states ;;
  *"worker.sh status"*) answer hosts | tr ';' '\\n' ;;
esac
"""


def run_with(tmp_path, command, states=("",), hosts=("",), account="me@example.com", **values):
    """A command with a stand-in for gcloud; what it said, and the verbs that reached Google Cloud."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    for name, lines in {"states": states, "hosts": hosts, "account": [account]}.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    given = options(COMMON | {"topology": "v5p:2x2x2", "project": "mine", "poll": "0"} | values)
    script = f'cd "{tmp_path}" && exec bash "$@"'
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = shell("-c", script, "bash", str(LAUNCH / "tpu_vm.sh"), command, *given, PATH=path, TMPDIR=str(tmp_path))
    calls = (tmp_path / "calls").read_text()
    verbs = ("delete", "create", "scp", "worker.sh install", "worker.sh stop", "worker.sh start")
    done = [
        next(verb for verb in verbs if f" {verb} " in f"{line} ") for line in calls.splitlines() if _acts(line, verbs)
    ]
    return result, done


def _acts(line: str, verbs: tuple[str, ...]) -> bool:
    return "queued-resources" in line and any(f" {verb} " in f"{line} " for verb in verbs)


def host_lines(*states: str) -> str:
    return ";".join(f"CINEMA host-{index} {state}" for index, state in enumerate(states))


START = ["scp", "worker.sh install", "worker.sh stop", "worker.sh start"]
AT_ONCE = {"check": "no"}


def test_watch_brings_a_preempted_run_back(tmp_path):
    states = ["ACTIVE", "SUSPENDING", "SUSPENDED", "SUSPENDED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    hosts = [host_lines("running", "running"), host_lines("exit 0", "exit 0")]
    result, done = run_with(tmp_path, "watch", states, hosts, **AT_ONCE)
    assert result.returncode == 0, result.stderr
    assert done == ["delete", "create", *START]


def test_watch_checks_before_the_first_start_alone(tmp_path):
    good, trains = host_lines("exit 0", "exit 0"), host_lines("running", "running")
    # Idle; two looks at the check; training; taken back, and there again.
    states = ["ACTIVE"] * 5 + ["SUSPENDED", "SUSPENDED", "ACTIVE"]
    hosts = [host_lines("idle", "idle"), trains, good, trains, good]
    result, done = run_with(tmp_path, "watch", states, hosts)
    assert result.returncode == 0, result.stderr
    assert done == [*START, "worker.sh start", "delete", "create", *START]
    starts = [line for line in (tmp_path / "calls").read_text().splitlines() if "worker.sh start" in line]
    assert [" --check" in line for line in starts] == [True, False, False]


@pytest.mark.parametrize(("ended", "code"), [("exit 2", 2), ("exit 1", 1)])
def test_a_check_that_fails_starts_nothing(tmp_path, ended, code):
    hosts = [host_lines("running", "exit 134"), host_lines(ended, "exit 134")]
    result, done = run_with(tmp_path, "resume", ["ACTIVE"], hosts)
    assert (result.returncode, done) == (code, START), result.stderr
    assert "worker.sh logs" in (tmp_path / "calls").read_text()
    assert ("found something wrong" in result.stderr) == (code == 2)


def test_watch_refuses_a_slice_that_trains_another_run(tmp_path):
    result, done = run_with(tmp_path, "watch", ["ACTIVE"], [host_lines("busy", "busy")])
    assert (result.returncode, done) == (2, [])
    assert "the slice is training another run" in result.stderr


@pytest.mark.parametrize("ended", ["exit 143", "exit 1", "exit 134", "lost"])
def test_watch_starts_again_what_can_go_on(tmp_path, ended):
    hosts = [host_lines("running", "exit 1"), host_lines(ended, "exit 1"), host_lines("exit 0", "exit 0")]
    result, done = run_with(tmp_path, "watch", ["ACTIVE"], hosts)
    assert (result.returncode, done) == (0, ["worker.sh start"])


def test_watch_does_not_start_bad_input_again(tmp_path):
    result, done = run_with(tmp_path, "watch", ["ACTIVE"], [host_lines("exit 1", "exit 2")])
    assert (result.returncode, done) == (2, [])
    assert "exit code 2, bad input" in result.stderr


def test_watch_gives_up_after_max_restarts(tmp_path):
    result, done = run_with(tmp_path, "watch", ["ACTIVE"], [host_lines("exit 1", "exit 1")], **{"max-restarts": "2"})
    assert (result.returncode, done) == (1, ["worker.sh start"] * 2)


def test_watch_waits_while_a_host_does_not_answer(tmp_path):
    hosts = ["CINEMA host-0 exit 1", host_lines("exit 0", "exit 0")]
    result, done = run_with(tmp_path, "watch", ["ACTIVE"], hosts)
    assert (result.returncode, done) == (0, [])


def test_resume_starts_on_a_slice_that_stands(tmp_path):
    result, done = run_with(tmp_path, "resume", ["ACTIVE"], **AT_ONCE)
    assert (result.returncode, done) == (0, START), result.stderr


@pytest.fixture
def checkout(tmp_path):
    """A small checkout of its own with the launchers, and a cloud whose hosts only note what they would train."""
    root = tmp_path / "checkout"
    shutil.copytree(LAUNCH, root / "launch")
    for name in ("configs/cogvideox_5b.py", "deleted.md", "two\nlines.md"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", root, *words], check=True)
    python = 'echo "trained $*" >>"$CLOUD/calls"; [[ $* != *--fails* || $* == *--check* ]] || exit 2'
    environment = cloud.make(tmp_path / "cloud", python) | {"TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    (tmp_path / "cloud/buckets/bucket").mkdir(parents=True)

    def run(command: str, *more: str, **values: str) -> subprocess.CompletedProcess:
        given = options(COMMON | {"topology": "v5p:2x2x2", **values})
        words = ["bash", str(root / "launch/tpu_vm.sh"), command, *given, *more]
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)

    return root, run


def trained(root: Path) -> list[str]:
    """What the hosts were told to train, by their options."""
    lines = [line for line in cloud.calls(root.parent / "cloud") if line.startswith("trained ")]
    return [line.removeprefix("trained -m cinema_jax.train ") for line in lines]


def test_a_deleted_file_is_left_out_of_what_is_installed(checkout):
    root, run = checkout
    (root / "deleted.md").unlink()
    result = run("watch")
    assert result.returncode == 0, result.stderr
    for host in (root.parent / "cloud/hosts").iterdir():
        assert [file.name for file in (host / "cinema_jax").rglob("*.md")] == ["two\nlines.md"]
    assert not list((root.parent / "temporary").iterdir())


@pytest.mark.parametrize("command", ["resume", "watch"])
def test_what_cannot_be_packed_is_not_paid_for(checkout, command):
    root, run = checkout
    shutil.rmtree(root / ".git")
    result = run(command)
    assert (result.returncode, "is not a git checkout" in result.stderr) == (2, True)
    assert not [line for line in cloud.calls(root.parent / "cloud") if " create " in line]
    assert not list((root.parent / "temporary").iterdir())


def test_watch_starts_a_new_run_where_another_has_finished(checkout):
    root, run = checkout
    assert run("watch").returncode == 0
    workdir = f"--workdir={root.parent}/cloud/buckets/bucket/run"
    assert sorted(trained(root)) == [f"{TRAIN} --check {workdir}"] * 2 + [f"{TRAIN} {workdir}"] * 2
    assert run("watch").returncode == 0
    assert len(trained(root)) == 4, "the same again is finished"
    assert run("watch", workdir="gs://bucket/new").returncode == 0
    assert len(trained(root)) == 8
    assert run("watch", "--", "--config.seed=1").returncode == 0
    assert len(trained(root)) == 12


def test_a_run_that_was_refused_does_not_stop_another(checkout):
    _, run = checkout
    assert run("watch", "--", "--fails").returncode == 2
    again = run("watch", "--", "--fails")
    assert (again.returncode, "once it is mended, launch/tpu_vm.sh resume" in again.stderr) == (2, True)
    assert run("watch").returncode == 0


def test_status_says_of_which_run_it_speaks(checkout):
    _, run = checkout
    assert run("watch", "--", "--config.seed=1").returncode == 0
    state, *hosts = run("status").stdout.splitlines()
    assert state == "ACTIVE"
    assert sorted(hosts) == [f"CINEMA host-{i} exit 0 (gs://bucket/run {TRAIN} --config.seed=1)" for i in (0, 1)]


def test_nothing_is_created_without_a_login(tmp_path):
    result, done = run_with(tmp_path, "create", account="")
    assert (result.returncode, done) == (2, [])
    assert "not logged in" in result.stderr


def worker(home: Path, *arguments: str) -> str:
    path = f"{home}:{os.environ['PATH']}"
    values = {"HOME": str(home), "PATH": path, "CINEMA_BUCKETS": str(home / "gcs")}
    result = shell(str(LAUNCH / "worker.sh"), *arguments, **values)
    assert result.returncode == 0, result.stderr
    return result.stdout


def wait_until_ended(home: Path) -> str:
    while "running" in (said := worker(home, "status")):
        time.sleep(0.1)
    return said.split(maxsplit=2)[2].partition(" (")[0]


@pytest.fixture
def home(tmp_path):
    """A host's home folder after `install`, with a stand-in for Python that does as it is told."""
    (tmp_path / "cinema_jax").mkdir()
    python = tmp_path / "cinema_venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\necho "trains $*"\n[[ $3 != --sleep ]] || exec sleep 60\nexit "${3#--exit=}"\n')
    python.chmod(0o755)
    return tmp_path


def test_worker_keeps_exit_code_and_log(home):
    assert worker(home, "status").endswith(" idle\n")
    worker(home, "start", "runs/x", "--exit=143", "--config=a b")
    assert wait_until_ended(home) == "exit 143"
    assert "trains -m cinema_jax.train --exit=143 --config=a b --workdir=runs/x" in worker(home, "logs")
    worker(home, "start", "runs/x", "--exit=0")
    assert wait_until_ended(home) == "exit 0"


def test_worker_mounts_buckets_and_keeps_its_log_there(home):
    stand_ins = {"sudo": '"$@"', "gcsfuse": f'echo "$*" > {home}/mounted', "mountpoint": "false"}
    for name, does in stand_ins.items():
        (home / name).write_text(f"#!/bin/bash\n{does}\n")
        (home / name).chmod(0o755)
    worker(home, "start", "gs://bucket/run", "--exit=0", "--config.init=gs://other/weights")
    assert wait_until_ended(home) == "exit 0"
    assert (home / "mounted").read_text().split()[-1] == f"{home}/gcs"
    assert f"--config.init={home}/gcs/other/weights --workdir={home}/gcs/bucket/run\n" in worker(home, "logs")
    (log,) = (home / "gcs/bucket/run/logs").glob("*/*.log")
    assert "exit code 0" in log.read_text()


def test_worker_stops_training_with_sigterm(home):
    worker(home, "start", "runs/x", "--sleep")
    for run, state in ((("runs/x", "--sleep"), "running"), (("runs/x",), "busy"), (("runs/y", "--sleep"), "busy")):
        assert worker(home, "status", *run).split()[2] == state
    again = shell(str(LAUNCH / "worker.sh"), "start", "runs/x", HOME=str(home))
    assert (again.returncode, "training already" in again.stderr) == (2, True)
    while "trains" not in worker(home, "logs"):
        time.sleep(0.1)
    worker(home, "stop")
    assert wait_until_ended(home) == "exit 143"


@pytest.mark.parametrize(("topology", "accelerator", "chips", "hosts"), [SLICES[i] for i in (0, 5, 6, 11, 15)])
def test_jobset_has_all_that_matters(topology, accelerator, chips, hosts):
    filled = gke(topology)
    jsonschema.validate(filled, JOBSET)
    job = filled["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert (job["completions"], job["parallelism"]) == (hosts, hosts)
    tpus = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert tpus * hosts == chips
    names = {"v4": "v4-podslice", "v5e": "v5-lite-podslice", "v5p": "v5p-slice", "v6e": "v6e-slice"}
    generation, shape = topology.split(":")
    label = "cloud.google.com/gke-tpu-"
    assert pod["nodeSelector"] == {f"{label}accelerator": f"tpu-{names[generation]}", f"{label}topology": shape}


def test_schema_refuses_a_jobset_that_starts_bad_input_again():
    filled = gke("v6e:4x4")
    worse = copy.deepcopy(filled)
    del worse["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(worse, JOBSET)


def test_jobset_takes_slices_nodes_of_four_and_any_option():
    given = {"node-count": "3", "chips-per-host": "4", "spot": "yes", "name": "big"}
    filled = gke("v6e:2x4", "--", '--config.x="$(a): b"', **given)
    jsonschema.validate(filled, JOBSET)
    replicated = filled["spec"]["replicatedJobs"][0]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert (filled["metadata"]["name"], replicated["replicas"]) == ("big", 3)
    assert replicated["template"]["spec"]["completions"] == 2
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    # Kubernetes takes $$ for a dollar.
    assert pod["containers"][0]["command"][7:] == [TRAIN, "--workdir=/gcs/bucket/run", '--config.x="$$(a): b"']
    assert {volume["mountPath"] for volume in pod["containers"][0]["volumeMounts"]} == {"/dev/shm", "/gcs"}


def test_gke_asks_the_cluster_before_it_applies(tmp_path):
    (tmp_path / "kubectl").write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/calls\n')
    (tmp_path / "kubectl").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = shell(str(LAUNCH / "gke.sh"), *options(GKE | {"topology": "v6e:4x4"}), PATH=path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [
        "get crd jobsets.jobset.x-k8s.io",
        "apply --dry-run=server --filename=-",
        "apply --filename=-",
    ]


@pytest.fixture
def pod(tmp_path):
    """The container of a filled file, with `python` in training's place; `sleep` only notes that it was called."""

    def start(python: str, attempt: str, **values: str) -> subprocess.Popen:
        filled = gke("v6e:4x4", **values)
        (container,) = filled["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        told = next(variable for variable in container["env"] if variable["name"] == "RESTART_ATTEMPT")
        path = told["valueFrom"]["fieldRef"]["fieldPath"]
        assert path == "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']"
        cloud.script(tmp_path / "bin/python", f"echo ${{!#}} >>{tmp_path}/ran\n{python}")
        cloud.script(tmp_path / "bin/sleep", f"echo sleep >>{tmp_path}/ran")
        environment |= {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "RESTART_ATTEMPT": attempt}
        words = [word.replace("$$", "$").replace("/gcs/bucket/run", "/x") for word in container["command"]]
        return subprocess.Popen(words, env=environment)

    return start


@pytest.mark.parametrize(
    ("attempt", "given", "codes", "ran", "code"),
    [
        ("0", {}, (0, 143), ["--check", "--workdir=/x"], 143),
        ("0", {}, (2, 0), ["--check"], 2),
        ("1", {}, (2, 0), ["--workdir=/x"], 0),
        ("0", {"check": "no"}, (2, 0), ["--workdir=/x"], 0),
        # After the pod whose bad input ended it.
        ("1", {}, (0, 134), ["--workdir=/x", "sleep"], 134),
    ],
)
def test_the_container_checks_at_the_first_start_alone(pod, tmp_path, attempt, given, codes, ran, code):
    started = pod(f"[[ ${{!#}} != --check ]] || exit {codes[0]}; exit {codes[1]}", attempt, **given)
    assert started.wait(60) == code
    assert (tmp_path / "ran").read_text().split() == ran


@pytest.mark.parametrize("attempt", ["0", "1"])
def test_the_container_passes_sigterm_on_and_waits(pod, tmp_path, attempt):
    saves = f"trap 'echo saved >>{tmp_path}/ran; exit 143' TERM; touch {tmp_path}/ready"
    started = pod(f"{saves}; while :; do /bin/sleep 0.1; done", attempt)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 143
    assert (tmp_path / "ran").read_text().split() == ["--check" if attempt == "0" else "--workdir=/x", "saved"]


def slurm(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return shell(str(LAUNCH / "slurm_gpu.sbatch"), *arguments, **environment)


def test_slurm_dry_run_prints_environment_and_commands():
    words = [LAUNCH / "slurm_gpu.sbatch", "--dry-run", TRAIN, "--workdir=/shared/run"]
    environment, *lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert environment == "NCCL_DEBUG=WARN PYTHONUNBUFFERED=1"
    assert len(lines) == 2
    for line, last in zip(lines, (" --check", ""), strict=True):
        assert line.startswith("srun --kill-on-bad-exit=0 --wait=600 sh -c ")
        assert line.endswith(f" sh python -m cinema_jax.train {TRAIN} --workdir=/shared/run{last}")
    inside = slurm("--dry-run", TRAIN, "--workdir=/s", CINEMA_CONTAINER="image", CINEMA_MOUNTS="/s:/s").stdout
    assert f"--container-image=image --container-workdir={Path.cwd()} --container-mounts={Path.cwd()}:" in inside


def test_slurm_refuses_a_missing_workdir_and_one_process_for_each_node():
    assert slurm("--dry-run", TRAIN).stderr == "error: --workdir=... is missing\n"
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "8"}
    result = slurm(TRAIN, "--workdir=/s", **job)
    assert result.returncode == 2
    assert "--ntasks-per-node=1 must be a node's number of GPUs, 8 here" in result.stderr


@pytest.fixture
def job(tmp_path):
    """A job of three tasks; `does` is what each does in training's place. Returns its result and what was asked."""

    def run(does: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        cloud.script(tmp_path / "python", does)
        (tmp_path / "temporary").mkdir(exist_ok=True)
        values = cloud.make(tmp_path / "cloud", "") | {"TASKS": "3", "TMPDIR": str(tmp_path / "temporary")}
        values |= {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "8"}
        values |= {"CINEMA_PYTHON": str(tmp_path / "python")}
        result = slurm(TRAIN, "--workdir=/s", **values, **environment)
        assert not list((tmp_path / "temporary").iterdir())
        return result, cloud.calls(tmp_path / "cloud")

    return run


@pytest.mark.parametrize(
    ("codes", "code", "requeued"),
    [
        ("134 2 134", 2, False),
        ("1 130 137", 130, False),
        ("2 130 1", 2, False),
        ("143 143 143", 143, True),
        ("134 1 137", 137, True),
        ("0 0 0", 0, False),
    ],
)
def test_two_of_any_process_decides(job, codes, code, requeued):
    result, asked = job(f'codes=({codes}); printf "no newline"; exit "${{codes[SLURM_PROCID]}}"', CINEMA_CHECK="no")
    assert (result.returncode, "scontrol requeue 7" in asked) == (code, requeued)
    assert result.stdout.count("no newline") == 3


def test_a_task_that_is_told_to_stop_saves_first(job):
    # What SLURM signals are all processes of a task, its shell too.
    does = "trap 'sleep 0.5; echo saved; exit 143' TERM; kill -TERM $PPID $$; sleep 9"
    result, asked = job(does, CINEMA_CHECK="no")
    assert (result.returncode, "scontrol requeue 7" in asked) == (143, True)
    assert result.stdout.count("saved") == 3


def test_slurm_checks_before_the_first_start_alone(job):
    result, asked = job("exit 0")
    assert result.returncode == 0
    assert [line.endswith(" --check") for line in asked] == [True, False]
    result, asked = job("exit 0", SLURM_RESTART_COUNT="1")
    assert [line.endswith(" --check") for line in asked[2:]] == [False]


def test_a_host_that_differs_keeps_slurm_from_training(job):
    result, asked = job("[[ ${!#} != --check ]] || exit $((SLURM_PROCID == 1 ? 2 : 0))")
    assert (result.returncode, len(asked)) == (2, 1)


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"), [(143, 0, True), (1, 3, True), (143, 20, False), (2, 0, False), (0, 0, False)]
)
def test_slurm_requeues_what_can_go_on(job, code, restarts, requeued):
    result, asked = job(f"exit {code}", SLURM_RESTART_COUNT=str(restarts))
    assert (result.returncode, "scontrol requeue 7" in asked) == (code, requeued)
