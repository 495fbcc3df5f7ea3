import tempfile

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText
from inspect_ai.scorer import includes

content = [ContentImage(image="examples/shapes.png"), ContentText(text="What colour is the heart?")]
task = Task(dataset=[Sample([ChatMessageUser(content=content)], target="red")], scorer=includes())
[log] = eval(task, model="openai/tiny-llava", temperature=0, display="none", log_dir=tempfile.mkdtemp())
print(log.samples[0].output.completion)
