"""The hosts of ``make hosts-llm`` in their quick form; tiny models where the real ones are big."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

from peftport.cli.hosts import hosts as cli
from peftport.errors import InputError, UnknownName
from peftport.hosts import packaged, published
from peftport.hosts.built import RECEIPT, built_folder, built_path, read_built
from peftport.hosts.forge import corpus as forge_corpus
from peftport.hosts.forge import local
from peftport.hosts.forge.corpus import Corpus
from peftport.hosts.forge.local import MadeHost, build_local
from peftport.hosts.forge.local_card import write_local_cards
from peftport.hosts.forge.local_recipes import WordsRecipe
from peftport.hosts.forge.recipes import ConstantSchedule, Schedule
from peftport.hosts.forge.reword import aligned, reword, rewording
from peftport.hosts.forge.shallow import keep_layers, pooled_variance
from peftport.hosts.forge.text import Words, pad_batch
from peftport.hosts.forge.vocabulary import (
    SPECIAL,
    carried_embeddings,
    pieces,
    save_vocabulary,
    train_vocabulary,
)

TEXTS = [
    f"The {w} number {k} was {v} to watch {k} times"
    for k in range(6)
    for w in ("film", "play", "unforgettable screenplay")
    for v in ("good", "bad", "odd", "bewilderingly long", "sweet", "dull")
]


def run(k: int) -> tuple[str, ...]:
    return tuple(f"sentence {i} of review {k} is about a {k * 7 + i} minute film" for i in range(4))


CORPUS = Corpus(tuple(map(run, range(20))), tuple(map(run, range(20, 30))), 30, 0)


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forge_corpus, "build_corpus", lambda: CORPUS)
    monkeypatch.setenv("PEFTPORT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a quick minilm-shallow."""
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forge_corpus, "build_corpus", lambda: CORPUS)
        patch.setenv("PEFTPORT_CACHE", str(folder))
        build_local([packaged.SHALLOW], quick=True)
    return folder


@pytest.fixture
def shallow(once: Path, tmp_path: Path) -> Path:
    """The test's own copy of it: the host's folder."""
    shutil.copytree(once, tmp_path / "cache")
    return built_path(packaged.SHALLOW)


@pytest.fixture
def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    model = BertModel(config).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        if p.ndim > 1 and "embeddings" not in name:
            p.mul_(4)
    return model


def snapshot(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def words_of(folder: Path) -> Words:
    folder.mkdir()
    save_vocabulary(train_vocabulary(TEXTS, 80), folder, 64)
    return Words(folder)


# building, finding, refusing


def test_minilm_hosts_are_built_once_and_found_by_name() -> None:
    names = [packaged.SHALLOW, packaged.WORDS]
    folders = build_local(names, quick=True)
    cache = packaged.cache_folder() / "hosts"
    assert sorted(f.name for f in cache.iterdir()) == sorted(names)  # no work, no part is left
    assert [packaged.materialise(name) for name in names] == folders
    for folder in folders:
        model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert model.config.hidden_size == 384
    shallow, worded = (AutoModel.from_pretrained(folder) for folder in folders)
    assert (shallow.config.num_hidden_layers, worded.config.num_hidden_layers) == (3, 6)
    tokenizer = AutoTokenizer.from_pretrained(folders[1])
    assert len(tokenizer) == worded.config.vocab_size < 30522
    ids = tokenizer("A Film of Minutes").input_ids
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("a film of minute")
    facts = read_built(packaged.SHALLOW)
    assert facts and facts["quick"] and facts["recipe"]["layers"] == [0, 2, 4]
    assert facts["steps"] == 6 and facts["parent"] == packaged.LARGE
    before = [snapshot(folder) for folder in folders]
    build_local(names, quick=True)
    assert [snapshot(folder) for folder in folders] == before
    built_path(names[0]).joinpath("config.json").write_text("{}")
    build_local(names, quick=True)  # a damaged one is made again, to the same bytes
    after = [snapshot(folder) for folder in folders]
    weights = [(b["config.json"], b["model.safetensors"]) for b in before]
    assert [(a["config.json"], a["model.safetensors"]) for a in after] == weights


def test_a_host_that_is_not_built_says_how_to() -> None:
    from peftport.hosts.load import load_host

    for name in packaged.BUILT:
        with pytest.raises(InputError, match="is not built on this machine") as caught:
            load_host(name)
        target = "hosts-drift" if "drift" in name else "hosts-llm"
        assert f"make {target} (this one alone: peftport hosts build {name})" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_load_host_takes_a_built_host(shallow: Path) -> None:
    from peftport.hosts.load import load_host

    host = load_host(packaged.SHALLOW)
    facts = read_built(packaged.SHALLOW)
    assert facts and host.spec.fingerprint == facts["fingerprint"]
    assert host.spec.layers == {"encoder": 3}


def test_a_damaged_host_is_one_line(shallow: Path) -> None:
    file = shallow / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match="is not the file that was built") as caught:
        built_folder(packaged.SHALLOW)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(InputError, match="is not the file that was built"):
        built_folder(packaged.SHALLOW)
    (shallow / RECEIPT).write_text("[]")
    assert read_built(packaged.SHALLOW) is None


def test_a_stopped_build_leaves_the_old_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def maker(text: str, fails: bool) -> local.Maker:
        def write(folder: Path) -> None:
            (folder / "config.json").write_text(text)
            if fails:
                raise KeyboardInterrupt

        return lambda task: MadeHost(write, {"identity": text}, "bert")

    monkeypatch.setattr(local, "weight_fingerprint", lambda folder, prefix: "x")
    for text, fails in (("old", False), ("new", True)):
        monkeypatch.setattr(
            local, "_makers", lambda text=text, fails=fails: {packaged.WORDS: maker(text, fails)}
        )
        monkeypatch.setattr(packaged, "BUILT", (packaged.WORDS,))
        if fails:
            with pytest.raises(KeyboardInterrupt):
                build_local([packaged.WORDS])
        else:
            build_local([packaged.WORDS])
    assert (built_folder(packaged.WORDS) / "config.json").read_text() == "old"
    left = [f.name for f in built_path(packaged.WORDS).parent.iterdir()]
    assert not [name for name in left if name.endswith((".part", ".old"))]


def test_names_and_caches_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="did you mean 'minilm-words'"):
        build_local(["minilm-word"])
    assert packaged.is_packaged(packaged.SIBLING) and packaged.SIBLING not in packaged.NAMES
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFTPORT_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set PEFTPORT_CACHE"):
        build_local([packaged.SHALLOW], quick=True)


def test_command_line(shallow: Path) -> None:
    listed = CliRunner().invoke(cli, ["list", "--json"])
    rows = {row["name"]: row for row in json.loads(listed.output)}
    assert list(rows) == [*packaged.NAMES, *packaged.BUILT]
    assert rows[packaged.WORDS]["state"] == "not built (make hosts-llm)"
    built = CliRunner().invoke(cli, ["build", packaged.SHALLOW, "--quick", "-q"])
    assert built.exit_code == 0, built.output
    assert packaged.SHALLOW in built.output
    row = rows[packaged.SHALLOW]
    assert (row["layers"], row["width"], row["parent"]) == (3, 384, packaged.LARGE)
    assert row["state"].startswith("built")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give -o FOLDER to rebuild the default hosts, or names: minilm-shallow"),
        (["minilm-base"], "say with -o FOLDER"),
        (["minilm-shalow"], "did you mean 'minilm-shallow'"),
        (["minilm-shallow", "-o", "out"], "leave -o out"),
    ],
)
def test_command_line_refuses(given: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["build", *given])
    assert isinstance(result.exception, InputError) and said in str(result.exception)


def test_cards_say_what_the_receipt_says(shallow: Path, tmp_path: Path) -> None:
    assert write_local_cards(tmp_path) == []  # quick builds get none
    facts = {**json.loads((shallow / RECEIPT).read_text()), "quick": False}
    (shallow / RECEIPT).write_text(json.dumps(facts))
    files = write_local_cards(tmp_path)
    assert [f.name for f in files] == ["minilm-shallow.md"]
    card = files[0].read_text()
    assert "Layers 0, 2, 4 of `minilm-large`" in card and "| heal.schedule.seed | 3 |" in card
    assert f"| {facts['losses']['held_out_before']['loss']:.4f} " in card
    assert facts["fingerprint"] in card and "Apache-2.0" in card and "make hosts-llm" in card


# minilm-shallow


def test_kept_layers_are_the_parents(bert: BertModel) -> None:
    rows = [[101, 2000 + i, 2500 - i, 102] for i in range(20)]
    ids, mask = pad_batch(rows, 0)
    whole = keep_layers(bert, (0, 1, 2), rows, 0)
    with torch.no_grad():
        truth, mine = (m(input_ids=ids, attention_mask=mask) for m in (bert, whole.student))
    assert torch.equal(mine.last_hidden_state, truth.last_hidden_state)
    assert torch.equal(mine.pooler_output, truth.pooler_output)
    assert whole.pooled_variance == pytest.approx(
        float(truth.pooler_output.var(0, unbiased=False).mean())
    )
    some = keep_layers(bert, (0, 2), rows, 0).student
    for new, old in zip(some.encoder.layer, (0, 2), strict=True):
        for name, p in new.named_parameters():
            assert torch.equal(p, bert.encoder.layer[old].get_parameter(name))
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.2"):
        keep_layers(bert, (0, 3), rows, 0)


# minilm-words


def test_pieces_are_the_longest_first() -> None:
    vocabulary = {"[UNK]": 0, "play": 1, "##er": 2, "##e": 3, "##r": 4, "pla": 5, "##s": 6, "un": 7}
    assert pieces("player", vocabulary) == [1, 2]
    assert pieces("players", vocabulary) == [1, 2, 6]
    assert pieces("##ers", vocabulary) == [2, 6]
    assert pieces("play", vocabulary) == [1]
    assert pieces("ply", vocabulary) == [0]
    assert pieces("[UNK]", vocabulary) == [0]


def test_pieces_agree_with_the_parents_own_tokenizer() -> None:
    old = Words(published.published())
    known = old.vocabulary()
    for word in ("unforgettable", "bewilderingly", "screenplay", "zzyzx", "film"):
        assert pieces(word, known) == old.encode([word])[0]


def test_embeddings_are_means_and_special_tokens_keep_theirs() -> None:
    known = {"[PAD]": 0, "[UNK]": 1, "a": 2, "##b": 3, "c": 4}
    table = torch.randn(5, 3)
    found = carried_embeddings(table, known, {"[PAD]": 1, "[UNK]": 0, "ab": 2, "c": 3})
    assert torch.equal(found[1], table[0]) and torch.equal(found[0], table[1])
    assert torch.allclose(found[2], (table[2] + table[3]) / 2)
    assert torch.equal(found[3], table[4])


def test_vocabulary_is_bert_like(tmp_path: Path) -> None:
    words = words_of(tmp_path / "v")
    assert [words.vocabulary()[t] for t in SPECIAL] == [0, 1, 2, 3, 4]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "v")
    assert tokenizer("The FILM").input_ids == words.single(words.encode(["the film"])[0], 64)
    assert tokenizer.pad_token_id == 0 and tokenizer.mask_token_id == 4


def test_aligned_positions_end_the_same_words(tmp_path: Path) -> None:
    old, new = Words(published.published()), words_of(tmp_path / "v")
    text = "An unforgettable Café-screenplay, bewilderingly long!"
    row = aligned(old, new, [text], 64)[0]
    assert len(row.old) != len(row.new)
    assert len(row.old_ends) == len(row.new_ends) == 9  # words and punctuation marks
    for words, ids, ends in ((old, row.old, row.old_ends), (new, row.new, row.new_ends)):
        assert ends[-1] == len(ids) - 2  # what stands before [SEP]
        pieces_of = [words._tokenizer.id_to_token(i) for i in ids]
        # after the end of a word comes no piece that goes on with it
        assert not any(pieces_of[at + 1].startswith("##") for at in ends)
        begun = sum(not p.startswith("##") for p in pieces_of[1:-1])
        assert begun == len(ends)
    assert aligned(old, new, [text], 8) == []


def test_a_student_with_the_parents_words_has_nothing_to_learn(bert: BertModel) -> None:
    old = Words(published.published())
    rows = aligned(old, old, TEXTS[:8], 64)
    found = rewording(bert, bert, rows, (old.pad, old.pad), 1.0, WordsRecipe())
    assert float(found["hidden"]) == float(found["pooled"]) == 0.0
    assert float(found["cosine"]) == pytest.approx(0.0, abs=1e-5)


def test_rewording_trains_embeddings_and_the_first_layer(bert: BertModel, tmp_path: Path) -> None:
    from peftport.hosts.forge.local_minilm import _reworded

    old, new = Words(published.published()), words_of(tmp_path / "v")
    student = _reworded(bert, old, new)
    first = {n: p.clone() for n, p in student.named_parameters()}
    recipe = WordsRecipe(schedule=Schedule(40, 16, 5e-3, 4), layer_lr=1e-3, held_out=32)
    variance = pooled_variance(bert, [r.old for r in aligned(old, new, TEXTS, 64)], old.pad)
    found = reword(bert, student, (old, new), TEXTS, TEXTS, variance, recipe, tmp_path / "c", "a")
    for part in ("loss", "hidden", "cosine"):
        assert found.after[part] < 0.9 * found.before[part]
    moved = {n for n, p in student.named_parameters() if not torch.equal(p, first[n])}
    assert "embeddings.word_embeddings.weight" in moved
    assert {n.split(".")[2] for n in moved if n.startswith("encoder")} == {"0"}
    assert all(n.startswith(("encoder.layer.0.", "embeddings.word_")) for n in moved)


# descendants along one pretraining


def test_descendants_lie_on_one_path() -> None:
    """Built one after another or alone, a descendant has the same weights, and each is further."""
    first, second, last = packaged.DRIFT[0], packaged.DRIFT[1], packaged.DRIFT[-1]
    build_local([first, second, last], quick=True)
    cache = packaged.cache_folder() / "hosts"
    assert not [f.name for f in cache.iterdir() if f.name.startswith(".")]  # the trail is gone
    far = [read_built(name)["distance"]["encoder"] for name in (first, second, last)]  # type: ignore[index]
    assert 0 < far[0] < far[1] < far[2]
    in_turn = (built_path(second) / "model.safetensors").read_bytes()
    shutil.rmtree(built_path(second))
    build_local([second], quick=True)  # from the start: nothing is left to go on from
    assert (built_path(second) / "model.safetensors").read_bytes() == in_turn
    shutil.rmtree(built_path(first))
    build_local([first], quick=True)  # the trail is further than this one: it is not used
    assert read_built(first)["distance"]["encoder"] == far[0]  # type: ignore[index]
    shared = AutoModel.from_pretrained(built_path(last)).state_dict()
    table = "embeddings.word_embeddings.weight"
    parent = AutoModel.from_pretrained(packaged.materialise(packaged.BASE)).state_dict()
    assert torch.equal(shared[table], parent[table])
    assert not torch.equal(shared["pooler.dense.weight"], parent["pooler.dense.weight"])


def test_a_constant_rate_stays() -> None:
    schedule = ConstantSchedule(steps=3, batch=1, lr=1.0, warmup=4)
    assert [schedule.share(step) for step in (0, 1, 3, 4, 900)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="lr > 0"):
        ConstantSchedule(steps=3, batch=1, lr=0.0, warmup=4)
