"""The joint walk and the sketch walk."""

from __future__ import annotations

from dataclasses import replace

from geomerge.comparison import METHODS
from geomerge.metrics import make_sketch
from geomerge.testing.method_laws import MethodLaws, method_case


class TestJointWalk(MethodLaws):
    name = "joint-walk"


class TestSketchWalk(MethodLaws):
    name = "sketch-walk"


def test_a_sketch_stands_for_inputs() -> None:
    context = method_case(steps=10)
    b = context.b
    assert b.inputs is not None
    sketch = make_sketch(b.network, b.weights, b.inputs, "task b")
    context = context.with_expert(replace(b, sketch=sketch, inputs=None))
    result = METHODS["sketch-walk"].make(context)
    assert (result.inputs, result.labels, result.sketches) == (("a",), (), ("b",))
