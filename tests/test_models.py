"""Configs of the matrix train as stock scores them, each in one task; the page names them all.

`make models` runs every config with every combination. Here every eleventh has one, in turns, so
that each task meets each method and source of weights in less than a minute of two cores.
"""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from model_cells import (
    EQUAL,
    REFUSED,
    TOLERANCE,
    TRACEBACK,
    Cell,
    Outcome,
    distance,
    refusal,
    run_cell,
    write_data,
)
from model_matrix import COMBINATIONS, PAGE
from tiny_models import cases, is_decoder, write_config

IN_TURNS = [
    (name, *next(turn))
    for decoders in (False, True)
    for turn in [
        itertools.cycle(
            (task, method, drawn)
            for drawn, (task, method) in itertools.product((False, True), COMBINATIONS)
            if decoders or task == "classification"
        )
    ]
    for name in cases()
    if is_decoder(name) == decoders
]
# Eleven is prime to the 6 and 12 combinations that take turns, so all of them are met.
CHOSEN = IN_TURNS[::11]


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory) -> Iterator[dict[str, Future[Outcome]]]:
    """The outcomes of the cells that are wanted; as many run side by side as there are cores."""
    work = tmp_path_factory.mktemp("models")
    data = write_data(work / "data")
    items = [
        item
        for item in request.session.items
        if item.path == request.path and "outcomes" in item.fixturenames
    ]
    wanted = [item.callspec.params["chosen"] for item in items]
    configs = {one[0]: write_config(one[0], work / "configs" / one[0]) for one in wanted}

    def outcome(name: str, *run: Any) -> Outcome:
        cell = Cell(name, configs[name], *run)
        return run_cell(cell, data, work / str(cell))

    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    yield {chosen[0]: pool.submit(outcome, *chosen) for chosen in wanted}
    pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first waits for all imports, each for those before it
@pytest.mark.parametrize("chosen", CHOSEN, ids=lambda chosen: "-".join(map(str, chosen)))
def test_what_a_run_wrote_gives_its_scores_in_stock(chosen, outcomes):
    outcome = outcomes[chosen[0]].result()
    assert outcome.verdict == EQUAL, outcome.message


def test_every_type_is_met_by_every_task_method_and_source():
    pairs = {(task, method, drawn) for _, task, method, drawn in CHOSEN}
    assert len(pairs) == 2 * len(COMBINATIONS)
    assert len(cases()) >= 75
    assert len({kind for kind, _ in cases().values()}) >= 65


def test_a_verdict_needs_an_error_of_ours_or_equal_scores():
    assert refusal(4, "step 1\nerror: base: no weights;\nfetch them\n") == (
        REFUSED, "base: no weights; fetch them",
    )  # fmt: skip
    assert refusal(1, "error: base: no weights")[0] == TRACEBACK
    assert refusal(4, "Traceback\nValueError: x\n") == (TRACEBACK, "ValueError: x")
    stock = torch.tensor([[0.5, -20.0]], dtype=torch.float64)
    assert distance([0.5, -20.0], list(stock)) == 0.0
    assert distance([0.5, -20.002], list(stock)) == pytest.approx(1e-4)  # of the largest
    assert distance([0.502, -20.0], list(stock)) > TOLERANCE
    assert not distance([float("nan"), -20.0], list(stock)) <= TOLERANCE


def test_the_page_names_every_config():
    rows = [row.split("|")[1].strip(" `") for row in PAGE.read_text().splitlines() if "|" in row]
    assert set(cases()) <= set(rows)
