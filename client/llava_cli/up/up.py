"""``llava-serve up``: run Redis, a server and workers on this machine, and stop them together.

    check extras, port and Redis  ->  plan  ->  start [redis] [workers] [server]
    ->  wait for /readyz  ->  panel  ->  watch until Ctrl-C or SIGTERM  ->  stop [server] [workers] [redis]

A second Ctrl-C kills the processes that are still running.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from llava_client.loopback import is_loopback

from llava_cli.exit_codes import EXIT_FAILED, EXIT_USAGE, fail, handle_errors
from llava_cli.extras import install_line, missing_modules
from llava_cli.up.child_process import Program
from llava_cli.up.demo import demo_socket_path, serve_demo_socket
from llava_cli.up.display import Display
from llava_cli.up.gpus import Gpu, GpusUnavailable, choose_gpus
from llava_cli.up.plan import LaunchPlan
from llava_cli.up.port import PortUnavailable, check_port
from llava_cli.up.readiness import read_readiness, wait_until_ready
from llava_cli.up.redis_process import RedisNotFound, private_redis
from llava_cli.up.supervisor import ChildFailed, Supervisor

__all__ = ["up"]

_MIN_DEMO_WORKERS = 2  # one of them is killed, and another one continues the response


def up(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Model: 'tiny' (bundled), a folder, a Hugging Face Hub ID, or 'echo'."
        ),
    ] = "tiny",
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of worker processes.")] = 1,
    precision: Annotated[str, typer.Option(help="Data type: auto, fp32, bf16, ...")] = "auto",
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, ...")] = "auto",
    gpus: Annotated[
        str | None, typer.Option(help="Run one worker on each of these GPUs: 'all' or a list such as '0,1'.")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="Model name used in the API.")] = None,
    host: Annotated[
        str, typer.Option(help="Listen address. Unless it is a loopback address, clients need an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Listen port. 0 selects a free port.")] = 8000,
    redis_url: Annotated[
        str | None, typer.Option(envvar="LLAVA_REDIS_URL", help="Redis URL. Default: a private Redis server.")
    ] = None,
    demo: Annotated[
        bool,
        typer.Option(
            help="Run at least two workers, and let the playground kill a worker during a response. "
            "Requires a loopback address."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the output of the processes.")
    ] = False,
) -> None:
    """Run Redis, a server and workers, whose other settings are variables such as LLAVA_KV_CACHE_MB."""
    _check_extras(model)
    display = Display(is_verbose=verbose)
    with handle_errors(), ExitStack() as stack:
        try:
            selected_gpus = _choose_gpus(gpus, workers, device)
            plan = LaunchPlan(
                model=model,
                served_model_name=served_model_name,
                num_workers=len(selected_gpus) or max(workers, _MIN_DEMO_WORKERS if demo else 1),
                precision=precision,
                device="cuda" if selected_gpus else device,
                gpus=selected_gpus,
                host=host,
                port=check_port(host, port),
                generated_key=LaunchPlan.generate_key(host, os.environ),
                demo_socket=_demo_socket(host, stack) if demo else None,
            )
            layers, private_url = _process_layers(plan, redis_url, stack)
            asyncio.run(run(plan, layers, display, private_url))
        except (PortUnavailable, RedisNotFound, GpusUnavailable) as exc:
            fail(str(exc), EXIT_USAGE)
        except ChildFailed as exc:
            display.tail(exc.tail)
            fail(str(exc), EXIT_USAGE if exc.status == EXIT_USAGE else EXIT_FAILED)


async def run(
    plan: LaunchPlan, layers: list[list[Program]], display: Display, private_url: str | None
) -> None:
    """Start the processes, supervise them until a stop signal arrives, and then stop them.

    ``private_url`` is the URL of the private Redis server, or None if there is none. Raises ChildFailed if a
    process exits and cannot be restarted.
    """
    stop, kill_now = asyncio.Event(), asyncio.Event()
    _listen_for_signals(stop, kill_now)
    async with (
        Supervisor(on_line=display.line, on_event=display.show, kill_now=kill_now) as supervisor,
        serve_demo_socket(plan.demo_socket, supervisor.kill),
    ):
        for layer in layers:
            await supervisor.start(layer)
        workers = "1 worker" if plan.num_workers == 1 else f"{plan.num_workers} workers"
        with display.waiting(f"starting {plan.model} with {workers}"):
            await _run_until_first(stop.wait(), supervisor.watch(), wait_until_ready(plan.base_url))
        if not stop.is_set():
            supervisor.enable_restarts()
            status = await read_readiness(plan.base_url) or {}
            display.ready(plan, _served_name(status, plan), private_url)
            for warning in status.get("warnings", []):
                display.show(f"warning: {warning}")
            await _run_until_first(stop.wait(), supervisor.watch())
        display.show("stopping; press Ctrl-C again to kill the processes")


def _check_extras(model: str) -> None:
    missing = {extra: missing_modules(extra, model=model) for extra in ("server", "worker")}
    incomplete = [extra for extra, modules in missing.items() if modules]
    if incomplete:
        names = ", ".join(sorted({name for modules in missing.values() for name in modules}))
        command = install_line(*incomplete)
        fail(f"`up` requires modules that are not installed: {names}. Run: {command}", EXIT_USAGE)


def _choose_gpus(gpus: str | None, num_workers: int, device: str) -> tuple[Gpu, ...]:
    """Return the selected GPUs, or an empty tuple if --gpus is not set.

    Raises GpusUnavailable if the options conflict or the GPUs are invalid.
    """
    if gpus is None:
        return ()
    if num_workers > 1 or device != "auto":
        raise GpusUnavailable(
            f"--gpus {gpus} runs one worker per GPU. Omit --gpus, or omit both --workers and --device."
        )
    return choose_gpus(gpus, os.environ)


def _demo_socket(host: str, stack: ExitStack) -> Path:
    """Return the path of the socket for demo mode, which ``stack`` removes."""
    if not is_loopback(host):
        fail(
            f"--demo lets every client kill workers, so it needs a loopback address, and --host is {host}. "
            "Omit --host or --demo.",
            EXIT_USAGE,
        )
    return stack.enter_context(demo_socket_path())


def _process_layers(
    plan: LaunchPlan, redis_url: str | None, stack: ExitStack
) -> tuple[list[list[Program]], str | None]:
    """Return the layers of programs in the order in which to start them, and the private Redis server's URL.

    If such a server is needed, ``stack`` cleans it up. Raises RedisNotFound if none is installed.
    """
    if redis_url:
        return [plan.workers(redis_url), [plan.server(redis_url)]], None
    redis, private_url = stack.enter_context(private_redis())
    return [[redis], plan.workers(private_url), [plan.server(private_url)]], private_url


def _listen_for_signals(stop: asyncio.Event, kill_now: asyncio.Event) -> None:
    """Set ``stop`` on the first signal and ``kill_now`` on the second.

    SIGHUP means that the terminal was closed. It remains ignored under nohup.
    """

    def on_signal() -> None:
        (kill_now if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, on_signal)


async def _run_until_first(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Run the coroutines until the first one ends, then cancel the others.

    If the first one failed, raise its exception.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _served_name(status: Mapping[str, Any], plan: LaunchPlan) -> str:
    """Return the model name used in the API, which a running server lists."""
    models = status.get("models") or [plan.served_model_name or plan.model]
    return str(models[0])
