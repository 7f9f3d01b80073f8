"""Compiles imitation-learned policies (ONNX) to quantized artifacts and runs them."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict, final, type_check_only

import numpy

__version__: str

_Path = str | PathLike[str]

@type_check_only
class Device(TypedDict):
    device: str
    kind: str
    name: str
    driver: str

@type_check_only
class Blocker(TypedDict):
    node: str
    op: str
    reason: str
    remedy: str

class Error(Exception):
    """Whatever qailc could not do."""

    exit_code: int
    """Exit code of the command line for the same failure."""
    causes: list[str]
    """Why it failed, the outermost reason first."""
    help: str | None
    """One thing to do."""
    blockers: list[Blocker]
    """Everything that a model asks for and this version does not have."""

class UsageError(Error, ValueError):
    """Options that make no sense."""

class UnsupportedModel(Error):
    """The model is well-formed and qailc does not support it."""

class InvalidInput(Error, ValueError):
    """A file or array is damaged, missing or does not fit the model."""

class AccuracyError(Error):
    """Training did not come to a usable policy."""

class NoDevice(Error):
    """There is no such device here."""

class ArtifactError(Error):
    """The artifact is damaged or of another version."""

@final
class PortInfo:
    """An input or output of a policy."""

    @property
    def name(self) -> str:
        """Name."""
    @property
    def dtype(self) -> Literal["float32", "int32", "uint8", "int64"]:
        """Name of the elements in numpy."""
    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of one step, without the batch axis."""
    @property
    def lower(self) -> list[float] | None:
        """Smallest value of each element of the last axis, or None if it is not known."""
    @property
    def upper(self) -> list[float] | None:
        """Largest value of each element of the last axis, or None if it is not known."""

@type_check_only
class Chunk(TypedDict):
    length: int
    """Actions in a chunk."""
    execute: int
    """Actions given out before the next chunk is computed."""
    ensemble: float | None
    """Weight of temporal ensembling; a chunk is then computed in every step."""

@final
class Policy:
    """A compiled policy, loaded and ready to run.

    `device` is "cpu", "cpu:avx2", "gpu", "vulkan:0", "metal": see `devices()`.
    Integer precisions give the same actions, bit for bit, on every device.
    A policy may be used by several threads; its runs then take turns. Different
    policies run at the same time.
    """

    def __new__(cls, path: _Path, device: str = "cpu") -> Policy: ...
    @property
    def inputs(self) -> list[PortInfo]:
        """What `run` takes."""
    @property
    def outputs(self) -> list[PortInfo]:
        """What `run` gives."""
    @property
    def name(self) -> str:
        """Name of the model that the policy was compiled from."""
    @property
    def device(self) -> str:
        """What the policy really runs on, for example "cpu:avx2"."""
    @property
    def precision(self) -> str:
        """What was done to the policy, for example "w4a4+e8+o16"."""
    @property
    def control_rate_hz(self) -> float | None:
        """Rate of the control loop that the policy was made for, or None."""
    @property
    def action(self) -> str | None:
        """Name of the output that `act` gives, or None if it is not known."""
    @property
    def chunk(self) -> Chunk | None:
        """How `act` gives out the actions of a chunk, or None if the policy computes one action a step."""
    def act(self, inputs: dict[str, numpy.ndarray[Any, Any]]) -> numpy.ndarray[Any, Any]:
        """Gives the action of this step, one behind the other of an episode: an array of the shape of one action.

        A policy of chunks computes when its queue is empty, or in every step when
        ensembling, and else gives out the next row of the last chunk; other
        policies compute in every step. After an exception the step has not
        happened, and what is in the queue stays.

        Takes what `run` takes and raises what it raises, and UsageError if it is
        not known which output is the action.
        """
    def run(self, inputs: dict[str, numpy.ndarray[Any, Any]]) -> dict[str, numpy.ndarray[Any, Any]]:
        """Computes one step: a dict of arrays by input name to a dict of new arrays by output name.

        Chunks of actions are given whole, and the queue of `act` is left alone.

        An array is C-contiguous, of the type and shape of its input; a batch axis
        of extent 1 in front is accepted, and outputs then have it too. Python's
        lock is given back while the policy runs.

        Raises TypeError for arrays of another type, and InvalidInput, a
        ValueError, for wrong names, shapes and numbers that are not finite.
        """
    def reset(self) -> None:
        """Forgets what came before, at the start of an episode: states, and actions of chunks that `act` has not given out."""

def compile(
    model: _Path,
    out: _Path | None = None,
    *,
    bits: Literal["f32", "w8a8", "w4a8", "w4a4", "w8a16", "w4a16"] | None = None,
    demos: _Path | None = None,
    map: Mapping[str, str] | None = None,
    edge_bits: Literal[4, 8] | None = None,
    method: Literal["ptq", "qail", "qbc", "qail+qbc"] | None = None,
    seed: int | None = None,
    steps: int | None = None,
    time_budget: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    lr_steps: float | None = None,
    loss: str | None = None,
    lambda_: float | None = None,
    weight_decay: float | None = None,
    clip: float | None = None,
    ema: float | None = None,
    obs_noise: float | None = None,
    eval_every: int | None = None,
    threads: int | None = None,
    bptt: int | None = None,
    then: Sequence[_Path] | None = None,
    cache_dir: _Path | None = None,
    observer: str | None = None,
    calibration_samples: int | None = None,
    policy: _Path | None = None,
    action_output: str | None = None,
    chunk_length: int | None = None,
    chunk_execute: int | None = None,
    chunk_ensemble: float | Literal["off"] | None = None,
    outputs: str | Sequence[str] | None = None,
    dims: Mapping[str, int] | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> dict[str, Any]:
    """Quantizes and trains a model (or takes a checkpoint of `qailc train`) and writes an artifact.

    Keywords are the flags of `qailc compile`, and None is the default of the
    flag: bits "w4a4", edge_bits 8, and training with "qail+qbc" unless method
    says otherwise. `out` is the model's name with `.qail` by default.

    `progress(stage, done, all)` is called now and then; an exception in it, or
    Ctrl-C, ends the work, and no artifact is written. Python's lock is given
    back while qailc works.

    Returns the report of `qailc compile --json` as a dict, with `path`, where the
    artifact is, and `notes`.
    """

def devices() -> list[Device]:
    """Everything that can run artifacts here. `device` is the name that `Policy` takes."""
