"""Pico hosts for the port tests, loaded once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from peftport.hosts.load import Host, load_host
from peftport.testing.contracts_strategy import some_texts
from peftport.testing.pico import pico_bert, pico_llama, pico_t5


def _twins() -> ModuleType:
    spec = importlib.util.spec_from_file_location("twins", Path(__file__).parent / "twins.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Host]:
    """Hosts by name, made when they are first asked for."""
    root, twins = tmp_path_factory.mktemp("hosts"), _twins()
    made: dict[str, Host] = {}
    makers: dict[str, Callable[[Path], Path]] = {
        "bert": lambda f: twins.with_biases(pico_bert(f, 0)),
        "bert-other": lambda f: pico_bert(f, 1),
        "bert-deep": lambda f: pico_bert(f, 2, layers=4),
        "bert-wide": lambda f: pico_bert(f, 3, d_model=48, layers=3, heads=4),
        "bert-twin": lambda f: twins.widened_bert(host("bert").path, f),
        "bert-spelled": lambda f: twins.respelled(host("bert").path, f, 20),
        "bert-wide-spelled": lambda f: twins.respelled(host("bert-wide").path, f, 20),
        "llama": lambda f: twins.unscaled(pico_llama(f, 0)),
        "llama-shuffled": lambda f: twins.shuffled_llama(host("llama").path, f),
        "t5-spelled": lambda f: twins.respelled(host("t5").path, f, 20),
        "t5": lambda f: pico_t5(f, 0),
        "t5-wide": lambda f: pico_t5(f, 1, d_model=48, layers=1),
        "t5-rotated": lambda f: twins.rotated_t5(host("t5").path, f),
        "t5-twin": lambda f: twins.widened_t5(host("t5").path, f),
    }

    def host(name: str) -> Host:
        if name not in made:
            folder = makers[name](root / name)
            words = None if name.startswith("bert") else ("negative", "positive")
            made[name] = load_host(str(folder), verbalisers=words)
        return made[name]

    return host


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return some_texts(400, seed=7)
