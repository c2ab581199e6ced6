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
    """List the packaged hosts; hosts of other families are given by Hub id or folder.

    The hosts of `make hosts-llm` and `make hosts-drift` are made on this machine; "state" says
    whether they are.

    \b
    Example:
      peftport hosts list
      peftport hosts list --json
    """
    from peftport.hosts.families.base import families
    from peftport.hosts.packaged import BUILT, NAMES

    rows = [_summary(name) for name in NAMES] + [_built_summary(name) for name in BUILT]
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
        "state": "packaged",
    }


def _built_summary(name: str) -> dict[str, Any]:
    """What is known of a host that is built on this machine; of one that is not, its name."""
    import json

    from peftport.hosts.built import built_path, make_target, read_built

    facts = read_built(name)
    shape: dict[str, Any] = {"layers": None, "width": None}
    state = f"not built (make {make_target(name)})"
    if facts is not None:
        state = "built (quick: of no use)" if facts.get("quick") else "built"
        try:
            config = json.loads((built_path(name) / "config.json").read_text(encoding="utf-8"))
            shape = {"layers": config["num_hidden_layers"], "width": config["hidden_size"]}
        except (OSError, ValueError, KeyError, TypeError):
            state = f"damaged (make {make_target(name)})"
    distance = (facts or {}).get("distance")
    return {
        "name": name,
        **shape,
        "parent": (facts or {}).get("parent"),
        "distance": round(distance["encoder"], 3) if distance else None,
        "shipped_MB": None,
        "state": state,
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

    spec = inspect_host(host)
    made = _made(host)
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
        parent = made.get("parent") or made["source"]["hub"]
        click.echo(f"{'made from':<13} {parent}{far} (--json: how, and with what losses)")


def _made(host: str) -> dict[str, Any] | None:
    """How a packaged host was made; None for minilm-large and for hosts by folder or Hub id."""
    from peftport.hosts.built import read_built
    from peftport.hosts.packaged import BUILT, LARGE, NAMES, host_facts

    if host in BUILT:
        return read_built(host)
    return host_facts(host) if host in NAMES and host != LARGE else None


@hosts.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to fill with derived default hosts; the others go to the user's cache.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch.")
@click.option("--quick", is_flag=True, help="A few steps: checks the code, makes no useful host.")
@quiet_option
def build(
    names: tuple[str, ...], output: Path | None, threads: int | None, quick: bool, quiet: bool
) -> None:
    """Rebuild derived default hosts, or build the ones that do not come with peftport.

    With -o the derived default hosts are rebuilt from all-MiniLM-L6-v2, all or NAME... only; it
    takes most of an hour on two cores. Without it NAME... are hosts of `make hosts-llm` or `make
    hosts-drift`, which are then found by name. What is finished stays; what was interrupted goes
    on from its last checkpoint.

    \b
    Example:
      peftport hosts build -o out/hosts
      peftport hosts build minilm-base -o out/hosts
      peftport hosts build minilm-shallow minilm-words
    """
    from peftport.errors import InputError, UnknownName
    from peftport.hosts.packaged import BUILT

    if output is None:
        if not names:
            raise InputError(
                f"give -o FOLDER to rebuild the default hosts, or names: {', '.join(BUILT)}"
            )
        for name in names:
            if name not in BUILT:
                _needs_output(name)
                raise UnknownName("built host", name, BUILT)
    elif local := [name for name in names if name in BUILT]:
        raise InputError(f"'{local[0]}' is built in the user's cache; leave -o out")
    with redirect_stderr(StringIO()) if quiet else nullcontext():
        if output is None:
            from peftport.hosts.forge.local import build_local

            for folder in build_local(names, quick=quick, threads=threads):
                click.echo(f"The host {folder.name} is in {folder}")
            return
        from peftport.hosts.forge.build import build_hosts

        manifest = build_hosts(output, names or None, quick=quick, threads=threads)
    click.echo(f"The hosts are in {manifest.parent}")


def _needs_output(name: str) -> None:
    """Raise InputError when ``name`` is a default host, which is rebuilt into a folder."""
    from peftport.errors import InputError
    from peftport.hosts.packaged import NAMES

    if name in NAMES:
        raise InputError(f"'{name}' is a default host; say with -o FOLDER where to rebuild it")
