"""The flows: one file per flow, each a narrative over the stages in ``tasks``."""
