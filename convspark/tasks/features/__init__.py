"""A backbone as it is: `probe` and `embed`."""
