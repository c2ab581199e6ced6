"""Study files: what they expand to, that they read back equal, and how they refuse nonsense."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from peftport.errors import InputError, PeftportError, UnknownName
from peftport.study.expand import expand
from peftport.study.files import find_study, shipped
from peftport.study.grid import parse_study, study_from, to_mapping
from peftport.study.rates import Search

GOOD = """
name: good
hosts: [a, b]
pairs: all
task: {template: "{text}"}
data: {target: reviews, other: {ref: more.csv, text: body}, settings: [same, other], test: 10}
methods: {lora: {r: 2}, prefix: {}}
source: {steps: 3, seeds: run}
target: {budgets: [0, 2]}
seeds: [0, 1]
extras: {native: {seeds: [0]}, ablations: {inits: [probe], seeds: [1]}}
rates:
  provenance: by hand
  seeds: [100]
  table:
    lora: {any: {any: {lr: 1e-3}, scratch: {lr: 0.003, head-lr: 1.0e-2}}}
    prefix: {a: {any: {lr: 0.01}}, b: {any: {lr: 0.02, score: 0.7}}}
"""


def kinds(name: str) -> Counter[str]:
    return Counter(run.kind for run in expand(find_study(name)))


@pytest.mark.parametrize("name", ["mini", "paper"])
def test_the_grid_is_1440_runs(name: str) -> None:
    runs = [run for run in expand(find_study(name)) if run.kind == "grid"]
    assert len(runs) == 1440 == len(set(runs))
    assert len({r.method for r in runs}) == 4
    assert len({(r.source, r.target) for r in runs}) == 12
    assert len({r.data for r in runs}) == 2
    assert len({r.seed for r in runs}) == 5
    assert {r.init for r in runs} == {"ported", "sampled", "scratch"}


def test_beside_the_grid() -> None:
    assert kinds("quick") == {"grid": 72, "ablation": 24, "source": 4, "native": 8}
    assert kinds("mini") == {"grid": 1440, "source": 160, "native": 80}
    assert kinds("mini-ablations") == {"grid": 864, "source": 96}
    assert kinds("drift") == {"grid": 216, "source": 12, "native": 72}
    search = find_study("quick-rates").rates
    assert isinstance(search, Search)
    heads = len(search.head_rates)
    all_rates = len(search.rates) * heads
    # native on 3 hosts; on 2 pairs five inits, and a probe that has a head's rate alone
    assert kinds("quick-rates") == {"rate": 4 * (3 * all_rates + 2 * (5 * all_rates + heads))}


def test_every_shipped_study_is_sound() -> None:
    assert set(shipped()) == {
        "quick",
        "quick-rates",
        "quick-confirm",
        "hosts",
        "drift",
        "mini",
        "mini-rates",
        "mini-ablations",
        "mini-ablations-rates",
        "paper",
    }
    for name in shipped():
        study = find_study(name)
        assert study.name == name
        assert expand(study)


def test_rates_are_chosen_on_other_seeds_with_the_same_hosts_and_data() -> None:
    for name in ("quick", "mini", "mini-ablations"):
        study, search = find_study(name), find_study(f"{name}-rates")
        assert search.hosts == study.hosts
        assert set(search.pairs) <= set(study.pairs)
        assert search.data.target == study.data.target
        assert search.source.steps == study.source.steps
        assert search.target.budgets[-1] == study.target.budgets[-1]
        assert search.methods == study.methods
        assert search.strategy == study.strategy
        assert not set(search.rates.seeds) & set(study.seeds)


def test_a_study_reads_back_equal() -> None:
    study = parse_study(GOOD)
    again = parse_study(yaml.safe_dump(to_mapping(study)))
    assert again == study
    assert again.digest == study.digest
    assert json.loads(json.dumps(to_mapping(study))) == to_mapping(study)


def test_the_most_specific_rate_is_found() -> None:
    rates = parse_study(GOOD).rates
    assert rates.find("lora", "a", "scratch").head_lr == 0.01  # type: ignore[union-attr]
    assert rates.find("lora", "a", "ported").lr == 0.001  # type: ignore[union-attr]
    assert rates.find("prefix", "b", "ported").lr == 0.02  # type: ignore[union-attr]
    with pytest.raises(InputError, match="no rate for method 'prefix', host 'c'"):
        rates.find("prefix", "c", "ported")  # type: ignore[union-attr]


def test_word_hosts_have_no_head_and_a_measured_floor() -> None:
    runs = expand(parse_study(GOOD), words={"b"})
    to_b = [run for run in runs if run.target == "b"]
    assert not [run for run in to_b if run.init in ("probe", "head-only", "body-only")]
    assert all(run.head_lr is None for run in to_b)
    assert [run for run in to_b if run.kind == "floor"]
    assert [run for run in runs if run.target == "a" and run.init == "probe"]
    assert not [run for run in runs if run.target == "a" and run.kind == "floor"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "methods:",
            "metods:",
            r"unknown key 'metods'; did you mean 'methods'\?|'methods' is missing",
        ),
        ("seeds: run", "sedes: run", "unknown key 'source.sedes'; did you mean 'seeds'"),
        ("test: 10", "tset: 10", "unknown key 'data.tset'; did you mean 'test'"),
        ("name: good", "", "the key 'name' is missing"),
        ("name: good", "name: [x]", "name must be text"),
        ("pairs: all", "pairs: some", "pairs must be 'all' or a list"),
        ("pairs: all", "pairs: [[a, z]]", "pairs must be 'all' or a list"),
        ("pairs: all", "pairs: [[a, a]]", "pairs must be pairs of two hosts"),
        ("steps: 3", "steps: 0", "source.steps must be a whole number >= 1, got 0"),
        ("steps: 3", "steps: yes", "source.steps must be a whole number"),
        ("seeds: run", "seeds: [1, 2]", "source.seeds must be 'run'"),
        ("budgets: [0, 2]", "budgets: [2, 0]", "target.budgets must be in ascending order"),
        ("budgets: [0, 2]", "budgets: []", "target.budgets must be a list with at least one"),
        ("budgets: [0, 2]", "budgets: 5", "target.budgets must be a list"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds must be a list without repeats"),
        ("seeds: [0, 1]", "seeds: [0, -1]", "seeds must be a whole number >= 0"),
        ("seeds: [0, 1]", "seeds: [0, 100]", r"must not overlap .* got \[100\]"),
        ("settings: [same, other]", "settings: [else]", "data.settings must be one of same, other"),
        (", other: {ref: more.csv, text: body}", "", "data.other must be a dataset"),
        ("lr: 0.003", "lr: fast", "scratch.lr must be a number > 0, got 'fast'"),
        ("lr: 0.003", "lr: '1e-3'", "scratch.lr must be a number > 0, got '1e-3'"),
        ("lr: 0.003", "lr: -1", "scratch.lr must be a number > 0"),
        ("lr: 0.003", "lr: .nan", "scratch.lr must be a number > 0"),
        ("provenance: by hand", "", "the key 'rates.provenance' is missing"),
        ("{lora: {r: 2}, prefix: {}}", "[lora]", "methods must be a mapping"),
        ("lora: {r: 2}", "lora: 2", "methods.lora must be a mapping"),
        ("lora: {any:", "lora2: {any:", "rates.table has no rate for method 'lora'"),
        ("inits: [probe]", "inits: [ported]", "extras.ablations.inits must be one of"),
        ("name: good", "name: good\nname: twice", "key 'name' is given twice"),
        ("name: good", "name: &x good", "got|.*"),
        ("hosts: [a, b]", "hosts: &h [a, b]\ninits: *h", "aliases"),
        ("name: good", "name: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("name: good", "1: good", "key 1 must be text"),
        ("name: good", "name: good\n\t", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, message: str) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    if "&x" in new:  # an anchor alone is harmless
        assert parse_study(text).name == "good"
        return
    with pytest.raises(InputError, match=message) as error:
        expand(parse_study(text, "file.yaml"))
    assert "\n" not in str(error.value)
    assert "file.yaml" in str(error.value) or "rates.table" in str(error.value)


SEARCH = "rates: {search: {rates: [0.1], head-rates: [0.1], seeds: [SEED]}}\n"


def test_a_search_is_on_other_seeds_and_the_targets_data() -> None:
    grid = GOOD[: GOOD.index("rates:")].replace("extras:", "# ")
    with pytest.raises(InputError, match=r"rates.seeds must not overlap .* got \[1\]"):
        parse_study(grid + SEARCH.replace("SEED", "1"))
    with pytest.raises(InputError, match=r"data.settings must be \[same\]"):
        parse_study(grid + SEARCH.replace("SEED", "7"))
    same = grid.replace("settings: [same, other]", "settings: [same]")
    runs = expand(parse_study(same + SEARCH.replace("SEED", "7")))
    assert {run.seed for run in runs} == {run.source_seed for run in runs} == {7}


def test_rates_come_from_a_file(tmp_path: Path) -> None:
    grid, rates = GOOD[: GOOD.index("rates:")], GOOD[GOOD.index("rates:") :]
    (tmp_path / "r.yaml").write_text(rates)
    (tmp_path / "s.yaml").write_text(grid + "rates: {from: r.yaml}\n")
    assert find_study(str(tmp_path / "s.yaml")).digest == parse_study(GOOD).digest
    (tmp_path / "s.yaml").write_text(grid + "rates: {from: nowhere.yaml}\n")
    with pytest.raises(InputError, match=r"cannot read .*nowhere.yaml"):
        find_study(str(tmp_path / "s.yaml"))


def test_an_unknown_study_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'quick'"):
        find_study("quik")
    with pytest.raises(InputError, match="cannot read"):
        find_study("no/such.yaml")
    with pytest.raises(InputError, match="is a folder"):
        find_study(str(tmp_path))
    (tmp_path / "big.yaml").write_text("#" * 1_100_000)
    with pytest.raises(InputError, match="larger than"):
        find_study(str(tmp_path / "big.yaml"))
    (tmp_path / "deep.yaml").write_text("[" * 20_000)
    with pytest.raises(InputError, match="not valid YAML"):
        find_study(str(tmp_path / "deep.yaml"))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3)
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_of_a_file_is_read_or_refused(data: st.DataObject) -> None:
    """No value anywhere gives anything but a study or one line."""
    facts: dict[str, Any] = yaml.safe_load(GOOD)
    node: Any = facts
    while True:
        key = data.draw(
            st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node)))
        )
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(VALUES)
    try:
        expand(study_from(facts, "file.yaml", Path()))
    except PeftportError as error:
        assert "\n" not in str(error)
