"""Hosts with different tokenizers: positions that end at the same character."""

from __future__ import annotations

import pytest
import torch

from peftport.data.tasks import Task, encode
from peftport.errors import InputError
from peftport.porting import Correspondence, apply_port, plan_port
from peftport.porting.alignment import _couples, align
from peftport.porting.spaces import Pair, Space
from peftport.testing.contracts_strategy import some_module

FRAMED = Task("the film : {text} . it was", max_tokens=24)


def words(host, encoded, row):
    return host.tokenizer.convert_ids_to_tokens(encoded.ids[row])


def test_pico_tokenizers_do_differ(hosts):
    ours, theirs = hosts("bert"), hosts("bert-spelled")
    assert ours.tokenizer.tokenize("the awful film") == ["the", "awful", "film"]
    assert theirs.tokenizer.tokenize("the awful film") == ["the", *"awful", "film"]
    assert ours.spec.tokenizer != theirs.spec.tokenizer


@pytest.mark.parametrize("task", [Task(), FRAMED], ids=["plain", "framed"])
@pytest.mark.parametrize("names", [("bert", "bert-spelled"), ("t5", "t5-spelled")])
def test_couples_end_at_the_same_character(names, task, hosts, texts):
    source, target = map(hosts, names)
    found = align(source.tokenizer, target.tokenizer, texts[:80], task, same=False)
    for row, couples in enumerate(found.couples):
        ours, theirs = words(source, found.source, row), words(target, found.target, row)
        assert max(len(ours), len(theirs)) <= task.max_tokens
        marks = source.tokenizer.all_special_tokens
        cut_inside_a_word = source.tokenizer.unk_token in ours
        for i, j in () if cut_inside_a_word else couples:
            assert ours[i] == theirs[j] or ours[i][-1] == theirs[j], (ours, theirs, i, j)
            read = [
                "".join(t for t in side[: at + 1] if t not in marks)
                for side, at in ((ours, i), (theirs, j))
            ]
            if ours[i] not in marks:
                assert read[0] == read[1]
        whole = {"".join(t for t in side if t not in marks) for side in (ours, theirs)}
        if len(whole) == 1:  # neither was cut: every word of the coarser one has a partner
            assert [i for i, _ in couples] == list(range(len(ours)))
        assert couples[-1] == (len(ours) - 1, len(theirs) - 1)
        if task is FRAMED:
            tail = [t for t in theirs if t not in marks][-6:]
            assert "".join(tail).endswith("itwas")
    assert any(len(row) == task.max_tokens for row in found.target.ids) is (task is FRAMED)


def test_special_tokens_go_with_special_tokens():
    cls, sep = (0, True), (0, True)
    a, b = (3, False), (7, False)
    assert _couples([cls, a, b, sep], [cls, a, (5, False), b, sep]) == [
        (0, 0), (1, 1), (2, 3), (3, 4),
    ]  # fmt: skip
    assert _couples([a, b, sep], [cls, a, b]) == [(0, 1), (1, 2)]
    assert _couples([a, b, b], [b, sep]) == [(2, 0)]  # the last of a letter's bytes
    assert _couples([cls], [cls]) == [(0, 0)]


@pytest.mark.parametrize("strategy", ["ridge", "procrustes", "match"])
def test_hosts_that_differ_in_the_tokenizer_only(strategy, hosts, texts):
    """One host under two tokenizers: on texts that both split alike the maps are the same as with
    one tokenizer."""
    source, target, spelled = hosts("bert"), hosts("bert-wide"), hosts("bert-wide-spelled")
    known = [w for w in spelled.tokenizer.get_vocab() if len(w) > 1 and w.isalpha()]
    alike = [" ".join(w for w in t.split() if len(w) == 1 or w in known) for t in texts]
    alike = [t for t in alike if t]
    module = some_module(source, "bottleneck")
    digests = []
    for other in (target, spelled):
        seen = Correspondence(source, other, alike)
        plan = plan_port(source.spec, other.spec, module, strategy=strategy, norm_match=True)
        made = apply_port(plan, module, hosts=seen)
        digests.append(made.digest)
        told = made.notes["ported"]
        assert ("tokens_aligned" in told) is (other is spelled)
    assert told["tokens_aligned"] == told["tokens_source"] == told["tokens_target"]
    assert digests[0] == digests[1]


def test_ridge_with_other_tokens_is_better_than_none(hosts, texts):
    """The widened twin under a tokenizer that spells most words still gives back the effect."""
    source, target = hosts("bert"), hosts("bert-spelled")
    seen = Correspondence(source, target, texts)
    module = some_module(source, "bottleneck")
    plan = plan_port(source.spec, target.spec, module, strategy="ridge")
    told = apply_port(plan, module, hosts=seen).notes["ported"]
    assert 0 < told["tokens_aligned"] == told["tokens_source"] < told["tokens_target"]
    assert all(row["held_out"] < 1 for row in told["maps"].values())


def test_decoder_positions_come_one_later(hosts, texts):
    """In a decoder that reads the shifted text, the places of the encoder's couples are one to the
    right, and what reads the encoder's output stays where it is."""
    source, target = hosts("t5"), hosts("t5-spelled")
    seen = Correspondence(source, target, texts[:16], batch_size=16)
    decoder = Pair(Space("in", "decoder.0.self_attn.q"), Space("in", "decoder.0.self_attn.q"))
    cross = Pair(Space("in", "decoder.0.cross_attn.k"), Space("in", "decoder.0.cross_attn.k"))
    pairs = [decoder, cross]
    [batch] = seen.passes([p.source for p in pairs], [p.target for p in pairs])
    x, y, rows = batch.points(decoder)
    # what a T5 decoder reads first is the embedding of a token alone: equal where tokens are equal
    first = [x[rows == r][0] for r in range(16)]
    torch.testing.assert_close(torch.stack(first), first[0].expand(16, -1))
    ids = seen.aligned.source.ids
    same = 0
    for r in range(16):
        places = [0, *(i + 1 for i, _ in seen.aligned.couples[r] if i + 1 < len(ids[r]))]
        pairs_of = dict(seen.aligned.couples[r])
        for at, place in enumerate(places):
            if place and ids[r][place - 1] == seen.aligned.target.ids[r][pairs_of[place - 1]]:
                torch.testing.assert_close(x[rows == r][at], y[rows == r][at])
                same += 1
    assert same > 30
    read = [(r, i, j) for r, row in enumerate(seen.aligned.couples) for i, j in row]
    at, i, j = torch.tensor(read).unbind(1)
    torch.testing.assert_close(batch.points(cross)[0], batch.xs[cross.source][at, i])
    torch.testing.assert_close(batch.points(cross)[1], batch.ys[cross.target][at, j])


def test_one_tokenizer_is_encoded_as_ever(hosts, texts):
    host = hosts("bert")
    found = align(host.tokenizer, host.tokenizer, texts, FRAMED, same=True)
    assert found.couples is None and found.source is found.target
    assert found.source.ids == encode(host.tokenizer, texts, FRAMED).ids


def test_refusals(hosts, texts, monkeypatch):
    source, target = hosts("bert"), hosts("bert-spelled")
    with pytest.raises(InputError, match="leaves no room"):
        Correspondence(source, target, texts[:20], Task("a " * 9 + "{text}", max_tokens=8)).facts()
    few = Correspondence(source, target, ["a"] * 16)
    with pytest.raises(InputError, match=r"same character 9 times .* to choose the strength"):
        few.facts()
    monkeypatch.setattr(type(target.tokenizer), "is_fast", False)
    with pytest.raises(InputError, match=r"the source's does not tell .*; use a fast tokenizer"):
        Correspondence(source, target, texts[:20])
