"""The training loop: first trains the tower, then the projector and decoder with a frozen tower.

Training runs for a given number of minutes. Learning rates depend on the fraction of this time that has
elapsed. The checkpoint contains the elapsed time, so an interrupted run can be resumed.
"""

import contextlib
import ctypes
import json
import multiprocessing
import os
import queue
import time
from collections import Counter
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tiny.conversations import KINDS
from tiny.model import TinyLlava
from tiny.optimizer import Optimizer
from tiny.packing import Batch, Rows, make_batch

__all__ = ["Trainer"]

_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
_SIZE, _PAIRS = 16, 3  # number of images, and of rows with two images, per batch
_TOWER_UNTIL, _FULL_SPEED_UNTIL = 0.25, 0.60  # fractions of the training time
_WARMUP = 60  # number of steps at the start of each stage
_REPORT_S = 120.0


def pixel_values(
    pixels: Tensor,
) -> Tensor:  # uint8 [images, side, side, 3] -> float [images, 3, side, side]
    """Scale and normalize the pixels as CLIP does."""
    return ((pixels.float() / 255 - _MEAN) / _STD).permute(0, 3, 1, 2).contiguous()


def _produce_batches(
    batches: "multiprocessing.Queue[Batch]",
    stream: str,
    start: int,
    weights: "SynchronizedArray[ctypes.c_double]",
) -> None:
    """Generate batches, starting with number `start`, until the trainer's process exits."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    batch, index = None, start
    while trainer.is_alive():
        if batch is None:
            chances = {kind: float(weight) for kind, weight in zip(KINDS, weights[:], strict=True)}
            batch = make_batch(stream, index, size=_SIZE, num_pairs=_PAIRS, weights=chances)
        with contextlib.suppress(queue.Full):
            batches.put(batch, timeout=5)
            batch, index = None, index + 1


class Trainer:
    """The model, its optimizer and the process that generates batches. Must be used as a context manager."""

    def __init__(self, *, minutes: float, work: Path) -> None:
        self.model = TinyLlava()
        self.step = 0
        self._seconds, self._elapsed = 60 * minutes, 0.0
        self._work = work
        self._optimizer = Optimizer(self.model)
        self._stage, self._stage_start = "", 0
        spawn = multiprocessing.get_context("spawn")
        self._queue: multiprocessing.Queue[Batch] = spawn.Queue(maxsize=6)
        self._weights = spawn.Array("d", [1.0] * len(KINDS))
        self._spawn = spawn
        self._batch_process: Any = None
        self._held_out = [
            make_batch("held-out", number, size=_SIZE, num_pairs=_PAIRS) for number in range(12)
        ]

    def __enter__(self) -> "Trainer":
        args = (self._queue, "train", self.step, self._weights)
        self._batch_process = self._spawn.Process(target=_produce_batches, args=args, daemon=True)
        self._batch_process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._batch_process.terminate()

    @property
    def progress(self) -> float:
        """Return the fraction of the training time that has elapsed, from 0 to 1."""
        return self._elapsed / self._seconds

    def run(self) -> bool:
        """Train for two minutes, save a checkpoint and print a report. Return False once the time is up."""
        start, first_step, sums = time.monotonic(), self.step, Counter[str]()
        while time.monotonic() - start < _REPORT_S and self.progress < 1:
            before = time.monotonic()
            for name, value in self._train(self._queue.get()).items():
                sums[name] += value  # type: ignore[assignment]
            self.step += 1
            self._elapsed += time.monotonic() - before
        steps = max(1, self.step - first_step)
        report: dict[str, Any] = {name: round(value / steps, 4) for name, value in sums.items()}
        report |= {"pictures_per_s": round(_SIZE * steps / (time.monotonic() - start), 1)}
        report |= {"step": self.step, "minutes": round(self._elapsed / 60, 1), "stage": self._stage}
        report["label_accuracy"] = self._label_accuracy()
        report["accuracy"] = self._accuracy()
        self._rebalance(report["accuracy"])
        self._save()
        with (self._work / "history.jsonl").open("a") as history:
            history.write(json.dumps(report) + "\n")
        print(json.dumps(report), flush=True)
        return self.progress < 1

    def _train(self, batch: Batch) -> dict[str, float]:
        self._enter_stage()
        rate = self._rate()
        with torch.autocast("cpu", torch.bfloat16):
            name, loss = self._label_loss(batch) if self._stage == "tower" else self._answer_loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step(rate)
        self._optimizer.zero_grad()
        return {name: loss.item()}

    def _rate(self) -> float:
        """Return the learning rate factor, 0 to 1. Each stage starts with a warm-up and ends with a decay."""
        warm = min(1.0, (self.step - self._stage_start + 1) / _WARMUP)
        if self._stage == "tower":
            return warm * min(1.0, 0.05 + 3 * (1 - self.progress / _TOWER_UNTIL))
        return warm * min(1.0, (1 - self.progress) / (1 - _FULL_SPEED_UNTIL))

    def _enter_stage(self) -> None:
        stage = "tower" if self.progress < _TOWER_UNTIL else "decoder"
        if stage == self._stage:
            return
        if stage == "decoder":
            self.model.add_teacher_units(
                self.model.features(pixel_values(torch.from_numpy(self._held_out[0].pixels)))
            )
        self._stage, self._stage_start = stage, self.step

    def _label_loss(self, batch: Batch) -> tuple[str, Tensor]:
        """Return the loss on the images of two batches. The questions are not used."""
        batches = (batch, self._queue.get())
        pixels = torch.from_numpy(np.concatenate([batch.pixels for batch in batches]))
        labels = torch.from_numpy(np.concatenate([batch.labels for batch in batches]))
        return "labels", self.model.label_loss(self.model.features(pixel_values(pixels)), labels).mean()

    def _answer_loss(self, batch: Batch) -> tuple[str, Tensor]:
        with torch.no_grad():  # the tower is frozen, as in LLaVA
            features = self.model.features(pixel_values(torch.from_numpy(batch.pixels)))
        images = self.model.project(features)
        logits, truths = zip(
            *(self._forward(rows, images) for rows in (batch.single, batch.pairs)), strict=True
        )
        return "loss", F.cross_entropy(torch.cat(logits).float(), torch.cat(truths))

    def _forward(self, rows: Rows, images: Tensor) -> tuple[Tensor, Tensor]:
        ids, targets = torch.from_numpy(rows.ids), torch.from_numpy(rows.targets)
        positions, segments = torch.from_numpy(rows.positions), torch.from_numpy(rows.segments)
        row_images = images[torch.from_numpy(rows.images)]
        return self.model.logits(ids, positions, segments, targets, row_images), ids[:, 1:][targets[:, 1:]]

    @torch.no_grad()
    def _accuracy(self) -> dict[str, float]:
        """Return the fraction of held-out answers that greedy decoding would reproduce, keyed by kind."""
        right, total = Counter[str](), Counter[str]()
        for batch in self._held_out if self._stage != "tower" else []:
            with torch.autocast("cpu", torch.bfloat16):
                images = self.model.project(self.model.features(pixel_values(torch.from_numpy(batch.pixels))))
                answers = [(rows, *self._forward(rows, images)) for rows in (batch.single, batch.pairs)]
            for rows, logits, truth in answers:
                wrong = set()
                positions = torch.from_numpy(rows.targets).nonzero()[(logits.argmax(-1) != truth)].tolist()
                for row, column in positions:
                    wrong.add((row, abs(int(rows.segments[row, column])) - 2))
                for row, kinds in enumerate(rows.kinds):
                    for number, kind in enumerate(kinds):
                        total[kind] += 1
                        right[kind] += (row, number) not in wrong
        accuracy = {kind: round(right[kind] / total[kind], 3) for kind in KINDS if total[kind]}
        return {"all": round(sum(right.values()) / total.total(), 3), **accuracy} if total else {}

    @torch.no_grad()
    def _label_accuracy(self) -> dict[str, float]:
        pixels, labels = (
            torch.from_numpy(np.concatenate([getattr(batch, name) for batch in self._held_out]))
            for name in ("pixels", "labels")
        )
        return self.model.label_accuracy(self.model.features(pixel_values(pixels)), labels)

    def _rebalance(self, accuracy: dict[str, float]) -> None:
        """Increase the probability of question kinds with low accuracy."""
        if not accuracy:
            return
        wrong = [1 - accuracy.get(kind, 0.5) + 0.01 for kind in KINDS]
        mean = sum(wrong) / len(wrong)
        self._weights[:] = [min(2.5, max(0.5, (rate / mean) ** 0.5)) for rate in wrong]

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "elapsed": self._elapsed,
            "stage": (self._stage, self._stage_start),
        }
        torch.save(state, self._work / "checkpoint.tmp")
        os.replace(self._work / "checkpoint.tmp", self._work / "checkpoint.pt")

    def resume(self) -> None:
        """Resume from the last checkpoint, if there is one."""
        path = self._work / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self._elapsed = state["step"], state["elapsed"]
        self._stage, self._stage_start = state["stage"]
