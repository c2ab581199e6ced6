"""What every porting strategy must do. Subclass :class:`StrategyContract` to test a new one.

class TestMine(StrategyContract):
    strategy = "mine"
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from peftport.data.tasks import Task, encode
from peftport.errors import InputError
from peftport.hosts.load import Host, load_host
from peftport.methods.attach import check_shapes
from peftport.methods.base import Module, State, method_of, methods
from peftport.porting import Correspondence, PortPlan, apply_port, plan_port, strategies
from peftport.porting.plan import depth_map
from peftport.testing.pico import WORDS, pico_bert, pico_t5
from peftport.train.evaluate import class_scores

#: families and the methods that a strategy is tried with
CASES = [
    (family, method)
    for family in ("bert", "t5")
    for method in ("lora", "prefix", "bottleneck", "compacter")
]


class StrategyContract:
    """Tests that any strategy passes.

    Attributes:
        strategy: registered name.
        same_host: largest relative difference of logits, in the Euclidean norm, after a port of a
            module to its own host. None: a port to the own host is not the identity.
        widths: whether hosts may differ in width, or in depth only.
        methods: that the strategy carries; others must be refused in the plan.
    """

    strategy: ClassVar[str]
    same_host: ClassVar[float | None] = 1e-2
    widths: ClassVar[bool] = True
    methods: ClassVar[tuple[str, ...]] = ("lora", "prefix", "bottleneck", "compacter")

    @pytest.fixture(scope="class")
    @classmethod
    def host(cls, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Host]:
        """Pico hosts: ``bert``, ``t5``, and ``bert-other``, ``t5-other`` of another depth, and of
        another width where the strategy can do that."""
        root, made = tmp_path_factory.mktemp("pico"), dict[str, Host]()
        width = 48 if cls.widths else 32

        def get(name: str) -> Host:
            if name not in made:
                family, _, other = name.partition("-")
                build: Callable[..., Path] = pico_t5 if family == "t5" else pico_bert
                shape = {"d_model": width, "layers": 3} if other else {}
                words = ("negative", "positive") if family == "t5" else None
                folder = build(root / name, 1 if other else 0, **shape)
                made[name] = load_host(str(folder), verbalisers=words)
            return made[name]

        return get

    @pytest.fixture(scope="class")
    @classmethod
    def texts(cls) -> list[str]:
        return some_texts(300)

    @pytest.fixture(scope="class")
    @classmethod
    def seen(
        cls, host: Callable[[str], Host], texts: list[str]
    ) -> Callable[[str, str], Correspondence]:
        """Both hosts of a pair on the texts, shared by the tests."""
        made: dict[tuple[str, str], Correspondence] = {}

        def get(source: str, target: str) -> Correspondence:
            pair = (source, target)
            return made.setdefault(pair, Correspondence(host(source), host(target), texts))

        return get

    def test_is_registered_and_documented(self) -> None:
        cls = strategies.get(self.strategy)
        assert cls.name == self.strategy
        assert cls.reference_url.startswith("https://")
        assert cls.head in ("copied", "padded", "mapped", "fitted")
        assert cls.__doc__

    @pytest.mark.parametrize(("family", "method"), CASES)
    def test_result_fits_the_target(
        self, family: str, method: str, host: Any, seen: Any, texts: list[str]
    ) -> None:
        source, target = host(family), host(f"{family}-other")
        module = some_module(source, method)
        before = module.digest
        if method not in self.methods:
            with pytest.raises(InputError, match=f"'{self.strategy}'.*{method}.*use --strategy"):
                plan_port(source.spec, target.spec, module, strategy=self.strategy)
            return
        plan = plan_port(source.spec, target.spec, module, strategy=self.strategy)
        ported = self.port(plan, module, seen(family, f"{family}-other"))
        assert module.digest == before
        assert ported.fingerprint == target.spec.fingerprint
        assert (ported.host, ported.config) == (target.ref, plan.target_config)
        check_shapes(ported, target.spec)
        assert list(ported.head) == list(module.head)
        assert ported.size == plan.parameters_after
        assert module.size == plan.parameters_before
        dtypes = {name: tensor.dtype for name, tensor in ported.tensors()}
        assert set(dtypes.values()) == {torch.float32}, dtypes
        scores = class_scores(target, ported, encode(target.tokenizer, texts[:20], Task()))
        assert np.isfinite(scores).all()

    @pytest.mark.parametrize(("family", "method"), CASES)
    def test_own_host_is_the_identity(
        self, family: str, method: str, host: Any, seen: Any, texts: list[str]
    ) -> None:
        self.skip_unless_carried(method)
        source = host(family)
        module = some_module(source, method)
        plan = plan_port(source.spec, source.spec, module, strategy=self.strategy)
        ported = self.port(plan, module, seen(family, family))
        if self.same_host is None:
            return
        encoded = encode(source.tokenizer, texts[:40], Task())
        other = replace(module, state=some_module(source, method, seed=1).state)
        expected, given, differ = (
            class_scores(source, m, encoded) for m in (module, ported, other)
        )
        assert np.linalg.norm(differ - expected) > 0.05 * np.linalg.norm(expected)
        assert np.linalg.norm(given - expected) <= self.same_host * np.linalg.norm(expected)

    def test_repeats_itself(self, host: Any, texts: list[str]) -> None:
        source, target = host("bert"), host("bert-other")
        module = some_module(source, self.methods[-1])
        plan = plan_port(source.spec, target.spec, module, strategy=self.strategy)
        digests = {
            self.port(plan, module, Correspondence(source, target, texts[:60])).digest
            for _ in range(2)
        }
        assert len(digests) == 1

    def test_says_what_it_did(self, host: Any, seen: Any) -> None:
        source, target = host("bert"), host("bert-other")
        module = some_module(source, "lora")
        plan = plan_port(source.spec, target.spec, module, strategy=self.strategy)
        notes = self.port(plan, module, seen("bert", "bert-other")).notes
        assert notes["task"] == "reviews"
        told = json.loads(json.dumps(notes["ported"], allow_nan=False))
        assert told["strategy"] == self.strategy
        assert told["source"]["fingerprint"] == source.spec.fingerprint
        assert told["source"]["module"] == module.digest
        assert told["layer_map"] == {"encoder": list(depth_map(2, 3))}
        assert set(told["norms"]) == {move.target for move in plan.moves}
        assert all(row["source"] > 0 for row in told["norms"].values())

    @pytest.mark.parametrize(("family", "method"), CASES)
    def test_norm_match_keeps_the_relative_size_of_every_effect(
        self, family: str, method: str, host: Any, seen: Any
    ) -> None:
        self.skip_unless_carried(method)
        source, target = host(family), host(f"{family}-other")
        module = some_module(source, method)
        if strategies.get(self.strategy).fits_effect:
            with pytest.raises(InputError, match="leave norm match out"):
                plan_port(source.spec, target.spec, module, strategy=self.strategy, norm_match=True)
            return
        plan = plan_port(source.spec, target.spec, module, strategy=self.strategy, norm_match=True)
        assert plan.needs_texts
        ported = self.port(plan, module, seen(family, f"{family}-other"))
        for row in ported.notes["ported"]["norms"].values():
            for part, size in row["effect_source"].items():
                assert row["effect_ported"][part] == pytest.approx(size, rel=1e-4)

    def test_refuses_a_host_whose_sites_do_not_correspond(self, host: Any) -> None:
        source, target = host("bert"), host("t5")
        module = some_module(source, "lora")
        with pytest.raises(InputError, match="sites do not correspond"):
            plan_port(source.spec, target.spec, module, strategy=self.strategy)

    def test_texts_are_asked_for_before_anything_runs(self, host: Any) -> None:
        source, target = host("bert"), host("bert-other")
        module = some_module(source, "lora")
        plan = plan_port(source.spec, target.spec, module, strategy=self.strategy)
        if not plan.needs_texts:
            folders = {"source_folder": source.path, "target_folder": target.path}
            ported = apply_port(plan, module, **folders)
            assert ported.fingerprint == target.spec.fingerprint
            if plan.needs_weights:
                with pytest.raises(InputError, match="target_folder"):
                    apply_port(plan, module, source_folder=source.path)
            return
        with pytest.raises(InputError, match="texts"):
            apply_port(plan, module, source=source, target=target)
        with pytest.raises(InputError, match="texts"):
            plan_port(source.spec, target.spec, module, strategy=self.strategy, have_texts=False)

    def test_another_rank_at_the_end(self, host: Any, seen: Any) -> None:
        if "lora" not in self.methods:
            return
        source, target = host("bert"), host("bert-other")
        module = some_module(source, "lora")
        for rank in (2, 5):
            plan = plan_port(source.spec, target.spec, module, strategy=self.strategy, rank=rank)
            ported = self.port(plan, module, seen("bert", "bert-other"))
            check_shapes(ported, target.spec)
            assert ported.size == plan.parameters_after
            told = ported.notes["ported"]["rank"]
            assert (told["from"], told["to"]) == (3, rank)
            assert all(error < 1e-6 for error in told["error"].values()) is (rank == 5)

    def skip_unless_carried(self, method: str) -> None:
        if method not in self.methods:
            pytest.skip(f"'{self.strategy}' does not carry {method}")

    def port(self, plan: PortPlan, module: Module, hosts: Correspondence) -> Module:
        return apply_port(plan, module, hosts=hosts)


def some_texts(count: int, seed: int = 3) -> list[str]:
    """Random words of the pico vocabulary: enough of them to visit every direction of a pico
    host's activations."""
    vocabulary = [*WORDS, *string.ascii_lowercase, *string.digits]
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 16, (count,), generator=rng).tolist()
    picks = torch.randint(len(vocabulary), (count, 16), generator=rng).tolist()
    return [
        " ".join(vocabulary[i] for i in row[:length])
        for row, length in zip(picks, lengths, strict=True)
    ]


def some_module(host: Host, method: str, seed: int = 0) -> Module:
    """A module with every tensor moved away from its start, as training would.

    What lora and prefix put into a projection's space is drawn from where the host's own
    projections lie: no map from activations can know of directions which these never visit.
    """
    small: dict[str, dict[str, Any]] = {
        "lora": {"r": 3, "alpha": 6.0},
        "prefix": {"length": 3},
        "bottleneck": {"reduction": 8},
        "compacter": {"reduction": 8, "n": 4},
    }
    config = replace(methods.get(method)().default_config(host.spec), **small.get(method, {}))
    rng = torch.Generator().manual_seed(seed)
    state: State = {}
    for site, tensors in method_of(config).init(host.spec, config, rng).items():
        state[site] = {
            name: t + (0.7 if name == "rule" else 0.25) * torch.randn(t.shape, generator=rng)
            for name, t in tensors.items()
        }
        if method == "lora":
            state[site]["B"] = 0.3 * _projected(host, site, config.r, rng).T  # type: ignore[attr-defined]
        elif method == "prefix":
            for name, role in (("key", "k"), ("value", "v")):
                linear = site.removesuffix("kv") + role
                state[site][name] = _projected(host, linear, config.length, rng)  # type: ignore[attr-defined]
    head = {}
    if host.family.decides_by == "class":
        head["classifier.weight"] = torch.randn(2, host.spec.d_model, generator=rng)
        head["classifier.bias"] = torch.randn(2, generator=rng)
    return Module(config, state, head, host.spec.fingerprint, host.ref, {"task": "reviews"})


def _projected(host: Host, site: str, count: int, rng: torch.Generator) -> Tensor:
    """Differences of outputs of a linear site for random inputs of mean zero, [count, d_out]."""
    weight = host.family.submodule(host.model, host.spec, host.spec.site(site)).weight.detach()
    x = torch.randn(count, weight.shape[1], generator=rng)
    return (x - x.mean(1, keepdim=True)) @ weight.T
