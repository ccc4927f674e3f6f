"""What a backbone is used for: a room for each task, and beside them what they share."""
