"""What facts of machines lead to, on machines this one is not."""

import signal
import sys
import time
from dataclasses import asdict, replace

import pytest

from trainer.cluster import remote
from trainer.cluster.agent import serve
from trainer.cluster.checks import (
    FAULT,
    NOTE,
    OK,
    WARNING,
    architecture_runs,
    differences,
    gathered,
    link_checks,
    node_checks,
)
from trainer.cluster.facts import Gpu, NodeFacts, code_digest, node_facts, parse_gpus
from trainer.cluster.remote import explained

# torch builds for CUDA 13 and for CUDA 12.6, as torch.cuda.get_arch_list() writes them
CUDA_13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
CUDA_12_6 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
V100 = Gpu("Tesla V100-SXM2-32GB", 32768, 32300, (7, 0), "580.95.05")
T4 = Gpu("Tesla T4", 15360, 14900, (7, 5), "580.95.05")
A100 = Gpu("NVIDIA A100-SXM4-80GB", 81920, 80500, (8, 0), "580.95.05")
HEALTHY = NodeFacts(
    host="a", machine="1 a", python="3.11.2", code="c0de", cuda_build="13.0",
    versions={"torch": "2.13.0", "bitsandbytes": "0.50.2", "deepspeed": "0.19.8"},
    architectures=CUDA_13, gpus=(A100, A100), num_cores=32, free_memory_bytes=64 << 30,
    free_shm_bytes=8 << 30, free_disk_bytes=100 << 30, open_files=65536, has_compiler=True,
    has_flash_attention=True,
)  # fmt: skip


def not_ok(facts: NodeFacts, slots: int = 2) -> dict[str, tuple[str, str, str]]:
    checks = node_checks(facts, slots)
    assert len(checks) >= 10  # otherwise silence proves nothing
    return {c.name: (c.verdict, c.found, c.remedy) for c in checks if c.verdict != OK}


def test_two_a100_are_well():
    assert not_ok(HEALTHY) == {}


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 0), CUDA_13, False),  # V100: the trap
        ((7, 0), CUDA_12_6, True),
        ((7, 5), CUDA_13, True),  # T4
        ((8, 6), ("sm_80",), True),  # machine code runs on later minor versions
        ((8, 0), ("sm_86",), False),  # and not on earlier ones
        ((8, 9), CUDA_13, True),  # RTX 4080 by sm_86
        ((9, 0), ("sm_90a",), True),
        ((10, 0), ("sm_90a",), False),
        ((12, 1), ("compute_120",), True),  # PTX is compiled for what is newer
        ((9, 0), ("compute_120",), False),
        ((9, 0), (), False),
    ],
)
def test_whether_a_build_holds_code_for_a_gpu(capability, built, runs):
    assert architecture_runs(capability, built) is runs


def test_115_a_v100_under_the_cuda_13_build_is_a_fault_with_the_build_to_take():
    facts = replace(HEALTHY, gpus=(V100,) * 8)
    found = not_ok(facts, slots=8)
    assert found["architecture"][0] == FAULT
    assert "sm_70 is not in this torch build" in found["architecture"][1]
    assert "CUDA 12.6" in found["architecture"][2]
    assert found["bf16"] == (NOTE, "not on sm_70", "engine.precision=auto takes fp16")
    assert "int8 needs sm_75" in found["bitsandbytes"][2]
    right = replace(facts, architectures=CUDA_12_6, cuda_build="12.6")
    assert "architecture" not in not_ok(right, slots=8)


def test_a_t4_runs_in_fp16_without_flash_attention():
    found = not_ok(replace(HEALTHY, gpus=(T4,)), slots=1)
    assert set(found) == {"bf16", "FlashAttention"}
    assert {verdict for verdict, _, _ in found.values()} == {NOTE}


@pytest.mark.parametrize(
    ("driver", "build", "verdict"),
    [("580.95.05", "13.0", OK), ("570.86.15", "13.0", FAULT), ("570.86.15", "12.6", OK),
     ("525.60.13", "12.6", OK), ("470.57.02", "12.6", FAULT)],
)  # fmt: skip
def test_115_a_driver_older_than_torchs_cuda_is_a_fault(driver, build, verdict):
    facts = replace(HEALTHY, gpus=(replace(A100, driver=driver),), cuda_build=build)
    assert {c.name: c.verdict for c in node_checks(facts, 1)}["driver"] == verdict


@pytest.mark.parametrize(
    ("change", "name", "verdict"),
    [
        pytest.param({"cuda_build": ""}, "torch", FAULT, id="114-a-gpu-that-torch-cannot-use"),
        pytest.param({"free_shm_bytes": 64 << 20}, "/dev/shm", WARNING, id="119-small-shm"),
        pytest.param({"free_shm_bytes": 0}, "/dev/shm", FAULT, id="119-full-shm"),
        ({"free_disk_bytes": 3 << 30}, "disk", WARNING),
        ({"free_disk_bytes": 100 << 20}, "disk", FAULT),
        ({"open_files": 256}, "open files", WARNING),
        ({"has_compiler": False}, "compiler", FAULT),
        ({"has_infiniband": True, "locked_memory_bytes": 65536}, "locked memory", WARNING),
        ({"free_memory_bytes": 1 << 30}, "memory", WARNING),
        ({"gpus": (A100, replace(A100, free_mib=9000))}, "GPU memory", WARNING),
        ({"versions": {"torch": "2.13.0"}}, "bitsandbytes", WARNING),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_machine_that_lacks_something_is_told_what_to_do(change, name, verdict):
    found = not_ok(replace(HEALTHY, **change))
    assert found[name][0] == verdict
    assert found[name][2]
    assert set(found) == {name}


def test_114_a_machine_without_a_gpu_is_said_to_train_on_the_cpu():
    found = not_ok(replace(HEALTHY, gpus=()))
    assert found["GPU"] == (NOTE, "none", "trains on the CPU")


def test_103_more_slots_than_gpus_are_a_fault():
    assert not_ok(HEALTHY, slots=3)["slots"] == (
        FAULT, "3 in the hostfile, 2 GPUs, 32 cores", "a rank needs a GPU of its own: lower slots=",
    )  # fmt: skip


def test_108_the_host_that_differs_is_named_and_the_others_are_not():
    odd = replace(HEALTHY, machine="1 c", versions=HEALTHY.versions | {"torch": "2.12.0"})
    nodes = {"a": HEALTHY, "b": replace(HEALTHY, machine="1 b"), "c": odd}
    checks = differences(nodes, {"a": "r", "b": "r", "c": "r"})
    assert [(c.name, c.hosts, c.found, c.verdict) for c in checks] == [
        ("torch", ("c",), "2.12.0; 2.13.0 on a, b", FAULT)
    ]
    assert "constraints.txt" in checks[0].remedy
    assert differences({"a": HEALTHY, "b": nodes["b"]}, {}) == []


def test_101_two_names_of_one_machine_are_found_by_the_machine_itself():
    checks = differences({"a": HEALTHY, "a.lan": HEALTHY}, {})
    assert [(c.name, c.hosts) for c in checks] == [("name", ("a.lan",))]


def test_113_clocks_apart_and_slow_links_are_warned_of():
    rates = {"a": (0.1, 9000.0), "b": (0.1, 9000.0), "c": (12.0, 90.0)}
    checks = link_checks({"a": 0.0, "b": -3.5, "c": 0.4}, rates)
    assert [(c.name, c.hosts, c.verdict) for c in checks] == [
        ("clock", ("b",), WARNING), ("link", ("c",), WARNING),
    ]  # fmt: skip
    assert "90 Mbit/s and 12.00 ms" in checks[1].found


def test_the_same_finding_of_several_hosts_stands_once():
    checks = [replace(c, hosts=(host,)) for host in "ab" for c in node_checks(HEALTHY, 9)]
    assert [c.hosts for c in gathered(checks) if c.name == "slots"] == [("a", "b")]


def test_facts_travel_as_plain_values_and_unknown_ones_are_left_out():
    assert NodeFacts.from_json(asdict(HEALTHY) | {"of a newer version": 1}) == HEALTHY
    here = node_facts()
    assert here.versions["torch"] != "-"
    assert here.code == code_digest()
    assert here.free_memory_bytes > 0


def test_nvidia_smi_is_read_and_what_it_cannot_say_is_left_out():
    text = (
        "NVIDIA H200, 143771, 143000, 9.0, 570.86.15\n"
        "No devices were found\nGPU, [N/A], [N/A], 9.0, x\n"
    )
    assert parse_gpus(text) == (Gpu("NVIDIA H200", 143771, 143000, (9, 0), "570.86.15"),)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Warning: x\nssh: Could not resolve hostname b: Name", "the name is not known"),
        ("ssh: connect to host b port 22: Connection refused", "no ssh server answers"),
        ("ssh: connect to host b port 22: Connection timed out", "no answer"),
        ("root@b: Permission denied (publickey).", "ssh asks for a password or key"),
        ("Host key verification failed.", "its host key is new or changed"),
        ("bash: line 1: /opt/py: No such file or directory", "bash: line 1: /opt/py: No such"),
        ("", "ended with code 255"),
    ],
)
def test_what_ssh_says_is_explained_with_a_remedy(said, found):
    error = explained("b", said, 255)
    assert found in error.found
    assert error.remedy


def test_an_agent_answers_line_by_line_and_tells_its_errors():
    import io

    answers = io.StringIO()
    serve(
        io.StringIO('{"do": "time"}\n{"do": "measure", "host": "127.0.0.1", "port": 1}\n'), answers
    )
    first, second = answers.getvalue().splitlines()
    assert first.startswith('focaltune-node {"time": ')
    assert "refused" in second


def test_an_agent_that_does_not_end_is_killed_and_leaves_no_open_pipe(monkeypatch):
    slow = "import time; print('focaltune-node {}', flush=True); time.sleep(60)"
    monkeypatch.setattr(remote, "command", lambda: [sys.executable, "-c", slow])
    node = remote.RemoteNode("here", time.monotonic() + 30, over_ssh=False)
    assert node.ask("time", {}) == {}
    node.close()
    assert node._process.returncode == -signal.SIGKILL
    assert node._process.stdin.closed
    assert node._process.stdout.closed
