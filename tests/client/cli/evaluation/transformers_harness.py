"""Runs the plan of an evaluation with transformers' own model object instead of a server.

Runs in the environment with lmms-eval: ``python transformers_harness.py PACKAGE_FOLDER PLAN MODEL_FOLDER``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


class NoEvents:
    def send(self, event: str, **fields: Any) -> None:
        pass

    def fail(self, message: str) -> None:
        raise SystemExit(message)


def transformers_model(folder: str) -> Any:
    """Return a model of lmms-eval that calls ``generate``."""
    import torch
    from lmms_eval.api.model import lmms
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    torch.set_num_threads(1)
    load_processor: Any = AutoProcessor.from_pretrained
    processor = load_processor(folder)
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)

    class TransformersModel(lmms):  # type: ignore[misc]
        is_simple = False

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return [self._generate(*request.args) for request in requests]

        def _generate(
            self, _: str, doc_to_messages: Any, settings: dict[str, Any], item: int, task: str, split: str
        ) -> str:
            messages = doc_to_messages(self.task_dict[task][split][item])
            images = [
                part["url"] for message in messages for part in message["content"] if part["type"] == "image"
            ]
            text = processor.apply_chat_template(messages, add_generation_prompt=True)
            inputs = processor(images=images, text=text, return_tensors="pt")
            tokens = model.generate(**inputs, max_new_tokens=settings["max_new_tokens"], do_sample=False)
            new = tokens[0, inputs["input_ids"].shape[1] :]
            return str(processor.tokenizer.decode(new, skip_special_tokens=True))

        def loglikelihood(self, requests: Any) -> Any:
            raise NotImplementedError

        def generate_until_multi_round(self, requests: Any) -> Any:
            raise NotImplementedError

    return TransformersModel()


if __name__ == "__main__":
    package_folder, plan, model_folder = sys.argv[1:]
    sys.path.append(package_folder)
    from lmms_harness.plan import read_plan  # type: ignore[import-not-found]
    from lmms_harness.run import evaluate  # type: ignore[import-not-found]

    evaluate(read_plan(plan), NoEvents(), lambda: transformers_model(model_folder))
