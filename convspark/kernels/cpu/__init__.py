"""Kernels for CPUs, in C++ that is compiled on first use."""
