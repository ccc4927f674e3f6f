"""The package's kernels for CPUs."""


def register() -> None:
    """Have the package's operators run by them."""
    from . import operators  # noqa: F401
