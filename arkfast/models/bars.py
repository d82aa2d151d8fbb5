"""Which progress bars of other libraries a command leaves on the screen."""

from __future__ import annotations

import sys

from arkfast.console import is_terminal


def without_loading_bars() -> None:
    """Switch off the bars that Transformers draws for seconds of loading and saving; those of downloads stay where somebody watches.

    For commands: whoever uses the library decides about bars for himself.
    """
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    if is_terminal(sys.stderr):
        enable_progress_bars()
