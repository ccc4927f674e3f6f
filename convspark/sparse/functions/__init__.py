"""What each torch function means on visible patches, one file a family; importing them fills the registry."""

from . import (  # noqa: F401
    conv,
    matrix,
    metadata,
    norm,
    pad,
    pointwise,
    pool,
    random,
    reduce,
    resize,
    structure,
)
