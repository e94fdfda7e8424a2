"""Forms of Kronecker factors: memory, time of a step, and functional change at equal progress.

    python benchmarks/factor_forms.py --work build/bench

Memory and time are of an MLP with random weights and six layers of 1000 units, each form in a
process of its own; functional change is of the MLP and the CNN trained on MNIST. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import Rows, expert, write_results
from memory import reset_peak, resident
from torch import Tensor, nn

from geomerge import KroneckerMetric, Network, load_task
from geomerge.data import Inputs, as_they_are
from geomerge.io import paged
from geomerge.metrics import EuclideanMetric, Metric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.registry import METRICS, NetworkSize
from geomerge.networks.architectures import rebuild_network
from geomerge.networks.factor_form import FactorForm

WIDTH, LAYERS, INPUTS, STEPS = 1000, 6, 500, 5
BATCH = 100  # inputs per pass
MEASURED = 1000  # inputs of the trained networks
SHARES = (1e-3, 1e-4)  # dampings, of the largest eigenvalue
DIRECTIONS = 10  # random vectors
WAYS = {  # form, and whether layers are measured one after the other
    "WHOLE": (FactorForm.WHOLE, False),
    "LAYERWISE": (FactorForm.WHOLE, True),
    "HALF": (FactorForm.HALF, True),
    "FILES": (FactorForm.FILES, True),
    "BLOCKS": (FactorForm.BLOCKS, True),
    "DIAGONAL": (FactorForm.DIAGONAL, False),
}


def measured(
    network: Network, inputs: Inputs, form: FactorForm, layerwise: bool = False
) -> KroneckerMetric:
    """Measure a metric in a form, at once or layer by layer."""
    view = network.limited(BATCH, 1 if layerwise else None, form)
    return estimate_kronecker(view, network.initial, inputs.equal_batches(BATCH))


def stack(layers: int) -> Network:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return Network(nn.Sequential(*parts, nn.Linear(WIDTH, 10)))


def cost(form: FactorForm, layerwise: bool) -> dict[str, Any]:
    """Return the peak of measuring and stepping over what was there before, and a step's time."""
    inputs, network = as_they_are(torch.randn(INPUTS, WIDTH)), stack(1)
    measured(network, inputs, form).truncate(1e-3).damped_solve(network.initial, 1e-3)  # warms up
    network = stack(LAYERS)
    v = torch.randn(network.n)
    paged.trim()
    size = NetworkSize(network, network.initial, inputs.batch(slice(0, 1)), 0, layerwise, form)
    named = METRICS["kronecker"].measuring_bytes([size])
    before = resident("VmRSS")
    reset_peak()
    metric = measured(network, inputs, form, layerwise).truncate(1e-3)
    metric.damped_solve(v, 1e-3)
    peak = resident("VmHWM") - before
    began = time.process_time()
    for _ in range(STEPS):
        metric.damped_solve(v, 1e-3)
    taken = (time.process_time() - began) / STEPS
    return {"named": named, "peak": peak, "step": taken, "vector": v.nbytes}


def change(metric: Metric, whole: KroneckerMetric, damping: float, v: Tensor) -> float:
    """Return the functional change of a step per squared progress along v."""
    x = metric.damped_solve(v, damping)
    return whole.inner(x, x) / float(x @ v) ** 2


def quality(work: Path, arch: str) -> dict[str, Any]:
    """Return each form's functional change at equal progress, relative to whole factors."""
    checkpoint = expert(work, arch, "mnist", 0, epochs=2)
    network = Network(rebuild_network(checkpoint.weights, arch, checkpoint.source))
    inputs = load_task("mnist").train.inputs.sample(MEASURED, 0)
    whole = measured(network, inputs, FactorForm.WHOLE)
    largest = max(
        float(layer.inputs.values.max() * layer.outputs.values.max()) for layer in whole.layers
    )
    free = torch.arange(network.n) < network.n_parameters
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(DIRECTIONS, network.n, generator=generator) * free
    forms: dict[str, Metric] = {form.name: measured(network, inputs, form) for form in FactorForm}
    forms["EUCLIDEAN"] = EuclideanMetric()
    found: dict[str, Any] = {}
    for share in SHARES:
        damping = share * largest
        usual = [change(whole, whole, damping, v) for v in vectors]
        found[f"{share:g}"] = {
            name: sum(
                change(metric, whole, damping, v) / own
                for v, own in zip(vectors, usual, strict=True)
            ) / DIRECTIONS
            for name, metric in forms.items()
        }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--form", choices=list(WAYS))
    given = parser.parse_args()
    if given.form:
        print(json.dumps(cost(*WAYS[given.form])))
        return
    given.work.mkdir(parents=True, exist_ok=True)
    rows = Rows(given.work / "factor-forms.json")
    for form in WAYS:
        command = [sys.executable, __file__, "--form", form]
        rows.row(form, lambda command=command: json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        ))  # fmt: skip
    for arch in ("mlp", "cnn"):
        rows.row(arch, lambda arch=arch: quality(given.work, arch))
    write_results("factor_forms.json", {"rows": rows.done})


if __name__ == "__main__":
    main()
