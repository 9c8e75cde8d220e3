"""Figures of benchmarks/RESULTS.md that need several hosts; root only.

python tests/cluster/measure.py overlap     two hosts, 1 Gbit/s and 5 ms between them
python tests/cluster/measure.py ranks       one host and two with eight ranks each
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from cluster.virtual_hosts import REPOSITORY, VirtualHosts  # noqa: E402

from benchmarks.memory import MODELS  # noqa: E402
from benchmarks.runs import write_model  # noqa: E402

STEPS = 10


def train(
    hosts: VirtualHosts, names: list[str], slots: int, model: Path, keys: list[str]
) -> tuple[list[float], float]:
    """Seconds of each step after the first, and the memory of all ranks in the second, in MiB."""
    run = hosts.shared / f"run-{time.monotonic_ns()}"
    hostfile = hosts.shared / "hostfile"
    hostfile.write_text("".join(f"{name} slots={slots}\n" for name in names))
    command = [
        Path(sys.executable).with_name("deepspeed"), "--force_multi", "--hostfile", hostfile,
        REPOSITORY / "launcher" / "train.py", REPOSITORY / "recipes" / "quickstart.yaml",
        f"run.output_dir={run}", f"data.cache_dir={hosts.shared / 'cache'}", "optim.epochs=null",
        f"optim.max_steps={STEPS}", "optim.warmup_steps=0", "data.seq_length=64",
        "eval.interval=never", "log.interval=1", "optim.batch_unit=rows",
        f"optim.global_batch_size={2 * slots * len(names)}", "optim.micro_batch_size=1",
        "model.path=null", f"model.config={model}", *keys,
    ]  # fmt: skip
    finished: dict[int, float] = {}
    memory = 0.0
    with (hosts.state / "train.log").open("w") as output:
        process = hosts.start(names[0], command, output)
        try:
            while process.poll() is None and len(finished) < STEPS:
                if finished and not memory:
                    memory = sum(memory_of(hosts, name) for name in names)
                if (run / "log.jsonl").exists():
                    for number, _ in enumerate((run / "log.jsonl").read_text().splitlines()):
                        finished.setdefault(number, time.monotonic())
                time.sleep(0.02)
        finally:
            hosts.stop(process)
            subprocess.run(["sleep", "3"], check=True)  # ranks end when their ssh does
    if len(finished) < STEPS:
        raise RuntimeError((hosts.state / "train.log").read_text()[-3000:])
    steps = [finished[at + 1] - finished[at] for at in range(STEPS - 1)]
    return steps, memory


def memory_of(hosts: VirtualHosts, name: str) -> float:
    """MiB of all processes of a host, shared pages by halves and thirds (proportional set size)."""
    told = hosts.run(name, ["sh", "-c", "cat /proc/[0-9]*/smaps_rollup 2>/dev/null"]).stdout
    return sum(int(line.split()[1]) for line in told.splitlines() if line.startswith("Pss:")) / 1024


def overlap(folder: Path) -> None:
    """Overlap against none, on a slow link and on a fast one."""
    for is_slow in (True, False):
        for overlaps in (False, True):
            steps = overlap_case(folder / f"{is_slow}-{overlaps}", is_slow, overlaps)
            link = "1 Gbit/s, 5 ms" if is_slow else "as fast as memory"
            print(f"{link}, overlap_comm {overlaps}: {median(steps):.2f} s a step", flush=True)


def overlap_case(folder: Path, is_slow: bool, overlaps: bool) -> list[float]:
    """Seconds of the steps of ZeRO 2 with small buckets, on hosts of its own."""
    base = json.loads((REPOSITORY / "ds_configs" / "cpu_zero2.json").read_text())
    buckets = {"reduce_bucket_size": 500_000, "allgather_bucket_size": 500_000}
    zero = base["zero_optimization"] | buckets | {"overlap_comm": overlaps}
    code = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    preset = REPOSITORY / "ds_configs" / "measured_zero2.json"  # in the hosts' own files
    text = json.dumps({"zero_optimization": zero})
    folder.mkdir()
    with VirtualHosts(folder / "hosts") as hosts:
        if is_slow:
            hosts.slow("node1", milliseconds=5, mbit=1000)
        for host in hosts.names:
            hosts.run(host, [sys.executable, "-c", code, preset, text])
        keys = ["engine.preset=measured_zero2", "tuning.lora_r=256"]
        model = write_model(folder / "bigcode-6M", MODELS["bigcode-6M"])
        return train(hosts, hosts.names, 1, model, keys)[0]


def ranks(folder: Path) -> None:
    """Eight ranks on a host, and on each of two: the shape of V100x8 and 2xV100x8."""
    model = write_model(folder / "bigcode-6M", MODELS["bigcode-6M"])
    for names in (["node0"], ["node0", "node1"]):
        with VirtualHosts(folder / f"hosts-{len(names)}") as hosts:
            started = time.monotonic()
            steps, memory = train(hosts, names, 8, model, [])
            seconds = time.monotonic() - started
        print(
            f"{len(names)} x 8 ranks: {median(steps):.2f} s a step, {memory:,.0f} MiB in all,"
            f" {seconds:.0f} s with the start",
            flush=True,
        )


def median(values: list[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        {"overlap": overlap, "ranks": ranks}[sys.argv[1]](Path(temporary))
