"""Fixtures of the reliability tests."""

from __future__ import annotations

from tests.concurrency.conftest import often, reported, worker

__all__ = ["often", "reported", "worker"]
