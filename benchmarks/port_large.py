"""Memory and time of a data-free port between two hosts too large to load.

    python benchmarks/port_large.py --json docs/results/port/large.json

Writes two hosts of random weights in the layout of Llama (source: every head has its own keys and
values; target: four query heads share them) as sharded bfloat16 safetensors: embedding, q and v of
every layer, which is all that is read. Then ports a LoRA on q and v between them in a fresh process
and reports that process's peak memory. Random weights have a flat spectrum, so nothing here says
anything about quality. Exits with 1 when the peak is above the limit.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from peftport.hosts.load import inspect_host
from peftport.methods.base import Module
from peftport.methods.lora import Lora, LoraConfig
from peftport.porting import apply_port, plan_port
from peftport.testing.pico import pico_tokenizer

_PER_SHARD = 8


@dataclass(frozen=True)
class Settings:
    """What is written and ported.

    Attributes:
        layers, width: of both hosts; heads are 128 wide, or a quarter of the width if that is less.
        vocabulary: rows of the embedding.
        rank: of the LoRA.
        strategy, directions: how it is ported.
    """

    layers: int = 32
    width: int = 4096
    vocabulary: int = 32_000
    rank: int = 16
    strategy: str = "subspace"
    directions: int = 256

    @property
    def d_kv(self) -> int:
        return min(128, self.width // 4)

    @property
    def heads(self) -> int:
        return self.width // self.d_kv


def write_host(folder: Path, settings: Settings, seed: int, kv_heads: int) -> int:
    """A host folder that holds what a port reads; returns its bytes of weights."""
    from transformers import LlamaConfig

    s = settings
    pico_tokenizer(folder, decoder=True)
    LlamaConfig(
        hidden_size=s.width,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=kv_heads,
        head_dim=s.d_kv,
        intermediate_size=4 * s.width,
        vocab_size=s.vocabulary,
    ).save_pretrained(folder)
    rng = torch.Generator().manual_seed(seed)

    def weight(rows: int) -> torch.Tensor:
        return (torch.randn(rows, s.width, generator=rng) / s.width**0.5).to(torch.bfloat16)

    places: dict[str, str] = {}
    for start in range(0, s.layers, _PER_SHARD):
        shard = {"model.embed_tokens.weight": weight(s.vocabulary)} if start == 0 else {}
        for layer in range(start, min(start + _PER_SHARD, s.layers)):
            at = f"model.layers.{layer}.self_attn"
            shard[f"{at}.q_proj.weight"] = weight(s.heads * s.d_kv)
            shard[f"{at}.v_proj.weight"] = weight(kv_heads * s.d_kv)
        name = f"model-{start // _PER_SHARD:02}.safetensors"
        save_file(shard, folder / name)
        places |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def peak_gb() -> float:
    """Most memory that this process has had resident, in units of 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def port(source_folder: Path, target_folder: Path, settings: Settings) -> dict[str, Any]:
    """What the fresh process does."""
    found: dict[str, Any] = {"peak_gb_start": peak_gb()}
    began = time.perf_counter()
    source, target = inspect_host(str(source_folder)), inspect_host(str(target_folder))
    found |= {"inspect_s": time.perf_counter() - began, "peak_gb_inspect": peak_gb()}
    config = LoraConfig(r=settings.rank, alpha=2.0 * settings.rank)
    rng = torch.Generator().manual_seed(0)
    state = Lora().init(source, config, rng)
    for tensors in state.values():
        tensors["B"].normal_(0, 0.02, generator=rng)
    module = Module(config, state, {}, source.fingerprint, "source")
    options = {"directions": settings.directions} if settings.strategy == "subspace" else {}
    plan = plan_port(source, target, module, strategy=settings.strategy, options=options)
    began = time.perf_counter()
    made = apply_port(plan, module, source_folder=source_folder, target_folder=target_folder)
    took = time.perf_counter() - began
    norms = made.notes["ported"]["norms"].values()
    kept = [row["ported"] / row["source"] for row in norms]
    return found | {
        "port_s": took,
        "s_per_layer": took / settings.layers,
        "peak_gb": peak_gb(),
        "sites": len(made.state),
        "norm_kept": sum(kept) / len(kept),
        "threads": torch.get_num_threads(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--limit-gb", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="where the hosts are written (some GB)")
    parser.add_argument("--port", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    settings = Settings(**{name: getattr(args, name) for name in asdict(Settings())})
    if args.port:
        print(json.dumps(port(*args.port, settings)))
        return 0
    folder = Path(tempfile.mkdtemp(dir=args.work))
    try:
        found = _measured(folder, settings)
    finally:
        shutil.rmtree(folder)
    for name, value in found.items():
        print(f"{name:<16} {value:.3g}" if isinstance(value, float) else f"{name:<16} {value}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"settings": asdict(settings), **found}, indent=1) + "\n")
    if found["peak_gb"] > args.limit_gb:
        print(f"peak above {args.limit_gb:g} GB", file=sys.stderr)
        return 1
    return 0


def _measured(folder: Path, settings: Settings) -> dict[str, Any]:
    s = settings
    sizes = {
        f"{role}_gb": write_host(folder / role, s, seed, kv_heads) / 1e9
        for role, seed, kv_heads in (
            ("source", 0, s.heads),
            ("target", 1, max(1, s.heads // 4)),
        )
    }
    options = [f"--{name}={value}" for name, value in asdict(s).items()]
    command = [sys.executable, str(Path(__file__).resolve()), *options]
    command += ["--port", str(folder / "source"), str(folder / "target")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {**sizes, **json.loads(done.stdout.splitlines()[-1])}


if __name__ == "__main__":
    sys.exit(main())
