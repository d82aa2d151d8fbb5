"""What ``external`` runs in another Python: texts in, ``text_process.text_normalize`` of them out, one JSON object a line.

Stands alone: it is handed to the other interpreter as source text, so it imports nothing of arkfast and runs on any Python 3. The first
line out says what was imported. Whatever the module prints goes to standard error, where it cannot pass for a reply.
"""

import hashlib
import importlib
import json
import os
import sys


def main() -> None:
    """Answer each line of standard input until it ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(message: dict) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    module = importlib.import_module("text_process")
    normalize = module.text_normalize
    reply({"version": str(getattr(module, "__version__", "unknown")), "sha256": digest(os.path.abspath(str(module.__file__)))})
    for line in sys.stdin.buffer:
        request = json.loads(line.decode("utf-8"))
        try:
            reply({"i": request["i"], "text": normalize(request["text"])})
        except Exception as error:  # told with the text that caused it
            reply({"i": request["i"], "error": f"{type(error).__name__}: {error}"})


def digest(path: str) -> str:
    """Hash of the module's own file, or of all its package's."""
    names = [path]
    if os.path.basename(path) == "__init__.py":
        found = (os.path.join(folder, name) for folder, _, names in os.walk(os.path.dirname(path)) for name in names)
        names = sorted(name for name in found if not name.endswith(".pyc"))
    whole = hashlib.sha256()
    for name in names:
        with open(name, "rb") as file:
            whole.update(os.path.basename(name).encode() + b"\0" + file.read() + b"\0")
    return whole.hexdigest()


if __name__ == "__main__":
    main()
