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


def test_none_is_left_out():
    tested = {cls.strategy for cls in (TestCopy, TestPad, TestRidge)}
    assert tested == set(strategies.names())
