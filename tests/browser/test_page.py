"""The page in a real browser: drawn offline, filters and hover work, hostile names stay text."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftport.report import html
from peftport.report.build import Report, build
from peftport.report.evidence import Evidence, tidy
from peftport.report.exported import read_export
from peftport.train.metrics import metrics

HOSTILE = "<script>window.hacked=1</script>\"'><img src=x onerror=window.hacked=1>\u202eevil`${1}"
HOSTS = ("minilm", "minilm-tuned", HOSTILE)
A4 = 718  # pixels between the margins of a page
INITS = {"ported": 0.75, "sampled": 0.5, "scratch": 0.52}
FIGURES = ("curves", "effects", "pairs", "heat", "directions", "saved")


def _evidence() -> Evidence:
    """Two methods on six pairs, two data settings, three seeds; the second metric is AUC."""
    import pandas as pd

    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    lines: list[dict[str, Any]] = []

    def add(kind: str, method: str, source: str, target: str, data: str, seed: int, init: str,
            budgets: tuple[int, ...], truth: float) -> None:  # fmt: skip
        key = "/".join(map(str, (kind, method, source, target, data, seed, init)))
        for budget in budgets:
            right = rng.random(40) < truth + 0.004 * budget
            margin = (2 * np.where(right, labels, 1 - labels) - 1) * rng.exponential(1.0, 40)
            scores = np.stack([-margin, margin], axis=1)
            for metric, value in metrics(scores, labels).items():
                lines.append({"kind": kind, "method": method, "source": source, "target": target,
                              "data": data, "seed": seed, "init": init, "budget": budget,
                              "metric": metric, "value": value, "key": key})  # fmt: skip

    for method in ("lora", "prefix"):
        for source in HOSTS:
            for target in HOSTS:
                if source != target:
                    for data in ("same", "other"):
                        for seed in range(3):
                            for init, truth in INITS.items():
                                add(
                                    "grid", method, source, target, data, seed, init, (0, 10), truth
                                )
            add("native", method, source, source, "same", 0, "native", (100,), 0.9)
    return Evidence(
        cells=tidy(pd.DataFrame(lines)),
        scores=lambda key, budget: None,
        labels=labels,
        name=HOSTILE,
        facts=[("Host", HOSTILE)],
        digest=HOSTILE,
        volumes={},
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return build(_evidence(), draws=60)


@pytest.fixture(scope="module")
def file(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html.render(report))
    return path


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_opens_offline_and_draws_every_figure(
    opened: Callable[..., Any], file: Path, width: int, dark: bool
) -> None:
    seen = opened(file, width, dark)
    assert seen.errors == []
    assert seen.requests == [file.as_uri()]
    for name in FIGURES:
        charts = seen.page.locator(f"#figure-{name} svg")
        assert charts.count() >= 1, name
        for chart in charts.all():
            box = chart.bounding_box()
            assert box["width"] > 100 and box["height"] > 50, name
        drawn = [f"#figure-{name} svg .mark-{kind} path" for kind in ("symbol", "rect")]
        assert seen.page.locator(", ".join(drawn)).count() > 0, name
    # nothing is wider than the screen
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    paper = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")


def test_filters_change_figures_tables_and_runs(opened: Callable[..., Any], file: Path) -> None:
    seen = opened(file)
    page = seen.page
    before = page.text_content("#data-effects")
    assert page.locator("#figure-curves figure").count() == 2
    seen.choose("method", "prefix")
    assert page.locator("#figure-curves figcaption").all_inner_texts() == ["prefix"]
    seen.choose("data", "other")
    seen.choose("metric", "auc")
    after = page.text_content("#data-effects")
    assert after != before and "prefix" in after and "lora" not in after
    listed = page.inner_text("#rows-count")
    assert listed.startswith("111 lines")  # 1 method x 6 pairs x 3 seeds x 3 inits x 2, 3 natives
    assert "lora" not in page.inner_text("#rows-table tbody")
    page.click("#all-again")
    seen.drawn()
    assert page.locator("#figure-curves figure").count() == 2
    assert seen.errors == []


def test_the_data_of_a_figure_are_the_report_s(
    opened: Callable[..., Any], file: Path, report: Report
) -> None:
    seen = opened(file)
    pair = "minilm → minilm-tuned"
    seen.choose("pair", pair)
    seen.choose("data", "same")
    table = report.explored["effects"]
    wanted = table[(table["metric"] == "balanced_accuracy") & (table["pair"] == pair)]
    wanted = wanted[wanted["data"] == "same"]
    seen.page.locator("#effects summary").click()
    told = [row.split("\t") for row in seen.page.inner_text("#data-effects tbody").split("\n")]
    told = [row for row in told if len(row) > 3]
    assert len(told) == len(wanted) == 2 * 3 * 2
    number = {(row[0], row[1], row[2]): float(row[3]) for row in told}
    for line in wanted.to_dict("records"):
        at = (line["control"], line["method"], str(line["budget"]))
        assert number[at] == pytest.approx(line["mean"], abs=6e-4)


def test_hovering_tells_the_run(opened: Callable[..., Any], file: Path) -> None:
    seen = opened(file)
    page = seen.page
    assert page.locator("#tip").is_hidden()
    marks = page.locator("#figure-curves svg").first.locator(".layer_0_marks path")
    assert marks.count() == 6 * 2 * 3 * 3 * 2  # every run of the method
    marks.first.hover(force=True)
    page.wait_for_selector("#tip:not([hidden])", timeout=5000)
    told = page.inner_text("#tip")
    for word in ("run", "hosts", "seed", "score"):
        assert word in told
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_the_runs_behind_a_figure_are_listed_and_saved(
    opened: Callable[..., Any], file: Path, tmp_path: Path
) -> None:
    seen = opened(file)
    page = seen.page
    page.locator('a[data-rows="directions"]').click()
    assert "Which way porting goes" in page.inner_text("#rows-of")
    with page.expect_download() as waiting:
        page.click("#rows-csv")
    waiting.value.save_as(tmp_path / "runs.csv")
    lines = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert {line["init"] for line in lines} == {"ported", "scratch"}
    assert {line["budget"] for line in lines} == {"0"}
    assert len(lines) == 2 * 6 * 2 * 3 * 2
    assert seen.errors == []


def test_filters_are_reached_and_changed_by_keyboard(
    opened: Callable[..., Any], file: Path
) -> None:
    seen = opened(file)
    page = seen.page
    page.focus("#filters select[name=metric]")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "method"
    page.evaluate("document.body.dataset.state = ''")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    seen.drawn()
    assert page.eval_on_selector("select[name=method]", "s => s.value") == "lora"
    assert page.locator("#figure-curves figcaption").all_inner_texts() == ["lora"]


def test_hostile_names_are_text_and_run_nothing(opened: Callable[..., Any], file: Path) -> None:
    seen = opened(file)
    page = seen.page
    shown = HOSTILE.replace("\u202e", "\\u202e")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert shown in page.inner_text("h1 + p, .over")
    assert shown in page.inner_text("#filters select[name=pair]")
    seen.choose("pair", f"{shown} → minilm")
    page.locator("#pairs summary").click()
    assert shown in page.inner_text("#data-pairs")
    assert page.locator("#figure-heat svg text", has_text="<script>").count() >= 1
    assert page.evaluate("window.hacked") is None
    assert seen.errors == [] and len(seen.requests) == 1


def test_a_script_that_got_in_would_not_run(
    opened: Callable[..., Any], file: Path, tmp_path: Path
) -> None:
    """Were a name not escaped, the page's policy would still stop it."""
    broken = tmp_path / "broken.html"
    broken.write_text(file.read_text().replace("<header>", "<header><script>hacked=1</script>"))
    seen = opened(broken)
    assert seen.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in error for error in seen.errors)


def test_printed_pages_keep_figures_and_drop_controls(
    opened: Callable[..., Any], file: Path
) -> None:
    seen = opened(file, dark=True)
    seen.page.emulate_media(media="print", color_scheme="dark")
    assert seen.page.locator("#filters").is_hidden()
    assert seen.page.locator("#figure-curves svg").first.is_visible()
    ink = seen.page.evaluate("getComputedStyle(document.body).color")
    assert ink == "rgb(0, 0, 0)"


def test_nothing_is_wider_than_a_printed_page(opened: Callable[..., Any], tmp_path: Path) -> None:
    export = Path(__file__).parents[2] / "docs" / "results" / "quick" / "export.csv"
    made = tmp_path / "quick.html"
    made.write_text(html.render(build(read_export(export), draws=40)))
    seen = opened(made, width=A4)
    assert seen.page.locator("#explore").is_visible()
    seen.page.emulate_media(media="print")
    seen.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= A4
