"""Processes with stock libraries and nothing of ours, forked from one that has imported them.

Importing torch, transformers and PEFT takes 4-5 s of computing, a fork a tenth of that. What
proves that an export starts a process of its own does not come here (trainer/run/test_export.py).
"""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.run import stock_check

# A request is one line, its answer an exit code. The end of stdin ends the server.
_SERVER = """
import gc, importlib, json, os, runpy, select, socket, sys, traceback
gc.disable()
for name in ("bitsandbytes", "peft", "transformers.pipelines", "transformers.models.auto"):
    importlib.import_module(name)
import transformers
transformers.PreTrainedTokenizerFast, transformers.AutoModelForSequenceClassification
gc.freeze()
gc.enable()

def run(asked):
    for number, name in enumerate(asked["outputs"], start=1):
        os.dup2(os.open(name, os.O_WRONLY), number)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv[:] = asked["argv"]
    try:
        if "source" in asked:
            exec(asked["source"], {"__name__": "__main__"})
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0

server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(16)
print("ready", flush=True)
children = set()
while True:
    ready, _, _ = select.select([server, sys.stdin], [], [], 1.0 if children else None)
    children -= {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]}
    if sys.stdin in ready:
        break
    if server in ready:
        connection, _ = server.accept()
        child = os.fork()
        if child == 0:
            with connection.makefile("rw") as stream:
                print(run(json.loads(stream.readline())), file=stream, flush=True)
            os._exit(0)
        children.add(child)
        connection.close()
"""
ADDRESS = "STOCK_POOL"  # in the environment
_LOCK = threading.Lock()


def start() -> str:
    """The address of the server of this process, which is started once and ends with it."""
    with _LOCK:
        if ADDRESS not in os.environ:
            folder = tempfile.mkdtemp(prefix="focaltune-stock-")
            atexit.register(shutil.rmtree, folder)
            os.environ[ADDRESS] = f"{folder}/socket"
            server = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVER, os.environ[ADDRESS]], cwd=folder, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            atexit.register(server.communicate)
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
    return os.environ[ADDRESS]


def run_stock(command: Sequence[str], **more: Any) -> "subprocess.CompletedProcess[str]":
    """subprocess.run of [python, "-P", FILE or "-c", SOURCE, ARGUMENT ...], its output captured.

    Args:
        command: What is run.
        more: cwd and env; others say what is always so.
    """
    if torch.cuda.is_available():  # a process that has asked CUDA cannot fork others that use it
        return subprocess.run(command, **{"capture_output": True, "text": True} | more)
    python, kind, program, *arguments = command
    assert (python, kind in ("-P", "-c")) == (sys.executable, True), command
    asked: dict[str, Any] = {
        "argv": [program if kind == "-P" else kind, *arguments],
        "cwd": str(more.get("cwd") or Path.cwd()),
        "env": dict(more.get("env") or os.environ),
        **({"source": program} if kind == "-c" else {}),
    }
    with (
        tempfile.NamedTemporaryFile("r") as output,
        tempfile.NamedTemporaryFile("r") as errors,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        connection.connect(start())
        with connection.makefile("rw") as stream:
            asked["outputs"] = [output.name, errors.name]
            print(json.dumps(asked), file=stream, flush=True)
            code = int(stream.readline() or 1)
        return subprocess.CompletedProcess(command, code, output.read(), errors.read())


@contextmanager
def exports_are_scored_here() -> Iterator[None]:
    """Exports of this block start no process of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stock_check, "subprocess", SimpleNamespace(run=run_stock))
        yield
