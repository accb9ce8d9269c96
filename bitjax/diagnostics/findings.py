"""What the doctor says: findings, and their report."""

from typing import Literal, NamedTuple

Level = Literal["error", "warning"]


class Finding(NamedTuple):
    """One problem that `doctor` found.

    Attributes:
      level: `error` if training cannot work, else `warning`.
      site: the site with the problem, or a rule's pattern, a layer, a variable, the batch.
      message: the problem, with what was measured, and its remedy.
    """

    level: Level
    site: str
    message: str


Findings = tuple[Finding, ...]


class Found(NamedTuple):
    """A finding, with what others need of it."""

    level: Level
    site: str
    message: str
    blocks: bool = False  # whether nothing, or hardly anything, passes because of it

    @property
    def finding(self) -> Finding:
        """What the caller gets."""
        return Finding(self.level, self.site, self.message)


def doctor_report(findings: Findings) -> str:
    """The findings as text, a line each; findings with the same message share one.

    Args:
      findings: the findings, from `doctor`.

    Returns:
      A line of counts and the lines of the findings, without a newline at the end.

    Example:
      >>> print(doctor_report((Finding("error", "conv/kernel", "is all zeros"),)))
      doctor: 1 error, 0 warnings
      error    conv/kernel: is all zeros
    """
    if not findings:
        return "doctor: nothing found"
    groups: dict[tuple[str, str], list[str]] = {}
    for level, site, message in sorted(findings, key=lambda f: f.level):
        groups.setdefault((level, message), []).append(site)
    errors = sum(f.level == "error" for f in findings)
    counts = [(errors, "error"), (len(findings) - errors, "warning")]
    lines = ["doctor: " + ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counts)]
    for (level, message), sites in groups.items():
        more = f" and {len(sites) - 3} more" if len(sites) > 3 else ""
        lines.append(f"{level:<8} {', '.join(sites[:3])}{more}: {message}")
    return "\n".join(lines)
