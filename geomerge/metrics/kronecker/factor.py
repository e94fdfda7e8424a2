r"""Kronecker factor in eigen form, complete or truncated with an isotropic tail.

:math:`A \approx U\,\mathrm{diag}(s)\,U' + \tau (I - UU')`, where :math:`\tau` is the mean of the
omitted eigenvalues, so that the trace is preserved.
"""

from __future__ import annotations

import math
from copy import copy

import torch
from torch import Tensor

from geomerge.errors import NumericalError
from geomerge.io import paged
from geomerge.metrics.kronecker.packed import packed, unpacked
from geomerge.networks.autocast import widened
from geomerge.processes import Team

__all__ = [
    "WHOLE",
    "WIDEST",
    "Factor",
    "Moments",
    "decompose",
    "decomposition_cost",
    "factor_bytes",
    "factorise",
    "moment_bytes",
    "stored_rank",
]

WHOLE = 1024  # largest width of a full decomposition; 299 of 785 directions matter at least mu
_PART = 4  # ratio of width to the number of leading eigenvectors of wider matrices
_MORE = 64  # oversampling, so that the last leading eigenvectors are accurate
_BLOCK = 64  # random columns that mix one part of a matrix's columns


def decomposition_cost(width: int) -> float:
    """Return the relative cost of a factor's decomposition, width^2 times the stored rank.

    Args:
        width: Number of rows of the factor.
    """
    return float(width) ** 2 * stored_rank(width)


def stored_rank(width: int) -> int:
    """Return the number of stored eigenvectors of a factor.

    The eigenvalues of all others are replaced by their mean (:meth:`Factor.truncated`).

    Args:
        width: Number of rows of the factor.
    """
    return width if width <= WHOLE else width // _PART


class Factor:
    """Symmetric positive semidefinite matrix (d, d) in eigen form, made when first needed.

    A factor of :meth:`later` holds the packed matrix until then, in as many bytes as those
    eigenvectors in single precision that replace it.

    Args:
        vectors: Leading eigenvectors U, shape (d, r).
        values: Eigenvalues of U, descending, shape (r,).
        tail: Eigenvalue of all directions orthogonal to U; unused if r = d.

    Attributes:
        size: Number of rows d.
        dtype: Type of eigenvectors and eigenvalues.
    """

    def __init__(self, vectors: Tensor, values: Tensor, tail: float) -> None:
        self._eigen: tuple[Tensor, Tensor, float] | None = (vectors, values, tail)
        self._packed: Tensor | None = None  # in float64
        self.dtype = vectors.dtype
        self.size = len(vectors)

    @classmethod
    def later(
        cls,
        matrix: Tensor,  # (d, d), float64
    ) -> Factor:
        """Return the factor of a matrix that is decomposed when first needed.

        One wider than 1024, of which few eigenvectors are stored, is decomposed at once.

        Raises:
            NumericalError: If the matrix is not finite.
        """
        if len(matrix) > WHOLE:
            return factorise(matrix)
        _check_finite(matrix)
        made = cls(matrix, matrix[0], 0.0)
        made._eigen, made._packed = None, packed(matrix)
        return made

    @property
    def rank(self) -> int:
        """Number of stored eigenvectors."""
        return self.size if self._eigen is None else self._eigen[0].shape[1]

    @property
    def vectors(self) -> Tensor:  # (d, r)
        """Leading eigenvectors U."""
        return self._in_eigen_form()[0]

    @property
    def values(self) -> Tensor:  # (r,)
        """Eigenvalues of U, descending."""
        return self._in_eigen_form()[1]

    @property
    def tail(self) -> float:
        """Eigenvalue of all directions orthogonal to U; unused if r = d."""
        return self._in_eigen_form()[2]

    def decomposed(self, dtype: torch.dtype = torch.float64) -> Factor:
        """Return the factor itself, decomposed now.

        Args:
            dtype: Type of the decomposition. One in single precision takes half the time.

        Raises:
            NumericalError: If the decomposition does not converge.
        """
        if self._packed is not None:
            found = decompose(unpacked(self._packed).to(dtype))
            self._eigen = found.vectors.to(self.dtype), found.values.to(self.dtype), found.tail
            self._packed = None
        return self

    def _in_eigen_form(self) -> tuple[Tensor, Tensor, float]:
        """Return eigenvectors, eigenvalues and tail."""
        self.decomposed()
        assert self._eigen is not None
        return self._eigen

    @property
    def nbytes(self) -> int:
        """Bytes of the eigen form, or of the packed matrix."""
        if self._packed is not None:
            return self._packed.nbytes
        return self.vectors.nbytes + self.values.nbytes

    @property
    def full(self) -> bool:
        """Whether all eigenvectors are stored."""
        return self.rank == self.size

    @property
    def trace(self) -> float:
        """Sum of all eigenvalues."""
        return float(self.values.double().sum()) + (self.size - self.rank) * self.tail

    def scaled(self, share: float) -> Factor:
        """Return a multiple of the factor, without eigenvectors if none are known."""
        if self._packed is None:
            return Factor(self.vectors, share * self.values, share * self.tail)
        made = copy(self)
        made._packed = share * self._packed
        return made

    def with_vectors(
        self,
        vectors: Tensor,  # (d, r)
    ) -> Factor:
        """Return the factor with other eigenvectors of the same eigenvalues."""
        return Factor(vectors, self.values, self.tail)

    @property
    def ready(self) -> Factor:
        """The factor with eigenvectors that can be read several times."""
        return self

    def alike(self, factor: Factor) -> Factor:
        """Return another factor, held as this one is."""
        return factor

    def release(self) -> None:
        """Give back the memory of eigenvectors in a file."""
        if self._eigen is not None:
            paged.release(self._eigen[0])

    def held_in(self, store: paged.Store) -> Factor:
        """Return the factor with the eigenvectors in a store."""
        return self.with_vectors(store.hold(self.vectors)) if store.used else self

    def truncated(self, rank: int) -> Factor:
        """Return the factor with ``rank`` eigenvectors; all others join the isotropic tail."""
        size, old = self.vectors.shape
        if rank >= old:
            return self
        rest = float(self.values[rank:].double().sum()) + (size - old) * self.tail
        return Factor(self.vectors[:, :rank].contiguous(), self.values[:rank], rest / (size - rank))

    def squares(self) -> tuple[Tensor, Tensor]:  # (d, r or r + 1), (r or r + 1,)
        """Return squared components of the unit vectors in the eigenspaces, and eigenvalues.

        Returns:
            Squared components, whose rows sum to one, with the tail as one eigenspace; and the
            eigenvalues.
        """
        inside = self.vectors.square()
        if self.full:
            return inside, self.values
        outside = (1 - inside.sum(dim=1, keepdim=True)).clamp(min=0)
        return torch.cat([inside, outside], dim=1), torch.cat(
            [self.values, self.values.new_tensor([self.tail])]
        )

    def dense(self) -> Tensor:  # (d, d)
        """Return the matrix."""
        u, tail = self.vectors, 0.0 if self.full else self.tail
        matrix = (u * (self.values - tail)) @ u.T
        matrix.diagonal().add_(tail)
        return matrix

    def matrix(self) -> Tensor:  # (d, d)
        """Return the matrix in double precision, without its eigenvectors if none are known."""
        return self.dense().double() if self._packed is None else unpacked(self._packed)

    def times(
        self,
        x: Tensor,  # (d, columns)
    ) -> Tensor:  # (d, columns)
        """Return the product with a matrix, without eigenvectors if none are known.

        Its rounding depends on whether they are: walks, which may be resumed, truncate metrics
        before any product.
        """
        if self._packed is not None:
            return unpacked(self._packed.to(x)) @ x
        u, tail = self.vectors, 0.0 if self.full else self.tail
        inside = (u.T @ x).mul_((self.values - tail).unsqueeze(1))
        return u @ inside if tail == 0 else torch.addmm(x, u, inside, beta=tail)

    def to(self, dtype: torch.dtype, device: torch.device) -> Factor:
        """Return the factor in another type or on another device."""
        if self._packed is None:
            return Factor(self.vectors.to(device, dtype), self.values.to(device, dtype), self.tail)
        moved = copy(self)
        moved.dtype, moved._packed = dtype, self._packed.to(device)
        return moved


def factorise(
    matrix: Tensor,  # (d, d), float64
) -> Factor:
    """Return the eigen form of a symmetric positive semidefinite matrix.

    Args:
        matrix: Matrix in float64. Negative eigenvalues, due to rounding, are set to zero.

    Returns:
        The full eigen form. For matrices wider than 1024, :func:`stored_rank` leading eigenvectors,
        by a randomised method with two products with the matrix in single precision.

    Raises:
        NumericalError: If the matrix is not finite or the decomposition does not converge.
    """
    return decompose(matrix) if len(matrix) <= WHOLE else _leading(matrix)


def decompose(
    matrix: Tensor,  # (d, d)
) -> Factor:
    """Return the full eigen form of a symmetric positive semidefinite matrix of any width.

    Args:
        matrix: Matrix. If ``eigh`` fails in float32, as for some nearly singular matrices, the
            decomposition is in float64.

    Raises:
        NumericalError: If the matrix is not finite or the decomposition does not converge.
    """
    _check_finite(matrix)
    try:
        values, vectors = torch.linalg.eigh(matrix)
        failed = not (_finite(values) and _finite(vectors))
    except RuntimeError:  # torch's LinAlgError
        failed = True
    if failed and matrix.dtype != torch.float64:
        return decompose(matrix.double()).to(matrix.dtype, matrix.device)
    if failed:
        values, vectors = _eigh_by_qr(matrix)
    return Factor(vectors.flip(1).contiguous(), values.flip(0).clamp(min=0), 0.0)


def _check_finite(matrix: Tensor) -> None:
    if not _finite(matrix):
        raise NumericalError(
            "a factor of the metric is not finite, expected finite activations and gradients; "
            "check the network's outputs on these inputs"
        )


def _finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite; a sum takes a fifth of looking at each."""
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())


def _eigh_by_qr(
    matrix: Tensor,  # (d, d), float64
) -> tuple[Tensor, Tensor]:  # (d,), (d, d)
    """Return eigenvalues and eigenvectors by LAPACK's QR iteration.

    The divide-and-conquer method of ``torch.linalg.eigh`` does not converge for some finite
    matrices, such as a 301 x 301 second moment of nearly constant activations.

    Raises:
        NumericalError: If the QR iteration fails too.
    """
    from scipy.linalg import LinAlgError, eigh

    try:
        values, vectors = eigh(matrix.cpu().numpy(), driver="ev")
    except LinAlgError as error:
        raise NumericalError(
            f"the eigendecomposition of a {len(matrix)} x {len(matrix)} factor did not converge; "
            "give more inputs"
        ) from error
    return torch.from_numpy(values).to(matrix), torch.from_numpy(vectors).to(matrix)


def _leading(
    matrix: Tensor,  # (d, d), float64
) -> Factor:
    size, rank = len(matrix), stored_rank(len(matrix))
    trace = float(matrix.diagonal().sum())
    if not math.isfinite(trace) or trace <= 0:
        return decompose(matrix).truncated(rank)  # all zero, or not finite
    single = torch.empty_like(matrix, dtype=torch.float32)
    for out, rows in zip(single.split(_BLOCK), matrix.split(_BLOCK), strict=True):
        out.copy_(rows / trace)  # few rows stay in the cache between the two operations
    found = _nystrom(single, torch.linalg.qr(_range(single, min(rank + _MORE, size))).Q)
    if found is None:
        return decompose(matrix).truncated(rank)
    values, vectors = found[0][:rank].to(matrix) * trace, found[1][:, :rank].to(matrix)
    rest = trace - float(values.sum())
    return Factor(vectors.contiguous(), values, max(rest, 0.0) / max(size - rank, 1))


def _range(
    matrix: Tensor,  # (d, d), symmetric
    count: int,
) -> Tensor:  # (d, k)
    """Return the product with a sparse random matrix, whose range is nearly the leading one.

    Every ``_BLOCK`` columns, at most, mix a random part of the matrix's columns by normal numbers.
    This takes ``_BLOCK`` / k of the product with a dense random matrix. Eigenvectors along few
    coordinates are found as well as others as long as no part has more than ``_BLOCK`` of them.
    Sparse embeddings are those of Nelson & Nguyen (2013), arXiv 1211.1002.
    """
    generator = torch.Generator().manual_seed(0)
    parts = -(-count // _BLOCK)
    product = matrix.new_empty(len(matrix), count)
    order = torch.randperm(len(matrix), generator=generator).to(matrix.device)
    for index, out in zip(order.tensor_split(parts), product.tensor_split(parts, 1), strict=True):
        rows = matrix[index]
        mixed = torch.randn(len(rows), out.shape[1], generator=generator).to(matrix)
        torch.mm(rows.T, mixed, out=out)
    return product


def _nystrom(
    matrix: Tensor,  # (d, d)
    basis: Tensor,  # (d, k), orthonormal columns
) -> tuple[Tensor, Tensor] | None:  # (k,), (d, k)
    """Return leading eigenvalues and eigenvectors from the product with a basis.

    Nystrom approximation of Tropp, Yurtsever, Udell & Cevher (2017), algorithm 3. It is nearly as
    accurate as a projection on the basis after one more product with the matrix. None if it fails
    in double precision as well.
    """
    product = matrix @ basis
    shift = 10 * torch.finfo(matrix.dtype).eps * float(product.norm())
    product += shift * basis
    root, failed = torch.linalg.cholesky_ex(_lower(basis, product))
    if int(failed) and matrix.dtype != torch.float64:
        return _nystrom(matrix.double(), torch.linalg.qr(basis.double()).Q)
    if int(failed):
        return None
    left = torch.linalg.solve_triangular(root, product.T, upper=False).T
    # Double precision keeps the vectors orthogonal for tiny eigenvalues as well.
    wide = left.double()
    found = decompose(_lower(wide, wide))
    roots = found.values.clamp(min=float(shift) ** 2).sqrt()
    return (found.values - shift).clamp(min=0), left @ (found.vectors / roots).to(left)


def _lower(
    x: Tensor,  # (d, k)
    y: Tensor,  # (d, k)
) -> Tensor:  # (k, k)
    """Return the lower triangle of x'y, beside some numbers above it."""
    count = x.shape[1]
    out = x.new_zeros(count, count)
    for start in range(0, count, most := -(-count // 4)):
        columns = slice(start, start + most)
        out[start:, columns] = x[:, start:].T @ y[:, columns]
    return out


_WIDE_RANK = 1024  # eigenvectors of factors that are never formed as a matrix
_SIGNIFICANT = 1e-10  # share of the largest eigenvalue below which single precision knows none
WIDEST = 8192  # largest width of a second moment matrix; 25088 columns would take 5 GB


def moment_bytes(width: int) -> int:
    """Return the bytes of the second moments of rows during their accumulation.

    Args:
        width: Number of columns of the rows.
    """
    return 8 * width * width if width <= WIDEST else 4 * 2 * _WIDE_RANK * width


def factor_bytes(width: int) -> int:
    """Return the bytes of a factor in float32.

    Args:
        width: Number of its rows.
    """
    return 4 * width * (stored_rank(width) if width <= WIDEST else _WIDE_RANK)


class Moments:
    """Second moments, the sum of x x' over rows x.

    Wide rows are stored themselves as long as they are no more than a factor's eigenvectors: their
    inner products have the same eigenvalues and are far smaller. For very wide rows only leading
    eigenvectors are stored; they are updated after every block of rows. The trace includes the
    omitted ones.

    Args:
        held: Whether the sum is wanted. Without, the same work is done in less memory, to time it.
    """

    def __init__(self, held: bool = True) -> None:
        self._held = held
        self._rows: list[Tensor] = []  # (R, d), as long as they are few
        self._sum: Tensor | None = None  # (d, d), in float64
        self._leading: Tensor | None = None  # (r, d), eigenvectors times roots of eigenvalues
        self._trace = 0.0

    def add(
        self,
        rows: Tensor,  # (R, d)
        share: float = 1.0,
    ) -> None:
        """Add the outer products of rows, times a share; those of bfloat16 rows in float32."""
        rows = widened(rows)
        width = rows.shape[1]
        if width > WIDEST:
            for block in (rows * share**0.5).split(_WIDE_RANK):
                self._trace += float(block.square().sum(dtype=torch.float64))
                self._leading = _leading_rows(
                    block if self._leading is None else torch.cat([self._leading, block])
                )
            return
        few = sum(map(len, self._rows)) + len(rows) <= stored_rank(width)
        if self._held and self._sum is None and width > WHOLE and few:
            self._rows.append(rows * share**0.5)
            return
        self._sum_stored()
        self._add(rows, share)

    def add_products(
        self,
        total: Tensor,  # (d, d)
    ) -> None:
        """Add a sum of outer products of rows of at most :data:`WIDEST` columns."""
        self._sum_stored()
        if self._sum is None:
            self._sum = torch.zeros_like(total, dtype=torch.float64)
        self._sum += total

    def _sum_stored(self) -> None:
        """Add the outer products of the stored rows."""
        stored, self._rows = self._rows, []
        for rows in stored:
            self._add(rows, 1.0)

    def _add(self, rows: Tensor, share: float) -> None:
        width = rows.shape[1]
        if self._sum is None:
            wide = width if self._held else min(width, WHOLE)
            self._sum = rows.new_zeros(width, wide, dtype=torch.float64)
        if width <= WHOLE:
            self._sum.add_(rows.T @ rows, alpha=share)
            return
        for start in range(0, width, WHOLE):  # the lower triangle follows by symmetry
            columns = rows[:, start : start + WHOLE]
            part = rows[:, : start + WHOLE].T @ columns
            at = slice(start, start + WHOLE) if self._held else slice(0, part.shape[1])
            self._sum[: len(part), at].add_(part, alpha=share)

    def exchanged(self, width: int, like: Tensor, mates: Team) -> list[Tensor]:
        """Return the tensors to be reduced over processes, so that each process holds the sum.

        Leading eigenvectors of very wide rows are exchanged by this call already.

        Args:
            width: Width of the rows.
            like: Tensor of the rows' type on their device.
            mates: Processes that exchange sums.

        Returns:
            Blocks of the upper triangle, views of the sum.
        """
        if width <= WIDEST:
            self._sum_stored()
            if self._sum is None:
                self._sum = like.new_zeros(width, width, dtype=torch.float64)
            return [self._sum[start : start + WHOLE, start:] for start in range(0, width, WHOLE)]
        parts = []
        for owner in range(mates.size):
            own = like.new_zeros(0, width) if self._leading is None else self._leading
            count = torch.tensor([len(own)], device=like.device)
            mates.send(count, owner)
            part = own.clone() if owner == mates.rank else like.new_empty(int(count), width)
            mates.send(part, owner)
            parts.append(part)
        self._leading = _leading_rows(torch.cat(parts))
        total = torch.tensor([self._trace], dtype=torch.float64, device=like.device)
        mates.add([total])
        self._trace = float(total)
        return []

    def factor(self, count: int) -> Factor:
        """Return the sum divided by a count, in float64 unless rows are very wide.

        Raises:
            NumericalError: If a row was not finite.
        """
        if self._rows:
            found = _from_rows(torch.cat(self._rows), count)
            if found is not None:
                return found
            self._sum_stored()
        if self._sum is not None:
            for start in range(WHOLE, len(self._sum), WHOLE):
                block = slice(start, start + WHOLE)
                self._sum[block, :start] = self._sum[:start, block].T
            return Factor.later(self._sum / count)
        assert self._leading is not None, "rows were added"
        size = self._leading.shape[1]
        values = self._leading.double().square().sum(dim=1)
        vectors = (self._leading / values.sqrt().unsqueeze(1)).T
        tail = max(self._trace - float(values.sum()), 0.0) / (size - len(values))
        return Factor(vectors.contiguous(), values / count, tail / count)


def _from_rows(
    rows: Tensor,  # (R, d)
    count: int,
) -> Factor | None:
    """Return the factor of the second moments of few rows; None if all are zero."""
    wide = rows.double()
    eigen = decompose(wide @ wide.T)
    keep = int((eigen.values > eigen.values[0] * _SIGNIFICANT).sum())
    if not keep:
        return None
    values = eigen.values[:keep]
    vectors = wide.T @ (eigen.vectors[:, :keep] / values.sqrt())
    rest = max(eigen.trace - float(values.sum()), 0.0)
    return Factor(vectors, values / count, rest / (rows.shape[1] - keep) / count)


def _leading_rows(
    rows: Tensor,  # (R, d)
) -> Tensor:  # (r, d)
    """Return at most ``_WIDE_RANK`` orthogonal rows with nearly equal second moments."""
    eigen = decompose(rows.double() @ rows.double().T)
    significant = eigen.values > eigen.values[:1] * 1e-12
    keep = min(_WIDE_RANK, int(significant.sum()))
    return eigen.vectors[:, :keep].T.to(rows.dtype) @ rows
