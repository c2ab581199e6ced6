"""The README.md of a ported module: where it comes from, how it was made, what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from peftport import __version__
from peftport.escape import inline_code, visible
from peftport.methods.base import Module
from peftport.port_folder.hosts import Named
from peftport.port_folder.prepare import Prepared
from peftport.porting import PortPlan

#: library -> its name on the Hub, and how the folder is loaded
_LIBRARIES = {
    "peft": ("peft", "`PeftModel.from_pretrained(model, FOLDER)`"),
    "adapterhub": ("adapter-transformers", "`model.load_adapter(FOLDER, use_safetensors=True)`"),
    "peftport": ("peftport", "`peftport.attach(model, peftport.load_module(FOLDER))`"),
}
_HEADS = {
    "copied": "The classification head was copied unchanged.",
    "padded": "The classification head was padded with zeros or cut to the target's width.",
    "mapped": "The classification head was mapped as the rest was: it reads what the target "
    "computes there through the map to what the source computes.",
    "fitted": "The classification head was fitted to the predictions of the source host with the "
    "module on the unlabelled texts.",
    "none": "The module has no classification head: the host answers with a word.",
}
#: facts of a port that have a place of their own on the card
_SHOWN = {
    "source", "target", "strategy", "why", "layers", "layer_map", "norm_match", "texts", "head",
    "norms", "maps", "fits",
}  # fmt: skip


@dataclass(frozen=True)
class Worth:
    """What a ported module is worth on its new host, measured with labels.

    Attributes:
        text: Markdown for the card.
        index: entries of the Hub's ``model-index``.
        steps: labelled steps it was trained there.
    """

    text: str
    index: Sequence[Mapping[str, Any]]
    steps: int


def port_card(
    prepared: Prepared,
    plan: PortPlan,
    made: Module,
    library: str,
    remark: str,
    base_model: str,
    worth: Worth | None = None,
) -> str:
    """A model card in Markdown with the Hub's front matter.

    Args:
        prepared: source, target and why this strategy.
        plan: what went where.
        made: the ported module; what was measured is in its notes.
        library: whose format the folder is in.
        remark: why it is not in the source's format, or empty.
        base_model: how the folder names its host.
        worth: what was measured with labels; None: nothing was.
    """
    hub_name, loader = _LIBRARIES[library]
    method, facts = made.config.method, made.notes["ported"]
    head = {
        "base_model": visible(base_model),
        "library_name": hub_name,
        "tags": ["peftport", "ported", method, "text-classification"],
        **({"model-index": [dict(entry) for entry in worth.index]} if worth else {}),
    }
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip()
    source, target = prepared.source, prepared.target
    changed = f"\nIt is {visible(remark)}.\n" if remark else ""
    trained = "It was not trained on its new host."
    if worth and worth.steps:
        trained = f"It was then trained there for {worth.steps} steps."
    unknown = (
        f"## Not measured\n\n**What this module is worth on {inline_code(target.name)} is "
        "unknown.** No label was seen: nothing\nabove says how well it classifies there. Test it "
        "on labelled texts before you rely on it."
    )
    return f"""---
{front}
---
# {method} for {inline_code(target.name)}, ported from {inline_code(source.name)}

A {method} module that was trained on {inline_code(source.name)} and carried over to
{inline_code(target.name)} by peftport. {trained}

| | host | shape | weights |
|---|---|---|---|
{_host_row("source", source)}
{_host_row("target", target)}

Ported from {inline_code(prepared.adapter)} (digest `{facts["source"]["module"][:16]}`),
{plan.parameters_before:,} parameters, to {plan.parameters_after:,}.
{changed}
## How

- strategy: `{plan.strategy}`, {visible(prepared.why)}
- layers: by {prepared.layers}
- norm match: {"on" if plan.norm_match else "off"}
- unlabelled texts: {facts["texts"] or "none used"}

{_HEADS.get(plan.head, f"The classification head: {visible(plan.head)}.")}

{_layers(plan, taken_over=bool(facts.get("fits")))}

## Measured

{_sites(facts["norms"])}

{_maps({**facts.get("maps", {}), **_fits(facts.get("fits", {}))})}
{_others(facts)}
{worth.text if worth else unknown}

## Use

{loader}

On any other host peftport refuses it. Written by peftport {__version__}.
"""


def _host_row(role: str, host: Named) -> str:
    spec = host.spec
    layers = " + ".join(f"{count} {stack}" for stack, count in spec.layers.items())
    revision = f" at {inline_code(host.revision)}" if host.revision else ""
    return (
        f"| {role} | {inline_code(host.name)}{revision} | {spec.family}, {layers} layers, "
        f"width {spec.d_model}, {spec.heads} heads of {spec.d_kv} | `{spec.fingerprint[:16]}` |"
    )


def _layers(plan: PortPlan, *, taken_over: bool) -> str:
    """The layer table; ``taken_over``: the effect of layers without a partner was fitted too."""
    rows = [
        (stack, target, source)
        for stack, chosen in plan.layer_map.items()
        for target, source in enumerate(chosen)
    ]
    table = _table(("stack", "target layer", "source layer"), rows)
    unused = [f"{stack} {', '.join(map(str, left))}" for stack, left in plan.unused.items() if left]
    if not unused:
        return table
    what = "without a partner, taken over with the next one" if taken_over else "that went nowhere"
    return f"{table}\n\nSource layers {what}: {'; '.join(unused)}."


def _sites(norms: Mapping[str, Mapping[str, Any]]) -> str:
    measured = any("effect_source" in row for row in norms.values())
    words = "Norm of what the parameters of a site do (Frobenius), without data"
    if measured:
        words += (
            ", and the root mean square of what the module adds there on the texts, relative to "
            "what it is added to"
        )
    header = ["target site", "norm, source", "norm, ported"]
    header += ["effect, source", "effect, ported"] if measured else []
    rows = []
    for site, row in norms.items():
        cells = [f"`{site}`", f"{row['source']:.4g}", f"{row['ported']:.4g}"]
        if measured:
            cells += [_parts(row.get(name, {})) for name in ("effect_source", "effect_ported")]
        rows.append(cells)
    return f"{words}:\n\n{_table(header, rows)}"


def _parts(effects: Mapping[str, float]) -> str:
    if len(effects) == 1:
        return f"{next(iter(effects.values())):.3g}"
    return ", ".join(f"{part} {value:.3g}" for part, value in effects.items())


def _maps(maps: Mapping[str, Mapping[str, Any]]) -> str:
    """What is left over of held-out activations, by map."""
    rows = [
        (f"`{name}`", f"{row['held_out']:.3f}")
        for name, row in maps.items()
        if isinstance(row.get("held_out"), float)
    ]
    if not rows:
        return "No maps were fitted."
    words = (
        "Part of the variance that each map leaves unexplained on texts it was not fitted on "
        "(0: exact, 1: no better than the mean)"
    )
    return f"{words}:\n\n{_table(('map', 'held out'), rows)}"


def _fits(fits: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {f"fit of {site}": row for site, row in fits.items()}


def _others(facts: Mapping[str, Any]) -> str:
    """What a strategy measured beside, as it stands in peftport.json."""
    lines = [
        f"- {visible(name)}: {inline_code(json.dumps(value), 2000)}"
        for name, value in facts.items()
        if name not in _SHOWN
    ]
    return "".join(f"\n{line}" for line in lines) + "\n" if lines else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
