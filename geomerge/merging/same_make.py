"""Comparison of networks' architectures: names, shapes and types of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from geomerge.errors import CheckpointError, OptionError, Problems, first_line
from geomerge.evaluation.drift import LARGE
from geomerge.expert import Expert
from geomerge.io.checkpoint import Checkpoint
from geomerge.metrics.outputs import nearly_equal
from geomerge.networks.architectures import same_architecture
from geomerge.networks.hugging_face import load_adapter_base, network_digest
from geomerge.weight_space import WeightSpace

__all__ = [
    "adapters_base", "check_same_function", "compare_networks", "may_differ", "two_vocabularies",
]  # fmt: skip

_SHOWN = 3
_FREE = {
    "_name_or_path", "architectures", "bos_token_id", "cls_token_id", "dtype", "eos_token_id",
    "finetuning_task", "gradient_checkpointing", "id2label", "initializer_range", "is_decoder",
    "label2id", "num_labels", "problem_type", "sep_token_id", "tie_word_embeddings", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
_INPUTS = 2  # inputs on which functions are compared; few units may agree on a single one
_SAME = 1e-4  # relative difference of logits that rounding explains


def compare_networks(networks: Sequence[Checkpoint], head: str, problems: Problems) -> None:
    """Compare every network with the first.

    Args:
        networks: Networks; only the shapes and types of their tensors are read.
        head: Protocol of the head; only a shared one needs equal numbers of outputs.
        problems: Collector of a sentence for each way in which a network differs.

    Raises:
        CheckpointError: If a network differs and the problems are not collected.
    """
    kinds: dict[str, Checkpoint] = {}
    for one in networks:
        kind = one.meta.get("architecture")
        if kind and not any(same_architecture(name, kind, one.weights) for name in kinds):
            kinds[kind] = one
    if len(kinds) > 1:
        told = " and ".join(f"{kind} of {c.source}" for kind, c in kinds.items())
        with problems.noted():
            raise CheckpointError(
                f"expected networks of one architecture, got {told}; give the one of all "
                "with `arch`"
            )
    for other in networks[1:]:
        known = len(problems)
        with problems.noted():
            _compare_configurations(networks[0], other)
        if len(problems) > known:  # what is behind it has been said
            continue
        for sentence in _differences(networks[0], other, head):
            with problems.noted():
                raise CheckpointError(sentence)


def _compare_configurations(first: Checkpoint, other: Checkpoint) -> None:
    """Refuse models of transformers that compute in different ways with weights of one shape."""
    one, two = (c.meta.get("config") or {} for c in (first, other))
    for name in one.keys() & two.keys():
        if one[name] == two[name] or may_differ(name):
            continue
        if name == "vocab_size":
            raise two_vocabularies((first.source, one[name]), (other.source, two[name]))
        raise CheckpointError(
            f"{first.source} and {other.source} are models of different make: {name} is "
            f"{str(one[name])[:40]} and {str(two[name])[:40]} in their config.json; give "
            "fine-tunes of one base"
        )


def may_differ(entry: str) -> bool:
    """Return whether an entry of ``config.json`` may differ between fine-tunes of one base.

    Args:
        entry: Name of the entry.
    """
    return entry in _FREE or "dropout" in entry


def two_vocabularies(one: tuple[str, int], other: tuple[str, int]) -> CheckpointError:
    """Return the error of two networks, each a name and its number of tokens, that differ in it."""
    return CheckpointError(
        f"{one[0]} and {other[0]} have vocabularies of {one[1]} and {other[1]} tokens, expected "
        "one; use `vocabulary` union, which takes the rows that one lacks from the other, or give "
        "networks of one tokenizer"
    )


def check_same_function(
    experts: Sequence[Expert], space: WeightSpace, rows: Mapping[str, slice]
) -> None:
    """Refuse experts whose outputs in the common network differ from their own.

    Equal tensors do not make equal networks: one may have Tanh where another has ReLU.

    Args:
        experts: Experts by themselves, in the order of the space.
        space: The experts in one network.
        rows: Outputs of the common network that are an expert's own, by its name.

    Raises:
        CheckpointError: If the outputs of one differ, or the network cannot have those of all.
    """
    for expert, placed in zip(experts, space, strict=True):
        own = next((e for e in (placed, *space) if e.inputs is not None or e.task), None)
        if own is None:
            continue
        inputs = own.inputs if own.inputs is not None else own.task.train.inputs
        x = inputs.batch(slice(0, _INPUTS if space.network.n < LARGE else 1))
        alone = expert.network.head_view(slice(None)).logits(expert.weights, x)
        whole, first = placed.network.head_view(slice(None)), space.experts[0]
        try:
            together = whole.logits(placed.weights, x)[:, rows[expert.name]]
        except RuntimeError as error:  # of a layer behind the head, such as a BatchNorm
            raise CheckpointError(
                f"{first.source} cannot have the outputs of all tasks side by side: a layer behind "
                f"its last linear one takes no more than it had ({first_line(error)}); use `head` "
                "shared"
            ) from error
        if not nearly_equal(together, alone, _SAME):
            raise CheckpointError(
                f"{expert.source} is another function than {first.source} with its weights: equal "
                "tensors, and for example another activation; give networks of one make, or "
                "`arch` where a file does not record it"
            )


def _differences(first: Checkpoint, other: Checkpoint, head: str) -> list[str]:
    one, two = first.weights, other.weights
    apart = [name for name in {**one, **two} if _shape(one, name) != _shape(two, name)]
    outputs = [name for name in apart if _is_head(name, one, two)]
    apart = [name for name in apart if name not in outputs]
    if apart:  # with another layer after it, the last layer of one is no head of the other
        apart = [name for name in {**one, **two} if name in apart or name in outputs]
    sentences = []
    if outputs and head == "shared" and not apart:
        name = outputs[0]
        sentences.append(
            f"{first.source} and {other.source} have different heads: {name!r} has "
            f"{len(one[name])} and {len(two[name])} outputs, expected one head shared by all "
            "tasks; use `head` offset or `head` separate, or train all with as many outputs"
        )
    if apart:
        listed = "; ".join(
            f"{name!r} has shape {_shape(one, name)} and {_shape(two, name)}"
            for name in apart[:_SHOWN]
        )
        more = f"; and {len(apart) - _SHOWN} more" if len(apart) > _SHOWN else ""
        expected = (
            "equal names and shapes of all parameters and buffers"
            if head == "shared"
            else "networks that differ in the number of outputs only"
        )
        sentences.append(
            f"{first.source} and {other.source} are not of one architecture: {listed}{more}, "
            f"expected {expected}; give networks of the same make"
        )
    for name in one:
        if name in two and one[name].is_floating_point() != two[name].is_floating_point():
            sentences.append(
                f"{name!r} is of type {one[name].dtype} in {first.source} and of {two[name].dtype} "
                f"in {other.source}, expected floats in both or whole numbers in both; save one "
                "of them again"
            )
    return sentences


def _is_head(name: str, one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is of the last layer and differs in its number of outputs only."""
    last = list(one)[-1].rpartition(".")[0]
    if name.rpartition(".")[0] != last or name not in one or name not in two:
        return False
    return one[name].dim() > 0 and one[name].shape[1:] == two[name].shape[1:]


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "none"


def adapters_base(experts: Sequence[Expert], base: Expert | None) -> Path:
    """Return the folder of the base that all experts are LoRA adapters of.

    Args:
        experts: Experts that were read from folders.
        base: Base that was given; None takes the recorded ones.

    Raises:
        CheckpointError: If one is no adapter, or its base is not at hand.
        OptionError: If their bases differ.
    """
    given = None if base is None else base.folder
    bases = {}
    for expert in experts:
        if expert.folder is None:
            raise OptionError(
                f"`adapter_rank` is for LoRA adapters and {expert.name} is none; leave it out"
            )
        bases[expert.source] = load_adapter_base(expert.folder, given)[1].resolve()
    (one, first), *others = bases.items()
    own = network_digest(first)
    for two, second in others:
        if second == first or network_digest(second) == own:
            continue
        raise OptionError(
            f"{one} is an adapter of {first} and {two} of {second}, expected adapters of one base; "
            "leave `adapter_rank` out"
        )
    return first
