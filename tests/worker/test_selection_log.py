"""A worker logs the device, the precision and the kernels that it selected, and ``up`` shows these lines."""

from __future__ import annotations

import logging

import pytest
import torch
from llava_cli.up.display import Display
from llava_cli.up.plan import LaunchPlan
from llava_wire.messages.heartbeat import KERNEL_SOURCES, KernelInfo
from llava_worker.engine.startup.device import choose_device
from llava_worker.model.quantization.precision import choose_precision
from llava_worker.open_model import open_model
from llava_worker.selection_log import log_kernels
from llava_worker.settings import Settings
from llava_worker.worker_process import LOG_FORMAT

PLAN = LaunchPlan(
    model="m",
    served_model_name=None,
    num_workers=1,
    precision="auto",
    device="auto",
    host="127.0.0.1",
    port=8000,
)


def test_up_shows_what_a_worker_selected_and_why(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    open_model(Settings(model="tiny", threads=1))
    display = Display(is_verbose=False)
    for record in caplog.records:
        for line in logging.Formatter(LOG_FORMAT).format(record).splitlines():
            display.line("worker-1", line)
    display.ready(PLAN, "m", None)
    shown = capsys.readouterr().out
    if not torch.cuda.is_available():
        assert "device      cpu, because torch finds no GPU\n" in shown
        assert "precision   fp32, because the model is small\n" in shown
        assert (
            "kernels     torch, because there are no other kernels for this precision and device\n" in shown
        )


def test_settings_other_than_auto_need_no_explanation(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    choose_precision("fp32", choose_device("cpu"))
    assert [record for record in caplog.records if record.name == "llava_worker.selected"] == []


@pytest.mark.parametrize("source", KERNEL_SOURCES)
def test_the_reason_of_a_fallback_is_logged(source: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_kernels(KernelInfo(source=source, variant="avx2"))
    log_kernels(KernelInfo(source=source, fallback_reason="no compiler was found"))
    first, second = caplog.messages
    assert first.startswith(f"kernels: {source} (avx2), ")
    assert second == f"kernels: {source}, because no compiler was found"
