from pathlib import Path

from pydantic_ai import Agent, BinaryContent

image = BinaryContent(Path("examples/shapes.png").read_bytes(), media_type="image/png")
agent = Agent("openai-chat:tiny-llava", model_settings={"temperature": 0})
print(agent.run_sync(["What colour is the heart?", image]).output)
