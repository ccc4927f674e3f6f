"""What a run shows for itself: pictures, curves, tables of runs and pages about them."""
