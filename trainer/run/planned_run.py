"""Compares a run with its plan: at its start, at its end and when memory was short."""

from dataclasses import replace

import torch
from torch import nn

from trainer.errors import MachineError
from trainer.models.packed_attention import ROWS, VARLEN
from trainer.planning.change import best_change
from trainer.planning.data_facts import facts_of
from trainer.planning.host import host_line
from trainer.planning.plan import RunPlan, make_plan
from trainer.planning.view import bar_lines, change_line
from trainer.run.data_report import plan_facts
from trainer.run.session import Session
from trainer.run_folder.checkpoint import newest_checkpoint
from trainer.run_folder.folder import write_json

PLAN = "plan.json"
_GIB = 2**30
_SAVING = 0.1  # share of the planned peak that a change must save after memory was short


def write_plan(session: Session) -> str:
    """Write plan.json; a line about the plan and what the rank holds before its first step."""
    path = session.run.config.output_dir / PLAN
    steps = {"steps": plan_facts(session.run.loader, session.run.total_steps)}
    plan = _plan(session)
    write_json(path, plan.to_json() | steps)
    memory = plan.memory
    planned = memory.quantised_weights + memory.frozen_weights
    planned += memory.trained_weights + memory.master_weights
    limit = "" if plan.limit_bytes is None else f" of {plan.limit_bytes / _GIB:.2f}"
    return (
        f"  memory     planned {memory.total / _GIB:.3f}{limit} GiB at the peak of a step; weights"
        f" planned {planned / _GIB:.3f}, measured {held_bytes(session) / _GIB:.3f} GiB"
        + (f"\n             {plan.doubt}" if plan.doubt else "")
        + f"\n  host       planned {host_line(plan.host, plan.host_limit_bytes)}"
    )


def peak_lines(session: Session) -> list[str]:
    """The measured peak of the steps beside the planned one; only a GPU measures it."""
    if session.run.ranks.device.type != "cuda":
        return []
    plan = _plan(session)
    measured = torch.cuda.max_memory_allocated(session.run.ranks.device) / _GIB
    tensors = plan.memory.total - plan.memory.context - plan.memory.fragmentation
    planned = f"planned {tensors / _GIB:.2f} GiB of tensors"
    return [f"peak memory: {planned}, measured {measured:.2f} GiB"]


def explained(error: MachineError, session: Session) -> MachineError:
    """What was short, what takes the memory, what is safe and the best single change."""
    newest, _ = newest_checkpoint(session.checkpoints)
    safe = f"the checkpoint of step {newest.step} is intact" if newest else "nothing was saved yet"
    plan = _plan(session)
    lines = [f"{error}; {safe}", *bar_lines(plan.memory, plan.limit_bytes)]
    # The plan said that it fits, so what is needed is a real saving against the plan itself.
    needed = (1 - _SAVING) * min(plan.memory.total, plan.limit_bytes or float("inf"))
    change = best_change(session.recipe, plan.data, needed)
    if change is not None:
        lines.append(change_line(plan, change))
    return MachineError("\n".join(lines))


def held_bytes(session: Session) -> int:
    """Bytes of the tensors of model and optimizer on this rank, shared storages once."""
    model: nn.Module = session.run.engine.module
    tensors = [*model.parameters(), *model.buffers()]
    for group in session.run.engine.optimizer.param_groups:
        tensors += group["params"]
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            tensors += [state.absmax, *([state.state2.absmax] if state.nested else [])]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _plan(session: Session) -> RunPlan:
    config = session.run.config
    data = facts_of(config.data, config.is_language, session.prepared.facts, "this run")
    assert data is not None  # the run's facts fit its own settings
    recipe, examples = session.recipe, session.run.loader.examples
    if session.model.strategy.name in (VARLEN, ROWS):  # attention gets records, not rows
        longest = min(config.data.seq_length, int(examples.lengths.max()))
        recipe = replace(recipe, record_tokens=longest)
    return make_plan(recipe, data)
