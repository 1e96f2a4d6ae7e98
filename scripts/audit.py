"""Look the installed packages up in the database of known vulnerabilities; `make lint` does.

    python scripts/audit.py

Exit codes: 0 none is known, or the index cannot be asked, which is said; 1 a package has one.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

from jax_cifar.cli import Parser, run
from jax_cifar.errors import ConfigError, printable

# Of an answer, and of all answers: a network that is slow or not there must not hold up who cannot mend it.
ANSWER_SECONDS, ALL_SECONDS = 5, 60
OPTIONS = ("--format", "json", "--progress-spinner", "off", "--skip-editable", "--timeout", str(ANSWER_SECONDS))


def main(arguments: Sequence[str]) -> None:
    """Ask, judge, print."""
    Parser(__doc__).parse_args(arguments)
    code, text = verdict(*ask())
    print(printable(text))
    sys.exit(code)


def ask() -> tuple[str, str]:
    """What pip-audit prints, and its complaints; raises `ConfigError` where it is not installed."""
    command = [sys.executable, "-m", "pip_audit", *OPTIONS]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {ALL_SECONDS} s"
    if "No module named pip_audit" in answer.stderr:
        raise ConfigError("pip-audit is not installed. Install it with: pip install -e '.[dev]'")
    return answer.stdout, answer.stderr


def verdict(output: str, complaints: str) -> tuple[int, str]:
    """Exit code and what to say: a package with a vulnerability fails, an index that does not answer is only told."""
    try:
        packages = json.loads(output)["dependencies"]
    except ValueError:
        reason = (complaints.strip().splitlines() or ["it said nothing"])[-1]
        return 0, f"NOT AUDITED for known vulnerabilities: pip-audit got no answer ({reason[:300]})."
    known = [package for package in packages if "vulns" in package]
    if not known:
        return 0, f"NOT AUDITED for known vulnerabilities: the index answered for none of {len(packages)} packages."
    lines = [
        f"{package['name']} {package['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'none'}"
        for package in known
        for fault in package["vulns"]
    ]
    unknown = f"; {len(packages) - len(known)} are not in the index" if len(known) < len(packages) else ""
    if lines:
        return 1, "\n".join(["Packages with known vulnerabilities:", *lines])
    return 0, f"No known vulnerability in {len(known)} packages{unknown}."


if __name__ == "__main__":
    run(main)
