"""What users import: ``from ipython1.kernel import client``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from ipython1.kernel.client.multiengine import MultiEngineClient
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.client.results import Result, ResultList
from ipython1.kernel.client.task import TaskClient
from ipython1.kernel.client.taskresult import TaskResult
from ipython1.kernel.client.taskspec import MapTask, StringTask, depend, require
from ipython1.kernel.client.viewclient import ViewClient
from ipython1.kernel.error import (
    ClientClosed,
    CommandTimeout,
    CompositeError,
    ConnectionFailed,
    DetachFailed,
    EngineDied,
    ImpossibleDependency,
    InvalidEngineID,
    IPython1Error,
    LaunchError,
    NoEnginesRegistered,
    QueueCleared,
    QueueFull,
    RemoteError,
    SerializationError,
    TaskAborted,
    TaskRejected,
    TaskTimeout,
    UnknownResult,
)
from ipython1.kernel.wire.objects import Reference

if TYPE_CHECKING:
    from ipython1.launch.cluster import Cluster

__all__ = [
    "ClientClosed",
    "Cluster",
    "CommandTimeout",
    "CompositeError",
    "ConnectionFailed",
    "DetachFailed",
    "EngineDied",
    "IPython1Error",
    "ImpossibleDependency",
    "InvalidEngineID",
    "LaunchError",
    "MapTask",
    "MultiEngineClient",
    "NoEnginesRegistered",
    "PendingResult",
    "QueueCleared",
    "QueueFull",
    "Reference",
    "RemoteError",
    "Result",
    "ResultList",
    "SerializationError",
    "StringTask",
    "TaskAborted",
    "TaskClient",
    "TaskRejected",
    "TaskResult",
    "TaskTimeout",
    "UnknownResult",
    "ViewClient",
    "depend",
    "require",
]


@when_imported("joblib")
def _register_joblib_backend(joblib: Any) -> None:
    # joblib reads no entry points; this makes parallel_config("ipython1") work wherever a client can be made.
    importlib.import_module("ipython1.kernel.client.joblib_backend")  # registers itself


def __getattr__(name: str) -> Any:
    # launch builds on this package: it is imported when it is asked for.
    if name == "Cluster":
        from ipython1.launch.cluster import Cluster

        return Cluster
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
