"""Ask about an image with LangChain's ChatOpenAI: python examples/langchain_chat.py IMAGE QUESTION

The client reads OPENAI_BASE_URL (such as http://127.0.0.1:8000/v1) and OPENAI_API_KEY.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from openai import OpenAI

image, question = sys.argv[1:]
data = base64.b64encode(Path(image).read_bytes()).decode()
with OpenAI() as client:
    model = next(iter(client.models.list())).id
message = HumanMessage(
    [
        {"type": "image", "base64": data, "mime_type": "image/png"},
        {"type": "text", "text": question},
    ]
)
for chunk in ChatOpenAI(model=model, temperature=0).stream([message]):
    print(chunk.text, end="", flush=True)
print()
