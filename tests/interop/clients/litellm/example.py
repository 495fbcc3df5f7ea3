import base64
from pathlib import Path

import litellm

data = base64.b64encode(Path("examples/shapes.png").read_bytes()).decode()
image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
question = {"type": "text", "text": "What colour is the heart?"}
chunks = litellm.completion(  # reads OPENAI_BASE_URL
    "openai/tiny-llava", [{"role": "user", "content": [image, question]}], temperature=0, stream=True
)
for chunk in chunks:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
