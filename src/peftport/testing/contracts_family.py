"""What every host family must do. Subclass :class:`FamilyContract` to test a new one.

class TestMine(FamilyContract):
    def folder(self, path):
        return pico_mine(path)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from peftport.data.tasks import Task, encode
from peftport.formats import load_module, save_module
from peftport.hosts.fingerprint import model_fingerprint
from peftport.hosts.load import Host, inspect_host, load_host
from peftport.hosts.spec import HostSpec, Site
from peftport.methods.attach import attach, trainable
from peftport.methods.base import Module, config_from_json, method_of, methods
from peftport.methods.bottleneck import Bottleneck, BottleneckConfig
from peftport.methods.lora import LoraConfig
from peftport.testing.pico import pico_reviews
from peftport.train.evaluate import bank_scores, class_scores
from peftport.train.fused import trains_in_banks
from peftport.train.reference import TrainSpec, train

LINEAR = ("q", "k", "v", "o", "up", "gate", "down")
#: small modules of every method
CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "r": 3, "roles": LINEAR},
    "prefix": {"method": "prefix", "length": 3},
    "bottleneck": {"method": "bottleneck", "reduction": 4},
    "compacter": {"method": "compacter", "reduction": 4},
}
METHODS = pytest.mark.parametrize("method", CONFIGS)


class FamilyContract:
    """Tests that any family passes.

    Attributes:
        methods: that the family's hosts run.
        task: how texts are put to the host; its verbalisers are the label words.
        head: classification head of the host.
    """

    methods: ClassVar[tuple[str, ...]] = tuple(CONFIGS)
    task: ClassVar[Task] = Task()
    head: ClassVar[str] = "pooler"

    @abstractmethod
    def folder(self, path: Path) -> Path:
        """Make a small host of the family, with random weights, and return its folder."""

    @pytest.fixture(scope="class")
    def host(self, tmp_path_factory: pytest.TempPathFactory) -> Host:
        path = self.folder(tmp_path_factory.mktemp("family"))
        return load_host(str(path), head=self.head, verbalisers=self.task.verbalisers)

    @pytest.fixture
    def draw(self, host: Host) -> Callable[[str], Module]:
        """draw(method): a module with every tensor drawn, head included."""

        def make(method: str) -> Module:
            if method not in self.methods:
                pytest.skip(f"{host.family.name} does not run {method}")
            return drawn(host, CONFIGS[method])

        return make

    def batch(self, host: Host, texts: tuple[str, ...]) -> dict[str, Tensor]:
        return encode(host.tokenizer, texts, self.task).batch(range(len(texts)), host.pad_id)

    def scores(self, host: Host, *texts: str) -> Tensor:
        with torch.no_grad():
            batch = self.batch(host, texts or ("the film is good", "a dull plot"))
            return host.family.scores(host.model, batch, host.words)

    # What it is ----------------------------------------------------------------------------------

    def test_every_site_is_a_module_of_its_shape(self, host: Host) -> None:
        family, spec = host.family, host.spec
        assert tuple(spec.layers) == family.stacks
        for site in spec.sites:
            module = family.submodule(host.model, spec, site)
            if site.role in LINEAR:
                weight = weight_of(host, site)
                assert tuple(weight.shape) == (site.d_out, site.d_in), site
            elif site.role == "kv":
                assert site.d_out == spec.kv_heads * spec.d_kv
                assert module.config._attn_implementation
            else:
                assert site.d_out == spec.d_model
        embedding = family.body(host.model).get_submodule(family.embedding_path)
        assert tuple(embedding.weight.shape) == (spec.vocab_size, spec.d_model)

    def test_the_fingerprint_is_that_of_the_files(self, host: Host) -> None:
        family = host.family
        assert inspect_host(str(host.path)) == host.spec
        found = model_fingerprint(host.model, family.weight_prefix, family.unread_weights)
        assert found == host.spec.fingerprint
        embedding = family.body(host.model).get_submodule(family.embedding_path)
        before = embedding.weight[1, 0].item()
        embedding.weight[1, 0] += 1
        changed = model_fingerprint(host.model, family.weight_prefix, family.unread_weights)
        embedding.weight[1, 0] = before
        assert changed != host.spec.fingerprint

    def test_a_blocks_output_is_what_is_added_to_the_stream(self, host: Host) -> None:
        """And a bottleneck at work there is h + up(f(down(h))), computed here by hand."""
        config = BottleneckConfig(reduction=4, blocks=("self_attn", "cross_attn", "ff"))
        module = drawn(host, config.to_json())
        sites = Bottleneck().sites(host.spec, config)
        points = [host.family.out_point(host.model, host.spec, site) for site in sites]
        h: dict[int, Tensor] = {}
        residual: dict[int, Tensor] = {}
        undo = []
        for i, point in enumerate(points):  # before attach: these hooks see the host's own h
            undo.append(point.value.register_forward_hook(_keep_out(h, i)))
            undo.append(
                point.parent.register_forward_pre_hook(_keep_in(residual, i, point.residual_arg))
            )
        with attach(host.model, module, spec=host.spec):
            self.scores(host)
        for one in undo:
            one.remove()
        for i, (site, after) in enumerate(pairwise(sites)):
            if site.stack != after.stack:
                continue
            own = module.state[site.name]
            inner = h[i] @ own["down"].T + own["down_bias"]
            added = (inner * inner.sigmoid()) @ own["up"].T + own["up_bias"]
            stream, norm = residual[i] + h[i] + added, points[i].norm
            expected = stream if norm is None else norm(stream)
            torch.testing.assert_close(residual[i + 1], expected, rtol=1e-4, atol=1e-4)

    def test_lora_is_an_update_of_the_weights(self, host: Host) -> None:
        module = drawn(host, CONFIGS["lora"])
        assert isinstance(module.config, LoraConfig)
        with attach(host.model, module, spec=host.spec):
            expected = self.scores(host)
        head = Module(module.config, {}, module.head, "")
        with attach_head(host, head):
            before = self.scores(host)
            weights = {n: p.clone() for n, p in host.model.named_parameters()}
            for name, ab in module.state.items():
                weight_of(host, host.spec.site(name)).add_(ab["B"] @ ab["A"] * module.config.scale)
            found = self.scores(host)
            for name, parameter in host.model.named_parameters():
                parameter.data.copy_(weights[name])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, before, atol=1e-2)

    # What modules do -----------------------------------------------------------------------------

    @METHODS
    def test_attach_changes_it_and_detach_restores_it(
        self, host: Host, draw: Callable[[str], Module], method: str
    ) -> None:
        module, before = draw(method), self.scores(host)
        weights = {name: p.clone() for name, p in host.model.named_parameters()}
        with attach(host.model, module, spec=host.spec):
            assert not torch.allclose(self.scores(host), before, atol=1e-3)
        assert torch.equal(self.scores(host), before)
        assert all(torch.equal(p, weights[name]) for name, p in host.model.named_parameters())

    @METHODS
    def test_padding_does_not_reach_a_text(
        self, host: Host, draw: Callable[[str], Module], method: str
    ) -> None:
        with attach(host.model, draw(method), spec=host.spec):
            both = self.scores(host, "a dull plot", "the film is good and very fine")
            alone = self.scores(host, "a dull plot")
        torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)

    @METHODS
    def test_every_parameter_learns(
        self, host: Host, draw: Callable[[str], Module], method: str
    ) -> None:
        live = trainable(draw(method))
        batch = self.batch(host, ("the film is good", "a dull plot"))
        with attach(host.model, live, spec=host.spec):
            loss = host.family.loss(host.model, batch, torch.tensor([1, 0]), host.words)
        loss.backward()
        for name, tensor in live.tensors():
            assert tensor.grad is not None and bool(torch.isfinite(tensor.grad).all()), name
        silent = [name for name, t in live.tensors() if t.grad is not None and not t.grad.any()]
        if len(host.spec.layers) == 1:  # a T5's first decoder step has one key to choose from
            assert silent == []
        rows = pico_reviews(16)
        encoded = encode(host.tokenizer, [text for text, _ in rows], self.task)
        spec = TrainSpec(2, lr=1e-3, batch_size=4)
        [(_, trained)] = train(host, draw(method), encoded, [label for _, label in rows], spec)
        assert trained.digest != draw(method).digest

    @METHODS
    def test_a_module_survives_the_disk(
        self, host: Host, draw: Callable[[str], Module], method: str, tmp_path: Path
    ) -> None:
        module = draw(method)
        folder = save_module(module, tmp_path / "out", spec=host.spec)
        with attach(host.model, module, spec=host.spec):
            expected = self.scores(host)
        for back in (load_module(folder, spec=host.spec), load_module(folder)):
            assert (back.config, back.digest) == (module.config, module.digest)
            with attach(host.model, back):
                assert torch.equal(self.scores(host), expected)

    @METHODS
    def test_a_bank_computes_what_its_modules_do(
        self, host: Host, draw: Callable[[str], Module], method: str
    ) -> None:
        module = draw(method)
        if not trains_in_banks(host, module.config):
            pytest.skip("trained one by one")
        texts = encode(host.tokenizer, [text for text, _ in pico_reviews(20)], self.task)
        alone = class_scores(host, module, texts)
        for own in bank_scores(host, [module, module], texts):
            assert abs(own - alone).max() < 2e-4


def drawn(host: Host, facts: dict[str, Any]) -> Module:
    """A module of a config with every tensor drawn, head included."""
    method = methods.get(facts["method"])()
    given = {**method.default_config(host.spec).to_json(), **facts}
    config = config_from_json(given)
    generator = torch.Generator().manual_seed(5)
    state = method_of(config).init(host.spec, config, generator)
    for tensors in state.values():
        for name, tensor in tensors.items():
            tensors[name] = tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
    head = {
        name: torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5
        for name, p in host.family.head_parameters(host.model).items()
    }
    notes = {"head": host.head} if head else {}
    return Module(config, state, head, host.spec.fingerprint, "tiny", notes)


def attach_head(host: Host, module: Module) -> Any:
    """Only the head of a module at work."""
    from peftport.methods.attach import Attached, _attach_head

    like = next(host.model.parameters())
    return Attached(_attach_head(host.family, host.model, module.head, like))


def weight_of(host: Host, site: Site) -> Tensor:
    """A view of a linear site's weight  [d_out, d_in]."""
    spec: HostSpec = host.spec
    weight: Tensor = host.family.submodule(host.model, spec, site).weight.data
    weight = weight.T if host.family.transposed else weight
    return weight[host.family.columns(spec, site) or slice(None)]


def _keep_out(found: dict[int, Tensor], i: int) -> Callable[..., None]:
    def keep(_: object, __: object, out: Tensor) -> None:
        found[i] = out

    return keep


def _keep_in(found: dict[int, Tensor], i: int, at: int) -> Callable[..., None]:
    def keep(_: object, args: tuple[Any, ...]) -> None:
        found[i] = args[at]

    return keep
