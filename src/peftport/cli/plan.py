"""``peftport study plan``: what a study will take, before its hosts are here."""

from __future__ import annotations

from pathlib import Path

import click

from peftport.cli.options import echo_json, echo_table, json_option, quiet_option


@click.command()
@click.argument("name", metavar="NAME|FILE.yaml")
@click.option("--bank", type=click.IntRange(min=1), help="Modules of a bank; default 32.")
@click.option("--probe", type=click.Path(path_type=Path), metavar="FILE",
              help="What benchmarks/device_probe.py wrote on a device.")  # fmt: skip
@json_option
@quiet_option
def plan(name: str, bank: int | None, probe: Path | None, as_json: bool, quiet: bool) -> None:
    """Print trainings, banks, hours on a device, disk and download, without a network.

    Hosts of the Hub are planned from configurations that peftport knows; 'study run --dry-run'
    plans from the hosts themselves.

    \b
    Example:
      python benchmarks/device_probe.py --json device.json
      peftport study plan paper --probe device.json
    """
    from peftport.study.files import find_study
    from peftport.study.outlook import kinds, look

    chosen = find_study(name)
    found = look(chosen, bank, probe)
    facts = {
        "study": chosen.name,
        "grid": chosen.digest,
        "runs": kinds(found.plan),
        "trainings": len(found.plan.trainings),
        "sources": len(found.plan.waves[0]),
        "bank": found.bank,
        "banks": found.banks,
        "download_bytes": found.download_bytes,
        "store_bytes": found.store_bytes,
        "device": found.device,
        "device_s": found.device_s,
    }
    if as_json:
        echo_json(facts)
        return
    hours = "not known: give --probe"
    if found.device_s is not None:
        hours = f"about {found.device_s / 3600:.1f} h on {found.device}, ports not counted"
    rows = [(f"{kind} runs", str(count)) for kind, count in kinds(found.plan).items()]
    rows += [
        ("distinct trainings", str(facts["trainings"])),
        ("of these source modules", str(facts["sources"])),
        ("banks", f"{found.banks} of at most {found.bank} modules"),
        ("time", hours),
        ("download", f"{found.download_bytes / 1e9:.1f} GB of weights"),
        ("disk", f"about {(found.download_bytes + found.store_bytes) / 1e9:.1f} GB, "
                 f"{found.store_bytes / 1e9:.1f} of them the store"),
    ]  # fmt: skip
    echo_table((f"study {chosen.name}", chosen.digest), rows)
