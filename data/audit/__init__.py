"""What is wrong with a dataset before a model learns it: leaks, duplicates, telling words.

Imports batches/ and the rooms above.
"""

from data.audit.facts import AuditFacts, Finding
from data.audit.report import audit_splits, summary_lines, write_audit

__all__ = [
    "AuditFacts",
    "Finding",
    "audit_splits",
    "summary_lines",
    "write_audit",
]
