"""What a reader yields: immutable records that know where they came from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CodeSample:
    """One function and whether it is vulnerable.

    Attributes:
        id: The dataset's own identifier, or the origin where it has none.
        code: Source text, never empty.
        target: 1 vulnerable, 0 not.
        origin: "file:line" of the row, for messages and for the predictions file.
        cwe: Weakness class such as "CWE-89"; "" where unknown.
        status: Group used by loss.group_weights, such as "VULNERABLE" or "FIXED".
        commit: Commit or project the function came from: pairs share it; "" where unknown.
        function_name: For people; never shown to the model.
        project: Repository the function came from; "" where unknown.
        cve: Vulnerability the function belongs to, such as "CVE-2021-44228"; "" where unknown.
    """

    id: str
    code: str
    target: int
    origin: str
    cwe: str = ""
    status: str = ""
    commit: str = ""
    function_name: str = ""
    project: str = ""
    cve: str = ""
