"""The prediction for one adapter and one target host."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from peftport.port_folder import Prepared, both_hosts, carried, prepare
from peftport.port_folder.prepare import AUTO
from peftport.port_folder.texts import COLUMN, read_texts, unlike
from peftport.porting.weights import HostFiles
from peftport.predicting.features import measure
from peftport.predicting.model import Calibration, Prediction

#: texts that are looked at
COUNT = 512


@dataclass(frozen=True)
class Predicted:
    """What is expected of a port before anything is trained.

    Attributes:
        prepared: adapter, hosts, strategy.
        features: what was measured.
        predictions: one for every budget that the calibration knows.
        calibration: what they rest on.
        outside: features beyond what the calibration has seen; the interval does not hold there.
    """

    prepared: Prepared
    features: Mapping[str, float]
    predictions: Sequence[Prediction]
    calibration: Calibration
    outside: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        facts = self.prepared.to_json()
        facts.pop("plan")
        return {
            **facts,
            "features": dict(self.features),
            "predictions": [asdict(p) for p in self.predictions],
            "calibration": {
                "variant": self.calibration.variant,
                "ports": self.calibration.points,
                "hosts": self.calibration.hosts,
            },
            "outside": list(self.outside),
        }


def predict(
    adapter: str | Path,
    target: str,
    *,
    source: str | None = None,
    strategy: str = AUTO,
    texts: str | Sequence[str] | None = None,
    text_column: str = COLUMN,
    text_count: int = COUNT,
    task: Mapping[str, Any] | None = None,
) -> Predicted:
    """What recovery to expect of an adapter on another host, without labels and without training.

    Args:
        adapter: folder of PEFT, AdapterHub or peftport, or a Hub id with revision.
        target: host by packaged name, folder, or Hub id with revision.
        source: the adapter's own host; None: what its folder says.
        strategy: how it would be ported; a registered name, or ``auto``.
        texts: unlabelled texts, or where they are, as in :func:`peftport.port`. Without them only
            weights are read, and no model is loaded.
        text_column: column of the texts in a table.
        text_count: how many different texts are used at most, the first ones.
        task: template, verbalisers, max_tokens where the adapter does not record them.

    Returns:
        :class:`Predicted`; deterministic.

    Raises:
        InputError: anything given that cannot be used.
        HostMismatch: the adapter was not trained on ``source``.
    """
    prepared = prepare(adapter, target, source=source, strategy=strategy, texts=texts, task=task)
    if texts is None:
        return predict_prepared(prepared)
    if isinstance(texts, str):
        return predict_prepared(prepared, read_texts(texts, column=text_column, count=text_count))
    return predict_prepared(prepared, unlike(texts, text_count, "texts"))


def predict_prepared(prepared: Prepared, texts: Sequence[str] = ()) -> Predicted:
    """As :func:`predict`, for a port that was prepared."""
    both = (
        HostFiles(prepared.source.spec, prepared.source.folder, known=True),
        HostFiles(prepared.target.spec, prepared.target.folder, known=True),
    )
    hosts = both_hosts(prepared, texts) if texts else None
    ported = carried(prepared, hosts)[0] if hosts else None
    features = measure(prepared.module, both, prepared.plan.layer_map, hosts=hosts, ported=ported)
    calibration = shipped_calibration("texts" if hosts else "weights")
    return Predicted(
        prepared,
        features,
        calibration.predict(prepared.module.config.method, features),
        calibration,
        calibration.outside(features),
    )


@lru_cache
def shipped_calibration(variant: str) -> Calibration:
    """What benchmarks/predict_calibrate.py wrote from the committed results."""
    facts = json.loads((files("peftport.predicting") / "calibration.json").read_text("utf-8"))
    return Calibration.from_json(facts[variant])
