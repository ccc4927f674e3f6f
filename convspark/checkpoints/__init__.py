"""Weights in and out, in the formats that others read: timm's, the paper's, our own run folders."""
