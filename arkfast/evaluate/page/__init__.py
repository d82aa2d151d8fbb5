"""An evaluation as one HTML page."""

from arkfast.evaluate.page.document import page

__all__ = ["page"]
