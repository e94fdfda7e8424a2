"""Registry of metrics: measuring functions, and requirements of inputs, memory and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch import Tensor

from geomerge.data import Inputs, as_they_are
from geomerge.metrics.outputs import OUTPUTS
from geomerge.networks.batches import Batch
from geomerge.networks.factor_form import FactorForm
from geomerge.networks.network import Network
from geomerge.options import check_options, option, replace_options
from geomerge.registry import Registry

if TYPE_CHECKING:
    from geomerge.metrics.base import Metric

__all__ = [
    "BATCH",
    "METRICS",
    "MeasuringPace",
    "MetricKind",
    "MetricOptions",
    "NetworkSize",
    "cheaper_metrics",
    "data_free_metrics",
    "measure_metric",
    "metric",
    "seconds_per_input",
]

BATCH = 500  # inputs per pass

# Function of a network, weights (n,), inputs, output and seed that measures a metric.
Measure: TypeAlias = "Callable[[Network, Tensor, Inputs, str, int], Metric]"


class NetworkSize(NamedTuple):
    """Network and inputs that determine the memory of a metric.

    Attributes:
        network: The network.
        w: Weights, shape (n,).
        x: One input, as a batch of one.
        pass_bytes: Bytes per input of a forward and backward pass.
        layerwise: Whether layers are measured one after the other, by a metric that can do so.
        form: Form of Kronecker factors.
    """

    network: Network
    w: Tensor
    x: Batch
    pass_bytes: int
    layerwise: bool = False
    form: FactorForm = FactorForm.WHOLE


class MeasuringPace(NamedTuple):
    """Time of measuring a metric on this machine.

    Attributes:
        each: Seconds per input of a measurement.
        besides: Seconds per measurement that do not depend on the number of inputs.
        product: Seconds per product with the metric's damped inverse.
        one_by_one: Names of the tensors that need derivatives of the whole network for each input.
        one_by_one_seconds: Seconds per input for these derivatives.
    """

    each: float
    besides: float
    product: float = 0.0
    one_by_one: tuple[str, ...] = ()
    one_by_one_seconds: float = 0.0


_MOMENT = 0.3  # seconds; shorter passes are not timed accurately
_LONG = 1.0  # seconds of a first pass after which there is no second


def seconds_per_input(run: Callable[[int], object], most: int) -> float:
    """Return the seconds per input of a function, timed on increasing numbers of inputs.

    Args:
        run: Function of the number of inputs.
        most: Largest number of inputs.
    """

    def timed(count: int) -> float:
        began = time.perf_counter()
        run(count)
        return time.perf_counter() - began

    count, took = 1, timed(1)
    if took > _LONG:
        return took
    took = timed(1)  # the first one also sets up
    while count < most and took < _MOMENT:
        count = min(2 * count, most)
        took = timed(count)
    return took / count


# Function of a network, weights (n,), inputs and output that returns a measurement's pace.
PaceOf: TypeAlias = Callable[[Network, Tensor, Inputs, str], MeasuringPace]


# Bytes as a function of the networks whose metrics are measured.
Bytes: TypeAlias = Callable[[Sequence[NetworkSize]], int]


def _nothing(sizes: Sequence[NetworkSize]) -> int:
    return 0


@dataclass(frozen=True)
class MetricKind:
    """Entry of a metric in the registry.

    Attributes:
        cls: Class of the measured metric, whose name is the name in the registry.
        about: Noun phrase for help texts.
        measure: Function that measures the metric of a network at a point.
        needs_inputs: Whether the metric depends on inputs.
        inputs: Largest number of inputs per network for measurements in a walk.
        cheaper: Name of the metric that replaces this one if memory is short, or None.
        measuring_bytes: Function that returns the memory of a measurement.
        held_bytes: Function that returns the memory of the result; 0 if it depends on the size of a
            pass only.
        pace: Function that returns how long a measurement takes; None times a measurement on a few
            inputs.
    """

    cls: type[Metric]
    about: str
    measure: Measure
    needs_inputs: bool
    inputs: int
    cheaper: str | None
    measuring_bytes: Bytes
    held_bytes: Bytes
    pace: PaceOf | None = None

    @property
    def name(self) -> str:
        """Name in the registry."""
        return self.cls.name

    @property
    def isotropic(self) -> bool:
        """Whether damping only scales steps, so that no damping has to be chosen or learned."""
        return self.cls.isotropic

    @property
    def additive(self) -> bool:
        """Whether metrics measured on several heads or input shapes can be added."""
        return self.cls.additive

    @property
    def forms(self) -> tuple[FactorForm, ...]:
        """Forms in which the metric can be measured and held, from most to least memory."""
        return self.cls.forms

    @property
    def data_free(self) -> bool:
        """Whether a measured metric needs no inputs, so that a sketch can replace them."""
        return self.cls.data_free

    def label(self, output: str) -> str:
        """Return the name for reports, with the output if the metric depends on it."""
        return f"{self.name} ({output})" if self.needs_inputs else self.name


METRICS: Registry[MetricKind] = Registry("metric", "geomerge.metrics")


def metric(
    cls: type[Metric],
    about: str,
    *,
    needs_inputs: bool = True,
    inputs: int = 2000,
    cheaper: str | None = None,
    measuring_bytes: Bytes = _nothing,
    held_bytes: Bytes = _nothing,
    pace: PaceOf | None = None,
) -> Callable[[Measure], Measure]:
    """Return a decorator that registers a measuring function as a metric.

    A metric is a module of :mod:`geomerge.metrics` with a class and a function::

        class Halved(Metric):
            name = "halved"

            def coordinates(self, v):
                return EigenCoordinates([v], [torch.tensor(0.5)], lambda parts: parts[0])


        @metric(Halved, "half the Euclidean metric", needs_inputs=False)
        def measure_halved(network, w, inputs, output, seed):
            return Halved()

    Args:
        cls: Class of the measured metric; its ``name`` is the name in the registry.
        about: Noun phrase for help texts.
        needs_inputs: Whether the metric depends on inputs.
        inputs: Largest number of inputs per network for measurements in a walk.
        cheaper: Name of the metric that replaces this one if memory is short, or None.
        measuring_bytes: Function that returns the memory of a measurement.
        held_bytes: Function that returns the memory of the result.
        pace: Function that returns how long a measurement takes.
    """

    def put(measure: Measure) -> Measure:
        kind = MetricKind(
            cls, about, measure, needs_inputs, inputs, cheaper, measuring_bytes, held_bytes, pace
        )
        METRICS.add(cls.name, kind)
        return measure

    return put


def cheaper_metrics(name: str) -> list[str]:
    """Return the names of a metric and of those that replace it in turn if memory is short.

    Args:
        name: Name of the first metric.
    """
    names = [name]
    while (cheaper := METRICS[names[-1]].cheaper) is not None:
        names.append(cheaper)
    return names


def data_free_metrics() -> tuple[str, ...]:
    """Return the names of the metrics that need no inputs after their measurement."""
    return tuple(name for name, kind in METRICS.items() if kind.data_free)


@dataclass(frozen=True)
class MetricOptions:
    """Choice of a metric.

    Attributes:
        metric: Name of the metric, one of ``METRICS``.
        output: Output whose change the metric measures, one of
            :data:`~geomerge.metrics.outputs.OUTPUTS`.
    """

    metric: str = option("kronecker", "metric on weight space", group="walk", choices=METRICS.names)
    output: str = option(
        "hellinger", "output whose change the metric measures", group="walk", choices=OUTPUTS
    )

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            OptionError: If the name is not registered.
        """
        check_options(self)

    @property
    def kind(self) -> MetricKind:
        """The chosen metric's entry of the registry."""
        return METRICS[self.metric]


def measure_metric(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs | Batch,
    options: MetricOptions | None = None,
    *,
    seed: int = 0,
    **changes: Any,
) -> Metric:
    """Measure a metric of a network at w.

    Args:
        network: The network.
        w: Point of weight space.
        inputs: Inputs without labels, or one batch of them. The Gram form uses a sample if inputs
            times outputs exceed 1024; the exact form holds the activations of all inputs.
        options: Choice of the metric.
        seed: Seed of the sample, and of the Kronecker form's random sign vectors.
        changes: Options by name that replace those of ``options``.

    Returns:
        The metric.

    Raises:
        OptionError: If a name is unknown.
        NumericalError: If outputs or gradients are not finite, or there are no inputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> from geomerge.metrics import functional_change, measure_metric
        >>> _ = torch.manual_seed(0)
        >>> network = gm.Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        >>> w, inputs = network.initial, gm.load_task("digits").train.inputs
        >>> metric = measure_metric(network, w, inputs, metric="kronecker")
        >>> step = 1e-2 * torch.randn(network.n)
        >>> x = inputs.batch(slice(None))
        >>> before, after = network.logits(w, x), network.logits(w + step, x)
        >>> change = functional_change(before, after, "hellinger")
        >>> bool(0.8 < metric.inner(step, step) / change < 1.25)  # predicted over measured
        True
    """
    options = replace_options(MetricOptions() if options is None else options, **changes)
    if not isinstance(inputs, Inputs):
        inputs = as_they_are(inputs, w.device, w.dtype)
    return options.kind.measure(network, w, inputs, options.output, seed)
