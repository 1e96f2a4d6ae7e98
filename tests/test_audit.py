"""What is made of pip-audit's answers: a vulnerability fails, silence is told and never taken for a clean bill."""

import json
import runpy
from pathlib import Path

import pytest

verdict = runpy.run_path(str(Path(__file__).parents[1] / "scripts/audit.py"))["verdict"]
CLEAN = {"name": "jax", "version": "0.10.2", "vulns": []}
SKIPPED = {"name": "jax-cifar", "skip_reason": "distribution marked as editable"}
FAULT = {"id": "CVE-2026-1", "fix_versions": ["2.1", "3.0"]}


def answer(*packages: dict) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


@pytest.mark.parametrize(
    ("output", "complaints", "code", "text"),
    [
        (answer(CLEAN, SKIPPED), "", 0, "No known vulnerability in 1 packages; 1 are not in the index."),
        (answer(CLEAN), "", 0, "No known vulnerability in 1 packages."),
        (
            answer(CLEAN, {**CLEAN, "name": "pillow", "vulns": [FAULT]}),
            "Found 1 known vulnerability in 1 package",
            1,
            "Packages with known vulnerabilities:\npillow 0.10.2: CVE-2026-1, mended in 2.1, 3.0",
        ),
        (answer(SKIPPED, SKIPPED), "", 0, "NOT AUDITED for known vulnerabilities: the index answered for none of 2"),
        ("", "Traceback ...\nConnectionError: no route", 0, "pip-audit got no answer (ConnectionError: no route)"),
        ("", "", 0, "NOT AUDITED"),
    ],
)
def test_a_known_vulnerability_fails_and_silence_is_told(output, complaints, code, text):
    found, said = verdict(output, complaints)
    assert found == code and text in said
