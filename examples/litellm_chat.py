"""Ask about an image with LiteLLM: python examples/litellm_chat.py IMAGE QUESTION

LiteLLM reads OPENAI_BASE_URL (such as http://127.0.0.1:8000/v1) and OPENAI_API_KEY.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import litellm
from openai import OpenAI

image, question = sys.argv[1:]
url = f"data:image/png;base64,{base64.b64encode(Path(image).read_bytes()).decode()}"
with OpenAI() as client:
    model = next(iter(client.models.list())).id
chunks = litellm.completion(
    model=f"openai/{model}",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": question},
            ],
        }
    ],
    temperature=0,
    stream=True,
)
for chunk in chunks:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
