"""Which GPU a rank takes, and what two ranks on one GPU are told. These tests need no GPU."""

import os
from types import SimpleNamespace

import pytest
import rank_pool
import torch
from torch.distributed import HashStore

from trainer.errors import MachineError
from trainer.processes import distributed


@pytest.fixture
def gpus(monkeypatch):
    """As many GPUs as are asked for; says which one was chosen."""
    chosen = SimpleNamespace(num=1, index=None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: chosen.num)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: setattr(chosen, "index", index))
    monkeypatch.setenv("LOCAL_RANK", "0")
    return chosen


@pytest.mark.parametrize(("num", "local_rank", "index"), [(8, 5, 5), (1, 5, 0), (1, 0, 0)])
def test_a_rank_takes_its_own_gpu_or_the_only_one_it_sees(
    gpus, monkeypatch, num, local_rank, index
):
    gpus.num = num
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert distributed._device(local_rank) == torch.device("cuda", index)
    assert gpus.index == index
    assert os.environ["LOCAL_RANK"] == str(index)  # DeepSpeed takes the device from it


def test_a_rank_with_a_gpu_of_its_own_keeps_its_place_on_the_node(gpus, monkeypatch):
    """The roll call refuses a node whose ranks have one local rank."""
    monkeypatch.setenv("LOCAL_RANK", "5")
    for name in ("_check_accelerator", "_join"):
        monkeypatch.setattr(distributed, name, lambda *_: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 5)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    ranks = distributed.start(60)
    assert (ranks.local_rank, ranks.device) == (5, torch.device("cuda", 0))
    assert os.environ["LOCAL_RANK"] == "0"


def test_ranks_of_tests_are_forked_only_where_no_gpu_is_seen(gpus, monkeypatch):
    assert rank_pool._context().get_start_method() == "spawn"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert rank_pool._context().get_start_method() == "forkserver"


def test_a_rank_beyond_the_gpus_is_refused_before_ranks_talk(gpus, monkeypatch):
    gpus.num = 2
    with pytest.raises(MachineError, match=r"local rank 2 has no GPU: this node has 2; lower"):
        distributed._device(2)


def names_seen(monkeypatch, own, others):
    """`_refuse_shared_gpus` on rank 0, when the others have said theirs."""
    store = HashStore()
    for rank, name in enumerate(others, 1):
        store.set(f"GPU of rank {rank}", name)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(1 + len(others)))
    distributed._refuse_shared_gpus(store, own)


def test_ranks_of_one_gpu_are_refused_on_every_rank_and_named(monkeypatch):
    names_seen(monkeypatch, "a GPU 1", ["a GPU 2", "b GPU 1"])
    with pytest.raises(MachineError, match=r"ranks 1 and 3 have one GPU between them \(b GPU 9\)"):
        names_seen(monkeypatch, "a GPU 1", ["b GPU 9", "a GPU 2", "b GPU 9"])
