"""Labelled pictures to a classifier: `finetune`."""
