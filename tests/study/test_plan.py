"""Sharing of trainings, their order, and keys that move exactly when a number could."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import BertConfig, T5Config

from peftport.data.tasks import Task
from peftport.errors import InputError
from peftport.hosts.families.base import family_of
from peftport.hosts.spec import HostSpec
from peftport.methods.base import Module, methods
from peftport.porting.plan import plan_port
from peftport.study.banks import compose
from peftport.study.files import find_study
from peftport.study.grid import Study, parse_study
from peftport.study.materials import OTHER, SAME, TARGET, Materials, Part
from peftport.study.plan import Plan, Training, make_plan, strategy_of
from peftport.study.rates import Rate, Search, Table


def spec_of(name: str, word: bool = False) -> HostSpec:
    """A host by the size in its name; tuned ones differ in their weights alone."""
    base = "base" in name
    config: Any = (
        T5Config(d_model=32, d_kv=6, num_layers=2, num_heads=4, d_ff=48, vocab_size=50)
        if word
        else BertConfig(
            hidden_size=256 if base else 384,
            num_hidden_layers=1 if base else 2,
            num_attention_heads=8,
            intermediate_size=32,
            vocab_size=50,
        )
    )
    spec = family_of(config.model_type).describe(config)
    return replace(spec, tokenizer="vocabulary", fingerprint=f"weights of {name}")


def materials_of(study: Study, word: bool = False) -> Materials:
    specs = {name: spec_of(name, word) for name in study.hosts}
    part = Part(tuple(f"text {i}" for i in range(20)), (0, 1) * 10)
    configs = {}
    for method, given in study.methods.items():
        made = methods.get(method)()
        for name, spec in specs.items():
            default = made.default_config(spec).to_json()
            configs[(method, name)] = made.config_class.from_json({**default, **given})
    return Materials(
        study, Task(), {TARGET: part, SAME: replace(part, texts=part.texts[::-1]), OTHER: part},
        part, part.texts, specs, configs, {},
    )  # fmt: skip


def inits(plan: Plan) -> Counter[str]:
    return Counter(t.init for t in plan.trainings.values())


def test_distinct_trainings_of_the_grid_are_counted_once() -> None:
    plan = make_plan(materials_of(find_study("mini")))
    # 4 methods x 4 hosts x 2 data settings x 5 seeds; scratch is shared by sources and settings
    assert inits(plan) == {"native": 160, "ported": 480, "sampled": 480, "scratch": 80}
    assert len(plan.rows) == 1440 + 160 + 80
    keys = {key for run, key in plan.rows if run.kind == "native"}
    assert keys == {key for run, key in plan.rows if run.kind == "source" and run.data == "same"}


def test_distinct_trainings_of_quick() -> None:
    plan = make_plan(materials_of(find_study("quick")))
    assert inits(plan) == {
        "native": 12, "ported": 24, "sampled": 24, "scratch": 24,
        "head-only": 8, "body-only": 8, "probe": 2,
    }  # fmt: skip


def test_sources_come_first_and_hosts_are_not_loaded_twice() -> None:
    plan = make_plan(materials_of(find_study("mini")))
    first, second = plan.waves
    assert sorted([*first, *second]) == sorted(plan.trainings)
    needed = {s for t in plan.trainings.values() for s in t.sources}
    assert {plan.trainings[key] for key in first} == needed
    assert all(not plan.trainings[key].sources for key in first)
    for wave in plan.waves:
        hosts = [plan.trainings[key].host for key in wave]
        pairs = [(plan.trainings[key].source_host, plan.trainings[key].host) for key in wave]
        for names in (hosts, pairs):
            blocks = [a for a, b in zip(names, [None, *names], strict=False) if a != b]
            assert len(blocks) == len(set(blocks))


def test_a_search_carries_over_the_best_of_its_candidates() -> None:
    plan = make_plan(materials_of(find_study("quick-rates")))
    carried = [t for t in plan.trainings.values() if t.init == "ported"]
    search = find_study("quick-rates").rates
    assert isinstance(search, Search)
    short_list = {(lr, head_lr) for lr in search.rates for head_lr in search.head_rates}
    assert all({(s.lr, s.head_lr) for s in t.sources} == short_list for t in carried)
    assert all({s.seed for s in t.sources} == {100} == {t.seed} for t in carried)


def test_what_does_not_fit_a_host_fails_before_any_compute() -> None:
    study = replace(find_study("quick"), inits=("scratch",), methods={"compacter": {"n": 7}})
    with pytest.raises(InputError, match=r"compacter\.n = 7 must divide"):
        make_plan(materials_of(replace(study, extras=replace(study.extras, ablation_seeds=()))))


def test_what_cannot_be_ported_fails_before_any_compute() -> None:
    study = find_study("quick")
    wrong = replace(study, strategy=replace(study.strategy, otherwise="copy"))
    with pytest.raises(InputError, match="copy"):
        make_plan(materials_of(wrong))
    with pytest.raises(InputError, match="unknown strategy 'ridgy'; did you mean 'ridge'"):
        make_plan(materials_of(replace(study, strategy=replace(study.strategy, otherwise="ridgy"))))


TEXT = """
name: keys
hosts: [large, large-tuned, base]
pairs: [[large, large-tuned], [large, base]]
data: {target: reviews}
methods: {lora: {}, bottleneck: {}}
source: {steps: 3, seeds: [0]}
target: {budgets: [0, 2]}
seeds: [0, 1]
extras: {native: {seeds: [0]}, ablations: {seeds: [0]}}
rates:
  provenance: none
  table:
    lora: {any: {any: {lr: 0.1}, probe: {lr: 0.2}}}
    bottleneck: {any: {any: {lr: 0.1}, probe: {lr: 0.2}}}
"""
Change = Callable[[Materials], Materials]
Moved = Callable[[Training], bool]


def study(change: Callable[[Study], Study]) -> Change:
    return lambda m: materials_of(change(m.study))


def with_spec(host: str, **facts: Any) -> Change:
    return lambda m: replace(m, specs={**m.specs, host: replace(m.specs[host], **facts)})


def with_part(name: str) -> Change:
    return lambda m: replace(m, parts={**m.parts, name: Part(("new",), (0,))})


def with_rate(method: str, host: str, init: str) -> Change:
    def change(old: Study) -> Study:
        assert isinstance(old.rates, Table)
        rates = {**old.rates.rates, (method, host, init): Rate(0.5)}
        return replace(old, rates=replace(old.rates, rates=rates))

    return study(change)


def renamed(m: Materials) -> Materials:
    """The same hosts under other names."""
    new = materials_of(parse_study(TEXT.replace("large", "huge")))
    specs = {name: m.specs[name.replace("huge", "large")] for name in new.specs}
    return replace(new, specs=specs)


def touches(host: str) -> Moved:
    return lambda t: host in (t.host, t.source_host)


def carried(t: Training) -> bool:
    return bool(t.sources)


def ridge(t: Training) -> bool:
    return carried(t) and t.host == "base"


def both(*tests: Moved) -> Moved:
    return lambda t: all(test(t) for test in tests)


def always(_: Training) -> bool:
    return True


def never(_: Training) -> bool:
    return False


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        (study(lambda s: replace(s, name="else")), never),
        (study(lambda s: replace(s, base="/else")), never),
        (renamed, never),
        (study(lambda s: replace(s, seeds=(0, 1, 2))), never),
        (study(lambda s: replace(s, pairs=s.pairs[:1])), never),
        (study(lambda s: replace(s, methods={**s.methods, "lora": {"r": 2}})),
         lambda t: t.method == "lora"),
        (study(lambda s: replace(s, methods={**s.methods, "lora": {"alpha": 2}})),
         lambda t: t.method == "lora"),
        (study(lambda s: replace(s, head="mean")), always),
        (lambda m: replace(m, task=Task(template="say {text}")), always),
        (lambda m: replace(m, task=Task(max_tokens=32)), always),
        (lambda m: replace(m, task=Task(verbalisers=("no", "yes"))), never),
        (study(lambda s: replace(s, source=replace(s.source, steps=4))),
         lambda t: t.init == "native" or carried(t)),
        (study(lambda s: replace(s, source=replace(s.source, batch=4))),
         lambda t: t.init == "native" or carried(t)),
        (study(lambda s: replace(s, source=replace(s.source, seed=5))),
         lambda t: carried(t) or (t.init == "native" and t.host == "large")),
        (study(lambda s: replace(s, target=replace(s.target, batch=4))),
         lambda t: t.init != "native"),
        (study(lambda s: replace(s, target=replace(s.target, budgets=(0, 2, 3)))),
         lambda t: t.init != "native"),
        (study(lambda s: replace(s, sampled="permuted")), lambda t: t.init == "sampled"),
        (study(lambda s: replace(s, strategy=replace(s.strategy, texts=5))), never),
        (lambda m: replace(m, unlabelled=("new",)), ridge),
        (study(lambda s: replace(s, strategy=replace(s.strategy, norm_match=True))), carried),
        (study(lambda s: replace(s, strategy=replace(s.strategy, otherwise="pad"))), ridge),
        (study(lambda s: replace(s, strategy=replace(s.strategy, same_shape="pad"))),
         both(carried, touches("large-tuned"))),
        (with_spec("base", fingerprint="other"), touches("base")),
        (with_spec("large", fingerprint="other"), touches("large")),
        (with_part(TARGET), lambda t: t.part == TARGET),
        (with_part(SAME), lambda t: t.part == SAME or carried(t)),
        (with_part(OTHER), never),
        (lambda m: replace(m, measured=Part(("new",), (0,))), always),
        (with_rate("lora", "any", "scratch"), lambda t: t.method == "lora" and t.init == "scratch"),
        (with_rate("lora", "large", "native"),
         lambda t: (t.method == "lora" and t.host == "large")
         or (t.sources != () and t.sources[0].method == "lora")),
        (with_rate("lora", "base", "ported"),
         lambda t: (t.method, t.init, t.host) == ("lora", "ported", "base")),
    ],
)  # fmt: skip
def test_keys_move_exactly_when_a_number_could(change: Change, moved: Moved) -> None:
    before = materials_of(parse_study(TEXT))
    old, new = make_plan(before), make_plan(change(before))
    stayed = set(old.trainings) & set(new.trainings)
    # rows dropped by the change itself say nothing
    gone = {key for run, key in old.rows if run.source == "large" and run.target == "base"}
    dropped = gone if len(change(before).study.pairs) == 1 else set()
    for key, training in old.trainings.items():
        if key in dropped or (len(dropped) and training.host == "base"):
            continue
        assert (key not in stayed) == moved(training), training


def test_keys_of_different_trainings_differ() -> None:
    plan = make_plan(materials_of(parse_study(TEXT)))
    assert len({str(facts) for facts in plan.ingredients.values()}) == len(plan.trainings)


def test_a_word_host_answers_with_its_words() -> None:
    before = materials_of(parse_study(TEXT), word=True)
    plan = make_plan(before)
    assert inits(plan)["host"] == 2
    assert not {"probe", "head-only", "body-only"} & set(inits(plan))
    other = make_plan(replace(before, task=Task(verbalisers=("no", "yes"))))
    assert not set(plan.trainings) & set(other.trainings)


def sizes(banks: tuple[tuple[str, ...], ...]) -> Counter[int]:
    return Counter(len(keys) for keys in banks)


@pytest.mark.parametrize("name", ["mini", "quick", "quick-rates", "mini-ablations"])
@pytest.mark.parametrize("size", [1, 7, 16])
def test_every_training_is_in_one_bank_of_its_like(name: str, size: int) -> None:
    materials = materials_of(find_study(name))
    plan = make_plan(materials)
    for wave, banks in zip(plan.waves, compose(plan, size), strict=True):
        assert sorted(key for keys in banks for key in keys) == sorted(wave)
        assert set(sizes(banks)) <= set(range(1, size + 1))
        for keys in banks:
            alike = {
                (t.host, t.method, t.batch, t.budgets, t.init == "probe")
                for t in map(plan.trainings.__getitem__, keys)
            }
            assert len(alike) == 1
            forms = [form_of(materials, plan.trainings[key]) for key in keys]
            assert all(form == forms[0] for form in forms)


def form_of(materials: Materials, t: Training) -> Any:
    """Config and shapes of the module that a training starts with, the long way round."""
    if t.init == "probe":
        return "probe"
    at_home = t.sources[0].host if t.sources else t.host
    spec, config = materials.specs[at_home], materials.configs[(t.method, at_home)]
    method = methods.get(t.method)()
    state = method.init(spec, config, torch.Generator().manual_seed(0))
    if t.sources:
        plan = plan_port(
            spec, materials.specs[t.host], Module(config, state, {}, spec.fingerprint),
            strategy=strategy_of(materials, at_home, t.host), have_texts=True,
        )  # fmt: skip
        spec, config = plan.target, plan.target_config
    return config, method.shapes(spec, config)


def test_what_is_alike_shares_banks_and_banks_are_full() -> None:
    plan = make_plan(materials_of(find_study("mini")))
    first, second = compose(plan, 16)
    assert sizes(first) == {10: 16}  # 4 hosts x 4 methods, 5 seeds on 2 datasets each
    by_method = {
        method: tuple(keys for keys in second if plan.trainings[keys[0]].method == method)
        for method in find_study("mini").methods
    }
    # per host 5 scratch and 3 x 20 carried modules: lora and prefix all alike; the other two from
    # a host of another width have another config (their width is d_model / reduction): 25 and 40
    assert sizes(by_method["lora"]) == sizes(by_method["prefix"]) == {13: 20}
    wide = {12: 4, 13: 12, 14: 4}
    assert sizes(by_method["bottleneck"]) == sizes(by_method["compacter"]) == wide
    lora = by_method["lora"]
    mixed = {frozenset(plan.trainings[key].init for key in keys) for keys in lora}
    assert {"scratch", "ported", "sampled"} in mixed


def test_a_reparameterised_prefix_shares_no_bank_with_what_was_ported() -> None:
    study = find_study("mini")
    plan = make_plan(materials_of(replace(study, methods={"prefix": {"hidden": 16}})))
    for keys in compose(plan, 64)[1]:
        assert len({plan.trainings[key].init == "scratch" for key in keys}) == 1


def test_banks_keep_hosts_loaded_and_the_same_sentences_together() -> None:
    plan = make_plan(materials_of(find_study("mini")))
    for banks in compose(plan, 16):
        hosts = [plan.trainings[keys[0]].host for keys in banks]
        firsts = [(h, plan.trainings[k[0]].source_host) for h, k in zip(hosts, banks, strict=True)]
        for names in (hosts, firsts):
            blocks = [a for a, b in zip(names, [None, *names], strict=False) if a != b]
            assert len(blocks) == len(set(blocks))
    carried = [plan.trainings[key] for key in plan.waves[1] if plan.trainings[key].sources]
    read = [(t.host, t.source_host, t.method, t.seed) for t in carried]
    blocks = [a for a, b in zip(read, [None, *read], strict=False) if a != b]
    assert len(blocks) == len(set(blocks)) == 4 * 3 * 4 * 5


def test_the_host_alone_is_a_bank() -> None:
    plan = make_plan(materials_of(parse_study(TEXT), word=True))
    banks = [keys for wave in compose(plan, 16) for keys in wave]
    alone = [keys for keys in banks if plan.trainings[keys[0]].init == "host"]
    assert [len(keys) for keys in alone] == [1, 1]
    assert all(plan.configs[keys[0]] is None for keys in alone)
