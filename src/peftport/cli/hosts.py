"""``peftport hosts``: which hosts there are, what a host is, and how the default ones are made."""

from __future__ import annotations

from contextlib import nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import click

from peftport.cli.options import echo_json, echo_table, json_option, quiet_option


@click.group()
def hosts() -> None:
    """List, inspect and build hosts.

    \b
    Example:
      peftport hosts list
      peftport hosts info minilm-base
    """


@hosts.command("list")
@json_option
@quiet_option
def list_hosts(as_json: bool, quiet: bool) -> None:
    """List the packaged hosts; any BERT-like encoder or T5 is given by Hub id or folder.

    \b
    Example:
      peftport hosts list
      peftport hosts list --json
    """
    from peftport.hosts.families.base import families
    from peftport.hosts.packaged import NAMES

    rows = [_summary(name) for name in NAMES]
    if as_json:
        echo_json(rows)
        return
    header = list(rows[0])
    cells = (["-" if row[key] is None else row[key] for key in header] for row in rows)
    echo_table([key.replace("_", " ") for key in header], cells)
    if not quiet:
        kinds = ", ".join(sorted(kind for _, family in families for kind in family.model_types))
        click.echo(f"\nBy folder or Hub id (org/name@revision), model_type: {kinds}")


def _summary(name: str) -> dict[str, Any]:
    """Shape, parent and distance of a packaged host (minilm-large has its tuned host's shape)."""
    from peftport.hosts.packaged import LARGE, LARGE_TUNED, host_facts

    facts = host_facts(LARGE_TUNED if name == LARGE else name)
    config = facts["config"]
    own = {} if name == LARGE else facts
    distance = own.get("distance")
    return {
        "name": name,
        "layers": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "parent": own.get("parent"),
        "distance": round(distance["encoder"], 3) if distance else None,
        "shipped_MB": round(own["size_bytes"] / 1e6, 1) if own else None,
    }


@hosts.command("info")
@click.argument("host")
@json_option
@quiet_option
def info(host: str, as_json: bool, quiet: bool) -> None:
    """Show shape and identity of HOST from its config and safetensors; no model is built.

    HOST is a packaged name, a folder, or a Hub id with a revision.

    \b
    Example:
      peftport hosts info minilm-large
      peftport hosts info google/t5-v1_1-base --json
    """
    from peftport.hosts.load import inspect_host
    from peftport.hosts.packaged import LARGE, host_facts, is_packaged

    spec = inspect_host(host)
    made = host_facts(host) if is_packaged(host) and host != LARGE else None
    if as_json:
        echo_json({"host": host, **spec.to_json(), **({"made": made} if made else {})})
        return
    layers = ", ".join(f"{count} {stack}" for stack, count in spec.layers.items())
    rows = [
        ("host", host),
        ("family", spec.family),
        ("layers", layers),
        ("width", spec.d_model),
        ("heads", f"{spec.heads} x {spec.d_kv}"),
        ("feed-forward", spec.d_ff),
        ("vocabulary", f"{spec.vocab_size:,}"),
        ("sites", len(spec.sites)),
        ("fingerprint", spec.fingerprint),
        ("tokenizer", spec.tokenizer),
    ]
    for name, value in rows:
        click.echo(f"{name:<13} {value}")
    if made:
        distance = made.get("distance")
        far = f", distance {distance['encoder']:.3f}" if distance else ""
        click.echo(f"{'made from':<13} {made['parent']}{far} (--json: recipe, corpus, losses)")


@hosts.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to fill."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch.")
@click.option("--quick", is_flag=True, help="A few steps: checks the code, makes no useful host.")
@quiet_option
def build(
    names: tuple[str, ...], output: Path, threads: int | None, quick: bool, quiet: bool
) -> None:
    """Rebuild the derived default hosts from all-MiniLM-L6-v2, all of them or NAME... only.

    It takes most of an hour on two cores. What is finished in the folder stays; what was
    interrupted goes on from its last checkpoint.

    \b
    Example:
      peftport hosts build -o out/hosts
      peftport hosts build minilm-base -o out/hosts
    """
    from peftport.hosts.forge.build import build_hosts

    with redirect_stderr(StringIO()) if quiet else nullcontext():
        manifest = build_hosts(output, names or None, quick=quick, threads=threads)
    click.echo(f"The hosts are in {manifest.parent}")
