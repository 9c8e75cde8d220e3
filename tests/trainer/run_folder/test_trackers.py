"""Trackers get what the log gets: every step once, also over a kill; none of them ends a run."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from conftest import REPOSITORY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher.train import main as train
from trainer.config.sections import LogSection
from trainer.engine.state import TrainState
from trainer.errors import MachineError
from trainer.run_folder import trackers, tracking
from trainer.run_folder.metrics import RunLog, read_log
from trainer.run_folder.trackers import TRACKERS, without_secrets

RECIPE = {"optim.lr": 0.001, "tuning.method": "lora", "data.format": "auto"}
REPORT = {
    "predictors": {"model": {"metrics": {"roc_auc": 0.75, "f1": 0.5, "slices": {}}}},
    "files": {"markdown": "test.md", "predictions": "predictions.jsonl", "pr": "test_pr.png"},
}
needs_wandb = pytest.mark.skipif(not find_spec("wandb"), reason="wandb: pip install .[trackers]")
needs_mlflow = pytest.mark.skipif(not find_spec("mlflow"), reason="mlflow: pip install .[trackers]")
needs_server = pytest.mark.skipif(
    not (find_spec("mlflow") and find_spec("flask")),
    reason="MLflow's server: pip install mlflow, which is 660 MB more than its client",
)


@pytest.fixture(autouse=True)
def a_package_that_another_test_has_hidden_is_found(monkeypatch):
    """A command that needs no mlflow lets its process find none (trainer/run/commands.py)."""
    if sys.modules.get("mlflow", sys) is None:
        monkeypatch.delitem(sys.modules, "mlflow")


class Recorded(trackers.Tracker):
    """Keeps what it gets; fails as long as `is_down`, or at one step."""

    where, got, is_down, poison = "", [], False, None

    def __init__(self, run):
        self._check()

    def _check(self, step=0):
        if self.is_down or step == self.poison:
            raise ConnectionError("http://user:hunter22@host does not answer")

    def scalars(self, values, step):
        self._check(step)
        self.got.append((step, *values))

    def text(self, name, page, step):
        self.got.append((step, name))

    def finish(self, metrics, step):
        self.got.append((step, "finish"))

    def close(self, *, has_finished):
        self.got.append("finished" if has_finished else "stopped")


@pytest.fixture
def recorded(monkeypatch):
    kind = type("Kept", (Recorded,), {"got": []})
    monkeypatch.setitem(TRACKERS, "mlflow", kind)
    return kind


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "test.md").write_text("# Test\n\n![ROC](test_roc.svg)\n")
    rows = [{"label": 1, "score": 0.9}, {"label": 0, "score": 0.6}, {"label": 1, "score": 0.2}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "report" / "predictions.jsonl").write_text(lines)
    return folder


def opened(run, *names, step=0):
    return RunLog(run, LogSection(trackers=list(names)), TrainState(step=step), 8, RECIPE)


def logged(log, steps):
    for step in steps:
        values = {"step": step, "loss": 1 / step, "lr": 1e-3, "grad_norm": None}
        log.step(values | {"records_per_second": 9.0, "tokens_per_second": 99.0})
        if step % 4 == 0:
            log.validation({"step": step, "roc_auc": 0.5, "pr_auc": None})


def two_sittings(run, *names):
    """A run that is killed after step 6 and goes on from its checkpoint of step 4 to its report."""
    first = opened(run, *names)
    logged(first, range(1, 7))
    first.close()
    log = opened(run, *names, step=4)
    logged(log, range(5, 9))
    log.finish(REPORT, run / "report", 8)
    log.close()
    again = opened(run, *names, step=8)  # the same command trains nothing and reports again
    again.finish(REPORT, run / "report", 8)
    again.close()


def scalars_of(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return events.Reload()


def test_each_step_arrives_once_and_in_order_when_a_run_goes_on_behind_it(run, recorded):
    two_sittings(run, "mlflow")
    steps = [entry[0] for entry in recorded.got if "train/loss" in entry]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [entry for entry in recorded.got if "valid/roc_auc" in entry] == [
        (4, "valid/roc_auc"), (8, "valid/roc_auc"),
    ]  # fmt: skip
    assert recorded.got.count((8, "finish")) == recorded.got.count((8, "report")) == 1
    assert recorded.got.index((8, "finish")) > recorded.got.index("stopped")
    assert recorded.got[-1] == "finished"
    assert [row["step"] for row in read_log(run / "log.jsonl", "test")] == [8]


def test_tensorboard_has_the_steps_the_layout_hparams_the_pr_curve_and_text(run):
    two_sittings(run, "tensorboard")
    events = scalars_of(run)
    points = events.Scalars("train/loss")
    assert [(p.step, p.value) for p in points] == [
        (step, pytest.approx(1 / step)) for step in range(1, 9)
    ]
    assert [(p.step, p.value) for p in events.Scalars("test/roc_auc")] == [(8, 0.75)]
    tags = set(events.Tags()["tensors"])
    assert {"custom_scalars__config__", "recipe/text_summary", "report/text_summary"} <= tags
    plugins = events.summary_metadata
    assert plugins["test/pr"].plugin_data.plugin_name == "pr_curves"
    from tensorboard.util.tensor_util import make_ndarray

    curve = make_ndarray(events.Tensors("test/pr")[0].tensor_proto)  # rows: tp fp tn fn pr recall
    middle = curve[:, 63]  # threshold 0.5: one of two found, and one alarm
    assert middle.tolist() == [1, 1, 0, 1, 0.5, 0.5]
    hparams = plugins["_hparams_/session_start_info"].plugin_data.content
    assert b"tuning.method" in hparams
    assert b"lora" in hparams
    assert b"data.format" not in hparams  # nobody tunes it, and it is the default
    shown = plugins["_hparams_/experiment"].plugin_data.content
    assert b"test/roc_auc" in shown
    assert b"test/f1" not in shown  # no validation measures it here


def test_a_tracker_that_fails_is_said_once_and_gets_the_rest_when_it_answers(
    run, recorded, monkeypatch, capsys
):
    seconds = [0.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: seconds[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    log = opened(run, "mlflow")
    logged(log, [1])
    recorded.is_down = True
    logged(log, [2, 3])
    seconds[0] += 61
    logged(log, [5])
    recorded.is_down = False
    logged(log, [6])
    assert [entry[0] for entry in recorded.got] == [1]  # it is not asked again so soon
    seconds[0] += 61
    logged(log, [7])
    log.close()
    assert [entry[0] for entry in recorded.got[:-1]] == [1, 2, 3, 5, 6, 7]
    said = capsys.readouterr().err
    assert said.count("mlflow fails: ConnectionError: http://host does not answer") == 1
    assert "hunter22" not in said
    assert [row["step"] for row in read_log(run / "log.jsonl")] == [1, 2, 3, 5, 6, 7]


def test_an_entry_that_is_never_taken_does_not_hold_up_the_others(run, recorded, monkeypatch):
    monkeypatch.setattr(tracking, "_RETRY_SECONDS", 0.0)
    recorded.poison = 2
    log = opened(run, "mlflow")
    logged(log, [1, 2, 3, 5, 6])
    log.close()
    assert [entry[0] for entry in recorded.got[:-1]] == [1, 3, 5, 6]


def test_what_a_tracker_never_got_is_counted_at_the_end(run, recorded, capsys):
    log = opened(run, "mlflow")
    recorded.is_down = True
    recorded.close = lambda *_, **__: None
    logged(log, [1, 2, 3])
    log.close()
    assert "mlflow lacks the last 4 entries of this run" in capsys.readouterr().err


def test_a_new_run_does_not_begin_without_its_tracker_and_one_that_goes_on_does(
    run, recorded, capsys
):
    recorded.is_down = True
    with pytest.raises(MachineError, match="mlflow cannot begin: ConnectionError") as refused:
        opened(run, "mlflow")
    assert refused.value.exit_code == 5
    log = opened(run, "mlflow", step=4)
    assert "the run goes on" in capsys.readouterr().err
    recorded.is_down = False
    logged(log, [5])
    log.close()
    assert recorded.got[0][0] == 5


def test_a_package_that_is_missing_is_refused_with_the_command_that_installs_it(
    base, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    folder = tmp_path / "new"
    keys = [f"run.output_dir={folder}", "log.trackers=[tensorboard,wandb]"]
    assert train([str(base), *keys]) == 5
    said = capsys.readouterr().err
    assert "log.trackers names wandb, which is not installed: " in said
    assert "pip install -c constraints.txt -e '.[trackers]'" in said
    assert not folder.exists()


def test_no_message_holds_a_password(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    text = without_secrets("https://me:pa55@host/x with 0123456789abcdef")
    assert text == "https://host/x with $WANDB_API_KEY"


def records_of(raw):
    """Records of a file of W&B: after 7 bytes blocks of 32 KiB, as LevelDB's logs have them.

    wandb 0.31 has no reader in Python any more, only the messages that are in the records.
    """
    place, record = 7, b""
    while place < len(raw):
        if (left := -place % 32768) and left < 7:  # no header fits
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, place)
        record += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


@needs_wandb
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_the_same_run_offline_with_each_step_once(run, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    two_sittings(run, "wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    steps, losses, names, summary = [], {}, set(), {}
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for record in map(Record.FromString, records_of(path.read_bytes())):
            names |= {record.run.run_id} - {""}
            items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            if "train/loss" in items:
                steps.append(record.history.step.num)
                losses[steps[-1]] = json.loads(items["train/loss"])
            summary |= {
                "/".join(i.nested_key) or i.key: i.value_json for i in record.summary.update
            }
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert losses == pytest.approx({step: 1 / step for step in steps})
    assert names == {json.loads((run / "trackers.json").read_text())["wandb"]}
    assert json.loads(summary["test/roc_auc"]) == 0.75


def check_mlflow(uri, run):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    [found] = client.search_runs([client.get_experiment_by_name("focaltune").experiment_id])
    number = found.info.run_id
    history = client.get_metric_history(number, "train/loss")
    assert [(m.step, m.value) for m in history] == [(step, 1 / step) for step in range(1, 9)]
    assert [m.step for m in client.get_metric_history(number, "valid/roc_auc")] == [4, 8]
    assert [m.value for m in client.get_metric_history(number, "test/roc_auc")] == [0.75]
    assert found.data.params == {key: str(value) for key, value in RECIPE.items()}
    assert found.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(number)] == ["report-8.md"]
    assert number == json.loads((run / "trackers.json").read_text())["mlflow"]


@needs_mlflow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_the_same_run_in_the_run_folder_with_each_step_once(run, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    two_sittings(run, "mlflow")
    check_mlflow((run / "mlruns").as_uri(), run)


@needs_server
@pytest.mark.filterwarnings("ignore")
def test_a_real_server_of_mlflow_gets_the_same(run, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    store += ["--artifacts-destination", str(tmp_path / "artifacts"), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "server.txt").open("wb") as out:
        server = subprocess.Popen(
            [*command, *store], stdout=out, stderr=out, start_new_session=True
        )
    try:
        until = time.monotonic() + 120
        while not _answers(port):
            assert time.monotonic() < until, (tmp_path / "server.txt").read_text()[-2000:]
            time.sleep(0.5)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        two_sittings(run, "mlflow")
        check_mlflow(uri, run)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _answers(port):
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        return urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
    except (URLError, OSError):
        return False


def test_make_tensorboard_shows_the_newest_runs_on_this_machine_only(tmp_path):
    for age, name in enumerate(["sweep/lora/seed-0", "second one", "oldest"]):
        curves = tmp_path / "runs" / name / "tensorboard"
        curves.mkdir(parents=True)
        os.utime(curves, (1_000_000 - age, 1_000_000 - age))
    program = tmp_path / "venv" / "bin" / "tensorboard"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@"\ncd "$4" && find . -type l | sort\n')
    program.chmod(0o755)
    (tmp_path / "venv" / ".run").touch()
    keys = [f"VENV={tmp_path}/venv", f"RUNS={tmp_path}/runs", "NEWEST=2"]
    done = subprocess.run(
        ["make", "-s", "-C", REPOSITORY, "tensorboard", *keys],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    options, *runs = done.stdout.splitlines()
    assert options.startswith("--host 127.0.0.1 --logdir ")
    assert runs == ["./second one", "./sweep/lora/seed-0"]
