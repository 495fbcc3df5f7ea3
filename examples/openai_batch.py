"""Ask questions about an image in a batch: python examples/openai_batch.py IMAGE QUESTION [QUESTION ...]

A batch has lower priority than all other requests and continues if this program exits. The client reads
OPENAI_BASE_URL (such as http://127.0.0.1:8000/v1) and OPENAI_API_KEY.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from pathlib import Path
from typing import Any

from openai import OpenAI

CHATS = "/v1/chat/completions"
image, *questions = sys.argv[1:]
url = f"data:image/png;base64,{base64.b64encode(Path(image).read_bytes()).decode()}"


def line(number: int, question: str, model: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0}
    return {"custom_id": str(number), "method": "POST", "url": CHATS, "body": body}


with OpenAI() as client:
    model = next(iter(client.models.list())).id
    lines = [json.dumps(line(number, question, model)) for number, question in enumerate(questions)]
    file = client.files.create(file=("questions.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h")
    while batch.status in ("validating", "in_progress"):
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    if batch.output_file_id is None:
        sys.exit(f"The batch is {batch.status}: {batch.errors or batch.request_counts}")
    for result in client.files.content(batch.output_file_id).text.splitlines():
        print(json.loads(result)["response"]["body"]["choices"][0]["message"]["content"])
