"""Ask about an image with Anthropic's client: python examples/anthropic_messages.py IMAGE QUESTION

The client reads ANTHROPIC_BASE_URL (such as http://127.0.0.1:8000) and ANTHROPIC_API_KEY.
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
    with stream as response:
        for text in response.text_stream:
            print(text, end="", flush=True)
print()
