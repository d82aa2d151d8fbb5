"""Whose clip is next: owners take turns, so that one with a long recording does not hold up the others."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Queues, one for each owner, that are served in turn; within one, first come, first served."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        """Items that wait."""
        return sum(map(len, self._queues.values()))

    def add(self, owner: str, item: T) -> None:
        """Let an item wait. An owner who had none comes after all who have some."""
        self._queues.setdefault(owner, deque()).append(item)

    def take(self) -> T | None:
        """The next item, and its owner goes behind the others; None where nothing waits."""
        if not self._queues:
            return None
        owner, queue = self._queues.popitem(last=False)
        item = queue.popleft()
        if queue:
            self._queues[owner] = queue
        return item

    def remove(self, owner: str, item: T) -> bool:
        """Forget an item; whether it was waiting."""
        queue = self._queues.get(owner)
        if queue is None or item not in queue:
            return False
        queue.remove(item)
        if not queue:
            del self._queues[owner]
        return True
