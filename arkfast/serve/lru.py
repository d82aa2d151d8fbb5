"""What is kept for as long as there is room for it: whatever was not asked for longest goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lru(Generic[T]):
    """Values by name, bounded by the sum of their sizes.

    Args:
        most: of that sum; 0 keeps nothing.
        size: of a value. It stays what it is.
    """

    def __init__(self, most: int, size: Callable[[T], int]) -> None:
        self._most, self._size = most, size
        self._kept: OrderedDict[str, T] = OrderedDict()
        self.held = 0
        """The sum of the sizes."""

    def __len__(self) -> int:
        """Values that are kept."""
        return len(self._kept)

    def find(self, name: str) -> T | None:
        """The value, which has been asked for now; None where it is not kept."""
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)

    def keep(self, name: str, value: T) -> None:
        """Keep a value in the place of one of the same name. One that is larger than all the room is not kept, and costs no other."""
        if self._size(value) > self._most:
            return
        if name in self._kept:
            self.held -= self._size(self._kept.pop(name))
        self._kept[name] = value
        self.held += self._size(value)
        while self.held > self._most:
            self.held -= self._size(self._kept.popitem(last=False)[1])
