"""The conformance suite: its server scenarios, run against a server."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from tests.interop.report import Report, StepError, expect
from tests.interop.servers import Target

VERSIONS = ("2025-11-25", "2026-07-28")
BASELINE = Path(__file__).with_name("expected-failures.yml")
TIMEOUT_S = 300

_BAD = ("FAILURE", "WARNING")
_FOLDER = re.compile(r"server-(.+)-\d{4}-\d\d-\d\dT[-\dZ]+")
_EXPECTED = re.compile(r"^  ~ (\S+)$", re.MULTILINE)


class Scenario(NamedTuple):
    """What a scenario found."""

    name: str
    passed: int
    problems: Sequence[str]


class Run(NamedTuple):
    """One run of the suite."""

    exit_code: int
    output: str
    scenarios: Sequence[Scenario]

    @property
    def excused(self) -> set[str]:
        """Return the entries of the baseline that failed as they say."""
        return set(_EXPECTED.findall(self.output))


def run_conformance(
    command: Sequence[str], target: Target, results: Path, environment: Mapping[str, str], report: Report
) -> None:
    """Run the suite in each version, in one workspace; what fails must stand in the baseline, and what stands there must fail."""
    entries: list[str] = yaml.safe_load(BASELINE.read_text(encoding="utf-8"))["server"]
    excused: set[str] = set()
    for version in VERSIONS:
        run = _run(command, target.mcp("conformance"), version, results / version, environment)
        _report_run(run, f"conformance {version}, {target.name}", entries, report)
        excused |= run.excused
    with report.step(f"conformance, {target.name}: every expected failure names a check that fails"):
        expect(sorted(set(entries) - excused), [], "the entries that excuse nothing")


def _run(command: Sequence[str], url: str, version: str, results: Path, environment: Mapping[str, str]) -> Run:
    options = ("--suite", "all", "--spec-version", version)
    done = subprocess.run(
        [*command, "server", "--url", url, *options, "--expected-failures", str(BASELINE), "-o", str(results)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**environment, "NO_COLOR": "1"},
    )
    return Run(done.returncode, re.sub(r"\x1b\[\d*m", "", done.stdout), _scenarios(results))


def _scenarios(results: Path) -> list[Scenario]:
    found: list[Scenario] = []
    for file in sorted(results.glob("*/checks.json")):
        named = _FOLDER.fullmatch(file.parent.name)
        if named is None:
            raise StepError(f"{file.parent.name} names no scenario")
        checks = json.loads(file.read_text(encoding="utf-8"))
        problems = [f"{each['id']}: {each.get('errorMessage')}" for each in checks if each["status"] in _BAD]
        found.append(Scenario(named[1], sum(each["status"] == "SUCCESS" for each in checks), problems))
    return found


def _report_run(run: Run, name: str, entries: Sequence[str], report: Report) -> None:
    """Note each scenario that is to pass, and then the suite's own verdict on all of them."""
    excused = {entry.partition(":")[0] for entry in entries}
    for scenario in run.scenarios:
        if scenario.name not in excused:
            with report.step(f"{name}: {scenario.name}, checks passed: {scenario.passed}"):
                if scenario.problems:
                    raise StepError("\n".join(scenario.problems))
    total = sum(scenario.passed for scenario in run.scenarios)
    with report.step(f"{name}: the suite's verdict; checks passed: {total}, excused: {len(run.excused)}"):
        if run.exit_code != 0 or not run.scenarios:
            raise StepError(_verdict(run))


def _verdict(run: Run) -> str:
    """Return what the suite says at its end of failures that are not expected, and of expected ones that are gone."""
    _, found, end = run.output.partition("Stale baseline entries")
    if not found:
        _, found, end = run.output.partition("Unexpected failures")
    return f"exit code {run.exit_code}\n" + (found + end if found else run.output[-2000:])
