"""Every shipped strategy keeps the contract."""

from peftport.porting import strategies
from peftport.testing.contracts_strategy import StrategyContract


class TestCopy(StrategyContract):
    strategy = "copy"
    same_host = 0.0
    widths = False


class TestPad(StrategyContract):
    strategy = "pad"
    same_host = 0.0


class TestRidge(StrategyContract):
    strategy = "ridge"
    same_host = 2e-3


class TestProcrustes(StrategyContract):
    strategy = "procrustes"
    same_host = 2e-3


class TestMatch(StrategyContract):
    strategy = "match"
    same_host = 2e-3  # what a compacter's form cannot hold


class TestEmbedding(StrategyContract):
    strategy = "embedding"
    same_host = 1e-4


class TestHeads(StrategyContract):
    strategy = "heads"
    same_host = 1e-4
    methods = ("lora", "prefix")


class TestSubspace(StrategyContract):
    strategy = "subspace"
    same_host = 1e-4
    methods = ("lora",)


class TestEffect(StrategyContract):
    strategy = "effect"
    same_host = None  # lora is fitted at one site of a block only


class TestDistil(StrategyContract):
    strategy = "distil"
    same_host = None  # training goes on


def test_none_is_left_out():
    tested = {cls.strategy for cls in StrategyContract.__subclasses__()}
    assert set(strategies.names()) <= tested
