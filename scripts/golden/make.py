"""Write tests/golden/data: what AdapterHub and PEFT compute on tiny random hosts.

Run it in the second environment: ``python scripts/golden/make.py [FOLDER]``. It is deterministic;
versions.json says what it ran with.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import adapters  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from cases import CASES, NAME, Case, make, trained  # noqa: E402
from hosts import KINDS, WORDS, batches, write  # noqa: E402
from record import CLIP, RATE, STEPS, single, trajectory, true_float64  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "tests" / "golden" / "data"


def save_adapter(case: Case, model: torch.nn.Module, folder: Path) -> None:
    """The adapter as its library saves it, in safetensors.

    AdapterHub cannot save a prefix in safetensors (tensors that share memory are refused) and
    forgets the shared rule of a compacter on T5, so these weights files are written here, each
    tensor once under its canonical name: that is what its loader reads.
    """
    if case.library == "peft":
        model.save_pretrained(folder)  # type: ignore[operator]
        (folder / "README.md").unlink(missing_ok=True)
        return
    own = "prefix" in case.name or case.key == "t5-compacter"
    model.save_adapter(str(folder), NAME, use_safetensors=not own)  # type: ignore[operator]
    if own:
        body = {k: p.detach() for k, p in trained(case, model).items() if NAME in k}
        heads = ("classifier.", "lm_head.")
        head = {k: v for k, v in model.state_dict().items() if k.startswith(heads)}
        for pickle in folder.glob("*.bin"):
            pickle.unlink()
        save_file(body, folder / "adapter.safetensors")
        save_file({k: v.contiguous() for k, v in head.items()}, folder / "model_head.safetensors")
    if case.host == "t5":  # the host's own lm_head, which no adapter trains
        (folder / "model_head.safetensors").unlink()
        (folder / "head_config.json").unlink()


def record(case: Case, folder: Path) -> None:
    torch.manual_seed(0)
    first, *_ = fixed = batches(4, seed=7)
    model = make(case)
    save_adapter(case, model, folder / "adapter")
    numbers = single(case.host, model, trained(case, model), first)
    with true_float64():
        model = make(case).double()
        numbers |= trajectory(case.host, model, trained(case, model), fixed)
    save_file({k: v.contiguous() for k, v in numbers.items()}, folder / "numbers.safetensors")
    facts = {"host": case.host, "library": case.library, "config": list(case.config)}
    (folder / "case.json").write_text(json.dumps(facts, indent=2) + "\n")
    clipped = int((numbers["norms"] > CLIP).sum())
    print(f"{case.key:22} loss {numbers['losses'][0]:.3f} -> {numbers['losses'][-1]:.3f}, "
          f"{clipped} of {STEPS} steps clipped")  # fmt: skip


def main(target: Path) -> None:
    torch.set_num_threads(1)
    shutil.rmtree(target, ignore_errors=True)
    for kind in KINDS:
        write(kind, target / "hosts" / kind)
    fixed = batches(4, seed=7)
    flat = {f"{i}/{k}": v for i, batch in enumerate(fixed) for k, v in batch.items()}
    save_file(flat, target / "batches.safetensors")
    for case in CASES:
        folder = target / "cases" / case.key
        folder.mkdir(parents=True)
        record(case, folder)
    facts = {
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "adapters": adapters.__version__,
            "peft": peft.__version__,
        },
        "words": WORDS,
        "rate": RATE,
        "clip": CLIP,
        "steps": STEPS,
        "cases": [case.key for case in CASES],
    }
    (target / "golden.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts["versions"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
