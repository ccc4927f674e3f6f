"""What each torch function means on visible patches, one file a family; importing them fills the registry."""

from . import (  # noqa: F401
    conv,
    matmul,
    norm,
    pad,
    pointwise,
    pool,
    query,
    random,
    reduce,
    resize,
    shape,
)
