"""Ask about an image with OpenAI's Responses API: python examples/openai_responses.py IMAGE QUESTION

The client reads OPENAI_BASE_URL (such as http://127.0.0.1:8000/v1) and OPENAI_API_KEY.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from openai import OpenAI

image, question = sys.argv[1:]
url = f"data:image/png;base64,{base64.b64encode(Path(image).read_bytes()).decode()}"
with OpenAI() as client:
    response = client.responses.create(
        model=next(iter(client.models.list())).id,
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": url, "detail": "auto"},
                    {"type": "input_text", "text": question},
                ],
            }
        ],
        temperature=0,
    )
print(response.output_text)
