"""Write docs/hosts/scores.json, the numbers on the default hosts' cards, from a store of the
``hosts`` study, and the cards themselves.

    peftport study run hosts --store runs/hosts
    python scripts/host_scores.py runs/hosts
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from peftport.errors import InputError
from peftport.hosts.forge.card import write_cards
from peftport.study.store import Store
from peftport.train.metrics import metrics

DOCS = Path(__file__).resolve().parents[1] / "docs" / "hosts"


def scores(store: Store) -> dict[str, dict[str, object]]:
    """Balanced accuracy by host and method, one value a seed; ``host alone`` is the constant
    prediction, as a host without a trained head decides nothing."""
    frame = store.frame()
    frame = frame[frame["metric"] == "balanced_accuracy"].sort_values(["target", "seed"])
    if frame.empty:
        raise InputError(f"no finished runs in '{store.folder}'; run the hosts study first")
    study, labels = store.study, store.labels()
    found: dict[str, dict[str, object]] = {
        "about": {
            "metric": "balanced accuracy",
            "data": f"{len(labels):,} Rotten Tomatoes test sentences",
            "training": f"{study.source.steps} steps of {study.source.batch} sentences",
            "seeds": len(study.extras.native_seeds),
        }
    }
    for host in study.hosts:
        here = frame[frame["target"] == host]
        probe = here[(here["init"] == "probe") & (here["method"] == next(iter(study.methods)))]
        # a host without a trained head scores every class zero
        alone = metrics(np.zeros((len(labels), len(np.unique(labels)))), labels)
        table: dict[str, object] = {
            "host alone (constant prediction)": round(alone["balanced_accuracy"], 4)
        }
        table["probe (fresh head, frozen features)"] = probe["value"].round(4).tolist()
        for method in study.methods:
            rows = here[(here["kind"] == "native") & (here["method"] == method)]
            table[method] = rows["value"].round(4).tolist()
        found[host] = table
    return found


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/host_scores.py STORE")
    try:
        with Store.read(Path(sys.argv[1])) as store:
            table = scores(store)
        DOCS.mkdir(parents=True, exist_ok=True)
        (DOCS / "scores.json").write_text(json.dumps(table, indent=2) + "\n")
        for card in write_cards(DOCS):
            print(card.relative_to(DOCS.parents[1]))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
