"""A plan as aligned plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from peftport.porting.strategies.base import strategies

if TYPE_CHECKING:
    from peftport.hosts.spec import HostSpec
    from peftport.porting.plan import PortPlan, Shape


def render(plan: PortPlan) -> str:
    """Facts first, then one line a site: target, source, shapes before and after."""
    texts = "yes" if plan.needs_texts else "no"
    facts = [
        ("method", _configs(plan)),
        ("strategy", f"{plan.strategy} (unlabelled texts needed: {texts}{_more(plan)})"),
        ("source", _host(plan.source)),
        ("target", _host(plan.target)),
        ("layers", _layers(plan)),
        ("norm match", "on" if plan.norm_match else "off"),
        ("parameters", f"{plan.parameters_before:,} -> {plan.parameters_after:,}"),
    ]
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts] + [""]
    rows = [("target site", "source site", "tensors")]
    for name, shapes in plan.shared.items():
        rows.append((name, name, _shapes(shapes, shapes)))
    rows += [(m.target, m.source, _shapes(m.before, m.after)) for m in plan.moves]
    if plan.head != "none":
        rows.append(("head", f"head ({plan.head})", _shapes(plan.head_before, plan.head_after)))
    else:
        rows.append(("head", "none", ""))
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    lines += [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]
    return "\n".join(lines)


def _more(plan: PortPlan) -> str:
    """What else a strategy needs, and its options."""
    parts = ["; hosts' weights read from their folders"] if plan.needs_weights else []
    parts += [f"; {name} {value}" for name, value in plan.options.items()]
    return "".join(parts)


def _configs(plan: PortPlan) -> str:
    ours, theirs = plan.config.to_json(), plan.target_config.to_json()
    changed = [
        f"{k} {_short(ours[k])} -> {_short(theirs[k])}" for k in ours if ours[k] != theirs[k]
    ]
    return f"{ours['method']}" + (f" ({', '.join(changed)})" if changed else "")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _host(spec: HostSpec) -> str:
    layers = " + ".join(f"{count} {stack}" for stack, count in spec.layers.items())
    return (
        f"{spec.family}, {layers} layers, d_model {spec.d_model}, {spec.heads} heads x {spec.d_kv}"
        f" (fingerprint {spec.fingerprint[:12] or 'unknown'})"
    )


def _layers(plan: PortPlan) -> str:
    parts = []
    for stack, chosen in plan.layer_map.items():
        text = f"{stack} {', '.join(f'{i}<-{j}' for i, j in enumerate(chosen))}"
        unused = plan.unused[stack]
        word = "no partner" if strategies.get(plan.strategy).fits_effect else "unused"
        parts.append(text + (f" ({word}: {', '.join(map(str, unused))})" if unused else ""))
    return f"by {plan.layers}: " + "; ".join(parts)


def _shapes(before: Mapping[str, Shape], after: Mapping[str, Shape]) -> str:
    parts = []
    for name, shape in after.items():
        old, new = ("x".join(map(str, s)) for s in (before[name], shape))
        parts.append(f"{name} {old}" if old == new else f"{name} {old} -> {new}")
    return ", ".join(parts)
