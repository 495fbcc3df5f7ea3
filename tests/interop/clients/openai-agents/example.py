import base64
from pathlib import Path

from agents import Agent, ModelSettings, Runner, set_tracing_disabled

set_tracing_disabled(True)
data = base64.b64encode(Path("examples/shapes.png").read_bytes()).decode()
image = {"type": "input_image", "image_url": f"data:image/png;base64,{data}", "detail": "auto"}
question = {"type": "input_text", "text": "What colour is the heart?"}
agent = Agent(name="Eye", model="tiny-llava", model_settings=ModelSettings(temperature=0))
result = Runner.run_sync(agent, [{"role": "user", "content": [image, question]}])
print(result.final_output)
