"""Our store and our executors keep the contracts that are shipped for others."""

from __future__ import annotations

from peftport.testing.contracts_executor import ExecutorContract
from peftport.testing.contracts_store import StoreContract


class TestStore(StoreContract):
    pass


class TestLocal(ExecutorContract):
    executor = "local"
