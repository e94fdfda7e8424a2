"""Time and memory of steps and metrics, each beside a baseline in the same run, in turns.

    python benchmarks/steps.py --work build/bench

- a step of a walk in a Kronecker sketch / a training step of the same batch, by network size;
- the layerwise Gram matrix / building J and J J', by inputs;
- an exact product g u / the faster of curvlinops' GGN and plain torch.func products;
- measuring Kronecker factors, and multiplying by them / curvlinops' KFAC;
- the three metrics beside each other: measuring one, and one spectrum of a vector;
- the verified quadratic program (qpth) / clarabel alone, by budgets.

Needs `pip install curvlinops-for-pytorch`. Finished parts are kept in --work.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import clarabel
import torch
from common import Rows, write_results
from curvlinops import GGNLinearOperator, KFACLinearOperator
from scipy.sparse import csc_matrix, triu
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from geomerge import Network
from geomerge.data import as_they_are
from geomerge.metrics import exact_metric, gram_metric
from geomerge.metrics.kernel import gram_matrix
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.steps import solve_qp
from geomerge.testing import dense_jacobian
from geomerge.walks.objectives import KLToTeacher
from geomerge.walks.walk import FunctionWalkOptions, walk_toward_function

WIDTHS = {12: 256, 100: 256, 400: 256, 640: 256, 2800: 256, 9400: 64}  # units: batch
DAMPING = 1e-3
METRIC_INPUTS = 2000
CLASSES = 10


def in_turns(*calls: Callable[[], Any], times: int = 15) -> list[float]:
    """Return the median seconds of each, taken in turns so that the machine is the same."""
    spent: list[list[float]] = [[] for _ in calls]
    for turn in range(times + 1):
        for k, call in enumerate(calls):
            began = time.perf_counter()
            call()
            if turn:  # the first warms up
                spent[k].append(time.perf_counter() - began)
    return [statistics.median(s) for s in spent]


def mlp(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, CLASSES),
    )  # fmt: skip


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(1568, 128), nn.ReLU(), nn.Linear(128, CLASSES),
    )  # fmt: skip


def inputs(count: int) -> Tensor:
    """Return inputs whose covariance falls off as that of images does."""
    torch.manual_seed(1)
    mix = torch.linalg.qr(torch.randn(784, 784)).Q * torch.logspace(0.5, -2, 784)
    return torch.randn(count, 784) @ mix.T


def step(make: Callable[[], nn.Module], batch: int) -> dict[str, Any]:
    """A step of a walk and a step of SGD with momentum toward the same outputs."""
    network, x = Network(make()), inputs(max(METRIC_INPUTS, 4 * batch))
    targets = torch.randn(len(x), CLASSES).log_softmax(dim=1)
    began = time.perf_counter()
    sketch = estimate_kronecker(
        network, network.initial, as_they_are(x[:METRIC_INPUTS]).batches(500)
    )
    measured = time.perf_counter() - began
    metric = sketch.truncate(DAMPING)
    direction = KLToTeacher(network, targets, as_they_are(x), batch, 0)
    times = 61 if network.n < 2e6 else 15 if network.n < 2e7 else 5
    walk = walk_toward_function(
        network.initial, lambda _: metric, [direction], FunctionWalkOptions(DAMPING, 10**6, 1e-3)
    )
    module = make()
    optimizer = torch.optim.SGD(module.parameters(), 1e-3, momentum=0.9)
    order = KLToTeacher(network, targets, as_they_are(x), batch, 0)

    def train() -> None:
        index = next(order.indices)
        optimizer.zero_grad()
        log_p = module(x[index]).log_softmax(dim=1)
        nn.functional.kl_div(
            log_p, targets[index], log_target=True, reduction="batchmean"
        ).backward()
        optimizer.step()

    ours, training = in_turns(lambda: next(walk), train, times=times)
    return {
        "weights": network.n,
        "batch": batch,
        "step": ours,
        "training step": training,
        "ratio": ours / training,
        "measuring the metric": measured,
        "metric in copies of the weights": metric.nbytes / (4 * network.n),
    }


def gram(count: int) -> dict[str, Any]:
    """The kernel of a batch layer by layer, and from the whole Jacobian."""
    network, x = Network(mlp(400)), inputs(count)

    def dense() -> Tensor:
        j = dense_jacobian(network, network.initial, x, "hellinger").flatten(0, 1)
        return j @ j.T

    def layers() -> Tensor:
        return gram_matrix(network, network.initial, x, "hellinger")[1]

    ours, whole = in_turns(layers, dense, times=3)
    rows = count * CLASSES
    return {
        "inputs": count, "layerwise": ours, "J": whole, "ratio": whole / ours,
        "bytes": 8 * rows**2, "bytes of J": 4 * rows * network.n,
    }  # fmt: skip


def product(make: Callable[[], nn.Module], count: int) -> dict[str, Any]:
    """An exact product, of logits, so that curvlinops' GGN of the squared loss is the same."""
    network, x = Network(make()), inputs(count)
    metric = exact_metric(network, network.initial, [x], "logits")
    module = make()
    parameters = dict(module.named_parameters())
    data = [(x, torch.zeros(count, CLASSES))]
    loss = nn.MSELoss(reduction="sum")
    theirs = GGNLinearOperator(
        module, loss, list(module.parameters()), data, check_deterministic=False
    )
    u = torch.randn(network.n)
    parts = {k: v.reshape(parameters[k].shape) for k, v in network.unravel(u).items()}
    point = {k: v.detach() for k, v in parameters.items()}

    def plain() -> Tensor:
        def outputs(p: dict[str, Tensor]) -> Tensor:
            return functional_call(module, p, (x,))

        _, pushed = jvp(outputs, (point,), (parts,))
        _, pull = vjp(outputs, point)
        return torch.cat([g.reshape(-1) for g in pull(pushed)[0].values()])

    once = metric.mv(u)
    torch.testing.assert_close(plain() / count, once, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close((theirs @ u) / (2 * count), once, rtol=1e-3, atol=1e-5)
    ours, ggn, torch_func = in_turns(lambda: metric.mv(u), lambda: theirs @ u, plain, times=9)
    return {
        "weights": network.n, "inputs": count, "ours": ours, "curvlinops GGN": ggn,
        "torch.func": torch_func, "ratio": ours / min(ggn, torch_func),
    }  # fmt: skip


def kfac(make: Callable[[], nn.Module], count: int) -> dict[str, Any]:
    """Measuring factors and multiplying once, which decomposes none, and further products.

    A step decomposes them; a product with those that matter for it comes after that.
    """
    network, x = Network(make()), inputs(count)
    module = make()
    data = [(x[k : k + 500], torch.zeros(500, dtype=torch.long)) for k in range(0, count, 500)]
    u = torch.randn(network.n)

    def theirs() -> Any:
        operator = KFACLinearOperator(
            module, nn.CrossEntropyLoss(), list(module.parameters()), data,
            mc_samples=2, check_deterministic=False, separate_weight_and_bias=False,
        )  # fmt: skip
        operator @ u  # its factors are computed when first needed
        return operator

    def own() -> Any:
        metric = estimate_kronecker(network, network.initial, as_they_are(x).batches(500))
        metric.mv(u)
        return metric

    measure, decomposed, other = in_turns(own, lambda: own().truncate(DAMPING), theirs, times=3)
    whole, metric, operator = own(), own().truncate(DAMPING), theirs()
    multiply, few, with_kfac = in_turns(
        lambda: whole.mv(u), lambda: metric.mv(u), lambda: operator @ u, times=15
    )
    return {
        "weights": network.n, "inputs": count,
        "measuring": measure, "curvlinops measuring": other, "measuring ratio": measure / other,
        "decomposing": decomposed - measure, "decomposed ratio": decomposed / other,
        "whole product": multiply, "product": few, "curvlinops product": with_kfac,
        "whole product ratio": multiply / with_kfac, "product ratio": few / with_kfac,
    }  # fmt: skip


def metrics(count: int) -> dict[str, Any]:
    """What measuring each metric and one spectrum take, in training steps of 256 inputs."""
    network, x = Network(mlp(400)), inputs(count)
    u = torch.randn(network.n)
    found: dict[str, Any] = {"inputs": count}
    makers: dict[str, Callable[[], Any]] = {
        "kronecker": lambda: estimate_kronecker(network, network.initial, [x]),
        "gram": lambda: gram_metric(network, network.initial, x, "hellinger"),
        "exact": lambda: exact_metric(network, network.initial, [x]),
    }
    targets = torch.randn(count, CLASSES).log_softmax(dim=1)
    direction = KLToTeacher(network, targets, as_they_are(x), min(256, count), 0)
    for name, make in makers.items():
        metric = make()
        measure, split, training = in_turns(
            make, partial(metric.coordinates, u), lambda: direction(network.initial), times=3
        )
        found[name] = {"measuring": measure / training, "spectrum": split / training}
    return found


def program(size: int, rows: int) -> dict[str, Any]:
    """The verified quadratic program beside clarabel alone."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = normal(size, size)
    hessian, linear = root @ root.T / size + 0.1 * torch.eye(size), normal(size)
    g, h = normal(rows, size), normal(rows).abs()
    settings = clarabel.DefaultSettings()
    settings.verbose = False

    def alone() -> Any:
        upper = csc_matrix(triu(csc_matrix(hessian.numpy())))
        cones = [clarabel.NonnegativeConeT(rows)]
        solver = clarabel.DefaultSolver(
            upper, linear.numpy(), csc_matrix(g.numpy()), h.numpy(), cones, settings
        )
        return solver.solve()

    ours, other = in_turns(lambda: solve_qp(hessian, linear, g, h), alone)
    return {"variables": size, "rows": rows, "ours": ours, "clarabel": other, "ratio": ours / other}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = Rows(arguments.work / "steps.json")
    for width, batch in WIDTHS.items():
        rows.row(f"step mlp-{width}", partial(step, partial(mlp, width), batch))
    rows.row("step cnn", partial(step, cnn, 256))
    for count in (16, 32, 64):
        rows.row(f"gram {count}", partial(gram, count))
    networks: dict[str, Callable[[], nn.Module]] = {"mlp-400": partial(mlp, 400), "cnn": cnn}
    for name, make in networks.items():
        rows.row(f"product {name}", partial(product, make, 500))
        rows.row(f"kfac {name}", partial(kfac, make, METRIC_INPUTS))
    for count in (50, 200):
        rows.row(f"metrics {count}", partial(metrics, count))
    for size, count in ((10, 10), (50, 50), (200, 50)):
        rows.row(f"program {size} x {count}", partial(program, size, count))
    write_results("steps.json", rows.done)


if __name__ == "__main__":
    main()
