"""The same with Anthropic's client: python examples/anthropic_messages.py PICTURE QUESTION

Server and key are Anthropic's own variables: ANTHROPIC_BASE_URL=http://127.0.0.1:8000, ANTHROPIC_API_KEY.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from anthropic import Anthropic

image, question = sys.argv[1:]
data = base64.b64encode(Path(image).read_bytes()).decode()
with Anthropic() as client:
    model = next(iter(client.models.list())).id
    stream = client.messages.stream(
        model=model,
        max_tokens=64,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
                    {"type": "text", "text": question},
                ],
            }
        ],
        extra_body={"temperature": 0},
    )
    with stream as answer:
        for text in answer.text_stream:
            print(text, end="", flush=True)
print()
