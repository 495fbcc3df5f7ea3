import base64
from pathlib import Path

from openai import OpenAI

data = base64.b64encode(Path("examples/shapes.png").read_bytes()).decode()
image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
question = {"type": "text", "text": "What colour is the heart?"}
client = OpenAI()  # reads OPENAI_BASE_URL
with client.chat.completions.stream(
    model="tiny-llava", messages=[{"role": "user", "content": [image, question]}], temperature=0
) as stream:
    for event in stream:
        if event.type == "content.delta":
            print(event.delta, end="", flush=True)
print()
