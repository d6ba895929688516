"""A model: its specification together with its parameters.

The parameters are float32, read-only and owned by the model, so a model never changes once it
exists and its fingerprint stays true.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from streamrnn.errors import ModelError, ModelFileError
from streamrnn.model.file import read_model_file, write_model_file
from streamrnn.model.parameters import (
    canonical_spec,
    check_parameters,
    fingerprint_of,
    tensor_entries,
)
from streamrnn.model.spec import ModelSpec

__all__ = ["Model"]


class Model:
    """A recurrent network: its description and its parameters.

    Parameters
    ----------
    spec : ModelSpec
        What is fixed about it.
    parameters : mapping of str to ndarray of float32
        Exactly those that `streamrnn.model.parameters.parameter_shapes` names; copied.
    proof : dict, str or None
        With which outputs of the original an imported model was compared; plain JSON types. It is
        kept in the file, and no part of the fingerprint.

    Attributes
    ----------
    spec, proof
        As given.
    parameters : mapping of str to ndarray of float32
        Read-only arrays in C order, in the order of `parameter_shapes`.
    fingerprint : str
        Hex SHA-256 of all of it; the same as in the weight file.

    Raises
    ------
    ModelError
        If a parameter is missing, unknown, of another shape or dtype, or not finite.
    """

    def __init__(
        self,
        spec: ModelSpec,
        parameters: Mapping[str, NDArray[Any]],
        proof: Any = None,
    ) -> None:
        self.spec = spec
        self.proof = proof
        self.parameters = check_parameters(spec, parameters)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the description and every parameter."""
        return fingerprint_of(canonical_spec(self.spec), tensor_entries(self.parameters))

    @property
    def num_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(value.size for value in self.parameters.values())

    def __repr__(self) -> str:
        layers = " -> ".join(layer.summary() for layer in self.spec.layers)
        return (
            f"<Model {self.spec.num_inputs} inputs -> {layers} -> {self.spec.output_size} outputs, "
            f"{self.num_parameters} parameters>"
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a weight file.

        Parameters
        ----------
        path : str or path
            A file that `save`, ``streamrnn train`` or ``streamrnn import`` wrote.

        Returns
        -------
        Model

        Raises
        ------
        ModelFileError
            If the file is damaged, of another kind, or holds a model that does not fit its own
            description. The message says what and where.
        """
        spec, tensors, proof = read_model_file(path)
        try:
            return cls(spec, tensors, proof)
        except ModelError as error:
            raise ModelFileError(f"{os.fspath(path)}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a weight file, all or nothing.

        Parameters
        ----------
        path : str or path
            Replaced if it exists; a reader sees the old file or the new one, never a part.

        Raises
        ------
        ModelFileError
            If the file cannot be written.
        """
        write_model_file(path, self.spec, self.parameters, self.proof)
