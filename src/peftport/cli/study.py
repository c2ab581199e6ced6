"""``peftport study``: run, resume, inspect and export a study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from peftport.cli.options import (
    device_options,
    echo_json,
    echo_table,
    json_option,
    quiet_option,
)
from peftport.cli.plan import plan
from peftport.errors import InputError, RunError
from peftport.escape import visible
from peftport.study.checkpoints import CHECKPOINT_S
from peftport.study.store import Store

_STORE = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


def _bank(_: object, __: object, value: str) -> int | None:
    """``auto`` or a number of modules."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"'{value}' is neither 'auto' nor a whole number >= 1")
    return int(value)


@click.group()
def study() -> None:
    """Run, resume, inspect and export a study.

    \b
    Example:
      peftport study run quick --store runs/quick
      peftport study status runs/quick
      peftport study export runs/quick --format csv -o quick.csv
    """


study.add_command(plan)


@study.command()
@click.argument("name", metavar="NAME|FILE.yaml")
@click.option("--store", "folder", metavar="DIR", type=click.Path(path_type=Path),
              help="Where results are kept.")  # fmt: skip
@click.option("--executor", default="local", show_default=True,
              help="Where banks are done: local (this process) or ray.")  # fmt: skip
@click.option("--address", metavar="ADDRESS", help="Ray cluster to work on; default this machine.")
@click.option("--bank", default="auto", show_default=True, metavar="auto|N", callback=_bank,
              help="Modules trained together; chosen by measuring when the store is made, then "
              "kept.")  # fmt: skip
@click.option("--memory", "memory_gb", type=click.FloatRange(min=0, min_open=True), metavar="GB",
              help="Memory for '--bank auto'; default half of what is free.")  # fmt: skip
@click.option("--kernel", metavar="NAME", help="Matrix product of the frozen weights (onednn, "
              "torch); default the faster one when the store is made, then kept.")  # fmt: skip
@device_options(", then kept")
@click.option("--checkpoint", "checkpoint_s", type=click.FloatRange(min=0), default=CHECKPOINT_S,
              show_default=True, metavar="SECONDS",
              help="Work on a bank after which its next budget is put by, so that whoever does it "
              "again begins there.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what would be done, and compute nothing.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N",
              help="Do at most N trainings, rounded up to whole banks.")  # fmt: skip
@click.option("--retry-failed", is_flag=True, help="Try failed runs again.")
@click.option("--retry-damaged", is_flag=True,
              help="Read the whole store first, and do again what is damaged.")  # fmt: skip
@json_option
@quiet_option
def run(
    name: str,
    folder: Path | None,
    executor: str,
    address: str | None,
    bank: int | None,
    memory_gb: float | None,
    kernel: str | None,
    device: str | None,
    dtype: str | None,
    checkpoint_s: float,
    dry_run: bool,
    limit: int | None,
    retry_failed: bool,
    retry_damaged: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a study, or go on with it: only what is missing is done.

    NAME is a shipped study (quick, mini, paper, ...) or a YAML file. Stop it at any time; of
    the bank in flight at most what it did since its last checkpoint is lost.

    \b
    Example:
      peftport study run quick --store runs/quick
      peftport study run mini --dry-run --memory 8
      peftport study run mini --store runs/mini --executor ray
    """
    from peftport.study.files import find_study

    chosen = find_study(name)
    if folder is None and not dry_run:
        raise InputError("--store is missing; give the folder that results are kept in")
    if folder is not None:
        Store.check_grid(folder, chosen)
    from peftport.hosts.packed.device import use_device
    from peftport.hosts.packed.kernels import use_kernel
    from peftport.study.drive import Options, prepare, run_study
    from peftport.study.executors.base import executors
    from peftport.study.sizing import Wish, recorded_device

    executors.get(executor)
    if kernel is not None:
        use_kernel(kernel)
    if device is not None:
        use_device(device)
    wish = Wish(bank, memory_gb, kernel, device, dtype)
    recorded, kept = None, dtype or "float32"
    if folder is not None and Store.is_there(folder):
        with Store.read(folder) as store:
            wish.check(store.environment)
            recorded = int(store.environment["bank"])
            _, kept = recorded_device(store.environment)
    prepared = prepare(chosen, kept)
    if dry_run:
        _show_plan(prepared, wish, recorded, as_json)
        return
    assert folder is not None
    if not quiet:
        click.echo(_guarded(prepared.materials.guard), err=True)
    options = Options(
        executor, limit, retry_failed, quiet, wish, retry_damaged, address, checkpoint_s
    )
    status = run_study(prepared, folder, options)
    if as_json:
        echo_json(status)
    elif not quiet:
        click.echo(_line(status))
    if status["failed"]:
        raise RunError(
            f"{status['failed']} of {status['planned']} runs failed ({status['errors'][0]}); "
            "the others are stored; try those again with --retry-failed"
        )


@study.command()
@_STORE
@json_option
@quiet_option
def status(folder: Path, as_json: bool, quiet: bool) -> None:
    """Runs planned, done, failed and missing, and what the leak guard found in the data.

    \b
    Example:
      peftport study status runs/quick --json
    """
    with Store.read(folder) as store:
        found = store.status()
        guard, notes = store.guard, store.notes
    if as_json:
        echo_json({**found, "guard": guard, "notes": notes})
        return
    states = ("planned", "done", "failed", "missing")
    lines = [(kind, *(counts[s] for s in states)) for kind, counts in found["kinds"].items()]
    lines.append(("all runs", *(found[s] for s in states)))
    lines.append(("trainings", *(found["trainings"][s] for s in states)))
    click.echo(f"study {found['study']} ({found['grid']})")
    echo_table(("", *states), lines)
    click.echo(_guarded(guard))
    for text in [*(f"failed: {error}" for error in found["errors"]), *notes]:
        click.echo(text)


@study.command()
@_STORE
@json_option
@quiet_option
def verify(folder: Path, as_json: bool, quiet: bool) -> None:
    """Read everything in a store again, and say what is damaged.

    Every score, module and planned run is compared with the digest that was kept of it. Ends with
    1 when something is damaged; what can be done again is, with 'study run ... --retry-damaged'.

    \b
    Example:
      peftport study verify runs/quick
    """
    from peftport.study.database import DamagedStore
    from peftport.study.verify import verify as read_again

    try:
        with Store.read(folder) as store:
            found = read_again(store)
    except DamagedStore as error:
        raise RunError(str(error)) from None
    if as_json:
        echo_json(found.to_json())
    elif not quiet:
        read = ", ".join(f"{count} {name}" for name, count in found.counts.items())
        click.echo(f"read {read or 'nothing'}")
        for damage in found.damages:
            click.echo(f"damaged: {damage.text}; {damage.remedy}")
        if found.unused:
            click.echo(f"{len(found.unused)} module files belong to no result; they do no harm")
    if found.damages:
        raise RunError(
            f"{len(found.damages)} damages in store '{folder}'; {found.damages[0].remedy}"
        )


@study.command()
@_STORE
@click.option("--format", "kind", type=click.Choice(["csv", "parquet"]), default="csv",
              show_default=True, help="Kind of file.")  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path),
              help="File to write.")  # fmt: skip
@quiet_option
def export(folder: Path, kind: str, output: Path, quiet: bool) -> None:
    """Write one line per finished run, budget and metric.

    \b
    Example:
      peftport study export runs/quick --format csv -o quick.csv
    """
    from peftport.study.export import export as write

    with Store.read(folder) as store:
        lines = write(store, kind, output)
        missing = store.status()["missing"]
    if not quiet:
        note = f"; {missing} runs are missing" if missing else ""
        click.echo(f"wrote {lines} lines to {output}{note}", err=True)


@study.command()
@_STORE
@click.argument("key", metavar="RUN")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option("--budget", type=click.IntRange(min=0), help="Steps on the target; default the last.")
@quiet_option
def module(folder: Path, key: str, output: Path, budget: int | None, quiet: bool) -> None:
    """Write a module of a study as a folder in its library's format.

    RUN is the beginning of a key, as in the export's column 'key'. Modules after the last budget
    are kept; those of earlier budgets are made again and must equal what was measured.

    \b
    Example:
      peftport study module runs/quick 3fa9c1 -o lora-on-base
    """
    from peftport.cli.options import new_folder

    new_folder(output)
    with Store.read(folder) as store:
        full = store.find(key)
        budgets = store.budgets(full)
        at = budgets[-1] if budget is None else budget
        if at not in budgets:
            raise InputError(f"run {key} has budgets {', '.join(map(str, budgets))}; got {at}")
        from peftport.study.drive import save

        save(store, full, at, output)
    if not quiet:
        click.echo(f"wrote the module of {full[:12]} after {at} steps to {output}", err=True)


@study.command()
@_STORE
@quiet_option
def rates(folder: Path, quiet: bool) -> None:
    """Print the learning rates that a finished search chose, as part of a study file.

    \b
    Example:
      peftport study rates runs/quick-rates > quick-rates-chosen.yaml
    """
    from peftport.study.chosen import chosen_rates
    from peftport.study.trials import trials

    with Store.read(folder) as store:
        chosen = chosen_rates(store.study, trials(store))
    click.echo(yaml.safe_dump(chosen, sort_keys=False, width=100, allow_unicode=True), nl=False)


@study.command()
@_STORE
@click.argument("key", metavar="KEY")
@quiet_option
def explain(folder: Path, key: str, quiet: bool) -> None:
    """Print everything that can move the numbers of a run: what its key is the digest of.

    \b
    Example:
      peftport study explain runs/quick 3fa9c1
    """
    with Store.read(folder) as store:
        full = store.find(key)
        facts: dict[str, Any] = {"key": full, "ingredients": store.ingredients(full)}
        failure = store.failures().get(full)
    echo_json({**facts, "traceback": failure} if failure else facts)


def _line(found: dict[str, Any]) -> str:
    grid = found["kinds"].get("grid", found["kinds"].get("rate", {}))
    return (
        f"{found['done']} done · {found['missing']} to run · {found['failed']} failed "
        f"({grid.get('planned', 0)} runs of the grid, {found['planned']} in all, "
        f"{found['trainings']['planned']} distinct trainings)"
    )


def _guarded(guard: Mapping[str, int]) -> str:
    """What the leak guard counted, on one line; names in a stranger's store may hold anything."""
    parts = ", ".join(f"{visible(name)} {visible(str(count))}" for name, count in guard.items())
    return f"leak guard: no text shared between parts ({parts})"


def _show_plan(prepared: Any, wish: Any, recorded: int | None, as_json: bool) -> None:
    from peftport.study.banks import compose
    from peftport.study.estimate import memory_bytes
    from peftport.study.progress import duration

    materials, plan = prepared.materials, prepared.plan
    size = recorded or wish.guess(materials)
    banks = [keys for wave in compose(plan, size) for keys in wave]
    kinds: dict[str, int] = {}
    for row, _ in plan.rows:
        kinds[row.kind] = kinds.get(row.kind, 0) + 1
    facts = {
        "study": prepared.planned.study.name,
        "grid": prepared.planned.study.digest,
        "runs": kinds,
        "trainings": len(plan.trainings),
        "sources": len(plan.waves[0]),
        "banks": len(banks),
        "bank": size,
        "estimate_s": round(prepared.estimate_s),
        "memory_bytes": memory_bytes(materials, max(map(len, banks), default=0)),
        "guard": dict(materials.guard),
    }
    if as_json:
        echo_json(facts)
        return
    rows: list[tuple[str, Any]] = [(f"{kind} runs", count) for kind, count in kinds.items()]
    guessed = "" if recorded or wish.bank else " (a guess; measured when the study starts)"
    rows += [
        ("distinct trainings", facts["trainings"]),
        ("of these source modules", facts["sources"]),
        ("banks", f"{len(banks)} of at most {size} modules{guessed}"),
        ("time on two cores", f"about {duration(prepared.estimate_s)}"),
        ("memory", f"about {facts['memory_bytes'] / 1e9:.1f} GB for hosts and one bank"),
    ]
    echo_table((f"study {facts['study']}", facts["grid"]), rows)
    for name, note in _left_out(prepared):
        click.echo(f"{name}: {note}")


def _left_out(prepared: Any) -> list[tuple[str, str]]:
    """Hosts without a head, where inits about the head make no sense."""
    wanted = {*prepared.planned.study.inits, *prepared.planned.study.extras.ablation_inits}
    heads = sorted(wanted & {"head-only", "body-only", "probe"})
    if not heads:
        return []
    note = f"answers with a word and has no head, so {', '.join(heads)} are left out"
    return [(host, note) for host in sorted(prepared.materials.words)]
