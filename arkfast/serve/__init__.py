"""The service: recordings over HTTP in, transcripts out, with OpenAI's interface and open-audio-opd's.

A request passes ``app`` (routes), ``body`` (sizes and times), ``limits`` (who may ask for how much), ``fields`` (what is asked),
``hearing`` (features, in processes of their own), ``fair`` (whose clip is next), ``engines`` (the process that decodes) and ``answers``.
"""
