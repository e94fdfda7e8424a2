from __future__ import annotations

from geomerge.comparison import METHODS
from geomerge.testing.method_laws import MethodLaws, method_case


class TestKroneckerMean(MethodLaws):
    name = "kronecker-mean"


def test_sketches_that_are_there_take_the_place_of_inputs() -> None:
    context = method_case()
    sketched = context.with_expert(context.a.with_sketch(inputs=50))
    result = METHODS["kronecker-mean"].make(sketched)
    assert (result.inputs, result.sketches) == (("b",), ("a",))
