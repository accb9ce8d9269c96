"""One per-device step on one device or on many: where state and batches lie, how it is compiled.

Data parallel: every device holds the whole state and a part of the batch, and the step merges
gradients and statistics by collectives over the axis `data`. `pmap` and `shard_map` compile the
same function; which of them, the runner does not see.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
FORMS = ("auto", "none", "pmap", "shard_map")


class Placement(NamedTuple):
    """The devices of a run, and the functions that put its arrays and programs there.

    Attributes:
      form: `none` (one device), `pmap` or `shard_map`.
      devices: the devices of all hosts, in the order of the batch's parts.
      shard: (index, count) of this host, as `bitjax.data` takes them.
      accelerator: whether the devices are none of the CPU's.
      axis_name: name that `make_train_step` and `make_eval_step` take; None on one device.
      put_state: a tree, the same on every device. Several hosts take what the first of them has.
      put_data: a tree that every host has read for itself, the same on every device.
      put_batch: this host's part of a batch, spread over its devices; with `scanned=True` of
        several batches in a row, stacked on a first axis.
      local: what `put_state` made, as this host's own arrays; valid until a step takes the state.
      train: a step becomes compiled `(state, batch, data) -> (state, metrics)` that reuses the
        state's memory. `data` is {} or the whole training set, of which batches then hold `index`.
        With `scanned=True` it takes stacked batches and returns the last one's metrics.
      evaluate: a step becomes compiled `(variables, batch) -> sums`.
      split: the states of the runs that a state holds: one, unless runs are its rows.
      join: what `split` takes apart; its arrays are its own, because steps donate them.
    """

    form: str
    devices: tuple[jax.Device, ...]
    shard: tuple[int, int]
    accelerator: bool
    axis_name: str | None
    put_state: Callable[[Any], Any]
    put_data: Callable[[Any], Any]
    put_batch: Callable[..., Any]
    local: Callable[[Any], Any]
    train: Callable[..., Callable]
    evaluate: Callable[[Callable], Callable]
    split: Callable[[Any], list[Any]] = lambda tree: [tree]
    join: Callable[[Sequence[Any]], Any] = lambda trees: jax.device_put(trees[0], may_alias=False)


def placement(form: str = "auto", devices: int = 0) -> Placement:
    """Chooses devices, and the form in which a step runs on them.

    Args:
      form: one of `FORMS`; `auto` is `none` where there is one device, else `shard_map`.
      devices: how many, over all hosts; 0 takes all, or the one that `none` can use.

    Raises:
      ValueError: there are too few devices, or the form does not go with their number.

    Example:
      >>> place = placement("shard_map", devices=1)
      >>> step = place.train(lambda state, batch: (state + batch["x"].sum(), {}))
      >>> batch = place.put_batch({"x": np.ones(4, np.float32)})
      >>> float(step(place.put_state(jax.numpy.float32(1.0)), batch, {})[0])
      5.0
    """
    if form not in FORMS:
        raise ValueError(f"`parallel` must be one of {list(FORMS)}, got {form!r}.")
    chosen = _choose_devices(devices or (1 if form == "none" else 0))
    if form == "none" and len(chosen) > 1:
        raise ValueError(
            f"`parallel` 'none' uses one device, but `devices` is {devices}: choose 'pmap', "
            "'shard_map' or 'auto'."
        )
    if form == "auto":
        form = "shard_map" if len(chosen) > 1 else "none"
    return {"none": _one, "pmap": _pmap, "shard_map": _shard_map}[form](tuple(chosen))


def _choose_devices(count: int = 0) -> list[jax.Device]:
    """The first `count` devices, as many of every host, host by host; 0 takes all."""
    hosts, found = jax.process_count(), jax.device_count()
    if count > found or count < 0:
        raise ValueError(
            f"`devices` must be at most {found}, what JAX finds on {hosts} host(s) "
            f"({jax.default_backend()}), got {count}: use fewer, or 0 for all."
        )
    if count % hosts:
        raise ValueError(
            f"`devices` must be a multiple of the {hosts} hosts, got {count}; use "
            f"{count - count % hosts or hosts}, or 0 for all."
        )
    each = [jax.local_devices(process_index=host) for host in range(hosts)]
    if not count and len({len(own) for own in each}) > 1:
        raise ValueError(
            f"the hosts have {[len(own) for own in each]} devices, which must be equally many: set "
            "`devices`."
        )
    return [device for own in each for device in own[: count // hosts or len(own)]]


def part_of_batch(batch_size: int, accumulate: int, place: Placement) -> int:
    """Examples of a batch that a device sees at once."""
    parts = len(place.devices) * accumulate
    if batch_size % parts:
        times = f" x {accumulate} parts (`accumulate`)" if accumulate > 1 else ""
        raise ValueError(
            f"`batch_size` must be a multiple of the {len(place.devices)} devices{times}, got "
            f"{batch_size}; use {batch_size + -batch_size % parts}, or fewer `devices`."
        )
    return batch_size // parts


def _body(step: Callable, scanned: bool) -> Callable:
    """`(state, batch, data) -> (state, metrics)` of a device."""

    def run(state, batch, data):
        if data:
            batch = {name: rows[batch["index"]] for name, rows in data.items()}
        return step(state, batch)

    def many(state, batches, data):
        state, metrics = jax.lax.scan(lambda s, batch: run(s, batch, data), state, batches)
        return state, jax.tree.map(lambda each: each[-1], metrics)

    return many if scanned else run


def _one(devices: tuple[jax.Device, ...]) -> Placement:
    if jax.process_count() > 1:
        raise ValueError(
            f"`parallel` 'none' uses one device, but there are {jax.process_count()} hosts: choose "
            "'pmap', 'shard_map' or 'auto'."
        )
    return Placement(
        form="none",
        devices=devices,
        shard=(0, 1),
        accelerator=devices[0].platform != "cpu",
        axis_name=None,
        # Not committed to a device: programs are those of arrays that were never put anywhere.
        put_state=lambda tree: tree,
        put_data=jax.device_put,
        put_batch=lambda batch, *, scanned=False: jax.device_put(batch),
        local=lambda tree: tree,
        train=lambda step, *, scanned=False: jax.jit(_body(step, scanned), donate_argnums=0),
        evaluate=jax.jit,
    )


def _pmap(devices: tuple[jax.Device, ...]) -> Placement:
    # Its arrays are of this host alone, also where there are several.
    own = [device for device in devices if device.process_index == jax.process_index()]
    mesh = Mesh(np.array(own), (AXIS,), axis_types=(AxisType.Auto,))

    def put_batch(batch, *, scanned=False):
        axis = int(scanned)

        def put(leaf):
            shape = (*leaf.shape[:axis], len(own), -1, *leaf.shape[axis + 1 :])
            return np.asarray(leaf).reshape(shape)

        return jax.tree.map(put, batch)

    def train(step, *, scanned=False):
        return jax.pmap(
            _body(step, scanned),
            axis_name=AXIS,
            in_axes=(None, int(scanned), None),
            out_axes=None,
            donate_argnums=0,
            devices=devices,
        )

    def evaluate(step):
        return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=devices)

    return _spread("pmap", devices, mesh, put_batch, train, evaluate)


def _shard_map(devices: tuple[jax.Device, ...]) -> Placement:
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))

    def spec(scanned):
        return PartitionSpec(None, AXIS) if scanned else PartitionSpec(AXIS)

    def put_batch(batch, *, scanned=False):
        sharding = NamedSharding(mesh, spec(scanned))
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
        )

    def mapped(function, *specs):
        # Without the check of what varies over devices a gradient is the device's own, and the
        # step's pmean makes it the batch's; with it, the gradient would already be a sum.
        return jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
        )

    def train(step, *, scanned=False):
        everywhere = PartitionSpec()
        body = mapped(_body(step, scanned), everywhere, spec(scanned), everywhere)
        return jax.jit(body, donate_argnums=0)

    def evaluate(step):
        return jax.jit(mapped(step, PartitionSpec(), spec(False)))

    return _spread("shard_map", devices, mesh, put_batch, train, evaluate)


def _spread(
    form: str,
    devices: tuple[jax.Device, ...],
    mesh: Mesh,
    put_batch: Callable,
    train: Callable,
    evaluate: Callable,
) -> Placement:
    """State and data whole on every device of `mesh`."""
    whole = NamedSharding(mesh, PartitionSpec())
    return Placement(
        form=form,
        devices=devices,
        shard=(jax.process_index(), jax.process_count()),
        accelerator=devices[0].platform != "cpu",
        axis_name=AXIS,
        put_state=lambda tree: _put(tree, whole),
        put_data=lambda tree: _put(tree, whole, agree=False),
        put_batch=put_batch,
        local=lambda tree: jax.tree.map(lambda leaf: leaf.addressable_data(0), tree),
        train=train,
        evaluate=evaluate,
    )


def _put(tree: Any, sharding: NamedSharding, agree: bool = True) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    if all(isinstance(leaf, jax.Array) and leaf.sharding == sharding for leaf in leaves):
        return tree
    if agree and jax.process_count() > 1:
        # Hosts that prepared the same thing may differ in its last bit, and would stay apart.
        leaves = multihost_utils.broadcast_one_to_all([np.asarray(leaf) for leaf in leaves])
    if sharding.is_fully_addressable:
        # Never in the caller's memory, which a step would give away.
        leaves = jax.device_put(leaves, sharding, may_alias=False)
    else:
        leaves = [
            jax.make_array_from_process_local_data(sharding, np.array(leaf), np.shape(leaf))
            for leaf in leaves
        ]
    return jax.tree.unflatten(structure, leaves)
