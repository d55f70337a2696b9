"""What a machine needs: each check says what it found, whether that will do, and what to do if not."""

from ureca.operations.doctor.finding import Finding, Level

__all__ = ["Finding", "Level"]
