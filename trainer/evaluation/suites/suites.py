"""SUITES[name] is all that a suite needs."""

from trainer.evaluation.suites.answers import CLONE, DEFECT
from trainer.evaluation.suites.asking import ASKING
from trainer.evaluation.suites.programs import LANGUAGES
from trainer.evaluation.suites.recode import (
    CATEGORIES,
    judge_perturbed,
    recode_items,
    recode_summary,
)
from trainer.evaluation.suites.scoring import program_summary
from trainer.evaluation.suites.security import judge_scenario, security_summary
from trainer.evaluation.suites.suite import Suite

SUITES: dict[str, Suite] = {
    "defect": Suite(
        "defect detection (Devign)",
        "defect",
        DEFECT.judge,
        DEFECT.summary,
        ASKING["defect"],
        DEFECT.select,
        runs_programs=False,
    ),
    "clone": Suite(
        "clone detection (BigCloneBench)",
        "clone",
        CLONE.judge,
        CLONE.summary,
        ASKING["clone"],
        CLONE.select,
        runs_programs=False,
    ),
    "humaneval": Suite(
        "HumanEval", "humaneval", LANGUAGES["python"].judge, program_summary, ASKING["humaneval"]
    ),
    **{
        f"humanevalpack-{task}-{language}": Suite(
            f"HumanEvalPack, {task}, {language}",
            f"humanevalpack-{language}",
            of.judge,
            program_summary,
            ASKING[f"humanevalpack-{task}-{language}"],
        )
        for task in ("synthesize", "fix", "explain")
        for language, of in LANGUAGES.items()
    },
    **{
        "-".join(["recode", *names[:1] * (len(names) == 1)]): Suite(
            f"ReCode: {', '.join(names)}",
            "recode",
            judge_perturbed,
            recode_summary,
            ASKING["recode"],
            read=recode_items(*names),
        )
        for names in (tuple(CATEGORIES), *((name,) for name in CATEGORIES))
    },
    "aatk": Suite(
        "Asleep at the Keyboard", "aatk", judge_scenario, security_summary, ASKING["aatk"]
    ),
}
