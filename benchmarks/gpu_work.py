"""What benchmarks/gpu_bank_vs_peft.py and benchmarks/device_probe.py train: T5 v1.1 hosts of random
weights, texts of random tokens, and PEFT's model of the same host."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from peftport.data.batches import train_batches
from peftport.data.tasks import Encoded
from peftport.errors import RunError
from peftport.formats import peft as layout
from peftport.hosts.families.base import Words, family_of
from peftport.hosts.load import Host, quiet_transformers
from peftport.hosts.packed.layout import pack
from peftport.methods.bank import Bank
from peftport.methods.base import MethodConfig, Module, config_from_json
from peftport.train.fused import Slot, program_of, train_bank
from peftport.train.reference import TrainSpec, fresh_module

#: google/t5-v1_1-base and -large as their config.json says, and one small enough for a test
SHAPES: dict[str, dict[str, int]] = {
    "small": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
              "vocab_size": 512},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12,
             "vocab_size": 32128},
    "large": {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16,
              "vocab_size": 32128},
}  # fmt: skip
#: as both libraries have them: PEFT's prefix on T5 acts on the decoder's self-attention
CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "prefix": {"method": "prefix", "positions": "past", "stacks": ["decoder"],
               "blocks": ["self_attn"]},
}  # fmt: skip
#: label words of two tokens, the second the end marker
_WORDS = Words(((100, 1), (200, 1)))
#: texts whose loss is compared after the last step
_HELD = 64


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
        shape, method: keys of :data:`SHAPES` and :data:`CONFIGS`.
        steps, batch, tokens, lr: of every training; no dropout, no decay, clip 1.
        varied: texts of 16 tokens up to ``tokens`` instead of all ``tokens`` long.
        dtype: of the host's weights; modules and their optimiser are float32 on every side.
        device: where everything runs.
    """

    shape: str
    method: str
    steps: int
    batch: int
    tokens: int
    lr: float
    varied: bool
    dtype: torch.dtype
    device: torch.device


def make_host(shape: str, dtype: torch.dtype, device: torch.device) -> Host:
    """A T5 v1.1 of random weights without a tokenizer; its output layer is scaled so that a fresh
    host's losses are those of a guess."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        **SHAPES[shape],
        num_decoder_layers=SHAPES[shape]["num_layers"],
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        dropout_rate=0.0,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(config.d_model**-0.5)
    model = model.to(dtype).eval().requires_grad_(False)
    family = family_of("t5")
    return Host(
        f"t5-v1_1-{shape} (random)", Path(), model, None, family, family.describe(config), _WORDS,
        2, "",
    )  # fmt: skip


class Work:
    """One host, one method and their texts. Training k starts from a module of seed k and reads
    batches of seed k."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self.settings, self.host = settings, host
        self.config: MethodConfig = config_from_json(CONFIGS[settings.method])
        random = np.random.default_rng(0)
        count = max(512, 4 * settings.batch)
        low = 16 if settings.varied else settings.tokens
        lengths = random.integers(low, settings.tokens + 1, size=count)
        high = SHAPES[settings.shape]["vocab_size"]
        self.labels = random.integers(0, 2, size=count)
        ids = [[*random.integers(300, high, size=n - 1).tolist(), 1] for n in lengths]
        for row, label in zip(ids, self.labels, strict=True):
            row[::4] = [250 + int(label)] * len(row[::4])  # what a module can learn
            row[-1] = 1
        self.encoded = Encoded(ids)

    def slot(self, seed: int) -> Slot:
        own = self.settings
        spec = TrainSpec(steps=own.steps, lr=own.lr, batch_size=own.batch, seed=seed)
        module = fresh_module(self.host, self.config, seed)
        return Slot(module, self.encoded, self.labels, spec)

    @cached_property
    def held(self) -> tuple[Encoded, np.ndarray]:
        return Encoded(self.encoded.ids[:_HELD]), self.labels[:_HELD]

    def batches(self, slot: Slot) -> list[list[int]]:
        own = slot.spec
        return train_batches(slot.encoded.lengths, own.batch_size, own.steps, own.seed)

    def tokens_a_step(self, slots: Sequence[Slot]) -> float:
        """Tokens of a slot's batch, without padding, on average."""
        lengths = np.asarray(self.encoded.lengths)
        return float(np.mean([lengths[self.batches(s)].sum(1).mean() for s in slots]))

    @torch.no_grad()
    def held_losses(self, modules: Sequence[Module]) -> list[float]:
        """Mean loss of each module on the held texts."""
        encoded, labels = self.held
        host, count = self.host, len(modules)
        bank = Bank(host.spec, modules, dtype=host.dtype, grad=False, device=host.device)
        bank.refresh()
        packed = pack([encoded.ids] * count, host.device)
        own = torch.as_tensor(np.tile(labels, count))[packed.order].to(host.device)
        losses: list[float] = program_of(host).losses(packed, bank.layer, own).tolist()
        return losses


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the work gives."""
    wait(device)
    began = time.perf_counter()
    found = work()
    wait(device)
    return time.perf_counter() - began, found


def by_bank(work: Work, slots: Sequence[Slot]) -> tuple[float, list[Module]]:
    """Seconds of one bank, and its modules."""
    seconds, [(_, made)] = timed(work.settings.device, lambda: list(train_bank(work.host, slots)))
    modules: list[Module] = []
    for module in made:
        if isinstance(module, RunError):
            raise module
        modules.append(module)
    return seconds, modules


class Theirs:
    """PEFT's model of the same host: a copy of its own, since PEFT rewrites the model. Adapters are
    float32, as PEFT makes them by itself."""

    def __init__(self, work: Work) -> None:
        from peft import PeftConfig, get_peft_model

        self._work = work
        with tempfile.TemporaryDirectory() as folder:
            layout.write(Path(folder), work.slot(0).module, work.host.spec, None)
            config = PeftConfig.from_pretrained(folder)
        config.inference_mode = False
        self._model = get_peft_model(copy.deepcopy(work.host.model), config)
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                self._widen(name, parameter)
        self._leaves = [p for p in self._model.parameters() if p.requires_grad]
        words = work.host.words
        assert words is not None
        self._targets = words.padded(torch.as_tensor(work.labels))

    def _widen(self, name: str, parameter: nn.Parameter) -> None:
        owner, _, leaf = name.rpartition(".")
        wide = nn.Parameter(parameter.detach().float())
        setattr(self._model.get_submodule(owner), leaf, wide)

    def collate(self, rows: Sequence[int]) -> dict[str, Tensor]:
        batch = self._work.encoded.batch(rows, 0)
        return {**batch, "labels": self._targets[list(rows)]}

    def _set(self, module: Module) -> None:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        with tempfile.TemporaryDirectory() as folder:
            layout.write(Path(folder), module, self._work.host.spec, None)
            tensors = load_file(Path(folder) / layout.WEIGHTS)
        set_peft_model_state_dict(self._model, tensors)
        now = get_peft_model_state_dict(self._model)
        assert set(now) == set(tensors), "PEFT's parameters have other names"
        assert all(torch.equal(now[n].cpu(), tensors[n]) for n in now), "PEFT kept its own"
        for leaf in self._leaves:
            leaf.grad = None

    @torch.no_grad()
    def held_loss(self) -> float:
        self._model.eval()
        batch = self.collate(range(_HELD))
        device = self._work.settings.device
        return float(self._model(**{n: t.to(device) for n, t in batch.items()}).loss)

    def by_loop(self, slot: Slot) -> float:
        """Seconds of a DataLoader, torch's AdamW and nothing else."""
        self._set(slot.module)
        self._model.eval()
        device = self._work.settings.device

        def train() -> None:
            loader = DataLoader(
                range(len(slot.encoded)),  # type: ignore[arg-type]
                batch_sampler=self._work.batches(slot),
                collate_fn=self.collate,
                pin_memory=device.type == "cuda",
            )
            fused = device.type == "cuda"
            optimiser = torch.optim.AdamW(
                self._leaves, lr=slot.spec.lr, weight_decay=0.0, fused=fused
            )
            for batch in loader:
                there = {n: t.to(device, non_blocking=True) for n, t in batch.items()}
                loss = self._model(**there).loss
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self._leaves, slot.spec.clip)
                optimiser.step()

        return timed(device, train)[0]

    def by_trainer(self, slot: Slot) -> float:
        """Seconds of transformers' Trainer; only its ``train()`` is timed."""
        from trainer import constant_rate
        from transformers import PrinterCallback, Trainer

        self._set(slot.module)
        device = self._work.settings.device
        rows = [row for batch in self._work.batches(slot) for row in batch]
        with tempfile.TemporaryDirectory() as folder, quiet_transformers():
            arguments = constant_rate(
                folder,
                slot.spec,
                remove_unused_columns=False,
                use_cpu=device.type == "cpu",
                dataloader_pin_memory=device.type == "cuda",
            )
            trainer = Trainer(
                self._model,
                arguments,
                train_dataset=rows,  # type: ignore[arg-type]
                data_collator=self.collate,  # type: ignore[arg-type]
            )
            trainer.remove_callback(PrinterCallback)
            return timed(device, trainer.train)[0]
