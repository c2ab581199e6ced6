"""``peftport predict``: will it port?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from peftport.cli.options import echo_json, json_option, quiet_option
from peftport.escape import visible

if TYPE_CHECKING:
    from peftport.predicting import Predicted


@click.command()
@click.argument("adapter")
@click.option("--target", required=True, metavar="HOST",
              help="Where it would go: packaged name, Hub id@revision or folder.")  # fmt: skip
@click.option("--source", metavar="HOST",
              help="The host it was trained on.  [default: what its folder says]")  # fmt: skip
@click.option("--strategy", default="auto", show_default=True, metavar="NAME",
              help="A name of 'peftport list strategies', or auto.")  # fmt: skip
@click.option("--texts", metavar="FILE|DATASET",
              help="Unlabelled texts: one a line, csv, jsonl, parquet, or a dataset.")  # fmt: skip
@click.option("--text-column", default="text", show_default=True, help="Column of the texts.")
@click.option("--text-count", type=click.IntRange(2), default=512, show_default=True,
              help="Use the first so many different texts.")  # fmt: skip
@click.option("--template", help="What the hosts read; {text} stands for the text.  "
              "[default: what the adapter records]")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(4), help="Longest text in tokens.")
@click.option("--verbaliser", "words", multiple=True, help="Word of a class, in label order.")
@json_option
@quiet_option
def predict(
    adapter: str,
    target: str,
    source: str | None,
    strategy: str,
    texts: str | None,
    text_column: str,
    text_count: int,
    template: str | None,
    max_tokens: int | None,
    words: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Predict what ADAPTER would be worth on another host; no label is read, nothing is trained.

    Recovery is the share of a natively trained module's gain: 1 as good as trained there, 0 the
    host alone. Without --texts only weights are read; with them both hosts are loaded, the module
    is ported in memory, and its answers are compared with the original's.

    \b
    Example:
      peftport predict out/lora --target minilm-base
      peftport predict out/lora --target minilm-base --texts rotten-tomatoes
    """
    from peftport.predicting import predict as run

    task: dict[str, Any] = {"template": template, "max_tokens": max_tokens}
    task["verbalisers"] = list(words) or None
    found = run(
        adapter,
        target,
        source=source,
        strategy=strategy,
        texts=texts,
        text_column=text_column,
        text_count=text_count,
        task={name: value for name, value in task.items() if value is not None},
    )
    if as_json:
        echo_json(found.to_json())
    else:
        click.echo(_scores(found) if quiet else _sentences(found, texts is not None))


def _scores(found: Predicted) -> str:
    lines = []
    for p in found.predictions:
        when = "as it is" if p.budget == 0 else f"after {p.budget} steps"
        lines.append(f"  {when:<16} {p.score:6.2f}  [{p.low:.2f}, {p.high:.2f}]")
    return "\n".join(lines)


def _sentences(found: Predicted, texts: bool) -> str:
    from peftport.predicting import FEATURES, shipped_calibration

    prepared, rests = found.prepared, found.calibration
    lines = [
        f"{prepared.module.config.method} from {visible(prepared.source.name)} to "
        f"{visible(prepared.target.name)} by {prepared.plan.strategy}: {visible(prepared.why)}",
        "",
        "predicted recovery (1: as good as trained there, 0: the host alone), 95% interval",
        _scores(found),
        "",
    ]
    lines += [f"  {name:<11} {found.features[name]:7.3f}  {FEATURES[name]}"
              for name in FEATURES if name in found.features]  # fmt: skip
    lines.append("")
    lines.append(
        f"Calibrated on {rests.points} ports between {rests.hosts} small BERT hosts on film "
        "sentences; the interval is from hosts that were left out, and holds for hosts and tasks "
        "like those."
    )
    if found.outside:
        lines.append(
            f"Beyond what it was calibrated on: {', '.join(found.outside)}; trust neither score "
            "nor interval, run peftport assess."
        )
    if not texts:
        known = shipped_calibration("texts").error[0]
        lines.append(
            f"With --texts it also compares answers: as it is, the interval is then ±{known:.2f} "
            f"and not ±{rests.error[0]:.2f} (after training it is no narrower)."
        )
    return "\n".join(lines)
