"""Time one training step of the reference trainer beside PEFT in a plain loop.

Both train the same LoRA (r=8 on q and v, head included) on the same host with the same batches of
Rotten Tomatoes sentences. Rounds alternate, so that a busy machine slows both; the ratio is that
of the medians. ``python benchmarks/train_step.py [--host minilm-base] [--steps 20] [--rounds 5]``
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model

from peftport.data.batches import train_batches
from peftport.data.datasets import load_dataset
from peftport.data.tasks import Encoded, Task, encode
from peftport.hosts.load import Host, load_host
from peftport.methods.base import methods
from peftport.train.reference import TrainSpec, fresh_module, train


def ours(host: Host, encoded: Encoded, labels: list[int], steps: int) -> Callable[[], None]:
    module = fresh_module(host, methods.get("lora")().default_config(host.spec), seed=0)
    spec = TrainSpec(steps=steps, lr=1e-3)

    def run() -> None:
        for _ in train(host, module, encoded, labels, spec):
            pass

    return run


def plain_peft(host: Host, encoded: Encoded, labels: list[int], steps: int) -> Callable[[], None]:
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = get_peft_model(host.model, config)
    leaves = [p for p in model.parameters() if p.requires_grad]
    targets = torch.tensor(labels)

    def run() -> None:
        optimiser = torch.optim.AdamW(leaves, lr=1e-3, weight_decay=0.0)
        for rows in train_batches(encoded.lengths, 16, steps, seed=0):
            loss = model(**encoded.batch(rows, host.pad_id), labels=targets[rows]).loss
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
            optimiser.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="minilm-base")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    examples = load_dataset("rotten-tomatoes").split("source-train")
    first = load_host(options.host)
    encoded = encode(first.tokenizer, [e.text for e in examples], Task())
    labels = [e.label for e in examples]
    # a host each: PEFT rewrites the model it is given
    sides = {
        "PEFT, plain loop": plain_peft(load_host(options.host), encoded, labels, options.steps),
        "peftport reference": ours(first, encoded, labels, options.steps),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            if number:  # the first round warms up
                times[name].append(1000 * (time.perf_counter() - began) / options.steps)
    print(f"lora on {options.host}, batch 16, {torch.get_num_threads()} threads, ms a step")
    medians = {name: statistics.median(ms) for name, ms in times.items()}
    for name, ms in times.items():
        print(f"  {name:<20} {medians[name]:7.1f}  ({min(ms):.1f} to {max(ms):.1f})")
    slow, fast = medians["PEFT, plain loop"], medians["peftport reference"]
    print(f"  PEFT / peftport      {slow / fast:7.2f}")


if __name__ == "__main__":
    main()
