"""The flags by which a transcription runs on Ray."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from arkfast import command_line
from arkfast.records import InputError


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where Ray is and how much of it is taken."""

    headings: ClassVar[dict[str, str]] = {"ray": command_line.MACHINE}

    ray: bool = False
    """Hand the rows out to actors of Ray Data, each with the model, on this machine or on the cluster at --ray_address; the journal and the
    output are written here alone."""
    ray_address: str | None = None
    """A Ray cluster that runs already, as host:port or auto; without it Ray is started on this machine for this run, and ends with it."""
    ray_actors: str | None = None
    """How many actors, or least:most between which Ray may add and remove some; by default one for each GPU, and without GPUs one for each
    four cores."""

    def _check_ray(self) -> None:
        """Raise ``InputError`` for flags that make no sense."""
        for name, value in (("ray_address", self.ray_address), ("ray_actors", self.ray_actors)):
            if value is not None and not self.ray:
                raise InputError(f"--{name} {value} has no effect without --ray; add it, or leave this out")
        if self.ray_address is not None and self.ray_address.startswith("ray://"):
            raise InputError(
                f"--ray_address {self.ray_address}: Ray's client cannot do this; run the command on a machine of the cluster, with auto"
            )
        self.actors()

    def actors(self) -> tuple[int, int] | None:
        """The least and the most actors; None where the cluster decides.

        Raises:
            InputError: ``ray_actors`` is no such thing.
        """
        if self.ray_actors is None:
            return None
        found = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", self.ray_actors)
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most:
            raise InputError(f"--ray_actors {self.ray_actors}: expected a number from 1, or least:most such as 2:16")
        return least, most
