"""Pictures with a class at every pixel to a segmenter: `segment`."""
