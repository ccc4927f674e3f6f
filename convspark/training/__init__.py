"""Pre-training: schedules, the Lightning module and callbacks, run folders, and the function that does it all."""
