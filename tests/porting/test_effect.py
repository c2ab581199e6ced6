"""What effect and distil add to the contract: they carry what a module does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peftport.data.tasks import Task, encode
from peftport.errors import InputError, RunError
from peftport.hosts.load import load_host
from peftport.methods.base import Module, method_of, methods
from peftport.porting import Correspondence, apply_port, plan_port
from peftport.porting.auto import choose
from peftport.porting.carriers.base import Carried, Wanted, carrier_of
from peftport.porting.distilling import Steps, distil, divergence
from peftport.porting.maps import Moments
from peftport.porting.recorded import Recorder, predictions
from peftport.porting.regression import reduced_rank
from peftport.porting.spaces import Space, is_held
from peftport.porting.strategies.base import Job
from peftport.porting.strategies.effect import Effect, silent, stretch_ends
from peftport.testing.contracts_strategy import some_module, some_texts
from peftport.testing.pico import pico_bert, pico_llama, pico_reviews
from peftport.train.evaluate import class_scores
from peftport.train.reference import TrainSpec, fresh_module, train


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Correspondence:
    """Two BERTs that have nothing in common but their tokenizer; the second is wider and deeper."""
    root = tmp_path_factory.mktemp("pair")
    source = load_host(str(pico_bert(root / "a", 0)))
    target = load_host(str(pico_bert(root / "b", 1, d_model=48, layers=3)))
    return Correspondence(source, target, [text for text, _ in pico_reviews(240, 3)])


@pytest.fixture(scope="module")
def taught(pair: Correspondence) -> dict[str, Module]:
    """Modules that were trained on the source, by method."""
    rows = pico_reviews(320, 1)
    encoded = encode(pair.source.tokenizer, [text for text, _ in rows], Task())
    made = {}
    for method, rate in (("lora", 1e-2), ("bottleneck", 2e-2), ("prefix", 2e-2)):
        config = methods.get(method)().default_config(pair.source.spec)
        if method == "bottleneck":
            config = replace(config, reduction=4)
        start = fresh_module(pair.source, config, 0)
        spec = TrainSpec(60, rate, 1e-2)
        ((_, made[method]),) = train(pair.source, start, encoded, [y for _, y in rows], spec)
    return made


def gap(hosts: Correspondence, module: Module, ported: Module) -> float:
    """Divergence of the target's predictions from the source's on texts that no fit has seen."""
    texts = [text for text, _ in pico_reviews(200, 9)]
    scores = [
        torch.from_numpy(class_scores(host, m, encode(host.tokenizer, texts, Task())))
        for host, m in ((hosts.target, ported), (hosts.source, module))
    ]
    return float(divergence(*scores).mean())


def ported(hosts: Correspondence, module: Module, strategy: str, **options: float | str) -> Module:
    plan = plan_port(
        hosts.source.spec, hosts.target.spec, module, strategy=strategy, options=options
    )
    return apply_port(plan, module, hosts=hosts)


def test_a_body_adds_to_the_head(pair: Correspondence, taught: dict[str, Module]):
    module = taught["lora"]
    made = ported(pair, module, "effect")
    silent = replace(
        made,
        state={
            site: {n: torch.zeros_like(t) if n == "B" else t for n, t in own.items()}
            for site, own in made.state.items()
        },
    )  # fmt: skip
    assert gap(pair, module, made) < gap(pair, module, silent)
    assert gap(pair, module, made) < gap(pair, module, ported(pair, module, "ridge"))
    assert gap(pair, module, made) < gap(pair, module, ported(pair, module, "pad"))


def test_a_prefix_is_fitted_too(pair: Correspondence, taught: dict[str, Module]):
    module = taught["prefix"]
    made = ported(pair, module, "effect")
    others = [gap(pair, module, ported(pair, module, name)) for name in ("ridge", "match", "pad")]
    assert gap(pair, module, made) < min(others)
    keys = ported(pair, module, "match").state
    for site, own in made.state.items():
        assert torch.equal(own["key"], keys[site]["key"])
        assert not torch.equal(own["value"], keys[site]["value"])


def test_steps_without_labels_come_nearer(pair: Correspondence, taught: dict[str, Module]):
    module = taught["lora"]
    start, end = ported(pair, module, "effect"), ported(pair, module, "distil", steps=40)
    assert gap(pair, module, end) < gap(pair, module, start)
    told = end.notes["ported"]
    assert (told["steps"], told["batch"], told["rate"]) == (40, 16, 1e-3)
    assert set(told["starts"]) == {"effect", "silent"}


def test_the_nearest_of_all_starts_is_the_result(pair: Correspondence, taught: dict[str, Module]):
    found = {}
    for method in ("lora", "bottleneck", "prefix"):
        made = ported(pair, taught[method], "distil", steps=30)
        told = made.notes["ported"]
        after = {name: own["after"] for name, own in told["starts"].items()}
        assert after[told["start"]] == min(after.values())
        held = is_held(torch.arange(len(pair.texts)))
        wanted = predictions(pair, "source", taught[method])[held]
        own = divergence(predictions(pair, "target", made)[held], wanted).mean()
        assert float(own) == pytest.approx(min(after.values()), rel=1e-4)
        found[method] = told["start"]
    assert set(found.values()) == {"effect", "silent"}  # neither is best for all


@pytest.mark.parametrize("method", ["lora", "bottleneck", "prefix"])
def test_a_silent_start_does_nothing_but_can_learn(
    pair: Correspondence, taught: dict[str, Module], method: str
):
    module = taught[method]
    fitted = ported(pair, module, "effect")
    plan = plan_port(pair.source.spec, pair.target.spec, module, strategy="effect")
    carrier = carrier_of(method)
    config, state = method_of(module.config).finish(pair.source.spec, module.config, module.state)
    job = Job(replace(plan, config=config), module, state, carrier, pair)
    made = silent(job, Carried(fitted.state, fitted.head, {"fits": {}, "other": 1}))
    assert made.facts["other"] == 1 and "fits" not in made.facts
    for site, own in made.state.items():
        kept, gone = {"lora": "AB", "bottleneck": ("down", "up"), "prefix": ("key", "value")}[
            method
        ]
        assert torch.equal(own[kept], fitted.state[site][kept]) and own[kept].abs().sum() > 0
        assert not own[gone].any()
    assert any(own[gone].any() for own in fitted.state.values())
    assert not torch.equal(made.head["classifier.weight"], fitted.head["classifier.weight"])
    without = replace(fitted, state=made.state)
    assert gap(pair, module, replace(without, head=made.head)) < gap(pair, module, without)


def test_a_near_host_starts_from_the_copy(pair: Correspondence, taught: dict[str, Module]):
    same = Correspondence(pair.source, pair.source, pair.texts)
    made = ported(same, taught["lora"], "distil", steps=1, rate=1e-6)
    told = made.notes["ported"]
    tried = {name: own["before"] for name, own in told["starts"].items()}
    assert told["start"] == "copy" and set(tried) == {"effect", "silent", "copy"}
    assert tried["copy"] < 1e-6 < tried["effect"]
    assert gap(same, taught["lora"], made) < 1e-2 * tried["effect"]


def test_one_start_can_be_asked_for(pair: Correspondence, taught: dict[str, Module]):
    module = taught["lora"]
    every = ported(pair, module, "distil", steps=5).notes["ported"]["starts"]
    for name in ("effect", "silent"):
        told = ported(pair, module, "distil", steps=5, start=name).notes["ported"]
        assert told["start"] == name and set(told["starts"]) == {name}
        assert told["starts"][name]["before"] == every[name]["before"]
        assert told["starts"][name]["after"] == pytest.approx(every[name]["after"], rel=1e-3)


def test_a_copy_alone_is_the_start_without_any_fit(
    pair: Correspondence, taught: dict[str, Module], monkeypatch: pytest.MonkeyPatch
):
    same = Correspondence(pair.source, pair.source, pair.texts)
    monkeypatch.setattr(Effect, "carry", lambda *_: pytest.fail("fitted"))
    told = ported(same, taught["lora"], "distil", steps=1, rate=1e-6, start="copy").notes["ported"]
    assert set(told["starts"]) == {"copy"} and told["starts"]["copy"]["before"] < 1e-6


def test_a_module_goes_home_unchanged(pair: Correspondence, taught: dict[str, Module]):
    same = Correspondence(pair.source, pair.source, pair.texts)
    module = taught["bottleneck"]
    assert gap(same, module, ported(same, module, "effect")) < 1e-3 * gap(
        same, module, replace(module, head={n: 0 * t for n, t in module.head.items()})
    )


def test_sites_without_a_fit_can_still_learn(pair: Correspondence, taught: dict[str, Module]):
    state = ported(pair, taught["lora"], "effect").state
    assert all(state[s]["A"].abs().sum() > 0 for s in state)
    silent = {s.rpartition(".")[2] for s in state if not state[s]["B"].any()}
    assert silent == {"q"}


def test_what_a_read_varies_is_that_of_a_fresh_module(
    pair: Correspondence, taught: dict[str, Module]
):
    made = ported(pair, taught["lora"], "effect")
    fresh = fresh_module(pair.target, made.config, 0)
    recorder = Recorder(pair, 1)
    for i in range(3):
        space, site = Space("in", f"encoder.{i}.self_attn.q"), f"encoder.{i}.self_attn.v"
        x = recorder.rows("target", None, [space])[space]
        sizes = [float((x @ m.state[site]["A"].T).square().mean().sqrt()) for m in (made, fresh)]
        assert 0.3 < sizes[0] / sizes[1] < 3


@pytest.mark.parametrize(
    ("chosen", "layers", "ends"),
    [((0, 2, 4), 6, (1, 3, 5)), ((0, 0, 1, 1, 2, 2), 3, (0, 0, 1, 1, 2, 2)),
     ((0, 1, 2), 3, (0, 1, 2)), ((1, 2), 6, (1, 5))],
)  # fmt: skip
def test_a_stretch_ends_before_the_next(
    pair: Correspondence, chosen: tuple[int, ...], layers: int, ends: tuple[int, ...]
):
    spec = replace(pair.source.spec, layers={"encoder": layers})
    assert stretch_ends({"encoder": chosen}, spec) == {"encoder": ends}


@pytest.mark.parametrize(
    ("roles", "fitted"),
    [(("q", "v"), {"v"}), (("q", "k"), {"q", "k"}), (("q", "v", "o"), {"o"}),
     (("up", "down"), {"down"}), (("q", "v", "up", "down"), {"v", "down"})],
)  # fmt: skip
def test_lora_is_fitted_nearest_to_the_stream(
    pair: Correspondence, roles: tuple[str, ...], fitted: set[str]
):
    config = replace(methods.get("lora")().default_config(pair.source.spec), roles=roles)
    found = carrier_of("lora").answers(pair.source.spec, config)
    assert {name.rpartition(".")[2] for name in found} == fitted


def test_reduced_rank_finds_a_map_of_that_rank():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=rng)
    weight = torch.randn(12, 2, generator=rng) @ torch.randn(2, 7, generator=rng)
    y = x @ weight + 3
    moments = []
    for rows in (slice(0, 300), slice(300, 400)):
        moments.append(Moments(12, 7))
        moments[-1].add(x[rows], y[rows])
    low = reduced_rank(*moments, 2)
    assert low.read.shape == (12, 2)
    torch.testing.assert_close((low.read @ low.write).float(), weight, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(low.bias.float(), torch.full((7,), 3.0), atol=1e-2, rtol=1e-2)
    assert reduced_rank(*moments, 1).held_out > 100 * low.held_out
    assert reduced_rank(*moments, 50).read.shape == (12, 7)


@pytest.mark.parametrize("method", ["bottleneck", "compacter"])
def test_a_fit_gives_back_what_a_site_added(pair: Correspondence, method: str):
    module = some_module(pair.source, method)
    site = "encoder.1.ff.out"
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(900, pair.source.spec.d_model, generator=rng)
    carrier = carrier_of(method)
    own = module.state[site]
    hidden = carrier.hidden(module.config, module.state, site, x)  # type: ignore[attr-defined]
    _, up = carrier._matrices(module.config, module.state, site)  # type: ignore[attr-defined]
    y = hidden @ up.T + own["up_bias"].double()
    wanted = Wanted(x, y, is_held(torch.arange(900)))
    name = "up" if method == "bottleneck" else "up_right"
    lost = {**module.state, site: {**own, name: torch.zeros_like(own[name])}}
    found, facts = carrier.fitted(module.config, lost, site, wanted)
    torch.testing.assert_close(found[name], own[name], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(found["up_bias"], own["up_bias"], atol=1e-3, rtol=1e-2)
    assert facts["held_out"] < 1e-3


def test_a_bank_distils_as_one_by_one(pair: Correspondence, taught: dict[str, Module]):
    host, module = pair.source, taught["lora"]
    starts = [fresh_module(host, module.config, seed) for seed in (0, 1)]
    wanted = predictions(pair, "source", module)
    how = Steps(5, 8, 1e-3, seed=2)
    together = distil(host, starts, pair.aligned.source, [wanted, -wanted], how)
    host.program = None  # type: ignore[misc]
    try:
        apart = distil(host, starts, pair.aligned.source, [wanted, -wanted], how)
    finally:
        del host.program
    for one, other in zip(together, apart, strict=True):
        for (name, a), (_, b) in zip(one.tensors(), other.tensors(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3, msg=name)


def test_a_rate_that_diverges_is_told(pair: Correspondence, taught: dict[str, Module]):
    with pytest.raises(RunError, match="diverged at step"):
        ported(pair, taught["lora"], "distil", rate=1e30, steps=9)


def test_a_batch_is_no_larger_than_the_texts(pair: Correspondence, taught: dict[str, Module]):
    ported(pair, taught["lora"], "distil", steps=1, batch=240, start="silent")
    with pytest.raises(InputError, match="given batches of 241 and 240 texts; give more texts"):
        ported(pair, taught["lora"], "distil", steps=1, batch=241)


def test_recording_stops_where_nothing_more_is_wanted(pair: Correspondence):
    ran: list[int] = []
    layers = pair.target.model.base_model.encoder.layer
    handles = [
        layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(layers)
    ]
    space = Space("stream", "encoder.1.self_attn.out")
    stopped = Recorder(pair, 1).rows("target", None, [space])[space]
    assert set(ran) == {0}
    for handle in handles:
        handle.remove()
    later = Space("stream", "encoder.2.ff.out")
    both = Recorder(pair, 1).rows("target", None, [space, later])
    torch.testing.assert_close(both[space], stopped, rtol=0, atol=0)


def test_memory_limits_the_texts(pair: Correspondence, monkeypatch: pytest.MonkeyPatch):
    everything = Recorder(pair, 64)
    assert sorted(everything.texts) == list(range(240))
    monkeypatch.setattr("peftport.porting.recorded.LIMIT", 4 * 64 * 500)
    few = Recorder(pair, 64)
    assert 20 < len(few.texts) < 120
    assert sum(pair.aligned.source.lengths[t] for t in few.texts) <= 500
    space = Space("head")
    assert few.held(space).sum() == sum(t % 5 == 4 for t in few.texts)


def test_words_are_needed_to_distil(tmp_path: Path):
    hosts = [load_host(str(pico_llama(tmp_path / str(i), i))) for i in (0, 1)]
    seen = Correspondence(*hosts, some_texts(40))
    module = some_module(hosts[0], "lora")
    with pytest.raises(InputError, match="label words"):
        ported(seen, module, "distil")
    assert ported(seen, module, "effect").fingerprint == hosts[1].spec.fingerprint


def test_a_head_is_needed_to_distil(pair: Correspondence, taught: dict[str, Module]):
    headless = replace(taught["lora"], head={})
    with pytest.raises(InputError, match="no classification head"):
        ported(pair, headless, "distil")
    assert ported(pair, headless, "effect").head == {}


def test_auto_says_why(pair: Correspondence, taught: dict[str, Module]):
    source, target, module = pair.source.spec, pair.target.spec, taught["lora"]
    other = replace(source, fingerprint="f" * 64)

    def chosen(a: object, b: object, m: Module = module, texts: bool = False) -> str:
        choice = choose(a, b, m, have_texts=texts)  # type: ignore[arg-type]
        assert choice.why
        return choice.strategy

    assert chosen(source, source) == chosen(source, other, texts=True) == "copy"
    assert chosen(source, target) == "embedding"
    assert chosen(source, target, texts=True) == "distil"
    assert chosen(source, target, replace(module, head={}), texts=True) == "effect"
    config = methods.get("prefix")().default_config(source)
    prefix = fresh_module(pair.source, config, 0)
    assert chosen(source, target, prefix, texts=True) == "distil"
    assert chosen(source, other, prefix, texts=True) == "copy"
    foreign = replace(target, tokenizer="other")
    assert chosen(source, foreign) == "subspace"
    assert chosen(source, foreign, taught["bottleneck"]) == "pad"
    assert chosen(source, replace(other, tokenizer="other"), texts=True) == "distil"
    deeper = replace(other, layers={"encoder": 5})
    assert chosen(source, deeper) == "copy"
