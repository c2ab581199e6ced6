"""Results to MLflow: one run a row, metrics at the steps of its budgets.

Source: https://mlflow.org/docs/latest/python_api/mlflow.client.html
"""

from __future__ import annotations

from typing import Any

from peftport.study.exporters.base import Exporter, exporters, records
from peftport.study.store import Store

_ID = "peftport.id"


@exporters.register("mlflow")
class MlflowExporter(Exporter):
    """Through ``MlflowClient``, so that no run of the user's own process is touched."""

    name = "mlflow"
    package = "mlflow-skinny"
    place = "a tracking URI; by default MLflow's own"

    def export(self, store: Store, project: str, place: str | None) -> int:
        try:
            from mlflow.entities import Metric, Param, RunTag
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise self.missing() from None
        client = MlflowClient(tracking_uri=place)
        found = client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else client.create_experiment(project)
        there = self._there(client, experiment)
        written = 0
        for record in records(store):
            if record.id in there:
                continue
            tags = {_ID: record.id, "peftport.study": store.study.name}
            run = client.create_run(experiment, run_name=record.name, tags=tags)
            client.log_batch(
                run.info.run_id,
                metrics=[
                    Metric(name, value, 0, budget)
                    for budget, row in record.metrics.items()
                    for name, value in row.items()
                ],
                params=[Param(name, str(value)) for name, value in record.parameters.items()],
                tags=[RunTag("peftport.grid", store.study.digest)],
            )
            client.set_terminated(run.info.run_id)
            written += 1
        return written

    @staticmethod
    def _there(client: Any, experiment: str) -> set[str]:
        """Ids of the rows that were written whole."""
        found: set[str] = set()
        token: str | None = None
        while True:
            page = client.search_runs([experiment], max_results=1000, page_token=token)
            whole = (run for run in page if run.info.status == "FINISHED")
            found |= {run.data.tags[_ID] for run in whole if _ID in run.data.tags}
            token = page.token
            if not token:
                return found
