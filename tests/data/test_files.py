"""Datasets from files, folders and the Hub, and what is said when they cannot be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets as hub
import pyarrow
import pyarrow.parquet
import pytest

from peftport.data.datasets import Columns, Dataset, load_dataset
from peftport.data.leaks import guard
from peftport.data.splits import SPLITS, split_of, split_of_rest
from peftport.errors import InputError

Row = dict[str, Any]

ROWS: list[Row] = [
    {"text": f"the film number {n}, is it {'good' if n % 2 else 'bad'}?", "label": n % 2}
    for n in range(200)
]


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        quoted = [[f'"{value}"' for value in row.values()] for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *map(",".join, quoted)]) + "\n")
    return path


def texts(data: Dataset, split: str) -> list[str]:
    return [example.text for example in data.split(split)]


def test_csv_jsonl_and_parquet_are_the_same_dataset(tmp_path: Path) -> None:
    found = [
        load_dataset(str(write(tmp_path / f"r{s}", ROWS))) for s in (".csv", ".jsonl", ".parquet")
    ]
    assert len({data.digest for data in found}) == 1
    assert found[0].classes == ("0", "1") and sum(found[0].sizes.values()) == 200
    for split in SPLITS:
        assert all(split_of(text) == split for text in texts(found[0], split))
    assert "labels: 0 is 0, 1 is 1" in found[0].notes


@pytest.mark.parametrize("change", ["text", "label", "row", "order"])
def test_the_digest_notices(tmp_path: Path, change: str) -> None:
    rows = [dict(row) for row in ROWS]
    if change == "text":
        rows[7]["text"] += "!"
    elif change == "label":
        rows[7]["label"] = 0
    elif change == "row":
        rows.pop()
    else:
        rows.reverse()
    before, after = (
        load_dataset(str(write(tmp_path / f"{n}.jsonl", r))) for n, r in enumerate((ROWS, rows))
    )
    assert before.digest != after.digest


def test_the_digest_notices_groups(tmp_path: Path) -> None:
    rows = [{**row, "of": f"review {n}"} for n, row in enumerate(ROWS)]
    path = write(tmp_path / "r.csv", rows)
    grouped = load_dataset(str(path), columns=Columns(group="of"))
    assert grouped.digest != load_dataset(str(path)).digest
    for split in SPLITS:
        assert all(split_of(example.group) == split for example in grouped.split(split))


def test_labels_are_sorted_numbers_or_words(tmp_path: Path) -> None:
    numbers = [{"text": f"text number {n}", "label": (2, 10, -3)[n % 3]} for n in range(60)]
    for suffix in (".csv", ".parquet"):
        data = load_dataset(str(write(tmp_path / f"n{suffix}", numbers)))
        assert data.classes == ("-3", "2", "10")
    words = [{"q": f"text number {n}", "y": ("no", "Yes", "007")[n % 3]} for n in range(60)]
    data = load_dataset(str(write(tmp_path / "w.csv", words)), columns=Columns("q", "y"))
    assert data.classes == ("007", "Yes", "no")
    example = data.split("target-train")[0]
    assert data.classes[example.label] == ("no", "Yes", "007")[int(example.text.split()[-1]) % 3]


def test_duplicates_contradictions_and_empty_texts_go(tmp_path: Path) -> None:
    extra = [
        {"text": ROWS[0]["text"].upper(), "label": ROWS[0]["label"]},
        {"text": ROWS[1]["text"] + " !", "label": 1 - ROWS[1]["label"]},
        {"text": " ... ", "label": 0},
    ]
    data = load_dataset(str(write(tmp_path / "r.jsonl", [*ROWS, *extra, *extra[:1]])))
    kept = [text for split in SPLITS for text in texts(data, split)]
    assert len(kept) == 199 and ROWS[0]["text"] in kept and ROWS[1]["text"] not in kept
    assert data.notes[1:] == (
        "dropped 1 texts without a word",
        "dropped 2 texts with contradicting labels",
        "dropped 2 texts met before",
    )


def test_contained_texts_leave_the_less_protected_split(tmp_path: Path) -> None:
    inner = next(row["text"] for row in ROWS if split_of(row["text"]) == "test")
    outers = [f"{inner} indeed {n}" for n in range(40)]
    data = load_dataset(
        str(write(tmp_path / "r.jsonl", [*ROWS, *({"text": t, "label": 0} for t in outers)]))
    )
    kept = {split: set(texts(data, split)) for split in SPLITS}
    assert inner in kept["test"]
    assert set(outers) & kept["test"] == {t for t in outers if split_of(t) == "test"}
    assert not set(outers) & (kept["source-train"] | kept["target-train"] | kept["validation"])
    guard({split: texts(data, split) for split in SPLITS})


def test_a_folder_with_its_own_test_part(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:90])
    write(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[90:180])
    write(tmp_path / "data" / "test.csv", [*ROWS[180:], ROWS[0]])
    data = load_dataset(str(tmp_path))
    assert texts(data, "test") == [row["text"] for row in [*ROWS[180:], ROWS[0]]]
    assert data.sizes["test"] == 21 and sum(data.sizes.values()) == 200
    for split in SPLITS[:3]:
        assert all(split_of_rest(text) == split for text in texts(data, split))


def test_a_group_of_the_test_part_is_not_trained_on(tmp_path: Path) -> None:
    rows = [{**row, "of": f"review {n % 10}"} for n, row in enumerate(ROWS)]
    write(tmp_path / "train.csv", rows[:150])
    write(tmp_path / "test.csv", [row for row in rows[150:] if row["of"] == "review 3"])
    data = load_dataset(str(tmp_path), columns=Columns(group="of"))
    trained = {e.group for split in SPLITS[:2] for e in data.split(split)}
    assert "review 3" not in trained and len(trained) > 3
    assert "dropped 15 texts of a group of the test part" in data.notes


def sst2_folder(folder: Path) -> Path:
    """A stand-in with the columns of the Hub dataset: nested phrases, hidden test labels."""
    phrases = []
    for n in range(60):
        sentence = f"the {n} th film is a dull and lifeless thing with number {n} {n} in it "
        phrases += [
            sentence,
            f"is a dull and lifeless thing with number {n} {n} in it ",
            f"{n} th film ",
        ]
    rows = [{"idx": i, "sentence": s, "label": i // 3 % 2} for i, s in enumerate(phrases)]
    held = [{"idx": i, "sentence": f"held out sentence {i} .", "label": i % 2} for i in range(30)]
    hidden = [{"idx": i, "sentence": f"hidden sentence {i} .", "label": -1} for i in range(20)]
    write(folder / "train-00000-of-00001.parquet", rows)
    write(folder / "validation-00000-of-00001.parquet", held)
    write(folder / "test-00000-of-00001.parquet", hidden)
    return folder


def test_sst2_tests_on_its_validation_part_and_keeps_phrases_with_their_sentence(
    tmp_path: Path,
) -> None:
    data = load_dataset(f"sst2={sst2_folder(tmp_path)}")
    assert data.classes == ("negative", "positive")
    assert texts(data, "test") == [f"held out sentence {i} ." for i in range(30)]
    assert not any("hidden" in text for split in SPLITS for text in texts(data, split))
    split = {text: name for name in SPLITS for text in texts(data, name)}
    for n in range(60):
        sentence = f"the {n} th film is a dull and lifeless thing with number {n} {n} in it"
        phrase = sentence.removeprefix(f"the {n} th film ")
        assert split[sentence] == split[phrase] == split_of_rest(sentence)
    assert any("hidden" in note for note in data.notes)


def test_hub_datasets_use_their_label_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = hub.ClassLabel(names=["bad", "good"])
    features = hub.Features({"review": hub.Value("string"), "label": names})
    rows = [{"review": row["text"], "label": row["label"]} for row in ROWS]
    found = hub.DatasetDict(
        train=hub.Dataset.from_list(rows[:150], features=features),
        validation=hub.Dataset.from_list(rows[150:170], features=features),
        test=hub.Dataset.from_list(rows[170:], features=features),
    )
    asked = []

    def load(name: str, revision: str | None) -> hub.DatasetDict:
        asked.append((name, revision))
        return found

    monkeypatch.setattr(hub, "load_dataset", load)
    data = load_dataset("org/reviews@abc", columns=Columns(text="review"))
    assert asked == [("org/reviews", "abc")]
    assert data.classes == ("bad", "good") and data.sizes["test"] == 30
    assert "labels: 0 is bad, 1 is good" in data.notes
    with pytest.raises(
        InputError,
        match=r"org/reviews train has no column 'text' for the text; it has: .*; name the right "
        r"one, e\.g\. text=review \(a command's --text-column review\)",
    ):
        load_dataset("org/reviews")
    del found["train"]
    with pytest.raises(InputError, match=r"has no train split; it has: validation, test"):
        load_dataset("org/reviews")


def test_the_hub_out_of_reach_is_one_line() -> None:
    with pytest.raises(
        InputError, match=r"cannot get dataset 'org/none@v1' from the Hub"
    ) as caught:
        load_dataset("org/none@v1")
    assert "\n" not in str(caught.value)


GOOD = '{"text": "a", "label": 0}\n'


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("r.csv", "", "'.*r.csv' is empty"),
        ("r.csv", "text,label\n", r"0 different values \(none\) in 0 training rows"),
        ("r.csv", "review,label\ngood,1\n", "no column 'text' for the text; it has: review, label"),
        ("r.csv", "text,stars\ngood,1\n", "no column 'label' for the label; it has: text, stars"),
        ("r.csv", "text,label\na, b,1\n", "line 2: 3 fields, expected 2"),
        ("r.csv", 'text,label\n"a"b,1\n', "line 2 is not readable as csv"),
        ("r.csv", "text,text,label\na,b,1\n", "names a column twice"),
        ("r.csv", "text,label\na,1\nb,1\n", r"1 different values \(1\) in 2 training rows"),
        ("r.csv", "text,label\na,1\nb,\n", "r.csv row 2: column 'label' is empty"),
        ("r.jsonl", GOOD + "\n{text: 1}\n", "line 3 is not JSON"),
        ("r.jsonl", GOOD + "[1]\n", "line 2 is a list; one object per line"),
        ("r.jsonl", GOOD + '{"text": "b"}\n', "row 2: column 'label' is empty"),
        ("r.jsonl", GOOD + '{"text": "b", "label": 0.5}\n', "row 2: column 'label' holds 0.5"),
        ("r.jsonl", GOOD + '{"text": 5, "label": 1}\n', "row 2: column 'text' holds a int"),
        ("r.parquet", "PAR1 no", "not readable as parquet"),
        ("r.txt", "good", "not a .csv, .jsonl or .parquet file"),
        ("r.csv", b"text,label\n\xff\xfe,1\n", "not UTF-8 text"),
    ],
)
def test_an_unusable_file_is_one_line(
    tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=says) as caught:
        load_dataset(str(path))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_test_label_of_no_class_names_the_classes(tmp_path: Path) -> None:
    write(
        tmp_path / "train.jsonl",
        [{"text": f"t{n}", "label": ["no", "yes"][n % 2]} for n in range(9)],
    )
    write(tmp_path / "test.jsonl", [{"text": "x", "label": "no"}, {"text": "y", "label": "maybe"}])
    with pytest.raises(InputError, match=r"test.jsonl row 2: label 'maybe'.*classes: 'no', 'yes'"):
        load_dataset(str(tmp_path))


def test_too_many_labels_are_no_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", [{"text": "x", "label": f"text {n}"} for n in range(101)])
    with pytest.raises(InputError, match=r"101 different values .* is it the label column"):
        load_dataset(str(path))


def test_folders_that_are_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no .csv, .jsonl or .parquet file"):
        load_dataset(str(tmp_path))
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "more.csv", ROWS)
    with pytest.raises(InputError, match=r"cannot tell which part 'more.csv'"):
        load_dataset(str(tmp_path))
    (tmp_path / "train.csv").rename(tmp_path / "test.csv")
    (tmp_path / "more.csv").unlink()
    with pytest.raises(InputError, match=r"0 training rows"):
        load_dataset(str(tmp_path))


def test_empty_and_unknown_splits(tmp_path: Path) -> None:
    rows = [row for row in ROWS if split_of(row["text"]) != "validation"]
    data = load_dataset(str(write(tmp_path / "r.csv", rows)))
    with pytest.raises(InputError, match=r"has no validation examples .source-train"):
        data.split("validation")
    with pytest.raises(InputError, match=r"unknown split 'tset'; did you mean 'test'\?"):
        data.split("tset")


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("rotten-tomatos", r"unknown dataset 'rotten-tomatos'; did you mean 'rotten-tomatoes'\?"),
        ("reviews.csv", "no file at 'reviews.csv'"),
        ("data/reviews.csv", "no file at 'data/reviews.csv'"),
        ("./reviews", "no file or folder at './reviews'"),
        ("sst2=/nowhere/sst2", "no file or folder at '/nowhere/sst2'"),
        ("rotten-tomatoes=x.csv", "comes from a package"),
    ],
)
def test_a_dataset_that_is_not_there(ref: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_dataset(ref)


def test_columns_are_for_files() -> None:
    with pytest.raises(InputError, match=r"'rotten-tomatoes' has its own columns"):
        load_dataset("rotten-tomatoes", columns=Columns())
    with pytest.raises(InputError, match=r"unknown key of columns 'txt'; did you mean 'text'\?"):
        Columns.from_json({"txt": "a"})
    assert Columns.from_json(Columns("a", "b").to_json()) == Columns("a", "b")


@pytest.mark.parametrize(
    "facts",
    [b"nope", b"\xff", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": 3}}}',
     b'{"info": {"features": {"label": {"names": [1, 2]}}}}'],
)  # fmt: skip
def test_names_of_labels_that_are_none_are_not_used(tmp_path: Path, facts: bytes) -> None:
    rows = {"text": [f"text number {i} is here" for i in range(60)], "label": [0, 1] * 30}
    table = pyarrow.table(rows).replace_schema_metadata({b"huggingface": facts})
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    assert load_dataset(str(tmp_path / "data.parquet")).classes == ("0", "1")


def test_names_of_labels_in_parquet_are_used(tmp_path: Path) -> None:
    rows = {"text": [f"text number {i} is here" for i in range(60)], "label": [0, 1] * 30}
    facts = {"info": {"features": {"label": {"names": ["bad", "good"]}}}}
    table = pyarrow.table(rows).replace_schema_metadata(
        {b"huggingface": json.dumps(facts).encode()}
    )
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    assert load_dataset(str(tmp_path / "data.parquet")).classes == ("bad", "good")
