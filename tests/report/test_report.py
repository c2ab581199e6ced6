"""The page, the tables and the files: complete, escaped, and equal to what pandas computes."""

from __future__ import annotations

import base64
import hashlib
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from peftport.errors import InputError
from peftport.report import html, output, terminal
from peftport.report.build import Report, build
from peftport.report.evidence import tidy, visible
from peftport.report.figures.panels import shown
from peftport.report.figures.style import COLOURS, to_svg
from peftport.report.source import read_evidence
from peftport.report.tables import to_markdown
from peftport.report.views import score_view

HOSTILE = '<script>alert("x")</script> & \u202ecod\u200b\'"{{7*7}}${7}'
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that tags nest and collects elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def report(study: Any) -> Report:
    return build(study(sentences=100).evidence(), draws=100)


def test_page_parses_and_runs_only_its_own_scripts(report: Report) -> None:
    text = html.render(report)
    page = Page(text)
    # the data, the drawing library, the page's own script
    assert page.tags.count("script") == 3
    policy = next(v for _, v in page.attributes if v and v.startswith("default-src"))
    assert policy is not None and "default-src 'none'" in policy and "unsafe-eval" not in policy
    bodies = text.split("<script>")[1:]
    digests = [hashlib.sha256(b.split("</script>")[0].encode()).digest() for b in bodies]
    allowed = policy.split("script-src ")[1].split()
    assert allowed == [f"'sha256-{base64.b64encode(d).decode()}'" for d in digests]
    names = {name for name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert links and all(str(link).startswith("#") for link in links)
    anchors = {value for name, value in page.attributes if name == "id"}
    assert {str(link)[1:] for link in links} <= anchors
    assert "url(" not in text.split("<script")[0] and "@import" not in text.split("<script")[0]
    assert len(text) < 2_000_000
    told = " ".join(page.text)
    for words in ("Four claims", "Leak guard", "1,234", "Machine", "Nothing: every planned run"):
        assert words in told


def test_every_figure_says_where_its_numbers_come_from(report: Report) -> None:
    text = html.render(report)
    panels = shown(report.explored)
    assert [p.name for p in panels] == ["curves", "effects", "pairs", "heat", "saved"]
    for panel in panels:
        assert f'data-rows="{panel.name}"' in text
        assert f'id="data-{panel.name}"' in text
        assert f'id="{panel.how}"' in text


def test_hostile_names_are_shown_as_text(study: Any) -> None:
    made = study(methods=(HOSTILE, "lora"), pairs=((HOSTILE, "b"), ("b", HOSTILE)), sentences=60)
    # scores are looked up by visible keys
    scores = {(visible(key), budget): value for (key, budget), value in made.scores.items()}
    evidence = made.evidence(
        name=HOSTILE,
        facts=[("Host", HOSTILE)],
        failed=pd.DataFrame([{"kind": "grid", "method": HOSTILE, "error": HOSTILE}]),
        scores=lambda key, budget: scores.get((key, budget)),
    )
    text = html.render(build(evidence, draws=50))
    page = Page(text)
    assert page.tags.count("script") == 3
    told = "".join(page.text)
    assert visible(HOSTILE) in told
    assert '<script>alert("x")</script>' in told
    assert "{{7*7}}" in told and "49}" not in told
    assert '<script>alert("x")</script>' not in text
    assert "\u202e" not in text and "\u200b" not in text and "\\u202e" in told


def test_figures_keep_only_drawing_elements(report: Report) -> None:
    charts = output.charts(report)
    assert list(charts)[:2] == ["curves", "differences"]
    for name in ("differences", "curves-lora"):
        chart, label = charts[name]
        svg = to_svg(chart, label)
        root = ET.fromstring(svg)
        assert root.get("aria-label") == label
        kinds = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert kinds <= {"svg", "g", "path", "text", "tspan", "line", "rect", "circle"}
        assert "currentColor" in svg
        points = [e for e in root.iter() if e.get("fill") in COLOURS.values()]
        assert points


def test_scores_equal_what_pandas_computes_from_the_export(study: Any, tmp_path: Path) -> None:
    from peftport.report.output import write_tables

    made = study(sentences=100)
    export = made.frame()
    write_tables(build(made.evidence(), draws=50), tmp_path)
    table = pd.read_csv(tmp_path / "scores.csv")
    again = (
        export[export["kind"] == "grid"]
        .pivot_table(index=["method", "source", "target", "data", "init", "budget"],
                     columns="metric", values="value", aggfunc="mean")
    )  # fmt: skip
    for metric in ("balanced_accuracy", "accuracy", "auc"):
        got = table.set_index(list(again.index.names))[metric].sort_index()
        np.testing.assert_allclose(got, again[metric].sort_index())
    differences = pd.read_csv(tmp_path / "differences.csv")
    cell = differences.query(
        "metric == 'accuracy' and method == 'lora' and pair == 'all' and budget == 10"
        " and compared == 'ported − scratch'"
    )["difference"].item()
    own = export.query("metric == 'accuracy' and method == 'lora' and budget == 10")
    own = own[own["kind"] == "grid"].pivot_table(
        index=["source", "target", "seed"], columns="init", values="value"
    )
    assert cell == pytest.approx((own["ported"] - own["scratch"]).mean())
    assert (tmp_path / "scores.md").read_text().count("\n") == len(table) + 2
    assert not list(tmp_path.glob("*.tmp"))


def test_ablations_are_compared_on_their_own_seeds(study: Any) -> None:
    made = study(methods=("lora",), sentences=100)
    table = build(made.evidence(), draws=50).tables["ablations"]
    own = made.frame().query(
        "metric == 'balanced_accuracy' and seed == 0 and budget == 0 and target == 'small'"
        " and kind in ['grid', 'ablation']"
    ).set_index("init")["value"]  # fmt: skip
    line = table.query("budget == 0 and target == 'small'").iloc[0]
    for init in ("ported", "scratch", "head-only", "body-only", "probe"):
        assert line[init] == pytest.approx(own[init])
    assert line["seeds"] == 1


def test_partial_store_lists_exactly_what_is_missing(study: Any, tmp_path: Path) -> None:
    folder = study(methods=("lora",), sentences=60).store(
        tmp_path / "s", skip=["lora/big/small/same/1/ported"], fail=["lora/small/2/scratch"]
    )
    evidence = read_evidence(folder)
    made = build(evidence, draws=50)
    assert terminal.status(made) == "16 of 18 grid runs finished, 1 missing, 1 failed"
    missing = evidence.missing[["source", "target", "seed", "init"]].values.tolist()
    assert missing == [["big", "small", "1", "ported"]]
    assert evidence.failed["error"].tolist() == ["diverged"]
    shown = " ".join(Page(html.render(made)).text)
    assert "1 planned runs have no result yet" in shown and "diverged" in shown
    # a difference needs both runs of a pair: seed 1 has no ported, seed 2 no scratch
    line = next(f for f in made.claims[0].findings if f.pair == "big → small" and f.budget == 0)
    assert line.interval is not None and line.interval.runs == 1
    assert line.answer == "not enough data"


def test_store_and_frame_give_the_same_report(study: Any, tmp_path: Path) -> None:
    made = study(methods=("lora",), sentences=60)
    one = build(made.evidence(), draws=50).tables["scores"]
    two = build(read_evidence(made.store(tmp_path / "s")), draws=50).tables["scores"]
    pd.testing.assert_frame_equal(one, two)


def test_facts_of_a_store_are_told(study: Any, tmp_path: Path) -> None:
    evidence = read_evidence(study(methods=("lora",), sentences=60).store(tmp_path / "s"))
    facts = dict(evidence.facts)
    assert facts["Host big"] == "bert, 2 encoder layers, 8 wide, weights weights of b"
    assert facts["Learning rates"] == "invented"
    assert facts["Versions"] == "python , numpy 2"
    assert evidence.one_source
    assert dict(evidence.guard) == {"validation and test": "1,234"}
    assert evidence.sizes["big"] == evidence.sizes["big-tuned"] != evidence.sizes["small"]


def test_another_store_lends_its_ablations(study: Any, tmp_path: Path) -> None:
    plain = study(methods=("lora",), sentences=60, ablations=False).store(tmp_path / "a")
    extra = study(methods=("lora",), sentences=60, seed=1).store(tmp_path / "b")
    evidence = read_evidence(plain, [extra])
    table = build(evidence, draws=50).tables["ablations"]
    assert len(table) == 4 and table["head-only"].notna().all()
    other = study(methods=("lora",), sentences=80).store(tmp_path / "c")
    with pytest.raises(InputError, match="other test sentences"):
        read_evidence(plain, [other])


def test_nothing_finished_is_one_line(study: Any, tmp_path: Path) -> None:
    made = study(methods=("lora",), sentences=60)
    folder = made.store(tmp_path / "s", skip=["lora", "big", "small"])
    with pytest.raises(InputError, match="has no finished run to report; run it first"):
        build(read_evidence(folder))


def test_one_class_runs_are_counted(study: Any) -> None:
    made = study(methods=("lora",), sentences=60)
    flat = np.tile([1.0, 0.0], (60, 1))
    scores = {k: flat if "scratch" in k[0] else v for k, v in made.scores.items()}
    evidence = made.evidence(scores=lambda key, budget: scores[key, budget])
    made_report = build(evidence, draws=50)
    counts = made_report.tables["scores"].groupby("init")["one_class"].sum()
    assert counts["scratch"] == 12 and counts["ported"] == 0
    assert {r[-1] for r in score_view(made_report, "scores").rows} == {"0 of 6", "6 of 6"}


def test_an_export_does_not_say_that_no_run_predicts_one_class(study: Any) -> None:
    evidence = study(methods=("lora",), sentences=60).evidence(labels=np.array([], dtype=int))
    made_report = build(evidence, draws=50)
    assert made_report.tables["scores"]["one_class"].isna().all()
    assert {r[-1] for r in score_view(made_report, "scores").rows} == {"unknown"}


def test_word_hosts_have_the_host_alone_as_floor(study: Any) -> None:
    made = study(lambda run: 0.7, methods=("lora",), sentences=200, ablations=False)
    made.add("floor", "", "small", "small", "same", 0, "host", (0,))
    evidence = made.evidence(floors={"small": "host"})
    name, value = evidence.floor("small", "balanced_accuracy")
    assert name == "host alone" and value == pytest.approx(0.7, abs=0.1) and value != 0.5
    assert evidence.floor("big", "balanced_accuracy") == ("constant prediction", 0.5)


def test_rate_rows_are_no_evidence(study: Any) -> None:
    frame = study(methods=("lora",), sentences=60).frame()
    assert tidy(frame.assign(kind="rate")).empty


def test_terminal_and_json_have_the_four_answers(report: Report) -> None:
    text = terminal.text(report)
    assert text.count("YES") == 2 and "NOT ENOUGH DATA" in text
    assert all(len(line) < 160 for line in text.splitlines())
    facts = json.loads(json.dumps(terminal.data(report), allow_nan=False))
    assert [claim["answer"] for claim in facts["claims"]][:2] == ["yes", "yes"]
    assert len(facts["scores"]) == len(report.tables["scores"])


def test_markdown_escapes_pipes() -> None:
    assert to_markdown(pd.DataFrame({"a|b": ["c|d"], "n": [0.12345]})) == (
        "| a\\|b | n |\n|---|---|\n| c\\|d | 0.123 |\n"
    )
