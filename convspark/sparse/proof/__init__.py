"""The one place where exactness is decided: mask-and-multiply as the truth, and the proof of a network against it."""
