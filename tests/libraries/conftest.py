"""The loop that jupyter_client keeps for good is made before any test is looked at for leaks."""

from tests.notebook.conftest import loop_of_jupyter_client

__all__ = ["loop_of_jupyter_client"]
