"""Turns a mega prompt into a core and instructions, without losing a byte."""

from __future__ import annotations

from iris_kv.split.files import files_of, manifest_of
from iris_kv.split.folder import write_split
from iris_kv.split.manifest import Manifest
from iris_kv.split.plan import Plan, plan_split
from iris_kv.split.report import SplitReport, report_of
from iris_kv.split.verify import SplitVerification, verify_split

__all__ = [
    "Manifest",
    "Plan",
    "SplitReport",
    "SplitVerification",
    "files_of",
    "manifest_of",
    "plan_split",
    "report_of",
    "verify_split",
    "write_split",
]
