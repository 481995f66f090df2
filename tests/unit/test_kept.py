"""What an engine keeps of results that their clients have."""

from __future__ import annotations

import pytest

from ipython1.kernel.engine.kept import KEPT_EACH, Kept, KeptJobs
from ipython1.kernel.wire.records import Result


def ended(id: str, size: int) -> Kept:
    """A job with a result of so many bytes, beside the record."""
    job = Kept(id, 0.0)
    job.close(Result(id, 0, "", "ok", 0.0, 0.0, 0, ()), ())
    job.blobs[f"{id}/0"] = memoryview(bytes(8))
    job.size += size
    return job


@pytest.fixture
def jobs() -> KeptJobs[Kept]:
    return KeptJobs()


def test_a_result_is_kept_for_others_unless_it_is_large(jobs: KeptJobs[Kept]) -> None:
    for id, size in (("a-1", KEPT_EACH), ("a-2", KEPT_EACH + 1)):
        jobs.add(ended(id, size))
    assert jobs.forget("a-1") == []
    assert jobs.forget("a-2") == ["a-2/0"]
    assert jobs.get("a-1") is not None
    assert jobs.get("a-2") is None
    assert jobs.forget("a-2") == []


def test_a_large_result_that_its_client_never_had_is_kept(jobs: KeptJobs[Kept]) -> None:
    jobs.add(ended("a-1", KEPT_EACH + 1))
    assert jobs.abandon("a") == []
    assert jobs.get("a-1") is not None


def test_a_large_detached_result_is_kept(jobs: KeptJobs[Kept]) -> None:
    job = ended("a-1", KEPT_EACH + 1)
    jobs.add(job)
    jobs.detach(job)
    assert jobs.forget("a-1") == []
    assert jobs.get("a-1") is job
