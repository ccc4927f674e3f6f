"""Trials of a network before anything is trained: proof, what its modules do, time and memory."""
