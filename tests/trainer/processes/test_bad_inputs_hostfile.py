"""Bad hostfiles, by the project's list of bad inputs: the number stands first in each test's id.

A refusal is a ConfigError (exit code 2) before anything is started. What only the nodes can show
(103, 108, 109, and 104's unreachable) is in test_checks.py and test_doctor.py.
"""

from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.processes.hostfile import Node, read_hostfile, refuse_aliases


def hostfile(folder: Path, content: bytes) -> Path:
    path = folder / "hosts"
    path.write_bytes(content)
    return path


REFUSED = {
    "100-duplicate-host": (b"a slots=2\nb slots=2\na slots=2\n", "line 3: a is already on line 1"),
    "100-duplicate-in-capitals": (
        b"node slots=2\nNODE slots=2\n",
        "line 2: NODE is already on line",
    ),
    "102-slots-0": (b"a slots=0\n", "line 1: slots=0 of a must be a whole number from 1"),
    "102-slots-negative": (b"a slots=-2\n", "line 1: slots=-2 of a must be"),
    "102-slots-with-letters": (b"a slots=4abc\n", "line 1: slots=4abc of a must be"),
    "102-slots-fraction": (b"a slots=2.5\n", "line 1: slots=2.5 of a must be"),
    "102-slots-empty": (b"a slots=\n", "line 1: slots= of a must be"),
    "102-slots-huge": (b"a slots=99999999999999999999\n", "must be a whole number from 1 to 1024"),
    "102-slots-in-other-digits": ("a slots=\u0664\n".encode(), "must be a whole number"),
    "102-no-slots": (b"a\n", "line 1: found '' after a; a line reads NAME slots=GPUS"),
    "102-slots-apart": (b"a slots = 2\n", "line 1: found 'slots = 2' after a"),
    "102-mpi-syntax": (b"a slots=2 max_slots=4\n", "found 'slots=2 max_slots=4' after a"),
    "106-empty": (b"", "it names no node; a line reads NAME slots=GPUS"),
    "106-only-comments": (b"# later\n\n   \n", "it names no node"),
    "107-option": (b"-oProxyCommand=id slots=2\n", "ssh would read it as an option"),
    "107-dash": (b"-w slots=2\n", "line 1: host '-w' must begin with a letter or digit"),
    "107-command": (b"$(id) slots=2\n", "line 1: host '$(id)' must begin"),
    "107-backquotes": (b"a`id` slots=2\n", "hold only letters, digits, '.', '_' and '-'"),
    "107-semicolon": (b"a;id slots=2\n", "host 'a;id' must begin"),
    "107-two-hosts": (b"a,b slots=2\n", "one node a line"),
    "107-user": (b"root@a slots=2\n", "host 'root@a' must begin"),
    "107-quote": (b"a'b slots=2\n", "must begin"),
    "107-newline-like": ("a\u2028b slots=2\n".encode(), "line 1: found 'b slots=2' after a"),
    "107-byte-order-mark": (b"\xef\xbb\xbfa slots=2\n", "save it as UTF-8 without one"),
    "107-not-utf8": (b"a\xff slots=2\n", "line 1: not UTF-8 (b'\\xff"),
}


@pytest.mark.parametrize(("content", "fault"), REFUSED.values(), ids=REFUSED)
def test_bad_hostfile_is_refused(content, fault, tmp_path):
    path = hostfile(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_hostfile(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    assert fault in str(caught.value)


ACCEPTED = {
    "105-comments": b"# the cluster\na slots=2 # rack 1\n#b slots=2\nc.local slots=4\n",
    "105-no-final-newline": b"a slots=2\nc.local slots=4",
    "105-crlf": b"a slots=2\r\n\r\nc.local slots=4\r\n",
    "105-blanks-and-tabs": b"  a\tslots=2  \n\n\tc.local   slots=4\n",
}


@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED)
def test_harmless_differences_are_accepted(content, tmp_path):
    nodes = read_hostfile(hostfile(tmp_path, content))
    assert [(node.host, node.slots) for node in nodes] == [("a", 2), ("c.local", 4)]
    assert sum(node.slots for node in nodes) == 6


@pytest.mark.parametrize(
    ("first", "second"),
    [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.1.1"), ("10.77.1.2", "10.77.1.2")],
    ids=["101-localhost", "101-loopback", "101-address"],
)
def test_two_names_of_one_machine_are_refused(first, second, tmp_path):
    nodes = [Node("10.77.1.1", 2, 1), Node(first, 2, 2), Node(second, 4, 3)]
    with pytest.raises(ConfigError, match=f"line 3: {second} .* as {first}, at") as caught:
        refuse_aliases(tmp_path, nodes)
    assert caught.value.exit_code == 2
    refuse_aliases(tmp_path, nodes[:2])


def test_an_unknown_name_is_no_alias(tmp_path):
    """104: names that do not resolve are reported with the unreachable ones, all at once."""
    refuse_aliases(tmp_path, [Node("a.invalid", 1, 1), Node("b.invalid", 1, 2)])


def test_a_missing_hostfile_is_refused_though_deepspeed_would_train_locally(tmp_path):
    with pytest.raises(ConfigError, match=r"hosts is not a file \(resolved: .*; give a hostfile"):
        read_hostfile(tmp_path / "hosts")


def test_every_fault_of_a_file_is_reported_at_once(tmp_path):
    path = hostfile(tmp_path, b"a slots=0\n-x slots=1\nb slots=2\nb slots=2\n")
    with pytest.raises(ConfigError) as caught:
        read_hostfile(path)
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "line 1", "line 2", "line 4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path",
    sorted(Path(__file__).resolve().parents[3].glob("hostfiles/[!R]*")),
    ids=lambda p: p.name,
)
def test_the_hostfiles_of_the_repository_are_sound(path):
    assert read_hostfile(path)
