"""What every command that trains shares: a run and its folder, settings, steps, loading, devices, logs."""
