import base64
from pathlib import Path

from anthropic import Anthropic

data = base64.b64encode(Path("examples/shapes.png").read_bytes()).decode()
image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
question = {"type": "text", "text": "What colour is the heart?"}
client = Anthropic()  # reads ANTHROPIC_BASE_URL
with client.messages.stream(
    model="tiny-llava", max_tokens=64, messages=[{"role": "user", "content": [image, question]}]
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()
