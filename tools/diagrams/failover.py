"""What happens to a stream when its worker is killed."""

from __future__ import annotations

from diagrams.drawing import Drawing

__all__ = ["failover"]

_X = {"Client": 70, "Controller": 236, "Redis": 420, "Worker 1": 620, "Worker 2": 800}
_HEIGHT = 496


def failover() -> str:
    """Return the diagram, in which time runs from top to bottom."""
    drawing = Drawing(890, _HEIGHT, "A stream is resumed on another worker after its worker was killed")
    for name, x in _X.items():
        drawing.line(x, 50, x, 452, role="line dashed")
        drawing.box(x - 58, 14, 116, 34, name, role="plain" if name == "Client" else "accent")
    _before_the_crash(drawing)
    _after_the_crash(drawing)
    return drawing.document()


def _message(drawing: Drawing, y: float, source: str, target: str, label: str) -> None:
    direction = 1 if _X[target] > _X[source] else -1
    drawing.arrow(_X[source] + 4 * direction, y, _X[target] - 4 * direction, y, label)


def _before_the_crash(drawing: Drawing) -> None:
    _message(drawing, 84, "Client", "Controller", "request")
    _message(drawing, 84, "Controller", "Redis", "submit the job")
    _message(drawing, 114, "Redis", "Worker 1", "pull: assignment a1")
    _message(drawing, 144, "Worker 1", "Redis", "a1: tokens 0 to 41")
    _message(drawing, 144, "Redis", "Controller", "events")
    _message(drawing, 144, "Controller", "Client", "text of 0 to 41")
    drawing.cross(_X["Worker 1"], 180)
    drawing.text(_X["Worker 1"] + 16, 184, "killed")


def _after_the_crash(drawing: Drawing) -> None:
    between = (_X["Redis"] + _X["Worker 1"]) / 2  # labels of arrows that cross the line of Worker 1
    lease = ("the lease of Worker 1 expires", "the job returns to the queue")
    drawing.box(_X["Redis"] - 100, 202, 200, 44, *lease, role="alarm", title=False)
    _message(drawing, 276, "Redis", "Worker 2", "")
    drawing.text(between, 269, "pull: a2, tokens 0 to 41", anchor="middle")
    prompt = ("computes the prompt", "and tokens 0 to 41")
    drawing.box(_X["Worker 2"] - 82, 292, 164, 44, *prompt, role="warm", title=False)
    _message(drawing, 366, "Worker 2", "Redis", "")
    drawing.text(between, 359, "a2: tokens 42, 43, ...", anchor="middle")
    _message(drawing, 366, "Redis", "Controller", "events")
    _message(drawing, 366, "Controller", "Client", "text from 42")
    late = ("if it was only frozen:", "a1: token 42")
    drawing.box(_X["Worker 1"] - 60, 392, 150, 44, *late, role="plain", title=False)
    drawing.arrow(_X["Worker 1"] - 63, 414, _X["Redis"] + 103, 414)
    rejected = ("rejected: a1 is no longer", "the assignment of the job")
    drawing.box(_X["Redis"] - 100, 392, 200, 44, *rejected, role="alarm", title=False)
    result = "The client keeps its connection. It receives each token exactly once, and no error."
    drawing.text(12, 478, result, kind="title")
