"""Saving and restoring checkpoints, in the layout of `groupvit_jax.runs.checkpoints`."""

import contextlib
import dataclasses
import errno
import functools
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from groupvit_jax import parallel
from groupvit_jax.data.text.vocabulary import Vocabulary, to_json
from groupvit_jax.runs import checkpoints
from groupvit_jax.runs.files import read_json
from groupvit_jax.runs.manifest import STEP_METADATA, write_manifest
from groupvit_jax.runs.workdir import WorkdirError
from groupvit_jax.train.state import TrainState
from groupvit_jax.typing import PyTree

logger = logging.getLogger(__name__)

# Steps that are no longer kept move here before they are deleted: a step that a kill left
# half-deleted under its own name would look damaged.
_DELETED = ".deleted"
# Orbax writes a few hundred bytes meanwhile; a disk that takes longer is gone.
_METADATA_SECONDS = 60

# The devices that hold copies of an array share the writing of it. Orbax cuts every array for that,
# on the device and one by one, while training waits. Here only those with parts worth a cut.
_TYPES = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, ocp.type_handlers.NumpyHandler()),
    (
        jax.Array,
        ocp.type_handlers.ArrayHandler(
            min_slice_bytes_for_replica_parallel=1 << 16, max_replicas_for_replica_parallel=32
        ),
    ),
)


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """When checkpoints are saved and which are kept; the fields of `config.checkpoint`.

    Attributes:
      every_steps: steps between two saves.
      keep_last: number of the last checkpoints that are kept.
      best_metric: the best checkpoint by this metric is kept too; "" for none.
      best_mode: "max" or "min", whether larger or smaller values are better.
    """

    every_steps: int = 1000
    keep_last: int = 3
    best_metric: str = ""
    best_mode: str = "max"


class Checkpointer:
    """Saves in the background, keeps the last n and the best, restores into any shardings.

    Training waits for the copy to the host only: writing a large state to a remote disk takes
    minutes, in which the devices would idle.
    """

    def __init__(
        self,
        directory: Path | str,
        settings: CheckpointSettings,
        run_config: Mapping[str, Any] | None = None,
        vocabulary: Vocabulary | None = None,
        is_shared: bool = True,
    ) -> None:
        """Open or create the directory, remove half-written steps and set damaged ones aside.

        Args:
          directory: the folder of the steps.
          settings: which steps are kept.
          run_config: the whole configuration, a copy of which goes into every checkpoint.
          vocabulary: likewise: a checkpoint can then be used without any other file.
          is_shared: whether all processes see the directory. If not, each has a copy of its own, of
            which only that of process 0 is written.

        Raises:
          ValueError: there are steps, and all of them are damaged; or the copies differ.
        """
        self._json = {checkpoints.CONFIG: dict(run_config or {})}
        if vocabulary is not None:
            self._json[checkpoints.TOKENIZER] = to_json(vocabulary)
        self._saving = 0
        self._directory = Path(directory).absolute()  # Orbax refuses relative paths
        self._is_shared = is_shared or jax.process_count() == 1
        at_once = parallel.by_first_process if self._is_shared else lambda task: task()
        # Before Orbax opens them: it reads metrics of every step and fails with those of one.
        self._set_aside: list[str] = at_once(lambda: checkpoints.set_aside_damaged(self._directory))
        self._report_damages()
        self._manager = self._open_manager(settings)
        self._saved: list[int] = []  # by process 0, in a directory that this one doesn't see
        if not self._is_shared:
            check_same_step(self._directory, self._manager.latest_step())

    def _open_manager(self, settings: CheckpointSettings) -> ocp.CheckpointManager:
        options, processes = (
            _options(settings, self._complete),
            ocp.options.MultiprocessingOptions(),
        )
        if not self._is_shared:
            # To Orbax, each process is the only one.
            # The prefix keeps the keys of one process's barriers apart from those of another.
            me = jax.process_index()
            processes = ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
            )
            self._directory.mkdir(parents=True, exist_ok=True)
            options = dataclasses.replace(
                options,
                create=False,
                multiprocessing_options=processes,
                single_host_load_and_broadcast=False,
            )
        arrays = functools.partial(ocp.PyTreeCheckpointHandler, type_handler_registry=_TYPES)
        kinds = dict.fromkeys(checkpoints.ARRAY_ITEMS, arrays)
        kinds |= dict.fromkeys(checkpoints.JSON_ITEMS, ocp.JsonCheckpointHandler)
        handlers = {name: kind(multiprocessing_options=processes) for name, kind in kinds.items()}
        return ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    def save(
        self,
        step: int,
        state: TrainState,
        data_position: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Copy the state to the host and write it in the background.

        The state may be donated as soon as this returns. A step that is saved already stays as it
        is: after a resume it would be written again with the same content.

        Raises:
          WorkdirError: this step or, in the background, the one before can't be written.
        """
        if step in self.all_steps():
            return
        items = _by_item(state)
        if not self._is_shared:
            items = parallel.copy_to_first_process(items)
            if items is None:
                self._saved.append(step)
                return
        # State and data position are one checkpoint: saved apart, a kill between the two would
        # repeat or skip examples.
        texts = {**self._json, checkpoints.DATA_POSITION: dict(data_position)}
        args = ocp.args.Composite(
            **{item: ocp.args.PyTreeSave(tree) for item, tree in items.items()},
            **{item: ocp.args.JsonSave(content) for item, content in texts.items()},
        )
        values = {name: float(value) for name, value in metrics.items()}
        # Forced: when to save is decided by the hooks, not by the manager's interval.
        self.wait()  # as Orbax does next; the step before needs its number until it is complete
        self._saving = step
        with self._named_errors():
            # Orbax would make a folder anew that was removed, or lies on a mount that is gone.
            if not self._directory.is_dir():
                raise FileNotFoundError(errno.ENOENT, "the folder was removed")
            self._manager.save(
                step, args=args, metrics=values, force=True, custom_metadata=checkpoints.MARK
            )

    def restore_latest(self, abstract_state: TrainState) -> tuple[TrainState, dict] | None:
        """Return the last state and its data position, or None without a checkpoint.

        Args:
          abstract_state: shapes, dtypes and the shardings to restore into, on any mesh.

        Raises:
          ValueError: the checkpoint has another architecture or another optimizer.
        """
        self.wait()
        step = self.latest_step()
        if step is None:
            return None
        wanted = _by_item(abstract_state)
        folder = self._directory / str(step)
        with checkpoints.naming_damage(folder):
            # Shapes from the metadata: a wrong architecture is found before gigabytes are read.
            found = {item: dict(self._manager.item_metadata(step)[item].tree) for item in wanted}
        for item, tree in wanted.items():
            check_same_arrays(folder / item, found[item], tree)
        items = ocp.args.Composite(
            **{
                item: ocp.args.PyTreeRestore(
                    tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
                )
                for item, tree in wanted.items()
            },
            **{checkpoints.DATA_POSITION: ocp.args.JsonRestore()},
        )
        with checkpoints.naming_damage(folder):
            restored = self._manager.restore(step, args=items)
        model, training = (restored[item] for item in checkpoints.ARRAY_ITEMS)
        # With averages, `model` holds these, and `training` the parameters that go on.
        fields = {**model, **training, "average": model if abstract_state.average else {}}
        fields["key"] = jax.random.wrap_key_data(fields["key"])  # saved as its words
        state = dataclasses.replace(abstract_state, **fields)
        return state, restored[checkpoints.DATA_POSITION]

    def latest_step(self) -> int | None:
        """Return the step of the last checkpoint."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """Return the step of the best checkpoint by `config.best_metric`."""
        return self._manager.best_step()

    def all_steps(self) -> list[int]:
        """Return the steps that are kept."""
        return sorted({*self._manager.all_steps(), *self._saved})

    def wait(self) -> None:
        """Wait until everything is written; errors as for `save`."""
        with self._named_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is written and end the threads; errors as for `save`."""
        with self._named_errors():
            self._manager.close()
        self._delete_old()
        # Said again at the end, because the beginning of a long run's log is far away.
        self._report_damages()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # another process has died
            raise
        # TensorStore and Orbax raise errors of many types for a disk that is full.
        except Exception as error:
            what = f"the state after step {self._saving}"
            raise WorkdirError(self._directory, what, error) from error

    def _complete(self) -> None:
        """Finish the step that is being saved; called in process 0 before it gets its name.

        One process reads what all have written: at this model's size, less than a gigabyte, that
        takes a second or two beside the training.
        """
        (unfinished,) = self._directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        wait_for_metadata(unfinished / STEP_METADATA)
        write_manifest(unfinished)
        self._delete_old()

    def _delete_old(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self._directory / _DELETED, ignore_errors=True)

    def _report_damages(self) -> None:
        for damage in self._set_aside:
            logger.warning("damaged checkpoint: %s", damage)


def wait_for_metadata(
    path: Path,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until a thread of Orbax has added the items' handlers to a step's metadata.

    It does so beside the callback that writes the manifest: a checksum of the file as it was before
    would make a whole step look damaged.

    Args:
      path: the file.
      sleep: waits some seconds.
      clock: returns seconds.

    Raises:
      TimeoutError: the handlers don't come.
    """
    deadline = clock() + _METADATA_SECONDS
    while clock() < deadline:
        # Half a file may be seen while it is written.
        with contextlib.suppress(ValueError, OSError):
            if read_json(path).get("item_handlers"):
                return
        sleep(0.005)
    raise TimeoutError(errno.ETIMEDOUT, f"no item_handlers after {_METADATA_SECONDS} s", str(path))


def check_same_step(directory: Path, step: int | None) -> None:
    """Raise ValueError unless all processes have found the same last step in their copies."""
    first = parallel.by_first_process(lambda: step)
    if step != first:
        raise ValueError(
            f"{directory}: last step {step} found, expected {first}, that of process 0's copy; "
            "start the run again"
        )


def check_same_arrays(origin: Path, found: PyTree, expected: PyTree) -> None:
    """Raise ValueError that names the first array whose shape or dtype is not as expected.

    Args:
      origin: where the arrays were found, for the message.
      found: tree whose leaves have a shape and a dtype.
      expected: another such tree.
    """
    there, here = _described(found), _described(expected)
    different = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    # Parameters first: the optimizer's moments differ too, but only because the parameters do.
    different.sort(key=lambda name: not name.startswith("params/"))
    if different:
        name = different[0]
        raise ValueError(
            f"{origin}: {name} is {there.get(name, 'absent')} in the checkpoint, expected "
            f"{here.get(name, 'none of this name')} by this configuration ({len(different)} of "
            f"{len(here)} arrays differ); use another workdir or the configuration that wrote it"
        )


def _options(
    settings: CheckpointSettings, complete: Callable[[], None]
) -> ocp.CheckpointManagerOptions:
    def score(metrics: Mapping[str, float]) -> float:
        """Return a score, higher for better; a step without the metric is worse than any."""
        value = metrics.get(settings.best_metric, math.nan)
        sign = {"max": 1, "min": -1}[settings.best_mode]
        # NaN is neither better nor worse than a number: the order would be undefined.
        return -math.inf if math.isnan(value) else sign * value

    keep = [checkpoint_managers.LatestN(settings.keep_last)]
    if settings.best_metric:
        keep.append(checkpoint_managers.BestN(get_metric_fn=score, n=1))
    return ocp.CheckpointManagerOptions(
        best_fn=score,  # without it, Orbax writes no metrics and `best_step` has no answer
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=complete),
        todelete_subdir=_DELETED,
        # A folder renamed by process 0 may for a while keep its old name in other hosts' caches.
        single_host_load_and_broadcast=True,
    )


def _by_item(state: TrainState) -> dict[str, dict[str, PyTree]]:
    """Return the arrays of each item of the checkpoint.

    The model is what inference reads: with averages they are it, and the parameters that training
    goes on with are in the other item.
    """
    training = {"step": state.step, "opt_state": state.opt_state, "key": state.key}
    if state.average:
        training |= {"params": state.params, "batch_stats": state.batch_stats}
    return {checkpoints.MODEL: state.variables, checkpoints.TRAINING: training}


def _described(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _kind(leaf) for path, leaf in leaves
    }


def _kind(leaf: Any) -> str:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # Orbax stores the key's words
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"
