import os

from PIL import Image
from smolagents import ChatMessage, MessageRole, OpenAIModel

model = OpenAIModel("tiny-llava", api_base=os.environ["OPENAI_BASE_URL"], api_key="none", temperature=0)
image = {"type": "image", "image": Image.open("examples/shapes.png")}
question = {"type": "text", "text": "What colour is the heart?"}
print(model([ChatMessage(MessageRole.USER, [image, question])]).content)
