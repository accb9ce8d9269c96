"""Every slot shows its run one device, and no two slots the same one."""

import os

import pytest

from bitjax.launch.devices import Devices, find_devices, make_slots


def test_each_accelerator_is_one_slot():
    slots = make_slots(Devices("gpu", 3))
    assert [slot.environment for slot in slots] == [
        {"CUDA_VISIBLE_DEVICES": str(i)} for i in range(3)
    ]
    slots = make_slots(Devices("rocm", 1))
    assert slots[0].environment == {"HIP_VISIBLE_DEVICES": "0"}
    slots = make_slots(Devices("tpu", 4), 2)
    assert [slot.environment["TPU_VISIBLE_DEVICES"] for slot in slots] == ["0", "1"]
    assert slots[0].environment["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,1,1"


def test_devices_that_a_scheduler_chose_keep_their_names(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-8f2c")
    slots = make_slots(Devices("gpu", 2))
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in slots] == ["5", "GPU-8f2c"]


def test_more_slots_than_accelerators_are_refused():
    with pytest.raises(ValueError, match="`slots` must be at most 2, the number of gpu devices"):
        make_slots(Devices("gpu", 2), 3)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are chosen on Linux only")
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_slots_on_the_cpu_share_out_its_cores(count):
    mine = os.sched_getaffinity(0)
    slots = make_slots(Devices("cpu", 1), count)
    assert len({slot.name for slot in slots}) == len(slots) == count
    assert all(slot.cores and slot.cores <= mine for slot in slots)
    if count <= len(mine):
        assert sum(len(slot.cores) for slot in slots) == len(mine)
        assert set().union(*(slot.cores for slot in slots)) == mine
    assert len(make_slots(Devices("cpu", 1))) == 1


@pytest.mark.slow
def test_devices_are_found_in_a_process_of_their_own(monkeypatch):
    assert find_devices().platform == "cpu"
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    with pytest.raises(ValueError, match="JAX finds no device here: .*nonsense"):
        find_devices()
