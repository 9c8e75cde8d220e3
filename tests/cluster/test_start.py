"""Every way to start a run over two nodes, with the real launchers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.virtual_hosts import REPOSITORY, VirtualHosts

BINARIES = Path(sys.executable).parent
TRAIN = REPOSITORY / "launcher" / "train.py"
STEPS = 2


@pytest.fixture(scope="module")
def losses() -> dict[int, tuple[float, ...]]:
    """Of the first start with so many ranks."""
    return {}


def hostfile(hosts: VirtualHosts, slots: int = 2) -> Path:
    path = hosts.shared / "hostfile"
    path.write_text("".join(f"{host} slots={slots}\n" for host in hosts.names))
    return path


def pdsh(hosts: VirtualHosts, train: list[str]) -> list[tuple[str, list[str]]]:
    return [("node0", [f"{BINARIES}/deepspeed", "--hostfile", str(hostfile(hosts)), *train])]


def openmpi(hosts: VirtualHosts, train: list[str]) -> list[tuple[str, list[str]]]:
    ours = ["--launcher", "openmpi", "--launcher_args=--allow-run-as-root --bind-to none"]
    command = [f"{BINARIES}/deepspeed", "--hostfile", str(hostfile(hosts)), *ours, *train]
    return [("node0", command)]


def no_ssh(hosts: VirtualHosts, train: list[str]) -> list[tuple[str, list[str]]]:
    shared = [f"{BINARIES}/deepspeed", "--hostfile", str(hostfile(hosts, slots=1)), "--no_ssh"]
    return [
        (host, [*shared, "--node_rank", str(rank), "--master_addr", "node0", *train])
        for rank, host in enumerate(hosts.names)
    ]


def torchrun(hosts: VirtualHosts, train: list[str]) -> list[tuple[str, list[str]]]:
    shared = [f"{BINARIES}/torchrun", "--nnodes", "2", "--nproc_per_node", "1"]
    shared += ["--master_addr", "node0", "--master_port", "29400"]
    return [
        (host, [*shared, "--node_rank", str(rank), *train]) for rank, host in enumerate(hosts.names)
    ]


def srun(hosts: VirtualHosts, train: list[str]) -> list[tuple[str, list[str]]]:
    """What `srun --nodes=2 --ntasks-per-node=1 python launcher/train.py` starts on the nodes."""
    commands = []
    for rank in range(2):
        variables = {
            "SLURM_JOB_ID": 4711, "SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 2,
            "SLURM_PROCID": rank, "SLURM_LOCALID": 0, "SLURM_NODEID": rank,
            "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "node[0-1]",
        }  # fmt: skip
        words = [f"{name}={value}" for name, value in variables.items()]
        commands.append((f"node{rank}", ["env", *words, sys.executable, *train]))
    return commands


WAYS = {
    "pdsh": (pdsh, 4), "openmpi": (openmpi, 4), "srun": (srun, 2),
    "no_ssh": (no_ssh, 2), "torchrun": (torchrun, 2),
}  # fmt: skip
"""And the ranks each starts."""


def run_everywhere(
    hosts: VirtualHosts, commands: list[tuple[str, list[str]]], printed: Path
) -> list[int | None]:
    with printed.open("w") as output:
        started = [hosts.start(host, command, output) for host, command in commands]
        try:
            return [process.wait(120) for process in started]
        except subprocess.TimeoutExpired:
            return [process.poll() for process in started]
        finally:
            for process in started:
                hosts.stop(process)


def arguments(hosts: VirtualHosts, recipe: Path, run: Path | str) -> list[str]:
    return [
        str(TRAIN), str(recipe), f"run.output_dir={run}", f"optim.max_steps={STEPS}",
        f"data.cache_dir={hosts.shared / 'cache'}", "eval.interval=never", "save.interval=2",
        "optim.warmup_steps=0", "engine.timeout_seconds=60", "log.trackers=[]",
    ]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_two_nodes_train(way, tiny_recipe, two_hosts, losses, tmp_path):
    run, (start, num_ranks) = two_hosts.shared / way, WAYS[way]
    commands = start(two_hosts, arguments(two_hosts, tiny_recipe, run))
    codes = run_everywhere(two_hosts, commands, tmp_path / "printed")
    printed = (tmp_path / "printed").read_text()
    assert codes == [0] * len(commands), printed[-3000:]
    saved = json.loads((run / "checkpoints" / "step-00000002" / "trainer.json").read_text())
    assert saved["world_size"] == num_ranks
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = tuple(step["loss"] for step in steps if step["kind"] == "train")
    assert len(found) == STEPS
    assert losses.setdefault(num_ranks, found) == found  # bitwise, however started
    assert not any(two_hosts.processes(host) for host in two_hosts.names)


def test_109_a_run_folder_that_is_not_shared_ends_all_ranks_with_5(
    tiny_recipe, two_hosts, tmp_path
):
    own = srun(two_hosts, arguments(two_hosts, tiny_recipe, "/root/run"))
    codes = run_everywhere(two_hosts, own, tmp_path / "printed")
    printed = (tmp_path / "printed").read_text()
    assert codes == [5, 5], printed[-3000:]
    assert "run.output_dir /root/run on node1 is not the folder of rank 0" in printed


def test_a_hostfile_that_asks_for_other_ranks_or_is_missing_is_refused(
    tiny_recipe, two_hosts, tmp_path
):
    """DeepSpeed by itself would train on this machine alone."""
    missing = [f"{BINARIES}/deepspeed", "--hostfile", "/root/no-such-file"]
    train = arguments(two_hosts, tiny_recipe, two_hosts.shared / "none")
    ended = two_hosts.run("node0", [*missing, *train])
    assert ended.returncode == 2, ended.stdout[-2000:]
    assert "/root/no-such-file is not a file" in ended.stdout
    assert not (two_hosts.shared / "none").exists()
