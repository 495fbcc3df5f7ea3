"""State that a component of the engine stores for each sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import ref

from llava_worker.engine.core.sequence import Sequence

__all__ = ["SequenceStates"]

_T = TypeVar("_T")


class SequenceStates(Generic[_T]):
    """A mapping from sequences to states, from which a sequence disappears when it is deleted.

    It is several times faster than a WeakKeyDictionary, which creates a weak reference for each access.
    """

    def __init__(self, create: Callable[[Sequence], _T]) -> None:
        """``create`` returns the initial state of a sequence."""
        self._create = create
        self._states: dict[int, tuple[ref[Sequence], _T]] = {}  # keyed by id()

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, sequence: Sequence) -> bool:
        return id(sequence) in self._states

    def __getitem__(self, sequence: Sequence) -> _T:
        """Return the state of a sequence, which is created when it is accessed for the first time."""
        entry = self._states.get(id(sequence))
        return self._add(sequence) if entry is None else entry[1]

    def _add(self, sequence: Sequence) -> _T:
        key, states = id(sequence), self._states
        state = self._create(sequence)
        # The entry is removed before another object can have the same ID.
        states[key] = (ref(sequence, lambda _: states.pop(key)), state)
        return state
