"""What is wrong with a dataset before a model learns it: leaks, duplicates, words that tell."""

from data.audit.facts import AuditFacts, Finding
from data.audit.report import audit_splits, summary_lines, write_audit
from data.audit.whitespace import CollapseFacts, collapse_damage

__all__ = [
    "AuditFacts",
    "CollapseFacts",
    "Finding",
    "audit_splits",
    "collapse_damage",
    "summary_lines",
    "write_audit",
]
