"""Sides, strides and the way back up, against their definitions."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import convspark
from convspark import SparK
from convspark.errors import UsageError
from convspark.model.strides import MAX_STAGES, as_setting, as_text, decodable, divides, sides_of, upsampling

side = st.sampled_from([1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 24, 32])
strides = st.integers(2, 3).flatmap(lambda dims: st.lists(st.tuples(*[side] * dims), min_size=1, max_size=8))


@given(strides)
def test_what_is_decodable_is_a_chain_down_to_the_deepest(candidates):
    chain = decodable(candidates)
    real = [stride for stride in candidates if math.prod(stride) > 1]
    if not real:
        assert chain == []
        return
    assert set(chain) <= set(real) and len(chain) <= MAX_STAGES
    assert math.prod(chain[-1]) == max(map(math.prod, real))
    for finer, coarser in itertools.pairwise(chain):
        assert divides(finer, coarser) and finer != coarser


@given(strides)
def test_going_up_multiplies_to_the_strides(candidates):
    chain = decodable(candidates)
    if not chain:
        return
    ways = upsampling(chain)
    assert len(ways) == len(chain)
    reached = chain[-1]
    for way, finer in zip(ways, [*reversed(chain[:-1]), (1,) * len(reached)], strict=True):
        for factor in way:
            assert max(factor) > 1 and all(f == 1 or all(f % d for d in range(2, f)) for f in factor), "a prime or 1"
            assert divides(factor, reached)
            reached = tuple(r // f for r, f in zip(reached, factor, strict=True))
        assert reached == finer


def test_in_the_paper_each_block_doubles():
    assert upsampling([(4, 4), (8, 8), (16, 16), (32, 32)]) == [[(2, 2)], [(2, 2)], [(2, 2)], [(2, 2), (2, 2)]]


def test_sides():
    assert sides_of(32, 3, "patch_size") == (32, 32, 32) and sides_of([8, 16], 2, "patch_size") == (8, 16)
    with pytest.raises(UsageError, match=r"patch_size=\[8, 16\]: expected 3 sides"):
        sides_of([8, 16], 3, "patch_size")
    assert (as_setting((32, 32)), as_setting((8, 16))) == (32, [8, 16])
    assert (as_text((32, 32)), as_text((8, 16, 16))) == ("32", "8x16x16")


@pytest.mark.parametrize("value", [0, -32, 32.0, "32", (32, 0), (32, "x"), None])
def test_sides_that_are_no_whole_numbers_are_refused(value):
    with pytest.raises(UsageError, match=r"image_size=.*whole numbers of pixels"):
        sides_of(value, 2, "image_size")


def test_sides_may_be_of_numpy_and_torch():
    assert sides_of(np.int64(32), 2, "x") == (32, 32) == sides_of(np.array([32, 32]), 2, "x")  # type: ignore[arg-type]
    assert sides_of(torch.Size([32, 64]), 2, "x") == (32, 64)


@pytest.mark.parametrize("thing", [None, 5, nn.Conv2d, lambda: nn.Conv2d(3, 8, 3)])
def test_what_is_no_module_is_refused(thing):
    for use in (SparK, convspark.check):
        with pytest.raises(UsageError, match=r"expected a torch\.nn\.Module, built"):
            use(thing)


def test_channels_are_a_whole_number():
    for channels in (0, -1, "3", 3.0):
        with pytest.raises(UsageError, match=r"in_chans is .*(above 0|expected a whole number)"):
            SparK(nn.Conv2d(3, 8, 3, 2, 1), in_chans=channels)
