"""Mean and deviation of ImageNet's pixels, from 0 to 1: red, green, blue. Colour images are normalised by them."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
