"""Transcripts as people and players read them: text, captions, tables, and the JSON of OpenAI's service. One file for a recording."""

from arkfast.infer.formats.forms import FORMS, CaptionLimits, Form, written
from arkfast.infer.formats.recordings import Recording, recordings_of
from arkfast.infer.formats.save import file_names, save

__all__ = ["FORMS", "CaptionLimits", "Form", "Recording", "file_names", "recordings_of", "save", "written"]
