import ollama

message = {"role": "user", "content": "What colour is the heart?", "images": ["examples/shapes.png"]}
for part in ollama.chat(
    "tiny-llava", [message], stream=True, options={"temperature": 0}
):  # reads OLLAMA_HOST
    print(part.message.content, end="", flush=True)
print()
