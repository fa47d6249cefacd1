"""Component tests: `running(service)` runs services for real, on the memory broker and a clock that jumps."""

from .clock import VirtualClock
from .mill import Mill, NotSettled, running

__all__ = ["Mill", "NotSettled", "VirtualClock", "running"]
