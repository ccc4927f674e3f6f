"""What convspark costs, measured or counted; each file is a command: `python -m benchmarks.NAME --help`."""
