import base64
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

data = base64.b64encode(Path("examples/shapes.png").read_bytes()).decode()
image = {"type": "image", "base64": data, "mime_type": "image/png"}
message = HumanMessage([image, {"type": "text", "text": "What colour is the heart?"}])
for chunk in ChatOpenAI(model="tiny-llava", temperature=0).stream([message]):
    print(chunk.text, end="", flush=True)
print()
