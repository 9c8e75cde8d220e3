"""launcher/doctor.py over two real hosts: faults in seconds, with the odd host named."""

import os
import sys
import time
from pathlib import Path

import pytest
from cluster.virtual_hosts import REPOSITORY, VirtualHosts


def ten_seconds() -> float:
    """On a machine where no process waits for a core; else as much longer as they wait now."""
    return 10 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def doctor(hosts: VirtualHosts, *arguments: object, content: str = "") -> tuple[int, str, float]:
    """Run on node0; exit code, words without the table's lines, seconds."""
    hostfile = hosts.shared / "hostfile"
    hostfile.write_text(content or "node0 slots=2\nnode1 slots=2\n")
    started = time.monotonic()
    ended = hosts.run(
        "node0",
        [sys.executable, REPOSITORY / "launcher" / "doctor.py", "--hostfile", hostfile,
         "--master_port", "29611", *map(str, arguments)],
    )  # fmt: skip
    return ended.returncode, ended.stdout, time.monotonic() - started


def row(printed: str, check: str) -> str:
    """What the table says of a check, its cells unfolded; one line for each of its rows."""
    rows: list[list[str]] = []
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line.strip("│┃").split("│")]
        if len(cells) < 5:
            continue
        if cells[0]:
            rows.append(cells)
        elif rows:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
    return "\n".join(" | ".join(cells) for cells in rows if cells[0] == check)


def nothing_left(hosts: VirtualHosts) -> bool:
    return not any(hosts.processes(name) for name in hosts.names)


def test_two_sound_nodes_are_passed_in_ten_seconds(two_hosts):
    code, printed, seconds = doctor(two_hosts)
    assert code == 0, printed
    assert "mpi4py over Open MPI" in printed
    assert "fault" not in printed
    assert seconds < ten_seconds()
    assert nothing_left(two_hosts)


def test_108_the_odd_host_is_named_with_what_differs(two_hosts):
    """And 103: another version, other code, a GPU that torch was not built for."""
    change = (
        "sed -i 's/^Version: .*/Version: 5.22.0/' $1/transformers-*.dist-info/METADATA;"
        "echo '# newer' >> $2/trainer/errors.py;"
        "printf '#!/bin/sh\necho Tesla V100-SXM2-16GB, 16160, 16000, 7.0, 570.86.15\n'"
        " > /usr/local/bin/nvidia-smi; chmod +x /usr/local/bin/nvidia-smi"
    )
    before = (REPOSITORY / "trainer" / "errors.py").read_text()
    two_hosts.run("node1", ["sh", "-c", change, "sh", site_packages(), REPOSITORY])
    code, printed, seconds = doctor(two_hosts)
    undo = (
        "sed -i 's/^Version: .*/Version: 5.23.0/' $1/transformers-*.dist-info/METADATA;"
        "sed -i '$d' $2/trainer/errors.py; rm /usr/local/bin/nvidia-smi"
    )
    two_hosts.run("node1", ["sh", "-c", undo, "sh", site_packages(), REPOSITORY])
    assert (REPOSITORY / "trainer" / "errors.py").read_text() == before
    assert code == 5, printed
    assert seconds < ten_seconds()
    assert "node1 | 5.22.0; 5.23.0 on node0 | fault" in row(printed, "transformers")
    assert "node1" in row(printed, "code")
    assert "same commit" in row(printed, "code")
    assert "node1 | 2 in the hostfile, 1 GPUs" in row(printed, "slots")
    assert "Tesla V100-SXM2-16GB; none on node0" in row(printed, "GPUs")
    assert "install torch's CUDA build" in row(printed, "torch")
    assert doctor(two_hosts)[0] == 0  # and nothing else was wrong


def test_104_unknown_and_unreachable_nodes_are_told_all_at_once(two_hosts):
    content = "node0 slots=2\nnode8 slots=2\nnode1 slots=2\n10.77.0.99 slots=2\nnode9 slots=2\n"
    code, printed, seconds = doctor(two_hosts, content=content)
    assert code == 5, printed
    assert "node8, node9 | the name is not known | fault" in row(printed, "reach")
    assert "10.77.0.99 | no route to it | fault" in row(printed, "reach")
    assert "10.77.0.99" in printed
    assert "2 of 5 nodes answered" in printed
    assert seconds < 1.5 * ten_seconds()  # ssh waits 5 s for a machine that is off
    assert nothing_left(two_hosts)


def test_120_ssh_that_would_ask_is_refused_with_the_remedy(two_hosts):
    """A key that is not accepted, and a host key that changed; BatchMode never waits."""
    two_hosts.run("node1", ["mv", "/root/.ssh/authorized_keys", "/root/.ssh/kept"])
    code, printed, _ = doctor(two_hosts)
    two_hosts.run("node1", ["mv", "/root/.ssh/kept", "/root/.ssh/authorized_keys"])
    assert code == 5, printed
    assert "node1 | ssh asks for a password or key | fault | ssh-copy-id" in row(printed, "reach")
    two_hosts.run("node0", ["sed", "-i.kept", "/node1/d", "/root/.ssh/known_hosts"])
    code, printed, _ = doctor(two_hosts)
    two_hosts.run("node0", ["mv", "/root/.ssh/known_hosts.kept", "/root/.ssh/known_hosts"])
    assert code == 5, printed
    assert "node1 | its host key is new or changed" in row(printed, "reach")


def test_a_clone_at_another_path_is_told(two_hosts):
    two_hosts.run("node1", ["mv", REPOSITORY / "launcher", REPOSITORY / "launcher.moved"])
    code, printed, _ = doctor(two_hosts)
    two_hosts.run("node1", ["mv", REPOSITORY / "launcher.moved", REPOSITORY / "launcher"])
    assert code == 5, printed
    assert "must lie at the same path" in row(printed, "reach")


def test_109_a_run_folder_that_is_not_shared_is_told_and_left_alone(two_hosts, tmp_path):
    recipe = REPOSITORY / "recipes" / "quickstart.yaml"
    before = {path.name for path in two_hosts.shared.iterdir()} | {"hostfile"}
    code, printed, seconds = doctor(two_hosts, recipe, "run.output_dir=/root/run")
    assert code == 5, printed
    assert "node1 | /root/run is another folder than here" in row(printed, "run folder")
    shared = two_hosts.shared / "run"
    code, printed, seconds = doctor(two_hosts, recipe, f"run.output_dir={shared}")
    assert code == 0, printed
    assert seconds < ten_seconds()
    assert not shared.exists()
    assert {path.name for path in two_hosts.shared.iterdir()} == before  # no probe is left


def test_a_recipe_that_cannot_run_on_one_node_is_told(two_hosts):
    """The model's folder is on node0 alone."""
    two_hosts.run("node0", ["cp", "-r", REPOSITORY / "data" / "samples" / "model", "/root/model"])
    recipe = REPOSITORY / "recipes" / "quickstart.yaml"
    code, printed, _ = doctor(two_hosts, recipe, "model.path=/root/model")
    assert code == 5, printed
    assert "node1" in row(printed, "recipe")
    assert "model.path: /root/model does not exist" in row(printed, "recipe")


def test_110_a_port_in_use_on_the_master_is_told(two_hosts):
    listen = "import socket, time; s = socket.create_server(('', 29611)); time.sleep(60)"
    with (two_hosts.state / "port.log").open("w") as log:
        holder = two_hosts.start("node0", [sys.executable, "-c", listen], log)
        time.sleep(0.5)
        code, printed, _ = doctor(two_hosts)
        two_hosts.stop(holder)
    assert code == 5, printed
    assert "node0 | 29611 is in use | fault" in row(printed, "port")


def test_without_mpi_links_are_measured_over_sockets(two_hosts):
    every = 'for program in $(which -a mpirun); do mv "$program" "$program.kept"; done'
    back = (
        'for program in $(echo $1/mpirun /usr/bin/mpirun); do mv "$program.kept" "$program"; done'
    )
    two_hosts.run("node0", ["sh", "-c", every])
    code, printed, seconds = doctor(two_hosts)
    two_hosts.run("node0", ["sh", "-c", back, "sh", Path(sys.executable).parent])
    assert code == 0, printed
    assert "Links measured by sockets" in printed
    assert "Mbit/s" in printed
    assert seconds < ten_seconds()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("node0 slots=2\nnode1 slots=0\n", "slots=0 of node1"),
        ("node0 slots=2\n-oProxyCommand=touch${IFS}/tmp/owned slots=2\n", "an option"),
        ("node0 slots=2\n10.77.0.10 slots=2\n", "10.77.0.10 is the same machine as node0"),
    ],
    ids=["102-slots-0", "107-option", "101-alias"],
)
def test_a_wrong_hostfile_ends_with_2_before_any_node_is_asked(two_hosts, content, fault):
    code, printed, seconds = doctor(two_hosts, content=content)
    assert code == 2, printed
    assert fault in printed
    assert seconds < ten_seconds() / 3
    assert two_hosts.run("node0", ["ls", "/tmp/owned"]).returncode


def site_packages() -> str:
    import transformers

    return str(next(iter(transformers.__path__)).rpartition("/")[0])
