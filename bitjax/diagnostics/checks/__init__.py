"""What the doctor checks: pure functions from what was measured to findings, by subject."""
