"""The kernels are registered, as the engine does at its first use: a file of tests may run alone."""

from convspark.sparse.faster import registered

registered()
