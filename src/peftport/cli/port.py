"""``peftport port``: one adapter to another host, from folder to folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peftport.cli.options import (
    echo_json,
    json_option,
    parse_settings,
    push_options,
    quiet_option,
)
from peftport.errors import InputError
from peftport.escape import visible

if TYPE_CHECKING:
    from peftport.port_folder import Ported, Prepared

_LIBRARY_NAMES = {"peft": "PEFT", "adapterhub": "AdapterHub", "peftport": "peftport"}
#: growth of an effect that is worth a remark
_LARGE = 3


@click.command()
@click.argument("adapter")
@click.option("--target", required=True, metavar="HOST",
              help="Where it goes: packaged name, Hub id@revision or folder.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="New folder; needed unless --dry-run.")  # fmt: skip
@click.option("--source", metavar="HOST",
              help="The host it was trained on.  [default: what its folder says]")  # fmt: skip
@click.option("--strategy", default="auto", show_default=True, metavar="NAME",
              help="A name of 'peftport list strategies', or auto.")  # fmt: skip
@click.option("--texts", metavar="FILE|DATASET",
              help="Unlabelled texts: one a line, csv, jsonl, parquet, or a dataset.")  # fmt: skip
@click.option("--text-column", default="text", show_default=True, help="Column of the texts.")
@click.option("--text-count", type=click.IntRange(1), default=1024, show_default=True,
              help="Use the first so many different texts.")  # fmt: skip
@click.option("--layers", type=click.Choice(["depth", "cka"]), default="depth", show_default=True,
              help="Layers correspond by relative depth, or by what they compute.")  # fmt: skip
@click.option("--rank", type=click.IntRange(1), metavar="R",
              help="Inner size of the result.  [default: as it is]")  # fmt: skip
@click.option("--norm-match", is_flag=True,
              help="Scale each site's effect to its relative size in the source.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="An option of the strategy.")  # fmt: skip
@click.option("--template", help="What the hosts read; {text} stands for the text.  "
              "[default: what the adapter records]")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(4), help="Longest text in tokens.")
@click.option("--verbaliser", "words", multiple=True, help="Word of a class, in label order.")
@click.option("--base-model", metavar="ID",
              help="How the folder names its host.  [default: HOST without revision]")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a folder that peftport wrote.")
@click.option("--dry-run", is_flag=True, help="Print the plan; read no texts and write nothing.")
@push_options
@json_option
@quiet_option
def port(
    adapter: str,
    target: str,
    output: Path | None,
    source: str | None,
    strategy: str,
    texts: str | None,
    text_column: str,
    text_count: int,
    layers: str,
    rank: int | None,
    norm_match: bool,
    settings: tuple[str, ...],
    template: str | None,
    max_tokens: int | None,
    words: tuple[str, ...],
    base_model: str | None,
    overwrite: bool,
    dry_run: bool,
    push_to_hub: str | None,
    public: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Port ADAPTER to another host and write it as a folder of its library.

    ADAPTER is a folder of PEFT, AdapterHub or peftport, or a Hub id with a revision. No labels
    are used, so the result's quality is unknown; its README.md says what was measured.

    \b
    Example:
      peftport port out/lora --target minilm-base --texts rotten-tomatoes -o out/lora-on-base
      peftport port org/adapter@v2 --target org/host --source org/old --dry-run
    """
    from peftport.hub import check_push, push
    from peftport.port_folder import carry_out, prepare, wanted_texts

    if push_to_hub is not None:
        check_push(push_to_hub)
    if output is None and not dry_run:
        raise InputError("give the new folder with -o, or --dry-run")
    task: dict[str, Any] = {"template": template, "max_tokens": max_tokens}
    task["verbalisers"] = list(words) or None
    prepared = prepare(
        adapter,
        target,
        output,
        source=source,
        strategy=strategy,
        texts=texts,
        layers=layers,
        rank=rank,
        norm_match=norm_match,
        options=parse_settings(settings),
        overwrite=overwrite,
        task={name: value for name, value in task.items() if value is not None},
    )
    if dry_run:
        _show_plan(prepared, as_json)
        return
    found = wanted_texts(prepared, texts, column=text_column, count=text_count)
    if not quiet and not as_json:
        click.echo(_choice(prepared), err=True)
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty()
    with tqdm(total=len(found), unit="text", disable=hidden or not found) as bar:
        made = carry_out(
            prepared,
            found,
            base_model=base_model,
            overwrite=overwrite,
            progress=lambda done, _: bar.update(done - bar.n) and None,
        )
    where = push(made.folder, push_to_hub, public=public) if push_to_hub is not None else None
    if as_json:
        echo_json({**made.to_json(), **({"pushed": where} if where else {})})
    else:
        click.echo(_sentences(made))
        if where:
            click.echo(f"Pushed to {where}")


def _show_plan(prepared: Prepared, as_json: bool) -> None:
    if as_json:
        echo_json({**prepared.to_json(), "dry_run": True})
        return
    click.echo(_choice(prepared))
    click.echo()
    click.echo(prepared.plan.table())
    if prepared.layers == "cka":
        click.echo("\nlayers above are by depth; by cka they are measured on the texts")


def _choice(prepared: Prepared) -> str:
    """``ridge, since the hosts differ in width``"""
    return (
        f"{prepared.plan.config.method} from {visible(prepared.source.name)} to "
        f"{visible(prepared.target.name)} by {prepared.plan.strategy}: {visible(prepared.why)}"
    )


def _sentences(made: Ported) -> str:
    lines = []
    if made.remark:
        lines.append(f"It is {visible(made.remark, 1000)}.")
    used = f", {made.facts['texts']} unlabelled texts" if made.facts["texts"] else ""
    lines += [
        f"{made.plan.parameters_after:,} parameters, head {made.plan.head}{used}. "
        f"Saved as a {_LIBRARY_NAMES[made.library]} folder in {made.folder}",
        "No labels were seen: what it is worth there is unknown until it is tested.",
    ]
    if made.growth is not None and made.growth > _LARGE and made.may_match:
        lines.insert(
            -1,
            f"Its effect at a site is up to {made.growth:.0f} times as large as on the source; "
            "--norm-match scales it.",
        )
    return "\n".join(lines)
