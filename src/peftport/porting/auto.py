"""Which strategy suits a pair of hosts, from what is known before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from peftport.hosts.families.base import families
from peftport.hosts.spec import HostSpec
from peftport.methods.base import Module


@dataclass(frozen=True)
class Choice:
    """A strategy and the reason for it, as one sentence without a full stop."""

    strategy: str
    why: str


def choose(source: HostSpec, target: HostSpec, module: Module, *, have_texts: bool) -> Choice:
    """The strategy that did best on pairs like this one (docs/results/port).

    Args:
        source, target: the hosts.
        module: what is ported.
        have_texts: whether unlabelled texts are given.
    """
    if source.fingerprint and source.fingerprint == target.fingerprint:
        return Choice("copy", "both names stand for one host")
    alike = source.shape_digest == target.shape_digest
    if alike and source.tokenizer == target.tokenizer:
        return Choice("copy", "the hosts have one shape and one tokenizer: coordinates agree")
    if have_texts:
        predicts = bool(module.head) or families.get(target.family).decides_by == "word"
        if predicts:
            return Choice(
                "distil", "the hosts differ in shape or tokenizer, and unlabelled texts are given"
            )
        return Choice(
            "effect",
            "the hosts differ in shape or tokenizer, unlabelled texts are given, and the module "
            "has no head whose predictions could be followed",
        )
    if alike:
        return Choice("copy", "the hosts have one shape; their tokenizers differ, so expect less")
    return _without_texts(source, target, module.config.method)


def _without_texts(source: HostSpec, target: HostSpec, method: str) -> Choice:
    if (source.d_model, source.d_kv, source.heads) == (target.d_model, target.d_kv, target.heads):
        return Choice("copy", "the widths are equal and no texts are given to fit maps on")
    if source.tokenizer == target.tokenizer:
        return Choice(
            "embedding", "the widths differ, no texts are given, and the vocabulary is shared"
        )
    if method == "lora":
        return Choice(
            "subspace", "the widths and vocabularies differ and no texts are given; expect little"
        )
    return Choice("pad", "nothing is known that the hosts share; give texts with --texts")
