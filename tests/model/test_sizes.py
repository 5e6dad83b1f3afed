"""The named sizes are those of the released models."""

import pytest

from tailorbird.model.build import build_model
from tailorbird.model.sizes import SIZES

PARAMETERS = {
    "smolvlm2-256m": 256_484_928,
    "smolvlm2-500m": 507_482_304,
    "smolvlm2-2.2b": 2_246_784_880,
    "smolvla-base": 450_046_176,
}


@pytest.mark.parametrize("size", PARAMETERS)
def test_a_size_has_exactly_the_parameters_of_its_release(size: str) -> None:
    model = build_model(SIZES[size], "meta")
    assert sum(value.numel() for value in model.parameters()) == PARAMETERS[size]
