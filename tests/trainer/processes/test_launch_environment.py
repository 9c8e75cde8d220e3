"""Ranks from every launcher's environment, and the hostfile on its command line."""

import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
import rank_checks
from rank_pool import run_ranks
from torch.distributed import PrefixStore, TCPStore

from trainer.cluster.roll_call import roll_faults
from trainer.errors import ConfigError, LostRankError, MachineError
from trainer.processes import launched, ranks, rendezvous
from trainer.processes.launched import check_launch, hostfile_of, is_filtered
from trainer.processes.network import own_address
from trainer.processes.ranks import adopt_launcher, first_host

# As srun --nodes=2 --ntasks-per-node=2 sets them, rank 3 (Slurm's manual, "OUTPUT ENVIRONMENT").
SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "6", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
}  # fmt: skip
NEEDED = {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST"}
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def adopted(environment: dict[str, str]) -> tuple[str | None, ...]:
    changed = dict(environment)
    adopt_launcher(changed)
    return tuple(changed.get(name) for name in NAMES)


def test_srun_gives_the_ranks_that_torch_wants():
    assert adopted(SLURM) == ("3", "1", "4", "2", "gpu003", "24711")
    other = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_LOCALID": "0"}
    other["SLURM_JOB_ID"] = "12000"
    assert adopted(other) == ("3", "0", "4", "1", "gpu003", "20000")
    second_step = other | {"SLURM_STEP_ID": "5"}
    assert adopted(second_step)[-1] == "20005"  # two steps of a job get two ports
    # A node that the list of counts does not reach has as many ranks as the last one.
    assert adopted(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3,1,2", "SLURM_NODEID": "3"})[3] == "2"
    alone = {name: value for name, value in SLURM.items() if name in NEEDED}
    assert adopted(alone) == ("3", "1", "4", None, "gpu003", "20000")
    for name in NEEDED:
        with pytest.raises(MachineError, match=name):
            adopted(
                {key: value for key, value in alone.items() if key != name}
                | {"SLURM_STEP_NUM_TASKS": "4", name: ""}
            )


def test_mpirun_gives_the_ranks_and_the_users_master_stays():
    assert adopted(OPEN_MPI) == ("5", "1", "6", "2", "10.0.0.1", "29500")
    assert adopted(SLURM | OPEN_MPI)[0] == "5"  # mpirun inside a Slurm job: its ranks count


class FakeWorld:
    """What mpi4py's COMM_WORLD does for one rank; rank 0's answer is kept for the others."""

    answer = b""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def Bcast(self, message: list[object], root: int) -> None:
        buffer, _ = message
        assert isinstance(buffer, bytearray)
        assert (len(buffer), root) == (64, 0)  # of all ranks, or MPI stops
        if self.rank == root:
            type(self).answer = bytes(buffer)
        buffer[:] = self.answer


@pytest.mark.parametrize("given", [{}, {"MASTER_ADDR": "10.0.0.9"}, {"MASTER_PORT": "1234"}])
def test_mpirun_without_a_master_takes_that_of_rank_0(given, monkeypatch):
    monkeypatch.setattr(ranks, "own_address", lambda: "10.0.0.7")
    finalized = []
    started = {name: value for name, value in OPEN_MPI.items() if not name.startswith("MASTER")}
    for rank in (0, 5):
        mpi = SimpleNamespace(
            COMM_WORLD=FakeWorld(rank, 6), BYTE="b", Finalize=lambda: finalized.append(1),
            Get_library_version=lambda: "Open MPI v5, package",
        )  # fmt: skip
        monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=mpi))
        *_, address, port = adopted(started | given)
        assert address == given.get("MASTER_ADDR", "10.0.0.7")
        assert port == given.get("MASTER_PORT") or int(port) > 1023
        assert FakeWorld.answer.split()[0] == b"10.0.0.7"
        assert port in (FakeWorld.answer.split()[1].decode(), "1234")
    assert finalized == [1, 1]
    with pytest.raises(MachineError, match=r"started 7 ranks, mpi4py's Open MPI v5 counts 6"):
        adopted(started | {"OMPI_COMM_WORLD_SIZE": "7"})


ALONE = ("0", "0", "1", "1", None, None)
MASTER = {"MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "29511"}


def test_what_deepspeed_or_torchrun_set_stays():
    torchrun = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert adopted(SLURM | torchrun | MASTER) == ("1", "1", "4", "2", "10.0.0.9", "29511")
    deepspeed = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    assert adopted(deepspeed | MASTER)[:4] == ("1", "1", "2", "2")
    unknown = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    assert adopted(unknown | MASTER)[:4] == ("1", "1", "2", None)  # else ranks would differ


@pytest.mark.parametrize(
    "left_over",
    [
        {},
        {key: SLURM[key] for key in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID")},  # no step
        {"WORLD_SIZE": "2"},
        {"RANK": "3"},
        {"LOCAL_RANK": "-1"},
        {"WORLD_SIZE": "", "RANK": " "},
        {"PMI_SIZE": "1", "PMI_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_a_process_without_a_launcher_is_alone_whatever_another_program_left(left_over):
    assert adopted(left_over) == ALONE


def test_a_pod_is_a_node_with_one_rank():
    pod = {"RANK": "1", "WORLD_SIZE": "2"} | MASTER
    assert adopted(pod) == ("1", "0", "2", "1", "10.0.0.9", "29511")


def test_variables_that_are_not_obeyed_are_named_once_and_removed():
    environment = {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_X": "1", "HOME": "/h"}
    remarks = adopt_launcher(environment)
    assert len(remarks) == 2
    assert "ACCELERATE_USE_FSDP=true, FSDP_X=1" in remarks[0]
    assert "WORLD_SIZE=2" in remarks[1]
    assert not {"ACCELERATE_USE_FSDP", "FSDP_X"} & set(environment)
    assert environment["WORLD_SIZE"] == "1"
    assert adopt_launcher(environment) == []


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one', expected a number"),
        ({"RANK": "0", "WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is"),
        ({"RANK": "2", "WORLD_SIZE": "2"} | MASTER, "RANK=2, WORLD_SIZE=2.*contradict"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "2"} | MASTER,
            "LOCAL_RANK=5.*contradict",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "without MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "2"} | MASTER | {"MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
        (SLURM | {"SLURM_NODEID": "b"}, "SLURM_NODEID is 'b'"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": ""}, "OMPI_COMM_WORLD_SIZE is ''"),
        ({"PMI_SIZE": "many"}, "PMI_SIZE is 'many'"),
    ],
)
def test_variables_that_cannot_be_read_or_contradict_are_named(environment, message):
    with pytest.raises(MachineError, match=message):
        adopted(environment)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def first_of_two(monkeypatch):
    """The environment of rank 0 of 2 on this machine, where nobody else comes."""
    port = free_port()
    environment = {
        "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return port


@pytest.mark.parametrize(
    ("rank", "missing"), [("0", "for rank 1, "), ("1", "for rank 0 at 127.0.0.1:")]
)
def test_a_rank_whose_others_do_not_come_names_them_and_the_variables(
    rank, missing, first_of_two, monkeypatch, capsys
):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(rendezvous, "_SILENT_SECONDS", 0.1)
    with pytest.raises(LostRankError, match=f"{missing}.*RANK={rank}, WORLD_SIZE=2"):
        rendezvous.meet(0.5)
    assert ("waits for rank 1" in capsys.readouterr().err) is (rank == "0")


@pytest.fixture
def gathering():
    """What `rendezvous.meet` returned or raised, from a thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(rendezvous.meet, 20)


def test_rank_0_waits_until_the_others_know_that_all_are_here(first_of_two, gathering):
    """It may end at once, of wrong data: ranks that still asked met a broken pipe."""
    client = TCPStore("127.0.0.1", first_of_two, is_master=False, wait_for_workers=False)
    other = PrefixStore("attempt 0", client)
    other.set("rank 1", "")
    other.wait(["all ranks are here"], timedelta(seconds=20))
    with pytest.raises(TimeoutError):
        gathering.result(0.3)
    other.set("rank 1 has heard of all", "")
    assert gathering.result(20).check(["rank 1"])


def test_a_rank_that_loses_rank_0_while_they_gather_says_so(first_of_two, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    server = TCPStore("127.0.0.1", first_of_two, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor(1) as pool:
        gathering = pool.submit(rendezvous.meet, 20)
        PrefixStore("attempt 0", server).wait(["rank 1"], timedelta(seconds=20))
        del server
        with pytest.raises(LostRankError, match=r"rank 1 of 2 .* lost rank 0 while ranks gathered"):
            gathering.result(20)


def test_110_a_port_in_use_is_named_with_the_remedy(first_of_two):
    with socket.socket() as other:
        other.bind(("127.0.0.1", first_of_two))
        other.listen()
        with pytest.raises(MachineError, match=f"port {first_of_two} of .*--master_port"):
            rendezvous.meet(5)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_of_one_machine_open_no_port_that_others_reach(world_size, tmp_path):
    printed = tmp_path / "printed"
    codes = run_ranks([], world_size, printed, entry=rank_checks.report_listening)
    assert codes == [0] * world_size, printed.read_text()
    addresses = printed.read_text().split()
    assert set(addresses) <= {"listening", "127.0.0.1", "::1"}
    assert addresses.count("listening") == world_size
    assert "127.0.0.1" in addresses  # else nothing was looked at


def test_mpich_without_a_master_is_refused_with_the_remedy():
    """Else every rank would be rank 0 of 1 and train alone."""
    environment = {"PMI_RANK": "1", "PMI_SIZE": "2"}
    with pytest.raises(MachineError, match="set MASTER_ADDR and MASTER_PORT"):
        adopted(environment)
    local = {"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "MASTER_ADDR": "a"}
    assert adopted(environment | local) == ("1", "1", "2", "2", "a", "29500")
    for missing in ("MPI_LOCALRANKID", "MASTER_ADDR"):
        with pytest.raises(MachineError, match="rank 1 of 2"):
            adopted(environment | {n: v for n, v in local.items() if n != missing})
    assert adopted({"PMI_RANK": "0", "PMI_SIZE": "1"}) == ALONE


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu003", "gpu003"),
        ("gpu003,gpu004", "gpu003"),
        ("gpu[003-010,12]", "gpu003"),
        ("gpu[7,9]-ib,login1", "gpu7-ib"),
        ("rack-a-1,gpu[1-2]", "rack-a-1"),
        ("rack[1-2]node[3-4],login1", "rack1node3"),
    ],
)
def test_the_first_node_of_slurms_list(nodes, first):
    assert first_host(nodes) == first


RUNNER = ["/opt/bin/python", "/opt/bin/deepspeed"]


@pytest.mark.parametrize(
    ("words", "hostfile"),
    [
        ([*RUNNER, "--hostfile", "hosts", "launcher/train.py", "r.yaml"], "hosts"),
        ([*RUNNER, "--hostfile=hosts", "launcher/train.py"], "hosts"),
        ([*RUNNER, "-H", "hosts", "--num_gpus", "2", "launcher/train.py"], "hosts"),
        (["python", "-m", "deepspeed.launcher.runner", "-H", "hosts", "x/train.py"], "hosts"),
        ([*RUNNER, "launcher/train.py", "--hostfile", "mine"], None),  # of the script
        ([*RUNNER, "launcher/train.py"], None),
        (["/usr/bin/mpirun", "-hostfile", "hosts", "python", "launcher/train.py"], None),
        (["bash"], None),
    ],
)
def test_the_hostfile_of_a_launchers_command_line(words, hostfile):
    assert hostfile_of(words) == hostfile
    assert is_filtered(words) is ("--num_gpus" in words)


@pytest.mark.parametrize(
    ("words", "world_size", "message"),
    [
        ("hosts launcher/train.py", 3, None),
        ("hosts launcher/train.py", 2, r"hosts has 3 slots, but 2 ranks were started"),
        ("hosts --num_gpus 1 launcher/train.py", 2, None),  # fewer, by the flag
        ("absent launcher/train.py", 3, "absent is not a file"),
    ],
)
def test_a_run_begins_with_the_ranks_of_its_hostfile_or_not_at_all(
    words, world_size, message, tmp_path, monkeypatch
):
    (tmp_path / "hosts").write_text("a slots=2\nb slots=1\n")
    above = {1: ["bash"], 2: [*RUNNER, "--hostfile", *words.split()]}
    monkeypatch.setattr(launched, "ancestors", lambda: list(above))
    monkeypatch.setattr(launched, "command_line", above.__getitem__)
    monkeypatch.setattr(launched, "folder_of", lambda process: tmp_path)
    if message is None:
        check_launch(world_size)
    else:
        with pytest.raises(ConfigError, match=message):
            check_launch(world_size)


def test_without_a_launcher_there_is_nothing_to_check(monkeypatch):
    seen = []
    monkeypatch.setattr(launched, "ancestors", lambda: [1, 2])
    monkeypatch.setattr(launched, "command_line", lambda process: seen.append(process) or ["sh"])
    check_launch(1)
    assert seen == [1, 2]


def answer(host: str, local_rank: int, **changes: object) -> dict[str, object]:
    facts = {"host": host, "machine": f"boot {host}", "code": "c0de", "versions": {"torch": "2"}}
    return {"facts": facts | changes, "recipe": "r", "local_rank": local_rank}


def test_the_roll_names_the_odd_host_and_ranks_that_share_a_device():
    sound = [answer("a", 0), answer("a", 1), answer("b", 0), answer("b", 1)]
    assert roll_faults(sound) == []
    odd = [*sound[:2], answer("b", 0, code="other"), answer("b", 1, code="other")]
    assert [(check.name, check.hosts) for check in roll_faults(odd)] == [("code", ("b",))]
    twice = [answer("a", 0), answer("a", 1), answer("a", 0), answer("a", 1)]
    assert [(check.name, check.hosts) for check in roll_faults(twice)] == [("local ranks", ("a",))]
    recipes = [sound[0], sound[2] | {"recipe": "s"}]
    assert [(check.name, check.hosts) for check in roll_faults(recipes)] == [("recipe", ("b",))]


def test_two_machines_with_one_name_are_two():
    same_name = [answer("a", 0), answer("a", 0, machine="boot of another")]
    assert roll_faults(same_name) == []


@pytest.mark.slow
def test_ranks_with_different_code_all_end_with_5_before_the_model(tiny_recipe, tmp_path):
    printed = tmp_path / "printed"
    command = [str(tiny_recipe), f"run.output_dir={tmp_path / 'run'}"]
    codes = run_ranks(command, 2, printed, entry=rank_checks.train_from_other_code)
    assert codes == [5, 5], printed.read_text()
    assert "code on rank-1" in printed.read_text()
    assert "same commit" in printed.read_text()
    assert not (tmp_path / "run").exists()  # nothing was touched


@pytest.mark.slow
def test_every_rank_gets_every_ranks_values(tmp_path):
    printed = tmp_path / "printed"
    assert run_ranks([], 3, printed, entry=rank_checks.gather_values) == [0, 0, 0]
    expected = json.dumps([{"rank": rank, "text": "ä" * rank} for rank in range(3)])
    assert printed.read_text().count(expected) == 3


def test_the_address_for_other_nodes_is_the_first_that_hostname_lists(tmp_path, monkeypatch):
    program = tmp_path / "hostname"
    program.write_text("#!/bin/sh\necho 10.0.0.7 192.168.1.7\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert own_address() == "10.0.0.7"
    program.write_text("#!/bin/sh\necho\n")
    assert own_address() == socket.gethostname()


def test_a_number_has_nine_digits_at_most():
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    assert adopted(alone | {"RANK": "0" * 9})[0] == "0" * 9
    with pytest.raises(MachineError, match="variable RANK is '0000000000'"):
        adopted(alone | {"RANK": "0" * 10})
