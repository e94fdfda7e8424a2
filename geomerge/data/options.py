"""Options of data folders and of the device, which do not change results."""

from __future__ import annotations

from dataclasses import dataclass

from geomerge.options import option

__all__ = ["PlaceOptions"]


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """Options that decide no result: place of the data sets, and device of the computation.

    Attributes:
        data_root: Folder of data sets; None takes ``GEOMERGE_DATA``, else ``./data``.
        download: Whether torchvision may fetch a missing data set.
        device: Device that computes.
    """

    data_root: str | None = option(
        None, "folder of data sets; default GEOMERGE_DATA, else ./data", group="machine",
        recorded=False,
    )  # fmt: skip
    download: bool = option(
        False, "permission for torchvision to download a missing data set", group="machine",
        recorded=False,
    )  # fmt: skip
    device: str = option("cpu", "device of the computation", group="machine", recorded=False)
