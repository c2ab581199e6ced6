"""One training stage: seeded, with a progress bar, resumable to the same numbers.

Everything random in step ``i`` follows from the recipe's seed and ``i``, so a checkpoint is the
trained tensors, AdamW's two moments, the step and the log; nothing else.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from peftport.atomic import write_bytes
from peftport.errors import RunError
from peftport.hosts.forge.recipes import Schedule

CHECKPOINT_STEPS = 100
LOG_STEPS = 50


@dataclass
class StageLog:
    """What a stage did. ``losses`` holds means over windows of :data:`LOG_STEPS` steps."""

    losses: list[dict[str, float]] = field(default_factory=list)
    window: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    wall_s: float = 0.0

    def add(self, values: dict[str, float], wall_s: float, last: bool) -> bool:
        """Whether a window is full now."""
        self.steps += 1
        self.wall_s += wall_s
        self.window.append(values)
        if len(self.window) < LOG_STEPS and not last:
            return False
        names = self.window[0]
        means = {n: sum(w[n] for w in self.window) / len(self.window) for n in names}
        self.losses.append(means)
        self.window = []
        return True


def train_stage(
    title: str,
    parameters: Mapping[str, nn.Parameter],
    rates: Mapping[str, float],
    schedule: Schedule,
    losses_at: Callable[[int], dict[str, Tensor]],
    checkpoint: Path,
    identity: str,
) -> StageLog:
    """Minimise ``losses_at(step)["loss"]`` over ``schedule.steps`` steps, in place.

    Args:
        title: shown beside the progress.
        parameters: what is trained, by name.
        rates: full learning rate of each.
        schedule: steps, warm-up, decay, clip.
        losses_at: the losses of a step, by name; a function of the step and the parameters only.
        checkpoint: written every :data:`CHECKPOINT_STEPS` steps and read at start.
        identity: digest of all that decides the numbers; a checkpoint of another, or
            of more steps, is ignored.
    Returns:
        The log, over all steps, also those of interrupted earlier calls.
    Raises:
        RunError: the loss is not finite.
    """
    groups = [
        {
            "params": [p],
            "full_lr": rates[name],
            "weight_decay": schedule.weight_decay if p.ndim > 1 else 0.0,
        }
        for name, p in parameters.items()
    ]
    optimiser = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.99))
    log = _resume(checkpoint, identity, parameters, optimiser, schedule.steps)
    weights = list(parameters.values())
    for step in _progress(title, range(log.steps, schedule.steps), schedule.steps, log):
        started = time.monotonic()
        losses = losses_at(step)
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(weights, schedule.clip)
        for group in optimiser.param_groups:
            group["lr"] = group["full_lr"] * schedule.share(step)
        optimiser.step()
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(values["loss"]):
            raise RunError(f"{title}: the loss at step {step} is {values['loss']}; lower the rate")
        last = step + 1 == schedule.steps
        log.add(values, time.monotonic() - started, last)
        if last or (step + 1) % CHECKPOINT_STEPS == 0:
            _save(checkpoint, identity, parameters, optimiser, log)
    return log


def _progress(title: str, steps: range, total: int, log: StageLog) -> Iterable[int]:
    """The steps, with a bar on a terminal and a line per :data:`LOG_STEPS` steps elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(steps, desc=title, initial=steps.start, total=total, unit="step")
        return
    for step in steps:
        yield step
        if log.losses and not log.window:
            each = log.wall_s / log.steps
            shown = " ".join(f"{name} {value:.4f}" for name, value in log.losses[-1].items())
            left = each * (total - log.steps)
            line = (
                f"{title}: step {log.steps}/{total}, {shown}, {each:.2f} s/step, {left:.0f} s left"
            )
            print(line, file=sys.stderr, flush=True)


def _save(
    path: Path,
    identity: str,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    log: StageLog,
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, p in parameters.items():
        tensors[f"value/{name}"] = p.detach().contiguous()
        tensors[f"first/{name}"] = optimiser.state[p]["exp_avg"].contiguous()
        tensors[f"second/{name}"] = optimiser.state[p]["exp_avg_sq"].contiguous()
    facts = {"identity": identity, "log": json.dumps(asdict(log))}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(tensors, facts))


def _resume(
    path: Path,
    identity: str,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    steps: int,
) -> StageLog:
    """The log of an earlier call, with values and moments put back; an empty one without an earlier
    call of this identity that stopped at ``steps`` or before."""
    if not path.is_file():
        return StageLog()
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        if facts.get("identity") != identity:
            return StageLog()
        log = StageLog(**json.loads(facts["log"]))
        if log.steps > steps:
            return StageLog()
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(file.get_tensor(f"value/{name}"))
                optimiser.state[p] = {
                    "step": torch.tensor(float(log.steps)),
                    "exp_avg": file.get_tensor(f"first/{name}"),
                    "exp_avg_sq": file.get_tensor(f"second/{name}"),
                }
    return log
