"""``peftport predict``: features by hand, a model that is checked on what it has not seen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import peftport
from peftport.cli.main import run
from peftport.errors import InputError
from peftport.formats import save_module
from peftport.hosts.load import Host, load_host
from peftport.methods.base import Module, config_from_json, method_of
from peftport.porting import Correspondence
from peftport.porting.layers import depth_map
from peftport.porting.recorded import predictions
from peftport.porting.weights import HostFiles
from peftport.predicting import FEATURES, NEED_TEXTS, Calibration, fit, measure
from peftport.predicting import run as running
from peftport.predicting.features import correlation, kappa
from peftport.predicting.model import Point, left_out
from peftport.testing.contracts_strategy import some_texts
from peftport.testing.pico import pico_bert

LORA = {"method": "lora", "r": 4}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Host]:
    root = tmp_path_factory.mktemp("hosts")
    pico_bert(root / "one", 0)
    pico_bert(root / "other", 1)
    pico_bert(root / "wide", 2, d_model=48, layers=3, heads=4)
    return lambda name: load_host(str(root / name))


def module_for(host: Host, facts: dict[str, object] = LORA) -> Module:
    config = config_from_json(facts)
    rng = torch.Generator().manual_seed(3)
    state = method_of(config).init(host.spec, config, rng)
    for tensors in state.values():
        for name, tensor in tensors.items():
            tensors[name] = 0.05 * torch.randn(tensor.shape, generator=rng)
    head = {
        "classifier.weight": torch.randn(2, host.spec.d_model, generator=rng),
        "classifier.bias": torch.zeros(2),
    }
    return Module(config, state, head, host.spec.fingerprint, str(host.path))


def balanced(host: Host, module: Module) -> Module:
    """The module with a head that says both classes."""
    pair = Correspondence(host, host, some_texts(40, seed=1))
    usual = predictions(pair, "source", module).median(0).values
    return replace(module, head={**module.head, "classifier.bias": -usual})


def measured(ours: Host, theirs: Host, module: Module, ported: Module | None = None) -> dict:
    files = HostFiles(ours.spec, ours.path), HostFiles(theirs.spec, theirs.path)
    layers = {s: depth_map(ours.spec.layers[s], n) for s, n in theirs.spec.layers.items()}
    pair = Correspondence(ours, theirs, some_texts(40, seed=1)) if ported else None
    return measure(module, files, layers, hosts=pair, ported=ported)


# features


@pytest.mark.parametrize("method", ["lora", "prefix", "bottleneck", "compacter"])
def test_a_host_is_like_itself(hosts: Callable[[str], Host], method: str) -> None:
    host = hosts("one")
    facts = {"method": method, **({"n": 2, "reduction": 8} if method == "compacter" else {})}
    module = balanced(host, module_for(host, facts))
    found = measured(host, hosts("one"), module, module)
    assert set(found) == set(FEATURES)
    assert (found["same_shape"], found["distance"], found["width"], found["depth"]) == (1, 0, 0, 0)
    for name in ("overlap", "cka", "agreement", "kappa"):
        assert found[name] == pytest.approx(1.0, abs=1e-4), name
    assert 0 < found["rank"] <= 1 and math.isfinite(found["norm"])


def test_distance_is_over_the_blocks_where_the_module_acts(hosts: Callable[[str], Host]) -> None:
    ours, theirs = hosts("one"), hosts("other")
    moved = size = 0.0
    mine, yours = (dict(h.model.named_parameters()) for h in (ours, theirs))
    for name, w in mine.items():
        if "attention" in name and w.ndim == 2 and "encoder" in name:
            moved += float((yours[name] - w).double().square().sum().detach())
            size += float(w.double().square().sum().detach())
    found = measured(ours, theirs, module_for(ours))
    assert found["distance"] == pytest.approx((moved / size) ** 0.5, rel=1e-5)
    assert not set(found) & set(NEED_TEXTS)
    assert 0 < found["overlap"] < 0.9


def test_other_shapes_are_far(hosts: Callable[[str], Host]) -> None:
    ours, theirs = hosts("one"), hosts("wide")
    found = measured(ours, theirs, module_for(ours))
    assert found["same_shape"] == 0 and found["distance"] == pytest.approx(math.sqrt(2))
    assert found["width"] == pytest.approx(abs(math.log(48 / ours.spec.d_model)))
    assert found["depth"] == pytest.approx(math.log(3 / ours.spec.layers["encoder"]))
    assert 0 < found["overlap"] < 1


def test_norm_and_rank_by_hand(hosts: Callable[[str], Host]) -> None:
    host = hosts("one")
    module = module_for(host)
    flat = {
        site: {"A": torch.ones_like(t["A"]), "B": torch.ones_like(t["B"])}
        for site, t in module.state.items()
    }
    found = measured(host, host, replace(module, state=flat))
    assert found["rank"] == pytest.approx(1 / 4, rel=1e-6)  # one direction of four
    d, r = host.spec.d_model, 4
    scale = module.config.scale  # type: ignore[attr-defined]
    assert found["norm"] == pytest.approx(math.log(scale * r * d), rel=1e-6)


def test_agreement_follows_the_answers(hosts: Callable[[str], Host]) -> None:
    host = hosts("one")
    module = balanced(host, module_for(host))
    turned = replace(module, head={name: -t for name, t in module.head.items()})
    found = measured(host, hosts("one"), module, turned)
    assert found["agreement"] == pytest.approx(-1.0, abs=1e-4)
    assert found["kappa"] <= 0


def test_correlation_and_kappa() -> None:
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]], dtype=torch.float64)
    assert correlation(x, 2 * x + torch.tensor([5.0, 5.0])) == pytest.approx(1.0)
    assert correlation(x, torch.ones_like(x)) == 0.0
    a = torch.tensor([0, 0, 1, 1, 1])
    assert kappa(a, a, 2) == 1.0
    b = torch.tensor([0, 1, 1, 1, 0])
    assert kappa(a, b, 2) == pytest.approx((0.6 - 0.52) / 0.48)
    assert kappa(torch.zeros(3), torch.zeros(3), 2) == 0.0


# model


def drawn_points(seed: int, noise: float = 0.05) -> list[Point]:
    rng = np.random.default_rng(seed)
    names = [f"h{i}" for i in range(8)]
    points = []
    for target in names[1:]:
        for source in names[:3]:
            if source == target:
                continue
            for method in ("lora", "prefix"):
                features = {name: float(rng.normal()) for name in FEATURES}
                value = 0.5 + 0.3 * features["kappa"] - 0.1 * features["distance"]
                value += 0.2 * (method == "lora") + rng.normal(0, noise)
                points.append(Point(source, target, method, features, {0: value, 10: -value}))
    return points


def test_the_model_finds_what_matters() -> None:
    points = drawn_points(0)
    found = fit(points, "texts")
    weights = dict(zip(found.names, found.weights[0], strict=True))
    assert weights["kappa"] > 0.2 and weights["distance"] < -0.05
    assert abs(weights["width"]) < 0.04
    fresh = drawn_points(1)
    covered = []
    for p in fresh:
        first = found.predict(p.method, p.features)[0]
        covered.append(first.low <= p.recovery[0] <= first.high)
    assert np.mean(covered) >= 0.85
    assert fit(points, "weights").names == tuple(n for n in found.names if n not in NEED_TEXTS)


def test_a_host_that_is_left_out_is_not_looked_at() -> None:
    points = drawn_points(2)
    before = left_out(points, "texts", 0)
    changed = [
        replace(p, recovery={0: 99.0, 10: 0.0}) if "h5" in (p.source, p.target) else p
        for p in points
    ]
    own = np.array([p.target == "h5" for p in points])
    assert np.array_equal(left_out(changed, "texts", 0)[own], before[own])
    assert not np.allclose(left_out(changed, "texts", 0)[~own], before[~own])
    with pytest.raises(ValueError, match="three hosts"):
        fit([p for p in points if p.target == "h5"], "texts")


def test_a_calibration_reads_back_and_knows_its_range() -> None:
    points = drawn_points(3)
    found = fit(points, "weights")
    again = Calibration.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    inside = points[0].features
    assert again.predict("lora", inside) == found.predict("lora", inside)
    assert found.outside(inside) == []
    assert found.outside({**inside, "distance": 99.0}) == ["distance"]
    with pytest.raises(InputError, match="no prediction was calibrated for method 'ia3'"):
        found.predict("ia3", inside)


# the command and the function


@pytest.fixture
def folders(hosts: Callable[[str], Host], tmp_path: Path) -> Path:
    host = hosts("one")
    save_module(module_for(host), tmp_path / "adapter", spec=host.spec, base_model=str(host.path))
    return tmp_path / "adapter"


def test_predict_by_hand(
    hosts: Callable[[str], Host], folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(hosts("other").path)
    texts = some_texts(40, seed=1)
    found = peftport.predict(str(folders), target, texts=texts)
    cheap = measured(hosts("one"), hosts("other"), found.prepared.module)
    assert {n: v for n, v in found.features.items() if n not in NEED_TEXTS} == pytest.approx(cheap)
    assert -1 <= found.features["kappa"] <= 1 and 0 <= found.features["cka"] <= 1
    shipped = running.shipped_calibration("texts")
    assert list(found.predictions) == shipped.predict("lora", found.features)
    file = folders.parent / "texts.txt"
    file.write_text("\n".join(texts) + "\n")
    told = ["predict", str(folders), "--target", target]
    assert run([*told, "--texts", str(file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["features"] == pytest.approx(found.features)
    assert facts["calibration"]["variant"] == "texts" and facts["predictions"]
    assert run(told) == 0
    out = capsys.readouterr().out
    assert "as it is" in out and "With --texts" in out and "kappa" not in out


def test_predict_refuses_in_one_line(
    hosts: Callable[[str], Host], folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        (["--target", "no-such-host"], "no-such-host"),
        (["--target", str(hosts("other").path), "--texts", "nowhere.txt"], "nowhere.txt"),
        (["--target", str(hosts("other").path), "--strategy", "copi"], "copy"),
    ):
        assert run(["predict", str(folders), *arguments]) == 2
        err = capsys.readouterr().err.strip()
        assert said in err and "\n" not in err


def test_the_shipped_calibration_is_whole() -> None:
    for variant in ("weights", "texts"):
        found = running.shipped_calibration(variant)
        assert found.variant == variant and found.points >= 48 and found.hosts >= 4
        assert set(found.weights) == set(found.error) == {0, 10, 30}
        assert all(len(w) == len(found.names) for w in found.weights.values())
