"""Workers as real processes: echo ones unless another model is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from llava_wire.messages.job import Message
from llava_worker.echo_engine import EchoEngine
from llava_worker.engine import Sequence
from llava_worker.language.detokenizer import Detokenizer
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings

from tests.waiting import async_wait_until
from tests.worker.sampling_params import greedy


class WorkerProcess:
    """Ends with the test that started it."""

    def __init__(self, url: str, log: Path, *flags: str, model: str = "echo") -> None:
        command = [sys.executable, "-m", "llava_worker", "--model", model, "--redis-url", url, *flags]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAVA_")}
        self._log = log
        with log.open("wb") as sink:
            self._process = subprocess.Popen(command, stderr=sink, env=environment)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def children(self) -> list[int]:
        """Processes that it started, by id."""
        return [child.pid for child in psutil.Process(self._process.pid).children()]

    @property
    def status(self) -> int | None:
        """None while it runs; minus the signal's number if one ended it."""
        return self._process.poll()

    async def ready(self) -> WorkerProcess:
        await async_wait_until(lambda: "worker ready" in self.log or self.status is not None)
        assert self.status is None, self.log
        return self

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        await async_wait_until(lambda: self.status is not None)
        assert self.status is not None
        return self.status

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Fleet:
    """The workers of one test."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._workers: list[WorkerProcess] = []

    def start(self, *flags: str) -> WorkerProcess:
        worker = WorkerProcess(self._url, self._folder / f"worker-{len(self._workers)}.log", *flags)
        self._workers.append(worker)
        return worker

    def kill(self) -> None:
        for worker in self._workers:
            worker.kill()


@contextmanager
def fleet_of(url: str, folder: Path) -> Iterator[Fleet]:
    fleet = Fleet(url, folder)
    try:
        yield fleet
    finally:
        fleet.kill()


def undisturbed(question: str, *, max_tokens: int) -> str:
    """What one echo engine answers when nobody dies; greedy and without an end of its own."""
    model = open_model(load_settings(["--model", "echo"]))
    prompt = model.prompts.build_chat([Message("user", (question,))])
    sampling = greedy(ignore_eos=True)
    engine = EchoEngine()
    engine.add(
        Sequence(seq_id="one", prompt_ids=prompt.token_ids, max_new_tokens=max_tokens, sampling=sampling)
    )
    detokenizer = Detokenizer(model.tokenizer)
    text = ""
    while engine.num_sequences:
        text += "".join(detokenizer.push(out.token_id) for out in engine.step() if out.token_id is not None)
    return text + detokenizer.flush()
