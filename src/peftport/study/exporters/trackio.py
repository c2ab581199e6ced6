"""Results to trackio: one run a row, metrics at the steps of its budgets.

Source: https://huggingface.co/docs/trackio
"""

from __future__ import annotations

import hashlib

from peftport.study.exporters.base import Exporter, exporters, records
from peftport.study.store import Store


@exporters.register("trackio")
class TrackioExporter(Exporter):
    """Through ``trackio.init``, ``log`` and ``finish``, which keep a local database."""

    name = "trackio"
    package = "trackio"
    place = "the id of a Space; by default its local database"

    def export(self, store: Store, project: str, place: str | None) -> int:
        try:
            import trackio
        except ImportError:
            raise self.missing() from None
        there = {run.name for run in trackio.Api().runs(project)}
        written = 0
        for record in records(store):
            # runs are found by their names there
            name = f"{record.name} {hashlib.sha256(record.id.encode()).hexdigest()[:8]}"
            if name in there:
                continue
            run = trackio.init(
                project=project,
                name=name,
                group=str(record.parameters["kind"]),
                space_id=place,
                config={**record.parameters, "grid": store.study.digest},
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            for budget, row in sorted(record.metrics.items()):
                run.log(dict(row), step=budget)
            run.finish()
            written += 1
        return written
