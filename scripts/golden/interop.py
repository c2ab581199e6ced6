"""What peftport writes, AdapterHub and PEFT read with equal logits in their own environment, and
the reverse. Three steps in two environments, on one folder::

    <peftport's python>  scripts/golden/interop.py write FOLDER    # peftport saves modules
    <AdapterHub's python> scripts/golden/interop.py library FOLDER # they read them, and save theirs
    <peftport's python>  scripts/golden/interop.py check FOLDER    # peftport reads those

Each step prints a line a module and ends with 1 if any logits differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden" / "data" / "hosts"
#: hosts of the newer families, which the first step makes in FOLDER/hosts
MADE = ("roberta", "distilbert", "llama", "gpt2")
ENCODERS = ("bert", "roberta", "distilbert")
TOLERANCE = 1e-5  # norm-relative


def host_folder(step: Path, kind: str) -> Path:
    """Folder of a host, for a step's folder of modules."""
    return step.parent / "hosts" / kind if kind in MADE else GOLDEN / kind


def inputs(kind: str) -> dict[str, Tensor]:
    """A padded batch of 3; an encoder-decoder also gets the start of three answers."""
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(5, 60, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 4:], mask[2, 6:] = 0, 0
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    if kind == "t5":
        batch["decoder_input_ids"] = torch.tensor([[0, 10, 7]] * 3)
    return batch


def record(folder: Path, host: str, library: str, logits: Tensor) -> None:
    """Put beside ``folder/module`` what it computes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"logits": logits.detach().contiguous()}, folder / "expected.safetensors")
    (folder / "case.json").write_text(json.dumps({"host": host, "library": library}))


def recorded(folder: Path) -> Iterator[tuple[str, str, str, Path, Tensor]]:
    """(name, host, library, module folder, expected logits) of every module of a step."""
    found = sorted(folder.glob("*/case.json"))
    if not found:
        sys.exit(f"nothing in '{folder}'; run the step before this one")
    for file in found:
        facts = json.loads(file.read_text())
        expected = load_file(file.parent / "expected.safetensors")["logits"]
        yield file.parent.name, facts["host"], facts["library"], file.parent / "module", expected


class Report:
    """Prints one line a comparison and remembers whether all were equal."""

    def __init__(self) -> None:
        self.failed = 0

    def compare(self, name: str, reader: str, got: Tensor, expected: Tensor) -> None:
        error = ((got - expected).norm() / expected.norm()).item()
        bad = not error <= TOLERANCE
        self.failed += bad
        print(f"{'DIFFERS' if bad else 'equal  '} {error:8.1e}  {name:28} read by {reader}")


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("write", "library", "check"):
        print(__doc__)
        return 2
    step, folder = arguments[0], Path(arguments[1])
    torch.set_num_threads(1)
    report = Report()
    if step == "library":
        import interop_theirs

        interop_theirs.read(folder / "ours", report)
        interop_theirs.write(folder / "theirs")
    else:
        import interop_ours

        if step == "write":
            interop_ours.write(folder / "ours")
        else:
            interop_ours.read(folder / "theirs", report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.modules["interop"] = sys.modules["__main__"]
    sys.exit(main(sys.argv[1:]))
