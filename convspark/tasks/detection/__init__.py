"""Annotated pictures to a detector of boxes, or of masks: `detect`."""
