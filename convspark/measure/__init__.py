"""A network looked at before anything is trained: proof, what its modules do, time and memory."""
