"""Pre-training: its settings, the plan of a run, what it would cost, and the run itself."""
