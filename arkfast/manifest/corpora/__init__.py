"""Published corpora's own folders as manifests: one module for each layout, one way to write.

Nothing is downloaded and nothing unpacked.
"""

from arkfast.manifest.corpora.catalogue import CORPORA, open_corpus
from arkfast.manifest.corpora.convert import Outcome, convert
from arkfast.manifest.corpora.corpus import Corpus, Split

__all__ = ["CORPORA", "Corpus", "Outcome", "Split", "convert", "open_corpus"]
