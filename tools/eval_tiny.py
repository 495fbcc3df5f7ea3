"""Examine the tiny LLaVA on held-out scenes and print its marks per question type.

    python tools/eval_tiny.py --folder worker/llava_worker/tiny            with transformers
    python tools/eval_tiny.py --url http://127.0.0.1:8000 --scenes 1000    through a running server

The exit code is 1 if fewer than 95 % of all answers, or fewer than 90 % of one type, are right.
"""

import argparse
import sys
import time
from pathlib import Path

from tiny.exam import questions, table
from tiny.predictions import predict_with_server, predict_with_transformers


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--url", help="a server with /v1/chat/completions")
    target.add_argument("--folder", type=Path, help="a model folder, run by transformers in this process")
    parser.add_argument(
        "--scenes", type=int, default=1000, help="held-out scenes, three questions each (default 1000)"
    )
    parser.add_argument("--stream", default="test", help="which endless stream of scenes (default 'test')")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at a time (with --url)")
    parser.add_argument("--model", help="model name (with --url; default: the first the server lists)")
    parser.add_argument("--api-key", help="bearer token (with --url)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (with --folder)")
    parser.add_argument(
        "--show-wrong", type=int, default=0, metavar="N", help="print the first N wrong answers"
    )
    args = parser.parse_args()
    exam = list(questions(args.scenes, args.stream))
    start = time.monotonic()
    if args.url:
        answers = predict_with_server(
            args.url,
            exam,
            concurrency=args.concurrency,
            model=args.model,
            api_key=args.api_key,
        )
    else:
        answers = predict_with_transformers(args.folder, exam, dtype=args.dtype)
    results = list(answers)
    for result in [result for result in results if not result.is_right][: args.show_wrong]:
        print(f"{result.question.kind}: {result.question.turns[-1].question!r}")
        print(f"  is {result.question.truth!r}, was answered {result.answer!r}")
    text, is_met = table(results)
    seconds = time.monotonic() - start
    print(text)
    verdict = "met" if is_met else "NOT met"
    print(f"{len(results)} questions, {args.scenes} scenes, {seconds:.0f} s; bar {verdict}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
