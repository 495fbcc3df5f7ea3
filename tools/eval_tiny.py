"""Evaluate the tiny LLaVA on held-out scenes and print its accuracy per question type.

    python tools/eval_tiny.py --folder worker/llava_worker/tiny            with transformers
    python tools/eval_tiny.py --url http://127.0.0.1:8000 --scenes 1000    with a running server

The exit code is 1 if fewer than 95 % of all answers, or fewer than 90 % for any question type, are correct.
"""

import argparse
import sys
import time
from pathlib import Path

from tiny.evaluation import accuracy_table, evaluation_questions
from tiny.predictions import predict_with_server, predict_with_transformers


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--url", help="URL of a server with /v1/chat/completions")
    target.add_argument(
        "--folder", type=Path, help="folder of a model to run with transformers in this process"
    )
    parser.add_argument(
        "--scenes",
        type=int,
        default=1000,
        help="number of held-out scenes, with three questions each (default 1000)",
    )
    parser.add_argument(
        "--stream", default="test", help="name used as the seed of the scenes (default 'test')"
    )
    parser.add_argument(
        "--concurrency", type=int, default=16, help="number of concurrent requests (with --url, default 16)"
    )
    parser.add_argument("--model", help="model name (with --url; default: the server's first model)")
    parser.add_argument("--api-key", help="bearer token (with --url)")
    parser.add_argument(
        "--dtype", default="float32", help="float32, bfloat16 or float16 (with --folder, default float32)"
    )
    parser.add_argument(
        "--show-wrong", type=int, default=0, metavar="N", help="print the first N incorrect answers"
    )
    args = parser.parse_args()
    questions = list(evaluation_questions(args.scenes, args.stream))
    start = time.monotonic()
    if args.url:
        answers = predict_with_server(
            args.url,
            questions,
            concurrency=args.concurrency,
            model=args.model,
            api_key=args.api_key,
        )
    else:
        answers = predict_with_transformers(args.folder, questions, dtype=args.dtype)
    results = list(answers)
    for result in [result for result in results if not result.is_right][: args.show_wrong]:
        print(f"{result.question.kind}: {result.question.turns[-1].question!r}")
        print(f"  expected {result.question.truth!r}, got {result.answer!r}")
    table, passed = accuracy_table(results)
    seconds = time.monotonic() - start
    print(table)
    verdict = "passed" if passed else "FAILED"
    print(f"{len(results)} questions, {args.scenes} scenes, {seconds:.0f} s: {verdict}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
