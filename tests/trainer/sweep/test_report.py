"""The report of a sweep: what it concludes from the numbers of its cells."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import SAMPLES
from sweep_cells import cells_of, write_cell

from trainer.evaluation.measures import swept_measures
from trainer.sweep.findings import Comparison
from trainer.sweep.pictures import STYLES, _style
from trainer.sweep.report import render, write_report
from trainer.sweep.results import final_loss, read_result
from trainer.sweep.running import Failure

METHODS = ("full", "lora", "ia3", "ptuning", "adapter_h")
# By hand: the best of the small size is second on the large one, ia3 and ptuning change places.
SMALL = {"full": 3.0, "lora": 3.2, "ia3": 3.6, "ptuning": 3.4, "adapter_h": 3.8}
LARGE = {"full": 2.2, "lora": 2.1, "ia3": 2.4, "ptuning": 2.6, "adapter_h": 2.8}
TRAINED = {"full": 1000, "lora": 40, "ia3": 4, "ptuning": 30, "adapter_h": 200}


def compare(results):
    return Comparison(tuple(results), swept_measures("tokens"))


@pytest.fixture
def finished(base, tmp_path):
    """Ten cells of two seeds each, the second seed 0.01 worse."""
    large = tmp_path / "large.json"
    text = (SAMPLES / "model" / "config.json").read_text()
    large.write_text(text.replace('"n_layer": 4', '"n_layer": 8'))
    (tmp_path / "tokenizer.json").write_bytes((SAMPLES / "model" / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text(text)
    models = (f"large={large}", f"small={tmp_path / 'config.json'}")
    _, cells = cells_of(base, tmp_path / "grid", METHODS, models, 2)
    for cell in cells:
        losses = LARGE if cell.model == "large" else SMALL
        loss = losses[cell.method] + 0.01 * cell.seed
        write_cell(
            cell, loss, num_trained=TRAINED[cell.method], accuracy=1 - loss / 10,
            seconds=10 + TRAINED[cell.method] / 100 + 20 * (cell.model == "large"),
        )  # fmt: skip
    return cells


def test_a_cell_is_read_as_its_run_folder_says(finished):
    result = read_result(finished[0])
    assert (result.method, result.model, result.seed) == ("full", "large", 0)
    assert result.test_loss == result.loss == 2.2
    assert result.test_interval == pytest.approx((2.1, 2.3))
    assert result.train_loss == pytest.approx(2.2 + 2 - 19.5 / 20)  # of steps 19 and 20
    assert result.metric == pytest.approx(0.78)
    assert result.train_seconds == 40.0
    assert (result.memory_gib, result.planned_gib) == (1.0, 0.5)
    assert result.peak_gib == 0.5  # on a CPU
    assert result.trained_share == 1.0
    assert result.loss_before == 9.0
    assert len(result.curve) == 20


def test_the_final_loss_is_the_mean_of_the_last_tenth_and_of_one_step_at_least():
    assert final_loss([9.0] * 18 + [2.0, 4.0]) == 3.0
    assert final_loss([9.0, 2.0]) == 2.0


def test_a_curve_is_the_running_mean_of_a_tenth_of_the_steps_over_seeds(finished):
    [group] = [
        g for g in compare([read_result(cell) for cell in finished]).groups
        if (g.method, g.model) == ("full", "small")
    ]  # fmt: skip
    steps, losses = group.mean_curve()
    assert steps == list(range(1, 21))
    # Step n of the two seeds: 5 - n / 20 and 5.01 - n / 20; two steps in a mean.
    assert losses[:2] == pytest.approx([5.005 - 1 / 20, 5.005 - 1.5 / 20])
    assert losses[-1] == pytest.approx(5.005 - 19.5 / 20)
    assert (group.mean(lambda cell: cell.loss), group.ends(lambda cell: cell.loss)) == (
        pytest.approx(3.005), (3.0, 3.01),
    )  # fmt: skip


def test_the_order_of_methods_is_compared_from_the_smallest_size_to_the_largest(finished):
    [order] = compare([read_result(cell) for cell in finished]).orders
    assert (order.model, order.other) == ("small", "large")
    assert order.methods == ("full", "lora", "ptuning", "ia3", "adapter_h")
    assert order.places == (2, 1, 4, 3, 5)
    assert order.tau == pytest.approx((10 - 2 * 2) / 10)  # two of ten pairs turned
    assert order.tau_interval == (order.tau, order.tau)  # seeds agree on every pair
    assert (order.num_pairs, order.num_apart, order.num_kept) == (10, 10, 8)
    assert order.regret == pytest.approx(0.1)


def test_a_method_that_lacks_a_seed_is_left_out_of_the_order(finished):
    results = [read_result(cell) for cell in finished]
    lacking = [r for r in results if (r.method, r.model, r.seed) != ("full", "small", 1)]
    [order] = compare(lacking).orders
    assert order.methods == ("lora", "ptuning", "ia3", "adapter_h")
    assert (
        compare([r for r in results if r.method in ("full", "lora")]).orders == []
    )  # an order needs three methods


def test_loss_and_metric_are_related_over_all_cells_and_within_each_model(finished):
    related = compare([read_result(cell) for cell in finished]).relations
    assert [(r.where, r.num) for r in related] == [("all", 20), ("small", 10), ("large", 10)]
    assert all(r.rho == pytest.approx(-1) for r in related)  # accuracy is 1 - loss / 10


def test_the_report_holds_the_answer_the_table_the_failed_cells_and_every_picture(
    finished, tmp_path
):
    results = [read_result(cell) for cell in finished]
    failure = Failure("qlora/small/seed-0", 4, ("error: no weights",), Path("seed-0.txt"))
    missing = {"qlora/small/seed-0": "no", "qlora/large/seed-0": "has no report yet"}
    compared = compare(results)
    page = write_report(tmp_path / "report", compared, [failure], missing)
    text = page.read_text()
    assert "**Not shown: " in text  # tau .6 of five methods: p = .23 of random orders
    assert "is +0.60 [+0.60, +0.60] over seeds (5 methods, p = 0.2333" in text
    assert "Of 10 pairs of methods, 10 are distinguished on both sizes" in text
    assert "full, is number 2 on large: choosing by the small size costs 0.100 nats" in text
    assert "2 seeds allow only 9 distinct resamples" in text
    assert "more than size does.\n- 2 seeds a cell" in text
    assert "| lora | 40 | 4.00% | 4.230 [4.225, 4.235] | 3.205 [3.200, 3.210] |" in text
    assert "| all | 20 | -1.00 [-1.00, -1.00] |" in text
    assert "- training time: ia3 on small, ptuning on small, lora on small" in text
    assert "qlora/small/seed-0: exit code 4; its whole output: `seed-0.txt`" in text
    assert "    error: no weights\n" in text
    assert "\n- qlora/large/seed-0: has no report yet\n" in text
    pictures = sorted(path.name for path in page.parent.glob("*.svg"))
    assert len(pictures) == 5
    for name in pictures:
        assert f"]({name})" in text
        width, height = map(
            float, ElementTree.parse(page.parent / name).getroot().get("viewBox").split()[2:]
        )
        assert min(width, height) > 300
    with (page.parent / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert float(rows[0]["test_loss"]) == 2.2
    assert float(rows[0]["test_loss_low"]) == pytest.approx(2.1)
    assert rows[0]["trained_share"] == "1.0"


def test_scores_of_suites_stand_beside_trained_parameters_and_loss(finished, tmp_path):
    for cell in finished:
        folder = cell.config.output_dir
        if cell.model == "large" and cell.method != "ia3":
            score = {"value": 10.0 * (cell.seed + 1), "interval": None}
            path = folder / "suites" / "humaneval" / "suite.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"measures": {"pass@1": score, "pass@10": {"value": 99}}}))
    stale = finished[0].config.output_dir / "suites" / "humaneval" / "suite.json"
    os.utime(stale, (1, 1))  # of a model before this one
    results = [read_result(cell) for cell in finished]
    page = write_report(tmp_path / "report", compare(results))
    text = page.read_text()
    assert "| full | large | 1,000 | 2.205 [2.200, 2.210] | 20.00 |" in text
    assert "| lora | large | 40 | 2.105 [2.100, 2.110] | 15.00 [10.00, 20.00] |" in text
    assert "| ia3 | large | 4 | 2.405 [2.400, 2.410] |" in text
    for name in ("suites_by_trained.svg", "suites_by_loss.svg"):
        assert f"]({name})" in text
        assert "humaneval" in (page.parent / name).read_text()
    with (page.parent / "report.csv").open() as file:
        scores = [row["humaneval"] for row in csv.DictReader(file)]
    assert [scores[:2], scores.count("")] == [["", "10.0"], 2 + 10 + 1]


def test_no_two_methods_look_alike(finished):
    results = [read_result(cell) for cell in finished[:2]]
    names = ["ia3", "vera", "hra", "lora", *(f"lora tuning.lora_r={n}" for n in range(20))]
    compared = compare([replace(results[0], method=name) for name in names])
    styles = {_style(compared, name) for name in names}
    assert len(styles) == len(names)
    assert _style(compared, "lora") == STYLES["lora"]


def test_the_same_order_on_both_sizes_is_answered_yes_and_other_data_is_named(finished, tmp_path):
    for cell in finished:
        write_cell(cell, SMALL[cell.method] - (cell.model == "large"), digest=cell.model)
    results = [read_result(cell) for cell in finished]
    text = write_report(tmp_path / "report", compare(results)).read_text()
    assert "**Yes, here it does.**" in text
    assert "p = 0.0167" in text  # 2 / 5!
    assert "full, is also the best on large." in text
    assert "**Cells were trained on different data**" in text
    assert "not finished" not in text


def test_one_size_and_one_cell_still_make_a_report(finished, tmp_path):
    compared = compare([read_result(finished[0])])
    text = write_report(tmp_path / "report", compared).read_text()
    assert "Not answered: it takes 3 methods or more" in text
    assert "Too few cells" in text


def test_one_seed_gives_no_interval_and_tells_no_methods_apart(finished, tmp_path):
    results = [read_result(cell) for cell in finished if cell.seed == 0]
    text = write_report(tmp_path / "report", compare(results)).read_text()
    assert "**Not shown: there is one seed.**" in text
    assert "is +0.60 (5 methods, p = 0.2333 against random orders)" in text
    assert "Of 10 pairs of methods, 8 keep their order. The best" in text
    assert "over seeds (" not in text
    assert "are distinguished" not in text
    assert "| small -> large | +0.60 | " in text


def test_the_report_says_whether_a_seed_also_draws_the_base(finished):
    results = [read_result(cell) for cell in finished]
    assert "new weights and the base, which is random for small, large;" in render(compare(results))
    mixed = [replace(r, is_base_random=r.model == "small") for r in results]
    assert "new weights and the base, which is random for small;" in render(compare(mixed))
    loaded = [replace(r, is_base_random=False) for r in results]
    assert "the order of the data and new weights, not the base;" in render(compare(loaded))


@pytest.mark.parametrize(
    ("tau", "interval", "p", "verdict"),
    [
        (1.0, (0.4, 1.0), 0.01, "Yes, here it does."),
        (0.8, (0.4, 1.0), 0.01, "Largely, here it does, but not in every pair."),
        (-0.8, (-1.0, -0.4), 0.01, "No: here it predicts the reverse."),
        (0.8, (0.4, 1.0), 0.06, "Not shown: with so few methods"),
        (0.8, (0.0, 1.0), 0.01, "Not shown: with so few methods"),
        (None, None, None, "Not shown."),
    ],
)
def test_the_verdict_follows_the_interval_over_seeds_and_the_p_value(
    finished, tau, interval, p, verdict
):
    [order] = compare([read_result(cell) for cell in finished]).orders
    assert replace(order, tau=tau, tau_interval=interval, p=p).verdict.startswith(verdict)


def test_the_page_says_how_far_the_number_of_seeds_can_be_trusted(finished):
    results = [read_result(cell) for cell in finished]
    five = [replace(r, seed=seed) for r in results[:10] for seed in range(5)]
    assert "The interval draws 5 seeds anew at each size" in render(compare(five))
    three = compare([replace(r, seed=seed) for r in results[:10] for seed in range(3)])
    assert three.orders[0].num_distinct == 10 * 10  # 3 of 3 seeds, in any order: 1 + 6 + 3
    assert "3 seeds allow only 100 distinct resamples" in render(three)
