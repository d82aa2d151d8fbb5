"""From a template and its fields to a whole page that needs nothing else.

A page holds its styles and drawings itself: no script, no font, no address outside, and a policy that forbids the browser to fetch one or
to run anything. Recordings may be played from local files.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src 'self' file: data:"
"""What a browser may load for a page: its own styles, pictures inside it, and recordings beside it or inside it."""


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("arkfast.reports"),
        autoescape=True,
        undefined=StrictUndefined,  # a field that a page forgets is an error, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, *, title: str, drawings: Mapping[str, str] | None = None, **fields: object) -> str:
    """A whole HTML page.

    Args:
        template: name of a file in ``templates/``.
        title: of the page.
        drawings: markup by the name that the template gives it: charts, which escape what they are given. Nothing else is trusted.
        fields: what the template shows; all text in them is escaped.

    Raises:
        jinja2.UndefinedError: the template asks for a field that is missing.
    """
    trusted = {name: Markup(drawing) for name, drawing in (drawings or {}).items()}
    return _environment().get_template(template).render(title=title, policy=POLICY, **trusted, **fields)
